"""Prompt caches in files, ours and mlx-lm's: each side reads both, and texts do not change."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import mlx.core as mx
import pytest
from mlx_lm.generate import generate_step
from mlx_lm.models.cache import load_prompt_cache, make_prompt_cache, save_prompt_cache

from mlx_spec import load
from mlx_spec.batching.read_prompt import first_ids, following_ids
from mlx_spec.cli.main import main
from mlx_spec.config import ChatConfig
from mlx_spec.errors import InvalidRequest
from mlx_spec.model import prompt_cache, told_tokens
from mlx_spec.model.prompt_cache import read_prompt_cache
from tests.models import make_model
from tests.scenario import mlx_lm_greedy

DOCUMENT = "A long document about rivers; it is read once and asked about many times."
ASKED = ("Which river?", "And where does it go to, in the end?", "Why?")


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
