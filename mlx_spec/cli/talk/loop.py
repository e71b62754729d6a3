"""``Talk``: messages in, answers out, until the user leaves.

Answers go to stdout, all else to stderr. Ctrl-C ends an answer, whose beginning stays in the
conversation, and not the program.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from mlx_spec import interrupts
from mlx_spec.cli.draft_colors import DraftPaint
from mlx_spec.cli.statistics import statistics_lines
from mlx_spec.cli.talk.dialogue import Dialogue
from mlx_spec.cli.talk.lines import Lines
from mlx_spec.errors import GeneratorClosed, MlxSpecError, PromptTooLong

if TYPE_CHECKING:
    from mlx_spec.batching.token_stream import TokenStream
    from mlx_spec.cli.talk.speaker import Speaker
    from mlx_spec.results import GenerationResult

# Tokens that an answer has room for, else old exchanges are dropped for it.
ROOM = 256


class Talk:
    """One conversation at a prompt.

    Args:
        speaker: answers.
        conversation: to begin with.
        tell: hears in lines what is no answer.
        paint: colours drafted tokens.
        do: does what a line commands (``slash``); whether it was a command.
        drop_old: where the context is full, forget the oldest exchanges without being told to.
        goes_on: after Ctrl-C, which else ends the program.

    Attributes:
        unsent: a message that the context had no room for.
        file: where the conversation was saved or loaded last.
        over: whether the user leaves.
        failed: whether something was asked for and could not be done.
    """

    def __init__(
        self,
        speaker: Speaker,
        conversation: Dialogue,
        tell: Callable[[str], None],
        paint: DraftPaint,
        *,
        do: Callable[[Talk, str], bool],
        drop_old: bool = False,
        goes_on: bool = True,
    ) -> None:
        self.speaker, self.conversation, self.tell = speaker, conversation, tell
        self.unsent: str | None = None
        self.file: Path | None = None
        self.over = self.failed = False
        self._paint, self._drop_old, self._goes_on = paint, drop_old, goes_on
        self._do = do
        self._last: GenerationResult | None = None

    def run(self, lines: Lines) -> None:
        """Until the lines end or the user leaves.

        Raises:
            KeyboardInterrupt: where that is to end the program.
            GeneratorClosed: the worker has failed.
        """
        while not self.over:
            try:
                text = lines.ask()
            except KeyboardInterrupt:
                self._heard("(Ctrl-D or /exit leaves)")
                continue
            if text is None:
                return
            try:
                self.take(text)
            except KeyboardInterrupt:
                self._heard("(stopped)")
            except GeneratorClosed:
                raise
            except MlxSpecError as error:
                self.failed = True
                self.tell(" ".join(str(error).split()))

    def _heard(self, word: str) -> None:
        """In an ``except KeyboardInterrupt``: go on, if that is wanted."""
        if not self._goes_on:
            raise
        interrupts.go_on()
        self.tell(word)

    def take(self, text: str) -> None:
        """Do what a line says.

        Raises:
            MlxSpecError: it cannot be done.
        """
        if not self._do(self, text) and text.strip():
            self.answer(text)

    def answer(self, text: str) -> None:
        """Say a message, and write the answer as it comes."""
        self.unsent = None
        self.conversation.say("user", text)
        try:
            stream = self._asked()
            result, said, stopped = self._write(stream)
        except BaseException:
            self.conversation.take_back()
            raise
        if result.error is not None:
            self.conversation.take_back()
            self.failed = True
            self.tell(f"the answer failed: {result.error}")
            return
        self._last = result
        if stopped and not said:
            self.conversation.take_back()
            self.tell("(stopped before a word)")
            return
        self.conversation.say("assistant", self.speaker.begins + said)
        if stopped:
            self.tell("(stopped)")
        elif result.finish_reason == "length":
            self.tell(self._cut(result))

    def drop(self, count: int | None) -> None:
        """Forget so many of the oldest exchanges; with None as many as an unsent message needs.

        A message that waits is sent then.
        """
        waiting = self.unsent
        if waiting is None or count is not None:
            gone = self.conversation.drop_oldest(count or 1)
        else:
            self.conversation.say("user", waiting)
            gone = self._make_room()
            self.conversation.take_back()
        self.tell(f"{gone} exchange{'s' if gone != 1 else ''} forgotten")
        if waiting is not None:
            self.answer(waiting)

    def figures(self) -> list[str]:
        """Of the last answer, and of all."""
        last, context = self._last, self.speaker.context
        if last is None:
            return ["nothing was said yet"]
        used = last.prompt_tokens + last.generation_tokens
        of = "" if context is None else f" of {context:,}"
        speed = f"{1 / last.tpot:.1f} tokens-per-sec, " if last.tpot else ""
        return [
            f"Context: {used:,}{of} tokens, {self.conversation.exchanges} exchanges",
            f"Last answer: {last.generation_tokens} tokens, {speed}first after "
            f"{last.ttft:.2f} s; {last.reused_tokens:,} of {last.prompt_tokens:,} prompt tokens "
            "reused",
            *([f"Accepted of its drafts: {self._accepted(last)}"] if last.drafted else []),
            "All answers:",
            *statistics_lines(self.speaker.stats(), self.speaker.drafting != "off"),
        ]

    @staticmethod
    def _accepted(result: GenerationResult) -> str:
        by = ", ".join(f"{name} {own}" for name, own in result.drafters.items())
        return f"{result.acceptance_rate:.1%} ({by})"

    def _asked(self) -> TokenStream:
        """The answer's stream, old exchanges dropped where that was allowed."""
        if self._drop_old and (gone := self._make_room()):
            self.tell(f"(the context is full: {gone} of the oldest exchanges forgotten)")
        try:
            return self.speaker.ask(self.conversation.messages)
        except PromptTooLong as error:
            if self.conversation.exchanges < 2:
                raise PromptTooLong(f"{self._full()}: the message alone is too long") from error
            self.unsent = str(self.conversation.turns[-1]["content"])
            raise PromptTooLong(
                f"{self._full()}; your message waits: /drop forgets as many of the oldest "
                "exchanges as it needs, /reset all of them"
            ) from error

    def _used(self) -> int:
        """Tokens of the conversation."""
        return self.speaker.count(self.conversation.messages)

    def _full(self) -> str:
        held = f"the context holds {self.speaker.context:,} tokens"
        return f"{held}, this conversation has {self._used():,}"

    def _make_room(self) -> int:
        """Where an answer has no room, forget the oldest exchanges; how many.

        As many as leave a quarter of the context: what begins otherwise is read anew, so seldom.
        """
        context, gone = self.speaker.context, 0
        if context is None or self._used() + min(ROOM, context // 8) <= context:
            return 0
        while self._used() + context // 4 > context and self.conversation.drop_oldest():
            gone += 1
        return gone

    def _write(self, stream: TokenStream) -> tuple[GenerationResult, str, bool]:
        """Write an answer; its result, what was said of it, and whether it was stopped."""
        said: list[str] = []
        stopped = False
        try:
            for chunk in stream:
                said.append(chunk.text)
                print(self._paint.of(chunk), end="", flush=True)
                interrupts.check()
            result = stream.result()
        except KeyboardInterrupt:
            stream.cancel()
            stopped = True
            result = stream.result()
            if not self._goes_on:
                print(flush=True)
                raise
            interrupts.go_on()
        print(flush=True)
        return result, "".join(said), stopped

    def _cut(self, result: GenerationResult) -> str:
        used, context = result.prompt_tokens + result.generation_tokens, self.speaker.context
        if context is not None and used >= context:
            return f"(the context of {context:,} tokens is full: /drop or /reset makes room)"
        return f"(cut at --max-tokens {result.generation_tokens})"
