"""``mlx-spec serve``: its options, and mistakes that are told before a model is loaded."""

from __future__ import annotations

import importlib.util
import socket
from typing import Any

import pytest

from mlx_spec.cli.main import main
from mlx_spec.errors import InvalidRequest
from mlx_spec.pipeline.flags import Flags
from mlx_spec.pipeline.options import options_of
from mlx_spec.server.flags import ServeFlags
from mlx_spec.server.options import ServerOptions


def test_help_has_mlx_lms_names_and_all_of_generates(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["serve", "--help"]) == 0
    shown = " ".join(capsys.readouterr().out.split())
    for one in options_of(ServerOptions).values():
        assert one.flag in shown
        assert one.group in shown
    flags = (
        "--model --draft-model --adapter-path --host --port --allowed-origins --temp --top-p "
        "--top-k --min-p --max-tokens --chat-template-config --prefill-step-size --kv-bits "
        "--num-draft-tokens --trust-remote-code --log-level --batch-size --memory-limit "
        "--prefix-cache-bytes --draft --no-speculative --decode-concurrency --prompt-cache-bytes "
        "--chat-template-args"
    )
    for flag in flags.split():
        assert flag in shown, flag


def test_defaults_are_those_of_a_server() -> None:
    flags = ServeFlags(model="m")
    assert flags.sampling.max_tokens == 512  # as mlx-lm's server
    assert flags.batches.batch_timeout == 0
    assert flags.batches.prefix_cache_bytes == 2**30
    assert flags.speculation.kinds(None) == ("ngram",)
    assert flags.speculation.adaptive
    own, usual = options_of(ServeFlags), options_of(Flags)
    changed = {name for name, one in own.items() if one.default != usual[name].default}
    assert changed == {"max_tokens", "batch_timeout", "prefix_cache_bytes", "enable_speculative"}


@pytest.mark.parametrize(
    ("given", "kinds"),
    [
        ({"model": "smollm2"}, ("ngram", "head")),
        ({"model": "smollm2", "draft": "ngram"}, ("ngram",)),
        ({"model": "smollm2", "enable_speculative": False}, ()),
        ({"model": "m", "draft_model": "d"}, ("model",)),
        ({}, ("model",)),  # the embedded pair
    ],
)
def test_what_guesses_by_default(given: dict[str, Any], kinds: tuple[str, ...]) -> None:
    flags = ServeFlags(**given)
    assert flags.speculation.kinds("model" if flags.drafter else None) == kinds
    if "head" in kinds:
        assert flags.drafter == "smollm2-draft"


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--host", "0.0.0.0"], "lets the network in: give --api-key"),
        (["--port", "70000"], "expected 0..65535"),
        (["--max-queue", "-1"], "expected an integer >= 0"),
        (["--request-timeout", "0"], "expected a number in (0, 1e9]"),
        (["--host", "no such host", "--insecure"], "no such address"),
        (["--log-level", "loud"], "expected one of"),
    ],
)
def test_a_mistake_is_one_line(
    arguments: list[str],
    words: str,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.delenv("MLX_SPEC_API_KEY", raising=False)
    assert main(["serve", *arguments]) == 2
    said = capsys.readouterr()
    assert words in said.err
    assert said.err.count("\n") == 1
    assert said.out == ""


def test_a_port_that_is_taken_is_told_before_the_model_is_loaded(
    capsys: pytest.CaptureFixture[str],
) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        assert main(["serve", "--model", "/nowhere", "--port", str(port)]) == 2
    assert f"127.0.0.1:{port}" in capsys.readouterr().err


def test_a_missing_extra_is_one_line(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    from mlx_spec.cli import serve_run

    def find(name: str) -> Any:
        return None if name == "uvicorn" else importlib.util.find_spec(name)

    monkeypatch.setattr(serve_run, "find_spec", find)
    assert main(["serve", "--port", "0"]) == 2
    assert "pip install 'mlx-spec[server]'" in capsys.readouterr().err


def test_limits_are_checked() -> None:
    assert ServerOptions(log_level="INFO").log_level == "info"
    for options in ({"max_n": 0}, {"max_prompt_tokens": 0}, {"read_timeout": 0.0}):
        with pytest.raises(InvalidRequest, match="expected"):
            ServerOptions(**options)
