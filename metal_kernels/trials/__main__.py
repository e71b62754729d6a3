"""``python -m metal_kernels.trials``: JSON on stdin, events on stdout, a line each.

In goes ``{"until": 1.8e9, "verdicts": [...]}``: the time of day from which on no step begins, and
verdicts as ``judge.to_record`` makes them.
"""

from __future__ import annotations

import json
import sys
import time

from metal_kernels.trials.judge import from_record, judge


def main() -> int:
    """Try what is asked for; the exit code."""
    asked = json.load(sys.stdin)
    from metal_kernels.trials.machine import HereMachine  # only now: importing mlx takes time

    seconds = asked["until"] - time.time()
    for event in judge(map(from_record, asked["verdicts"]), HereMachine(), seconds):
        print(json.dumps(event), flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
