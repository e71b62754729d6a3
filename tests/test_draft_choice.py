"""Which drafter is used: what was named, else what was given, else n-grams where it was asked."""

from __future__ import annotations

import pytest

from mlx_spec.config import SpeculationConfig
from mlx_spec.config.speculation import DRAFTERS
from mlx_spec.decoding.decoder import SpeculativeDecoder
from mlx_spec.decoding.drafters.none import NoDraft
from mlx_spec.decoding.setup import used_model
from mlx_spec.errors import InvalidRequest
from mlx_spec.pipeline.flags import Flags
from tests.scenario import noisy_draft, target


@pytest.mark.parametrize(
    ("config", "given", "kinds"),
    [
        (SpeculationConfig(), None, ()),
        (SpeculationConfig(), "model", ("model",)),
        (SpeculationConfig(), "head", ("head",)),
        (SpeculationConfig(enabled=True), None, ("ngram",)),
        (SpeculationConfig(enabled=True), "model", ("model",)),
        (SpeculationConfig(enabled=False, draft="ngram"), "model", ()),
        (SpeculationConfig(num_draft_tokens=0, draft="ngram"), "model", ()),
        (SpeculationConfig(draft="ngram"), "model", ("ngram",)),
        (SpeculationConfig(draft="ngram + model"), "model", ("ngram", "model")),
    ],
)
def test_the_drafter_is_the_named_one_else_the_given_one(
    config: SpeculationConfig, given: str | None, kinds: tuple[str, ...]
) -> None:
    assert config.kinds(given) == kinds


def test_a_draft_model_that_drafts_nothing_is_not_kept() -> None:
    model = object()
    assert used_model(model, SpeculationConfig()) is model
    assert used_model(model, SpeculationConfig(draft="forced+model")) is model
    for config in (SpeculationConfig(enabled=False), SpeculationConfig(draft="ngram")):
        assert used_model(model, config) is None


def test_flags_say_what_is_loaded_and_whether_anything_is_drafted() -> None:
    for flags, drafter, drafting in [
        (Flags(), "demo-draft", True),
        (Flags(draft="ngram"), None, True),
        (Flags(draft="ngram+model"), "demo-draft", True),
        (Flags(model="m"), None, False),
        (Flags(model="m", enable_speculative=True), None, True),
        (Flags(model="m", draft="ngram", draft_model="d"), None, True),
        (Flags(model="m", draft_model="d", enable_speculative=False), None, False),
    ]:
        assert (flags.drafter, flags.drafting) == (drafter, drafting), flags


def test_a_draft_model_that_is_missing_is_refused_in_words() -> None:
    with pytest.raises(InvalidRequest, match="draft='model' needs a draft model, none was given"):
        SpeculativeDecoder(target("llama"), speculation=SpeculationConfig(draft="model"))


def test_memory_follows_the_drafter() -> None:
    config = SpeculationConfig(num_draft_tokens=9)
    plain = SpeculativeDecoder(target("llama"), speculation=config)
    drafting = SpeculativeDecoder(
        target("llama"), draft_model=noisy_draft("llama"), speculation=config
    )
    assert isinstance(plain.drafter, NoDraft)
    without, speculation = plain.speculation, drafting.speculation
    assert (without.most, speculation.most) == (0, 9)
    assert speculation.margin(9) - without.margin(0) == 2 * 9


def test_every_drafter_has_a_name_in_order() -> None:
    assert list(DRAFTERS) == sorted(DRAFTERS)
