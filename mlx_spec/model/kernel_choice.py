"""Which Metal kernels a model runs: what was found right and quicker on this very machine.

``auto`` asks the machine. The places where a model would call a kernel (``kernel_sites``) are
tried there once, at most ``SECONDS`` of a load, in a process of its own (``kernel_trial``); what
was found is kept on disk by chip, system, mlx version and kernels' sources. What time does not
suffice for stays off, and is tried at the next load. A kernel that is wrong, raises, hangs or ends
its process is off for good, said once and shown by ``mlx-spec doctor --kernels``.

    load -> sites_of(model) -> kept verdicts -> anything left? -> try_kernels -> keep
                                    |                                             |
                                    +------> ShapedKernel by operation <----------+-> bind
"""

from __future__ import annotations

import functools
import hashlib
import platform
import time
import warnings
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

import mlx.core as mx

import metal_kernels
from metal_kernels.trials.judge import KernelVerdict, from_record, to_record
from metal_kernels.trials.site import ORDER, KernelSite
from mlx_spec.errors import InvalidRequest
from mlx_spec.kept_file import keep, kept_path, read_kept
from mlx_spec.model.fused_layers import Call
from mlx_spec.model.kernel_binding import OPERATIONS, KernelBinding, bind_operations
from mlx_spec.model.kernel_sites import sites_of
from mlx_spec.model.kernel_trial import trial_command, try_kernels
from mlx_spec.model.shaped_kernel import ShapedKernel

SECONDS = 2.0  # of a load, at most

Verdicts = tuple[KernelVerdict, ...]
Attempt = Callable[[Verdicts, float], Verdicts]
"""What is known of sites after so many seconds of trying them."""


def bind_kernels(model: Any, kernels: str = "auto") -> KernelBinding:
    """Let a model run the Metal kernels, from now on or while a context lasts.

    Args:
        model: any model of mlx-lm.
        kernels: ``"auto"``, those found right and quicker here, at the shapes where they are;
            ``"metal"``, all; ``"reference"``, none: the model as mlx-lm wrote it.

    Raises:
        InvalidRequest: another word, or ``"metal"`` where there is no Metal.

    Warns:
        RuntimeWarning: a kernel was found to be wrong here, or to fail.
    """
    check_kernels(kernels)
    operations: dict[str, Call] = {}
    if kernels == "metal":
        operations = {name: operation.kernel for name, operation in OPERATIONS.items()}
    elif kernels == "auto":
        operations = chosen(decide(model))
    return bind_operations(model, operations)


def check_kernels(kernels: str) -> None:
    """Refuse a choice that does not exist, or not here.

    Raises:
        InvalidRequest: as for :func:`bind_kernels`.
    """
    if kernels not in ("auto", "metal", "reference"):
        raise InvalidRequest(
            f"[bind_kernels] kernels={kernels!r}, expected auto, metal or reference"
        )
    if kernels == "metal" and not metal_kernels.available():
        raise InvalidRequest("[bind_kernels] kernels='metal', but there is no Metal here")


def decide(model: Any, seconds: float = SECONDS, attempt: Attempt | None = None) -> Verdicts:
    """What is known of a model's kernels here, after trying what is not known yet.

    Args:
        model: any model of mlx-lm; its weights may be unread.
        seconds: to spend, at most.
        attempt: how to try; None: in a process of its own.

    Warns:
        RuntimeWarning: a kernel was found to be wrong here, or to fail.
    """
    if not metal_kernels.available():
        return ()
    end = time.monotonic() + seconds
    try:
        sites = sites_of(model)
    except Exception:  # whatever a model's code raises: then it runs as mlx-lm wrote it
        return ()
    book = Book.open()
    known = tuple(book.verdicts.get(site, KernelVerdict(site)) for site in sites)
    attempt = attempt or _in_a_child()
    if attempt is not None and any(each.left for each in known):
        before, known = known, attempt(known, max(0.0, end - time.monotonic()))
        _say(one for one, old in zip(known, before, strict=True) if one.broken and not old.broken)
        book.add(known)
    return known


def _in_a_child() -> Attempt | None:
    command = trial_command()
    if command is None:
        return None
    return lambda known, seconds: try_kernels(known, seconds, command)


def told(known: KernelVerdict) -> str:
    """A verdict in words: where, and why."""
    return f"{known.site.operation} ({known.site}, {known.site.dtype}): {known.why}"


def _say(broken: Iterable[KernelVerdict]) -> None:
    if words := "; ".join(map(told, broken)):
        warnings.warn(
            f"Metal kernels that are off on this machine, where MLX's own operations run: "
            f"{words} (mlx-spec doctor --kernels)",
            RuntimeWarning,
            stacklevel=5,
        )


def chosen(verdicts: Iterable[KernelVerdict]) -> dict[str, Call]:
    """The kernels to bind, by operation: each where all places of the model agree that it pays."""
    sites: dict[str, list[KernelVerdict]] = {name: [] for name in ORDER}
    for known in verdicts:
        sites[known.site.operation].append(known)
    found: dict[str, Call] = {}
    for name, places in sites.items():
        won = [known.won for known in places]  # none where it is broken
        if won and (all_won := frozenset.intersection(*won)):
            found[name] = ShapedKernel(OPERATIONS[name], all_won)
    return found


@dataclass(frozen=True)
class Book:
    """What is known of this machine, on disk.

    Attributes:
        machine: chip, system, versions: what it holds for.
        verdicts: by site.
    """

    machine: str
    verdicts: dict[KernelSite, KernelVerdict]

    @classmethod
    def open(cls) -> Book:
        """This machine's; an empty one where none is kept.

        Warns:
            RuntimeWarning: there is a file that is not what was written.
        """
        name = machine_name()
        found = read_kept(
            path_of(name),
            name,
            lambda record: [from_record(one) for one in record["verdicts"]],
            "kernels are tried anew",
        )
        return cls(name, {known.site: known for known in found or ()})

    def add(self, verdicts: Iterable[KernelVerdict]) -> None:
        """Keep more of them; where that cannot be, the next process tries them again."""
        self.verdicts.update({known.site: known for known in verdicts})
        record = {"verdicts": [to_record(known) for known in self.verdicts.values()]}
        keep(path_of(self.machine), self.machine, record)


def machine_name() -> str:
    """What verdicts hold for: another chip, system, mlx or source of the kernels is another."""
    chip = str(mx.device_info().get("device_name", "unknown"))
    system = f"macOS {platform.mac_ver()[0]}" if platform.mac_ver()[0] else platform.system()
    return f"{chip}, {system}, mlx {metadata.version('mlx')}, kernels {_sources()}"


def path_of(machine: str) -> Path:
    """Where a machine's verdicts are kept."""
    return kept_path("kernels", hashlib.sha256(machine.encode()).hexdigest()[:24])


@functools.cache
def _sources() -> str:
    """A hash of the kernels and of what launches them."""
    folder = Path(metal_kernels.__file__).parent
    files = sorted(path for path in folder.rglob("*.*") if path.suffix in (".py", ".metal"))
    return hashlib.sha256(b"".join(path.read_bytes() for path in files)).hexdigest()[:12]
