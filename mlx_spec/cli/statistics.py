"""The lines of statistics that close a run, and the comparison with plain decoding.

mlx-lm's three lines first, in its own format, so that whatever reads those goes on working.
"""

from __future__ import annotations

from collections.abc import Sequence

from mlx_spec.results import BatchResult, GenerationResult, GenerationStats

# Below this many tokens of a text, its first steps decide how fast it seems.
FEWEST_TOKENS = 32
ASK = "mlx-spec doctor --model ..."
NEAR_TIES = f"Exactness: near-ties may fall differently without drafts ({ASK})"


def statistics_lines(stats: GenerationStats, drafting: bool) -> list[str]:
    """mlx-lm's closing lines, then ours; ``drafting`` says whether speculation was asked for.

    What a constraint forces is guessed without being asked for.
    """
    lines = [
        f"Prompt: {stats.prompt_tokens} tokens, {stats.prompt_tps:.3f} tokens-per-sec",
        f"Generation: {stats.generation_tokens} tokens, {stats.generation_tps:.3f} tokens-per-sec",
        f"Peak memory: {stats.peak_memory / 1e9:.3f} GB",
    ]
    if stats.reused_tokens:
        lines.append(f"Reused prompt tokens: {stats.reused_tokens}, not in their rate")
    if not drafting and not stats.drafted:
        return [*lines, "Speculation: off"]
    return [
        *lines,
        _acceptance(stats),
        *_by_drafter(stats),
        f"Mean acceptance length: {stats.mean_acceptance_length:.2f} tokens per verify pass",
        f"Draft lengths: {_histogram(stats)}",
        *([f"Packed passes: {stats.packing}"] if stats.packed_steps else []),
        f"Steps with a draft: {_speed(stats.speculative_tps)}; "
        f"without: {_speed(stats.plain_tps)}{_verdict(stats)}",
        *([NEAR_TIES] if stats.exactness == "near-ties" else []),
        *([f"Passes: {stats.passes} ({ASK})"] if stats.passes else []),
        *([f"Measured: {stats.measured}"] if stats.measured else []),
    ]


def comparison_lines(
    first: BatchResult, plain: BatchResult, drafted: bool = True
) -> tuple[list[str], bool]:
    """Both speeds and whether all tokens are equal, as lines and as the verdict.

    Args:
        first: the run itself.
        plain: the same without a draft; or, where there was none, one request at a time.
        drafted: which of the two it is.
    """
    fast, slow = first.stats.generation_tps, plain.stats.generation_tps
    ratio = f" ({fast / slow:.2f}x)" if slow else ""
    way, other = ("With speculation", "without") if drafted else ("Together", "one at a time")
    lines = [f"{way}: {_speed(fast)}; {other}: {_speed(slow)}{ratio}"]
    longest = max(result.generation_tokens for result in plain.results)
    if longest < FEWEST_TOKENS:
        lines[0] += f"; {longest} tokens are too few to compare speeds"
    difference = _first_difference(first.results, plain.results)
    if difference is None:
        tokens = sum(len(result.token_ids) for result in plain.results)
        ways = "with and without speculation" if drafted else "together and one at a time"
        return [*lines, f"Tokens: all {tokens} identical {ways}"], True
    return [*lines, f"Tokens: NOT identical, {difference}"], False


def _first_difference(
    ours: Sequence[GenerationResult], plain: Sequence[GenerationResult]
) -> str | None:
    """Where two runs part, in words; None if they do not."""
    for number, (one, other) in enumerate(zip(ours, plain, strict=True), start=1):
        if one.token_ids == other.token_ids:
            continue
        pairs = enumerate(zip(one.token_ids, other.token_ids, strict=False))
        shorter = min(len(one.token_ids), len(other.token_ids))
        place = next((index for index, (a, b) in pairs if a != b), shorter)
        return f"prompt {number} differs from token {place + 1} on"
    return None


def _acceptance(stats: GenerationStats) -> str:
    """A rate where there is one: 0% of nothing reads as a fault."""
    if not stats.drafted:
        return "Acceptance rate: none (no token drafted: it would not pay, or nothing to go by)"
    share = f"{stats.accepted} of {stats.drafted} draft tokens"
    return f"Acceptance rate: {stats.acceptance_rate:.1%} ({share})"


def _by_drafter(stats: GenerationStats) -> list[str]:
    """What each drafter gave, where it is not the draft model alone."""
    if not stats.drafters or set(stats.drafters) == {"model"}:
        return []
    return ["By drafter: " + ", ".join(f"{name} {of}" for name, of in stats.drafters.items())]


def _histogram(stats: GenerationStats) -> str:
    counts = sorted(stats.draft_lengths.items())
    words = [f"K={length}: {steps} step{'s' if steps != 1 else ''}" for length, steps in counts]
    return ", ".join(words) or "none"


def _verdict(stats: GenerationStats) -> str:
    """A word where drafts cost more than they gave, so that nobody takes it for a fault."""
    fast, slow = stats.speculative_tps, stats.plain_tps
    return " (drafting does not pay here)" if fast and slow and fast < slow else ""


def _speed(tokens_per_second: float | None) -> str:
    if tokens_per_second is None:
        return "too few such steps to tell"
    return f"{tokens_per_second:.3f} tokens-per-sec"
