"""``Recipe``: how a draft is made, as ``mlx-spec train-draft`` takes it. Imports no mlx."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from functools import partial
from typing import Any

from mlx_spec.errors import InvalidRequest
from mlx_spec.pipeline.options import option

KINDS = ("head", "model")

_draft = partial(option, group="Draft")
_writing = partial(option, group="Answers")
_training = partial(option, group="Training")


@dataclass(frozen=True)
class Recipe:
    """What is made, from what, and for how long.

    Raises:
        InvalidRequest: a value outside its range.
    """

    kind: str = _draft(
        "head",
        "head: one layer that reads the model's hidden states. model: a small model of its own, "
        "where those cannot be read.",
        choices=KINDS,
    )
    vocabulary: int = _draft(8192, "Tokens that it can guess, the most frequent ones.")
    layers: int = _draft(2, "Of a small model; a head has one.")
    width: int = _draft(128, "Of a small model; a head has its target's.")
    max_tokens: int = _writing(256, "Of an answer, at most.", names=())
    temp: tuple[str, ...] = _writing(
        ("0", "0.8"), "Each prompt is answered at each of these temperatures.", words=True
    )
    batch_size: int = _writing(32, "Answers written together.")
    held_out: tuple[str, ...] = _writing(
        (),
        "Categories of records that are measured and not trained on, beside every tenth prompt.",
        metavar="NAMES",
        words=True,
    )
    hours: float | None = _training(
        None, "Train for so long, answers not counted.  [default: 1, unless --steps]"
    )
    steps: int | None = _training(None, "Train for so many steps, whatever the time.")
    tokens_per_step: int = _training(1024, "Tokens of a step.")
    depths: int = _training(3, "Positions that a head is trained to guess ahead.")
    learning_rate: float = _training(1e-3, "The highest; it rises and falls.")
    seed: int = _training(0, "Of the answers, the first weights and the order.")

    def __post_init__(self) -> None:
        if self.kind not in KINDS:
            raise InvalidRequest(f"[train-draft] --kind {self.kind!r}, expected one of {KINDS}")
        for name in ("vocabulary", "layers", "width", "max_tokens", "batch_size", "depths"):
            self._at_least(name, 1)
        self._at_least("tokens_per_step", 8)
        self._at_least("steps", 1)
        for name in ("hours", "learning_rate"):
            value = getattr(self, name)
            if value is not None and not 0 < value < float("inf"):
                raise InvalidRequest(f"[train-draft] --{_dashed(name)} {value}, expected above 0")
        assert self.temperatures is not None

    def _at_least(self, name: str, least: int) -> None:
        value = getattr(self, name)
        if value is not None and value < least:
            raise InvalidRequest(
                f"[train-draft] --{_dashed(name)} {value}, expected at least {least}"
            )

    @property
    def temperatures(self) -> tuple[float, ...]:
        """Of the answers to each prompt.

        Raises:
            InvalidRequest: one is no number, or negative.
        """
        try:
            found = tuple(float(text) for text in self.temp)
        except ValueError:
            found = (-1.0,)
        if not found or not all(0 <= each < float("inf") for each in found):
            raise InvalidRequest(
                f"[train-draft] --temp {','.join(self.temp)}, expected temperatures from 0"
            )
        return found

    @property
    def seconds(self) -> float | None:
        """Of training, at most; None where steps alone count."""
        if self.hours is None and self.steps is not None:
            return None
        return 3600 * (1.0 if self.hours is None else self.hours)

    @property
    def identity(self) -> dict[str, Any]:
        """What a run that goes on must be given as before."""
        changeable = {"hours", "steps", "batch_size"}
        return {name: value for name, value in asdict(self).items() if name not in changeable}


def _dashed(name: str) -> str:
    return name.replace("_", "-")
