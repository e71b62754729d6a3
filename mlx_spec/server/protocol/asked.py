"""``Asked``: one HTTP request in our own words, whatever its dialect."""

from __future__ import annotations

from collections.abc import Sequence as Seq
from dataclasses import dataclass
from typing import Any

from mlx_spec.batching.prompts import Prompt
from mlx_spec.config import ChatConfig, SamplingParams


@dataclass(frozen=True)
class Asked:
    """What one HTTP request wants of the model.

    Its sequences are numbered prompt by prompt: number ``p * n + k`` is the k-th text of prompt p.

    Attributes:
        prompts: token ids, or texts; conversations have been through the template.
        sampling: of each of them; several texts of a prompt have the seeds SEED, SEED + 1, ...
        chat: how prompts are templated that were not; None: they are fed as they are.
        n: texts of each prompt.
        stream: whether tokens are wanted as they come.
        include_usage: whether a stream ends with its usage.
        prediction: what the answer is likely to hold, a draft; it never becomes the text.
        priority: higher goes first.
        show_drafts: whether chunks of a stream say which drafter guessed a token.
        request_id: what ids in the answer are made of, so that the same ones come again.
        created: of the answer, in seconds of Unix time.
        body: the request as its dialect reads it, for that dialect alone.
        thinking: whether the prompt leaves the model in the middle of its reasoning.
    """

    prompts: tuple[Prompt, ...]
    sampling: SamplingParams
    chat: ChatConfig | None = None
    n: int = 1
    stream: bool = False
    include_usage: bool = False
    prediction: str | None = None
    priority: int = 0
    show_drafts: bool = False
    request_id: str = ""
    created: int = 0
    body: Any = None
    thinking: bool = False

    @property
    def sequences(self) -> int:
        """How many texts it asks for."""
        return len(self.prompts) * self.n

    @property
    def prompt_tokens(self) -> int:
        """Tokens of those prompts that are known as such."""
        return sum(len(prompt) for prompt in self.prompts if not isinstance(prompt, str))

    def heads(self, results: Seq[Any]) -> Seq[Any]:
        """The first result of each prompt."""
        return results[:: self.n]
