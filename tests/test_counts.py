"""Tokens are counted once, after the text has said where a row ends: every count agrees."""

from __future__ import annotations

import pytest

from mlx_spec import batch_generate
from mlx_spec.config import BatchingConfig, SamplingParams
from mlx_spec.decoding.decoder import SpeculativeDecoder
from mlx_spec.events import Event, RequestFinished, StepDone
from mlx_spec.sequence import Sequence
from tests.api_support import PROMPTS, SIX, draft_model, model, tokenizer


class CutAt:
    """A text that is ended by any of these tokens, as a stop text would."""

    def __init__(self, *ends: int) -> None:
        self.ends, self.stopped = ends, False

    def add(self, token: int) -> str:
        self.stopped = token in self.ends
        return f"<{token}>"

    def finish(self) -> str:
        return ""


@pytest.mark.parametrize("own_draft", [False, True], ids=["ragged", "all accepted"])
def test_all_counts_agree_where_stop_texts_cut_runs(own_draft: bool) -> None:
    """Three rows, joins and leaves, ends inside accepted runs."""
    events: list[Event] = []
    sampling = [
        SamplingParams(max_tokens=20 + i, stop=(("e", "(", "\n")[i % 3],), seed=i)
        for i in range(len(PROMPTS))
    ]
    batch = batch_generate(
        model(),
        tokenizer(),
        PROMPTS,
        draft_model=model() if own_draft else draft_model(),
        sampling=sampling,
        speculation=SIX,
        batching=BatchingConfig(batch_size=3),
        listeners=[events.append],
    )
    assert sum(one.finish_reason == "stop" for one in batch.results) >= 3
    steps = [event for event in events if isinstance(event, StepDone)]
    ends = [event for event in events if isinstance(event, RequestFinished)]
    for name, step_name in [
        ("generation_tokens", "tokens"),
        ("drafted", "drafted"),
        ("accepted", "accepted"),
    ]:
        total = getattr(batch.stats, name)
        assert total > 0
        assert total == sum(getattr(one, name) for one in batch.results)
        assert total == sum(getattr(step, step_name) for step in steps)
        assert total == sum(getattr(end, name) for end in ends)
    assert batch.stats.row_steps == sum(step.rows for step in steps)
    assert batch.stats.row_steps == sum(one.verify_steps for one in batch.results)


def test_a_text_ends_a_row_in_the_very_step_in_which_its_token_came() -> None:
    """In a decoder alone: nothing behind the cut is emitted, counted or kept."""
    decoder = SpeculativeDecoder(model(), draft_model=model(), speculation=SIX)
    prompt = tokenizer().encode(PROMPTS[0])
    whole = Sequence(prompt, SamplingParams(max_tokens=14))
    decoder.add([whole])
    while decoder.busy:
        decoder.step()
    end = next(n for n in range(2, 14) if whole.tokens[n] not in whole.tokens[:n])
    cut = Sequence(prompt, SamplingParams(max_tokens=14), text=CutAt(whole.tokens[end]))
    others = [Sequence([*prompt, 5 + n], SamplingParams(max_tokens=9 + n)) for n in range(3)]
    decoder.add([cut, *others])
    before = decoder.meter.tokens
    emitted: list[int] = []
    while decoder.busy:
        for output in decoder.step():
            if output.sequence is cut:
                emitted += output.tokens
    assert cut.tokens == emitted == whole.tokens[: end + 1]
    assert cut.texts == [f"<{token}>" for token in cut.tokens]
    assert (cut.state.value, cut.finish_reason) == ("finished", "stop")
    assert cut.accepted <= cut.drafted <= len(cut.tokens)
    assert decoder.meter.tokens - before == sum(len(s.tokens) for s in [cut, *others])
