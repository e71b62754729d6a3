"""Five requests in three slots, late ones and all, of which one is preempted and comes back."""

from __future__ import annotations

from mlx_spec.config import SamplingParams
from mlx_spec.decoding.decoder import SpeculativeDecoder
from mlx_spec.sequence import Sequence
from tests.models import VOCABULARY

PROMPTS = [[(7 * i + 3 * n) % VOCABULARY for n in range(4 + 5 * i)] for i in range(5)]
SYSTEM = [(5 * n + 1) % VOCABULARY for n in range(21)]  # what every second prompt begins with


def run_with_a_preemption(
    decoder: SpeculativeDecoder, *, reusing: bool = True, alike: bool = True
) -> list[Sequence]:
    """The requests as they ended. The preempted row's caches are saved meanwhile; drafts are
    made, and accepted where the two models are ``alike``, and some beginning is taken over from
    the prefix cache (``reusing``).
    """
    todo = [
        Sequence([*SYSTEM * (i % 2), *prompt], SamplingParams(max_tokens=9 + 2 * i), index=i)
        for i, prompt in enumerate(PROMPTS)
    ]
    made = list(todo)
    preempt(decoder, todo)
    assert sum(sequence.drafted for sequence in made) > 0
    assert sum(sequence.accepted for sequence in made) > 0 or not alike
    assert (sum(sequence.reused for sequence in made) > 0) == reusing
    return made


def serve(decoder: SpeculativeDecoder, requests: list[Sequence]) -> None:
    """Run them, as many at once as there are rows."""
    todo = list(requests)
    while todo or decoder.busy:
        joining, todo = todo[: decoder.free_rows], todo[decoder.free_rows :]
        decoder.add(joining)
        decoder.step()


def preempt(decoder: SpeculativeDecoder, requests: list[Sequence], at: int = 4) -> None:
    """Run them as rows become free; the first row of a step goes away, is saved and comes
    back."""
    todo, step = list(requests), 0
    away: Sequence | None = None
    while todo or away or decoder.busy:
        if step == at:
            away = next(row for row in decoder.running if not row.ended)
            decoder.suspend(away, save=True)
        elif away is not None and step > at + 2 and decoder.free_rows:
            assert decoder.saved_bytes > 0
            decoder.add([away])
            away = None
        elif todo and decoder.free_rows:
            decoder.add([todo.pop(0)])
        decoder.step()
        step += 1
