"""Prompt cache files of windows, states and quantized caches, and files that are not whole."""

from __future__ import annotations

from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import mlx.core as mx
import pytest
from mlx_lm.generate import generate_step
from mlx_lm.models.cache import save_prompt_cache

from mlx_spec.api import stream_batch_generate
from mlx_spec.batching.read_prompt import read_prompt
from mlx_spec.cache import exchange, layout
from mlx_spec.config import (
    PLAIN_CACHES,
    BatchingConfig,
    CacheOptions,
    SamplingParams,
    SpeculationConfig,
)
from mlx_spec.errors import InvalidRequest, OutputError
from mlx_spec.model import prompt_cache
from mlx_spec.model.prompt_cache import read_prompt_cache
from tests.architectures import build
from tests.scenario import mlx_lm_greedy
from tests.test_prompt_cache import continued, of_mlx_lm

# Windows and full attention, chunks, states, states beside keys and values in one layer.
FAMILIES = ("gemma3_text", "llama4", "mamba2", "falcon_h1")
TEXT = [(5 * n * n + 3 * n) % 60 for n in range(45)]
MORE = ([7, 9], [11], [3, 5, 8, 13, 21])
PACKED = CacheOptions(kv_bits=8, kv_group_size=32)
LATE = CacheOptions(kv_bits=8, kv_group_size=32, quantized_kv_start=50)
WINDOW = CacheOptions(max_kv_size=20)


@cache
def of(family: str) -> Any:
    return build(family, wide=family == "llama")


def batching(options: CacheOptions) -> BatchingConfig:
    return BatchingConfig(batch_size=2, prefix_cache_bytes=2**26, cache=options)


def written(path: Path, family: str, options: CacheOptions = PLAIN_CACHES) -> Path:
    model = of(family)
    prompt_cache.write_prompt_cache(
        path, read_prompt(model, TEXT, family, batching(options)), model
    )
    return path


def gone_on(family: str, options: CacheOptions, path: Path | None) -> list[Any]:
    """Three texts in two rows, with drafts: behind a file, or behind nothing."""
    model = of(family)
    wanted = options if options.late else None
    cache = None if path is None else read_prompt_cache(path, model, family, wanted)
    with stream_batch_generate(
        model,
        None,
        [[*TEXT, *more] for more in MORE],
        draft_model=model,
        sampling=SamplingParams(max_tokens=16),
        speculation=SpeculationConfig(num_draft_tokens=3, adaptive=False),
        batching=batching(options if cache is None else cache.options),
    ) as stream:
        if cache is not None:
            assert cache.tokens == TEXT
            assert stream.remember(cache.tokens, cache.state) >= len(TEXT) // 16 * 16
        for _ in stream:
            pass
    return stream.result().results


def assert_read_and_alike(family: str, options: CacheOptions, path: Path) -> None:
    expected = gone_on(family, options, None)
    results = gone_on(family, options, path)
    assert [one.token_ids for one in results] == [one.token_ids for one in expected]
    least = len(TEXT) if family != "llama" or options.max_kv_size else len(TEXT) // 16 * 16
    assert all(one.reused_tokens >= least for one in results)
    assert all(one.accepted > 0 for one in results)


@pytest.mark.parametrize("family", FAMILIES)
def test_whatever_a_model_keeps(family: str, tmp_path: Path) -> None:
    """Here and in mlx-lm, which goes on with one token or with several."""
    path = written(tmp_path / "a.safetensors", family)
    assert_read_and_alike(family, PLAIN_CACHES, path)
    for more in MORE:
        own = mlx_lm_greedy(of(family), (*TEXT, *more), 16)
        assert continued(path, of(family), more, 16) == own


@pytest.mark.parametrize("options", [PACKED, LATE, WINDOW], ids=["packed", "late", "window"])
def test_caches_that_options_change(options: CacheOptions, tmp_path: Path) -> None:
    path = written(tmp_path / "a.safetensors", "llama", options)
    assert_read_and_alike("llama", options, path)
    found = read_prompt_cache(path, of("llama"), "llama").options
    assert found == (PLAIN_CACHES if options is LATE else options)  # 45 tokens of 50
    if options is LATE:
        return
    with pytest.raises(InvalidRequest, match=r"was made with .* is asked for"):
        read_prompt_cache(path, of("llama"), "llama", PLAIN_CACHES)


def test_a_text_that_is_quantized_from_its_middle_on_has_no_file(tmp_path: Path) -> None:
    late = CacheOptions(kv_bits=8, kv_group_size=32, quantized_kv_start=20)
    with pytest.raises(InvalidRequest, match="45 tokens, and quantized_kv_start=20"):
        written(tmp_path / "a.safetensors", "llama", late)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    "options", [PLAIN_CACHES, PACKED, WINDOW], ids=["plain", "packed", "window"]
)
def test_files_of_mlx_lms(options: CacheOptions, tmp_path: Path) -> None:
    """With its own options; a window that has come round does not say what it was."""
    model = of("llama")
    caches = layout.own_caches(model, options)
    for _ in generate_step(mx.array(TEXT), model, max_tokens=0, prompt_cache=caches):
        pass
    path = tmp_path / "a.safetensors"
    save_prompt_cache(str(path), caches, {"model": "llama"})
    if options is WINDOW:
        with pytest.raises(InvalidRequest, match="its first layer holds the last 19 of 45"):
            read_prompt_cache(path, model, "llama")
    else:
        assert read_prompt_cache(path, model, "llama").tokens == TEXT


def test_windows_of_mlx_lms_that_have_not_come_round(tmp_path: Path) -> None:
    model = build("gemma3_text", sliding_window=64)
    found = read_prompt_cache(of_mlx_lm(tmp_path / "a.safetensors", model, TEXT), model, "me")
    assert found.tokens == TEXT


@pytest.mark.parametrize(("family", "words"), [("gemma3_text", "the last"), ("mamba2", "states")])
def test_what_mlx_lms_files_do_not_say(family: str, words: str, tmp_path: Path) -> None:
    path = of_mlx_lm(tmp_path / "a.safetensors", of(family), TEXT)
    with pytest.raises(InvalidRequest, match=f"does not say its tokens, .*{words}.*cache-prompt"):
        read_prompt_cache(path, of(family), family)


def test_a_state_of_another_models_weights_is_refused(tmp_path: Path) -> None:
    path = written(tmp_path / "a.safetensors", "mamba2")
    with pytest.raises(InvalidRequest, match="not for me: the model has other weights"):
        read_prompt_cache(path, build("mamba2", seed=5), "me")
    with pytest.raises(InvalidRequest, match="not for me: it keeps a ArraysCache where the model"):
        read_prompt_cache(path, build("gemma3_text"), "me")


def damaged(path: Path, how: str) -> Path:
    """A file with something wrong in it."""
    data = path.read_bytes()
    if how == "cut off":
        path.write_bytes(data[:-100])
    elif how == "longer":
        path.write_bytes(data + b"more")
    else:
        arrays, notes = mx.load(str(path), return_metadata=True)
        if how == "a number changed":
            name = max(arrays, key=lambda one: arrays[one].size)
            first = mx.arange(arrays[name].size).reshape(arrays[name].shape) == 0
            arrays[name] = mx.where(first, arrays[name] + 1e-3, arrays[name])
        else:
            notes[f"0.{prompt_cache._FORMAT if how == 'newer' else prompt_cache._TOKENS}"] = "99"
        mx.save_safetensors(str(path), dict(arrays), notes)
    return path


@pytest.mark.parametrize("family", ["llama", "mamba2"])
@pytest.mark.parametrize(
    ("how", "words"),
    [
        ("cut off", "broke off"),
        ("a number changed", "its numbers are not those that were written"),
        ("longer", "has bytes that belong to nothing"),
        ("newer", "is of format 99, this mlx-spec reads up to 2"),
        ("tokens", "names no tokens"),
    ],
)
def test_files_that_are_not_whole(how: str, words: str, family: str, tmp_path: Path) -> None:
    path = damaged(written(tmp_path / "a.safetensors", family), how)
    with pytest.raises(InvalidRequest, match=words):
        read_prompt_cache(path, of(family), family)


def test_a_full_disk_leaves_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = written(tmp_path / "a.safetensors", "mamba2")
    before = path.read_bytes()

    def full(name: str, *_: Any) -> None:
        Path(name).write_bytes(b"half")
        raise RuntimeError("No space left on device")

    monkeypatch.setattr(prompt_cache, "save_prompt_cache", full)
    with pytest.raises(OutputError, match="No space left"):
        written(path, "mamba2")
    assert path.read_bytes() == before
    assert list(tmp_path.iterdir()) == [path]


def off_by_one(parts: Any) -> None:
    """Entries one place further."""
    right = exchange._last_of
    parts.setattr(exchange, "_last_of", lambda own, ring, index: right(own, ring, index - 1))


def nothing_in_its_place(patch: pytest.MonkeyPatch) -> None:
    """mlx-lm writes over an entry that is still seen."""
    form = replace(exchange._FORMS["window"], give=exchange._give_all)
    patch.setitem(exchange._FORMS, "window", form)


@pytest.mark.parametrize("plant", [off_by_one, nothing_in_its_place])
def test_planted_bugs_in_windows_are_seen(
    plant: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plant(monkeypatch)
    with pytest.raises((AssertionError, ValueError, InvalidRequest)):
        test_whatever_a_model_keeps("gemma3_text", tmp_path)
