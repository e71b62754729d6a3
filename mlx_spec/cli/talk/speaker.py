"""``Speaker``: the model that answers: loaded once, its drafts changed in the middle of a talk."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from mlx_spec.cli.notes import saying, status
from mlx_spec.cli.sharded import check_draft
from mlx_spec.cli.talk.flags import ChatFlags
from mlx_spec.errors import InvalidRequest

if TYPE_CHECKING:
    from mlx_spec.batching.generator import BatchedMLXGenerator
    from mlx_spec.batching.token_stream import TokenStream
    from mlx_spec.results import GenerationStats

OFF = ("off", "none", "no")


class Speaker:
    """Answers conversations, one at a time; what they begin with is kept between them.

    Args:
        flags: models and options.
        quiet: no word while something is loaded.

    Raises:
        MlxSpecError: a model that cannot be loaded, or has no chat template.
    """

    def __init__(self, flags: ChatFlags, quiet: bool = False) -> None:
        with status(f"loading {flags.target}", quiet):
            from mlx_spec.pipeline.backend import Models
        self._models = Models(lambda text: status(text, quiet), saying(quiet))
        self.flags = self._began = flags
        self._generator = self._open(flags)

    def _open(self, flags: ChatFlags) -> BatchedMLXGenerator:
        from mlx_spec.batching.generator import BatchedMLXGenerator

        target, draft = self._models.pair(flags, drafting=True)
        self._model, self._tokenizer = target
        self._draft_kind = None if draft is None else getattr(draft[0], "draft_kind", "model")
        if not self._tokenizer.has_chat_template:
            raise InvalidRequest(
                f"[chat] {flags.target} has no chat template, so it knows no turns; "
                "`mlx-spec generate` lets it go on with a text"
            )
        self._sampling = flags.sampling_for(self._tokenizer)
        self._chat = flags.chat(self._tokenizer)
        return BatchedMLXGenerator(
            *target, draft_model=draft, batching=flags.batches, speculation=flags.speculation
        )

    @property
    def context(self) -> int | None:
        """Most tokens of a conversation, the answer included."""
        from mlx_spec.model.context import context_length

        return context_length(self._model)

    @property
    def kinds(self) -> tuple[str, ...]:
        """Where guesses come from."""
        return self.flags.speculation.kinds(self._draft_kind)

    @property
    def drafting(self) -> str:
        """The same in words."""
        if not self.kinds:
            return "off"
        named, model = "+".join(self.kinds), self.flags.drafter
        return f"{named} ({model})" if model else named

    @property
    def begins(self) -> str:
        """What every answer begins with."""
        return self._chat.prefill_response or ""

    def count(self, messages: Sequence[Mapping[str, Any]]) -> int:
        """Tokens of a conversation.

        Raises:
            InvalidRequest: the chat template refuses it.
        """
        from mlx_spec.batching.prompts import encode

        return len(encode(self._tokenizer, messages, "[chat] the conversation", self._chat))

    def ask(self, messages: Sequence[Mapping[str, Any]]) -> TokenStream:
        """Begin an answer.

        Raises:
            PromptTooLong: the conversation fills the context.
            InvalidRequest: the chat template refuses it.
        """
        return self._generator.submit(messages, self._sampling, chat=self._chat)

    def stats(self) -> GenerationStats:
        """Figures over all answers since drafts were last changed."""
        return self._generator.stats().generation

    def draft_with(self, kind: str, model: str | None = None) -> None:
        """Guess in another way from now on; ``off`` for not at all. ``model`` is a draft model.

        Raises:
            MlxSpecError: that cannot be; then nothing has changed.
        """
        if kind in OFF:
            flags = replace(self.flags, enable_speculative=False, draft=None)
        else:
            named = model or self.flags.draft_model
            flags = replace(self.flags, enable_speculative=None, draft=kind, draft_model=named)
        check_draft(self._began, flags)
        generator = self._open(flags)
        self._generator.close()
        self.flags, self._generator = flags, generator

    def close(self) -> None:
        """End the worker. Doing it twice does no harm."""
        self._generator.close()
