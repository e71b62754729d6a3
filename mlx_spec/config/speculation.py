"""``SpeculationConfig``: where guesses come from, and how far they go."""

from __future__ import annotations

from dataclasses import dataclass

from mlx_spec.config.checks import check_integer, check_number, plain_numbers
from mlx_spec.errors import InvalidRequest

ACCEPTANCE_RULES = ("shared_noise",)


@dataclass(frozen=True)
class SpeculationConfig:
    """Whether and how far a drafter guesses ahead of the target.

    Attributes:
        enabled: False decodes plainly even when a draft model is given.
        num_draft_tokens: draft length K, in tokens; the maximum when ``adaptive``.
        adaptive: choose K step by step from measured cost and acceptance, down to 0 and back.
        acceptance: ``"shared_noise"``: a draft token is accepted iff it is the target's own
            sample, both drawn with the same noise (exact token for token).
        probe_interval: fewest steps between trials of speculation while it is parked at K=0;
            where a trial is dear it waits longer, up to 16 times as long.
        hysteresis: relative gain in predicted goodput that a change of K must promise.
        draft_temperature: of the guesses of models and layers for rows that sample, above 0; None
            for the rows' own. It changes no text, only how often guesses are right.

    Raises:
        InvalidRequest: a value outside its range.
    """

    enabled: bool = True
    num_draft_tokens: int = 6
    adaptive: bool = True
    acceptance: str = "shared_noise"
    probe_interval: int = 32
    hysteresis: float = 0.03
    draft_temperature: float | None = None

    def __post_init__(self) -> None:
        plain_numbers(self)
        owner = "SpeculationConfig"
        check_integer(owner, "num_draft_tokens", self.num_draft_tokens, 0)
        check_integer(owner, "probe_interval", self.probe_interval, 1)
        check_number(owner, "hysteresis", self.hysteresis, 0.0, 1.0, "[0, 1]")
        if self.draft_temperature is not None:
            bounds = (0.0, 100.0, "(0, 100]")
            check_number(owner, "draft_temperature", self.draft_temperature, *bounds)
        if self.acceptance not in ACCEPTANCE_RULES:
            raise InvalidRequest(
                f"[{owner}] acceptance={self.acceptance!r}, expected one of {ACCEPTANCE_RULES}"
            )
