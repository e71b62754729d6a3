"""Which file is at fault where loading fails inside mlx-lm or transformers, in one line.

Their exceptions speak of types and tensors. Where one was raised tells the file: while the
tokenizer was made, the model built from its config, or the weights put into it.
"""

from __future__ import annotations

from types import TracebackType

# Functions of mlx-lm's loader that stand for what is being done.
_DOING = {
    "load_tokenizer": "the tokenizer (tokenizer.json, tokenizer_config.json) cannot be read",
    "load_adapters": "the adapter does not fit the model",
    "from_dict": "config.json cannot be a model's",
    "load_weights": "the weights do not fit config.json",
    "_transform_awq_weights": "the weights cannot be unpacked",
    "_quantize": "config.json's quantization does not fit the weights",
    "sanitize": "the weights do not fit config.json",
    "__init__": "config.json cannot be a model's",
}


def reason(error: Exception) -> str:
    """One line for a person: what the exception of mlx-lm, transformers or the hub means."""
    from huggingface_hub import errors as hub

    if isinstance(error, hub.GatedRepoError):
        return "the hub lets only registered users read it; log in with `hf auth login`"
    if isinstance(error, hub.RevisionNotFoundError):
        return "the hub has no such revision of it"
    if isinstance(error, hub.RepositoryNotFoundError):
        return "the hub has no such repository, or it is private (`hf auth login`)"
    text = " ".join(str(error).split())
    text = text if len(text) <= 200 else f"{text[:200]}..."
    text = text if isinstance(error, ValueError) and text else f"{type(error).__name__}: {text}"
    where = _doing(error.__traceback__)
    return f"{where}: {text}" if where else text


def _doing(place: TracebackType | None) -> str:
    """What was being done, by the outermost function that says it; nothing where none does."""
    while place is not None:
        code = place.tb_frame.f_code
        if "mlx_lm" in code.co_filename or code.co_name == "load_weights":
            said = _DOING.get(code.co_name)
            if said is not None:
                return said
        place = place.tb_next
    return ""
