"""What the runner lets in, and one forward for ragged rows."""

from __future__ import annotations

import mlx.core as mx
import pytest
from mlx_lm.models.cache import make_prompt_cache

from mlx_spec.decoding.decoder import SpeculativeDecoder
from mlx_spec.errors import InvalidRequest
from mlx_spec.model.runner import ModelRunner, Rows
from mlx_spec.sequence import Sequence
from tests.models import VOCABULARY, make_model


def test_one_ragged_forward_equals_lone_forwards() -> None:
    """Rows of 1 to 7 new tokens behind 0 to 9 cached ones, in slots that are not the first."""
    model = make_model("qwen3")
    runner = ModelRunner(model, 8)
    runner.pool.acquire(5)
    runner.pool.reserve(32)
    cached, new = [0, 3, 9, 1], [7, 1, 4, 2]
    texts = [[(7 * row + 3 * i) % VOCABULARY for i in range(20)] for row in range(4)]
    fed = mx.array([text[:9] for text in texts])
    runner.feed(Rows(fed, mx.zeros(4, mx.int32), 9, first=1, uniform=True), 8, wait=True)
    rows = [text[c : c + 7] for text, c in zip(texts, cached, strict=True)]
    starts = mx.array(cached, mx.int32)
    logits = runner.forward(Rows(mx.array(rows), starts, max(cached) + 7, first=1))
    for row, text in enumerate(texts):
        end = cached[row] + new[row]
        lone = model(mx.array([text[:end]]), cache=make_prompt_cache(model))
        ours = logits[row, : new[row]]
        assert mx.allclose(ours, lone[0, cached[row] : end], atol=1e-4), f"row {row}"


def test_token_outside_the_vocabulary_is_refused_with_the_numbers() -> None:
    decoder = SpeculativeDecoder(make_model())
    with pytest.raises(InvalidRequest, match=rf"token id {VOCABULARY}; .* has {VOCABULARY}"):
        decoder.add([Sequence([1, VOCABULARY])])
    assert not decoder.busy
