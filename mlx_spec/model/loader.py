"""Load a model and its tokenizer, and say in one line why it cannot be loaded.

On top of the public ``mlx_lm.load``: names of the embedded pair, float32 on the CPU, quantizing,
entries of config.json replaced, configs of transformers 5, and errors that a person can act on. It
never runs a model and never patches mlx-lm.

Example::

    model, tokenizer = load("demo")
    model, tokenizer = load("mlx-community/Qwen3-8B-4bit")
    model, tokenizer = load("~/models/my-model", config=LoadConfig(quantize=4))
"""

from __future__ import annotations

import inspect
import os
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import mlx.core as mx
from mlx.utils import tree_map_with_path

from mlx_spec.errors import InvalidRequest, MlxSpecError, ModelLoadError
from mlx_spec.load_config import DTYPES, LoadConfig, LoadOptions, with_load_options
from mlx_spec.model.context import note_context
from mlx_spec.model.faults import reason
from mlx_spec.model.fit import check_fit, warn_of_no_end
from mlx_spec.model.folder import check_adapter, check_folder
from mlx_spec.model.heads.files import is_head, load_head
from mlx_spec.model.kernel_choice import bind_kernels, check_kernels
from mlx_spec.model.materialize import materialize
from mlx_spec.model.pace import on_cpu
from mlx_spec.model.quantized import dequantize, quantize, warn_if_quantized
from mlx_spec.model.rotation import check_rotation, old_form
from mlx_spec.model.sharding import divide
from mlx_spec.model.source import check_name, is_gguf, locate, shown
from mlx_spec.model.unread import check_overrides, warn_of_unread
from mlx_spec.platform import warn_if_slow_blas

if TYPE_CHECKING:
    import mlx.nn as nn
    from mlx_lm.tokenizer_utils import TokenizerWrapper
    from typing_extensions import Unpack


def load(
    path_or_repo: str | os.PathLike[str],
    *,
    config: LoadConfig | None = None,
    **options: Unpack[LoadOptions],
) -> tuple[nn.Module, TokenizerWrapper]:
    """Load a model and its tokenizer, as ``mlx_lm.load`` does.

    Args:
        path_or_repo: a folder, a ``.gguf`` file, a Hugging Face hub id (``org/name``, of a GGUF
            file ``org/name/file.gguf``), ``"demo"`` / ``"demo-draft"``, the embedded
            pair, or ``"smollm2"``, fetched once, and ``"smollm2-draft"``, its embedded head.
        config: ``LoadConfig``: dtype, quantizing, adapters, revision, entries of config.json to
            replace, kernels.
        options: fields of ``LoadConfig``: ``dtype``, ``quantize``, ``adapter_path``, ``revision``,
            ``config_overrides``, ``trust_remote_code``, ``tokenizer_config``, ``lazy``,
            ``kernels``, ``gguf_requantize``, ``shard``.

    Returns:
        The mlx-lm model and its ``TokenizerWrapper``; of a draft head's folder the head, for
        ``draft_model``, and None.

    Raises:
        ModelLoadError: there is no model, or it cannot be read; the message says which.
        UnsupportedModel: its config asks for positions that mlx-lm's class does not compute.
        InvalidRequest: an option that is none, has no such value, or wants Metal where there is
            none.

    Warns:
        RuntimeWarning: config.json has entries that count and that mlx-lm's class does not read;
            on the CPU, where something makes the model much slower than need be.
    """
    check_name(path_or_repo)
    config = with_load_options(config, options)
    wanted = _parse_dtype(config.dtype)
    check_kernels(config.kernels)
    try:
        adapter = check_adapter(config.adapter_path) if config.adapter_path is not None else None
        place = locate(path_or_repo, config.revision)
        if not is_gguf(place) and is_head(place):
            return load_head(place, wanted), cast("TokenizerWrapper", None)
        if is_gguf(place):
            model, tokenizer, settings = _load_file(place, config, adapter)
        else:
            check_folder(place)
            model, tokenizer, settings = _load_folder(place, config, adapter)
        check_fit(model, tokenizer, settings)
        check_rotation(model, settings)
        check_overrides(model, config.config_overrides, settings)
        note_context(model, settings)
        _cast(model, wanted)
        if config.quantization is not None:
            quantize(model, config.quantization)
        elif config.dtype is not None and wanted == mx.float32 and on_cpu():
            model = dequantize(model)
            _cast(model, wanted)  # some kinds of quantization come out in a type of their own
        kernels = divide(model, config.shard) or config.kernels
        bind_kernels(model, kernels)  # tried, maybe, while the weights take no memory yet
        title = f"loading {os.path.basename(shown(path_or_repo))}"
        materialize(model, parameters=not config.lazy, title=title)
    except MlxSpecError as error:
        raise type(error)(f"[load] {shown(path_or_repo)}: {error}") from error.__cause__
    except SystemExit as error:  # as some of mlx-lm's modules end where a package is missing
        raise ModelLoadError(
            f"[load] {shown(path_or_repo)}: mlx-lm's code of this model needs a package that is "
            "not installed"
        ) from error
    except Exception as error:  # whatever a broken file makes mlx-lm or transformers raise
        raise ModelLoadError(f"[load] {shown(path_or_repo)}: {reason(error)}") from error
    warn_of_unread(model, settings, stacklevel=2)
    warn_of_no_end(tokenizer, stacklevel=2)
    warn_if_slow_blas(stacklevel=2)
    if config.quantization is None:  # else it is what was asked for
        warn_if_quantized(model, stacklevel=2)
    return model, tokenizer


def _load_folder(
    folder: Path, config: LoadConfig, adapter: Path | None
) -> tuple[Any, Any, dict[str, Any]]:
    """Model, tokenizer and config of a checked folder, nothing of it computed yet."""
    import mlx_lm
    from mlx_lm.utils import load_config

    settings = load_config(folder)
    changes = config.changes_to(settings)
    changes |= old_form({**settings, **changes})
    tokenizer_options = dict(config.tokenizer_config or {})
    # Always given: transformers would ask on the terminal where it is not.
    tokenizer_options.setdefault("trust_remote_code", config.trust_remote_code)
    more = _trust(mlx_lm.load, config.trust_remote_code)
    changes |= more.pop("model_config", {})
    model, tokenizer = mlx_lm.load(
        str(folder),
        tokenizer_config=tokenizer_options,
        model_config=changes,
        adapter_path=os.fspath(adapter) if adapter is not None else None,
        lazy=True,  # cast first, so that only one copy of the weights is ever in memory
        **more,
    )
    return model, tokenizer, settings | changes


def _load_file(
    file: Path, config: LoadConfig, adapter: Path | None
) -> tuple[Any, Any, dict[str, Any]]:
    """The same of a GGUF file."""
    from mlx_lm.utils import load_adapters

    from mlx_spec.model.gguf.load import load_gguf

    model, tokenizer, settings = load_gguf(file, config)
    if adapter is not None:
        model = load_adapters(model, os.fspath(adapter))
    return model, tokenizer, settings


def _trust(loader: Callable[..., Any], allowed: bool) -> dict[str, Any]:
    """Options of ``mlx_lm.load`` that keep it from running a model's own code, unless allowed.

    Before 0.32 (the versions for python 3.10) it has no option for that and always runs the code;
    there the entry that names the code is taken out of the config.
    """
    if "trust_remote_code" in inspect.signature(loader).parameters:
        return {"trust_remote_code": allowed}
    return {} if allowed else {"model_config": {"model_file": None}}


def _parse_dtype(dtype: str | mx.Dtype | None) -> mx.Dtype | None:
    """The floating type asked for; on the CPU float32 if none is."""
    if dtype is None:
        return mx.float32 if on_cpu() else None
    if isinstance(dtype, str):
        found: mx.Dtype = getattr(mx, dtype)  # one of DTYPES, as the config has checked
        return found
    if isinstance(dtype, mx.Dtype) and mx.issubdtype(dtype, mx.floating):
        return dtype
    raise InvalidRequest(f"[load] dtype={dtype!r}, expected one of {', '.join(DTYPES)}")


def _cast(model: Any, dtype: mx.Dtype | None) -> None:
    """Cast the floating weights, but not those that the model keeps in their own type."""
    if dtype is None:
        return
    wanted = getattr(model, "cast_predicate", lambda _: True)

    def cast(path: str, weight: mx.array) -> mx.array:
        floating = mx.issubdtype(weight.dtype, mx.floating)
        return weight.astype(dtype) if floating and wanted(path) else weight

    model.update(tree_map_with_path(cast, model.parameters()))
