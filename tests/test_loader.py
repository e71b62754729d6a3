"""Loading: what is refused, with which words, and what comes out of a good folder."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import mlx.core as mx
import pytest

from mlx_spec.errors import InvalidRequest, ModelLoadError, TokenizerMismatch
from mlx_spec.model.catalog import EMBEDDED, find_models
from mlx_spec.model.loader import check_pair, context_length, load
from tests.folders import CONTEXT, END, byte_vocabulary, write_folder


@pytest.fixture(scope="module")
def good(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_folder(tmp_path_factory.mktemp("models") / "good")


def edit_config(folder: Path, **changes: object) -> None:
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, **changes}))


def truncate(folder: Path) -> None:
    weights = folder / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[: weights.stat().st_size // 2])


DAMAGE: dict[str, tuple[Callable[[Path], object], str]] = {
    "no config": (lambda f: (f / "config.json").unlink(), "no config.json"),
    "broken config": (lambda f: (f / "config.json").write_text("{"), "cannot be read"),
    "config is a list": (lambda f: (f / "config.json").write_text("[]"), "no model_type"),
    "unknown type": (lambda f: edit_config(f, model_type="zorg"), "zorg not supported"),
    "no weights": (lambda f: (f / "model.safetensors").unlink(), "no weights"),
    "truncated weights": (truncate, "safetensors"),
    "junk weights": (lambda f: (f / "model.safetensors").write_bytes(b"x" * 999), "safetensors"),
    "missing layers": (lambda f: edit_config(f, num_hidden_layers=3), "Missing 9 parameters"),
    "no tokenizer": (
        lambda f: [path.unlink() for path in f.glob("tokenizer*")],
        "no tokenizer",
    ),
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
    (tmp_path / "weights.gguf").write_bytes(b"")
    with pytest.raises(ModelLoadError, match="is a file"):
        load(tmp_path / "weights.gguf")


def test_a_hub_id_without_network_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    from huggingface_hub.errors import LocalEntryNotFoundError

    def no_network(*args: object, **kwargs: object) -> None:
        raise LocalEntryNotFoundError("cannot find the files on the Hub")

    monkeypatch.setattr("mlx_lm.load", no_network)
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


def test_a_missing_adapter_is_refused_before_the_weights_are_read(good: Path) -> None:
    with pytest.raises(ModelLoadError, match=r"adapter .* no such folder"):
        load(good, adapter_path="/nothing")


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
    size = sum(f.stat().st_size for folder in EMBEDDED.values() for f in folder.rglob("*"))
    assert size <= 16e6


def vocabulary(**changes: int) -> SimpleNamespace:
    tokens = {"a": 0, "b": 1, "def": 2} | changes
    return SimpleNamespace(get_vocab=lambda: tokens)


def test_equal_token_maps_are_a_pair() -> None:
    check_pair(vocabulary(), vocabulary())


@pytest.mark.parametrize(
    ("draft", "words"),
    [
        # Equal sizes on purpose: comparing sizes, as mlx-lm does, passes here.
        ({"a": 1, "b": 0}, "in 2 of 3 tokens: 'a' is 0 in the target, 1 in the draft"),
        ({"c": 3}, r"in 1 of 4 tokens: 'c' \(3\) is not in the target"),
    ],
)
def test_other_token_maps_are_refused_by_name(draft: dict[str, int], words: str) -> None:
    with pytest.raises(TokenizerMismatch, match=words):
        check_pair(vocabulary(), vocabulary(**draft))


def test_token_maps_are_compared_not_padded_embeddings(good: Path, tmp_path: Path) -> None:
    _, tokenizer = load(good)
    other = byte_vocabulary()
    other["a"], other["b"] = other["b"], other["a"]
    _, draft_tokenizer = load(write_folder(tmp_path / "other", other))
    with pytest.raises(TokenizerMismatch, match=r"'a' is \d+ in the target, \d+ in the draft"):
        check_pair(tokenizer, draft_tokenizer)


@pytest.mark.parametrize(
    ("args", "expected"),
    [
        (SimpleNamespace(max_position_embeddings=2048), 2048),
        (SimpleNamespace(text_config={"max_position_embeddings": 512}), 512),
        (SimpleNamespace(text_config=SimpleNamespace(n_positions=9)), 9),
        (SimpleNamespace(max_position_embeddings=None), None),
        (None, None),
    ],
)
def test_context_length_is_read_from_the_config(args: object, expected: int | None) -> None:
    assert context_length(SimpleNamespace(args=args)) == expected


def test_context_length_of_a_loaded_model(good: Path) -> None:
    assert context_length(load(good)[0]) == CONTEXT


def test_find_models_lists_the_pair_and_the_cache(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from huggingface_hub import scan_cache_dir

    commit = "0" * 40
    repository = tmp_path / "models--org--tiny"
    write_folder(repository / "snapshots" / commit)
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text(commit)
    monkeypatch.setattr("huggingface_hub.scan_cache_dir", lambda: scan_cache_dir(tmp_path))
    found = {model.name: model for model in find_models()}
    assert list(found) == ["demo", "demo-draft", "org/tiny"]
    assert found["org/tiny"].model_type == "llama"
    assert found["org/tiny"].size > 0


def test_find_models_does_without_a_cache(monkeypatch: pytest.MonkeyPatch) -> None:
    from huggingface_hub import CacheNotFound

    def nothing() -> None:
        raise CacheNotFound("none", cache_dir="/nothing")

    monkeypatch.setattr("huggingface_hub.scan_cache_dir", nothing)
    assert [model.name for model in find_models()] == ["demo", "demo-draft"]


def test_the_end_token_ends(good: Path) -> None:
    _, tokenizer = load(good)
    assert tokenizer.eos_token_ids == {tokenizer.get_vocab()[END]}
