"""A tokenizer that thinks and calls tools: the embedded one with marks for both, and a template."""

from __future__ import annotations

import json
import shutil
from functools import cache
from pathlib import Path
from tempfile import mkdtemp
from typing import Any

from mlx_lm.utils import load_tokenizer

from mlx_spec import GenerationChunk, GenerationResult, SamplingParams, TokenLogprob
from mlx_spec.batching.detokenizers import make_detokenizer
from mlx_spec.server.protocol.served import ServedModel
from tests.api_support import FOLDER

MARKS = ("<think>", "</think>", "<tool_call>", "</tool_call>")
VOCABULARY = 2048 + len(MARKS)
TEMPLATE = (
    "{% set nl = '\\n' %}"
    "{% for t in tools or [] %}<tool>{{ t.function.name }}{{ nl }}{% endfor %}"
    "{% for m in messages %}[{{ m.role }}] "
    "{% if m.reasoning_content %}<think>{{ m.reasoning_content }}</think>{% endif %}"
    "{{ m.content }}"
    "{% for c in m.tool_calls or [] %}"
    "<tool_call>{{ c.function.name }} {{ c.function.arguments | tojson }}</tool_call>"
    "{% endfor %}{{ nl }}{% endfor %}"
    "{% if add_generation_prompt %}[assistant] {% if enable_thinking %}<think>{{ nl }}{% endif %}"
    "{% endif %}"
)


@cache
def thinking_tokenizer() -> Any:
    """Of ``VOCABULARY`` tokens; its template opens reasoning where ``enable_thinking`` is true."""
    folder = Path(mkdtemp())
    try:
        words = json.loads((FOLDER / "tokenizer.json").read_text(encoding="utf-8"))
        first = max(words["model"]["vocab"].values()) + 1
        words["added_tokens"] += [
            {"id": first + n, "content": mark, "special": False, "normalized": False}
            | dict.fromkeys(("single_word", "lstrip", "rstrip"), False)
            for n, mark in enumerate(MARKS)
        ]
        (folder / "tokenizer.json").write_text(json.dumps(words), encoding="utf-8")
        shutil.copy(FOLDER / "tokenizer_config.json", folder)
        extra = {"chat_template": TEMPLATE, "tool_parser_type": "json_tools"}
        return load_tokenizer(folder, extra)
    finally:
        shutil.rmtree(folder)


def served(tokenizer: Any = None, **more: Any) -> ServedModel:
    """A model of that tokenizer, as requests see it."""
    given = {"defaults": SamplingParams(max_tokens=64), **more}
    return ServedModel("toy", tokenizer or thinking_tokenizer(), 512, 1, **given)


def spoken(
    text: str, reason: Any = "stop", prompt: int = 5, logprobs: bool = False
) -> tuple[list[GenerationChunk], GenerationResult]:
    """A text as a model would say it: token by token, with what is needed of its figures."""
    words = thinking_tokenizer()
    ids = words.encode(text, add_special_tokens=False)
    detokenizer = make_detokenizer(words, [])
    texts = [detokenizer.add(one) for one in ids]
    if reason == "stop":
        ids, texts = [*ids, 0], [*texts, ""]
    scores = [TokenLogprob(one, -0.5, words.decode([one])) for one in ids] if logprobs else None
    chunks = [
        GenerationChunk(
            index=0,
            text=texts[place],
            token=token,
            from_draft=False,
            finish_reason=reason if place == len(ids) - 1 else None,
            prompt_tokens=prompt,
            generation_tokens=place + 1,
            logprob=scores[place] if scores else None,
        )
        for place, token in enumerate(ids)
    ]
    result = GenerationResult(
        text="".join(texts),
        token_ids=ids,
        finish_reason=reason,
        prompt_tokens=prompt,
        generation_tokens=len(ids),
        ttft=0.1,
        duration=0.2,
        drafted=9,
        accepted=7,
        reused_tokens=2,
        logprobs=scores,
    )
    return chunks, result
