"""The package: wheel and sdist are built, accepted and hold what they should; releasing it."""

from __future__ import annotations

import importlib
import re
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path
from typing import Any

import pytest
import yaml

import mlx_spec

ROOT = Path(__file__).parent.parent
GITHUB = ROOT / ".github"
SOURCES = ("mlx_spec", "metal_kernels", "scripts", "tests/toys", "docs/guide")
FILES = ("pyproject.toml", "README.md", "LICENSE", "MANIFEST.in")


def build(root: Path, *options: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(root / "scripts/package.py"), str(root / "dist")]
    return subprocess.run(
        [*command, "--no-isolation", *options], capture_output=True, text=True, timeout=300
    )


@pytest.fixture
def copy(tmp_path: Path) -> Path:
    """The sources: a build leaves things beside them."""
    for name in SOURCES:
        ignored = shutil.ignore_patterns("__pycache__")
        shutil.copytree(ROOT / name, tmp_path / name, ignore=ignored)
    for name in FILES:
        shutil.copy(ROOT / name, tmp_path / name)
    return tmp_path


def test_wheel_and_sdist_have_what_they_should(copy: Path) -> None:
    done = build(copy, "--tag", f"v{mlx_spec.__version__}")
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
    assert "built and checked" in done.stdout
    again = build(copy)
    assert again.returncode == 1
    assert "not empty" in again.stderr


def test_what_a_wheel_lacks_or_has_too_much_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(str(ROOT / "scripts"))
    package = importlib.import_module("package")
    names = package.wanted()
    assert {"mlx_spec/metrics/report.html.jinja", "metal_kernels/rope.metal"} < names
    left_out = "mlx_spec/demo_models/target/config.json"
    for file, inside, words in (
        ("less.whl", names - {left_out}, f"lacks: {left_out}"),
        ("more.whl", names | {"tests/models.py"}, "should not have: tests/models.py"),
    ):
        with zipfile.ZipFile(tmp_path / file, "w") as archive:
            for name in (*inside, "mlx_spec-1.dist-info/METADATA"):
                archive.writestr(name, "Version: 1\n")
        with pytest.raises(SystemExit, match=words):
            package.check_wheel(tmp_path / file)


def read(path: Path) -> Any:
    return yaml.safe_load(path.read_text(encoding="utf-8"))


def test_only_a_tag_publishes() -> None:
    release = read(GITHUB / "workflows" / "release.yml")
    assert release["permissions"] == {"contents": "read"}
    jobs = release["jobs"]
    publish = jobs.pop("publish")
    assert publish["if"] == "github.event_name == 'push' && github.ref_type == 'tag'"
    assert publish["permissions"] == {"id-token": "write"}
    assert set(publish["needs"]) == set(jobs)
    assert all("permissions" not in job for job in jobs.values())
    assert {"macos", "ubuntu"} <= {
        os.split("-")[0] for os in jobs["install"]["strategy"]["matrix"]["os"]
    }


@pytest.mark.parametrize("path", sorted((GITHUB / "workflows").glob("*.yml")), ids=lambda p: p.stem)
def test_workflows_run_what_is_there(path: Path) -> None:
    steps = [step for job in read(path)["jobs"].values() for step in job["steps"]]
    named = {
        name for step in steps for name in re.findall(r"scripts/\w[\w.]*", step.get("run", ""))
    }
    assert named
    assert [name for name in named if not (ROOT / name).exists()] == []


@pytest.mark.parametrize(
    "path", sorted((GITHUB / "ISSUE_TEMPLATE").glob("[0-9]*.yml")), ids=lambda p: p.stem
)
def test_forms_are_forms(path: Path) -> None:
    """What GitHub asks of one: else it shows none, and says so to nobody but the owner."""
    form = read(path)
    assert form["name"]
    assert form["description"]
    identifiers = [part["id"] for part in form["body"]]
    assert len(set(identifiers)) == len(identifiers)
    for part in form["body"]:
        assert part["type"] in {"textarea", "input", "dropdown", "checkboxes"}
        assert part["attributes"]["label"]
        assert ("options" in part["attributes"]) == (part["type"] in {"dropdown", "checkboxes"})
    texts = path.read_text(encoding="utf-8")
    commands = set(re.findall(r"`mlx-spec (\w+)", texts))
    assert commands <= {"bench", "doctor", "generate"}


def test_the_changelog_has_what_is_not_released() -> None:
    text = (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")
    titles = re.findall(r"^## (.*)", text, re.MULTILINE)
    assert titles[0] == "Unreleased" or titles[0].startswith(f"{mlx_spec.__version__} - ")
    kinds = set(re.findall(r"^### (.*)", text, re.MULTILINE))
    assert kinds <= {"Added", "Changed", "Deprecated", "Removed", "Fixed", "Security"}
