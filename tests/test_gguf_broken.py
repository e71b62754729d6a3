"""Broken GGUF files: one line that names the file and what is wrong with it, and never a hang."""

from __future__ import annotations

import struct
from collections.abc import Callable
from pathlib import Path

import gguf
import mlx.core as mx
import numpy as np
import pytest

from mlx_spec import load
from mlx_spec.errors import ModelLoadError, UnsupportedModel
from mlx_spec.model.gguf.file import open_gguf
from tests.gguf_files import Q, write_gguf
from tests.gguf_metadata import add_entry


def put(at: int, data: bytes) -> Callable[[Path], None]:
    """Overwrite some bytes."""

    def change(path: Path) -> None:
        content = bytearray(path.read_bytes())
        content[at : at + len(data)] = data
        path.write_bytes(content)

    return change


def cut(share: float) -> Callable[[Path], None]:
    """Leave a part of the file, as a download that broke off."""

    def change(path: Path) -> None:
        content = path.read_bytes()
        path.write_bytes(content[: int(len(content) * share)])

    return change


def after(name: bytes, data: bytes, skip: int = 0) -> Callable[[Path], None]:
    """Overwrite what follows a name in the header."""

    def change(path: Path) -> None:
        at = path.read_bytes().index(name) + len(name) + skip
        put(at, data)(path)

    return change


HUGE = struct.pack("<Q", 1 << 60)
DAMAGE: dict[str, tuple[Callable[[Path], None], str]] = {
    "empty": (lambda path: path.write_bytes(b""), r"is no GGUF file: it is empty"),
    "another format": (put(0, b"PK\x03\x04"), r"begins with b'PK\\x03\\x04', not with b'GGUF'"),
    "a pointer": (
        lambda path: path.write_bytes(b"version https://git-lfs.github.com/spec/v1\noid sha256:0"),
        r"is a Git LFS pointer",
    ),
    "only the magic": (lambda path: path.write_bytes(b"GGUF\x03"), r"broke off: only 5 bytes"),
    "version 1": (put(4, struct.pack("<I", 1)), r"has GGUF version 1, expected 2 or 3"),
    "big-endian": (put(4, struct.pack(">I", 3)), r"is written big-endian"),
    "a million tensors": (
        put(8, struct.pack("<Q", 10**6)),
        r"1,000,000 tensors .* do not fit",
    ),
    "cut in the header": (cut(0.01), r"broke off or is broken: .* do not fit its \d+ bytes"),
    "cut in the vocabulary": (
        cut(0.05),
        r"broke off: [\d,]+ bytes are needed at least, ",
    ),
    "cut in the tensors": (cut(0.9), r"broke off: [\d,]+ bytes are needed at least"),
    "one byte short": (lambda path: path.write_bytes(path.read_bytes()[:-1]), r"broke off|padding"),
    "a name of no length": (after(b"general.architecture", HUGE, 4), r"broke off"),
    "a list without end": (after(b"tokenizer.ggml.token_type", HUGE, 8), r"broke off|broken"),
    "a kind of value that is none": (
        after(b"general.architecture", struct.pack("<I", 99)),
        r"is a broken GGUF file \(.*99.* is not a valid",
    ),
    "a name that is no text": (put(32, b"\xff\xfe"), r"is a broken GGUF file"),
    "a tensor beyond the end": (
        after(b"output_norm.weight", HUGE, 4 + 8 + 4),
        r"broke off: [\d,]+ bytes are needed",
    ),
    "a kind of tensor that is none": (
        after(b"output_norm.weight", struct.pack("<I", 77), 4 + 8),
        r"is a broken GGUF file \(.*77.* is not a valid",
    ),
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_a_damaged_file_is_refused_in_one_line(damage: str, tmp_path: Path) -> None:
    path = tmp_path / "model.gguf"
    write_gguf(path, kind=Q.Q8_0)
    harm, words = DAMAGE[damage]
    harm(path)
    if damage == "one byte short" and intact(path):
        pytest.skip("the last bytes only fill the file up")
    with pytest.raises(ModelLoadError, match=words) as caught:
        load(path)
    assert f"[load] {path}: model.gguf" in str(caught.value)
    assert "\n" not in str(caught.value)


def intact(path: Path) -> bool:
    try:
        open_gguf(path)
    except ModelLoadError:
        return False
    return True


def test_a_file_cut_anywhere_is_refused(tmp_path: Path) -> None:
    """Nothing is read past the end, and nothing is made up for it."""
    path = tmp_path / "model.gguf"
    write_gguf(path, kind=Q.Q4_0)
    content = path.read_bytes()
    for length in np.linspace(0, len(content) - 64, 60).astype(int):
        path.write_bytes(content[:length])
        with pytest.raises(ModelLoadError, match=r"model\.gguf"):
            open_gguf(path)


@pytest.mark.parametrize(
    ("name", "value", "words"),
    [
        ("llama.block_count", None, r"model\.gguf has no llama\.block_count in its metadata"),
        ("llama.block_count", 3, r"model\.gguf lacks blk\.2\."),
        ("llama.block_count", 1 << 30, r"has 1,073,741,824 layers and 21 tensors"),
        ("llama.block_count", 1, r"holds blk\.1\.attn_k\.weight, .* and \d+ more, which mlx-lm's"),
        ("llama.embedding_length", 64, r"is 272 x 32, by the metadata it should be 272 x 64"),
        ("llama.attention.head_count_kv", [2, 1], r"has layers of different shape"),
        ("llama.attention.value_length", 4, r"has keys and values of different length"),
        ("llama.rope.dimension_count", 4, r"turns 4 of a head's 8 numbers"),
        ("llama.context_length", None, r"no llama\.context_length"),
        ("general.architecture", None, r"no general\.architecture"),
    ],
)
def test_metadata_that_does_not_fit_is_named(
    name: str, value: object, words: str, tmp_path: Path
) -> None:
    write_gguf(tmp_path / "model.gguf", metadata={name: value})
    with pytest.raises((ModelLoadError, UnsupportedModel), match=words):
        load(tmp_path / "model.gguf")


PARTS = 3


def write_parts(folder: Path) -> mx.array:
    """A model in three files, as gguf-split writes it; its logits."""
    prompt = mx.array([[1, 2, 3]])
    wanted = write_gguf(folder / "whole.gguf")(prompt)
    reader = gguf.GGUFReader(folder / "whole.gguf")
    values = {name: field.contents() for name, field in reader.fields.items() if "." in name}
    for number in range(PARTS):
        path = folder / f"model-{number + 1:05}-of-{PARTS:05}.gguf"
        writer = gguf.GGUFWriter(path, "llama")
        split = {"split.no": number, "split.count": PARTS}
        split["split.tensors.count"] = len(reader.tensors)
        for name, value in {**(values if number == 0 else {}), **split}.items():
            if not name.startswith(("general.architecture", "GGUF.")):
                add_entry(writer, name, value)
        for tensor in reader.tensors[number::PARTS]:
            writer.add_tensor(tensor.name, np.array(tensor.data), raw_dtype=tensor.tensor_type)
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
        writer.close()
    (folder / "whole.gguf").unlink()
    return wanted


@pytest.mark.parametrize("number", [1, 3])
def test_a_model_in_parts_is_one_whichever_is_named(number: int, tmp_path: Path) -> None:
    wanted = write_parts(tmp_path)
    model, _ = load(tmp_path / f"model-{number:05}-of-00003.gguf")
    assert mx.array_equal(model(mx.array([[1, 2, 3]])), wanted)


def test_parts_that_are_missing_or_renamed_are_named(tmp_path: Path) -> None:
    write_parts(tmp_path)
    first = tmp_path / "model-00001-of-00003.gguf"
    (tmp_path / "model-00002-of-00003.gguf").rename(tmp_path / "kept")
    with pytest.raises(ModelLoadError, match=r"of which model-00002-of-00003\.gguf is missing"):
        load(first)
    (tmp_path / "kept").write_bytes(first.read_bytes())
    (tmp_path / "kept").rename(tmp_path / "model-00002-of-00003.gguf")
    with pytest.raises(ModelLoadError, match=r"holds .*, and so does another part"):
        load(first)
    first.rename(tmp_path / "first.gguf")
    with pytest.raises(ModelLoadError, match=r"first\.gguf is one of 3 parts of a model"):
        load(tmp_path / "first.gguf")


def test_lists_are_read_as_the_package_reads_them(tmp_path: Path) -> None:
    """The loader's reader takes them at once: every value must be the package's own."""
    lists = {
        "llama.of_floats": [0.5, -1.25, 3.0],
        "llama.of_texts": ["", "a", "日本語", " two words "],
        "llama.of_booleans": [True, False],
        "llama.of_numbers": [1, -2, 3],
    }
    write_gguf(tmp_path / "model.gguf", metadata=lists)
    fields = gguf.GGUFReader(tmp_path / "model.gguf").fields
    metadata = open_gguf(tmp_path / "model.gguf").metadata
    assert metadata == {name: field.contents() for name, field in fields.items()}
    assert lists.items() <= metadata.items()
