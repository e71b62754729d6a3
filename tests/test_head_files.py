"""Heads as folders: our own kind there and back, EAGLE-3's against its forward written out here."""

from __future__ import annotations

import json
import warnings
from dataclasses import replace
from pathlib import Path
from typing import Any

import mlx.core as mx
import mlx.nn as nn
import numpy as np
import pytest
from mlx.utils import tree_flatten

from mlx_spec import generate, load
from mlx_spec.cli.main import main
from mlx_spec.config import BatchingConfig, SamplingParams
from mlx_spec.decoding.decoder import SpeculativeDecoder
from mlx_spec.errors import ModelLoadError, UnsupportedModel
from mlx_spec.model.heads.eagle3 import Eagle3Head
from mlx_spec.model.heads.files import load_head, save_head
from mlx_spec.model.heads.head import DraftHead, HeadConfig
from mlx_spec.model.heads.mark import mark_of
from mlx_spec.model.heads.parts import TargetParts
from mlx_spec.sequence import Sequence
from tests.fakes import RaggedPolicy
from tests.models import VOCABULARY, make_model
from tests.preemption import serve
from tests.scenario import plain_alone, target

WIDTH, HEADS, GROUPS, SIZE, INNER, GUESSED = 32, 4, 2, 8, 48, 20


def own_head(vocabulary: int, width: int) -> DraftHead:
    mx.random.seed(2)
    head = DraftHead(HeadConfig(width, 48, 4, 2, 8, vocabulary, 20, input_norms=True))
    head.tokens = mx.arange(20, dtype=mx.int32) * 3
    return head


def test_a_head_is_there_and_back(tmp_path: Path) -> None:
    """In half as many bytes, and loaded as any model is."""
    head = own_head(VOCABULARY, WIDTH)
    nbytes = save_head(head, tmp_path)
    settings = json.loads((tmp_path / "config.json").read_text())
    assert settings["model_type"] == "mlx_spec_head"
    numbers = sum(value.size for _, value in tree_flatten(head.parameters()))
    assert nbytes < 2.1 * numbers + 4000
    (tmp_path / "config.json").write_text(json.dumps({**settings, "trained_on": "texts"}))
    found, tokenizer = load(tmp_path)
    assert tokenizer is None
    assert mx.array_equal(found.tokens, head.tokens)
    assert found.fc.weight.dtype == mx.float32  # on a CPU, as models are
    assert mx.allclose(found.fc.weight, head.fc.weight, atol=1e-3)


def test_another_target_of_the_same_size_is_said(tmp_path: Path) -> None:
    """Not so the same one in fewer bits, and nothing where a head does not know."""
    mine, other = make_model("llama", seed=1), make_model("llama", seed=2)
    shape = HeadConfig(WIDTH, 48, 4, 2, 8, VOCABULARY)
    head = DraftHead(replace(shape, target=mark_of(TargetParts(mine))))
    save_head(head, tmp_path)
    found, _ = load(tmp_path)
    assert found.config == head.config
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        SpeculativeDecoder(mine, draft_model=found)
        SpeculativeDecoder(other, draft_model=DraftHead(shape))
        for broken in ({}, {"embedding": "?"}, {"embedding": "AAAA"}, {"embedding": 3}):
            SpeculativeDecoder(other, draft_model=DraftHead(replace(shape, target=broken)))
        coarse = make_model("llama", seed=1)
        nn.quantize(coarse, 32, 4, class_predicate=lambda path, _: "embed" in path)
        SpeculativeDecoder(coarse, draft_model=found)
    with pytest.warns(RuntimeWarning, match="of the same shape with other weights"):
        SpeculativeDecoder(other, draft_model=found)
    longer = DraftHead(replace(shape, target={"name": "llama", "layers": 99}))
    with pytest.warns(RuntimeWarning, match="'llama' with 99 layers, not 'llama' with"):
        SpeculativeDecoder(mine, draft_model=longer)


def test_what_does_not_belong_together_is_said(tmp_path: Path) -> None:
    save_head(own_head(VOCABULARY, WIDTH), tmp_path)
    settings = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps({**settings, "hidden_size": 16}))
    with pytest.raises(ModelLoadError, match="load_head"):
        load(tmp_path)


def test_as_a_user_gives_it(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """By its path, and as what ``load`` made of it; one for another target is one line."""
    model, tokenizer = load("demo")
    parts = TargetParts(model)
    save_head(own_head(parts.vocabulary, parts.width), tmp_path / "head")
    head, _ = load(tmp_path / "head")
    with_it = generate(model, tokenizer, "def read_", max_tokens=12, draft_model=head)
    assert with_it.text == generate(model, tokenizer, "def read_", max_tokens=12).text
    assert with_it.drafted > 0
    common = ["generate", "--model", "demo", "-p", "def read_", "-m", "12", "--temp", "0"]
    assert main([*common, "--draft-model", str(tmp_path / "head"), "--json"]) == 0
    assert json.loads(capsys.readouterr().out.splitlines()[0])["text"] == with_it.text
    save_head(own_head(VOCABULARY, WIDTH), tmp_path / "other")
    assert main([*common, "--draft-model", str(tmp_path / "other")]) == 2
    assert "made for a target of hidden size 32" in capsys.readouterr().err


def eagle_weights(own_embedding: bool) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(4)

    def matrix(out: int, width: int) -> np.ndarray:
        return rng.normal(0, width**-0.5, (out, width)).astype(np.float32)

    def norm() -> np.ndarray:
        return (1 + 0.1 * rng.normal(size=WIDTH)).astype(np.float32)

    layer = {
        "self_attn.q_proj": matrix(HEADS * SIZE, 2 * WIDTH),
        "self_attn.k_proj": matrix(GROUPS * SIZE, 2 * WIDTH),
        "self_attn.v_proj": matrix(GROUPS * SIZE, 2 * WIDTH),
        "self_attn.o_proj": matrix(WIDTH, HEADS * SIZE),
        "mlp.gate_proj": matrix(INNER, WIDTH),
        "mlp.up_proj": matrix(INNER, WIDTH),
        "mlp.down_proj": matrix(WIDTH, INNER),
        "input_layernorm": norm(),
        "hidden_norm": norm(),
        "post_attention_layernorm": norm(),
    }
    weights = {f"midlayer.{name}.weight": value for name, value in layer.items()}
    weights["fc.weight"] = matrix(WIDTH, 3 * WIDTH)
    weights["norm.weight"] = norm()
    weights["lm_head.weight"] = matrix(GUESSED, WIDTH)
    weights["d2t"] = np.arange(GUESSED, dtype=np.int64) * 2 + 1  # i is token 3 i + 1
    weights["t2d"] = np.isin(np.arange(VOCABULARY), np.arange(GUESSED) * 3 + 1)
    if own_embedding:
        weights["embed_tokens.weight"] = matrix(VOCABULARY, WIDTH)
    return weights


def write_eagle(
    folder: Path, own_embedding: bool = True, speculators: bool = False, **changes: Any
) -> dict[str, np.ndarray]:
    """A head as it is published: by EAGLE's authors and SGLang, or by vLLM's ``speculators``."""
    settings: dict[str, Any] = {
        "architectures": ["LlamaForCausalLMEagle3"],
        "model_type": "llama",
        "hidden_size": WIDTH,
        "intermediate_size": INNER,
        "num_attention_heads": HEADS,
        "num_key_value_heads": GROUPS,
        "vocab_size": VOCABULARY,
        "draft_vocab_size": GUESSED,
        "rms_norm_eps": 1e-5,
        "rope_theta": 10000.0,
        "num_hidden_layers": 1,
        **changes,
    }
    if speculators:
        layer = {key: settings.pop(key) for key in OF_LAYER}
        layer["rope_parameters"] = {"rope_type": "default", "rope_theta": 10000.0}
        settings |= {"architectures": ["Eagle3Speculator"], "transformer_layer_config": layer}
        settings |= {"speculators_model_type": "eagle3", "target_hidden_size": None}
    folder.mkdir(exist_ok=True)
    (folder / "config.json").write_text(json.dumps(settings))
    weights = eagle_weights(own_embedding)
    written = {
        name.replace("midlayer.", "layers.0.") if speculators else name: mx.array(value)
        for name, value in weights.items()
    }
    mx.save_safetensors(str(folder / "model.safetensors"), written)
    return weights


OF_LAYER = (
    "hidden_size",
    "intermediate_size",
    "num_attention_heads",
    "num_key_value_heads",
    "vocab_size",
    "rms_norm_eps",
    "rope_theta",
)


def rms(x: np.ndarray, weight: np.ndarray) -> np.ndarray:
    return x / np.sqrt((x * x).mean(-1, keepdims=True) + 1e-5) * weight


def turned(x: np.ndarray) -> np.ndarray:
    """Rotations of [N, heads, SIZE], halves against halves, position by position."""
    half = SIZE // 2
    angles = np.arange(len(x))[:, None] * 10000.0 ** (-np.arange(half) / half)
    cos, sin = np.cos(angles)[:, None], np.sin(angles)[:, None]
    first, second = x[..., :half], x[..., half:]
    return np.concatenate([first * cos - second * sin, first * sin + second * cos], axis=-1)


def eagle_forward(
    w: dict[str, np.ndarray], embeddings: np.ndarray, states: np.ndarray, normed_around: bool
) -> np.ndarray:
    """One text [N, WIDTH] of each through the layer."""

    def by(name: str, x: np.ndarray) -> np.ndarray:
        weight: np.ndarray = w[f"midlayer.{name}.weight"]
        return x @ weight.T

    normed = rms(states, w["midlayer.hidden_norm.weight"])
    both = np.concatenate([rms(embeddings, w["midlayer.input_layernorm.weight"]), normed], -1)
    count = len(both)
    queries = turned(by("self_attn.q_proj", both).reshape(count, HEADS, SIZE))
    keys = turned(by("self_attn.k_proj", both).reshape(count, GROUPS, SIZE))
    values = by("self_attn.v_proj", both).reshape(count, GROUPS, SIZE)
    mixed = np.zeros((count, HEADS, SIZE))
    for place in range(count):
        for head in range(HEADS):
            group = head * GROUPS // HEADS
            scores = keys[: place + 1, group] @ queries[place, head] * SIZE**-0.5
            shares = np.exp(scores - scores.max())
            mixed[place, head] = shares / shares.sum() @ values[: place + 1, group]
    x = (normed if normed_around else states) + by("self_attn.o_proj", mixed.reshape(count, -1))
    inner = rms(x, w["midlayer.post_attention_layernorm.weight"])
    gate = by("mlp.gate_proj", inner)
    return x + by("mlp.down_proj", gate / (1 + np.exp(-gate)) * by("mlp.up_proj", inner))


@pytest.mark.parametrize("speculators", [False, True])
@pytest.mark.parametrize("normed_around", [False, True])
def test_an_eagle_3_head_computes_what_it_is_published_to(
    normed_around: bool, speculators: bool, tmp_path: Path
) -> None:
    w = write_eagle(tmp_path, speculators=speculators, norm_before_residual=normed_around)
    head = load_head(tmp_path)
    assert isinstance(head, Eagle3Head)
    rng = np.random.default_rng(9)
    tokens = rng.integers(0, VOCABULARY, 6)
    hidden = rng.normal(size=(6, 3 * WIDTH)).astype(np.float32)
    embeddings, states = w["embed_tokens.weight"][tokens], hidden @ w["fc.weight"].T
    expected = eagle_forward(w, embeddings, states, normed_around)
    parts = TargetParts(target("llama"))
    begun = head.begin(mx.array(hidden)[None])
    given = head(head.embed(parts, mx.array(tokens)[None]), begun, "causal")
    assert np.allclose(given[0], expected, atol=1e-4)
    choices = head.choices(parts)
    logits = rms(expected, w["norm.weight"]) @ w["lm_head.weight"].T
    assert np.allclose(choices(given)[0], logits, atol=1e-4)
    assert choices.tokens is not None
    assert choices.tokens.tolist() == [3 * place + 1 for place in range(GUESSED)]


def test_it_reads_what_three_layers_gave(tmp_path: Path) -> None:
    """EAGLE's configs count the layers whose output is read, those of speculators the next ones."""
    ids = {"eagle_aux_hidden_state_layer_ids": [1, 2, 3]}
    write_eagle(tmp_path)
    assert load_head(tmp_path).reads(32).layers == (1, 15, 28)
    write_eagle(tmp_path, eagle_config=ids)
    assert load_head(tmp_path).reads(32).layers == (1, 2, 3)
    write_eagle(tmp_path, speculators=True, **ids)
    assert load_head(tmp_path).reads(32).layers == (0, 1, 2)
    with pytest.raises(UnsupportedModel, match="reads layers 0, 1, 2 of a target; this one has 2"):
        load_head(tmp_path).reads(2)


SAID = dict.fromkeys((4, 16, 28, 43), 60.0)  # which it can guess


@pytest.mark.parametrize("speculators", [False, True])
@pytest.mark.parametrize("own_embedding", [False, True])
def test_it_drafts(own_embedding: bool, speculators: bool, tmp_path: Path) -> None:
    """As a user has it: of a folder, over rows that come and go; some guesses are right."""
    write_eagle(tmp_path, own_embedding, speculators)
    model = make_model("llama", num_hidden_layers=6)
    decoder = SpeculativeDecoder(
        model,
        draft_model=load(tmp_path)[0],
        policy=RaggedPolicy(3),
        batching=BatchingConfig(batch_size=3, prefill_step_size=16),
    )
    made = [
        Sequence(
            [(5 * row + 3 * place) % VOCABULARY for place in range(2 + 4 * row)],
            SamplingParams(max_tokens=9 + row, logit_bias=SAID, temperature=row % 2, seed=row),
        )
        for row in range(7)
    ]
    serve(decoder, made)
    for row in made:
        assert row.tokens == plain_alone(model, tuple(row.prompt), row.sampling)
        assert row.drafted > 0
    assert sum(row.drafted for row in made) > sum(row.accepted for row in made) > 0


def test_one_that_does_not_fit_is_refused(tmp_path: Path) -> None:
    write_eagle(tmp_path, target_hidden_size=64)
    with pytest.raises(ModelLoadError, match=r"'fc\.weight' is \(32, 96\), not \(32, 192\)"):
        load(tmp_path)
    write_eagle(tmp_path, vocab_size=65, own_embedding=False)
    with pytest.raises(UnsupportedModel, match="32 and 65 tokens; this one has 32 and 64"):
        SpeculativeDecoder(target("llama"), draft_model=load(tmp_path)[0])
    (tmp_path / "model.safetensors").unlink()
    with pytest.raises(ModelLoadError, match=r"without a \*\.safetensors file"):
        load(tmp_path)
    (tmp_path / "config.json").write_text(json.dumps({"architectures": ["Eagle3Speculator"]}))
    mx.save_safetensors(str(tmp_path / "model.safetensors"), {"a": mx.zeros(1)})
    with pytest.raises(
        ModelLoadError, match=r"config\.json does not say hidden_size, intermediate"
    ):
        load(tmp_path)


def test_another_layout_is_named_by_its_tensors(tmp_path: Path) -> None:
    """Heads of several layers, with norms of their own, or without the table of tokens."""
    write_eagle(tmp_path)
    file = str(tmp_path / "model.safetensors")
    right: Any = mx.load(file)
    mx.eval(right)  # before it is overwritten

    def refused(tensors: dict[str, mx.array]) -> str:
        mx.save_safetensors(file, tensors)
        with pytest.raises(ModelLoadError) as error:
            load(tmp_path)
        return str(error.value)

    more = {"layers.1.hidden_norm.weight": mx.ones(4), "fc_norm.weight": mx.ones(4)}
    said = refused({**right, **more})
    assert "[load_head]" in said
    assert "'fc_norm.weight' is not known; 'layers.1.hidden_norm.weight' is not known" in said
    said = refused({k: v for k, v in right.items() if k not in ("d2t", "lm_head.weight")})
    assert "'lm_head.weight' is missing; 'd2t' is missing, for 20 of 64 tokens" in said
    assert "and 10 more" in refused({"norm.weight": right["norm.weight"]})
