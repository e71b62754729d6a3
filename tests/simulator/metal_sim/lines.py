"""From an address in a compiled kernel to the line of its Metal source."""

import bisect
import functools
from dataclasses import dataclass
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class LineTable:
    """Sorted addresses (from the library's start) with the line that begins at each."""

    addresses: list[int]
    lines: list[str]
    entry: int

    def at(self, offset: int) -> str | None:
        """The line an address belongs to."""
        place = bisect.bisect_right(self.addresses, offset) - 1
        return self.lines[place] if place >= 0 and self.lines[place] else None


def _file_name(program: Any, number: int) -> str:
    files = program["file_entry"]
    first = 0 if program["version"] >= 5 else 1
    return Path(files[number - first].name.decode()).name


@functools.lru_cache(maxsize=64)
def line_table(library: Path) -> LineTable:
    """Read a library's debug lines."""
    from elftools.elf.elffile import ELFFile  # only where something was found

    with library.open("rb") as file:
        elf: Any = ELFFile(file)
        entry = elf.get_section_by_name(".symtab").get_symbol_by_name("sim_entry")[0]["st_value"]
        dwarf = elf.get_dwarf_info()
        rows: list[tuple[int, str]] = []
        for unit in dwarf.iter_CUs():
            program = dwarf.line_program_for_CU(unit)
            for step in program.get_entries():
                if (state := step.state) is None:
                    continue
                named = f"{_file_name(program, state.file)}:{state.line}"
                known = state.line and not state.end_sequence
                rows.append((state.address, named if known else ""))
    rows.sort(key=lambda row: row[0])
    return LineTable([address for address, _ in rows], [line for _, line in rows], entry)


def line_of(library: Path, entry: int, site: int) -> str | None:
    """``kernel:12`` for a return address in a loaded library, whose entry lies at `entry`."""
    if not site:
        return None
    table = line_table(library)
    return table.at(site - 1 - (entry - table.entry))
