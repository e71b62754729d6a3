"""The words of ``docs/simulation.md``."""

from __future__ import annotations

from collections.abc import Sequence as Seq

PAGE = """# Draft lengths on simulated machines

Made by `python scripts/simulate.py --save docs`; do not edit. No clock and no model: a policy plays
a decoder on machines of which it knows what a calibration would tell it (points at the edges, 5%
noise afterwards), and texts of which it knows nothing.

*Regret* is what it says less, in expected tokens per second, than one that knows all chances and
prices. A setting is played {runs} times with {rows} rows, other luck each time (whose guesses
stood, how long steps took), and counts as one: all expected tokens over all seconds. Tokens are
those that a step says on average and seconds those without noise, so luck moves only what the
policy made of it. `tests/test_draft_regret.py` holds settings to 3%, over all steps and from the
30th on, and to 8% after a shift, in other runs. Single runs that lose more are
mostly ties: two steps promise nearly the same, and the noise of a step hides which is better.

## Regret

Chances that a guess stands {texts}; {steps} steps, at most {most} guesses a row. Percent, mean
over settings (worst setting), and the run that lost most. The shift: after {before} steps all
texts change ({shifts}), and {steps} steps follow. The last
column is a drafter that is never right, over plain decoding, on requests of 48 tokens, the worst
batch size.

{regret}

![How soon the best is found](charts/simulation-start.svg)

## A drafter that says how sure it is

Each token has its own chance, and the drafter says it: {tokens}. It is
said once a guess is made. *The
best* hears it too, knows its distribution and all prices from the beginning, and how bold to be by
trying. Percent that is lost against it, mean over settings (worst): by the policy that hears the
drafter, and by one that goes by averages.

{picked}

## Two published machines

*M3 Ultra*: cycles of a 27B model in four bits with its own head at depth 3, and its plain decoding
(MTPLX, 2026), with conditional acceptances of .87, .68 and .53. Between two published numbers of
tokens lies a line; tiles of 32 tokens are taken to begin at 33. However little is drafted, a cycle
is priced as the published one of as many tokens, so what is found is the least that these figures
allow. With one and two rows the published ratios are above what these acceptances give. Over plain
decoding:

{m3}

![M3 Ultra](charts/simulation-m3-ultra.svg)

*M1 Ultra*: verification costs nearly as much for each token as for the first (mlxcel, 2026), and
the published speculation is at 0.59 to 0.70 of plain decoding. The policy parks:

{m1}

## Texts of all categories

Requests of 40 to 200 tokens that come and go, so that others always wait; chances of the first
guesses {categories};
over plain decoding. *Fixed* is the best of all fixed lengths, found by trying each.

{mixed}

## Lookups in a batch that ends

Guesses that are looked up, for texts of which 10%, 10%, 40% or 80% are copied; 48 tokens a request
unless said, prompts are read one after the other. Plain decoding's time over that with lookups, all
requests from the first step to the last: mean of 24 batches (worst). *Told*: the policy knows who
waits for a row (`control/demand`), and so that the batch ends with its slowest row; else it takes
rows that begin for newcomers, as a server has them. Prices are of SmolLM2 on two cores.

{closed}
"""


def markdown(header: Seq[str], rows: Seq[Seq[str]]) -> str:
    """A table."""
    lines = (header, ["---"] * len(header), *rows)
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)
