"""What rank 0 tells the ranks that follow it: engines to make, requests for them, and to step.

All of it is data, pickled; it travels between processes of one program on machines of one owner.
"""

from __future__ import annotations

from collections.abc import Sequence as Seq
from dataclasses import dataclass, fields
from typing import Any, TypeAlias

from mlx_spec.config import BatchingConfig, SpeculationConfig
from mlx_spec.decoding.prompt_share import share_prompts
from mlx_spec.errors import InvalidRequest
from mlx_spec.sequence import Sequence
from mlx_spec.structured.compiler import guide_of

# Fields of a request that each rank has of its own, or makes.
_OWN = ("evidence", "guide", "share", "sink", "spell", "text")


@dataclass(frozen=True)
class RequestRecord:
    """A request before anything was done for it.

    Attributes:
        number: of the request in its engine.
        values: fields of ``Sequence``.
        seed: drawn or given.
    """

    number: int
    values: dict[str, Any]
    seed: int

    @classmethod
    def of(cls, number: int, request: Sequence) -> RequestRecord:
        """What can be sent of a request.

        Raises:
            InvalidRequest: it brings functions, which cannot.
        """
        sampling = request.sampling
        if sampling.processors or sampling.sampler is not None:
            raise InvalidRequest(
                f"[Engine.submit] request {request.request_id!r} brings functions of its own, "
                "which cannot be sent to the other ranks of the model"
            )
        named = [item.name for item in fields(request) if item.init and item.name not in _OWN]
        return cls(number, {name: getattr(request, name) for name in named}, request.seed)

    def made(self, tokenizer: Any) -> Sequence:
        """The request, on another rank."""
        request = Sequence(**self.values)
        request.seed = self.seed
        structure = request.sampling.structure
        if structure is not None:
            request.guide = guide_of(structure, tokenizer)
        return request


def requests_of(records: Seq[RequestRecord], tokenizer: Any) -> list[Sequence]:
    """Those of one submission; what is alike among them is read once."""
    requests = [record.made(tokenizer) for record in records]
    share_prompts(requests)
    return requests


@dataclass(frozen=True)
class Submitted:
    """Requests came, at ``now`` of rank 0's clock."""

    records: tuple[RequestRecord, ...]
    now: float


@dataclass(frozen=True)
class Cancelled:
    """A request is wanted no more."""

    number: int


@dataclass(frozen=True)
class Resized:
    """So many rows may run."""

    rows: int


Command: TypeAlias = Submitted | Cancelled | Resized


@dataclass(frozen=True)
class Make:
    """An engine is made: every rank makes its own.

    Attributes:
        engine: its number.
        speculation, batching: as everywhere.
        draft: what the draft model is; empty where there is none.
        reads: whether there is a tokenizer.
        gone: engines that rank 0 has no more.
    """

    engine: int
    speculation: SpeculationConfig
    batching: BatchingConfig
    draft: str
    reads: bool
    gone: tuple[int, ...] = ()


@dataclass(frozen=True)
class Do:
    """Something is to be done for an engine that stands still."""

    engine: int
    command: Command


@dataclass(frozen=True)
class Go:
    """An engine that stood still runs from here on: step while rows are active.

    Attributes:
        engine: its number.
        now: of rank 0's clock.
        hurry: as for ``Engine.step``.
    """

    engine: int
    now: float
    hurry: bool
