"""How often the stages that score are right, with a real model, on labelled texts.

    python scripts/bench_stages.py                 # the table of docs/stages.md
    python scripts/bench_stages.py --calibration none --chat
    python scripts/bench_stages.py --sets tests/data/stages_dev.jsonl

The formats that the stages use were chosen on ``stages_dev.jsonl`` and ``questions_dev.jsonl``; the
figures to report are those of the ``_heldout`` files and of the examples' snippets, on which
nothing was chosen.
"""

from __future__ import annotations

import argparse
import json
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

from mlx_spec.pipeline import collect
from mlx_spec.pipeline.backend import Models
from mlx_spec.pipeline.flags import Flags
from mlx_spec.pipeline.stage import Stage
from mlx_spec.pipeline.stages.align import Align
from mlx_spec.pipeline.stages.classify import Classify
from mlx_spec.pipeline.stages.filter import Filter

ROOT = Path(__file__).parent.parent
SNIPPETS = ROOT / "examples" / "data" / "snippets.jsonl"
HELD_OUT = ROOT / "tests" / "data" / "stages_heldout.jsonl"
QUESTIONS = ROOT / "tests" / "data" / "questions_heldout.jsonl"  # a task is a yes/no question
POLICIES = {  # what the questions of both sets ask, as a policy for align
    "Is this text about music?": "No music.",
    "Is this text about the weather?": "No weather reports.",
    "Is this text an advertisement?": "No advertising.",
    "Is this text an insult?": "No insults.",
    "Is this text written in French?": "No French.",
    "Does this text contain a number?": "No numbers.",
    "Is this text a complaint?": "No complaints.",
    "Is this text a question?": "No questions.",
    "Is this text about sports?": "No sports.",
    "Is this text about cooking?": "No cooking.",
    "Is this text about history?": "No history.",
    "Is this text written in Spanish?": "No Spanish.",
    "Does this text contain a price?": "No prices.",
    "Is this text computer code?": "No computer code.",
}
Row = dict[str, Any]
Right = Callable[[Row], bool]


def read(path: Path) -> list[Row]:
    """Records with ``task``, ``label`` and ``text``.

    The snippets are two tasks: the topics of the 32 good ones, and which of 34 advertise (the two
    scraps "ok" and "yum" are left out).
    """
    rows = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    if path == SNIPPETS:
        adverts = [row for row in rows if len(row["text"]) > 5]
        return [
            *({**row, "task": "snippets", "label": row["domain"]} for row in rows[:32]),
            *({**row, "task": "advert in snippets", "label": _advertises(row)} for row in adverts),
        ]
    return rows


def _advertises(row: Row) -> str:
    return "yes" if "!!!" in row["text"] else "no"


def questions(task: str, labels: list[str]) -> list[tuple[str, type[Stage], Row, Right]]:
    """Name, stage, options, and when an answer is right, for each thing to ask of a task."""

    def asked_kept(row: Row) -> bool:
        return (row["label"] == "yes") == row["keep"]

    def flagged(row: Row) -> bool:
        return (row["label"] == "yes") == row["flagged"]

    if task.endswith("?"):
        policy = POLICIES[task]
        return [
            (f"yes/no: {task}", Filter, {"question": task}, asked_kept),
            (f"yes/no: {policy}", Align, {"policy": policy}, flagged),
        ]
    if "advert" in task:
        words = ("information", "advertisement")
        question, policy = "Is this text an advertisement?", "No advertising."
    elif task == "insult":
        words = ("conversation", "insults")
        question, policy = "Is this text an insult?", "No insults."
    else:
        right: Right = lambda row: row["label"] == row.get("given")  # noqa: E731
        asked = Classify, {"labels": tuple(labels), "output_field": "given"}, right
        return [(f"{len(labels)} labels", *asked)]

    def kept(row: Row) -> bool:
        return (row["label"] == "no") == row["keep"]

    return [
        (f"answers {words[0]}, {words[1]}", Filter, {"answers": words}, kept),
        (
            f"answers {words[1]}, {words[0]}",
            Align,
            {"policy": policy, "answers": words[::-1]},
            flagged,
        ),
        (f"yes/no: {question}", Filter, {"question": question}, asked_kept),
        (f"yes/no: {policy}", Align, {"policy": policy}, flagged),
    ]


def main() -> None:
    """Ask everything; one line each."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--model", default="smollm2", help="as --model elsewhere")
    parser.add_argument("--sets", nargs="+", type=Path, default=[SNIPPETS, HELD_OUT, QUESTIONS])
    parser.add_argument("--only", nargs="+", help="tasks")
    parser.add_argument("--kinds-only", action="store_true", help="ask no yes or no")
    parser.add_argument("--calibration", default="content-free")
    parser.add_argument("--chat", action="store_true")
    parser.add_argument("--batch-size", type=int, default=16)
    given = parser.parse_args()
    flags = Flags(model=given.model, batch_size=given.batch_size)
    models = Models()
    print(
        "| set | records | stage | asked | right | most common label |\n|---|---|---|---|---|---|"
    )
    for path in given.sets:
        rows = read(path)
        for task in dict.fromkeys(row["task"] for row in rows):
            if given.only and task not in given.only:
                continue
            own = [row for row in rows if row["task"] == task]
            counts = Counter(row["label"] for row in own)
            most = max(counts.values()) / len(own)
            for name, kind, options, right in questions(task, list(counts)):
                if given.kinds_only and name.startswith("yes/no"):
                    continue
                stage = kind(**options, calibration=given.calibration, chat=given.chat)
                share = sum(map(right, collect(stage, own, flags, models=models))) / len(own)
                print(
                    f"| {task} | {len(own)} | {stage.kind} | {name} | {share:.2f} | {most:.2f} |",
                    flush=True,
                )


if __name__ == "__main__":
    main()
