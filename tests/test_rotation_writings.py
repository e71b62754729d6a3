"""Configs as transformers itself writes them load the same model as the older words for it."""

from __future__ import annotations

import json
from typing import Any

import mlx.core as mx
import pytest

from mlx_spec.errors import UnsupportedModel
from mlx_spec.model.rotation import check_rotation, old_form
from mlx_spec.model.unread import unread
from tests.architectures import build, config

KINDS: dict[str, dict[str, Any] | None] = {
    "default": None,
    "linear": {"rope_type": "linear", "factor": 2.0},
    "yarn": {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 64},
    "yarn, all settings": {
        "rope_type": "yarn",
        "factor": 4.0,
        "original_max_position_embeddings": 64,
        "beta_fast": 16.0,
        "beta_slow": 2.0,
        "mscale": 1.0,
        "mscale_all_dim": 0.5,
    },
    "llama3": {
        "rope_type": "llama3",
        "factor": 8.0,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 16,
    },
    "longrope": {
        "rope_type": "longrope",
        "short_factor": [1.0] * 4,
        "long_factor": [2.0] * 4,
        "original_max_position_embeddings": 64,
    },
    "dynamic": {"rope_type": "dynamic", "factor": 2.0},
}
FAMILIES = ["llama", "qwen2", "olmo2", "deepseek_v3", "granite", "smollm3", "gemma3_text"]


def said(name: str, settings: dict[str, Any]) -> mx.array:
    """The logits of an architecture under a config, after what ``load`` does to it."""
    settings = {**settings, **old_form(settings)}
    model = build(name, **settings)
    check_rotation(model, settings)
    found: mx.array = model(mx.array([[(5 * i) % 64 for i in range(40)]]))
    return found


def written(name: str, **settings: Any) -> dict[str, Any]:
    """The rotation's entries as transformers writes them, the older ones gone."""
    from transformers import AutoConfig

    made = AutoConfig.for_model(name, **{k: v for k, v in settings.items() if k != "model_type"})
    made = json.loads(json.dumps(made.to_dict(), default=str))
    kept = {k: v for k, v in settings.items() if k not in ("rope_theta", "rope_scaling")}
    kept.pop("rope_local_base_freq", None)
    return {**kept, "rope_theta": None, "rope_parameters": made["rope_parameters"]}


@pytest.mark.parametrize("name", FAMILIES)
@pytest.mark.parametrize("kind", KINDS)
def test_transformers_5_s_writing_is_the_same_model(name: str, kind: str) -> None:
    base = {**config(name), "rope_theta": 50.0}
    if name == "gemma3_text":
        base["layer_types"] = ["sliding_attention", "full_attention"]
    old = {**base, "rope_scaling": KINDS[kind] and dict(KINDS[kind] or {})}
    new = written(name, **{**old, "rope_scaling": KINDS[kind] and dict(KINDS[kind] or {})})
    assert new["rope_parameters"]
    new["rope_theta"] = 10000.0 if name == "gemma3_text" else 7.0  # what must not count
    assert mx.array_equal(said(name, old), said(name, new))
    if KINDS[kind] is not None and kind != "dynamic":
        plain = {**base, "rope_scaling": None}
        assert not mx.array_equal(said(name, old), said(name, plain))


def test_gemma_3_has_two_rotations_in_either_writing() -> None:
    """Its linear scaling is of the layers that see the whole text only."""
    name, types = "gemma3_text", ["sliding_attention", "full_attention"]
    base = {**config(name), "layer_types": types, "sliding_window": 16}
    scaling = {"rope_type": "linear", "factor": 8.0}
    old = {**base, "rope_theta": 1e6, "rope_local_base_freq": 1e2, "rope_scaling": scaling}
    layers = {
        "sliding_attention": {"rope_type": "default", "rope_theta": 1e2},
        "full_attention": {"rope_type": "linear", "factor": 8.0, "rope_theta": 1e6},
    }
    wanted = said(name, old)
    assert mx.array_equal(wanted, said(name, {**base, "rope_parameters": layers}))
    for place, changed in (("sliding_attention", 1e3), ("full_attention", 1e3)):
        other = {**layers, place: {**layers[place], "rope_theta": changed}}
        assert not mx.array_equal(wanted, said(name, {**base, "rope_parameters": other}))


def test_olmo_3_s_scaling_of_its_global_layers_is_read() -> None:
    name = "olmo3"
    yarn = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 64}
    old = {**config(name), "rope_theta": 50.0, "rope_scaling": yarn}
    layers = {
        "sliding_attention": {"rope_type": "default", "rope_theta": 50.0},
        "full_attention": {**yarn, "rope_theta": 50.0},
    }
    new = {**config(name), "rope_parameters": layers}
    assert mx.array_equal(said(name, old), said(name, new))
    layers["sliding_attention"]["rope_theta"] = 60.0  # for which its class has no place
    with pytest.raises(UnsupportedModel, match="each kind of layer a rotation of its own"):
        said(name, {**config(name), "rope_parameters": layers})


def scale_of(settings: dict[str, Any]) -> float:
    """What a llama's scaled rotation multiplies by."""
    model = build("llama", **{**settings, **old_form(settings)})
    return float(model.layers[0].self_attn.rope.mscale)


def test_yarn_s_attention_factor_counts() -> None:
    """mlx-lm reads ``mscale`` only, which says it otherwise."""
    yarn = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 64}
    for more in ({}, {"mscale": 1.0, "mscale_all_dim": 0.7}):
        scaling = {**yarn, **more, "attention_factor": 1.3}
        assert scale_of({**config("llama"), "rope_scaling": scaling}) == pytest.approx(1.3)
    assert scale_of({**config("llama"), "rope_scaling": yarn}) == pytest.approx(1.1386, abs=1e-4)


def test_longrope_s_short_factors_count_where_only_short_texts_are_to_come() -> None:
    long = dict(KINDS["longrope"] or {}, short_factor=[3.0] * 4)
    short_only = {**config("llama"), "rope_scaling": long, "max_position_embeddings": 64}
    alike = {**short_only, "rope_scaling": {**long, "long_factor": [3.0] * 4}}
    assert mx.array_equal(said("llama", short_only), said("llama", alike))
    assert not unread(build("llama"), {**short_only, **old_form(short_only)})
    both = {**short_only, "max_position_embeddings": 256}
    assert not mx.array_equal(said("llama", both), said("llama", alike))
    assert unread(build("llama"), {**both, **old_form(both)}).keys() == {
        "rope_scaling.short_factor"
    }


def test_a_base_and_a_cut_that_a_class_passes_by_are_said() -> None:
    yarn = {"rope_type": "yarn", "factor": 4.0, "truncate": False}
    settings = {**config("llama"), "rope_scaling": yarn, "rope_theta": 77.0}
    assert unread(build("llama"), settings) == {
        "rope_theta": 77.0,
        "rope_scaling.truncate": False,
    }
    assert unread(build("llama", rope_theta=77.0), settings).keys() == {"rope_scaling.truncate"}
