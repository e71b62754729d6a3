"""What a shell completes: commands, options, models, drafters, stages; and nothing heavy for it."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from mlx_spec.cli.completion import draft_kinds, model_names
from mlx_spec.cli.main import main


def completed(*words: str, folder: Path, **environment: str) -> list[str]:
    """What bash is told for a line whose last word is being typed."""
    own = {
        "_MLX_SPEC_COMPLETE": "complete_bash",
        "COMP_WORDS": " ".join(("mlx-spec", *words)),
        "COMP_CWORD": str(len(words)),
        **environment,
    }
    code = "import sys; from mlx_spec.cli.main import main; sys.exit(main([]))"
    shown = subprocess.run(
        [sys.executable, "-c", code],
        env={**os.environ, **own},
        cwd=folder,
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
    )
    assert "Traceback" not in shown.stderr, shown.stderr
    return shown.stdout.split()


def test_a_shell_is_told_commands_models_and_stages(tmp_path: Path) -> None:
    (tmp_path / "hub" / "models--org--name").mkdir(parents=True)
    (tmp_path / "chain.toml").write_text('[[stage]]\nkind="filter"\n[[stage]]\nkind="a:B"\n')
    assert completed("ch", folder=tmp_path) == ["chat"]
    assert completed("generate", "--show", folder=tmp_path) == ["--show-drafts"]
    hub = {"HF_HUB_CACHE": str(tmp_path / "hub")}
    names = completed("chat", "--model", "", folder=tmp_path, **hub)
    assert names[0] == "org/name"
    assert {"smollm2", "demo"} <= set(names)
    run = ("pipeline", "run", "chain.toml", "--only", "")
    assert completed(*run, folder=tmp_path) == ["1-filter", "2"]


def test_values(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert draft_kinds("ngram+h") == ["ngram+head"]
    assert "ngram+ngram" not in draft_kinds("ngram+")
    monkeypatch.chdir(tmp_path)
    (tmp_path / "models").mkdir()
    (tmp_path / "model.gguf").touch()
    (tmp_path / "other.txt").touch()
    assert model_names("./") == ["./model.gguf", "./models/"]
    assert model_names("smol") == ["smollm2", "smollm2-draft"]


def test_completion_of_models_loads_no_mlx() -> None:
    code = (
        "import sys; from mlx_spec.cli.completion import model_names; model_names('')\n"
        "print({'mlx', 'mlx_lm', 'transformers', 'huggingface_hub'} & sys.modules.keys())"
    )
    shown = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert shown.stdout.strip() == "set()"


def test_the_name_alone_shows_three_commands(capsys: pytest.CaptureFixture[str]) -> None:
    assert main([]) == 0
    shown = capsys.readouterr().out
    lines = [line for line in shown.splitlines() if line.startswith("  mlx-spec ")]
    assert len(lines) == 3
    assert "mlx-spec chat" in lines[0]
    assert "mlx-spec generate" in lines[1]
    assert "--help" in shown


def test_help_has_groups(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--help"]) == 0
    shown = capsys.readouterr().out
    for title in ("Start here:", "Over files:", "Models and speed:", "This machine:"):
        assert title in shown
    assert "Others:" not in shown
    assert shown.index("  chat ") < shown.index("  generate ") < shown.index("  batch ")
    assert "\x1b" not in shown  # no terminal
    assert main(["chat", "--help"]) == 0
    assert "-1" in capsys.readouterr().out  # the talk's own default
