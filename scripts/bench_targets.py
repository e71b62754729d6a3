"""Never slower, and near the best: the adaptive draft beside fixed lengths, a hostile draft, plain.

At each batch size the same real questions of all categories, at least one of each, run in every
way, in turn, round after round; figures are decoding tokens per second, ratios are medians
within a round. *again* is plain decoding once more: what it differs by is noise. *hostile* has the
draft model's own costs and numbers drawn at random and no n-grams beside it, so that nearly
nothing is guessed right. *roofline* is what the best fixed length would be worth if steps took
nothing but their passes, by the timed cost table (``bench_support/roofline``), and *reached* what
the adaptive draft makes of it.

    python scripts/bench_targets.py --prompts question.jsonl --batch 1 2 4 8 16 32 --temp 0 0.8
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from mlx_spec import BatchingConfig, SpeculationConfig, batch_generate, load
from mlx_spec.bench.comparing import common
from mlx_spec.pipeline.prompt_file import read_prompt_file

import mlx.core as mx  # isort: skip
from bench_support.results import add_save, finish, table
from bench_support.roofline import Ceiling, FixedSteps, mean_keys
from bench_support.rounds import Figures, Series, interleave, ratio
from mlx.utils import tree_map_with_path

PLAIN, AGAIN, ADAPTIVE, HOSTILE = "plain", "again", "adaptive", "hostile"
SPEED = "tokens per second"
Settings = argparse.Namespace


@dataclass(frozen=True)
class Arm:
    """One way to decode.

    Attributes:
        draft: model, None for plain decoding.
        kinds: of drafts, as `--draft` names them.
        length: a fixed draft length, 0 where it is adaptive.
    """

    draft: Any = None
    kinds: str | None = None
    length: int = 0


class Contest:
    """All arms on the same texts.

    Args:
        options: of the command line.
    """

    WARM = 8  # tokens

    def __init__(self, options: Settings) -> None:
        self.options = options
        self.model, self.tokenizer = load(options.model)
        draft = load(options.draft_model)
        kinds = options.draft
        self.arms = {PLAIN: Arm(), ADAPTIVE: Arm(draft, kinds)}
        if HOSTILE not in options.without:
            self.arms[HOSTILE] = Arm(hostile(options.draft_model), "head")
        self.arms |= {f"K={length}": Arm(draft, kinds, length) for length in options.fixed}
        if AGAIN not in options.without:
            self.arms[AGAIN] = Arm()
        self.said: dict[str, list[list[int]]] = {}
        self.steps: dict[str, FixedSteps] = {}
        self.keys = 0.0
        self.ceiling = Ceiling.of(self.model, draft[0])

    def warm(self, texts: Sequence[str], batch: int, temp: float) -> None:
        """Every arm for a few tokens: what is timed or compiled once is so afterwards."""
        for name in self.arms:
            self.run(name, texts[:batch], batch, temp, self.WARM)

    def run(
        self, name: str, texts: Sequence[str], batch: int, temp: float, tokens: int = 0
    ) -> Figures:
        """One call; its tokens are kept to be compared."""
        arm, options = self.arms[name], self.options
        tokens = tokens or options.max_tokens
        mx.clear_cache()
        made = batch_generate(
            self.model,
            self.tokenizer,
            list(texts),
            chat=True,
            draft_model=arm.draft,
            speculation=SpeculationConfig(
                enabled=arm.draft is not None,
                draft=arm.kinds,
                adaptive=not arm.length,
                num_draft_tokens=arm.length or options.num_draft_tokens,
            ),
            batching=BatchingConfig(batch_size=batch),
            max_tokens=tokens,
            temperature=temp,
            seed=1,
        )
        self.said[name] = [list(result.token_ids) for result in made.results]
        stats = made.stats
        self.steps[name] = FixedSteps.of(arm.length, stats)
        prompts = [result.prompt_tokens for result in made.results]
        self.keys = mean_keys(prompts, batch, tokens)
        return {
            SPEED: stats.generation_tokens / stats.generation_time,
            "acceptance": stats.acceptance_rate,
            "drafted": stats.drafted,
            "gain": stats.generation_tokens / stats.row_steps,
        }

    def roofline(self) -> dict[int, float]:
        """Over plain decoding, by fixed length."""
        fixed = [step for step in self.steps.values() if step.length]
        return dict(self.ceiling.over_plain(self.steps[PLAIN], fixed, self.keys))

    def same(self) -> float:
        """The least share of tokens at which an arm says what plain decoding says."""
        plain = self.said[PLAIN]
        total = sum(map(len, plain))
        return min(
            sum(common(own, other) for own, other in zip(said, plain, strict=True)) / total
            for said in self.said.values()
        )


def hostile(name: str) -> Any:
    """The draft model with its weights drawn at random; what is no weight stays."""
    model, tokenizer = load(name)
    mx.random.seed(1)

    def drawn(path: str, array: mx.array) -> mx.array:
        random = array.ndim > 1 and mx.issubdtype(array.dtype, mx.floating)
        return 0.05 * mx.random.normal(array.shape).astype(array.dtype) if random else array

    model.update(tree_map_with_path(drawn, model.parameters()))
    mx.eval(model.parameters())
    return model, tokenizer


def mixed(path: Path, categories: Sequence[str], longest: int, count: int) -> list[str]:
    """Questions, one of each category in turn, the first of each dialogue."""
    found: dict[str, list[str]] = {name: [] for name in categories}
    for one in read_prompt_file(path, "bench_targets"):
        if one.category in found and len(one.prompt) <= longest:
            found[one.category].append(one.prompt)
    columns: Iterator[tuple[str, ...]] = zip(
        *(texts for texts in found.values() if texts), strict=False
    )
    return [text for column in columns for text in column][:count]


def measure(contest: Contest, batch: int, temp: float) -> dict[str, Series]:
    """One batch size; all arms."""
    options = contest.options
    count = max(batch, len(options.categories))
    texts = mixed(options.prompts, options.categories, options.longest, count)
    methods = {name: partial(contest.run, name, texts, batch, temp) for name in contest.arms}
    contest.warm(texts, batch, temp)
    return interleave(methods, options.rounds, warm=True)


def row_of(batch: int, series: dict[str, Series], contest: Contest) -> list[str]:
    """A line of the table."""
    fixed, roofs = contest.options.fixed, contest.roofline()
    highest = max(roofs, key=roofs.__getitem__)
    plain = series[PLAIN]
    over = {name: ratio(one, plain, SPEED) for name, one in series.items()}
    best = max([f"K={length}" for length in fixed] + [PLAIN], key=over.__getitem__)
    adaptive = series[ADAPTIVE]
    return [
        str(batch),
        plain.span(SPEED),
        f"{over[ADAPTIVE]:.2f} ({adaptive.median('acceptance'):.2f}, "
        f"{adaptive.median('gain'):.2f})",
        f"{over[best]:.2f} ({best})",
        f"{ratio(adaptive, series[best], SPEED):.2f}",
        *(f"{over[name]:.2f}" if name in over else "-" for name in (HOSTILE, AGAIN)),
        f"{roofs[highest]:.2f} (K={highest})",
        f"{over[ADAPTIVE] / max(roofs[highest], 1.0):.2f}",
        f"{contest.same():.3f}",
    ]


def parse() -> Settings:
    """The command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--prompts", type=Path, required=True)
    parser.add_argument("--model", default="smollm2")
    parser.add_argument("--draft-model", default="smollm2-draft")
    parser.add_argument("--draft", default="ngram+head")
    parser.add_argument("--batch", type=int, nargs="+", default=[1, 2, 4, 8, 16, 32])
    parser.add_argument("--temp", type=float, nargs="+", default=[0.0])
    parser.add_argument("--fixed", type=int, nargs="+", default=[1, 2, 4])
    parser.add_argument("--num-draft-tokens", type=int, default=6, help="the adaptive one's most")
    parser.add_argument("--max-tokens", type=int, default=48)
    parser.add_argument("--longest", type=int, default=1200, help="characters of a question")
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--without", nargs="+", choices=[HOSTILE, AGAIN], default=[])
    parser.add_argument(
        "--categories",
        nargs="+",
        default=["writing", "reasoning", "coding", "extraction", "summarization", "translation"],
    )
    add_save(parser)
    return parser.parse_args()


def main() -> None:
    """Measure all settings; print tables and one JSON line."""
    options = parse()
    contest = Contest(options)
    records = []
    for temp in options.temp:
        rows = []
        for batch in options.batch:
            series = measure(contest, batch, temp)
            rows.append(row_of(batch, series, contest))
            print(" | ".join(rows[-1]), flush=True)
            rounds = {name: one.rounds for name, one in series.items()}
            found = {"same": contest.same(), "roofline": contest.roofline(), "keys": contest.keys}
            records.append({"batch": batch, "temp": temp, **found, "arms": rounds})
        header = ["rows", "plain tok/s", "adaptive / plain (accepted, tokens a pass of a row)"]
        header += ["best of fixed and plain", "adaptive / best", "hostile", "plain again"]
        header += ["roofline", "reached"]
        table(f"{options.draft}, T={temp}", [*header, "same tokens"], rows)
    finish(options, records)


if __name__ == "__main__":
    main()
