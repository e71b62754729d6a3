"""An option is written once: command line, config, engine and docs all have it from there."""

from __future__ import annotations

import math
from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest

from mlx_spec.cli.main import main
from mlx_spec.config import (
    BatchingConfig,
    CacheOptions,
    ChatConfig,
    SamplingParams,
    SpeculationConfig,
)
from mlx_spec.errors import InvalidRequest
from mlx_spec.load_config import LoadConfig, WeightQuantization
from mlx_spec.pipeline.config_file import read_config
from mlx_spec.pipeline.flags import (
    ACCUMULATION,
    PREFIX_CACHE_BYTES,
    QUANTIZED_KV_START,
    Flags,
)
from mlx_spec.pipeline.options import Option, options_of
from mlx_spec.pipeline.stages import STAGES
from mlx_spec.server.options import ServerOptions
from mlx_spec.training.recipe import Recipe
from scripts import options_table

OPTIONS = options_of(Flags)
SETTING = {name: one for name, one in OPTIONS.items() if one.sets is not None}
# What each is given, beside its default; and what it comes to where that is written otherwise.
VALUES: dict[type[Any], Any] = {int: 3, float: 0.25, bool: True, str: "a", tuple: ("x", "y")}
OTHER = {
    "adaptive": (False, False),
    "draft": ("ngram+model", "ngram+model"),
    "kv_bits": (8, 8),
    "kv_group_size": (32, 32),
    "max_kv_size": (4096, 4096),
    "acceptance": ("rejection", "rejection"),
    "chat_template_config": ('{"a": 1}', {"a": 1}),
    "json_schema": ('{"type": "object"}', None),
    "logit_bias": ('{"5": -1}', ((5, -1.0),)),
    "stop_token_id": (("3", "7"), (3, 7)),
    "memory_limit": ("2GB", 2 * 10**9),
    "dtype": ("bfloat16", "bfloat16"),
    "quantize": ("4:32", WeightQuantization(4, 32)),
    "set": (("a=1", "b=c"), {"a": 1, "b": "c"}),
    "gguf_requantize": ("float16", "float16"),
    "shard": ("pipeline", "pipeline"),
}


def made(flags: Flags, config: type[Any]) -> Any:
    """The engine's option object of a class."""
    return {
        SamplingParams: flags.sampling,
        SpeculationConfig: flags.speculation,
        BatchingConfig: flags.batches,
        CacheOptions: flags.batches.cache,
        ChatConfig: flags._chat,
        LoadConfig: flags.loading,
    }[config]


@pytest.mark.parametrize("name", SETTING)
def test_an_option_reaches_the_engine_whose_default_it_has(name: str) -> None:
    one = SETTING[name]
    assert one.sets is not None
    config, field = one.sets
    value, meant = OTHER.get(name, (VALUES[one.kinds[0]],) * 2)
    assert getattr(made(Flags(**{name: value}), config), field) == meant
    own = {"batch_timeout": ACCUMULATION, "prefix_cache_bytes": PREFIX_CACHE_BYTES}
    own["quantized_kv_start"] = QUANTIZED_KV_START
    default = own.get(name, getattr(config(), field))
    assert getattr(made(Flags(), config), field) == default
    assert meant != default


def test_all_that_the_engine_takes_for_texts_is_an_option() -> None:
    """A new field of these is meant for users."""
    functions = {"logits_processors", "sampler", "xtc_special_tokens"}
    functions |= {"structure", "response_format"}
    functions.add("num_draft_tokens")  # of one text; --num-draft-tokens is that of all
    for config, without in ((SamplingParams, functions), (ChatConfig, {"texts", "tools"})):
        known = {one.sets[1] for one in SETTING.values() if one.sets and one.sets[0] is config}
        assert known == {item.name for item in fields(config)} - without


@pytest.mark.parametrize("command", ["generate", "batch", "pipeline run"])
def test_every_option_is_a_flag_with_its_words(
    command: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([*command.split(), "--help"]) == 0
    shown = " ".join(capsys.readouterr().out.split())
    for one in OPTIONS.values():
        if one.name != "unordered":  # of records only, and in a config a stage's own
            for word in (one.flag, *one.names, one.off, one.group, one.help.split(":")[0]):
                assert word in shown, one.name


@pytest.mark.parametrize("name", OPTIONS)
def test_every_option_is_a_key_of_a_config(name: str, tmp_path: Path) -> None:
    value, _ = OTHER.get(name, (VALUES[OPTIONS[name].kinds[0]],) * 2)
    model = "" if name == "model" else 'model = "m"\ndraft_model = "d"\n'
    model = model.replace('draft_model = "d"\n', "") if name == "draft_model" else model
    path = tmp_path / "config.toml"
    head = f'input = "in"\noutput = "out"\n[options]\n{model}'
    path.write_text(f'{head}{name} = {toml(value)}\n[[stage]]\nkind = "generate"\n')
    (entry,) = read_config(path).stages
    expected = str(tmp_path / value) if name == "adapter_path" else value
    assert getattr(entry.flags, name) == expected
    path.write_text(f'{head}{name} = 1979-05-27\n[[stage]]\nkind = "generate"\n')
    with pytest.raises(InvalidRequest, match=rf"\[options\]: {name} = .*, expected "):
        read_config(path)


def toml(value: Any) -> str:
    """A value as TOML writes it."""
    if isinstance(value, tuple):
        return f"[{', '.join(map(toml, value))}]"
    return {True: "true", False: "false"}[value] if isinstance(value, bool) else repr(value)


NASTY: dict[type, tuple[Any, ...]] = {
    str: ("", " ", "{", "null", "9" * 400, "1e999", "\ud800", "a\0b", "~nobody/x", "@", "%", "("),
    int: (-1, 2**64, 10**400),
    float: (math.nan, math.inf, 10**400, -(10**400)),
    tuple: (("",), ("=",), ("9" * 400,), ("a", "a")),
}


@pytest.mark.parametrize("record", [Flags, ServerOptions, Recipe])
def test_what_nobody_would_give_is_refused_in_our_words(record: type[Any]) -> None:
    """Over HTTP, in a config, by a slip: it is taken, or an error of ours, and a short one."""
    taken, refused = 0, []
    for name, one in options_of(record).items():
        for value in (nasty for kind in one.kinds for nasty in NASTY.get(kind, ())):
            try:
                record(**{name: value})
                taken += 1
            except InvalidRequest as error:
                refused.append(str(error))
    assert taken
    assert max(map(len, refused)) < 1000


def test_a_config_takes_a_memory_limit_as_the_command_line_does(tmp_path: Path) -> None:
    path = tmp_path / "config.toml"
    head = 'input = "in"\noutput = "out"\n[[stage]]\nkind = "generate"\nmemory_limit = '
    for text, meant in (('"8GB"', 8 * 10**9), ('"50%"', 0.5), ("0.25", 0.25), ("1e9", 10**9)):
        path.write_text(head + text)
        assert read_config(path).stages[0].flags.batches.memory_limit == meant
    for text in ('"150%"', "1.5", '"1e999"'):
        path.write_text(head + text)
        with pytest.raises(InvalidRequest, match=r"more than there is|expected a size"):
            read_config(path)
    path.write_text(head + '"8XB"')
    with pytest.raises(InvalidRequest, match=r"\[\[stage\]\] 1 \(generate\): .*expected a size"):
        read_config(path)


def test_what_changes_no_text_may_differ_where_a_run_goes_on() -> None:
    before = Flags().identity()
    for name, one in OPTIONS.items():
        value, _ = OTHER.get(name, (VALUES[one.kinds[0]],) * 2)
        flags = Flags(**{"draft_model": "d", name: value})
        assert (flags.identity() != before) == one.changes_text, name
    free = {name for name, one in OPTIONS.items() if not one.changes_text}
    speculation = {"enable_speculative", "num_draft_tokens", "adaptive", "draft", "draft_model"}
    speculation |= {"ngram_shared_bytes", "draft_temperature"}
    batching = {"batch_size", "batch_timeout", "batching", "prefill_step_size", "memory_limit"}
    assert free == {*speculation, *batching, "prefix_cache_bytes", "kernels", "shard", "seed"}


@pytest.mark.parametrize(
    ("given", "unused"),
    [
        ({"draft": "ngram", "enable_speculative": False}, "--draft ngram is not used: --no-spec"),
        ({"draft": "ngram", "num_draft_tokens": 0}, "a draft of 0 tokens"),
        ({"draft": "ngram", "draft_model": "d"}, "--draft-model d is not used: --draft ngram"),
        ({"draft": "ngram+model", "draft_model": "d"}, None),
        ({"draft_model": "d", "enable_speculative": False}, None),  # as the help says
        ({"top_p": 0.9, "min_p": 0.1}, "--top-p 0.9 and --min-p 0.1 are not used: --temp 0 is"),
        ({"top_p": 0.9, "temp": 0.7}, None),
        ({"kv_group_size": 32}, "--kv-group-size 32 is not used: there is no --kv-bits"),
        ({"kv_group_size": 32, "kv_bits": 8}, None),
    ],
)
def test_what_is_given_and_not_used_is_said(given: dict[str, Any], unused: str | None) -> None:
    said = Flags(**given).unused
    assert said is None if unused is None else said is not None and unused in said


def test_a_head_that_is_embedded_stands_in() -> None:
    """For its model alone; else the model's own checkpoint is looked into."""
    assert Flags(model="smollm2", draft="head").drafter == "smollm2-draft"
    for flags in (Flags(model="m", draft="head"), Flags(draft="head+ngram")):
        assert (flags.drafter, flags.head_of) == (None, flags.target)
    assert Flags(model="m", draft="head", draft_model="d").head_of == "d"
    assert Flags(draft="model+head", draft_model="d").head_of is None
    assert Flags(draft="head", enable_speculative=False).head_of is None


@pytest.mark.parametrize(
    ("kind", "name"),
    [
        (kind, one.name)
        for kind, stage in STAGES.items()
        for one in options_of(stage).values()
        if one.choices
    ],
)
def test_a_stage_refuses_what_is_no_choice(kind: str, name: str) -> None:
    needed = {"align": {"policy": "p"}, "classify": {"labels": ("a", "b")}}.get(kind, {})
    for choice in options_of(STAGES[kind])[name].choices:
        STAGES[kind](**{**needed, name: choice})
    with pytest.raises(InvalidRequest, match=rf"\[{kind}\] {name}='other', expected one of \("):
        STAGES[kind](**{**needed, name: "other"})


def test_plain_fields_are_options_too() -> None:
    """A stage of one's own needs no words for them."""
    from mlx_spec.pipeline import Stage
    from mlx_spec.pipeline.stages.filter import Filter

    assert options_of(Stage) == {}
    assert options_of(Filter)["answers"] == Option(
        name="answers",
        kinds=(tuple,),
        default=("yes", "no"),
        help=options_of(Filter)["answers"].help,
        words=True,
    )


def test_the_page_of_options_is_in_step() -> None:
    page = Path(options_table.__file__).parent.parent / "docs" / "options.md"
    assert page.read_text() == options_table.document(), (
        "run: python scripts/options_table.py > docs/options.md"
    )
