"""Random templates, records, encodings, files and chats: an error of ours or a result, never else.

Bounded and the same at every run; ``derandomize`` off and more examples search further.
"""

from __future__ import annotations

import codecs
import csv
import io
import json
import math
from collections.abc import Callable
from datetime import datetime
from decimal import Decimal
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st

from mlx_spec.batching.prompts import encode
from mlx_spec.cli.prompts import read_prompts
from mlx_spec.errors import MlxSpecError
from mlx_spec.pipeline.checkpoint import Checkpoint
from mlx_spec.pipeline.config_file import read_config
from mlx_spec.pipeline.export import export
from mlx_spec.pipeline.records import count, read_records, to_line
from mlx_spec.pipeline.stages.generate import GenerateText
from mlx_spec.pipeline.templates import PromptTemplate
from mlx_spec.pipeline.values import plain
from tests.api_support import TEMPLATE, tokenizer
from tests.jsonl import strict

bounded = settings(
    max_examples=60,
    deadline=None,
    derandomize=True,
    database=None,
    suppress_health_check=list(HealthCheck),
)

NAMES = ["text", "meta", "items", "record", "prompt", "keys", "labels", "", "a b", "self", "None"]
texts = st.one_of(
    st.text(max_size=12),
    st.text(st.characters(), max_size=6),  # halves of surrogate pairs, too
    st.sampled_from(["a\x0cb\u2028c\r", "\ufeffx", '"', "a;b,c\td", "日本 😀", "\0", "{{ 1 }}"]),
)
keys = st.one_of(st.sampled_from(NAMES), texts)
numbers = st.one_of(st.integers(), st.floats(), st.booleans())
odd = st.one_of(
    st.binary(max_size=6),
    st.dates().map(lambda day: datetime(day.year, day.month, day.day)),
    st.decimals(),
    st.floats(width=32).map(np.float32),
    st.just(np.arange(3)),
    st.sets(st.integers(0, 3), max_size=2),
)
values = st.recursive(
    st.one_of(st.none(), texts, numbers),
    lambda inner: st.one_of(st.lists(inner, max_size=3), st.dictionaries(keys, inner, max_size=3)),
    max_leaves=8,
)
rows = st.dictionaries(keys, values, max_size=4)
odd_rows = st.dictionaries(
    st.one_of(keys, st.integers(), st.none(), st.tuples(st.integers())),
    st.one_of(values, odd, st.lists(odd, max_size=2)),
    max_size=4,
)


def refused(action: Callable[[], Any]) -> Any:
    """What it gives, or None where it is refused in one line of ours."""
    try:
        return action()
    except MlxSpecError:
        return None


# --- templates ------------------------------------------------------------------------------

paths = st.builds(
    lambda name, rest: name + "".join(rest),
    st.sampled_from(["text", "meta", "record", "items", "labels", "prompt", "range", "none"]),
    st.lists(
        st.sampled_from([".items", ".text", "['a b']", "[0]", ".keys()", ".x", "[None]", "()"]),
        max_size=2,
    ),
)
FILTERS = ["tojson", "default('-')", "join(',')", "list", "int", "length", "e", "map('upper')"]
filters = st.one_of(
    st.sampled_from(["", " ~ text", " + 1", " is none", " or 'x'"]),
    st.sampled_from(FILTERS).map(" | {}".format),
)
pieces = st.one_of(
    st.builds("{{{{ {}{} }}}}".format, paths, filters),
    st.builds("{{% if {} %}}{{{{ {} }}}}{{% endif %}}".format, paths, paths),
    st.builds("{{% for x in {} %}}{{{{ x{} }}}}{{% endfor %}}".format, paths, filters),
    st.builds("{{% set text = {}{} %}}{{{{ text }}}}".format, paths, filters),
    st.sampled_from(["{{", "{% if %}", "{% include 'x' %}", "{# #}", "{{ 1 // 0 }}", "plain"]),
    texts,
)


@bounded
@given(source=st.lists(pieces, max_size=3).map("".join), row=odd_rows)
def test_templates_over_records(source: str, row: dict[Any, Any]) -> None:
    template = refused(lambda: PromptTemplate(source if source[:1] != "@" else "x", "t"))
    for fields in (row, plain(row)):
        if template is not None:
            found = refused(lambda fields=fields: template.render(fields, labels=["a"]))
            assert found is None or isinstance(found, str)


# --- records and lines ----------------------------------------------------------------------


@bounded
@given(row=odd_rows)
def test_a_line_is_strict_json_and_says_the_same(row: dict[Any, Any]) -> None:
    line = to_line(row)
    assert line.endswith(b"\n")
    assert line.count(b"\n") == 1
    back = strict(line)
    assert back == plain(row)
    assert to_line(back) == line
    assert all(math.isfinite(one) for one in back.values() if isinstance(one, float))


@bounded
@given(batch=st.lists(rows, max_size=4))
def test_records_go_to_every_format_and_back(batch: list[dict[str, Any]]) -> None:
    batch = [plain(row) for row in batch]
    with TemporaryDirectory() as folder:
        for format in ("jsonl", "csv", "parquet"):
            path = Path(folder) / f"a.{format}"
            refused(lambda path=path, format=format: export(batch, path, format))
            if path.exists():
                back = refused(lambda path=path, format=format: list(read_records(path, format)))
                if format == "jsonl":
                    assert [record.fields for record in back] == batch
                if back is not None:
                    assert count(path, format) == len(back)
                    assert all(strict(to_line(record.fields)) is not None for record in back)


# --- files of any bytes ---------------------------------------------------------------------

ENCODINGS = ["utf-8", "utf-8-sig", "utf-16", "utf-16-le", "utf-32", "latin-1", "cp1252"]
lines = st.one_of(
    rows.map(lambda row: json.dumps(plain(row))),
    st.lists(texts, max_size=3).map(";".join),
    st.lists(texts, max_size=3).map(",".join),
    st.sampled_from(["", "{", '{"a": NaN}', '"', 'a,"b', "[" * 300, "input = 1", "[options]"]),
)


@st.composite
def files(draw: Any) -> bytes:
    """What an editor, a spreadsheet or an accident leaves."""
    if draw(st.integers(0, 3)) == 0:
        return draw(st.binary(max_size=40))
    text = draw(st.sampled_from(["\n", "\r\n", "\r"])).join(draw(st.lists(lines, max_size=4)))
    data = text.encode(draw(st.sampled_from(ENCODINGS)), "replace")
    cut = draw(st.integers(0, 3))
    return data[: len(data) - cut] if cut < 3 else codecs.BOM_UTF8 + data


@bounded
@given(data=files())
def test_files_of_any_bytes(data: bytes) -> None:
    with TemporaryDirectory() as folder:
        path = Path(folder) / "a"
        path.write_bytes(data)
        for format in ("jsonl", "csv", "parquet"):
            found = refused(lambda format=format: list(read_records(path, format)))
            counted = refused(lambda format=format: count(path, format))
            if found is not None:
                assert counted == len(found)
            for record in found or []:
                assert strict(to_line(record.fields)) == record.fields
        refused(lambda: read_config(path))
        prompts = refused(lambda: read_prompts([], path))
        assert prompts is None or all("\n" not in prompt for prompt in prompts)
        template = refused(lambda: PromptTemplate(f"@{path}", "t"))
        if template is not None:
            refused(lambda: template.render({"a": 1}))


cells = st.text(st.characters(codec="utf-8", exclude_characters="\0"), max_size=8)


@bounded
@given(
    table=st.integers(1, 3).flatmap(
        lambda width: st.lists(st.lists(cells, min_size=width, max_size=width), max_size=4)
    ),
    delimiter=st.sampled_from(",;\t"),
    end=st.sampled_from(["\n", "\r\n", "\r"]),
    encoding=st.sampled_from(["utf-8", "utf-8-sig", "utf-16", "utf-32"]),
    index=st.booleans(),
)
def test_a_spreadsheet_s_cells_come_back(
    table: list[list[str]], delimiter: str, end: str, encoding: str, index: bool
) -> None:
    names = [f"name{i}" for i in range(len(table[0]) if table else 2)]
    assume(delimiter == "," or index or len(names) > 1)  # one name alone tells of no other
    stream = io.StringIO(newline="")
    # Python's writer leaves a return without quotes, where it may look like a line's end.
    returns = end == "\r" or any(cell.endswith("\r") for row in table for cell in row)
    quoting = csv.QUOTE_ALL if returns else csv.QUOTE_MINIMAL
    writer = csv.writer(stream, delimiter=delimiter, lineterminator=end, quoting=quoting)
    writer.writerow(["", *names] if index else names)
    writer.writerows([str(i), *row] if index else row for i, row in enumerate(table))
    data = stream.getvalue().encode(encoding)
    with TemporaryDirectory() as folder:
        (Path(folder) / "a.csv").write_bytes(data)
        back = list(read_records(Path(folder) / "a.csv", "csv"))
    assert [record.error for record in back] == [None] * len(table)
    assert [[record.fields[name] for name in names] for record in back] == table
    assert all(record.fields["index"] == str(i) for i, record in enumerate(back) if index)


# --- chats and tokenizers -------------------------------------------------------------------

TEMPLATES = [
    TEMPLATE,
    "{% for m in messages %}{{ '<' + m['role'] + '>' + m['content'] }}{% endfor %}",
    "{% for m in messages %}{{ raise_exception('no') if m.role == 'system' }}{% endfor %}x",
    "{{ messages[1].content | trim }}{{ tools }}{{ messages | tojson }}",
    "{% for m in messages %}{{ m.tool_calls[0].function.name }}{% endfor %}y",
]
contents = st.one_of(
    texts,
    st.none(),
    values,
    st.lists(st.fixed_dictionaries({"type": st.sampled_from(["text", "image"]), "text": texts})),
)
messages = st.one_of(
    st.builds(
        lambda role, content, more: {"role": role, "content": content, **more},
        st.one_of(st.sampled_from(["user", "assistant", "system", "tool"]), values),
        contents,
        rows,
    ),
    rows,
    values,
)


@cache
def tokenizers() -> list[Any]:
    return [tokenizer(), *map(tokenizer, TEMPLATES)]


@bounded
@given(chat=st.lists(messages, min_size=1, max_size=3), prompt=texts, which=st.integers(0, 5))
def test_chats_and_texts_through_tokenizers(chat: list[Any], prompt: str, which: int) -> None:
    words = tokenizers()[which]
    for given_prompt in (chat, prompt, json.dumps(plain(chat))):
        found = refused(lambda given_prompt=given_prompt: encode(words, given_prompt))
        assert found is None or all(isinstance(token, int) for token in found)
    for stage in (GenerateText(), GenerateText(messages_field="messages")):
        for value in (plain(chat), json.dumps(plain(chat))):
            refused(lambda stage=stage, value=value: stage.prepare({"messages": value}))


# --- outputs that are cut -------------------------------------------------------------------


@bounded
@given(batch=st.lists(rows, min_size=1, max_size=4), cut=st.integers(0, 300), retry=st.booleans())
def test_an_output_cut_anywhere_goes_on(batch: list[dict[str, Any]], cut: int, retry: bool) -> None:
    results = [{**plain(row), "_record": i} for i, row in enumerate(batch, start=1)]
    for record in results[::2]:
        record |= {"_failed": True, "error": "x"}
    with TemporaryDirectory() as folder:
        out = Path(folder) / "out.jsonl"

        def write(**options: Any) -> bytes:
            checkpoint = Checkpoint(out, "jsonl", {"input": 1}, 1, resume=True, **options)
            checkpoint.begin()
            for record in results:
                if record["_record"] not in checkpoint:
                    checkpoint.write(record)
            checkpoint.finish(complete=True)
            checkpoint.close()
            return out.read_bytes()

        whole = write()
        out.write_bytes(whole[:cut])
        assert write(retry=retry) == whole
        assert [strict(line) for line in whole.splitlines()] == results


def test_what_cannot_be_json_at_all_is_text() -> None:
    """The strategies above have no room for it."""
    assert strict(to_line({"a": object, "b": Decimal("NaN"), "c": 1 + 2j})) == {
        "a": "<class 'object'>",
        "b": "NaN",
        "c": "(1+2j)",
    }
    deep: Any = []
    for _ in range(200):
        deep = [deep]
    with pytest.raises(MlxSpecError, match="nested more than"):
        to_line({"a": deep})
