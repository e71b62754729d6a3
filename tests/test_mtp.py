"""Heads that checkpoints bring: found, put together as their families do, and accepted if right."""

from __future__ import annotations

import shutil
from functools import cache
from pathlib import Path
from typing import Any

import mlx.core as mx
import pytest
from mlx.utils import tree_flatten, tree_map_with_path

from mlx_spec import make_draft_model
from mlx_spec.cli.main import main
from mlx_spec.config import BatchingConfig, SamplingParams
from mlx_spec.decoding.decoder import SpeculativeDecoder
from mlx_spec.errors import ModelLoadError, UnsupportedModel
from mlx_spec.sequence import Sequence
from tests.architectures import build, write_architecture
from tests.fakes import RaggedPolicy
from tests.scenario import plain_alone

FAMILIES = ("deepseek_v3", "glm4_moe", "qwen3_next", "qwen3_5", "mimo", "mimo_v2_flash")
OUTER = {  # embedding norm, hidden norm, projection, norm
    "deepseek_v3": ("enorm", "hnorm", "eh_proj", "shared_head.norm"),
    "glm4_moe": ("enorm", "hnorm", "eh_proj", "shared_head.norm"),
    "qwen3_next": ("pre_fc_norm_embedding", "pre_fc_norm_hidden", "fc", "norm"),
    "qwen3_5": ("pre_fc_norm_embedding", "pre_fc_norm_hidden", "fc", "norm"),
    "mimo": ("token_layernorm", "hidden_layernorm", "input_proj", "final_layernorm"),
    "mimo_v2_flash": ("enorm", "hnorm", "eh_proj", "final_layernorm"),
}
LESS_ONE = ("qwen3_next", "qwen3_5")
# Its heads have windows and no experts, which none of its layers has both.
ATTENDS = {"hybrid_layer_pattern": [0, 1]}
MORE: dict[str, Any] = {"mimo_v2_flash": ATTENDS}
TWINS: dict[str, Any] = {"mimo_v2_flash": {**ATTENDS, "moe_layer_freq": [1, 0]}}


@cache
def target(name: str) -> Any:
    return build(name, **MORE.get(name, {}))


def attending(model: Any) -> Any:
    """A layer with full attention, as the head's is."""
    return [layer for layer in model.layers if not getattr(layer, "is_linear", False)][-1]


def prefixes(name: str, place: int = 0) -> tuple[str, str]:
    """Where a family keeps a head, and the head's layer."""
    if name in LESS_ONE:
        return "mtp.", f"mtp.layers.{place}."
    names = {"mimo": "mtp_layers", "mimo_v2_flash": "mtp.layers"}
    first = 0 if name in names else len(target(name).layers)
    prefix = f"model.{names.get(name, 'layers')}.{first + place}."
    return prefix, prefix


def published(name: str, layer: dict[str, mx.array]) -> dict[str, mx.array]:
    """A layer's weights as the family's own checkpoints have them."""
    found = dict(layer)
    for key, value in layer.items():
        if ".switch_mlp." in key:
            before, _, leaf = key.partition(".switch_mlp.")
            del found[key]
            for place in range(len(value)):
                found[f"{before}.experts.{place}.{leaf}"] = value[place]
        elif name in LESS_ONE and key.endswith("norm.weight"):
            found[key] = value - 1
    if "self_attn.embed_q.weight" in found:  # one matrix for what mlx-lm keeps as two
        keys = found.pop("self_attn.embed_q.weight").swapaxes(-1, -2)
        both = mx.concatenate([keys, found.pop("self_attn.unembed_out.weight")], axis=1)
        found["self_attn.kv_b_proj.weight"] = both.reshape(-1, both.shape[-1])
    if name == "mimo_v2_flash":
        found["pre_mlp_layernorm.weight"] = found.pop("post_attention_layernorm.weight")
    return found


def write(
    name: str, folder: Path, *, right: bool = False, heads: int = 1
) -> list[dict[str, mx.array]]:
    """A checkpoint's heads in a folder; the weights of each by our names. ``right``: they pass
    embeddings on, which is all that a target without layers looks at."""
    width = target(name).layers[0].input_layernorm.weight.shape[0]
    mx.random.seed(3)
    tensors: dict[str, mx.array] = {}
    ours: list[dict[str, mx.array]] = []
    parts: list[mx.array] = []
    for place in range(heads):
        twin = build(name, seed=8 + place, **TWINS.get(name, {}))
        layer = dict(tree_flatten(attending(twin).parameters()))
        if not parts or name not in LESS_ONE:  # which share these
            norms = [1 + 0.1 * mx.random.normal((width,)) for _ in range(3)]
            parts = [*norms[:2], mx.random.normal((width, 2 * width)) * width**-0.5, norms[2]]
        if right:
            layer = {key: value * (key.split(".")[-2] not in LAST) for key, value in layer.items()}
            own, none = mx.eye(width), mx.zeros((width, width))
            join = mx.concatenate([none, own] if name == "mimo" else [own, none], axis=1)
            parts = [mx.ones(width), mx.ones(width), join, mx.ones(width)]
        outer, block = prefixes(name, place)
        shift = 1 if name in LESS_ONE else 0
        tensors |= {f"{block}{key}": value for key, value in published(name, layer).items()}
        for part, value in zip(OUTER[name], parts, strict=True):
            tensors[f"{outer}{part}.weight"] = value - shift * (value.ndim == 1)
        tensors[f"{block}embed_tokens.weight"] = mx.zeros((4, 4))  # others' tensors lie beside
        named = dict(zip(("embedding_norm", "hidden_norm", "join", "norm"), parts, strict=True))
        of_layer = {f"layer.{key}": value for key, value in layer.items()}
        ours.append({**{f"{part}.weight": value for part, value in named.items()}, **of_layer})
    tensors["model.embed_tokens.weight"] = mx.zeros((4, 4))
    mx.save_safetensors(str(folder / "model-00001-of-00001.safetensors"), tensors)
    return ours


LAST = ("o_proj", "down_proj")  # what a layer adds goes through one of these


def normed(x: mx.array, weight: mx.array, eps: float) -> mx.array:
    return x * mx.rsqrt((x * x).mean(axis=-1, keepdims=True) + eps) * weight


@pytest.mark.parametrize("name", FAMILIES)
def test_a_head_is_what_its_family_s_checkpoints_hold(name: str, tmp_path: Path) -> None:
    """Every weight, and the way in which they are put together."""
    (expected,) = write(name, tmp_path)
    head = make_draft_model(target(name), tmp_path)
    found = dict(tree_flatten(head.parameters()))
    assert found.keys() == expected.keys()
    for key, value in expected.items():
        assert mx.allclose(found[key], value, atol=1e-6), key
    width = expected["norm.weight"].shape[0]
    embeddings, states = mx.random.normal((1, 5, width)), mx.random.normal((1, 5, width))
    eps = head.norm.eps
    both = [
        normed(embeddings, expected["embedding_norm.weight"], eps),
        normed(states, expected["hidden_norm.weight"], eps),
    ]
    if name == "mimo":
        both.reverse()
    mask = mx.tril(mx.ones((5, 5), mx.bool_))
    x = mx.concatenate(both, axis=-1) @ expected["join.weight"].T
    out = head.layer(x, mask, head.own_cache())
    after = normed(out, expected["norm.weight"], eps)
    keeps_out = name in ("deepseek_v3", "glm4_moe")
    given = head(embeddings, states, mask, head.own_cache())
    assert mx.allclose(given, out if keeps_out else after, atol=1e-4)


@pytest.mark.parametrize("name", FAMILIES)
def test_of_several_all_are_there_in_their_order(name: str, tmp_path: Path) -> None:
    expected = write(name, tmp_path, heads=3)
    stack = make_draft_model(target(name), tmp_path)
    assert stack.chained is (name != "mimo_v2_flash")
    assert len(stack.stages) == 3
    for own, head in zip(expected, stack.stages, strict=True):
        found = dict(tree_flatten(head.parameters()))
        assert found.keys() == own.keys()
        for key, value in own.items():
            assert mx.allclose(found[key], value, atol=1e-6), key
        windowed = head.layer.is_sliding_window if name == "mimo_v2_flash" else False
        assert (head.window is not None) is windowed is (name == "mimo_v2_flash")


def without_layers(name: str) -> Any:
    """A target whose layers add nothing: its next token depends on the last one alone."""
    model = build(name, seed=4, **MORE.get(name, {}))

    def less(path: str, value: mx.array) -> mx.array:
        last = path.split(".")[-2] if "." in path else ""
        return value * 0 if last in (*LAST, "out_proj") else value

    model.update(tree_map_with_path(less, model.parameters()))
    return model


@pytest.mark.parametrize("name", FAMILIES)
@pytest.mark.parametrize(("heads", "right"), [(1, False), (1, True), (2, True)])
def test_its_drafts_change_no_text_and_are_accepted_if_right(
    name: str, heads: int, right: bool, tmp_path: Path
) -> None:
    """Over four rows, with joins and leaves; in these families some rows have states beside."""
    write(name, tmp_path, right=right, heads=heads)
    model = without_layers(name) if right else target(name)
    decoder = SpeculativeDecoder(
        model,
        draft_model=make_draft_model(model, tmp_path),
        policy=RaggedPolicy(3),
        batching=BatchingConfig(batch_size=4, prefill_step_size=16),
    )
    made = [
        Sequence(
            [(7 * row + 3 * place) % 60 for place in range(3 + row)],
            SamplingParams(max_tokens=5 + row, temperature=0.5 * (row % 2), seed=row),
        )
        for row in range(6)
    ]
    waiting = list(made)
    while waiting or decoder.busy:
        joining = waiting[: min(2, decoder.free_rows)]
        waiting = waiting[len(joining) :]
        decoder.add(joining)
        decoder.step()
    for row in made:
        assert row.tokens == plain_alone(model, tuple(row.prompt), row.sampling)
    drafted, accepted = sum(row.drafted for row in made), sum(row.accepted for row in made)
    assert drafted > 10
    assert accepted == drafted if right else accepted < drafted


@pytest.fixture
def brings(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A model's folder as converters write it, and the original, which has a head besides."""
    converted = tmp_path_factory.mktemp("mtp") / "converted"
    write_architecture(converted, "mimo")
    original = converted.parent / "original"
    shutil.copytree(converted, original)
    write("mimo", original)
    head = original / "model-00001-of-00001.safetensors"
    tensors: Any = mx.load(str(head))
    kept = {name: value for name, value in tensors.items() if "mtp_layers.0." in name}
    mx.save_safetensors(str(original / "model-head.safetensors"), kept, metadata={"format": "mlx"})
    head.unlink()
    return converted, original


PLAIN = ["--ignore-chat-template", "-p", "a cat", "-m", "9", "--no-adaptive"]


def test_from_the_command_line(brings: tuple[Path, Path], capsys: Any) -> None:
    """The target's own folder is looked into where no other is named; what was found is said."""
    converted, original = map(str, brings)
    named = ["--model", converted, "--draft-model", original]
    for given in (["--model", original], named):
        assert main(["generate", *given, "--draft", "head", *PLAIN, "--compare"]) == 0
        shown = capsys.readouterr()
        assert shown.err.count(f"drafting with the head that {original} brings") == 1
        assert "By drafter: head" in shown.out
        assert "Tokens: all 9 identical" in shown.out
    write("mimo", Path(original), heads=2)
    (Path(original) / "model-head.safetensors").unlink()
    assert main(["generate", *named, "--draft", "head", *PLAIN, "--compare"]) == 0
    shown = capsys.readouterr()
    assert f"drafting with the 2 heads that {original} brings" in shown.err
    assert "Tokens: all 9 identical" in shown.out
    assert main(["generate", "--model", converted, "--draft", "head", *PLAIN]) == 2
    shown = capsys.readouterr()
    assert "a converted checkpoint has lost them" in shown.err
    assert "with --draft-model, which `mlx-spec train-draft` makes" in shown.err


def test_of_files(brings: tuple[Path, Path], tmp_path: Path, capsys: Any) -> None:
    """And of a pipeline, which says it once."""
    source, out = tmp_path / "in.jsonl", tmp_path / "out.jsonl"
    source.write_text('{"text": "a cat"}\n{"text": "a dog"}\n')
    given = ["--model", str(brings[1]), "--draft", "head", *PLAIN[:1], *PLAIN[3:]]
    assert main(["batch", str(source), str(out), *given]) == 0
    shown = capsys.readouterr()
    assert shown.err.count("drafting with the head that") == 1
    assert "By drafter: head" in shown.err


def test_what_is_no_such_head_is_refused_in_words(tmp_path: Path) -> None:
    model = target("mimo")
    with pytest.raises(ModelLoadError, match=r"no folder with \*.safetensors files"):
        make_draft_model(model, tmp_path / "nothing")
    file = str(tmp_path / "model.safetensors")
    mx.save_safetensors(file, {"model.norm.weight": mx.ones(4)})
    with pytest.raises(UnsupportedModel, match="a converted checkpoint has lost them"):
        make_draft_model(model, tmp_path)
    mx.save_safetensors(file, {"model.mtp.0.proj.weight": mx.ones(4)})
    with pytest.raises(UnsupportedModel, match=r"not known here \(a tensor is 'model.mtp.0.proj"):
        make_draft_model(model, tmp_path)
    mx.save_safetensors(file, {"model.mtp_layers.0.input_proj.weight": mx.ones((4, 8))})
    with pytest.raises(UnsupportedModel, match="does not fit this 'mimo' model"):
        make_draft_model(model, tmp_path)


def test_a_quantized_target_gets_a_head_in_as_many_bits(tmp_path: Path) -> None:
    import mlx.nn as nn

    write("mimo", tmp_path)
    model = build("mimo")
    nn.quantize(
        model, group_size=32, bits=4, class_predicate=lambda path, _: path.endswith("mlp.up_proj")
    )
    head = make_draft_model(model, tmp_path)
    assert head.layer.mlp.up_proj.bits == 4
