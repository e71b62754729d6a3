"""From an address in a compiled kernel to the line of its Metal source."""

import bisect
import ctypes
import functools
from dataclasses import dataclass
from pathlib import Path

from elftools.dwarf.lineprogram import LineProgram
from elftools.elf.elffile import ELFFile
from elftools.elf.sections import SymbolTableSection


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


def _file_name(program: LineProgram, number: int) -> str:
    files = program["file_entry"]
    first = 0 if program["version"] >= 5 else 1
    return Path(files[number - first].name.decode()).name


@functools.lru_cache(maxsize=64)
def line_table(library: Path) -> LineTable:
    """Read a library's debug lines."""
    with library.open("rb") as file:
        elf = ELFFile(file)
        symbols = elf.get_section_by_name(".symtab")
        assert isinstance(symbols, SymbolTableSection)
        entry = symbols.get_symbol_by_name("sim_entry")[0]["st_value"]
        rows: list[tuple[int, str]] = []
        dwarf = elf.get_dwarf_info()
        for unit in dwarf.iter_CUs():
            program = dwarf.line_program_for_CU(unit)
            for step in program.get_entries() if program else ():
                if (state := step.state) is None:
                    continue
                named = f"{_file_name(program, state.file)}:{state.line}"
                known = state.line and not state.end_sequence
                rows.append((state.address, named if known else ""))
    rows.sort(key=lambda row: row[0])
    return LineTable([address for address, _ in rows], [line for _, line in rows], entry)


def line_of(library: Path, entry: "ctypes._CFuncPtr", site: int) -> str | None:
    """``kernel:12`` for a return address in a loaded library, whose entry function is given."""
    if not site:
        return None
    table = line_table(library)
    start = ctypes.cast(entry, ctypes.c_void_p).value or 0
    return table.at(site - 1 - (start - table.entry))
