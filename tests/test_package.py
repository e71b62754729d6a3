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
    tag, address = f"v{mlx_spec.__version__}", "https://host.example/owner/name"
    done = build(copy, "--tag", tag, "--repository", f"{address}/")
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
    assert "built and checked" in done.stdout
    (wheel,) = (copy / "dist").glob("*.whl")
    about = metadata(wheel)
    assert f"Project-URL: Repository, {address}\n" in about
    assert "![One pass" in about
    assert f"({address}/raw/{tag}/docs/picture.svg)" in about
    assert f"[Install]({address}/blob/{tag}/docs/guide/install.md)" in about
    assert "(https://github.com/ml-explore/mlx)" in about  # these are as they were
    assert "](docs/" not in about
    again = build(copy)
    assert again.returncode == 1
    assert "not empty" in again.stderr


def metadata(wheel: Path) -> str:
    with zipfile.ZipFile(wheel) as archive:
        (name,) = (name for name in archive.namelist() if name.endswith(".dist-info/METADATA"))
        return archive.read(name).decode()


def test_what_a_wheel_lacks_or_has_too_much_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(str(ROOT / "scripts"))
    package = importlib.import_module("package")
    names = package.wanted()
    assert {"mlx_spec/metrics/report.html.jinja", "metal_kernels/rope.metal"} < names
    left_out = "mlx_spec/demo_models/target/config.json"
    linked = "Version: 1\nProject-URL: Repository, https://x.example\n\n[a](docs/a.md)\n"
    for file, inside, about, words in (
        ("less.whl", names - {left_out}, "Version: 1\n", f"lacks: {left_out}"),
        ("more.whl", names | {"tests/models.py"}, "Version: 1\n", "not have: tests/models.py"),
        ("dead.whl", names, linked, "has no docs/a.md"),
    ):
        with zipfile.ZipFile(tmp_path / file, "w") as archive:
            for name in inside:
                archive.writestr(name, "")
            archive.writestr("mlx_spec-1.dist-info/METADATA", about)
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


def zizmor(*paths: Path) -> subprocess.CompletedProcess[str]:
    command = [str(Path(sys.executable).with_name("zizmor")), "--offline", "--no-progress"]
    return subprocess.run([*command, *map(str, paths)], capture_output=True, text=True, timeout=120)


def test_workflows_are_safe(tmp_path: Path) -> None:
    """Actions by commit, no more rights than needed, nothing of a caller's in a shell."""
    done = zizmor(GITHUB)
    assert done.returncode == 0, done.stdout + done.stderr
    text = (GITHUB / "workflows" / "release.yml").read_text(encoding="utf-8")
    bugs = {
        "unpinned-uses": ("actions/checkout@11bd71901bbe5b1630ceea73d27597364c9af683", "x/y@v4"),
        "template-injection": ('"$REPOSITORY"', '"${{ github.head_ref }}"'),
        "artipacked": ("persist-credentials: false", "show-progress: false"),
    }
    for name, (right, wrong) in bugs.items():
        assert right in text
        (tmp_path / "release.yml").write_text(text.replace(right, wrong), encoding="utf-8")
        done = zizmor(tmp_path / "release.yml")
        assert name in done.stdout, name


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
