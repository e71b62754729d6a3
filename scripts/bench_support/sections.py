"""The sections of ``docs/benchmarks.md``: what is measured by which command, and its charts."""

from __future__ import annotations

from collections.abc import Sequence

from bench_support.charts import Picture, number
from bench_support.page import Section, column, labels
from bench_support.results import Record

_CATEGORIES = "writing reasoning coding extraction summarization rag translation math"
_DRAFTERS = (
    "bench_drafters.py --prompts PROMPTS --draft-model smollm2-draft --draft ngram head ngram+head"
    f" --max-tokens 48 --longest 1500 --categories {_CATEGORIES}"
)
_GENERATE = "bench_generate.py --rounds 2 --max-tokens 32 --width 16384 --vocabulary 0"
_LENGTHS = "--mlx-lm-draft-tokens 2 4 6 --texts 8"
_TARGETS = "bench_targets.py --prompts PROMPTS --rounds 1"
_BESIDE = ("mlx-lm", "model alone")
_PLAIN = "bench_plain.py --model smollm2"
_BATCHING = "bench_batching.py --width 4096 --rounds 2 --only"


def _drafters(records: Sequence[Record]) -> list[Picture]:
    """A chart for each batch size: over plain, by category."""
    found = []
    for record in records:
        for table in record.tables:
            if len(table.rows) <= 2:  # one category, and the median
                continue
            batch = table.title.split(",")[0].removeprefix("B=")
            series = {name: column(table, 2 + i) for i, name in enumerate(table.header[2:])}
            title = f"Drafters over plain decoding, B = {batch}"
            made = Picture(f"drafters-{batch}", title, "times plain", labels(table), series, 1.0)
            found.append(made)
    return found


def _targets(records: Sequence[Record]) -> list[Picture]:
    """The adaptive draft beside the best fixed length and the roofline, by rows."""
    found = []
    for record in records:
        name = record.command.rpartition("--save ")[2]
        for table in record.tables:
            names = {2: "adaptive", 3: "best of fixed and plain", 7: "roofline"}
            series = {word: column(table, place) for place, word in names.items()}
            tokens = record.command.partition("--max-tokens ")[2].split()[0]
            title = f"{table.title}, {tokens} tokens: over plain decoding, by rows"
            own = (name, title, "times plain", labels(table), series)
            found.append(Picture(*own, base=1.0, lines=True))
    return found


def _plain(records: Sequence[Record]) -> list[Picture]:
    """mlx-lm's time over ours, by rows."""
    tables = (table for record in records for table in record.tables)
    table = next((one for one in tables if one.title == "A step"), None)
    if table is None:
        return []
    series = {word: column(table, table.header.index(f"{word} / ours")) for word in _BESIDE}
    title = "A plain step: their time over ours, by rows"
    return [Picture("plain", title, "times ours", labels(table), series, 1.0, lines=True)]


def _rules(records: Sequence[Record]) -> list[Picture]:
    """Extra milliseconds by option, a bar for each batch size."""
    (table,) = records[0].tables
    rows = table.rows[1:]
    series = {name: [number(r[1 + i]) for r in rows] for i, name in enumerate(table.header[1:])}
    names = [row[0].replace(", ", ",\n").replace(" of ", "\nof ") for row in rows]
    title = "What options cost a step"
    return [Picture("rules", title, "ms a step over plain", names, series)]


def _generation(records: Sequence[Record]) -> list[Picture]:
    """Tokens per second by rows, a chart for each temperature."""
    found, made = [], [table for record in records for table in record.tables]
    tables = [table for table in made if table.title.startswith("B=")]
    for temp in sorted({table.title.split(", ")[1] for table in tables}):
        own = [table for table in tables if table.title.split(", ")[1] == temp]
        batches = [table.title.split(", ")[0] for table in own]
        names = ("mlx-lm batch_generate", "ours plain", "ours speculative")
        cells = [{row[0]: number(row[1]) for row in table.rows} for table in own]
        series = {name: [each.get(name) for each in cells] for name in names}
        name = f"generation-{temp.removeprefix('T=').replace('.', '')}"
        title = f"Whole calls, {temp}"
        found.append(Picture(name, title, "tokens per second", batches, series, lines=True))
    return found


def _load(records: Sequence[Record]) -> list[Picture]:
    """Percentiles of the first token and of pauses, by method."""
    tables = [t for record in records for t in record.tables if t.title.split()[1] == "requests,"]
    found = []
    for table in tables:
        for name, first in (("TTFT", 2), ("ITL", 5)):
            series = {row[0]: [number(row[first + i]) for i in range(3)] for row in table.rows}
            shares = ["p50", "p95", "p99"]
            found.append(
                Picture(f"load-{name.lower()}", f"{name}, {table.title}", "ms", shares, series)
            )
    return found


def _memory(records: Sequence[Record]) -> list[Picture]:
    """Bytes by rows."""
    table = records[0].tables[0]
    series = {"K/V": column(table, 1), "peak beside the models": column(table, 3)}
    title = "Memory grows linearly with the batch"
    return [Picture("memory", title, "MB", labels(table), series, lines=True)]


def _cache(records: Sequence[Record]) -> list[Picture]:
    """Step and step less attention, by what is cached."""
    found = []
    for record in records:
        (table,) = record.tables
        guesses = table.title.split(", ")[1].split()[0]
        series = {table.header[i]: column(table, i) for i in (2, 3, 4)}
        title = f"Step time by cached tokens, {table.title}"
        found.append(Picture(f"cache-{guesses}", title, "ms", labels(table), series, lines=True))
    return found


SECTIONS = (
    Section(
        "Drafters by category",
        """
SmolLM2-135M-Instruct (float32) with its trained head (`smollm2-draft`), with n-grams, and with
the chain of both, on Spec-Bench's questions as chat messages, greedy, 48 tokens each, `max(B, 2)`
questions of a category over B rows. A cell is tokens per second of decoding over those of plain
decoding, then in brackets the share of the drafted tokens that stood, and the tokens that a row
gains by a pass of the target. Texts that repeat their prompt (extraction, translation) are the
n-grams'; reasoning and math, which do not, the head's; the chain has both. Every method says what
plain decoding says, token for token.
""",
        {
            "drafters-1": f"{_DRAFTERS} --batch 1 --questions 2",
            "drafters-4": f"{_DRAFTERS} --batch 4 --questions 4",
            "drafters-16": f"{_DRAFTERS} --batch 16 --questions 16",
            "drafters-rag": f"{_DRAFTERS.replace(_CATEGORIES, 'rag').replace('1500', '3000')}"
            " --batch 1 4 --questions 4",
        },
        _drafters,
    ),
    Section(
        "Never slower, and near the best",
        """
The same model with n-grams and its head, on questions of six categories, at least one of each:
the adaptive draft beside fixed lengths and plain decoding, 48 tokens a request, at T = 0.8 and
greedy. *again* is plain decoding once more: what it differs by is noise. *hostile* is a
head with the same costs and weights drawn at random, alone, so that nearly nothing that it guesses
is right. *roofline* is what the best fixed length would be worth if steps took nothing but their
passes, by the timed costs of passes and the acceptance that was measured; *reached* is the adaptive
draft's part of it, above 1 where it picks its guesses one by one.
""",
        {
            "targets-warm": f"{_TARGETS} --batch 1 2 4 8 16 32 --fixed 1 2 3 --max-tokens 48"
            " --temp 0.8 --without hostile again",
            "targets-worst": f"{_TARGETS} --batch 1 2 4 8 16 32 --fixed 1 2 3 4 --max-tokens 48",
        },
        _targets,
    ),
    Section(
        "Constraints, processors and log-probabilities",
        """
What an option adds to a step, all rows of the batch having it: with SmolLM2's tokenizer and its
49,152 tokens of vocabulary, but one thin random layer, since what options add does not depend on
the layers and would drown in the noise of long passes. No drafts; "plain again" is a second plain
engine: what it differs by is noise. Then steps of SmolLM2-135M-Instruct itself by rows, for
comparison.
""",
        {
            "rules": "bench_rules.py --layers 1 --rounds 5 --steps 6",
            "steps": "bench_rules.py --only 'plain again'",
        },
        _rules,
    ),
    Section(
        "The sampler",
        """
One call chooses the tokens of five positions of each row from logits of 151,936 tokens, as a
verify pass with four guesses does. *wall* is the best and the median of all calls, *cpu* the
least processor time of one, *build* the Python of it, *temporaries* the peak over the call as a
multiple of the float32 logits.
""",
        {"sampler": "bench_sampler.py --rows 1 8 --repeats 15"},
    ),
    Section(
        "Plain decoding against mlx-lm",
        """
SmolLM2-135M-Instruct without drafts. **Steps**: ours and mlx-lm's `BatchGenerator` side by side in
one process, in the middle of the same texts, in turns of six steps; what each has launched is
waited for at the end of its turn. *model alone* runs nothing but the model over mlx-lm's caches and
an argmax: what is there if all else costs nothing. **Calls**: the two `batch_generate`, prompts of
32 to 47 tokens and all. Ratios are medians of ratios within a round, above 1 where ours is the
faster.
""",
        {
            "plain": f"{_PLAIN} --batch 1 2 4 8 16 32 --rounds 5",
            "calls": f"{_PLAIN} --what calls --batch 1 2 4 8 --rounds 2 --max-tokens 24",
            "calls-many": f"{_PLAIN} --what calls --batch 16 32 --rounds 2 --max-tokens 24",
        },
        _plain,
    ),
    Section(
        "Generation against mlx-lm",
        """
The embedded pair, the target widened to about 80M parameters by MLP rows that change nothing
(same tokens, same acceptance, real cost). `max(4, 2 B)` prompts over B rows, so rows that end are
filled again; 32 tokens each. mlx-lm's own speculation takes one prompt at a time. Tokens per
second are of the whole call, prefill included; ours speculative chooses its draft length itself
(at most 8). Notes are of the last round. *Ceiling* is what the best fixed length of ours would be
worth if its steps took nothing but their passes, by the timed costs of passes and what was
accepted; *reached* is our part of it, above 1 where guesses are picked one by one.
""",
        {
            f"generate-{batch}": f"{_GENERATE} --batch {batch} --temp 0 0.8"
            + (f" {_LENGTHS}" if batch == 1 else "")
            for batch in (1, 2, 4, 8, 16)
        },
        _generation,
    ),
    Section(
        "What batching is worth",
        """
The embedded pair, greedy, its target less widened (about 25M parameters) or as it is.
**Continuous against static batching**: requests whose output lengths are exponentially distributed
(mean 24, at most 144). **A long prompt beside running streams**: how long three streams pause while
a newcomer's 1,500 tokens are read, by what is read between two of their steps: as many tokens as
take so many milliseconds here (64 at least), or a fixed number. **A repeated beginning**: 12
requests with 1,000 tokens in common, kept by the prefix cache or read each time. **The accumulation
timeout**: requests at random times; waiting for company costs an idle generator its timeout and
wins nothing, so it is 0 unless asked for. (What more rows are worth is in the tables above.)
""",
        {
            "batching-static": f"{_BATCHING} static",
            "batching-gap": f"{_BATCHING} gap",
            "batching-prefix": "bench_batching.py --width 0 --rounds 1 --only prefix",
            "batching-timeout": "bench_batching.py --width 0 --rounds 1 --only timeout",
        },
    ),
    Section(
        "Texts that are scored",
        """
SmolLM2-135M-Instruct; `classify` over short texts, four labels, with one row and with more.
*ceiling* is the ratio of what the same passes take when they run alone, with each text's own
attention and without labels or Python: a record is mostly prompt, one record's prompt keeps both
cores multiplying already, and past that they multiply at their rate. *reached* is the measured
ratio's share of it.
""",
        {"classify": "bench_classify.py --rows 1 4 16"},
    ),
    Section(
        "Open-loop load",
        """
SmolLM2-135M-Instruct; Spec-Bench's questions as chat messages, one prompt of twenty made long by
joining questions, output lengths exponentially distributed; requests come by a Poisson process,
whatever is still running, and every method gets the same ones at the same times. mlx-lm's
`BatchGenerator` is driven in its own insert and next loop. *TTFT* is from a request's arrival to
its first token, *ITL* between two deliveries of its stream. Then a short request comes one second
behind a long one.
""",
        {
            "load": "bench_load.py --prompts PROMPTS --requests 200 --rate 0.3 --behind 0",
            "load-behind": "bench_load.py --prompts PROMPTS --requests 0 --draft --behind 4000",
        },
        _load,
    ),
    Section(
        "Over HTTP",
        """
`mlx-spec serve` and `mlx_lm.server` with the same pair, the embedded one with its target widened;
beginnings of Python source come by a Poisson process, at one rate after the other, output lengths
exponentially distributed. A rate holds where the first text is there within a second for 95% of
the requests. mlx-lm's server batches, or takes a draft model: both are shown.
""",
        {"server": "bench_server.py --rates 2 4 6 8 12 --requests 24 --seconds 8"},
    ),
    Section(
        "Memory grows linearly with the batch",
        """
The embedded pair in float32, prompts of 512 tokens and 64 new ones, four guesses a step, prompts
fed 256 tokens a pass. K/V is what the slots of target and draft hold at most; the peak is MLX's,
less what the models hold. Bytes do not depend on the machine's load;
`tests/test_memory_linear.py` holds them to the line.
""",
        {"memory": "bench_memory.py --prompt-tokens 512 --max-tokens 64"},
        _memory,
    ),
    Section(
        "A step does not cost O(cache)",
        """
A random Llama of 4 layers with 8/4 heads of 64, four rows, slots of about 4,200 positions at
every length, the lengths interleaved step by step. The step less attention does not grow with
what is cached; `tests/test_cache_copies.py` shows the same by memory: no step holds a second copy
of the cache. Attention itself is MLX's fallback on the CPU, linear in keys and in queries.
""",
        {
            "cache-plain": "bench_cache.py --steps 20",
            "cache-drafts": "bench_cache.py --steps 20 --draft-tokens 4",
        },
        _cache,
    ),
)
