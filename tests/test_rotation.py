"""Rotary positions: configs of every writing turn alike, and the context is as long as it is."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import mlx.core as mx
import pytest

from mlx_spec import SamplingParams, batch_generate
from mlx_spec.errors import ModelLoadError, PromptTooLong, UnsupportedModel
from mlx_spec.model.context import context_length
from mlx_spec.model.loader import load
from mlx_spec.model.rotation import check_rotation, old_form
from tests.architectures import UNDECODED, NotBuilt, build, config, names, write_architecture
from tests.folders import write_folder
from tests.models import make_model
from tests.scenario import mlx_lm_greedy

LLAMA3 = {
    "rope_type": "llama3",
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 16,
}
YARN = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 64}
LONG = {
    "rope_type": "longrope",
    "short_factor": [1.0] * 4,
    "long_factor": [2.0] * 4,
    "original_max_position_embeddings": 32,
}


def context(limit: int, **scaling: Any) -> Any:
    """A model as far as its context goes."""
    args = SimpleNamespace(max_position_embeddings=limit, rope_scaling=scaling or None)
    return SimpleNamespace(args=args)


@pytest.mark.parametrize(
    ("model", "expected"),
    [
        (context(64), 64),
        # The context of the training and a factor; the product, and the factor not twice.
        (context(64, **YARN), 256),
        (context(256, **YARN), 256),
        (context(64, type="yarn", factor=4.0), 256),
        (context(64, type="linear", factor=4), 256),
        (context(128, **LLAMA3), 128),
        (context(16, **LLAMA3), 128),
        (context(64, **LLAMA3), 64),  # as Llama 3.2, whose product is twice its context
        (context(32, **LONG), 32),
        (context(128, **LONG), 128),
        (context(64, type="dynamic", factor=2.0), 64),
        (context(64, type="default"), 64),
        (context(64, type="mrope", mrope_section=[1, 1, 2]), 64),
        (SimpleNamespace(args=SimpleNamespace(max_position_embeddings=2048)), 2048),
        (SimpleNamespace(args=SimpleNamespace(text_config={"max_position_embeddings": 512})), 512),
        (SimpleNamespace(args=SimpleNamespace(text_config=SimpleNamespace(n_positions=9))), 9),
        (SimpleNamespace(args=SimpleNamespace(max_position_embeddings=None)), None),
        (SimpleNamespace(args=None), None),
    ],
)
def test_context_length_is_read_from_the_config(model: Any, expected: int | None) -> None:
    assert context_length(model) == expected


def test_prompts_up_to_the_lengthened_context_run_exactly() -> None:
    model = make_model("llama", rope_scaling=YARN, max_position_embeddings=64)
    prompts = [[(7 * i + row) % 64 for i in range(size)] for row, size in enumerate((250, 90, 3))]
    found = batch_generate(model, None, prompts, sampling=SamplingParams(max_tokens=8)).results
    for prompt, result in zip(prompts, found, strict=True):
        count = min(8, 256 - len(prompt))
        assert result.token_ids == mlx_lm_greedy(model, tuple(prompt), count)
    with pytest.raises(PromptTooLong, match="256"):
        batch_generate(model, None, [[1, 2], [3] * 256])


def test_a_context_that_the_class_leaves_out_still_holds(tmp_path: Path) -> None:
    model, _ = load(write_architecture(tmp_path / "model", "mixtral", max_position_embeddings=48))
    assert context_length(build("mixtral")) is None
    assert context_length(model) == 48
    with pytest.raises(PromptTooLong, match="48"):
        batch_generate(model, None, [[1] * 48])


@pytest.mark.parametrize("name", ["internlm2", "internlm3"])
def test_a_model_with_dynamic_scaling_runs_up_to_its_context(name: str, tmp_path: Path) -> None:
    folder = write_architecture(tmp_path / "model", name)
    assert json.loads((folder / "config.json").read_text())["rope_scaling"]["type"] == "dynamic"
    model, _ = load(folder)
    prompts = [[1, 2, 3], [(3 * i) % 250 for i in range(90)]]
    options = {"draft_model": model, "sampling": SamplingParams(max_tokens=8)}
    found = batch_generate(model, None, prompts, **options).results
    for prompt, result in zip(prompts, found, strict=True):
        assert result.token_ids == mlx_lm_greedy(build_alike(name, model), tuple(prompt), 8)


def build_alike(name: str, model: Any) -> Any:
    """The model as mlx-lm builds it from its config: with the scaling, for one row at a time."""
    scaled = build(name, vocab_size=272)
    scaled.update(model.parameters())
    return scaled


def rewrite(folder: Path, **changes: Any) -> Path:
    """Change a folder's config; None takes an entry out."""
    config = {**json.loads((folder / "config.json").read_text()), **changes}
    config = {key: value for key, value in config.items() if value is not None}
    (folder / "config.json").write_text(json.dumps(config))
    return folder


def logits(folder: Path) -> mx.array:
    """What a model says after forty tokens, far enough for every rotation to count."""
    found: mx.array = load(folder)[0](mx.array([[(5 * i) % 250 for i in range(40)]]))
    return found


@pytest.mark.parametrize("scaling", [None, LLAMA3, YARN, {"rope_type": "linear", "factor": 2}])
def test_a_config_of_transformers_5_turns_as_the_old_one(scaling: Any, tmp_path: Path) -> None:
    old = write_folder(tmp_path / "old", rope_theta=50.0, rope_scaling=scaling)
    wanted = logits(old)
    plain = write_folder(tmp_path / "plain")
    assert not mx.allclose(logits(plain), wanted, atol=1e-2)
    rope = {"rope_theta": 50.0, **(scaling or {"rope_type": "default"})}
    new = rewrite(plain, rope_theta=None, rope_scaling=None, rope_parameters=rope)
    assert mx.array_equal(logits(new), wanted)
    assert context_length(load(new)[0]) == context_length(load(old)[0])


def test_one_rotation_for_every_kind_of_layer_is_one_rotation(tmp_path: Path) -> None:
    wanted = logits(write_folder(tmp_path / "old", rope_theta=50.0))
    rope = {"rope_type": "default", "rope_theta": 50.0}
    layers = {"full_attention": rope, "sliding_attention": rope}
    new = rewrite(write_folder(tmp_path / "new"), rope_theta=None, rope_parameters=layers)
    assert mx.array_equal(logits(new), wanted)


def test_rotations_that_differ_by_layer_are_refused_where_the_class_has_one(
    tmp_path: Path,
) -> None:
    layers = {
        "full_attention": {"rope_type": "default", "rope_theta": 1e6},
        "sliding_attention": {"rope_type": "default", "rope_theta": 1e4},
    }
    folder = rewrite(write_folder(tmp_path / "model"), rope_parameters=layers)
    words = r"each kind of layer .*full_attention, sliding_attention.* mlx-lm's llama does not"
    with pytest.raises(UnsupportedModel, match=words):
        load(folder)


def test_local_and_global_rotations_go_to_gemma_3() -> None:
    config = {
        "model_type": "gemma3",
        "text_config": {
            "model_type": "gemma3_text",
            "rope_parameters": {
                "full_attention": {"rope_type": "linear", "factor": 8, "rope_theta": 1e6},
                "sliding_attention": {"rope_type": "default", "rope_theta": 1e4},
            },
        },
    }
    text = old_form(config)["text_config"]
    assert (text["rope_theta"], text["rope_local_base_freq"]) == (1e6, 1e4)
    assert text["rope_scaling"]["type"] == "linear"
    assert text["rope_scaling"]["factor"] == 8.0


def test_partial_rotations_are_found_under_their_old_names() -> None:
    config = {
        "model_type": "gpt_neox",
        "rope_parameters": {
            "rope_type": "default",
            "rope_theta": 50.0,
            "partial_rotary_factor": 0.5,
        },
    }
    changes = old_form(config)
    assert (changes["rotary_pct"], changes["rotary_emb_base"]) == (0.5, 50.0)
    assert (changes["partial_rotary_factor"], changes["rope_theta"]) == (0.5, 50.0)


def test_what_a_class_passes_by_is_refused() -> None:
    """Phi-3's prints a warning and turns as if nothing had been asked."""
    model = make_model("phi3")
    scaled = {"model_type": "phi3", "rope_scaling": {"type": "yarn", "factor": 4.0}}
    with pytest.raises(UnsupportedModel, match="scaled by yarn, which mlx-lm's phi3 does not do"):
        check_rotation(model, scaled)
    other = {"model_type": "phi3", "rope_parameters": {"rope_theta": 77.0}}
    with pytest.raises(UnsupportedModel, match="rope_theta 77 in rope_parameters"):
        check_rotation(model, other)
    check_rotation(model, {"model_type": "phi3", "rope_parameters": {"rope_theta": 10000.0}})


def test_an_unknown_scaling_is_refused(tmp_path: Path) -> None:
    folder = write_folder(tmp_path / "model")
    rewrite(folder, rope_scaling={"rope_type": "spiral", "factor": 2.0})
    with pytest.raises(ModelLoadError, match="spiral"):
        load(folder)


def test_dynamic_scaling_ends_where_it_would_begin(tmp_path: Path) -> None:
    """Beyond, it is one number for all rows; up to there it is no scaling."""
    plain = write_folder(tmp_path / "plain")
    scaled = write_folder(tmp_path / "scaled")
    rewrite(scaled, rope_scaling={"rope_type": "dynamic", "factor": 2.5})
    prompts = [[1, 2, 3], [4] * 40]
    tokens = []
    for folder in (plain, scaled):
        model, _ = load(folder)
        found = batch_generate(model, None, prompts, sampling=SamplingParams(max_tokens=40))
        tokens.append([result.token_ids for result in found.results])
    assert tokens[0] == tokens[1]
    assert len(tokens[1][1]) == 24  # the context of 64 is full
    with pytest.raises(PromptTooLong, match="64"):
        batch_generate(model, None, [[1] * 64])


def test_dynamic_scaling_is_taken_out_of_every_writing() -> None:
    rope = {"rope_type": "dynamic", "factor": 2.0, "rope_theta": 50.0}
    changes = old_form({"model_type": "qwen3", "rope_parameters": rope})
    assert changes["rope_scaling"] is None
    assert changes["rope_parameters"] == {"rope_type": "default", "rope_theta": 50.0}
    original = {"type": "dynamic", "factor": 2.0, "original_max_position_embeddings": 32}
    changes = old_form({"max_position_embeddings": 64, "rope_scaling": original})
    assert changes == {"rope_scaling": None, "max_position_embeddings": 32}
    alpha = {"type": "dynamic", "alpha": 1000.0, "factor": 1.0}  # a base of its own, not by length
    assert old_form({"rope_scaling": alpha})["rope_scaling"]["alpha"] == 1000.0


def turned(name: str, changes: dict[str, Any]) -> mx.array | None:
    """What an architecture says under a changed config, or None if it is refused."""
    try:
        settings = {**config(name), **changes}
        settings |= old_form(settings)
        model = build(name, **settings)
        check_rotation(model, settings)
    except (NotBuilt, UnsupportedModel):
        return None
    logits: mx.array = model(mx.array([[(5 * i) % 64 for i in range(40)]]))
    return logits


def test_every_architecture_turns_as_its_config_says_or_is_refused() -> None:
    """A setting in either writing has one effect, and never none without a word."""
    right = set()
    for name in names():
        try:
            theta = "rotary_emb_base" if "rotary_emb_base" in config(name) else "rope_theta"
            settings = config(name)
        except (Exception, SystemExit):
            continue
        if theta not in settings or settings.get("rope_scaling") or name in UNDECODED:
            continue
        plain = turned(name, {})
        old = turned(name, {theta: 50.0})
        if plain is None or old is None or mx.array_equal(plain, old):
            continue  # not built, or without rotations in the layers that are
        rope = {"rope_theta": 50.0, "rope_type": "default"}
        new = turned(name, {theta: None, "rope_parameters": rope})
        assert new is not None, name
        assert mx.array_equal(new, old), name
        scaled = [
            turned(name, {"rope_scaling": dict(YARN)}),
            turned(name, {"rope_parameters": {"rope_theta": 10000.0, **YARN}}),
        ]
        if scaled[0] is None or scaled[1] is None:
            assert scaled == [None, None], name
        elif name != "deepseek_v41":  # which keeps other caches and is refused for them
            assert mx.array_equal(*scaled), name
            assert not mx.array_equal(scaled[0], plain), name
            right.add(name)
    assert right >= {"llama", "qwen2", "qwen3", "olmo2", "deepseek_v3", "granite"}
    assert "qwen3_moe" not in right  # its class has no place for a scaling
