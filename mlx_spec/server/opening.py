"""``open_service``: from options and loaded models to a service, and back."""

from __future__ import annotations

import time
from collections.abc import Iterator
from collections.abc import Sequence as Seq
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

from mlx_spec.batching.generator import BatchedMLXGenerator
from mlx_spec.config import SamplingParams
from mlx_spec.events import Listener
from mlx_spec.model.context import context_length
from mlx_spec.pipeline.flags import Flags
from mlx_spec.server.ears import Ears
from mlx_spec.server.options import ServerOptions
from mlx_spec.server.protocol.served import ServedModel
from mlx_spec.server.service import Service
from mlx_spec.server.stats import configured

Loaded = tuple[Any, Any]


@contextmanager
def open_service(
    flags: Flags,
    options: ServerOptions,
    target: Loaded,
    draft: Any = None,
    listeners: Seq[Listener] = (),
) -> Iterator[Service]:
    """A service over one generator, which ends with the block; what then still runs is cancelled.

    Args:
        flags: rows, memory, speculation, and what requests get that do not say.
        options: the server's.
        target: the model and its tokenizer.
        draft: a draft model, or its pair.
        listeners: further ones.
    """
    model, tokenizer = target
    limits = (context_length(model), flags.batches.max_seq_len)
    served = ServedModel(
        name=options.served_model_name or flags.target,
        tokenizer=tokenizer,
        context=min((limit for limit in limits if limit is not None), default=None),
        created=int(time.time()),
        defaults=_within(flags.sampling_for(tokenizer), options.max_output_tokens),
        chat=flags.chat(tokenizer),
    )
    ears = Ears()
    with BatchedMLXGenerator(
        model,
        tokenizer,
        draft_model=draft,
        batching=flags.batches,
        speculation=flags.speculation,
        listeners=[*ears.listeners, *listeners],
    ) as generator:
        limits_shown = replace(options, api_key=(), api_key_file=None, store=None)
        told = configured(flags.batches, flags.speculation, limits_shown)
        service = Service(generator, served, options, ears, told)
        try:
            yield service
        finally:
            service.close()


def _within(sampling: SamplingParams, limit: int | None) -> SamplingParams:
    """What requests get that do not say, within what they may ask for."""
    if limit is None:
        return sampling
    return replace(sampling, max_tokens=min(sampling.max_tokens or limit, limit))
