"""Runs of ``mlx-spec bench`` with a fault in them."""

from __future__ import annotations

from dataclasses import replace

from mlx_spec.bench.arms import ArmRun


def with_token(run: ArmRun, prompt: int, place: int, token: int) -> ArmRun:
    """A run in which one token is another."""
    ids = [list(each) for each in run.token_ids]
    ids[prompt][place] = token
    texts = [f"{text}!" if index == prompt else text for index, text in enumerate(run.texts)]
    return replace(run, texts=tuple(texts), token_ids=tuple(map(tuple, ids)))
