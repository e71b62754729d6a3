"""``Looks``: several looks at what passes take, put together.

A look is a list of seconds by tokens that were timed one after another, while the machine had some
speed: half as fast as usual, if another program ran. So what a look says of a point is compared
within the look only, and a point is the *middle* of what all looks say of it::

                 1 token   16    32        speed     at the first one's speed
    first look     60     100   130         1.0       60   100   130
    another        90     150   300         1.5       60   100   200  <- another program's hiccup
    a third        48      84   102         0.8       60   105   128
                                                      60   100   130

The least of them would be each point's own luckiest look: the more looks, the further apart from
each other points drift, whichever way their luck is.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from collections.abc import Sequence as Seq
from statistics import median

HICCUP = 1.25  # times the other of two looks; a hiccup makes a pass longer only
TURNS = 8  # of speeds by points and points by speeds


def usual(spent: Seq[float]) -> float:
    """The middle of some numbers above 0; of two in the middle their mean, or the less, where
    they are so far apart that one of them was disturbed."""
    ordered = sorted(spent)
    low, high = ordered[(len(ordered) - 1) // 2], ordered[len(ordered) // 2]
    return low if high > HICCUP * low else (low + high) / 2


def combined(
    looks: Seq[Mapping[int, float]], least: int = 1
) -> tuple[dict[int, float], list[float]]:
    """What passes take, and how much longer each look found them.

    Args:
        looks: seconds by tokens, of what each has timed.
        least: points that a look must share with others to say what its speed was; with fewer it
            is the one before's.

    Returns:
        Seconds by tokens at the first look's speed, and factors on it, one a look.
    """
    seen = Counter(tokens for look in looks for tokens in look)
    shared = [[tokens for tokens in look if seen[tokens] > 1] for look in looks]
    seconds, speeds = dict[int, float](), list[float]()
    for look, common in zip(looks, shared, strict=True):
        known = [look[tokens] / seconds[tokens] for tokens in common if tokens in seconds]
        before = speeds[-1] if speeds else 1.0
        speeds.append(median(known) if len(known) >= least else before)
        for tokens, spent in look.items():
            seconds.setdefault(tokens, spent / speeds[-1])
    for _ in range(TURNS if len(looks) > 1 else 0):
        pairs = list(zip(looks, speeds, strict=True))
        for tokens in seconds:
            seconds[tokens] = usual([look[tokens] / by for look, by in pairs if tokens in look])
        for place, (look, common) in enumerate(zip(looks, shared, strict=True)):
            if len(common) >= least:
                speeds[place] = median(look[tokens] / seconds[tokens] for tokens in common)
    first = speeds[0] if speeds else 1.0
    return {n: spent * first for n, spent in seconds.items()}, [one / first for one in speeds]


class Looks:
    """Those that are held of one kind of passes, the oldest first.

    Attributes:
        seconds: by tokens, at the oldest one's speed.
        speed: of the last one, as a factor on that.
    """

    MOST = 9  # looks at a point that count, the newest

    def __init__(self) -> None:
        self._held: list[dict[int, float]] = []
        self.seconds: dict[int, float] = {}
        self.speed = 1.0

    @property
    def held(self) -> list[dict[int, float]]:
        """Those that count: seconds by tokens, as they were timed."""
        return list(self._held)

    def add(self, look: Mapping[int, float]) -> float:
        """Take one more, the newest; what :attr:`speed` is then."""
        if look:
            self.join([*self._held, look])
        return self.speed

    def join(self, looks: Seq[Mapping[int, float]]) -> None:
        """Take these and what else is held, which is newer; the same one only once."""
        every = [dict(look) for look in looks]
        every += [look for look in self._held if look not in every]
        newer, kept = Counter[int](), list[dict[int, float]]()
        for look in reversed(every):
            counts = {n: spent for n, spent in look.items() if newer[n] < self.MOST}
            newer.update(look.keys())
            kept += [counts] if counts else []
        self._held = kept[::-1]
        self.seconds, speeds = combined(self._held)
        self.speed = speeds[-1] if speeds else 1.0
