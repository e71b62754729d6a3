"""Which models, and how they are loaded."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial

from mlx_spec.load_config import LoadConfig, WeightQuantization, parse_overrides
from mlx_spec.pipeline.flags.setting import setting
from mlx_spec.pipeline.options import option

_model = partial(option, group="Models")
_loading = setting(LoadConfig, "Models")


def _is_dotted(text: str) -> bool:
    return text.startswith(".")


@dataclass(frozen=True)
class ModelFlags:
    """Which models, and how they are loaded."""

    model: str | None = _model(
        None,
        "Folder, .gguf file, hub id (org/name, org/name:Q4_K_M), smollm2 or demo. Without it the "
        "embedded pair is used.",
        is_path=_is_dotted,
    )
    draft_model: str | None = _model(
        None,
        "What guesses ahead: a smaller model of the same tokenizer, or a head that was trained for "
        "the model (smollm2-draft for smollm2).",
        is_path=_is_dotted,
        changes_text=False,
    )
    adapter_path: str | None = _loading(
        "adapter_path", "Folder of LoRA adapters.", metavar="<path>", is_path=bool
    )
    revision: str | None = _loading(
        "revision", "Branch, tag or commit of the model's hub repository.", metavar="NAME"
    )
    dtype: str | None = _loading(
        "dtype",
        "float32, float16 or bfloat16. Default: as stored; float32 on the CPU, where float32 makes "
        "quantized weights plain, and fast.",
    )
    quantize: str | None = _loading(
        "quantize",
        "Quantize the model's plain weights on loading: bits (4), bits:group size (4:32), mxfp4, "
        "mxfp8 or nvfp4.",
        metavar="BITS",
        parse=WeightQuantization.of,
    )
    set: tuple[str, ...] = _loading(
        "config_overrides",
        "Replace an entry of the model's config.json: rope_theta=1e6, rope_scaling.factor=4; "
        "repeatable.",
        default=(),
        metavar="KEY=VALUE",
        parse=parse_overrides,
    )
    gguf_requantize: str = _loading(
        "gguf_requantize",
        "What weights of a .gguf become that MLX has no kind for: auto, 8bit, 4bit or float16.",
        metavar="WHAT",
    )
    shard: str | None = _loading(
        "shard",
        "The processes that mlx.launch has started hold the model together: tensor (each a part of "
        "every matrix) or pipeline (each some layers).",
        metavar="HOW",
        changes_text=False,
    )
    trust_remote_code: bool = _loading(
        "trust_remote_code", "Run Python code that the model brings."
    )
