#!/usr/bin/env python3
"""Builds wheel and sdist and checks them: `python -m build`, `twine check --strict`, contents.

python scripts/package.py dist                # needs build and twine
python scripts/package.py dist --tag v0.1.0   # the version must be that one
python scripts/package.py dist --no-isolation # with the setuptools at hand, without a network
python scripts/package.py dist --repository https://host/owner/name

The README's links lead to files beside it, which a package index does not have. With an address of
the repository they lead there, to the tag or to HEAD, and the index shows the address; without one
they stay, and the index shows links that lead nowhere: only for what is not published.
"""

from __future__ import annotations

import argparse
import email
import re
import shutil
import subprocess
import sys
import tarfile
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory

ROOT = Path(__file__).resolve().parent.parent
PACKAGES = ("mlx_spec", "metal_kernels")
# Sources that no user has a use for; the sdist has what it takes to build, and no more.
KEPT_OUT = ("tests/", "scripts/", "build/", ".venv/", "docs/results/")
NOT_COPIED = shutil.ignore_patterns(
    ".*", "__pycache__", "*.egg-info", "build", "dist", "out", "tests", "scripts"
)
LINK = re.compile(r"(!?)(\[[^\]]*\])\((?!\w+:|#)([^)\s]+)\)")


def main() -> None:
    parser = argparse.ArgumentParser(description="Builds wheel and sdist and checks them.")
    parser.add_argument("out", type=Path)
    parser.add_argument("--tag", help="what the version must be, with a v before it")
    parser.add_argument("--no-isolation", action="store_true")
    parser.add_argument(
        "--repository", help="where links of the README lead: https://host/owner/name"
    )
    arguments = parser.parse_args()
    arguments.out.mkdir(parents=True, exist_ok=True)
    if any(arguments.out.iterdir()):
        sys.exit(f"{arguments.out}: not empty; what lies there would be published")
    how = ["--no-isolation"] if arguments.no_isolation else []
    with sources(arguments.repository, arguments.tag or "HEAD") as root:
        run("build", "--outdir", str(arguments.out), *how, str(root))
    (wheel,), (sdist,) = arguments.out.glob("*.whl"), arguments.out.glob("*.tar.gz")
    run("twine", "check", "--strict", str(wheel), str(sdist))
    version = check_wheel(wheel)
    check_sdist(sdist)
    if arguments.tag is not None and arguments.tag != f"v{version}":
        sys.exit(f"tag {arguments.tag}, but the version is {version}")
    print(f"{wheel.name}, {sdist.name}: built and checked")


def run(module: str, *words: str) -> None:
    done = subprocess.run([sys.executable, "-m", module, *words], check=False)
    if done.returncode:
        sys.exit(f"{module}: {done.returncode}")


@contextmanager
def sources(repository: str | None, version: str) -> Iterator[Path]:
    """What is built: these files, or a copy with links that lead to the repository."""
    if repository is None:
        yield ROOT
        return
    with TemporaryDirectory() as place:
        root = Path(place) / "mlx-spec"
        shutil.copytree(ROOT, root, ignore=NOT_COPIED)
        address = repository.rstrip("/")
        readme, project = root / "README.md", root / "pyproject.toml"
        words = readme.read_text(encoding="utf-8")
        readme.write_text(with_links(words, address, version), encoding="utf-8")
        urls = f'Repository = "{address}"\nChangelog = "{address}/blob/HEAD/CHANGELOG.md"\n'
        text = project.read_text(encoding="utf-8")
        if "[project.urls]" not in text:
            text = text.replace("[project.scripts]", f"[project.urls]\n{urls}\n[project.scripts]")
            project.write_text(text, encoding="utf-8")
        yield root


def with_links(markdown: str, address: str, version: str) -> str:
    """The same text, its links to files made links to the repository."""

    def there(found: re.Match[str]) -> str:
        picture, words, path = found.groups()
        return f"{picture}{words}({address}/{'raw' if picture else 'blob'}/{version}/{path})"

    return LINK.sub(there, markdown)


def wanted() -> set[str]:
    """Every file of the packages, data included."""
    files = (path for name in PACKAGES for path in (ROOT / name).rglob("*") if path.is_file())
    own = (path for path in files if "__pycache__" not in path.parts and path.suffix != ".pyc")
    return {path.relative_to(ROOT).as_posix() for path in own}


def check_wheel(wheel: Path) -> str:
    """All files of the packages and nothing else; its version."""
    with zipfile.ZipFile(wheel) as archive:
        names = set(archive.namelist())
        (metadata,) = (name for name in names if name.endswith(".dist-info/METADATA"))
        about = email.message_from_bytes(archive.read(metadata))
    version, linked = str(about["Version"]), about["Project-URL"] is not None
    if linked and (dead := LINK.search(str(about.get_payload()))):
        sys.exit(f"{wheel.name}: a package index has no {dead[3]}, which its README links to")
    inside = {name for name in names if ".dist-info/" not in name}
    complain(wheel, "lacks", wanted() - inside)
    complain(wheel, "should not have", inside - wanted())
    return version


def check_sdist(sdist: Path) -> None:
    """All files of the packages, and nothing that is not for users."""
    with tarfile.open(sdist) as archive:
        names = {re.sub(r"^[^/]+/", "", one.name) for one in archive.getmembers() if one.isfile()}
    complain(sdist, "lacks", (wanted() | {"README.md", "LICENSE", "pyproject.toml"}) - names)
    complain(sdist, "should not have", {name for name in names if name.startswith(KEPT_OUT)})


def complain(file: Path, what: str, names: set[str]) -> None:
    if names:
        sys.exit(f"{file.name} {what}: {', '.join(sorted(names))}")


if __name__ == "__main__":
    main()
