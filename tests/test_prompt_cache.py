"""Prompt caches in files, ours and mlx-lm's: each side reads both, and texts do not change."""

from __future__ import annotations

import copy
import json
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import mlx.core as mx
import pytest
from mlx_lm.generate import generate_step
from mlx_lm.models.cache import (
    RotatingKVCache,
    load_prompt_cache,
    make_prompt_cache,
    save_prompt_cache,
)

from mlx_spec import load
from mlx_spec.api import stream_batch_generate
from mlx_spec.batching.read_prompt import first_ids, following_ids, read_prompt
from mlx_spec.cache import exchange, layout
from mlx_spec.cli.main import main
from mlx_spec.config import (
    PLAIN_CACHES,
    BatchingConfig,
    CacheOptions,
    ChatConfig,
    SamplingParams,
    SpeculationConfig,
)
from mlx_spec.errors import InvalidRequest, OutputError
from mlx_spec.model import prompt_cache, told_tokens
from mlx_spec.model.prompt_cache import read_prompt_cache
from tests.architectures import build
from tests.chatting import write_talker
from tests.models import make_model
from tests.scenario import mlx_lm_greedy

DOCUMENT = "A long document about rivers; it is read once and asked about many times."
ASKED = ("Which river?", "And where does it go to, in the end?", "Why?")


@pytest.fixture(scope="module")
def talker(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_talker(tmp_path_factory.mktemp("models") / "talker")


def of_mlx_lm(path: Path, model: Any, tokens: list[int], name: str = "someone/model") -> Path:
    """As ``mlx_lm.cache_prompt`` does it."""
    cache = make_prompt_cache(model)
    for _ in generate_step(mx.array(tokens), model, max_tokens=0, prompt_cache=cache):
        pass
    save_prompt_cache(str(path), cache, {"model": name, "tokenizer_config": "{}"})
    return path


def continued(path: Path, model: Any, ids: list[int], count: int) -> list[int]:
    """As ``mlx_lm.generate --prompt-cache-file`` goes on."""
    cache = load_prompt_cache(str(path))
    step = generate_step(mx.array(ids), model, max_tokens=count, prompt_cache=cache)
    return [int(token) for token, _ in step]


@pytest.fixture(scope="module", params=["mlx_lm", "mlx-spec"])
def file(request: Any, talker: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("caches") / "doc.safetensors"
    if request.param == "mlx_lm":
        model, tokenizer = load(talker)
        return of_mlx_lm(path, model, first_ids(tokenizer, DOCUMENT, ChatConfig()), str(talker))
    command = ["cache-prompt", "--model", str(talker), "-p", DOCUMENT]
    assert main([*command, "--prompt-cache-file", str(path), "-q"]) == 0
    return path


def test_a_batch_goes_on_behind_it_as_mlx_lm_does(
    file: Path, talker: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Three questions in two rows, with drafts; without --model the file says which."""
    model, tokenizer = load(talker)
    command = ["generate", "--prompt-cache-file", str(file), "--json", "-m", "20", "-q"]
    command += ["--draft-model", str(talker), "--batch-size", "2", "--no-adaptive"]
    for text in ASKED:
        command += ["-p", text]
    assert main(command) == 0
    records = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [record["prompt"] for record in records] == list(ASKED)
    read = len(first_ids(tokenizer, DOCUMENT, ChatConfig())) // 16 * 16
    for record, text in zip(records, ASKED, strict=True):
        ids = following_ids(tokenizer, text, ChatConfig(), "")
        expected = continued(file, model, ids, 20)
        whole = [*first_ids(tokenizer, DOCUMENT, ChatConfig()), *ids]
        assert expected == mlx_lm_greedy(model, whole, 20)  # nothing is lost at the seam
        assert record["token_ids"] == expected[: len(record["token_ids"])]
        assert record["reused_tokens"] >= read
        assert record["accepted"] > 5


def test_the_prompt_is_the_whole_message_cut_in_two(talker: Path) -> None:
    _, tokenizer = load(talker)
    chat = ChatConfig(system_prompt="Be brief.", prefill_response="So:")
    both = [
        *first_ids(tokenizer, DOCUMENT, chat),
        *following_ids(tokenizer, ASKED[0], chat, ""),
    ]
    assert tokenizer.decode(both) == (f"<system>Be brief.<user>{DOCUMENT}{ASKED[0]}<assistant>So:")
    raw = ChatConfig(texts=False)
    assert tokenizer.decode(following_ids(tokenizer, "x", raw, "")) == "x"


@pytest.mark.parametrize("dtype", [mx.float32, mx.float16, mx.bfloat16])
def test_tokens_are_told_from_the_first_layer(dtype: mx.Dtype, tmp_path: Path) -> None:
    """mlx-lm's files name none; those of 16 bits are not what a model of 32 would keep."""
    model = make_model("qwen3")
    tokens = [(5 * n * n + 3 * n) % 64 for n in range(40)]
    rounded = copy.deepcopy(model)
    rounded.set_dtype(dtype)
    path = of_mlx_lm(tmp_path / "a.safetensors", rounded, tokens)
    found = read_prompt_cache(path, rounded, "qwen3")
    assert found.tokens == tokens
    if dtype != mx.float32:
        with pytest.raises(InvalidRequest, match=r"numbers are \w*float16, .* float32 \(--dtype"):
            read_prompt_cache(path, model, "qwen3")


def test_a_neighbours_token_is_not_taken(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A planted bug: the second half of the vocabulary is not looked at."""
    model = make_model("llama")
    tokens = [1, 2, 60, 3, 61]
    path = of_mlx_lm(tmp_path / "a.safetensors", model, tokens)
    monkeypatch.setattr(told_tokens, "model_vocabulary", lambda model: 32)
    with pytest.raises(InvalidRequest, match="2 of 5 cannot be told"):
        read_prompt_cache(path, model, "llama")


@pytest.mark.parametrize("ours", [False, True])
def test_another_models_file_is_refused(ours: bool, tmp_path: Path) -> None:
    model, other, narrow = make_model(), make_model(seed=1), make_model(num_key_value_heads=4)
    path = of_mlx_lm(tmp_path / "a.safetensors", model, list(range(20)), "the/first")
    if ours:
        prompt_cache.write_prompt_cache(path, read_prompt_cache(path, model, "the/first"), model)
    with pytest.raises(InvalidRequest, match=r"was made for the/first, not for me: .* heads"):
        read_prompt_cache(path, narrow, "me")
    words = "not for me: the model has other weights" if ours else "cannot be told"
    with pytest.raises(InvalidRequest, match=words):
        read_prompt_cache(path, other, "me")


def test_what_cannot_be_taken_over_is_said(
    talker: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "text.safetensors").write_text("no cache at all")
    command = ["generate", "--model", str(talker), "-p", "x", "--prompt-cache-file"]
    assert main([*command, str(tmp_path / "text.safetensors")]) == 2
    assert "is no prompt cache" in capsys.readouterr().err
    assert main([*command, str(tmp_path / "nowhere.safetensors")]) == 2
    assert "is no prompt cache" in capsys.readouterr().err
    made = ["cache-prompt", "--model", str(talker), "-p", "x", "--prompt-cache-file"]
    assert main([*made, "a.npz"]) == 2
    assert "expected FILE.safetensors" in capsys.readouterr().err
    assert main([*made, str(tmp_path / "no" / "a.safetensors")]) == 2
    assert "[cache-prompt]" in capsys.readouterr().err


# --- windows, states, quantized -------------------------------------------------------------

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
    patch.setattr(exchange, "_give_window", exchange._give_all)
    kind = exchange._KINDS[RotatingKVCache]
    patch.setitem(exchange._KINDS, RotatingKVCache, replace(kind, give=exchange._give_all))


@pytest.mark.parametrize("plant", [off_by_one, nothing_in_its_place])
def test_planted_bugs_in_windows_are_seen(
    plant: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plant(monkeypatch)
    with pytest.raises((AssertionError, ValueError, InvalidRequest)):
        test_whatever_a_model_keeps("gemma3_text", tmp_path)
