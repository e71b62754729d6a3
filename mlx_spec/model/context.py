"""How many tokens a model's positions allow, scaled rotations included."""

from __future__ import annotations

from typing import Any

from mlx_spec.model.rotation import by_layer_type, scaling_kind

NAMES = (
    "max_position_embeddings",
    "max_sequence_length",
    "max_seq_len",
    "seq_length",
    "n_positions",
    "n_ctx",
)
_LENGTHENING = ("linear", "yarn", "deepseek_yarn", "telechat3-yarn", "llama3", "longrope", "su")
# Their configs give the lengthened context and name no other beside a factor.
_LENGTHENED_ALREADY = frozenset({"gemma3_text"})


def context_length(model: Any) -> int | None:
    """The most tokens that the model's positions allow, or None where its config does not say.

    Configs with scaled rotations are written in two ways: the context is that of the training and
    the factor lengthens it, or it is the product already. The original context that the scaling
    names tells which; where it names none, the context is taken for that of the training.
    """
    args = getattr(model, "args", None)
    for record in (args, _field(args, "text_config")):
        for name in NAMES:
            value = _field(record, name)
            if isinstance(value, int) and value > 0:
                return _lengthened(record, value)
    return None


def note_context(model: Any, config: dict[str, Any]) -> None:
    """Write the context into a model's ``args`` where mlx-lm's class left it out of them.

    Args:
        model: as mlx-lm built it.
        config: what it was built from.
    """
    args = getattr(model, "args", None)
    if args is None or context_length(model) is not None:
        return
    for record in (config, config.get("text_config")):
        for name in NAMES:
            value = _field(record, name)
            if isinstance(value, int) and value > 0:
                scaled_later = _field(args, "rope_scaling") is not None
                args.max_position_embeddings = value if scaled_later else _lengthened(record, value)
                return


def _lengthened(record: Any, context: int) -> int:
    """The context by the scaling in the same record."""
    scaling = _field(record, "rope_scaling") or _field(record, "rope_parameters")
    if by_layer_type(scaling):
        scaling = scaling.get("full_attention")
    if not isinstance(scaling, dict) or scaling_kind(scaling) not in _LENGTHENING:
        return context
    if _field(record, "model_type") in _LENGTHENED_ALREADY:
        return context
    original = scaling.get("original_max_position_embeddings") or context
    return round(context * float(scaling.get("factor") or 1)) if original == context else context


def _field(record: Any, name: str) -> Any:
    """A field of a config record, which mlx-lm keeps as an object or as a dict."""
    return record.get(name) if isinstance(record, dict) else getattr(record, name, None)
