"""``Contest``: one model's arms, loaded, and the prompts that they are given."""

from __future__ import annotations

from collections.abc import Mapping
from collections.abc import Sequence as Seq
from dataclasses import dataclass, field, replace
from pathlib import Path

from mlx_spec.batching.prompts import encode
from mlx_spec.bench.arms import (
    AGAIN,
    PLAIN,
    OurArm,
    Runner,
    choice_of,
    drafting_flags,
    plain_flags,
    short,
)
from mlx_spec.bench.bandwidth import StepBytes, step_bytes
from mlx_spec.bench.findings import Contender
from mlx_spec.bench.options import BenchOptions
from mlx_spec.bench.prompts import BuiltInPrompts, FilePrompts, PromptSource
from mlx_spec.config import ChatConfig
from mlx_spec.errors import MlxSpecError, PromptTooLong
from mlx_spec.model.context import context_length
from mlx_spec.pipeline.backend import Loaded, Models
from mlx_spec.pipeline.flags import Flags

_WORD = "word"


@dataclass
class Contest:
    """One model with its weights in one form, and what is compared on it.

    Attributes:
        weights: how they were quantized; None for as they are.
        target: the model and its tokenizer.
        runners: plain decoding, the same again, and the rest; those that cannot run are taken out.
        flags: of those that may be recommended, by name.
        prompts: where prompts come from.
        reading: bytes that a step reads.
        left_out: what could not run, and why.
    """

    weights: str | None
    target: Loaded = field(repr=False)
    runners: list[Runner]
    flags: Mapping[str, Flags]
    prompts: PromptSource
    reading: StepBytes
    left_out: dict[str, str] = field(default_factory=dict)

    @property
    def choices(self) -> dict[str, Contender]:
        """What may be recommended, by name."""
        return {name: replace(choice_of(flags), name=name) for name, flags in self.flags.items()}

    @property
    def has_draft_model(self) -> bool:
        """Whether anything beside the target drafts."""
        return any(one.models for one in self.choices.values())

    @property
    def context(self) -> int | None:
        """Tokens that the model can look back to, where its config says it."""
        return context_length(self.target[0])

    def close(self) -> None:
        """Let the models go: another one is next, and two may not fit into memory."""
        self.target, self.runners = (None, None), []

    def arms_at(self, batch: int) -> int:
        """How many arms run with so many rows."""
        return sum(runner.runs_at(batch) for runner in self.runners)

    def encoded(self, count: int, length: int | None) -> tuple[list[list[int]], list[str]]:
        """Token ids of prompts, and their kinds.

        Raises:
            InvalidRequest: a prompt that cannot be encoded.
            PromptTooLong: one that fills the model's context.
        """
        made = self.prompts.make(count, length)
        chat = self.flags[PLAIN].chat(self.target[1])
        context = self.context
        found = []
        for number, one in enumerate(made, start=1):
            ids = encode(self.target[1], one.prompt, f"[bench] prompt {number}", chat)
            if context is not None and len(ids) >= context:
                raise PromptTooLong(
                    f"[bench] prompt {number} of {count} has {len(ids)} tokens; the model's "
                    f"context is {context} and must hold at least one more"
                )
            found.append(ids)
        return found, [one.kind for one in made]

    def try_out(self, runner: Runner, batch: int, length: int | None, tokens: int) -> None:
        """Run an arm once, uncounted; one that the model refuses is left out from here on."""
        prompts, _ = self.encoded(batch, length)
        try:
            runner.run(prompts, batch, tokens)
        except Exception as error:
            if runner.exact and not isinstance(error, MlxSpecError):
                raise  # a fault of ours
            self.runners.remove(runner)
            self.left_out[runner.name] = " ".join(str(error).split()) or type(error).__name__


def open_contest(
    options: BenchOptions, flags: Flags, weights: str | None, models: Models
) -> Contest:
    """Load a model and all that drafts for it.

    Args:
        options, flags: what was asked for.
        weights: how they are quantized.
        models: loads them.

    Raises:
        InvalidRequest, ModelLoadError, UnsupportedModel, TokenizerMismatch: one of them cannot be
            loaded or does not fit.
    """
    if weights is not None:
        flags = replace(flags, quantize=weights)
    given = None  # a file that cannot be read is told of before anything is loaded
    if options.prompts is not None:
        given = FilePrompts(Path(options.prompts).expanduser())
    plain = plain_flags(flags)
    drafting = drafting_flags(options, flags)
    target, _ = models.pair(plain, drafting=False)
    runners: list[Runner] = [OurArm(name, plain, target) for name in (PLAIN, AGAIN)]
    drafts: dict[str, Loaded] = {}
    known = {PLAIN: plain}
    for own in drafting:
        _, draft = models.pair(own, drafting=True)
        name = choice_of(own).name
        if name in (*known, AGAIN):  # models of one name in several places
            name = " ".join(filter(None, (own.draft, own.draft_model)))
        known[name] = own
        runners.append(OurArm(name, own, target, draft))
        if draft is not None and own.drafter is not None:
            drafts[short(own.drafter)] = draft
    if options.compare:
        from mlx_spec.bench.mlx_lm_arms import mlx_lm_arms

        runners += mlx_lm_arms(target, list(drafts.items()), plain.sampling)
    prompts = given or _built_in(target[1], plain.chat(target[1]))
    return Contest(
        weights, target, runners, known, prompts, step_bytes(target[0], plain.batches.cache)
    )


def _built_in(tokenizer: object, chat: ChatConfig) -> PromptSource:
    """Our prompts, as this tokenizer counts."""

    def count(text: str) -> int:
        return len(encode(tokenizer, text, "[bench] a built-in text"))

    overhead = len(encode(tokenizer, _WORD, "[bench] a word", chat)) - count(_WORD)
    return BuiltInPrompts(count, overhead)


def usual_length(prompts: Seq[list[int]]) -> int:
    """Mean tokens of prompts."""
    return round(sum(map(len, prompts)) / len(prompts))
