"""One verdict for nearly all records is said, with numbers; what tells them apart is not."""

from __future__ import annotations

import warnings
from pathlib import Path

import pytest

from mlx_spec.pipeline import collect
from mlx_spec.pipeline.flags import Flags
from mlx_spec.pipeline.stages.filter import Filter
from mlx_spec.pipeline.verdicts import Verdict, Verdicts
from tests.folders import write_folder


def verdicts(*counts: tuple[str, int, bool]) -> Verdicts:
    made = Verdicts()
    for outcome, count, harmless in counts:
        for i in range(count):
            value = 0.6 + 0.2 * i / max(1, count - 1)
            made.add(Verdict(outcome, "p(no)", value, "the question does", harmless))
    return made


@pytest.mark.parametrize(
    ("counts", "said"),
    [
        ([], None),
        ([("dropped", 9, False)], None),  # too few to say anything
        (
            [("dropped", 36, False)],
            "dropped 36 of 36; p(no) was 0.60-0.80 everywhere: the question does not separate them",
        ),
        (
            [("dropped", 38, False), ("kept", 2, True)],
            "dropped 38 of 40; p(no) was 0.60-0.80 in these: the question does not separate them",
        ),
        ([("dropped", 37, False), ("kept", 3, True)], None),
        ([("kept", 99, True), ("dropped", 1, False)], None),  # a filter may well keep nearly all
        (
            [("kept", 10, True)],
            "kept 10 of 10; p(no) was 0.60-0.80 everywhere: the question does not separate them",
        ),
    ],
)
def test_when_it_is_said(counts: list[tuple[str, int, bool]], said: str | None) -> None:
    assert verdicts(*counts).warning() == said


def test_python_is_warned_too(tmp_path: Path) -> None:
    flags = Flags(model=str(write_folder(tmp_path / "m")))
    records = [{"text": f"{i}"} for i in range(12)]
    stage = Filter(question="?", prompt_template="{{ text }}:", threshold=1e-6)
    with pytest.warns(UserWarning, match=r"^filter: dropped 12 of 12; p\(no\) was "):
        collect(stage, records, flags)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        collect(Filter(question=""), records, flags)  # no model was asked
