"""How prompts are read so that nobody waits long: passes in pieces, and chunks between steps.

A pass over 2,048 tokens is a blink on one machine and half a minute on another, and meanwhile
Ctrl-C, a cancelled request, a newcomer and the next tokens of running streams would all wait.

Where nothing decodes, a pass keeps the size that is read fastest and is *computed in pieces*: a few
layers at a time (``Pieces``), with a turn for everybody between them. The numbers are the same.
Where rows decode, their next step stands behind the whole pass (``Chunk``), so it takes no more
tokens than are read in the time that a user allows (``reading_pace``).
"""

from __future__ import annotations

import time
from collections.abc import Callable
from collections.abc import Sequence as Seq

import mlx.core as mx

from mlx_spec.cache.pool import KVCachePool
from mlx_spec.model.ranks import LONE, Ranks
from mlx_spec.platform import ensure_blas

AIM = 1.0  # seconds; the longest that others wait for a pass where no time is named
FEWEST = 64  # tokens; a pass of fewer is read slowly, since every weight is read all the same
PIECE = 0.25  # seconds that are computed between two looks at the clock
LAUNCHED = 4  # layers that are launched between two questions whether anybody still wants them
# Of the CPU: larger passes are no faster there and take more memory (docs/LOG.md).
CPU_TOKENS = 256
# Multiplications and additions a second, on the safe side: what is really there shows at once.
_GUESS = {"gpu": 2e12, "fast": 2e10, "slow": 1e9}
# One pass may be the first of its kind (kernels are compiled then) or a lucky one.
_LEAST_CHANGE, _MOST_CHANGE = 0.5, 4.0


def on_cpu() -> bool:
    """Whether MLX computes on the CPU by default."""
    return bool(mx.default_device().type == mx.DeviceType.cpu)


class Pace:
    """The speed of this machine at reading prompts, over all models: what is taken for a model's
    own until that is measured.

    Args:
        operations: multiplications and additions a second; None guesses by the backend.
    """

    def __init__(self, operations: float | None = None) -> None:
        self._operations = operations

    def seconds(self, parameters: int) -> float:
        """Of a token of a model of so many ``parameters``."""
        return 2 * parameters / self.speed

    def note(self, parameters: int, tokens: int, seconds: float) -> None:
        """Learn from a pass; a quick one says only what is possible at least."""
        speed = 2 * parameters * tokens / max(seconds, 1e-6)
        if speed > self.speed or seconds > AIM / 4:
            low, high = _LEAST_CHANGE * self.speed, _MOST_CHANGE * self.speed
            self._operations = min(max(speed, low), high)

    @property
    def speed(self) -> float:
        """Multiplications and additions a second."""
        if self._operations is None:
            kind = "gpu" if not on_cpu() else "fast" if ensure_blas().fast else "slow"
            self._operations = _GUESS[kind]
        return self._operations


class Pieces:
    """Computes what a pass left lazy in a pool's layers, a few of them at a time.

    Args:
        pool: its slots.
        ranks: those that hold the model.
    """

    def __init__(self, pool: KVCachePool, ranks: Ranks = LONE) -> None:
        self._pool = pool
        self._clock = ranks.clock(time.perf_counter)
        # One's first layer waits for another's last: a part of either would wait for ever.
        self._whole = ranks.kind == "pipeline"
        self._next = len(pool.layers)
        self._at_once = 1

    @property
    def left(self) -> float:
        """The share of the pass that is not computed yet."""
        layers = len(self._pool.layers)
        return (layers - self._next) / max(1, layers)

    def start(self) -> None:
        """A pass was built."""
        self._next = 0

    def drop(self) -> None:
        """Somebody else computes what is left."""
        self._next = len(self._pool.layers)

    def compute(self, seconds: float | None) -> bool:
        """Go on, for about so many seconds (None: to the end); whether all of it is done."""
        begun = started = self._clock()
        while self._next < len(self._pool.layers):
            if self._whole:
                self._at_once = len(self._pool.layers)
            layers = self._pool.layers[self._next : self._next + self._at_once]
            mx.eval([layer.arrays for layer in layers])
            self._next += len(layers)
            now = self._clock()
            fitting = int(self._at_once * PIECE / max(now - started, 1e-6))
            self._at_once = max(1, min(fitting, 4 * self._at_once, len(self._pool.layers)))
            if seconds is not None and now - begun >= seconds:
                break
            started = now
        return self._next >= len(self._pool.layers)


class Chunk:
    """Passes over prompts that were described: launched, and not waited for.

    Args:
        layers: the arrays of each layer that the passes write, lazy.
        tokens: how many are read.
        done: to be told of it once it is known what it took.

    Attributes:
        marker: a tiny array that is there when all is computed. Nothing else refers to it, and it
            refers to no cache (donation trap).
        seconds: what it took, once that is known.
        exact: whether it was; else it took that long at most.
    """

    def __init__(
        self, layers: Seq[Seq[mx.array]], tokens: int, done: Callable[[Chunk], None]
    ) -> None:
        self.tokens, self.done = tokens, done
        self.seconds, self.exact = 0.0, True
        last = layers[-1][-1]
        self.marker = last[(0,) * last.ndim] + 0
        self._layers = [list(arrays) for arrays in layers]

    def launch(self, stopping: Callable[[], bool]) -> bool:
        """Start computing, a few layers at a time, and let go of them.

        Returns:
            Whether all is on its way; not where ``stopping`` says that nobody wants it any more.
        """
        while self._layers:
            if stopping():
                return False
            some, self._layers = self._layers[:LAUNCHED], self._layers[LAUNCHED:]
            mx.async_eval(some if self._layers else [some, self.marker])  # type: ignore[no-untyped-call]
        return True


def power_of_two(number: int) -> int:
    """The greatest one that is not above ``number``; 1 for less than that.

    >>> power_of_two(100)
    64
    """
    return 1 << (max(1, number).bit_length() - 1)


# Of the process: what one engine has learnt of the machine holds for the next one.
PACE = Pace()
