"""Turns of a talk with windows and states: what was read before is not read again, by default."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from contextlib import closing
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from mlx_spec import generate, load
from mlx_spec.batching.borders import find_border
from mlx_spec.batching.generator import BatchedMLXGenerator
from mlx_spec.batching.messages import chat_ids
from mlx_spec.config import BatchingConfig, SamplingParams, SpeculationConfig
from mlx_spec.decoding.shared_prefixes import SharedPrefixes
from mlx_spec.sequence import Sequence
from tests.architectures import write_architecture
from tests.chatting import TEMPLATE
from tests.servers import CHAT, asgi_client, open_toy
from tests.test_chat_talk import Heard

# Windows and full attention, states alone, states and full attention.
FAMILIES = ("gemma3_text", "mamba2", "lfm2")
SAID = ("Name a river, please.", "Another one?", "Is that all, or are there some more of them?")
REASONS = TEMPLATE.replace("<assistant>{% endif", "<assistant><think>{% endif")


def write(folder: Path, family: str, template: str = TEMPLATE) -> Path:
    write_architecture(folder, family, max_position_embeddings=2048, sliding_window=24)
    (folder / "chat_template.jinja").write_text(template)
    return folder


@pytest.fixture(scope="module", params=FAMILIES)
def talker(request: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write(tmp_path_factory.mktemp("models") / request.param, request.param)


@pytest.fixture(scope="module")
def reasoner(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Opens its reasoning in a prompt, and leaves that out later."""
    return write(tmp_path_factory.mktemp("models") / "reasoner", "lfm2", REASONS)


@pytest.fixture(scope="module")
def mixed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """States and full attention."""
    return write(tmp_path_factory.mktemp("models") / "mixed", "lfm2")


@pytest.fixture
def heard(talker: Path) -> Iterator[Heard]:
    with closing(Heard(talker)) as made:
        yield made


def alone(folder: Path, said: tuple[str, ...]) -> list[str]:
    """What the model answers to these turns, without drafts and caches."""
    model, tokenizer = load(folder)
    messages: list[dict[str, str]] = []
    answers = []
    for text in said:
        messages.append({"role": "user", "content": text})
        answers.append(generate(model, tokenizer, messages, max_tokens=24).text)
        messages.append({"role": "assistant", "content": answers[-1]})
    return answers


def turns(heard: Heard, said: tuple[str, ...] = SAID) -> tuple[list[int], list[int]]:
    """Tokens of each turn's prompt, and how many of them were there."""
    read, reused = [], []
    for text in said:
        heard.say(text)
        read.append(heard.last.prompt_tokens)
        reused.append(heard.last.reused_tokens)
    return read, reused


def test_short_turns_of_a_chat_are_read_once(talker: Path, heard: Heard) -> None:
    """None is as long as a piece: without a copy at each prompt's end nothing was reused."""
    read, reused = turns(heard)
    assert read[-1] < 256
    assert reused[0] == 0
    for before, again in zip(read, reused[1:], strict=False):
        assert again >= before - 1
    assert heard.texts[1::2] == alone(talker, SAID)
    assert heard.speaker.stats().accepted > 20


def test_where_templates_change_what_was_said_the_messages_are_kept(reasoner: Path) -> None:
    with closing(Heard(reasoner)) as heard:
        read, reused = turns(heard)
        for before, again in zip(read, reused[1:], strict=False):
            assert again == before - len("<think>")
        assert heard.texts[1::2] == alone(reasoner, SAID)


def test_where_a_turn_parts_from_the_next(mixed: Path) -> None:
    _, tokenizer = load(mixed)
    messages = [{"role": "user", "content": "Hi"}]
    ids = chat_ids(tokenizer, messages, "")
    find = partial(find_border, tokenizer, messages, ids=ids)
    assert find({"add_generation_prompt": True}) is None
    reasoning = {"add_generation_prompt": True, "chat_template": REASONS}
    assert find(reasoning) == len("<user>Hi<assistant>")
    assert find({"chat_template": "{{ raise_exception('no') }}"}) is None


def test_two_turns_at_a_server(talker: Path) -> None:
    """Of several talks at once, with drafts, as flags are by default."""
    target = load(talker)

    async def ask(service: Any) -> list[list[dict[str, Any]]]:
        async with asgi_client(service) as client:
            talks = [[{"role": "user", "content": f"{place}: {SAID[0]}"}] for place in range(3)]
            answers = []
            for text in SAID[1:]:
                asked = [{"messages": talk, "max_tokens": 16} for talk in talks]
                got = await asyncio.gather(*(client.post(CHAT, json=one) for one in asked))
                answers.append([one.json() for one in got])
                for talk, one in zip(talks, answers[-1], strict=True):
                    talk.append(one["choices"][0]["message"])
                    talk.append({"role": "user", "content": text})
            return answers

    with open_toy(target=target, draft=target, prefix_cache_bytes=2**30) as service:
        first, second = asyncio.run(ask(service))
    with open_toy(target=target, prefix_cache_bytes=0) as service:
        cold = asyncio.run(ask(service))
    for one, other in zip([*first, *second], [*cold[0], *cold[1]], strict=True):
        assert one["choices"] == other["choices"]
    for before, after in zip(first, second, strict=True):
        known = after["usage"]["prompt_tokens_details"]["cached_tokens"]
        assert known >= before["usage"]["prompt_tokens"] - 1
        assert after["usage"]["completion_tokens_details"]["accepted_prediction_tokens"] > 0


def test_a_talk_of_many_turns_keeps_to_its_bytes(mixed: Path) -> None:
    """Room for about two turns' copies: the last one is there at every turn, nothing is beyond."""
    with closing(Heard(mixed)) as plenty:
        turns(plenty, SAID[:1])
        each = plenty.speaker._generator.stats().kv.bytes_prefix // 2  # target and draft
    with closing(Heard(mixed, prefix_cache_bytes=5 * each)) as heard:
        before = 0
        for turn in range(6):
            (read,), (reused,) = turns(heard, SAID[1:2])
            assert heard.speaker._generator.stats().kv.bytes_prefix <= 2 * 5 * each
            if turn in (1, 2):
                assert reused >= before - 1
            before = read


def together(
    model: Any, prompts: list[list[int]], stops: tuple[int, ...] = (), **options: Any
) -> list[Any]:
    """Texts, and those that go on behind them."""
    limit = SamplingParams(max_tokens=12, stop_token_ids=stops)
    with BatchedMLXGenerator(
        model,
        None,
        draft_model=model,
        batching=BatchingConfig(batch_size=3, batch_timeout=0.02, block_size=4, **options),
        speculation=SpeculationConfig(num_draft_tokens=3, adaptive=False),
    ) as generator:
        first = generator.generate(prompts, limit)
        said = zip(prompts, first, strict=True)
        longer = [[*prompt, *one.token_ids, 5, 7, 9] for prompt, one in said]
        return [*first, *generator.generate(longer, limit)]


def of_another_end(patch: pytest.MonkeyPatch) -> None:
    """What was read one token less of is said to be the prompt."""
    right = SharedPrefixes.note

    def note(self: Any, sequence: Sequence, slot: int, seen: int, *, done: bool) -> None:
        if done and not self._pool.sliceable:
            text = self._text(sequence).until(seen - 1)
            self._described += self._cache.store(text, self._pool, slot)
        else:
            right(self, sequence, slot, seen, done=done)

    patch.setattr(SharedPrefixes, "note", note)
    patch.setattr(SharedPrefixes, "keep_end", lambda *_: None)


def ended_later(patch: pytest.MonkeyPatch) -> None:
    """An answer's last token is taken for read."""
    right = SharedPrefixes.keep_end
    patch.setattr(SharedPrefixes, "keep_end", lambda *a: right(*a[:-1], a[-1] + 1))


def go_on(folder: Path) -> tuple[list[list[int]], list[Any], list[Any]]:
    """Five texts in three rows, each gone on with: prompts, cold results and warm ones."""
    model, _ = load(folder)
    prompts = [[(7 * i + 3 * n + n * n) % 250 for n in range(9 + 6 * i)] for i in range(5)]
    return prompts, together(model, prompts), together(model, prompts, prefix_cache_bytes=2**24)


def test_rows_go_on_from_where_they_ended(talker: Path) -> None:
    prompts, cold, warm = go_on(talker)
    assert [one.token_ids for one in warm] == [one.token_ids for one in cold]
    # Answers are known, too, but for the last token, which nothing has read.
    for one, prompt in zip(warm[5:], prompts, strict=True):
        assert one.reused_tokens == len(prompt) + 11
    assert all(one.accepted > 0 for one in warm)


def test_rows_that_end_among_accepted_guesses(mixed: Path) -> None:
    """What the slot holds beyond such an end is nobody's, and goes nowhere."""
    model, _ = load(mixed)
    prompts, cold, _ = go_on(mixed)
    stops = tuple(one.token_ids[4 + place % 3] for place, one in enumerate(cold[:5]))
    cold = together(model, prompts, stops)
    warm = together(model, prompts, stops, prefix_cache_bytes=2**24)
    assert {len(one.token_ids) for one in cold[:5]} > {5}
    assert [one.token_ids for one in warm] == [one.token_ids for one in cold]
    known = [one.reused_tokens - len(p) for one, p in zip(warm[5:], prompts, strict=True)]
    assert min(known) >= -1
    assert max(known) > 0


@pytest.mark.parametrize("plant", [of_another_end, ended_later])
def test_planted_bugs_are_seen(plant: Any, mixed: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    plant(monkeypatch)
    _, cold, warm = go_on(mixed)
    assert [one.token_ids for one in warm] != [one.token_ids for one in cold]
