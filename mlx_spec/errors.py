"""Every error that mlx-spec raises on purpose, in one tree.

    MlxSpecError
    +-- InvalidRequest        a prompt or parameter that can never be served (also a ValueError)
    |   +-- PromptTooLong     the prompt does not fit the model's context
    +-- ModelLoadError        no model at that path or repository, or it cannot be read
    +-- UnsupportedModel      a model that loads but that this engine cannot run exactly
    +-- TokenizerMismatch     the draft has too few of the target's tokens
    +-- CapacityError         slots or memory asked for that do not exist
    |   +-- OutOfMemory       the device ran out of it while a request ran
    +-- OutputError           an output that exists, belongs to another run, or takes no more
    +-- GeneratorClosed       the generator was closed or its worker has failed
    +-- RankError             a process that holds a part of the model is gone, or disagrees
    +-- InvariantError        a state check failed: a bug in mlx-spec, please report
        +-- IllegalTransition a step that a request's state does not allow

Messages name the operation and the numbers: ``[KVCachePool.acquire] 33 slots asked, 32 exist``.
The command line prints them on one line and exits with 2; no traceback is shown for them.
This module imports nothing and may be imported by all.
"""

from __future__ import annotations


class MlxSpecError(Exception):
    """Base of every error raised on purpose by mlx-spec."""


class InvalidRequest(MlxSpecError, ValueError):
    """A prompt or a parameter that can never be served, whatever the load."""


class PromptTooLong(InvalidRequest):
    """The prompt alone fills the model's context."""


class ModelLoadError(MlxSpecError):
    """Nothing at that path or repository can be loaded as a model."""


class UnsupportedModel(MlxSpecError):
    """The model loads, but this engine cannot run it, or not as its config says."""


class TokenizerMismatch(MlxSpecError):
    """The draft has too few of the target's tokens, so it would guess in vain."""


class CapacityError(MlxSpecError):
    """More slots or memory were asked for than exist."""


class OutOfMemory(CapacityError):
    """The device had no memory for a step. What a request is told that was given up for it begins
    with ``WORDS``."""

    WORDS = "[Engine.step] the device has no memory"


class OutputError(MlxSpecError):
    """An output that exists, that belongs to another run, or that cannot be written."""


class GeneratorClosed(MlxSpecError):
    """The generator was closed, or its worker has failed."""


class RankError(MlxSpecError):
    """Another process that holds a part of the model is gone, or has decided otherwise."""


class InvariantError(MlxSpecError):
    """A state check failed, most of which only the debug mode makes. This is a bug in mlx-spec."""


class IllegalTransition(InvariantError):
    """A request was made to do what its state does not allow: to end twice, to decode unread."""
