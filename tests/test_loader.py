"""Loading: what is refused, with which words, and what comes out of a good folder."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import mlx.core as mx
import pytest

from mlx_spec.errors import InvalidRequest, ModelLoadError
from mlx_spec.model.catalog import EMBEDDED
from mlx_spec.model.context import context_length
from mlx_spec.model.loader import load
from mlx_spec.model.pairing import check_pair
from tests.folders import CONTEXT, END, write_folder


@pytest.fixture(scope="module")
def good(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_folder(tmp_path_factory.mktemp("models") / "good")


def edit_config(folder: Path, **changes: object) -> None:
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, **changes}))


def truncate(folder: Path) -> None:
    weights = folder / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[: weights.stat().st_size // 2])


INDEX = "model.safetensors.index.json"


def point(file: Path) -> None:
    """What Git LFS leaves where it was not run."""
    file.write_text(f"version https://git-lfs.github.com/spec/v1\noid sha256:{'0' * 64}\nsize 1\n")


def dangle(folder: Path) -> None:
    """As in a hub cache whose blob is gone."""
    (folder / "model.safetensors").unlink()
    (folder / "model.safetensors").symlink_to("../blobs/gone")


def read_weights(folder: Path) -> dict[str, mx.array]:
    weights = mx.load(str(folder / "model.safetensors"))
    assert isinstance(weights, dict)
    mx.eval(weights)  # before the file is replaced
    return weights


def split(folder: Path, parts: int, keep: set[int]) -> None:
    """Weights in several files with an index, of which some are there."""
    weights = read_weights(folder)
    (folder / "model.safetensors").unlink()
    index = {}
    for part in range(parts):
        file = f"model-{part + 1:05}-of-{parts:05}.safetensors"
        mine = {name: weights[name] for name in sorted(weights)[part::parts]}
        index |= dict.fromkeys(mine, file)
        if part in keep:
            mx.save_safetensors(str(folder / file), mine)
    (folder / INDEX).write_text(json.dumps({"metadata": {}, "weight_map": index}))


def write_weights(folder: Path) -> None:
    mx.save_safetensors(str(folder / "model.safetensors"), {"model.norm.weight": mx.ones(32)})


def drop(folder: Path, name: str) -> None:
    weights = read_weights(folder)
    del weights[name]
    mx.save_safetensors(str(folder / "model.safetensors"), weights)


DAMAGE: dict[str, tuple[Callable[[Path], object], str]] = {
    "no config": (lambda f: (f / "config.json").unlink(), "no config.json"),
    "broken config": (lambda f: (f / "config.json").write_text("{"), "cannot be read"),
    "config is a list": (lambda f: (f / "config.json").write_text("[]"), "no JSON object"),
    "unknown type": (lambda f: edit_config(f, model_type="zorg"), "zorg not supported"),
    "no weights": (lambda f: (f / "model.safetensors").unlink(), "no weights"),
    "truncated weights": (truncate, r"model\.safetensors broke off: .* bytes of which"),
    "junk weights": (lambda f: (f / "model.safetensors").write_bytes(b"x" * 999), "safetensors"),
    "missing layers": (lambda f: edit_config(f, num_hidden_layers=3), "Missing 9 parameters"),
    "no tokenizer": (
        lambda f: [path.unlink() for path in f.glob("tokenizer*")],
        "no tokenizer",
    ),
    "weights are a pointer": (lambda f: point(f / "model.safetensors"), r"LFS pointer.*git lfs"),
    "config is a pointer": (lambda f: point(f / "config.json"), "config.json is a Git LFS pointer"),
    "tokenizer is a pointer": (lambda f: point(f / "tokenizer.json"), "tokenizer.json is a Git"),
    "weights are a dangling link": (dangle, "model.safetensors is a link to a file that is not"),
    "a shard is missing": (
        lambda f: split(f, 3, keep={0, 1}),
        r"incomplete: model-00003-of-00003\.safetensors is missing",
    ),
    "a shard is missing and no index": (
        lambda f: [split(f, 3, keep={1}), (f / INDEX).unlink()],
        r"model-00001-of-00003\.safetensors, model-00003-of-00003\.safetensors are missing",
    ),
    "all shards are missing": (lambda f: split(f, 2, keep=set()), "model-00001-of-00002"),
    "two versions of the weights": (
        lambda f: [split(f, 2, keep={0, 1}), write_weights(f)],
        r"model-00001-of-00002.safetensors and model.safetensors both hold",
    ),
    "no lm_head, not tied": (lambda f: drop(f, "lm_head.weight"), "lm_head.weight"),
    "broken tokenizer": (lambda f: (f / "tokenizer.json").write_text("{"), "tokenizer.json"),
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_a_damaged_folder_is_refused_in_one_line(damage: str, tmp_path: Path) -> None:
    folder = write_folder(tmp_path / "model")
    harm, words = DAMAGE[damage]
    harm(folder)
    with pytest.raises(ModelLoadError, match=words) as caught:
        load(folder)
    assert str(folder) in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("path", ["./nothing", "~/nothing/at/all", "/nothing", "", "a/b/c", "gpt2"])
def test_a_path_without_a_model_is_refused(
    path: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ModelLoadError, match=r"no such folder|no config\.json"):
        load(path)


def test_a_file_is_no_model(tmp_path: Path) -> None:
    (tmp_path / "weights.bin").write_bytes(b"")
    with pytest.raises(ModelLoadError, match="is a file"):
        load(tmp_path / "weights.bin")


def test_a_hub_id_without_network_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    from huggingface_hub.errors import LocalEntryNotFoundError

    def no_network(*args: object, **kwargs: object) -> None:
        raise LocalEntryNotFoundError("cannot find the files on the Hub")

    monkeypatch.setattr("mlx_lm.utils.snapshot_download", no_network)
    with pytest.raises(ModelLoadError, match=r"org/name: .* hub cannot be reached") as caught:
        load("org/name")
    assert isinstance(caught.value.__cause__, LocalEntryNotFoundError)


def test_weights_are_float32_on_the_cpu_unless_asked_otherwise(good: Path) -> None:
    if mx.default_device().type != mx.DeviceType.cpu:
        pytest.skip("other devices keep the file's type")
    for dtype, expected in (
        (None, mx.float32),
        ("bfloat16", mx.bfloat16),
        (mx.float16, mx.float16),
    ):
        model, _ = load(good, dtype=dtype)
        assert model.layers[0].mlp.up_proj.weight.dtype == expected


@pytest.mark.parametrize("dtype", ["int8", "float64", mx.int32, 3])
def test_an_unknown_dtype_is_refused(dtype: object, good: Path) -> None:
    with pytest.raises(InvalidRequest, match="expected one of float32"):
        load(good, dtype=dtype)  # type: ignore[arg-type]


def test_weights_in_several_files_load(good: Path, tmp_path: Path) -> None:
    folder = write_folder(tmp_path / "model")
    wanted = load(folder)[0](mx.array([[1, 2]])).tolist()
    split(folder, 3, keep={0, 1, 2})
    assert load(folder)[0](mx.array([[1, 2]])).tolist() == wanted


def test_a_leftover_index_beside_whole_weights_does_no_harm(tmp_path: Path) -> None:
    folder = write_folder(tmp_path / "model")
    whole = (folder / "model.safetensors").read_bytes()
    split(folder, 2, keep=set())
    (folder / "model.safetensors").write_bytes(whole)
    assert load(folder)


def lora(folder: Path, width: int = 32, **changes: Any) -> Path:
    """An adapter as ``mlx_lm.lora`` writes it, on one projection of the last layer."""
    folder.mkdir()
    settings = {
        "fine_tune_type": "lora",
        "num_layers": 1,
        "lora_parameters": {"rank": 2, "scale": 8.0, "dropout": 0.0, "keys": ["self_attn.q_proj"]},
        **changes,
    }
    (folder / "adapter_config.json").write_text(json.dumps(settings))
    name = "model.layers.1.self_attn.q_proj.lora_"
    weights = {f"{name}a": mx.ones((width, 2)), f"{name}b": mx.ones((2, 32))}
    mx.save_safetensors(str(folder / "adapters.safetensors"), weights)
    return folder


def peft(folder: Path) -> None:
    (folder / "adapter_config.json").write_text(json.dumps({"peft_type": "LORA", "r": 4}))
    (folder / "adapters.safetensors").rename(folder / "adapter_model.safetensors")


ADAPTER_DAMAGE: dict[str, tuple[Callable[[Path], object], str]] = {
    "no config": (lambda f: (f / "adapter_config.json").unlink(), "no adapter_config.json"),
    "of peft": (peft, r"PEFT's format, expected one that mlx_lm\.lora wrote"),
    "no weights": (lambda f: (f / "adapters.safetensors").unlink(), "adapters.safetensors"),
    "a pointer": (lambda f: point(f / "adapters.safetensors"), "LFS pointer"),
    "broken config": (lambda f: (f / "adapter_config.json").write_text("{"), "cannot be read"),
    "other config": (lambda f: (f / "adapter_config.json").write_text("{}"), "num_layers"),
}


@pytest.mark.parametrize("damage", ADAPTER_DAMAGE)
def test_a_damaged_adapter_is_refused_in_one_line(damage: str, good: Path, tmp_path: Path) -> None:
    folder = lora(tmp_path / "adapter")
    harm, words = ADAPTER_DAMAGE[damage]
    harm(folder)
    with pytest.raises(ModelLoadError, match=rf"adapter '.*{folder.name}': .*{words}") as caught:
        load(good, adapter_path=folder)
    assert "\n" not in str(caught.value)


def test_an_adapter_is_applied_and_one_for_another_model_refused(
    good: Path, tmp_path: Path
) -> None:
    plain, _ = load(good)
    adapted, _ = load(good, adapter_path=lora(tmp_path / "adapter"))
    tokens = mx.array([[1, 2, 3]])
    assert not mx.allclose(plain(tokens), adapted(tokens))
    with pytest.raises(ModelLoadError, match=r"lora_a: adapter shape .* does not match") as caught:
        load(good, adapter_path=lora(tmp_path / "wide", width=48))
    assert "\n" not in str(caught.value)


def test_a_missing_adapter_is_refused_before_the_weights_are_read(good: Path) -> None:
    with pytest.raises(ModelLoadError, match=r"adapter .* no such folder"):
        load(good, adapter_path="/nothing")


def test_a_path_is_named_as_it_was_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ModelLoadError, match=r"\[load\] \./my-model: no such folder"):
        load("./my-model")


def test_a_models_own_code_runs_only_when_trusted(tmp_path: Path) -> None:
    folder = write_folder(tmp_path / "model")
    proof = tmp_path / "ran"
    code = f"open({str(proof)!r}, 'w')\nfrom mlx_lm.models.llama import Model, ModelArgs\n"
    (folder / "own.py").write_text(code)
    edit_config(folder, model_file="own.py", model_type="mine")
    with pytest.raises(ModelLoadError):
        load(folder)
    assert not proof.exists()
    load(folder, trust_remote_code=True)
    assert proof.exists()


def test_lazy_leaves_a_loadable_model(good: Path) -> None:
    model, tokenizer = load(str(good), lazy=True)
    logits = model(mx.array([tokenizer.encode("abc")]))
    assert logits.shape == (1, 3, 272)


def test_the_embedded_pair_loads_and_is_a_pair() -> None:
    target, tokenizer = load("demo")
    draft, draft_tokenizer = load("demo-draft")
    check_pair(tokenizer, draft_tokenizer)
    assert tokenizer.decode(tokenizer.encode("def f(x):\n")) == "def f(x):\n"
    assert context_length(target) == context_length(draft)


def test_the_embedded_pair_fits_the_wheel() -> None:
    sizes = {
        name: sum(file.stat().st_size for file in folder.rglob("*"))
        for name, folder in EMBEDDED.items()
    }
    assert sizes["smollm2-draft"] <= 10e6
    assert sum(sizes.values()) <= 26e6


def test_the_embedded_head_is_smollm2s() -> None:
    head, tokenizer = load("smollm2-draft")
    assert tokenizer is None
    assert head.draft_kind == "head"
    assert (head.config.hidden_size, head.config.vocab_size) == (576, 49_152)
    card = (EMBEDDED["smollm2-draft"] / "README.md").read_text(encoding="utf-8")
    assert "SmolLM2-135M-Instruct" in card
    assert "Apache-2.0" in card


def test_context_length_of_a_loaded_model(good: Path) -> None:
    assert context_length(load(good)[0]) == CONTEXT


def test_the_end_token_ends(good: Path) -> None:
    _, tokenizer = load(good)
    assert tokenizer.eos_token_ids == {tokenizer.get_vocab()[END]}


def test_a_model_whose_code_ends_the_process_is_refused_instead(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As mlx-lm's ``olmo`` does where a package of its own is missing."""
    folder = write_folder(tmp_path / "model")

    def leave(*args: object, **kwargs: object) -> None:
        raise SystemExit(1)

    monkeypatch.setattr("mlx_lm.load", leave)
    with pytest.raises(ModelLoadError, match="needs a package that is not installed"):
        load(folder)


@pytest.mark.parametrize("given", [None, 3, ["demo"]])
def test_what_is_no_name_is_refused_in_words(given: Any) -> None:
    with pytest.raises(InvalidRequest, match="expected a model's name"):
        load(given)
