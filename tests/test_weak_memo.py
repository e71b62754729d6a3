"""What is known of models goes with them, and is never taken for what is known of others."""

from __future__ import annotations

import gc

import mlx.nn as nn

from mlx_spec.weak_memo import WeakMemo


def test_each_object_has_its_own_though_they_are_equal() -> None:
    memo, one, other = WeakMemo[str](), nn.Module(), nn.Module()
    assert one == other, "as dictionaries are"
    assert memo.keep("one", one) == "one"
    assert memo.get(one) == "one"
    assert memo.get(other) is None
    memo.keep("more", one, key="size")
    assert (memo.get(one), memo.get(one, key="size")) == ("one", "more")


def test_of_a_pair_it_is_known_while_both_live() -> None:
    memo, target, draft = WeakMemo[str](), nn.Module(), nn.Module()
    memo.keep("pair", target, draft)
    memo.keep("lone", target, None)
    assert (memo.get(target, draft), memo.get(target, None)) == ("pair", "lone")
    assert memo.get(draft, target) is None
    del draft
    gc.collect()
    assert len(memo) == 1
    assert memo.get(target, None) == "lone"


def test_what_lies_where_another_lay_is_not_that_one() -> None:
    memo, one, other = WeakMemo[str](), nn.Module(), nn.Module()
    memo.keep("one", one)
    # As if ``other`` had been made where ``one`` was, before anybody heard that it has gone.
    memo._entries[id(other), None] = memo._entries.pop((id(one), None))
    assert memo.get(other) is None
