"""Runs every architecture that mlx-lm ships for long, and writes docs/models.md.

python scripts/architectures.py                    # all of them, some ten minutes of one core
python scripts/architectures.py gemma3 qwen3_next  # these rows of the table anew

Tiny random float32 models of each architecture's own config class, five requests in three slots,
ragged drafts of 0 to 4, joins, leaves, a preemption; compared with mlx-lm's own greedy decoding of
the same model alone, token for token (``tests/architecture_runs.py``). Windows hold 16 tokens.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from importlib.metadata import version
from pathlib import Path
from typing import Any

os.environ["MLX_SPEC_BLAS"] = "off"  # MLX's own, whose rows agree bit for bit whatever the batch
ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(ROOT))

from mlx_lm.models.cache import CacheList, make_prompt_cache  # noqa: E402

from mlx_spec.config import CacheOptions  # noqa: E402
from mlx_spec.model.support import Support, examine  # noqa: E402
from tests.architecture_runs import Outcome, Plan, not_compiled, run  # noqa: E402
from tests.architectures import UNDECODED, build, names  # noqa: E402

PAGE = ROOT / "docs" / "models.md"
LONG = Plan(tokens=(150, 26, 36, 170, 24), acceptance=0.6)  # ten windows
SHORT = [Plan(acceptance=acceptance) for acceptance in (0.0, 0.9, 1.0)]
DRAFTED = Plan(tokens=(60, 20, 26, 40, 18), draft=True)
REUSING = Plan(reusing=True)
PACKED = [Plan(caches=CacheOptions(kv_bits=bits, kv_group_size=32)) for bits in (8, 4)]
WORDS = {
    "KVCache": "full",
    "RotatingKVCache": "window",
    "ChunkedKVCache": "chunks",
    "ArraysCache": "state",
}
COLUMNS = "| architecture | caches | a pass | tokens | prefix reuse | `--kv-bits` |"
HEAD = """\
# Models

Made by `scripts/architectures.py` with mlx-lm {version}; `tests/test_architectures.py` runs each
architecture for a shorter while, keeps the verdicts in step with this table, and fails when mlx-lm
ships one that is not here.

{served} of {decoded} architectures that mlx-lm itself decodes on the machine that wrote this (it
ships {all}) say here what mlx-lm's own greedy decoding of the same model alone says, {exact} of
them token for token by construction: tiny models with random float32 weights, five requests in
three slots, rows that join and leave, one preempted, texts of ten windows of 16 tokens where there
are windows or states. Drafts are of 0 to 4 tokens of which none, 60 %, 90 % or all are right; or a
model with caches of the same kinds guesses, while steps are built ahead.

- *caches*: what its layers keep. `full`: keys and values of all tokens; `window`, `chunks`: of the
  last ones; `state`: of none, a recurrence or a convolution; with `+` side by side in one layer.
- *a pass*: how new tokens go through the model (`docs/architecture.md`): `whole`, in one call, or
  in a way that is exact and slower.
- *tokens*: `exact`; `near-ties`: one new token and several are computed in two ways, so that tokens
  that are as good as equally likely may change places (it did not happen in these runs unless a
  number says so); `refused`, and why.
- *prefix reuse*: beginnings that were kept give the same tokens, warm as cold.
- *`--kv-bits`*: 8 and 4 bits, equal to mlx-lm over its own quantized caches, or why not.

"""


def kinds(model: Any) -> str:
    """What the layers of a model keep, in words."""

    def word(own: Any) -> str:
        if isinstance(own, CacheList):
            return " + ".join(word(one) for one in own.caches)
        return WORDS.get(type(own).__name__, type(own).__name__)

    return ", ".join(dict.fromkeys(word(own) for own in make_prompt_cache(model)))


def way(support: Support) -> str:
    """How a pass goes through a model, in words."""
    return support.form.words or ("tokens as rows" if support.form.tokens_as_rows else "whole")


def verdict(support: Support, outcomes: list[Outcome]) -> str:
    """A verdict and what the runs made of it."""
    wrong = sum(len(outcome.wrong) for outcome in outcomes)
    near = sum(outcome.near for outcome in outcomes)
    if wrong:
        return f"**WRONG** in {wrong} rows"
    counted = f" ({near} rows)" if near else ""
    reason = f": {support.reason}" if support.verdict == "refused" else ""
    return support.verdict + counted + reason.replace("|", "/")


def row_of(name: str) -> tuple[str, bool]:
    """A row of the table, and whether all that it says is right."""
    model = build(name)
    support = examine(model)
    cells = [f"`{name}`", kinds(model), way(support)]
    if support.verdict == "refused":
        return "| " + " | ".join([*cells[:2], "", verdict(support, []), "", ""]) + " |", True
    first = Plan(acceptance=0.6) if cells[1] == "full" else LONG
    plain = [run(name, plan) for plan in (first, *SHORT, DRAFTED)]
    reusing = run(name, REUSING)
    cells.append(verdict(support, plain))
    warm = verdict(reusing.support, [reusing])
    same = "the same" if reusing.reused else "nothing was kept"
    cells.append(same if warm == support.verdict else warm)
    packed = [run(name, plan) for plan in PACKED]
    cells.append(verdict(packed[0].support, packed))
    wrong = [text for outcome in (*plain, reusing, *packed) for text in outcome.wrong]
    for text in wrong:
        print(f"{name}: {text}", file=sys.stderr)
    return "| " + " | ".join(cells) + " |", not wrong


def table() -> dict[str, str]:
    """The rows of the page as it is, by architecture."""
    lines = PAGE.read_text(encoding="utf-8").splitlines() if PAGE.exists() else []
    return {line.split("`")[1]: line for line in lines if line.startswith("| `")}


def verdicts(rows: dict[str, str]) -> dict[str, str]:
    """Each architecture's, by a table's rows."""
    return {name: line.split(" | ")[3].split()[0].rstrip(":") for name, line in rows.items()}


def page(rows: dict[str, str]) -> Iterator[str]:
    """The whole page."""
    said = verdicts(rows)
    decoded = [said[name] for name in rows if name not in UNDECODED]
    yield HEAD.format(
        version=version("mlx-lm"),
        all=len(rows),
        decoded=len(decoded),
        served=sum(word in ("exact", "near-ties") for word in decoded),
        exact=decoded.count("exact"),
    )
    yield f"{COLUMNS}\n{'|---' * 6}|\n"
    for name in sorted(rows, key=str.lower):
        yield rows[name] + "\n"


def main() -> None:
    """Write the page after each row, so that a long run may be cut."""
    wanted, right = sys.argv[1:] or names(), True
    with not_compiled():
        for name in wanted:
            line, well = row_of(name)
            print(line, flush=True)
            rows, right = {**table(), name: line}, right and well
            PAGE.write_text("".join(page(rows)), encoding="utf-8")
    raise SystemExit(not right)


if __name__ == "__main__":
    main()
