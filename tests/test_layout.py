"""Which cache stands for which: class by class, and refused by name."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
from mlx_lm.models.cache import CacheList, ConcatenateKVCache, KVCache, RotatingKVCache

import mlx_spec
from mlx_spec.cache.dense import DenseKVCache
from mlx_spec.cache.layout import plan
from mlx_spec.cache.ring import RingKVCache
from mlx_spec.errors import UnsupportedModel
from tests.toys.every_second import EverySecond, EverySecondSlots


class Fake:
    """A model that makes such caches for itself; its layers have no say in it."""

    model_type = "fake"
    layers = (None,) * 3

    def __init__(self, *caches: Any) -> None:
        self._caches = list(caches)

    def make_cache(self) -> list[Any]:
        return self._caches


def test_there_may_be_fewer_or_more_caches_than_layers_and_of_several_kinds() -> None:
    made = plan(Fake(EverySecond(), KVCache()))
    assert [type(layer) for layer in made] == [EverySecondSlots, DenseKVCache]
    assert len(plan(Fake(*[KVCache()] * 5))) == 5
    assert len({id(layer) for layer in plan(Fake(*[KVCache()] * 5))}) == 5
    assert plan(Fake()) == []


class Own(KVCache):  # type: ignore[misc]
    """A subclass may do anything."""


@pytest.mark.parametrize(
    ("foreign", "names"),
    [
        ([Own(), ConcatenateKVCache()], "2 of 4 .* keep a ConcatenateKVCache, Own,"),
        ([CacheList(KVCache(), Own())], "1 of 3 .* keep a Own,"),
        ([Own()], "1 of 3 .* keep a Own,"),
    ],
)
def test_what_nothing_stands_for_is_refused_by_name(foreign: list[Any], names: str) -> None:
    with pytest.raises(UnsupportedModel, match=f"{names} which cannot be rolled back"):
        plan(Fake(KVCache(), *foreign, KVCache()))


def test_a_window_is_a_ring_of_its_size() -> None:
    (made,) = plan(Fake(RotatingKVCache(48, keep=4)))
    assert isinstance(made, RingKVCache)
    assert (made.ring.window, made.ring.keep) == (48, 4)


def test_a_model_that_makes_no_cache_is_refused_in_words() -> None:
    model = Fake()
    model.make_cache = lambda: 1 / 0  # type: ignore[method-assign, assignment, return-value]
    with pytest.raises(UnsupportedModel, match=r"fake: it makes no cache \(ZeroDivisionError: "):
        plan(model)


def test_one_file_knows_the_classes_of_mlx_lm() -> None:
    """And one how they are written to files."""
    root = Path(mlx_spec.__file__).parent
    knowing = [
        path.relative_to(root).as_posix()
        for path in root.rglob("*.py")
        if re.search(r"mlx_lm\.models\.cache|make_prompt_cache", path.read_text(encoding="utf-8"))
    ]
    assert sorted(knowing) == ["cache/layout.py", "model/prompt_cache.py"]
    files = (root / "model/prompt_cache.py").read_text(encoding="utf-8")
    assert re.findall(r"mlx_lm\.models\.cache import (.*)", files) == [
        "load_prompt_cache, save_prompt_cache"
    ]
