"""What the tests of the public functions run: a tiny random model over the embedded tokenizer."""

from __future__ import annotations

from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import mlx.core as mx
from mlx.utils import tree_map
from mlx_lm.utils import load_tokenizer

import mlx_spec
from mlx_spec import (
    BatchingConfig,
    BatchResult,
    GenerationResult,
    SamplingParams,
    SpeculationConfig,
    batch_generate,
    generate,
    load,
)
from tests.models import make_model

FOLDER = Path(mlx_spec.__file__).parent / "demo_models" / "target"
PROMPTS = [
    "def read_",
    "class Stack:\n    ",
    "x",
    "import os\n\n\n",
    "Grüße 😀 an alle",
    "for i in",
]
SIX = SpeculationConfig(num_draft_tokens=6, adaptive=False)
OFF = SpeculationConfig(enabled=False)
TEMPLATE = (
    "{% for message in messages %}[{{ message.role }}] {{ message.content }}\n{% endfor %}"
    "{% if add_generation_prompt %}[assistant] {% endif %}"
)


@cache
def model(context: int = 512) -> Any:
    return make_model("llama", vocab_size=2048, max_position_embeddings=context)


@cache
def draft_model() -> Any:
    """The model with disturbed weights: agrees with it often, not always."""
    draft = make_model("llama", vocab_size=2048)
    mx.random.seed(5)
    disturbed = tree_map(
        lambda weight: weight + 0.08 * mx.random.normal(weight.shape) * mx.abs(weight).mean(),
        draft.parameters(),
    )
    draft.update(disturbed)
    mx.eval(draft.parameters())
    return draft


@cache
def tokenizer(template: str | None = None) -> Any:
    return load_tokenizer(FOLDER, {"chat_template": template} if template else None)


@cache
def pair() -> tuple[Any, Any, Any]:
    target, words = load("demo")
    return target, words, load("demo-draft")[0]


def batch(prompts: Any = PROMPTS, rows: int = 4, **options: Any) -> BatchResult:
    options = {"sampling": SamplingParams(max_tokens=20), "speculation": SIX, **options}
    return batch_generate(
        model(), tokenizer(), prompts, batching=BatchingConfig(batch_size=rows), **options
    )


def ids(text: str) -> list[int]:
    return list(tokenizer().encode(text))


def tokens_of(result: BatchResult) -> list[list[int]]:
    return [one.token_ids for one in result.results]


@cache
def truth(prompt: str, sampling: SamplingParams) -> GenerationResult:
    """Token by token, without a draft, alone, and with no stop."""
    free = replace(sampling, stop=(), stop_token_ids=(), ignore_eos=True)
    return generate(model(), tokenizer(), prompt, sampling=free)
