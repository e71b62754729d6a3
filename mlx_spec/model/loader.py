"""Load a model and its tokenizer, and say in one line why it cannot be loaded.

On top of the public ``mlx_lm.load``: names of the embedded pair, float32 on the CPU, configs of
transformers 5, and errors that a person can act on. It never runs a model and never patches mlx-lm.

Example::

    model, tokenizer = load("demo")
    model, tokenizer = load("mlx-community/Qwen3-8B-4bit")
    model, tokenizer = load("~/models/my-model", dtype="float32")
"""

from __future__ import annotations

import inspect
import os
import re
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import mlx.core as mx
from mlx.utils import tree_map_with_path

from mlx_spec.errors import InvalidRequest, MlxSpecError, ModelLoadError
from mlx_spec.model.catalog import embedded_path
from mlx_spec.model.context import note_context
from mlx_spec.model.folder import check_adapter, check_folder
from mlx_spec.model.kernel_binding import bind_operations, choose_kernels
from mlx_spec.model.materialize import materialize
from mlx_spec.model.pace import on_cpu
from mlx_spec.model.quantized import dequantize, warn_if_quantized
from mlx_spec.model.rotation import check_rotation, old_form
from mlx_spec.platform import warn_if_slow_blas

if TYPE_CHECKING:
    import mlx.nn as nn
    from mlx_lm.tokenizer_utils import TokenizerWrapper

_DTYPES = {"float32": mx.float32, "float16": mx.float16, "bfloat16": mx.bfloat16}
_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[\w.-]+")
# What mlx-lm takes from a repository.
_HUB_FILES = (
    "*.json",
    "model*.safetensors",
    "*.py",
    "tokenizer.model",
    "*.tiktoken",
    "*.txt",
    "*.jsonl",
    "*.jinja",
)


def load(
    path_or_repo: str | os.PathLike[str],
    *,
    dtype: str | mx.Dtype | None = None,
    adapter_path: str | os.PathLike[str] | None = None,
    revision: str | None = None,
    trust_remote_code: bool = False,
    tokenizer_config: dict[str, Any] | None = None,
    lazy: bool = False,
    kernels: str = "auto",
) -> tuple[nn.Module, TokenizerWrapper]:
    """Load a model and its tokenizer, as ``mlx_lm.load`` does.

    Args:
        path_or_repo: a folder, a Hugging Face hub id (``org/name``), or ``"demo"`` /
            ``"demo-draft"``, the embedded pair.
        dtype: type of the floating weights: ``"float32"``, ``"float16"``, ``"bfloat16"`` or an
            ``mx.Dtype``. None keeps the file's, but takes float32 on the CPU, where products of
            16-bit floats are some 50 times slower. On the CPU ``"float32"`` also makes quantized
            weights plain: the same values in several times the memory, and much faster there.
        adapter_path: folder of LoRA adapters to apply, as ``mlx_lm.lora`` writes them.
        revision: branch, tag or commit of a hub repository.
        trust_remote_code: let the model's folder bring Python code that is then run.
        tokenizer_config: further options for the tokenizer.
        lazy: leave the weights unread until they are used, by this thread: no other can read
            them. Everything else is computed when it returns.
        kernels: Metal kernels of our own to bind into it: ``"auto"`` (those measured to win on
            this machine), ``"metal"`` (all) or ``"reference"`` (none); see ``kernel_binding``.

    Returns:
        The mlx-lm model and its ``TokenizerWrapper``.

    Raises:
        ModelLoadError: there is no model, or it cannot be read; the message says which.
        UnsupportedModel: its config asks for positions that mlx-lm's class does not compute.
        InvalidRequest: an unknown ``dtype`` or ``kernels``, or Metal's where there is no Metal.

    Warns:
        RuntimeWarning: on the CPU, where something makes the model much slower than need be.
    """
    wanted = _parse_dtype(dtype)
    operations = choose_kernels(kernels)
    source = _source(path_or_repo)
    options = dict(tokenizer_config or {})
    if trust_remote_code:
        options.setdefault("trust_remote_code", True)
    try:
        adapter = check_adapter(adapter_path) if adapter_path is not None else None
        folder = source if isinstance(source, Path) else _fetch(source, revision)
        check_folder(folder)
        model, tokenizer = _load_folder(folder, options, adapter, trust_remote_code)
        _cast(model, wanted)
        if dtype is not None and wanted == mx.float32 and on_cpu():
            model = dequantize(model)
            _cast(model, wanted)  # some kinds of quantization come out in a type of their own
        materialize(model, parameters=not lazy)
    except MlxSpecError as error:
        raise type(error)(f"[load] {_shown(path_or_repo)}: {error}") from error.__cause__
    except SystemExit as error:  # as some of mlx-lm's modules end where a package is missing
        raise ModelLoadError(
            f"[load] {_shown(path_or_repo)}: mlx-lm's code of this model needs a package that is "
            "not installed"
        ) from error
    except Exception as error:  # whatever a broken file makes mlx-lm or transformers raise
        raise ModelLoadError(f"[load] {_shown(path_or_repo)}: {_reason(error, source)}") from error
    bind_operations(model, operations)
    warn_if_slow_blas(stacklevel=2)
    warn_if_quantized(model, stacklevel=2)
    return model, tokenizer


def _load_folder(
    folder: Path, options: dict[str, Any], adapter: Path | None, trusted: bool
) -> tuple[Any, Any]:
    """Model and tokenizer of a checked folder, nothing of it computed yet."""
    import mlx_lm
    from mlx_lm.utils import load_config

    config = load_config(folder)
    changes, more = old_form(config), _trust(mlx_lm.load, trusted)
    changes |= more.pop("model_config", {})
    model, tokenizer = mlx_lm.load(
        str(folder),
        tokenizer_config=options,
        model_config=changes,
        adapter_path=os.fspath(adapter) if adapter is not None else None,
        lazy=True,  # cast first, so that only one copy of the weights is ever in memory
        **more,
    )
    config |= changes
    check_rotation(model, config)
    note_context(model, config)
    return model, tokenizer


def _fetch(repository: str, revision: str | None) -> Path:
    """The folder of a hub repository, from the local cache or downloaded."""
    import mlx_lm.utils

    # Its own: where users have set it up for another hub, it asks that one.
    return Path(
        mlx_lm.utils.snapshot_download(
            repository, revision=revision, allow_patterns=list(_HUB_FILES)
        )
    )


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
    if isinstance(dtype, str) and dtype in _DTYPES:
        return _DTYPES[dtype]
    if isinstance(dtype, mx.Dtype) and mx.issubdtype(dtype, mx.floating):
        return dtype
    raise InvalidRequest(f"[load] dtype={dtype!r}, expected one of {', '.join(_DTYPES)}")


def _cast(model: Any, dtype: mx.Dtype | None) -> None:
    """Cast the floating weights, but not those that the model keeps in their own type."""
    if dtype is None:
        return
    wanted = getattr(model, "cast_predicate", lambda _: True)

    def cast(path: str, weight: mx.array) -> mx.array:
        floating = mx.issubdtype(weight.dtype, mx.floating)
        return weight.astype(dtype) if floating and wanted(path) else weight

    model.update(tree_map_with_path(cast, model.parameters()))


def _source(path_or_repo: str | os.PathLike[str]) -> Path | str:
    """A folder as a Path, or a hub id as a str."""
    embedded = embedded_path(path_or_repo)
    if embedded is not None:
        return embedded
    text = os.fspath(path_or_repo)
    path = Path(text).expanduser()
    if not text or path.exists() or not isinstance(path_or_repo, str):
        return path
    if text.startswith((".", "~", os.sep)) or not _HUB_ID.fullmatch(text):
        return path
    return text


def _shown(path_or_repo: str | os.PathLike[str]) -> str:
    """The name as the user wrote it (``Path`` would drop the ``./`` that says it is a folder)."""
    return os.fspath(path_or_repo) or "''"


def _reason(error: Exception, source: Path | str) -> str:
    """One line for a person: what the exception of mlx-lm, transformers or the hub means."""
    from huggingface_hub import errors as hub

    if isinstance(error, hub.GatedRepoError):
        return "the hub lets only registered users read it; log in with `hf auth login`"
    if isinstance(error, hub.RevisionNotFoundError):
        return "the hub has no such revision of it"
    if isinstance(error, hub.RepositoryNotFoundError):
        return "the hub has no such repository, or it is private (`hf auth login`)"
    if isinstance(source, str) and isinstance(
        error, (hub.LocalEntryNotFoundError, hub.OfflineModeIsEnabled)
    ):
        return (
            "it is not in the local cache and the hub cannot be reached (no network?); "
            "give the folder of a downloaded model instead"
        )
    text = " ".join(str(error).split())
    text = text if len(text) <= 200 else f"{text[:200]}..."
    return text if isinstance(error, ValueError) and text else f"{type(error).__name__}: {text}"
