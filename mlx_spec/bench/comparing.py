"""Whether two arms said the same, byte for byte, and where they did not, whether it was a tie."""

from __future__ import annotations

from collections.abc import Sequence as Seq
from dataclasses import dataclass

from mlx_spec.api import batch_generate
from mlx_spec.bench.arms import ArmRun
from mlx_spec.pipeline.backend import Loaded

NEAR = 0.1
"""Of natural logarithms of probabilities: two tokens nearer to each other than 16-bit floats tell
logits apart are as good as equally likely, and any change of rounding may swap them."""
_MOST = 16  # differences looked into


@dataclass(frozen=True)
class TextDifference:
    """Where a text leaves plain decoding's.

    Attributes:
        prompt: its number, from 0.
        place: tokens that are the same before it.
        gap: logarithm of how much likelier the target finds one of the two tokens; None where that
            was not looked at or the other token is not among the likeliest.
    """

    prompt: int
    place: int
    gap: float | None = None

    @property
    def near_tie(self) -> bool:
        """Whether any change of rounding may do that."""
        return self.gap is not None and self.gap <= NEAR


def differences(run: ArmRun, plain: ArmRun, exact: bool) -> list[TextDifference]:
    """Where texts leave those of plain decoding, one for each that does.

    Args:
        run, plain: of the same prompts.
        exact: texts and tokens must be the same. Of others it is enough if either is: they may
            leave out the token that ends a text, and write tokens that are no text otherwise.
    """
    found = []
    for prompt, (text, expected) in enumerate(zip(run.texts, plain.texts, strict=True)):
        ids, wanted = run.token_ids[prompt], plain.token_ids[prompt]
        same = text.encode() == expected.encode()
        same_ids = ids == wanted or (not exact and ids == wanted[:-1])
        if not (same and same_ids if exact else same or same_ids):
            found.append(TextDifference(prompt, common(ids, wanted)))
    return found


def common(ours: Seq[int], theirs: Seq[int]) -> int:
    """How much of their beginnings is the same."""
    pairs = enumerate(zip(ours, theirs, strict=False))
    return next((place for place, (a, b) in pairs if a != b), min(len(ours), len(theirs)))


def look_into(
    found: Seq[TextDifference], run: ArmRun, plain: ArmRun, prompts: Seq[list[int]], target: Loaded
) -> list[TextDifference]:
    """The same with the gaps of greedy texts: the target is asked how likely both tokens are."""
    known = [one for one in found if _both(one, run, plain)][:_MOST]
    if not known:
        return list(found)
    texts = [prompts[one.prompt] + list(plain.token_ids[one.prompt][: one.place]) for one in known]
    made = batch_generate(*target, texts, max_tokens=1, top_logprobs=5, ignore_eos=True)
    looked = {}
    for one, result in zip(known, made.results, strict=True):
        assert result.logprobs is not None
        likely = {top.token: top.logprob for top in result.logprobs[0].top}
        pair = [each.token_ids[one.prompt][one.place] for each in (run, plain)]
        if all(token in likely for token in pair):
            gap = abs(likely[pair[0]] - likely[pair[1]])
            looked[one.prompt] = TextDifference(one.prompt, one.place, gap)
    return [looked.get(one.prompt, one) for one in found]


def _both(one: TextDifference, run: ArmRun, plain: ArmRun) -> bool:
    """Whether each has a token there: else one ended where the other had not."""
    return all(one.place < len(each.token_ids[one.prompt]) for each in (run, plain))
