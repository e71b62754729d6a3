"""``SpeculationConfig``: where guesses come from, and how far they go."""

from __future__ import annotations

import difflib
from dataclasses import dataclass

from mlx_spec.config.checks import check_integer, check_number, plain_numbers
from mlx_spec.errors import InvalidRequest

ACCEPTANCE_RULES = ("shared_noise", "rejection")
# Where guesses may come from; what makes them is in decoding/drafters/registry.py.
DRAFTERS = ("forced", "head", "lookahead", "model", "ngram", "predicted", "self")
# Those that a draft model is.
DRAFT_MODELS = ("head", "model")
WITHOUT_A_MODEL = "ngram"
# Room for a whole draft is kept behind each row; no draft pays that is near as long.
LONGEST_DRAFT = 512


@dataclass(frozen=True)
class SpeculationConfig:
    """Whether and how far a drafter guesses ahead of the target.

    Attributes:
        enabled: False decodes plainly even when a draft model is given; True drafts by n-grams
            where none is; None drafts where there is a draft model or ``draft`` names something,
            and else no more than what a constraint forces.
        draft: where guesses come from, one of ``DRAFTERS`` or several joined with ``+``; None: the
            draft model if there is one.
        num_draft_tokens: draft length K, in tokens; the maximum when ``adaptive``.
        adaptive: choose each row's K step by step from measured cost and acceptance, 0 included.
        acceptance: ``"shared_noise"``: a draft token is accepted iff it is the target's own
            sample, both drawn with the same noise (exact token for token: a seed gives one text).
            ``"rejection"``: it stands with probability min(1, p / q), and the rest is drawn from
            what the target has more (exact in distribution: more guesses stand, and a seed repeats
            a text only where the same is drafted). Greedy rows are the same in both.
        probe_interval: fewest steps between trials of speculation while it is parked at K=0;
            where a trial is dear it waits longer, so that trials take 1% of the time.
        hysteresis: relative gain in predicted goodput that must be promised before drafting begins.
        draft_layers: numbers, from 0, of the target's layers that run where it drafts for itself
            (``self``); None: those that a short calibration finds.
        draft_temperature: of the guesses of models and layers for rows that sample, above 0; None
            for the rows' own. It changes no text, only how often guesses are right.
        ngram_shared_bytes: host memory for what all requests of one engine have said, so that one
            finds what another said (``ngram``), the oldest forgotten first; 0: each its own text.

    Raises:
        InvalidRequest: a value outside its range.
    """

    enabled: bool | None = None
    draft: str | None = None
    num_draft_tokens: int = 6
    adaptive: bool = True
    acceptance: str = "shared_noise"
    probe_interval: int = 16
    hysteresis: float = 0.03
    draft_layers: tuple[int, ...] | None = None
    draft_temperature: float | None = None
    ngram_shared_bytes: int = 16 * 2**20

    def __post_init__(self) -> None:
        plain_numbers(self)
        owner = "SpeculationConfig"
        check_integer(owner, "num_draft_tokens", self.num_draft_tokens, 0)
        if self.num_draft_tokens > LONGEST_DRAFT:
            given = f"num_draft_tokens={self.num_draft_tokens}"
            raise InvalidRequest(f"[{owner}] {given}, expected 0..{LONGEST_DRAFT}")
        check_integer(owner, "probe_interval", self.probe_interval, 1)
        check_number(owner, "hysteresis", self.hysteresis, 0.0, 1.0, "[0, 1]")
        for layer in self.draft_layers or ():
            check_integer(owner, "draft_layers", layer, 0)
        if self.draft_temperature is not None:
            bounds = (0.0, 100.0, "(0, 100]")
            check_number(owner, "draft_temperature", self.draft_temperature, *bounds)
        check_integer(owner, "ngram_shared_bytes", self.ngram_shared_bytes, 0)
        if self.acceptance not in ACCEPTANCE_RULES:
            raise InvalidRequest(
                f"[{owner}] acceptance={self.acceptance!r}, expected one of "
                f"{', '.join(ACCEPTANCE_RULES)}"
            )
        self._check_draft(owner)

    def _check_draft(self, owner: str) -> None:
        draft = self.draft
        if draft is not None and not isinstance(draft, str):
            raise InvalidRequest(f"[{owner}] draft={draft!r}, expected a text")
        if strange := [kind for kind in self.named if kind not in DRAFTERS]:
            raise InvalidRequest(
                f"[{owner}] draft={draft!r} names {strange[0]!r}{_meant(strange[0])}, expected one "
                f"of {', '.join(DRAFTERS)}, or several joined with +"
            )
        if len(set(self.named)) < len(self.named):
            raise InvalidRequest(f"[{owner}] draft={draft!r} names one of them twice")

    @property
    def named(self) -> tuple[str, ...]:
        """The drafters that ``draft`` names, none where it is left open."""
        return () if self.draft is None else tuple(part.strip() for part in self.draft.split("+"))

    @property
    def off(self) -> bool:
        """Whether nothing is drafted, whatever there is to draft with."""
        return self.enabled is False or self.num_draft_tokens == 0

    @property
    def takes_model(self) -> bool:
        """Whether a draft model that is given is one that drafts."""
        named = self.named
        return not self.off and (not named or not set(DRAFT_MODELS).isdisjoint(named))

    def kinds(self, given: str | None) -> tuple[str, ...]:
        """The drafters to be used, in the order in which they were named.

        Args:
            given: which of them the draft model is that was given; None where none was.
        """
        if self.off:
            return ()
        if self.named:
            return self.named
        if given is not None:
            return (given,)
        return (WITHOUT_A_MODEL,) if self.enabled else ()


def _meant(word: str) -> str:
    """What somebody may have meant who named no drafter."""
    if word.lower() in ("none", "off", "no", "false"):
        return " (enabled=False, --no-speculative, drafts nothing)"
    close = difflib.get_close_matches(word.lower(), DRAFTERS, 1, 0.7)
    return f" (did you mean {close[0]}?)" if close else ""
