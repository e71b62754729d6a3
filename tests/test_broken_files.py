"""Files that are cut, corrupt or another model's: one line that names the file and what is wrong.

Each file of a folder is damaged in every way of its kind; nothing may come out but an error of ours
or, where the damage changes nothing, a model.
"""

from __future__ import annotations

import json
import random
import shutil
import struct
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import mlx.core as mx
import pytest

from mlx_spec.errors import MlxSpecError, ModelLoadError
from mlx_spec.model.files import tensor_names
from mlx_spec.model.loader import load
from tests.folders import write_folder

TENSOR = "model.layers.0.mlp.up_proj.weight"
Entry = dict[str, Any]


@pytest.fixture(scope="module")
def good(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = write_folder(tmp_path_factory.mktemp("models") / "good")
    (folder / "generation_config.json").write_text(json.dumps({"eos_token_id": 256}))
    (folder / "special_tokens_map.json").write_text(json.dumps({"eos_token": "<|end|>"}))
    return folder


@pytest.fixture
def folder(good: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(good, tmp_path / "model"))


def refused(folder: Path, words: str) -> None:
    with pytest.raises(ModelLoadError, match=words) as caught:
        load(folder)
    assert "\n" not in str(caught.value)


def rewritten(file: Path, change: Callable[[Entry], Any]) -> None:
    record = json.loads(file.read_text())
    change(record)
    file.write_text(json.dumps(record))


JSON_FILES = [
    "config.json",
    "generation_config.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
]
NO_OBJECT = {
    "empty": b"",
    "cut": b'{"eos_token_id": 25',
    "with a mark": b"\xef\xbb\xbf{}",
    "a list": b"[]",
    "null": b"null",
    "no UTF-8": b"\xff\xfe{}",
    "zeros": b"\0" * 64,
    "deep": b'{"a":' * 50_000,
}


@pytest.mark.parametrize("name", JSON_FILES)
@pytest.mark.parametrize("damage", NO_OBJECT)
def test_a_small_file_that_is_no_json_object(name: str, damage: str, folder: Path) -> None:
    (folder / name).write_bytes(NO_OBJECT[damage])
    refused(folder, rf"{name} cannot be read \(")


VALUES: list[tuple[str, str, Any, str]] = [
    ("config.json", "rope_theta", "x", "config.json has rope_theta 'x'"),
    ("config.json", "rope_theta", None, "config.json has rope_theta None"),
    ("config.json", "rope_theta", -1.0, "config.json has rope_theta -1.0"),
    ("config.json", "max_position_embeddings", 0, "max_position_embeddings 0, expected more"),
    ("config.json", "max_position_embeddings", 1.5, "config.json has max_position_embeddings 1.5"),
    ("config.json", "eos_token_id", [1, "a"], "config.json has eos_token_id"),
    ("generation_config.json", "eos_token_id", 3.7, "generation_config.json has eos_token_id 3.7"),
    ("tokenizer_config.json", "model_max_length", "x", "tokenizer_config.json has model_max"),
    ("config.json", "hidden_size", None, "config.json cannot be a model's: TypeError"),
    ("config.json", "num_hidden_layers", 1e9, "config.json cannot be a model's: TypeError"),
    ("config.json", "intermediate_size", -1, "config.json cannot be a model's"),
    ("config.json", "rms_norm_eps", 0, "config.json cannot be a model's: .*eps"),
    ("config.json", "vocab_size", 300, "the weights do not fit config.json: Expected shape"),
    ("config.json", "num_hidden_layers", 1, "the weights do not fit config.json: Received 9"),
    ("config.json", "model_type", 3, "config.json names no model_type"),
    ("tokenizer_config.json", "auto_map", 3, "the tokenizer .* cannot be read: Attr"),
    ("tokenizer_config.json", "bos_token", 3, "the tokenizer .* cannot be read: Type"),
    ("tokenizer.json", "added_tokens", "x", "the tokenizer .* cannot be read"),
    ("tokenizer.json", "model", {}, "the tokenizer .* cannot be read"),
]


@pytest.mark.parametrize(("name", "key", "value", "words"), VALUES)
def test_a_value_of_another_kind(name: str, key: str, value: Any, words: str, folder: Path) -> None:
    rewritten(folder / name, lambda record: record.update({key: value}))
    refused(folder, words)


def parts(path: Path) -> tuple[Entry, bytes]:
    raw = path.read_bytes()
    (length,) = struct.unpack("<Q", raw[:8])
    return json.loads(raw[8 : 8 + length]), raw[8 + length :]


def write_parts(path: Path, header: Any, body: bytes) -> None:
    text = json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(text)) + text + body)


def span(entry: Entry) -> int:
    begin, end = entry["data_offsets"]
    return int(end - begin)


HEADERS: dict[str, tuple[Callable[[Entry], Any], str]] = {
    "wider type": (lambda t: t.update(dtype="F32"), f"is broken: {TENSOR} is F32 of shape"),
    "unknown type": (lambda t: t.update(dtype="X9"), f"holds {TENSOR} as X9, which MLX"),
    "no type": (lambda t: t.pop("dtype"), f"entry of {TENSOR} makes no sense"),
    "no shape": (lambda t: t.pop("shape"), f"entry of {TENSOR} makes no sense"),
    "shape of words": (lambda t: t.update(shape="x"), f"entry of {TENSOR} makes no sense"),
    "negative shape": (lambda t: t.update(shape=[-1, 3]), f"entry of {TENSOR} makes no sense"),
    "larger shape": (lambda t: t.update(shape=[480, 32]), "of shape .480, 32., in 3,072 bytes"),
    "turned shape": (lambda t: t.update(shape=t["shape"][::-1]), "the weights do not fit config"),
    "flat": (lambda t: t.update(shape=[1536]), "the weights do not fit config.json"),
    "turned offsets": (lambda t: t["data_offsets"].reverse(), f"is broken: {TENSOR}"),
    "one offset": (lambda t: t["data_offsets"].pop(), f"entry of {TENSOR} makes no sense"),
    "words for offsets": (lambda t: t.update(data_offsets=["a", "b"]), "makes no sense"),
    "negative offset": (lambda t: t.update(data_offsets=[-5, 3067]), "makes no sense"),
    "over another": (lambda t: t.update(data_offsets=[0, span(t)]), "lies over another tensor"),
    "past the end": (lambda t: t.update(data_offsets=[10**6, 10**6 + span(t)]), "broke off"),
    "integers": (lambda t: t.update(dtype="I16"), f"hold {TENSOR} as int16"),
    "eight bits": (
        lambda t: t.update(dtype="F8_E4M3", shape=[48, 64]),
        "the weights do not fit config.json",
    ),
}


@pytest.mark.parametrize("damage", HEADERS)
def test_a_header_that_does_not_fit_its_file(damage: str, folder: Path) -> None:
    harm, words = HEADERS[damage]
    header, body = parts(folder / "model.safetensors")
    harm(header[TENSOR])
    write_parts(folder / "model.safetensors", header, body)
    refused(folder, words)


def test_bytes_that_belong_to_nothing(folder: Path) -> None:
    with (folder / "model.safetensors").open("ab") as file:
        file.write(b"\0" * 100)
    refused(folder, r"model\.safetensors has bytes that belong to nothing")


def test_a_tensor_that_the_index_names_and_its_file_does_not_hold(folder: Path) -> None:
    index = {"weight_map": {TENSOR: "model.safetensors", "other": "model.safetensors"}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    refused(folder, "index.json names other in model.safetensors, which does not hold it")
    (folder / "model.safetensors.index.json").write_text('{"weight_map": []}')
    refused(folder, "index.json cannot be read")


def flips(size: int, count: int) -> Iterator[tuple[int, int]]:
    draw = random.Random(7)
    return ((draw.randrange(size), 1 << draw.randrange(8)) for _ in range(count))


def test_no_flipped_bit_of_a_header_goes_unseen_or_raises_what_is_not_ours(folder: Path) -> None:
    """A name that changed is found when the model is built; here the file alone is looked at."""
    path = folder / "model.safetensors"
    raw, names = path.read_bytes(), set(tensor_names(path))
    header = 8 + struct.unpack("<Q", raw[:8])[0]
    seen = 0
    for place, bit in flips(header, 400):
        path.write_bytes(raw[:place] + bytes([raw[place] ^ bit]) + raw[place + 1 :])
        try:
            seen += set(tensor_names(path)) != names
        except MlxSpecError as error:
            seen += "model.safetensors" in str(error) and "\n" not in str(error)
    # What is left are other bytes of the spaces and of the note that the header begins with.
    assert seen > 380


def test_every_cut_is_seen(folder: Path) -> None:
    path = folder / "model.safetensors"
    raw = path.read_bytes()
    for size in {0, 1, 7, 8, 9, *range(10, len(raw), 997), len(raw) - 1}:
        path.write_bytes(raw[:size])
        with pytest.raises(ModelLoadError, match=r"model\.safetensors (is no|broke off)"):
            tensor_names(path)


def test_a_tokenizer_of_another_model(folder: Path) -> None:
    path = folder / "tokenizer.json"

    def grow(record: Entry) -> None:
        record["model"]["vocab"].update({f"zz{n}": 300 + n for n in range(9)})

    rewritten(path, grow)
    refused(folder, r"\(tokenizer\.json\) has tokens up to 308, the model 272")


def test_a_tokenizer_without_tokens(folder: Path) -> None:
    rewritten(folder / "tokenizer.json", lambda record: record["model"].update(vocab={}))
    refused(folder, "no ordinary tokens")


@pytest.mark.parametrize("end", [999_999, -1])
def test_an_end_that_is_no_token_is_said(end: int, folder: Path) -> None:
    (folder / "generation_config.json").write_text(json.dumps({"eos_token_id": end}))
    (folder / "special_tokens_map.json").unlink()  # nor does the tokenizer know one of its own
    rewritten(folder / "tokenizer_config.json", lambda record: record.pop("eos_token"))
    with pytest.warns(RuntimeWarning, match=f"end-of-sequence token {end} .* is none of"):
        load(folder)


def test_an_adapter_of_another_shape_or_kind(folder: Path, tmp_path: Path) -> None:
    adapter = tmp_path / "adapter"
    adapter.mkdir()
    settings = {"fine_tune_type": "lora", "num_layers": 1}
    settings |= {"lora_parameters": {"rank": 2, "scale": 8.0, "dropout": 0.0}}
    (adapter / "adapter_config.json").write_text(json.dumps(settings))
    weights = {"model.layers.9.self_attn.q_proj.lora_a": mx.ones((32, 2))}
    mx.save_safetensors(str(adapter / "adapters.safetensors"), weights)
    with pytest.raises(ModelLoadError, match="the adapter does not fit the model: ") as caught:
        load(folder, adapter_path=adapter)
    assert "\n" not in str(caught.value)
    settings["lora_parameters"] = 3  # type: ignore[assignment]
    (adapter / "adapter_config.json").write_text(json.dumps(settings))
    with pytest.raises(ModelLoadError, match="the adapter does not fit the model: "):
        load(folder, adapter_path=adapter)


@pytest.mark.parametrize("place", ["tokenizer_config.json", "config.json"])
def test_code_that_a_tokenizer_brings_is_not_run(
    place: str, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nor is anybody asked: transformers would, on a terminal."""
    proof = tmp_path / "ran"
    (folder / "own.py").write_text(f"open({str(proof)!r}, 'w')\nclass Own: pass\n")
    auto = {"AutoTokenizer": ["own.Own", None], "AutoConfig": "own.Own"}
    rewritten(folder / place, lambda record: record.update(auto_map=auto))
    if place == "config.json":
        rewritten(folder / "tokenizer_config.json", lambda record: record.pop("tokenizer_class"))

    def ask(*_: object) -> str:
        raise AssertionError("asked")

    monkeypatch.setattr("builtins.input", ask)
    try:
        load(folder)
    except ModelLoadError as error:
        assert "trust_remote_code" in str(error)  # noqa: PT017 (either is right)
    assert not proof.exists()
