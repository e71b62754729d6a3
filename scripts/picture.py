"""Draws docs/picture.svg, what mlx-spec does in one picture, from a run that was recorded.

    python scripts/picture.py             # from docs/picture.json
    python scripts/picture.py --record    # first run it again: SmolLM2, n-grams and its draft head

Lines are the rows of the batch, columns the passes of the model, and each word is a token that it
wrote then. Drafts are of a fixed length, so that the picture does not depend on a machine's speed.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator
from html import escape
from pathlib import Path
from typing import Any

DOCS = Path(__file__).parent.parent / "docs"
ROWS, GUESSES = 3, 3
PROMPTS = (
    "What is 2 + 2?",
    "What is a tuple in Python?",
    "Repeat this text: The library opens at nine.",
    "Why is the sky blue?",
)
# Pixels: of labels, a pass, a token, a row, and above the rows; passes that have room.
LABEL, PASS, TOKEN, ROW, TOP, MOST = 140, 84, 19, 88, 84, 9
STYLE = """
  text { font: 13px system-ui, -apple-system, "Segoe UI", Helvetica, Arial, sans-serif }
  text { fill: #1f2937 } .small { font-size: 12px; fill: #4b5563 }
  .title { font-size: 15px; font-weight: 600 } .card { fill: #ffffff; stroke: #d1d5db }
  .band { fill: #f3f4f6 } .own { fill: #d9dde3 } .ngram { fill: #99f6e4 } .head { fill: #e4d4fb }
  @media (prefers-color-scheme: dark) {
    text { fill: #e5e7eb } .small { fill: #a3abb8 } .card { fill: #111827; stroke: #374151 }
    .band { fill: #1c2534 } .own { fill: #414b5c } .ngram { fill: #0f766e } .head { fill: #6b3fa0 }
  }
"""
LEGEND = {
    "own": "the model's own choice",
    "ngram": "guessed by n-grams, and right",
    "head": "guessed by a draft head, and right",
}


def record() -> dict[str, Any]:
    """A batch of more prompts than rows, and what each pass gave each row."""
    from mlx_spec import BatchingConfig, SpeculationConfig, load, stream_batch_generate

    model, tokenizer = load("smollm2")
    rows: list[dict[str, Any]] = [{"prompt": text, "passes": []} for text in PROMPTS]
    stream = stream_batch_generate(
        model,
        tokenizer,
        list(PROMPTS),
        chat=True,
        draft_model=load("smollm2-draft"),
        speculation=SpeculationConfig(draft="ngram+head", num_draft_tokens=GUESSES, adaptive=False),
        batching=BatchingConfig(batch_size=ROWS),
        max_tokens=24,
    )
    for chunk in stream:
        row = rows[chunk.index]
        # A pass ends with a token of the model's own: the one behind the guesses that stood.
        if not row["passes"] or row["passes"][-1][-1]["by"] == "own":
            begun = [one["first"] + len(one["passes"]) for one in rows if one["passes"]]
            row.setdefault("first", max(begun, default=1) - 1)
            row["passes"].append([])
        row["passes"][-1].append({"text": chunk.text, "by": chunk.drafter or "own"})
    return {"rows": rows}


def draw(rows: list[dict[str, Any]]) -> str:
    """The picture, as SVG."""
    shown = min(MOST, max(row["first"] + len(row["passes"]) for row in rows))
    width, height = LABEL + shown * PASS + 16, TOP + ROWS * ROW + 44
    lines = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" role="img">',
        "<title>Rows of a batch, pass by pass</title>",
        f"<desc>{escape(_words(rows, shown))}</desc>",
        f"<style>{STYLE}</style>",
        f'<rect class="card" x="0.5" y="0.5" width="{width - 1}" height="{height - 1}" rx="10"/>',
        _text(16, 26, "One batch, and a draft for every row of it", "title"),
        *_legend(),
        *(_text(_left(n) + 2, TOP - 8, f"pass {n + 1}", "small") for n in range(shown)),
        *_rows(rows, shown, width),
        _text(16, height - 16, _words(rows, shown), "small"),
        "</svg>",
    ]
    return "\n".join(lines) + "\n"


def _words(rows: list[dict[str, Any]], shown: int) -> str:
    passes = [one for row in rows for one in row["passes"][: max(0, shown - row["first"])]]
    tokens = sum(len(one) for one in passes)
    return (
        f"{tokens} tokens in {shown} passes of the model. Without guesses a row gains one token a "
        "pass. The texts are the same, token for token."
    )


def _legend() -> Iterator[str]:
    left = 16
    for kind, words in LEGEND.items():
        yield f'<rect class="{kind}" x="{left}" y="40" width="14" height="14" rx="3"/>'
        yield _text(left + 20, 52, words, "small")
        left += 48 + round(6.3 * len(words))


def _rows(rows: list[dict[str, Any]], shown: int, width: int) -> Iterator[str]:
    ends = [0] * ROWS  # the pass from which each row of the batch is free
    for number in range(ROWS):
        top = TOP + number * ROW
        yield f'<rect class="band" x="8" y="{top}" width="{width - 16}" height="{ROW - 6}" rx="6"/>'
    for row in rows:
        place = next(n for n, end in enumerate(ends) if end <= row["first"])
        joins, ends[place] = ends[place] > 0, row["first"] + len(row["passes"])
        top = TOP + place * ROW
        if joins:
            yield _text(_left(row["first"]) + 2, top + 14, f"joins: {row['prompt']}", "small")
        else:
            yield from _label(row["prompt"], top)
        for number, tokens in enumerate(row["passes"], start=row["first"]):
            if number < shown:
                yield from _pass(tokens, _left(number), top + (18 if joins else 4))


def _label(prompt: str, top: int) -> Iterator[str]:
    """In lines of some characters."""
    lines = [""]
    for word in prompt.split():
        if len(lines[-1]) + len(word) > 15:
            lines.append("")
        lines[-1] = f"{lines[-1]} {word}".strip()
    for number, line in enumerate(lines):
        yield _text(16, top + 24 + 17 * number, line)


def _pass(tokens: list[dict[str, str]], left: int, top: int) -> Iterator[str]:
    for number, token in enumerate(tokens):
        y = top + number * TOKEN
        yield (
            f'<rect class="{token["by"]}" x="{left}" y="{y}" width="{PASS - 8}" '
            f'height="{TOKEN - 2}" rx="4"/>'
        )
        yield _text(left + 6, y + 13, token["text"].strip() or ("␣" if token["text"] else "end"))


def _left(number: int) -> int:
    return LABEL + number * PASS


def _text(x: int, y: int, words: str, kind: str = "") -> str:
    style = f' class="{kind}"' if kind else ""
    return f'<text x="{x}" y="{y}"{style}>{escape(words)}</text>'


def main() -> None:
    parser = argparse.ArgumentParser(description="Draws docs/picture.svg.")
    parser.add_argument("--record", action="store_true", help="run the batch again")
    recorded = DOCS / "picture.json"
    if parser.parse_args().record:
        recorded.write_text(json.dumps(record(), indent=1, ensure_ascii=False) + "\n", "utf-8")
    rows = json.loads(recorded.read_text(encoding="utf-8"))["rows"]
    (DOCS / "picture.svg").write_text(draw(rows), encoding="utf-8")


if __name__ == "__main__":
    main()
