"""``LookupRun``: batches whose guesses are looked up, of texts that copy and texts that do not.

Text is copied in stretches: while one lasts a lookup finds guesses, and most of them stand; now and
then it finds some that do not. Prompts are read one after the other, so that rows begin apart.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from collections.abc import Sequence as Seq
from dataclasses import dataclass
from statistics import mean

from mlx_spec.config import SpeculationConfig
from mlx_spec.control.adaptive import AdaptiveDrafts
from mlx_spec.control.demand import RowDemand
from mlx_spec.control.offers import Offer
from mlx_spec.control.pass_costs import EDGES, PassCosts
from mlx_spec.control.report import StepReport
from mlx_spec.control.step_prices import StepPrices

from .machines import INTEL, INTEL_KEY, Machine
from .play import SimulatedRow

NGRAM, MOST = "ngram", 6
COPIED, WRONG = (0.85, 0.88), (0.4, 0.15)  # what lookups say of a guess, and how often it stands
MISLED = 0.15  # of places where nothing is copied, that a lookup finds something all the same


@dataclass(frozen=True)
class Lookups:
    """A batch.

    Attributes:
        rows: that run together.
        tokens: that a request says.
        copying: share of the text that is copied, of each kind of request.
        prompt: tokens of a prompt.
        requests: in all; as many as rows, unless said.
        apart: steps between two rows that begin; 0: they begin together.
        limit: tokens that a request may say; 0: as many as it says.
    """

    rows: int
    tokens: Callable[[random.Random], int] = lambda rng: 48
    copying: Seq[float] = (0.1, 0.1, 0.4, 0.8)
    prompt: int = 300
    requests: int = 0
    apart: int = 1
    limit: int = 0


# Some rows end long before others, and nobody follows them; and batches that are not so.
CLOSED = {
    "16 rows": Lookups(16),
    "16 that begin together": Lookups(16, apart=0),
    "16 of 15 to 60 tokens, limit 128": Lookups(
        16, tokens=lambda rng: rng.randint(15, 60), limit=128, prompt=150
    ),
    "8 rows": Lookups(8),
    "32 rows": Lookups(32, prompt=200),
}
OTHERS = {
    "4 rows": Lookups(4),
    "16 rows, all copy": Lookups(16, copying=(0.8,)),
    "16 rows, 64 requests": Lookups(16, requests=64),
}


class CopyingRow(SimulatedRow):
    """A request that copies here and there."""

    def __init__(self, batch: Lookups, seed: str) -> None:
        rng = random.Random(seed)
        self.end = batch.tokens(rng)
        super().__init__(batch.limit or self.end, length=batch.prompt)
        share, self._copied = rng.choice(batch.copying), list[bool]()
        while len(self._copied) < self.end + MOST:
            self._copied += [rng.random() < share] * rng.randint(4, 14)

    def offered(self, luck: random.Random) -> tuple[float, ...]:
        """Chances that a lookup gives its guesses."""
        if self._copied[self.said]:
            return (COPIED[0],) * min(MOST, self.room)
        return (WRONG[0],) * min(3, self.room) if luck.random() < MISLED else ()

    def stands(self, guess: int, luck: random.Random) -> bool:
        """Whether a guess does, if those before it do."""
        return luck.random() < (COPIED if self._copied[self.said + guess] else WRONG)[1]

    def gain(self, tokens: int) -> None:
        """Say them, as far as the text goes."""
        self.emit(min(tokens, self.end - self.said))


class LookupRun:
    """One batch, from its first request to its last, plain or with what lookups find.

    Args:
        machine: what passes cost.
        key: milliseconds of a key that attention reads.
        batch: the requests.
        seed: of everything random.
        speculates: whether guesses are verified.
        told: whether the policy knows who wants a row.

    Attributes:
        seconds: that it took.
        drafted, accepted: guesses.
    """

    NOISE = 0.04

    def __init__(
        self,
        machine: Machine,
        key: float,
        batch: Lookups,
        seed: int,
        *,
        speculates: bool = True,
        told: bool = True,
    ) -> None:
        self._machine, self._key, self._batch, self._seed = machine, key, batch, seed
        self._target = PassCosts()
        self._target.put({m: machine.verify(m) / 1e3 for m in EDGES}, key=key / 1e3)
        self._demand = RowDemand()
        prices = StepPrices(self._target, packs=True)
        config = SpeculationConfig(num_draft_tokens=MOST)
        demand = self._demand if told else None
        policy = AdaptiveDrafts(config, prices, asks=lambda: True, demand=demand)
        self._policy = policy if speculates else None
        count = batch.requests or batch.rows
        self._queue = [CopyingRow(batch, f"{seed} {number}") for number in range(count)]
        self._demand.came = count
        self._rows: list[CopyingRow] = []
        self._luck, self._steps = random.Random(seed), 0
        self.seconds, self.drafted, self.accepted = 0.0, 0, 0

    def play(self) -> LookupRun:
        """All of it."""
        while self._queue or self._rows:
            self._join()
            self._step()
            self._rows = [row for row in self._rows if row.said < row.end]
        return self

    def _join(self) -> None:
        apart = self._batch.apart
        while self._queue and len(self._rows) < self._batch.rows:
            if apart and self._rows and self._steps % apart:
                break
            self._rows.append(self._queue.pop(0))
            if apart:
                break
        full = len(self._rows) == self._batch.rows
        self._demand.waiting = len(self._queue) if full else 0

    def _lengths(self) -> list[int]:
        """Guesses that are verified of each row."""
        none = [0] * len(self._rows)
        if self._policy is None:
            return none
        room = self._policy.choose(self._rows)
        said = [row.offered(self._luck)[:n] for row, n in zip(self._rows, room, strict=True)]
        if not (self._policy.free and any(said)):
            return none
        offer = Offer(NGRAM, list(map(len, said)), said)
        return self._policy.settle(self._rows, [offer], [False] * len(said)).lengths

    def _step(self) -> None:
        self._steps += 1
        rows, lengths = self._rows, self._lengths()
        tokens = self._target.width(len(rows) + sum(lengths))
        longest = max(row.length for row in rows)
        noise = random.Random(f"{self._seed} {self._steps}").lognormvariate(0, self.NOISE)
        seconds = noise * (self._machine.verify(tokens) + self._key * longest * tokens) / 1e3
        accepted = []
        for row, length in zip(rows, lengths, strict=True):
            stood = 0
            while stood < length and row.stands(stood, self._luck):
                stood += 1
            accepted.append(stood)
        if self._policy is not None:
            sources = [NGRAM if n else "" for n in lengths]
            keys = len(rows) * longest
            self._policy.observe(
                StepReport(
                    list(rows),
                    lengths,
                    accepted,
                    seconds,
                    clean=True,
                    sources=sources,
                    tokens=tokens,
                    keys=keys,
                )
            )
        for row, stood in zip(rows, accepted, strict=True):
            row.gain(stood + 1)
        self.seconds += seconds
        self.drafted += sum(lengths)
        self.accepted += sum(accepted)


def over_plain(batch: Lookups, *, told: bool = True, runs: int = 8) -> list[float]:
    """Plain decoding's time over that with what lookups find, of so many batches."""
    machine, key = INTEL, INTEL_KEY
    plain = [LookupRun(machine, key, batch, n, speculates=False).play() for n in range(runs)]
    found = [LookupRun(machine, key, batch, n, told=told).play() for n in range(runs)]
    assert all(run.accepted for run in found)
    return [one.seconds / other.seconds for one, other in zip(plain, found, strict=True)]


def closed_batches() -> list[list[str]]:
    """A table: the mean and the worst batch, told who waits and not told."""
    lines = []
    for name, batch in (CLOSED | OTHERS).items():
        both = [over_plain(batch, told=told, runs=24) for told in (False, True)]
        lines.append([name, *(f"{mean(one):.2f} ({min(one):.2f})" for one in both)])
    return lines
