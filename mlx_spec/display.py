"""How results, streams and statistics show themselves: HTML in a notebook, tables on a terminal.

Each record becomes a list of facts (label, text), and the facts become HTML, a rich table or
lines. All text is escaped: a completion may hold any HTML. Needs nothing; rich only to be shown by
rich. Imported lazily by the records, which hold no words about themselves.
"""

from __future__ import annotations

from collections.abc import Sequence as Seq
from html import escape
from typing import TYPE_CHECKING, TypeAlias

from mlx_spec.results import BatchResult, GenerationResult, GenerationStats

if TYPE_CHECKING:
    from rich.console import Group
    from rich.table import Table

Facts: TypeAlias = list[tuple[str, str]]

MOST_ROWS = 50
MOST_CHARACTERS = 300
# A notebook gives text boxes a ground of their own and breaks words anywhere; neither here.
_PRE = (
    "white-space:pre-wrap;word-break:normal;overflow-wrap:break-word;text-align:left;"
    "max-height:30em;overflow:auto;margin:0;padding:0;border:0;background:none;color:inherit;"
    "font-family:monospace"
)
_CELL = "text-align:left;vertical-align:top"
_PROMPT_WIDTH = 60


# --- what there is to say ---


def result_facts(result: GenerationResult) -> Facts:
    """One finished request."""
    facts = [
        ("finish reason", result.finish_reason),
        ("tokens", f"{result.prompt_tokens:,} prompt + {result.generation_tokens:,} generated"),
        ("time to first token", seconds(result.ttft)),
        ("time per output token", seconds(result.tpot)),
        ("duration", seconds(result.duration)),
    ]
    if result.error:
        facts.append(("error", result.error))
    if result.drafted:
        facts.append(
            (
                "acceptance",
                f"{result.acceptance_rate:.1%} ({result.accepted:,} of {result.drafted:,})",
            )
        )
    if result.reused_tokens:
        facts.append(("reused prompt tokens", f"{result.reused_tokens:,}"))
    return facts


def stats_facts(stats: GenerationStats) -> Facts:
    """A whole call."""
    reused = f" ({stats.reused_tokens:,} reused)" if stats.reused_tokens else ""
    facts = [
        ("prompts", f"{stats.prompt_tokens:,} tokens{reused}, {stats.prompt_tps:,.1f} tok/s"),
        ("generation", f"{stats.generation_tokens:,} tokens, {stats.generation_tps:,.1f} tok/s"),
        ("steps", f"{stats.steps:,}"),
        ("peak memory", f"{stats.peak_memory / 1e9:.3f} GB"),
    ]
    if stats.drafted:
        lengths = sorted(stats.draft_lengths.items())
        facts += [
            (
                "acceptance",
                f"{stats.acceptance_rate:.1%} ({stats.accepted:,} of {stats.drafted:,})",
            ),
            ("tokens a verify pass", f"{stats.mean_acceptance_length:.2f}"),
            ("draft lengths", ", ".join(f"{k}: {_steps(count)}" for k, count in lengths)),
        ]
    return facts


def _steps(count: int) -> str:
    return f"{count:,} step{'s' if count != 1 else ''}"


def seconds(value: float) -> str:
    """A time in the unit that suits it."""
    return f"{value:.2f} s" if value >= 1 else f"{value * 1e3:.1f} ms"


# --- HTML ---


def html_table(facts: Facts, title: str = "") -> str:
    """Facts below each other."""
    head = f"<b>{escape(title)}</b>" if title else ""
    rows = "".join(
        f'<tr><td style="{_CELL}">{escape(label)}</td><td style="{_CELL}">{escape(text)}</td></tr>'
        for label, text in facts
    )
    return f"<div>{head}<table>{rows}</table></div>"


def result_html(result: GenerationResult) -> str:
    """The text, then the figures."""
    return f"{_boxed(result.text)}{html_table(result_facts(result))}"


def batch_html(batch: BatchResult) -> str:
    """One row a request, then the figures over all."""
    columns = ("", "prompt", "text", "tokens", "finish", "time to first token")
    head = "".join(f'<th style="{_CELL}">{name}</th>' for name in columns)
    rows = []
    for index, result in enumerate(batch.results[:MOST_ROWS]):
        cells = (
            str(index),
            f'<div style="{_PRE}">{escape(prompt_of(batch, index))}</div>',
            _boxed(shorten(result.text)),
            f"{result.generation_tokens:,}",
            result.finish_reason,
            seconds(result.ttft),
        )
        marked = [f'<td style="{_CELL}">{cell}</td>' for cell in cells]
        rows.append(f"<tr>{''.join(marked)}</tr>")
    more = len(batch.results) - len(rows)
    rest = f"<div>and {more:,} more</div>" if more else ""
    table = f"<table><tr>{head}</tr>{''.join(rows)}</table>"
    return f"<div>{table}{rest}</div>{html_table(stats_facts(batch.stats))}"


def _boxed(text: str) -> str:
    return f'<pre style="{_PRE}">{escape(text)}</pre>'


def prompt_of(batch: BatchResult, index: int) -> str:
    """What a request's prompt is shown as; nothing where it is not known."""
    text = batch.prompts[index] if index < len(batch.prompts) else ""
    return text if len(text) <= _PROMPT_WIDTH else f"{text[:_PROMPT_WIDTH]}..."


def stream_html(name: str, state: str, result: GenerationResult | None) -> str:
    """A request on its way, or its result."""
    head = html_table([("request", name), ("state", state)])
    return head if result is None else head + result_html(result)


def shorten(text: str) -> str:
    """The beginning of a long text."""
    return text if len(text) <= MOST_CHARACTERS else f"{text[:MOST_CHARACTERS]}..."


# --- terminals ---


def rich_table(facts: Facts) -> Table:
    """Facts below each other, for ``rich.print``."""
    from rich import box
    from rich.table import Table
    from rich.text import Text

    table = Table(box=box.SIMPLE, show_header=False)
    for label, text in facts:
        table.add_row(Text(label, style="bold"), Text(text))
    return table


def rich_batch(batch: BatchResult) -> Group:
    """One row a request, then the figures over all."""
    from rich import box
    from rich.console import Group
    from rich.table import Table
    from rich.text import Text

    table = Table("", "prompt", "text", "tokens", "finish", box=box.SIMPLE)
    for index, result in enumerate(batch.results[:MOST_ROWS]):
        table.add_row(
            str(index),
            Text(prompt_of(batch, index)),
            Text(shorten(result.text)),
            f"{result.generation_tokens:,}",
            result.finish_reason,
        )
    more = len(batch.results) - MOST_ROWS
    table.caption = f"and {more:,} more" if more > 0 else None
    return Group(table, rich_table(stats_facts(batch.stats)))


def batch_lines(batch: BatchResult) -> str:
    """Every text under its prompt, then the figures over all."""
    parts = []
    for index, result in enumerate(batch.results):
        prompt = " ".join(prompt_of(batch, index).split())
        title = f"[{index}] {prompt} ({result.finish_reason}, {result.generation_tokens:,} tokens)"
        parts.append(f"{title}\n{result.text}\n")
    return "\n".join([*parts, lines(stats_facts(batch.stats))])


def lines(facts: Seq[tuple[str, str]]) -> str:
    """Facts as plain lines."""
    return "\n".join(f"{label}: {text}" for label, text in facts)
