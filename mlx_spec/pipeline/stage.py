"""The ``Stage`` API: what one step of a pipeline asks a model, and what it makes of the answer.

A stage is a frozen dataclass whose fields are its options, so that a config table, a resume check
and a listing all read the same thing. It turns a record into one request and the answer into new
fields. It never runs a model, reads a file or sees another record; the runner does.

Example::

    @dataclass(frozen=True)
    class Shout(Stage):
        kind: ClassVar[str] = "shout"
        about: ClassVar[str] = "the text, louder"
        field: str = "text"

        def prepare(self, fields):
            return Generate(f"Shout: {text_of(fields, self.field)}")

        def complete(self, fields, answer):
            return Done({"shouted": answer.text})
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from collections.abc import Sequence as Seq
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar, Literal, TypeAlias

from mlx_spec.config import ChatConfig, SamplingParams
from mlx_spec.errors import InvalidRequest
from mlx_spec.pipeline.failures import ERROR, FAILED
from mlx_spec.pipeline.options import option as option
from mlx_spec.pipeline.options import options_of
from mlx_spec.pipeline.verdicts import Verdict
from mlx_spec.results import GenerationResult

if TYPE_CHECKING:  # which would import mlx, and a listing of options needs none
    from mlx_spec.batching.prompts import Prompt


@dataclass(frozen=True)
class Generate:
    """Ask for a completion of ``prompt``: a text, token ids or chat messages.

    Attributes:
        prompt: the same.
        sampling: options of ``SamplingParams`` that are this record's own.
        raw: a text is fed as it is, whatever the flags say of the chat template.
    """

    prompt: Prompt
    sampling: Mapping[str, Any] = field(default_factory=dict)
    raw: bool = False


@dataclass(frozen=True)
class Score:
    """Ask how probable each of ``labels`` is as the continuation of ``prompt``.

    Attributes:
        prompt: a text that ends where the label comes, or chat messages.
        labels: words; the blank before one is added where the text needs it.
        neutral: the prompt with texts that say nothing in place of the record's; what the labels
            score there is taken off. Empty takes nothing off.
        variants: a label counts in lower case, with a capital and without the blank, too.
        chat: put the text into the tokenizer's chat template, if it has one; its last line then
            begins the answer.
    """

    prompt: str | Seq[Mapping[str, Any]]
    labels: tuple[str, ...]
    neutral: tuple[str, ...] = ()
    variants: bool = False
    chat: bool = False


@dataclass(frozen=True)
class LoadedModel:
    """What a request must know of the model before it can be read.

    Attributes:
        name: of the model.
        tokenizer: mlx-lm's wrapper.
        context: most tokens of a sequence; None where nothing says it.
        sampling, chat: the run's own options, for what the request leaves open.
    """

    name: str
    tokenizer: Any
    context: int | None
    sampling: SamplingParams
    chat: ChatConfig


@dataclass(frozen=True)
class WantedTexts:
    """Ask for completions of some prompts, all options said.

    Attributes:
        prompts: texts, token ids, or lists of chat messages.
        sampling: of all of them; without a seed they take the record's.
        chat: how they are templated; None feeds them as they are.
        n: texts of each prompt.
        options: further keywords of ``BatchedMLXGenerator.submit``.
        write: the answer, from the results of all prompts' texts, in order.
    """

    prompts: Seq[Prompt]
    sampling: SamplingParams
    write: Callable[[Seq[GenerationResult]], Mapping[str, Any]]
    chat: ChatConfig | None = None
    n: int = 1
    options: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Respond:
    """Ask what can only be read with the model at hand: a request in the words of an API.

    Attributes:
        read: called once; raises InvalidRequest where the request is wrong.
    """

    read: Callable[[LoadedModel], WantedTexts]


@dataclass(frozen=True)
class Responded:
    """The answer to a :class:`Respond`.

    Attributes:
        body: in the words of the API.
        results: what it was made of.
    """

    body: Mapping[str, Any]
    results: Seq[GenerationResult]

    @property
    def error(self) -> str | None:
        """Why one of the texts ended early, if one did."""
        return next((one.error for one in self.results if one.error is not None), None)

    @property
    def finish_reason(self) -> str:
        """``length`` if one of the texts was cut."""
        reasons = [one.finish_reason for one in self.results]
        return "length" if "length" in reasons else reasons[0]


@dataclass(frozen=True)
class Done:
    """The outcome of a record.

    Attributes:
        fields: what the stage adds to it.
        dropped: later stages do not see it.
        alone: the output has these fields without the record's own.
        verdict: what the model decided, for a warning where all records get the same.
    """

    fields: Mapping[str, Any] = field(default_factory=dict)
    dropped: bool = False
    verdict: Verdict | None = None
    alone: bool = False


Request: TypeAlias = Generate | Score | Respond | Done
"""What a stage asks for; ``Done`` if it needs no model for this record."""

Answer: TypeAlias = GenerationResult | Responded | dict[str, float]
"""A completion, an API's answer, or the log-probability of each label (with ``neutral``: beyond its
prior)."""


@dataclass(frozen=True)
class Stage(ABC):
    """One step of a pipeline; its dataclass fields are its options.

    Attributes:
        kind: its name in configs.
        about: what it does, in a line.
    """

    kind: ClassVar[str] = ""
    about: ClassVar[str] = ""

    def __post_init__(self) -> None:
        for one in options_of(type(self)).values():
            value = getattr(self, one.name)
            if one.choices and value not in one.choices:
                raise InvalidRequest(
                    f"[{self.kind}] {one.name}={value!r}, expected one of {one.choices}"
                )

    def __getstate__(self) -> dict[str, Any]:
        """Its options alone: what was made of them (templates) is made again where it goes."""
        return {name: getattr(self, name) for name in options_of(type(self))}

    @property
    def uses(self) -> Literal["generate", "score", "nothing"]:
        """Which kind of request it makes; one stage makes one kind only. Nothing: no model."""
        return "generate"

    @classmethod
    def prompts(cls) -> dict[str, str]:
        """The templates that it uses where the user gives none, by when; for listings."""
        return {}

    @property
    def drops(self) -> bool:
        """Whether it may drop records, which then are not in the output."""
        return False

    @abstractmethod
    def prepare(self, fields: Mapping[str, Any]) -> Request:
        """The request for one record.

        Raises:
            InvalidRequest: this record cannot be served; it gets the error, the run goes on.
        """

    @abstractmethod
    def complete(self, fields: Mapping[str, Any], answer: Any) -> Done:
        """What the answer adds to the record; errors as in :meth:`prepare`."""

    def failed(self, fields: Mapping[str, Any], reason: str, *, refused: bool) -> Mapping[str, Any]:
        """The output of a record that failed.

        Args:
            fields: the record.
            reason: why, in words.
            refused: it is wrong itself; else something went wrong with it.
        """
        return {**fields, ERROR: reason, FAILED: True}


def text_of(fields: Mapping[str, Any], name: str, *, blank: bool = False) -> str:
    """The text in a field; ``blank`` lets through one without letters.

    Raises:
        InvalidRequest: there is no such field, or it holds no text.
    """
    if name not in fields:
        names = ", ".join(map(str, fields)) or "none"
        raise InvalidRequest(f"no field {name!r}; the record's fields are: {names}")
    value = fields[name]
    if not isinstance(value, str) or not (blank or value.strip()):
        raise InvalidRequest(f"field {name!r} holds {str(value)[:40]!r}, expected text")
    return value
