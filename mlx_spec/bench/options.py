"""``BenchOptions``: what ``mlx-spec bench`` measures, and for how long. Imports no mlx."""

from __future__ import annotations

from collections.abc import Sequence as Seq
from dataclasses import dataclass
from functools import partial

from mlx_spec.errors import InvalidRequest
from mlx_spec.load_config import WeightQuantization
from mlx_spec.pipeline.options import option

OTHERS = ("mlx-lm",)
PLAIN_WEIGHTS = "none"  # of --quantize: the weights as they are

_models = partial(option, group="Models")
_drafts = partial(option, group="What is compared")
_grid = partial(option, group="How much is measured")


@dataclass(frozen=True)
class BenchOptions:
    """What is compared, where, and for how long.

    Raises:
        InvalidRequest: a value outside its range, or two that exclude each other.
    """

    draft_model: tuple[str, ...] = _models(
        (),
        "A draft to try: a smaller model of the same tokenizer, or a head made for the model; "
        "repeatable.",
        metavar="NAME",
    )
    quantize: tuple[str, ...] = _models(
        (),
        "Measure the model with its weights quantized, too: none,4,8 (or as --quantize elsewhere).",
        "--q-bits",
        metavar="BITS,...",
        words=True,
    )
    draft: tuple[str, ...] = _drafts(
        (),
        "Further ways to draft, each as --draft elsewhere: ngram,self,ngram+model. Default: ngram, "
        "beside the draft models.",
        metavar="KIND,...",
        words=True,
    )
    compare: tuple[str, ...] = _drafts(
        (),
        "Run mlx-lm beside: its batch_generate, and its own speculation one prompt at a time.",
        metavar="mlx-lm",
        words=True,
    )
    prompts: str | None = _grid(
        None,
        "Your prompts: lines of text, or JSON lines, CSV or Parquet with prompt, text or messages, "
        "and perhaps category. Default: built-in ones of four kinds.",
        metavar="FILE",
    )
    batch_sizes: tuple[str, ...] = _grid(
        (),
        "Prompts decoded together.  [default: of 1,2,4,8,16 what fits into the time]",
        metavar="N,...",
        words=True,
    )
    prompt_lengths: tuple[str, ...] = _grid(
        (), "Of the built-in prompts, in tokens.  [default: 128]", metavar="N,...", words=True
    )
    max_tokens: int | None = _grid(
        None, "Tokens to generate, each prompt.  [default: 64, or what fits]", "-m"
    )
    rounds: int | None = _grid(
        None, "Times that everything is run, in turn.  [default: 5, or what fits]"
    )
    minutes: float = _grid(
        2.0, "What is not given is cut down until all of it takes about so long."
    )
    quick: bool = _grid(False, "Two batch sizes and short texts, in half a minute or so.")
    full: bool = _grid(False, "All batch sizes, prompts of 16 to 2,048 tokens, however long it is.")

    def __post_init__(self) -> None:
        if self.quick and self.full:
            raise InvalidRequest("[bench] --quick and --full given; one says how much")
        if self.prompts is not None and self.prompt_lengths:
            raise InvalidRequest(
                "[bench] --prompt-lengths is for the built-in prompts; those of --prompts "
                f"{self.prompts} are as long as they are"
            )
        for name in self.compare:
            if name not in OTHERS:
                raise InvalidRequest(f"[bench] --compare {name!r}, expected {' or '.join(OTHERS)}")
        for option_name, value in (("max-tokens", self.max_tokens), ("rounds", self.rounds)):
            if value is not None and value < 1:
                raise InvalidRequest(f"[bench] --{option_name} {value}, expected at least 1")
        if not 0 < self.minutes < float("inf"):
            raise InvalidRequest(f"[bench] --minutes {self.minutes}, expected above 0")
        assert self.batches is not None
        assert self.lengths is not None
        assert self.weights

    @property
    def batches(self) -> tuple[int, ...]:
        """``batch_sizes`` as numbers, ascending; none where none is given."""
        return _numbers("batch-sizes", self.batch_sizes)

    @property
    def lengths(self) -> tuple[int, ...]:
        """``prompt_lengths`` as numbers, ascending."""
        return _numbers("prompt-lengths", self.prompt_lengths)

    @property
    def weights(self) -> tuple[str | None, ...]:
        """What the model's weights are made, one after the other; None for as they are."""
        found = []
        for word in dict.fromkeys(self.quantize):
            if word != PLAIN_WEIGHTS:
                WeightQuantization.of(word)
            found.append(None if word == PLAIN_WEIGHTS else word)
        return tuple(found) or (None,)


def _numbers(name: str, words: Seq[str]) -> tuple[int, ...]:
    """Whole numbers from 1.

    Raises:
        InvalidRequest: one of them is none.
    """
    for word in words:
        if not (word.isascii() and word.isdigit() and int(word)):
            raise InvalidRequest(f"[bench] --{name} {','.join(words)}, expected numbers: 1,4,16")
    return tuple(sorted({int(word) for word in words}))
