"""What generation hands back when it is done: results and statistics (``chunks`` while it runs).

Plain records without behaviour beyond derived figures and what they say of themselves; ``display``
turns that into HTML and tables. This module imports nothing heavy and may be imported by all.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal

from mlx_spec import display
from mlx_spec.chunks import FinishReason as FinishReason
from mlx_spec.chunks import GenerationChunk as GenerationChunk
from mlx_spec.chunks import TokenLogprob as TokenLogprob
from mlx_spec.display import Displayable, Summary, seconds
from mlx_spec.drafting import DrafterStats

if TYPE_CHECKING:
    from rich.console import RenderableType

# Of a batch: what is shown of each request; and characters of its prompt.
_COLUMNS = ("", "prompt", "text", "tokens", "finish", "time to first token")
_PROMPT_WIDTH = 60


@dataclass(frozen=True)
class GenerationResult(Displayable):
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
        drafters: both of each drafter, by name.
        verify_steps: target passes that this request took part in after its prompt.
        queue_time: time until it first got a row, in seconds.
        reused_tokens: prompt tokens whose K/V came from the prefix cache.
        seed: what keyed the sampling, drawn or given: ``SamplingParams(seed=...)`` with it repeats
            the text. Greedy texts do not depend on it.
        error: what ended it, where that is the finish reason; text and tokens are those before.
        logprobs: how likely each of ``token_ids`` was; None unless asked for.
        prompt_logprobs: the same of the prompt's tokens, given those before: None for the first,
            which has none before it. None altogether unless asked for.
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
    drafters: Mapping[str, DrafterStats] = field(default_factory=dict)
    logprobs: list[TokenLogprob] | None = field(default=None, repr=False)
    prompt_logprobs: list[TokenLogprob | None] | None = field(default=None, repr=False)

    @property
    def scores(self) -> dict[str, list[dict[str, Any] | None]]:
        """``logprobs`` and ``prompt_logprobs`` as JSON has them, those that were asked for."""
        lists = {"logprobs": self.logprobs, "prompt_logprobs": self.prompt_logprobs}
        return {
            name: [None if one is None else one.fields() for one in values]
            for name, values in lists.items()
            if values is not None
        }

    @property
    def tpot(self) -> float:
        """Seconds per output token after the first; 0 for a single token."""
        later = self.generation_tokens - 1
        return (self.duration - self.ttft) / later if later > 0 else 0.0

    @property
    def acceptance_rate(self) -> float:
        """Accepted / drafted tokens; 0 when nothing was drafted."""
        return self.accepted / self.drafted if self.drafted else 0.0

    @property
    def summary(self) -> Summary:
        """Its figures: (label, text)."""
        shown = [
            ("finish reason", str(self.finish_reason)),
            ("tokens", f"{self.prompt_tokens:,} prompt + {self.generation_tokens:,} generated"),
            ("time to first token", seconds(self.ttft)),
            ("time per output token", seconds(self.tpot)),
            ("duration", seconds(self.duration)),
        ]
        if self.error:
            shown.append(("error", self.error))
        if self.drafted:
            shown.append(("acceptance", _acceptance(self)))
        if self.reused_tokens:
            shown.append(("reused prompt tokens", f"{self.reused_tokens:,}"))
        return shown

    def __str__(self) -> str:
        return self.text

    def __rich__(self) -> RenderableType:
        return display.rich_text(self.text, self.summary)

    def _repr_html_(self) -> str:
        return f"{display.html_text(self.text)}{super()._repr_html_()}"


@dataclass(frozen=True)
class GenerationStats(Displayable):
    """Figures of one call, over all its requests.

    Attributes:
        prompt_tokens, generation_tokens: totals; of prompts, what was read so far.
        reused_tokens: prompt tokens that were not computed: their K/V came from the prefix cache.
        recomputed_tokens: tokens computed again because their row was preempted meanwhile.
        prompt_time, generation_time: seconds spent in prefill, and in decoding steps.
        peak_memory: most memory MLX held, in bytes.
        steps: decoding steps (target passes over the batch).
        drafted, accepted: draft tokens verified and accepted, over all rows.
        drafters: both of each drafter, by name, and what its steps took.
        row_steps: target passes counted per row, so that generation_tokens / row_steps is the
            mean acceptance length.
        draft_lengths: draft length K -> number of steps that used it.
        computed: tokens that the target's passes took, those for nobody included.
        rectangles: the same if each row took as many as the longest of its step.
        packed_steps: steps in which that was not so.
        filled_steps: steps in which the device said whose guesses were verified, by how sure the
            draft was of them (on a GPU).
        plain_tps: decode speed of the steps without a draft, in tokens per second, as measured
            in this call (None if too few such steps ran at the usual batch).
        speculative_tps: the same for the steps with a draft.
        exactness: ``exact``, or ``near-ties`` for a target that computes one new token in another
            way than several: there a draft may let two tokens that are as good as equally likely
            change places.
        passes: who is read more slowly than a batch at once, and how: ``target row by row``,
            ``draft token by token``; empty where nobody is.
        measured: what was timed of this machine before the first step, in words; empty where all
            was known from before, or nothing had to be.
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
    computed: int = 0
    rectangles: int = 0
    packed_steps: int = 0
    filled_steps: int = 0
    plain_tps: float | None = None
    speculative_tps: float | None = None
    exactness: Literal["exact", "near-ties"] = "exact"
    passes: str = ""
    measured: str = ""
    reused_tokens: int = 0
    recomputed_tokens: int = 0
    drafters: Mapping[str, DrafterStats] = field(default_factory=dict)

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

    @property
    def summary(self) -> Summary:
        """All figures: (label, text)."""
        reused = f" ({self.reused_tokens:,} reused)" if self.reused_tokens else ""
        shown = [
            ("prompts", f"{self.prompt_tokens:,} tokens{reused}, {self.prompt_tps:,.1f} tok/s"),
            ("generation", f"{self.generation_tokens:,} tokens, {self.generation_tps:,.1f} tok/s"),
            ("steps", f"{self.steps:,}"),
            ("peak memory", f"{self.peak_memory / 1e9:.3f} GB"),
        ]
        if self.drafted:
            lengths = sorted(self.draft_lengths.items())
            shown += [
                ("acceptance", _acceptance(self)),
                *((f"by {name}", _by_drafter(own)) for name, own in self.drafters.items()),
                ("tokens a verify pass", f"{self.mean_acceptance_length:.2f}"),
                ("draft lengths", ", ".join(f"{k}: {_steps(count)}" for k, count in lengths)),
            ]
        if self.packed_steps:
            shown.append(("packed passes", self.packing))
        if self.measured:
            shown.append(("measured", self.measured))
        return shown

    @property
    def packing(self) -> str:
        """What packed passes computed, in words."""
        instead = f"{self.computed:,} tokens computed instead of {self.rectangles:,}"
        filled = f", {self.filled_steps:,} filled on the device" if self.filled_steps else ""
        return f"{_steps(self.packed_steps)}, {instead}{filled}"


@dataclass(frozen=True)
class BatchResult(Displayable):
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

    @property
    def summary(self) -> Summary:
        """The figures over all."""
        return self.stats.summary

    def __str__(self) -> str:
        parts = []
        for index, result in enumerate(self.results):
            prompt = " ".join(self._prompt(index).split())
            ended = f"{result.finish_reason}, {result.generation_tokens:,} tokens"
            parts.append(f"[{index}] {prompt} ({ended})\n{result.text}\n")
        return "\n".join([*parts, super().__str__()])

    def __rich__(self) -> RenderableType:
        rows = [row[:-1] for row in self._rows()]
        return display.rich_rows(_COLUMNS[:-1], rows, self.summary)

    def _repr_html_(self) -> str:
        boxed = {"prompt": "div", "text": "pre"}
        table = display.html_rows(_COLUMNS, self._rows(), boxed)
        return f"{table}{super()._repr_html_()}"

    def _rows(self) -> list[tuple[str, ...]]:
        """A row of ``_COLUMNS`` for each request."""
        return [
            (
                str(index),
                self._prompt(index),
                display.shorten(result.text),
                f"{result.generation_tokens:,}",
                result.finish_reason,
                seconds(result.ttft),
            )
            for index, result in enumerate(self.results)
        ]

    def _prompt(self, index: int) -> str:
        """What a prompt is shown as; nothing where it is not known."""
        prompt = self.prompts[index] if index < len(self.prompts) else ""
        return display.shorten(prompt, _PROMPT_WIDTH)


def _acceptance(figures: GenerationResult | GenerationStats) -> str:
    return f"{figures.acceptance_rate:.1%} ({figures.accepted:,} of {figures.drafted:,})"


def _steps(count: int) -> str:
    return f"{count:,} step{'s' if count != 1 else ''}"


def _by_drafter(own: DrafterStats) -> str:
    took = f", {seconds(own.seconds / own.row_steps)} a row's pass" if own.row_steps else ""
    return f"{own}{took}"
