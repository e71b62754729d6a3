"""What mlx-lm's class passes by of a config is said in one line, and nothing else is."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import pytest

from mlx_spec.errors import InvalidRequest
from mlx_spec.model.loader import load
from mlx_spec.model.unread import unread
from tests.architectures import NotBuilt, build, config, names
from tests.folders import write_folder

WINDOWS = ["sliding_attention", "full_attention"]

# (architecture, entries, those of them that count and are not read)
CASES: list[tuple[str, dict[str, Any], set[str]]] = [
    ("llama", {"final_logit_softcapping": 30.0}, {"final_logit_softcapping"}),
    ("gemma2", {"final_logit_softcapping": 30.0}, set()),
    ("llama", {"logit_scale": 0.5, "residual_multiplier": 1.0}, {"logit_scale"}),
    ("cohere", {"logit_scale": 0.5}, set()),
    ("phi3", {"sliding_window": 47, "max_position_embeddings": 64}, {"sliding_window"}),
    ("phi3", {"sliding_window": 64, "max_position_embeddings": 64}, set()),
    ("qwen2", {"sliding_window": 16, "use_sliding_window": False}, set()),
    ("qwen2", {"sliding_window": 16, "use_sliding_window": True}, {"sliding_window"}),
    ("qwen2", {"layer_types": ["full_attention"] * 2, "sliding_window": 16}, set()),
    ("gemma2", {"layer_types": WINDOWS}, {"layer_types"}),
    ("qwen3", {"layer_types": WINDOWS}, {"layer_types"}),
    ("llama", {"layer_types": WINDOWS}, set()),
    # Built from a pattern of its own: the same windows, or others.
    ("gemma3_text", {"layer_types": WINDOWS}, set()),
    ("gemma3_text", {"layer_types": WINDOWS[::-1]}, {"layer_types"}),
    ("llama", {"partial_rotary_factor": 0.5}, {"partial_rotary_factor"}),
    ("stablelm", {"partial_rotary_factor": 0.5}, set()),
    ("llama", {"query_pre_attn_scalar": 8}, set()),  # the head's own width
    ("llama", {"query_pre_attn_scalar": 16}, {"query_pre_attn_scalar"}),
    ("llama", {"hidden_act": "gelu_pytorch_tanh"}, {"hidden_act"}),
    ("llama", {"hidden_act": "silu"}, set()),
    ("gemma", {"hidden_act": "gelu_pytorch_tanh"}, set()),
    ("llama", {"rms_norm_eps": None, "layer_norm_eps": 1e-3}, {"layer_norm_eps"}),
    ("llama", {"layer_norm_eps": 1e-3}, set()),  # a leftover beside the one that is read
    ("llama4_text", {"attn_temperature_tuning": True}, {"attn_temperature_tuning"}),
    ("llama", {"use_bidirectional_attention": True}, {"use_bidirectional_attention"}),
]


@pytest.mark.parametrize(("name", "entries", "expected"), CASES, ids=str)
def test_what_counts_and_is_not_read_is_found(
    name: str, entries: dict[str, Any], expected: set[str]
) -> None:
    model = build(name, **{key: value for key, value in entries.items() if value is not None})
    assert unread(model, {**config(name), **entries}).keys() == expected


def test_no_false_alarm_about_what_an_architecture_has_fields_for() -> None:
    """Each one's own config, as tests build it; what is found there is true."""
    true = {"llama4_text": {"attn_temperature_tuning"}, "nemotron": {"hidden_act"}}
    true |= {"minicpm3": {"rope_scaling.short_factor"}}
    for name in names():
        try:
            model, settings = build(name), config(name)
        except NotBuilt:
            continue
        found = unread(model, settings).keys() - {"partial_rotary_factor"}
        if "text_config" not in settings:
            assert found == true.get(name, set()), name


def test_loading_says_so_in_one_line(tmp_path: Path) -> None:
    folder = write_folder(tmp_path / "model", final_logit_softcapping=30.0)
    with pytest.warns(RuntimeWarning, match="does not read") as caught:
        load(folder)
    (message,) = (str(one.message) for one in caught if "does not read" in str(one.message))
    assert "final_logit_softcapping 30.0, which mlx-lm's llama" in message
    assert caught[0].filename == __file__
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        load(write_folder(tmp_path / "plain"))


def test_a_mistral_whose_window_is_not_kept_says_so(tmp_path: Path) -> None:
    folder = write_folder(tmp_path / "model", model_type="mistral", sliding_window=8)
    with pytest.warns(RuntimeWarning, match="sliding_window 8, which mlx-lm's mistral does not"):
        load(folder)


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("rope_teta", "did you mean 'rope_theta'"),
        ("final_logit_softcapping", "mlx-lm's llama does not read"),
        ("text_config.final_logit_softcapping", "does not read"),
    ],
)
def test_an_override_without_an_effect_is_refused(name: str, words: str, tmp_path: Path) -> None:
    folder = write_folder(tmp_path / "model")
    with pytest.raises(InvalidRequest, match=words):
        load(folder, config_overrides={name: 1.0})
