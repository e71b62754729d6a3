"""``FoldersHere``: the folders of the working directory in which models may lie, and GGUF files.

People start programs anywhere, also where thousands of folders are, or on a slow disk. So it goes
two levels deep, looks into so many folders for so long, and counts those that it leaves out.
"""

from __future__ import annotations

import math
import os
import time
from pathlib import Path

DEEP, MOST, SECONDS = 2, 2000, 5.0
_PASSED = ("node_modules", "__pycache__")  # and hidden ones: nobody keeps models there


class FoldersHere:
    """Looks when it is made.

    Args:
        everything: leave none out, however many there are.

    Attributes:
        folders: those that hold a ``config.json``, sorted.
        files: GGUF files here and one level deep, sorted.
        left_out: folders that were not looked into.
    """

    def __init__(self, everything: bool = False) -> None:
        self.folders: list[Path] = []
        self.files: list[Path] = []
        self.left_out = self._search(everything)
        self.folders.sort()
        self.files.sort()

    def _search(self, everything: bool) -> int:
        """Level by level; how many folders are left."""
        most, seconds = (math.inf, math.inf) if everything else (MOST, SECONDS)
        until, looked, level = time.monotonic() + seconds, 0, [Path()]
        for depth in range(DEEP + 1):
            within: list[Path] = []
            for place, folder in enumerate(level):
                if depth and (looked >= most or time.monotonic() > until):
                    return len(level) - place + len(within)
                looked += 1
                within += self._look(folder, depth)
            level = within
        return 0

    def _look(self, folder: Path, depth: int) -> list[Path]:
        """Note what lies in a folder; its own folders."""
        own = []
        try:
            with os.scandir(folder) as entries:
                for entry in entries:
                    if entry.name.startswith(".") or entry.name in _PASSED:
                        continue
                    if entry.name == "config.json" and depth:
                        self.folders.append(folder)
                    elif entry.name.endswith(".gguf") and depth < DEEP:
                        self.files.append(folder / entry.name)
                    elif depth < DEEP and entry.is_dir():
                        own.append(folder / entry.name)
        except OSError:  # not ours to read, or gone
            return []
        return sorted(own)
