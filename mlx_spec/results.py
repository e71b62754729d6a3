"""What generation hands back: chunks while it runs, results and statistics when it is done.

Plain records without behaviour beyond derived figures; how they show themselves in a notebook or
on a terminal is written in ``display``. This module imports nothing heavy and may be imported by
all.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from rich.console import Group
    from rich.table import Table

FinishReason = Literal["stop", "length", "cancelled", "error"]


@dataclass(frozen=True)
class GenerationChunk:
    """One emitted token of one request.

    Attributes:
        index: the request's place in the list of prompts (0 for a single prompt).
        text: new text, possibly empty while a character or a stop text is incomplete.
        token: the token id.
        from_draft: whether the drafter proposed it (the target would have chosen it anyway).
        finish_reason: set on the request's last chunk, else None; a request that is cancelled or
            ends with an error has no last chunk.
        prompt_tokens: tokens of the prompt.
        generation_tokens: tokens emitted so far, this one included.
    """

    index: int
    text: str
    token: int
    from_draft: bool
    finish_reason: FinishReason | None
    prompt_tokens: int
    generation_tokens: int


@dataclass(frozen=True)
class GenerationResult:
    """One finished request.

    Attributes:
        text: the completion (empty without a tokenizer).
        token_ids: the emitted tokens, a final stop token included.
        finish_reason: ``stop`` (a stop token or text), ``length`` (max_tokens or the context is
            full), ``cancelled`` or ``error`` (of this request alone, see ``error``).
        prompt_tokens: tokens of the prompt.
        generation_tokens: tokens emitted.
        ttft: time from the start of the call to the first token, in seconds.
        duration: time from the start of the call to the last token, in seconds.
        drafted: draft tokens that the target verified for this request.
        accepted: how many of those it accepted.
        verify_steps: target passes that this request took part in after its prompt.
        queue_time: time until it first got a row, in seconds.
        reused_tokens: prompt tokens whose K/V came from the prefix cache.
        seed: what keyed the sampling, drawn or given: ``SamplingParams(seed=...)`` with it repeats
            the text. Greedy texts do not depend on it.
        error: what ended it, where that is the finish reason; text and tokens are those before.
    """

    text: str
    token_ids: list[int] = field(repr=False)
    finish_reason: FinishReason
    prompt_tokens: int
    generation_tokens: int
    ttft: float
    duration: float
    drafted: int = 0
    accepted: int = 0
    verify_steps: int = 0
    queue_time: float = 0.0
    reused_tokens: int = 0
    seed: int = 0
    error: str | None = None

    @property
    def tpot(self) -> float:
        """Seconds per output token after the first; 0 for a single token."""
        later = self.generation_tokens - 1
        return (self.duration - self.ttft) / later if later > 0 else 0.0

    @property
    def acceptance_rate(self) -> float:
        """Accepted / drafted tokens; 0 when nothing was drafted."""
        return self.accepted / self.drafted if self.drafted else 0.0

    def __str__(self) -> str:
        return self.text

    def _repr_html_(self) -> str:
        from mlx_spec.display import result_html

        return result_html(self)


@dataclass(frozen=True)
class GenerationStats:
    """Figures of one call, over all its requests.

    Attributes:
        prompt_tokens, generation_tokens: totals; of prompts, what was read so far.
        reused_tokens: prompt tokens that were not computed: their K/V came from the prefix cache.
        recomputed_tokens: tokens computed again because their row was preempted meanwhile.
        prompt_time, generation_time: seconds spent in prefill, and in decoding steps.
        peak_memory: most memory MLX held, in bytes.
        steps: decoding steps (target passes over the batch).
        drafted, accepted: draft tokens verified and accepted, over all rows.
        row_steps: target passes counted per row, so that generation_tokens / row_steps is the
            mean acceptance length.
        draft_lengths: draft length K -> number of steps that used it.
        plain_tps: decode speed of the steps without a draft, in tokens per second, as measured
            in this call (None if too few such steps ran at the usual batch).
        speculative_tps: the same for the steps with a draft.
        exactness: ``exact``, or ``near-ties`` for a target that computes one new token in another
            way than several: there a draft may let two tokens that are as good as equally likely
            change places.
    """

    prompt_tokens: int = 0
    generation_tokens: int = 0
    prompt_time: float = 0.0
    generation_time: float = 0.0
    peak_memory: int = 0
    steps: int = 0
    drafted: int = 0
    accepted: int = 0
    row_steps: int = 0
    draft_lengths: Mapping[int, int] = field(default_factory=dict)
    plain_tps: float | None = None
    speculative_tps: float | None = None
    exactness: Literal["exact", "near-ties"] = "exact"
    reused_tokens: int = 0
    recomputed_tokens: int = 0

    @property
    def prompt_tps(self) -> float:
        """Computed tokens per second of prefill; reused ones do not count."""
        computed = self.prompt_tokens - self.reused_tokens + self.recomputed_tokens
        return computed / self.prompt_time if self.prompt_time else 0.0

    @property
    def generation_tps(self) -> float:
        """Generated tokens per second of decoding, over all rows."""
        return self.generation_tokens / self.generation_time if self.generation_time else 0.0

    @property
    def acceptance_rate(self) -> float:
        """Accepted / drafted tokens; 0 when nothing was drafted."""
        return self.accepted / self.drafted if self.drafted else 0.0

    @property
    def mean_acceptance_length(self) -> float:
        """Tokens emitted per verify pass and row: 1 is plain decoding."""
        return self.generation_tokens / self.row_steps if self.row_steps else 0.0

    def __str__(self) -> str:
        from mlx_spec.display import lines, stats_facts

        return lines(stats_facts(self))

    def __rich__(self) -> Table:
        from mlx_spec.display import rich_table, stats_facts

        return rich_table(stats_facts(self))

    def _repr_html_(self) -> str:
        from mlx_spec.display import html_table, stats_facts

        return html_table(stats_facts(self))


@dataclass(frozen=True)
class BatchResult:
    """The finished requests of :func:`mlx_spec.batch_generate`, in the order of the prompts.

    Attributes:
        results: one for each prompt.
        stats: figures over all.
        prompts: what each prompt is shown under: its text, its last message's, or its length.
    """

    results: Sequence[GenerationResult]
    stats: GenerationStats
    prompts: Sequence[str] = ()

    @property
    def texts(self) -> list[str]:
        """The completions, in the order of the prompts."""
        return [result.text for result in self.results]

    def __repr__(self) -> str:
        tokens = sum(result.generation_tokens for result in self.results)
        return f"<BatchResult: {len(self.results)} results, {tokens} tokens>"

    def __str__(self) -> str:
        from mlx_spec.display import batch_lines

        return batch_lines(self)

    def __rich__(self) -> Group:
        from mlx_spec.display import rich_batch

        return rich_batch(self)

    def _repr_html_(self) -> str:
        from mlx_spec.display import batch_html

        return batch_html(self)
