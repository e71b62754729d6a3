"""The names that users import: listed once, sorted, and really there."""

from __future__ import annotations

import subprocess
import sys

import pytest

import mlx_spec


def test_all_is_sorted_and_complete() -> None:
    assert list(mlx_spec.__all__) == sorted(mlx_spec.__all__)
    assert set(mlx_spec.__all__) == set(mlx_spec._EXPORTS)
    assert set(mlx_spec.__all__) <= set(dir(mlx_spec))


@pytest.mark.parametrize("name", mlx_spec.__all__)
def test_every_name_is_there_and_documented(name: str) -> None:
    value = getattr(mlx_spec, name)
    assert value.__name__ == name
    assert value.__doc__


def test_a_name_that_is_not_there_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        mlx_spec.nothing  # noqa: B018


def test_importing_the_package_imports_nothing_heavy() -> None:
    code = (
        "import sys, mlx_spec; mlx_spec.SamplingParams; mlx_spec.MlxSpecError\n"
        "print({'mlx', 'mlx_lm', 'numpy', 'transformers', 'ctypes'} & sys.modules.keys())"
    )
    shown = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert shown.stdout.strip() == "set()"
