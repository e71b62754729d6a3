"""``collect``: a stage over records in memory; and how a notebook is told how far it is."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from mlx_spec.errors import InvalidRequest
from mlx_spec.pipeline import collect
from mlx_spec.pipeline.backend import Models
from mlx_spec.pipeline.flags import Flags
from mlx_spec.pipeline.progress import NotebookLine
from mlx_spec.pipeline.stage_runner import Tally
from mlx_spec.pipeline.stages import Classify, GenerateText
from mlx_spec.results import GenerationStats
from tests.folders import byte_vocabulary, write_folder


def test_results_are_in_order_and_a_bad_record_costs_itself_only(tmp_path: Path) -> None:
    flags = Flags(model=str(write_folder(tmp_path / "model")), max_tokens=4, batch_size=3)
    models, seen = Models(), []

    def watch(tally: Tally, stats: Callable[[], GenerationStats]) -> None:
        seen.append(tally.written)

    records = [{"text": f"record {i}", "n": i} for i in range(9)]
    records[4] = {"n": 4}
    rows = collect(GenerateText(), records, flags, models=models, watch=watch)
    assert [row["n"] for row in rows] == list(range(9))
    assert [row["n"] for row in rows if "error" in row] == [4]
    assert all(row["_generation_tokens"] == 4 for row in rows if "error" not in row)
    assert seen[-1] == 9
    assert seen == sorted(seen)
    # The same again, and the records were not changed.
    assert collect(GenerateText(), records, flags, models=models) == rows
    assert records[0] == {"text": "record 0", "n": 0}


def test_options_may_be_given_as_keywords_and_progress_asked_for(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """What a notebook writes, with public names only."""
    monkeypatch.setattr("mlx_spec.pipeline.progress._LOG", 0.0)
    model = str(write_folder(tmp_path / "model"))
    records = [{"text": "x"}, {"text": "y"}]
    rows = collect(GenerateText(), records, model=model, max_tokens=3, progress=True)
    assert [row["_generation_tokens"] for row in rows] == [3, 3]
    assert "mlx-spec: generate: 2/2 records" in capsys.readouterr().err
    with pytest.raises(InvalidRequest, match=r"'max_token'.*did you mean 'max_tokens'"):
        collect(GenerateText(), records, max_token=3)
    with pytest.raises(InvalidRequest, match="num_draft_tokens=-1"):
        collect(GenerateText(), records, num_draft_tokens=-1)


def test_chat_options_and_end_tokens_reach_the_records(tmp_path: Path) -> None:
    """Stops flags that only ``generate`` heeds."""
    folder = write_folder(tmp_path / "chat")
    template = "{% for m in messages %}<{{ m.role }}>{{ m.content }}{% endfor %}"
    (folder / "chat_template.jinja").write_text(template)
    records = [{"prompt": "hi"}]
    options: dict[str, Any] = {"model": str(folder), "max_tokens": 6, "ignore_eos": True}
    (row,) = collect(GenerateText(), records, **options, prefill_response="So")
    assert row["_prompt_tokens"] == len("<user>hi<assistant>So")
    (text,) = {row["output"] for row in collect(GenerateText(), records, **options)}
    first = str(byte_vocabulary()[text[0]])
    (row,) = collect(GenerateText(), records, **options, extra_eos_token=(first,))
    assert (row["_generation_tokens"], row["_finish_reason"]) == (1, "stop")


def test_the_public_names_of_pipelines() -> None:
    import mlx_spec.pipeline as public

    assert list(public.__all__) == sorted(public.__all__)
    for name in public.__all__:
        assert getattr(public, name).__name__ == name
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        public.nothing  # noqa: B018


def test_a_stage_that_scores(tmp_path: Path) -> None:
    flags = Flags(model=str(write_folder(tmp_path / "model")))
    stage = Classify(labels=("a", "b"), prompt_template="{{ text }}:")
    rows = collect(stage, [{"text": "x"}, {"text": "y"}], flags)
    assert all(sum(row["scores"].values()) > 0.999 for row in rows)


def test_a_notebook_s_line_is_html_that_changes(monkeypatch: pytest.MonkeyPatch) -> None:
    shown: list[str] = []

    class Handle:
        def update(self, page: Any) -> None:
            shown.append(page.data)

    def display(page: Any, display_id: bool) -> Handle:
        shown.append(page.data)
        return Handle()

    monkeypatch.setattr("IPython.display.display", display)
    line = NotebookLine()
    task = line.add_task("<classify>", total=4, figures="")
    line.start()
    line.update(task, completed=3, figures="2 items/s")
    assert '<progress value="0" max="4">' in shown[0]
    assert shown[1].startswith("<div>&lt;classify&gt; ")
    assert '<progress value="3" max="4"></progress> 3/4 2 items/s' in shown[1]
    endless = NotebookLine()
    endless.add_task("stdin", total=None, figures="")
    endless.start()
    assert shown[-1] == "<div>stdin 0 </div>"
