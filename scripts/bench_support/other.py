"""Another version of mlx-spec, in an environment of its own, as a process that runs on request.

Started by :class:`OtherVersion` as ``PYTHON scripts/bench_support/other.py``: a line of JSON in, a
line of JSON out. It waits between requests, so that whoever runs at a time has the machine alone.
"""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
from dataclasses import asdict
from pathlib import Path
from typing import IO, Any

SCRIPTS = Path(__file__).parent.parent


class OtherVersion:
    """A pair of models held by another interpreter.

    Args:
        python: its executable; the version to compare with is installed there.
        width, vocabulary: as for ``load_pair``.
    """

    def __init__(self, python: str, width: int, vocabulary: int) -> None:
        # Not from the repository's root, where this version would be found first.
        self._process = subprocess.Popen(
            [os.path.abspath(python), __file__, str(width), str(vocabulary)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            cwd=SCRIPTS,
            env={**os.environ, "PYTHONPATH": str(SCRIPTS)},
        )
        self.version = self._answer()

    def run(self, work: Any, *, speculate: bool) -> dict[str, Any]:
        """As ``generation.timed`` gives for ``generation.ours``, there."""
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps({**asdict(work), "speculate": speculate}) + "\n")
        self._process.stdin.flush()
        answer: dict[str, Any] = self._answer()
        return answer

    def close(self) -> None:
        """End it."""
        self._process.communicate()

    def _answer(self) -> Any:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            raise RuntimeError(f"[OtherVersion] it ended with {self._process.wait()}")
        return json.loads(line)


def serve(width: int, vocabulary: int, output: IO[str]) -> None:
    """Answer requests until there are no more."""
    import mlx_spec
    from bench_support.generation import Work, ours, timed
    from bench_support.pair import load_pair

    pair = load_pair(width, vocabulary)
    print(json.dumps(str(Path(mlx_spec.__file__).parent)), file=output, flush=True)
    for line in sys.stdin:
        asked = json.loads(line)
        speculate = asked.pop("speculate")
        work = Work(**asked)
        answer = timed(lambda work=work, s=speculate: ours(pair, work, speculate=s))  # type: ignore[misc]
        del answer["step"]
        print(json.dumps(answer), file=output, flush=True)


if __name__ == "__main__":
    # What libraries print goes elsewhere.
    with contextlib.redirect_stdout(sys.stderr):
        serve(int(sys.argv[1]), int(sys.argv[2]), sys.__stdout__)  # type: ignore[arg-type]
