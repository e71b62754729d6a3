"""How prompts are fed: cut at the same places whatever the traffic, hashed once, read once."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable
from typing import Any

import pytest

from mlx_spec import sequence as sequence_module
from mlx_spec.block_keys import block_keys
from mlx_spec.config import BatchingConfig, SamplingParams, SpeculationConfig
from mlx_spec.decoding.decoder import SpeculativeDecoder
from mlx_spec.decoding.drafters.model import MAX_RIDE, ModelDrafter
from mlx_spec.decoding.feeding import Feeder
from mlx_spec.decoding.opening import MOST_TOKENS
from mlx_spec.decoding.prompt_meter import PromptMeter
from mlx_spec.model.runner import ModelRunner
from mlx_spec.sequence import Sequence
from tests.fakes import CyclingPolicy
from tests.scenario import plain_alone, target
from tests.test_long_prompts import prompt

PIECE = 16
Cuts = dict[Sequence, list[tuple[int, int]]]


def make(rows: int = 8, **options: Any) -> tuple[SpeculativeDecoder, Cuts]:
    """A plain decoder, and where it cuts the text of each row."""
    batching = BatchingConfig(
        batch_size=rows, prefill_interleave=40, prefill_step_size=PIECE, block_size=4, **options
    )
    decoder = SpeculativeDecoder(
        target("llama"), speculation=SpeculationConfig(enabled=False), batching=batching
    )
    cuts: Cuts = defaultdict(list)
    meter: PromptMeter = decoder._members.feeder._meter
    count = meter.fed

    def fed(sequence: Sequence, begin: int, end: int) -> None:
        cuts[sequence].append((begin, end))
        count(sequence, begin, end)

    meter.fed = fed  # type: ignore[method-assign]
    return decoder, cuts


def text(length: int, seed: int = 1, tokens: int = 4) -> Sequence:
    return Sequence(prompt(length, seed), SamplingParams(max_tokens=tokens))


def finish(decoder: SpeculativeDecoder) -> None:
    while decoder.busy:
        decoder.step()


def alone(decoder: SpeculativeDecoder, row: Sequence) -> None:
    decoder.add([row])


def in_company(decoder: SpeculativeDecoder, row: Sequence) -> None:
    """Longer, shorter and alike, before it and after."""
    decoder.add([text(70, 2), text(67, 3), row, text(9, 4), text(68, 5)])


def behind_others_that_decode(decoder: SpeculativeDecoder, row: Sequence) -> None:
    decoder.add([text(5, 6, 60), text(8, 7, 60)])
    for _ in range(3):
        decoder.step()
    decoder.add([text(33, 8), row])


def after_preemption(decoder: SpeculativeDecoder, row: Sequence) -> None:
    """In the middle of its prompt, and its K/V are given up."""
    decoder.add([text(5, 6, 60)])
    decoder.step()
    decoder.add([row])
    decoder.step()
    decoder.suspend(row, save=False)
    decoder.step()
    decoder.add([row])


WAYS = [alone, in_company, behind_others_that_decode, after_preemption]


@pytest.mark.parametrize("way", WAYS, ids=lambda way: way.__name__)
@pytest.mark.parametrize("length", [67, 65, 12])
def test_a_text_is_cut_at_the_same_places_in_any_traffic(
    way: Callable[[SpeculativeDecoder, Sequence], None], length: int
) -> None:
    """Stops K/V bits, and with them near ties, that depend on who else was fed."""
    decoder, cuts = make()
    row = text(length)
    way(decoder, row)
    finish(decoder)
    ends = [*range(PIECE, length - 1, PIECE), length - 1]
    expected = list(zip([0, *ends[:-1]], ends, strict=True))
    if way is alone and length <= MOST_TOKENS:
        expected = []  # its first step reads it
    assert cuts[row][-len(expected) :] == expected
    assert set(cuts[row]) == set(expected)
    assert row.tokens == plain_alone(target("llama"), tuple(row.prompt), row.sampling)


def test_behind_what_is_reused_pieces_end_on_the_grid() -> None:
    decoder, cuts = make(prefix_cache_bytes=2**22)
    first = text(70)
    decoder.add([first])
    finish(decoder)
    second = Sequence([*first.prompt[:22], *prompt(40, 9)], SamplingParams(max_tokens=4))
    decoder.add([second])
    finish(decoder)
    assert cuts[second] == [(20, 32), (32, 48), (48, 61)]
    assert second.reused == 20
    assert second.tokens == plain_alone(target("llama"), tuple(second.prompt), second.sampling)


def test_neighbours_share_passes_as_far_as_the_budget_goes() -> None:
    """Rows that stand at the same place are one pass: M tokens cost little more than one."""
    decoder, _ = make()
    feeder = decoder._members.feeder
    passes: list[tuple[int, int]] = []
    read = feeder._read

    def noting(*args: Any) -> Any:
        rows = read(*args)
        passes.append(rows.tokens.shape)
        return rows

    feeder._read = noting  # type: ignore[method-assign]
    decoder.add([text(3, 1, 90)])
    decoder.step()
    decoder.add([text(33, 2 + i) for i in range(4)])
    passes.clear()
    finish(decoder)
    # 40 tokens a step: two rows of a piece of 16, to their ends, then the other two.
    assert passes == [(2, PIECE), (2, PIECE), (2, PIECE), (2, PIECE)]


def test_rows_that_come_together_where_nothing_decodes_begin_together() -> None:
    """Stops the first ones of a closed batch from decoding alone, chunk by chunk of the others."""
    decoder, _ = make()
    rows = [text(60 + i, i) for i in range(4)]
    decoder.add(rows)
    finish(decoder)
    assert decoder.meter.row_steps == 4 * decoder.meter.steps
    # One that is much longer keeps nobody waiting.
    decoder, cuts = make()
    short, long = text(5, 1, 40), text(90, 2)
    decoder.add([long, short])
    while not short.tokens:
        decoder.step()
    assert sum(end - begin for begin, end in cuts[long]) < 89
    finish(decoder)


def test_a_beginning_is_hashed_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Over the whole life of a request, for target and draft: it was 3-4 times, each in full."""
    hashed, chain = 0, sequence_module.chain_key

    def counting(before: bytes, block: list[int]) -> bytes:
        nonlocal hashed
        hashed += 1
        return chain(before, block)

    monkeypatch.setattr(sequence_module, "chain_key", counting)
    batching = BatchingConfig(batch_size=2, block_size=4, prefix_cache_bytes=2**22)
    decoder = SpeculativeDecoder(
        target("llama"),
        draft_model=target("llama"),
        policy=CyclingPolicy([2]),
        batching=batching,
    )
    rows = [text(50, 1, 12), text(31, 2, 12)]
    decoder.add(rows)
    finish(decoder)
    for row in rows:
        assert row.block_keys(4) == block_keys((row.prompt + row.tokens)[:-1], 4)
    assert hashed == sum((row.length - 1) // 4 for row in rows)


@pytest.mark.parametrize("plain", [1, MAX_RIDE - 2, MAX_RIDE, 3 * MAX_RIDE])
def test_rows_that_stop_riding_and_ride_again_miss_nothing(plain: int) -> None:
    """The draft is the target: each guess is right exactly if all that it read is right.

    Drafts of a step and plain steps by turns, so that rows go back to the Feeder with a step in
    flight, at several lengths and with a newcomer among them.
    """
    drafter = ModelDrafter(ModelRunner(target("llama"), 3), BatchingConfig(prefill_interleave=8))
    decoder = SpeculativeDecoder(
        target("llama"),
        drafter=drafter,
        policy=CyclingPolicy([3, 2, *[0] * plain]),
        batching=BatchingConfig(batch_size=3, prefill_interleave=8),
    )
    rows = [text(length, length, 90) for length in (3, 40, 21)]
    decoder.add(rows[:2])
    for _ in range(7):
        decoder.step()
    decoder.add(rows[2:])
    finish(decoder)
    assert all(row.accepted == row.drafted > 0 for row in rows)
    for row in rows:
        assert row.tokens == plain_alone(target("llama"), tuple(row.prompt), row.sampling)


def test_a_piece_is_no_longer_than_what_others_would_wait_for() -> None:
    """A power of two, of the config and of what is known of the machine's pace."""
    runner = ModelRunner(target("llama"), 1)
    for interleave, step, piece in [(512, 2048, 256), (40, 2048, 32), (100, 24, 16), (1, 1, 1)]:
        batching = BatchingConfig(prefill_interleave=interleave, prefill_step_size=step)
        assert Feeder(runner, batching).size.piece == piece
