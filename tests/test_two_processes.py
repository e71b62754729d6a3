"""Two processes at one piece of work: the second is told so, and changes nothing."""

from __future__ import annotations

import fcntl
from pathlib import Path

import pytest

from mlx_spec.cli.main import main
from tests.folders import write_folder


def test_two_processes_do_not_train_in_one_folder(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model, prompts, out = write_folder(tmp_path / "tiny"), tmp_path / "p.txt", tmp_path / "draft"
    prompts.write_text("".join(f"{word} and more\n" for word in "abcdefghijkl"))
    work = tmp_path / "draft.training"
    work.mkdir()
    with (work / "lock").open("w") as other:
        fcntl.flock(other, fcntl.LOCK_EX)
        command = ["train-draft", "--model", str(model), "--prompts", str(prompts), str(out)]
        assert main(command) == 2
    assert f"another process works in {work}" in capsys.readouterr().err
    assert not (work / "answers.jsonl").exists()
