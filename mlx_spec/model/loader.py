"""Load a model and its tokenizer, and say in one line why it cannot be loaded.

On top of the public ``mlx_lm.load``: names of the embedded pair, float32 on the CPU, and errors
that a person can act on. It also answers two questions about what was loaded: how long its
context is, and whether a draft shares the target's token map. It never runs a model and never
patches mlx-lm.

Example::

    model, tokenizer = load("demo")
    model, tokenizer = load("mlx-community/Qwen3-8B-4bit")
    model, tokenizer = load("~/models/my-model", dtype="float32")
"""

from __future__ import annotations

import inspect
import json
import os
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import mlx.core as mx
from mlx.utils import tree_map_with_path

from mlx_spec.errors import InvalidRequest, ModelLoadError, TokenizerMismatch
from mlx_spec.model.catalog import embedded_path
from mlx_spec.model.kernel_binding import bind_operations, choose_kernels
from mlx_spec.model.materialize import materialize

# transformers tells users of mlx that torch is missing, and the like; a user's own setting stays.
os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")

_DTYPES = {"float32": mx.float32, "float16": mx.float16, "bfloat16": mx.bfloat16}
_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[\w.-]+")
_TOKENIZER_FILES = ("tokenizer*", "vocab.*", "*.tiktoken")
_CONTEXT_NAMES = (
    "max_position_embeddings",
    "max_sequence_length",
    "max_seq_len",
    "seq_length",
    "n_positions",
    "n_ctx",
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
) -> tuple[Any, Any]:
    """Load a model and its tokenizer, as ``mlx_lm.load`` does.

    Args:
        path_or_repo: a folder, a Hugging Face hub id (``org/name``), or ``"demo"`` /
            ``"demo-draft"``, the embedded pair.
        dtype: type of the floating weights: ``"float32"``, ``"float16"``, ``"bfloat16"`` or an
            ``mx.Dtype``. None keeps the file's, but takes float32 on the CPU, where products of
            16-bit floats are some 50 times slower.
        adapter_path: folder of LoRA adapters to apply.
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
        InvalidRequest: an unknown ``dtype`` or ``kernels``, or Metal's where there is no Metal.
    """
    wanted = _parse_dtype(dtype)
    operations = choose_kernels(kernels)
    source = _source(path_or_repo)
    if isinstance(source, Path):
        _check_folder(source)
    if adapter_path is not None and not Path(adapter_path).expanduser().is_dir():
        raise ModelLoadError(f"[load] adapter {os.fspath(adapter_path)!r}: no such folder")
    options = dict(tokenizer_config or {})
    if trust_remote_code:
        options.setdefault("trust_remote_code", True)
    try:
        import mlx_lm

        model, tokenizer = mlx_lm.load(
            str(source),
            tokenizer_config=options,
            adapter_path=os.path.expanduser(adapter_path) if adapter_path is not None else None,
            lazy=True,  # cast first, so that only one copy of the weights is ever in memory
            revision=revision,
            **_trust(mlx_lm.load, trust_remote_code),
        )
        _cast(model, wanted)
        materialize(model, parameters=not lazy)
    except Exception as error:  # whatever a broken file makes mlx-lm or transformers raise
        raise ModelLoadError(f"[load] {path_or_repo}: {_reason(error, source)}") from error
    bind_operations(model, operations)
    return model, tokenizer


def context_length(model: Any) -> int | None:
    """The most tokens that the model's positions allow, or None where its config does not say."""
    args = getattr(model, "args", None)
    for record in (args, _field(args, "text_config")):
        for name in _CONTEXT_NAMES:
            value = _field(record, name)
            if isinstance(value, int) and value > 0:
                return value
    return None


def check_pair(tokenizer: Any, draft_tokenizer: Any) -> None:
    """Check that a draft's tokens mean what the target's mean.

    The maps from token to id are compared, not their sizes: embeddings are often padded, and
    equal sizes prove nothing. Which of the tokens ends a text may differ (a base model drafting
    for its chat version): only the target's end tokens count.

    Raises:
        TokenizerMismatch: with how many tokens differ, and some of them.
    """
    target, draft = tokenizer.get_vocab(), draft_tokenizer.get_vocab()
    if target == draft:
        return
    tokens = target.keys() | draft.keys()
    differing = [token for token in tokens if target.get(token) != draft.get(token)]
    # The lowest ids first: the same few at every run, and mostly ordinary words.
    differing.sort(key=lambda token: (target.get(token, len(target)), token))
    shared = [token for token in differing if token in target and token in draft]
    examples = ", ".join(_difference(token, target, draft) for token in (shared or differing)[:3])
    raise TokenizerMismatch(
        f"[check_pair] the draft's token map differs from the target's in {len(differing)} of "
        f"{len(tokens)} tokens: {examples}"
    )


def _difference(token: str, target: dict[str, int], draft: dict[str, int]) -> str:
    """How one token differs, in words."""
    if token not in draft:
        return f"{token!r} ({target[token]}) is not in the draft"
    if token not in target:
        return f"{token!r} ({draft[token]}) is not in the target"
    return f"{token!r} is {target[token]} in the target, {draft[token]} in the draft"


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
        on_cpu = mx.default_device().type == mx.DeviceType.cpu
        return mx.float32 if on_cpu else None
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


def _check_folder(folder: Path) -> None:
    """Say what is missing in a folder before mlx-lm stumbles over it."""
    if not folder.exists():
        raise ModelLoadError(
            f"[load] {folder}: no such folder; expected a model's folder, a hub id (org/name), "
            "demo or demo-draft"
        )
    if not folder.is_dir():
        raise ModelLoadError(f"[load] {folder}: is a file, expected a model's folder")
    if not (folder / "config.json").is_file():
        raise ModelLoadError(f"[load] {folder}: no config.json, so this is no model's folder")
    try:
        config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ModelLoadError(f"[load] {folder}: config.json cannot be read ({error})") from error
    if not isinstance(config, dict) or not isinstance(config.get("model_type"), str):
        raise ModelLoadError(f"[load] {folder}: config.json names no model_type")
    if not any(folder.glob("model*.safetensors")):
        raise ModelLoadError(f"[load] {folder}: no weights (model*.safetensors)")
    if not any(next(folder.glob(pattern), None) for pattern in _TOKENIZER_FILES):
        raise ModelLoadError(f"[load] {folder}: no tokenizer (tokenizer.json or tokenizer.model)")


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


def _field(record: Any, name: str) -> Any:
    """A field of a config record, which mlx-lm keeps as an object or as a dict."""
    return record.get(name) if isinstance(record, dict) else getattr(record, name, None)
