"""Machines that Ray joined: which, how many workers, and a small Ray of our own for ``local``.

The only module that starts or ends Ray. Machines are those that Ray can put work on; each gets one
worker unless told otherwise.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from mlx_spec.errors import InvalidRequest

LOCAL, AUTO = "local", "auto"
# Bytes of shared memory of a Ray of our own: only requests and answers on their way are in it.
_OBJECT_STORE = 128 * 2**20
_HOST = re.compile(r"[\w.\-\[\]:]+:\d+")


@dataclass(frozen=True)
class Machines:
    """Where workers go.

    Attributes:
        workers: how many. Ray spreads them over machines; where one is lost, its worker begins
            again on another.
    """

    workers: int


def check_address(address: str) -> None:
    """Refuse what is no place to find Ray.

    Raises:
        InvalidRequest: it says what would be one.
    """
    if address.startswith("ray://"):
        raise InvalidRequest(
            f"[ray] {address}: Ray's client sees no files of this machine; run the command on a "
            "machine of the cluster, with --ray auto"
        )
    if address not in (LOCAL, AUTO) and not _HOST.fullmatch(address):
        raise InvalidRequest(f"[ray] --ray {address}, expected auto, local or HOST:PORT")


def import_ray() -> Any:
    """Ray with its part for data, or what to install."""
    # Nobody who decodes on their own machine asked to report it; who starts Ray decides for that.
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    # What Ray says to itself; what went wrong for the user is an exception.
    os.environ.setdefault("RAY_BACKEND_LOG_LEVEL", "fatal")
    try:
        import ray
        import ray.data
    except ImportError as error:
        raise InvalidRequest(
            "[ray] --ray needs Ray: pip install 'mlx-spec[ray]', on every machine"
        ) from error
    return ray


@contextmanager
def joined(address: str, workers: int | None) -> Iterator[Machines]:
    """Be one of a cluster's programs for a while; one that this process has joined already stays.

    Args:
        address: ``auto`` (the one that runs here), ``local`` (start one, and end it afterwards) or
            HOST:PORT of its head.
        workers: how many; None: one a machine.

    Raises:
        InvalidRequest: there is no cluster, or Ray is not installed.
    """
    check_address(address)
    ray = import_ray()
    if ray.is_initialized():
        yield _machines(ray, workers)
        return
    try:
        with _hushed():
            _start(ray, address, workers or 1)
    except (ConnectionError, ValueError, RuntimeError, TimeoutError) as error:
        hint = "" if address == LOCAL else "; is it running there (ray start)?"
        raise InvalidRequest(
            f"[ray] no cluster at {address}{hint} ({_first_line(error)})"
        ) from error
    try:
        yield _machines(ray, workers)
    finally:
        ray.shutdown()


def _start(ray: Any, address: str, workers: int) -> None:
    quiet = {"logging_level": "ERROR", "log_to_driver": False}
    if address == LOCAL:
        ray.init(
            address=LOCAL,
            num_cpus=workers + 1,  # the one more is for who reads the records
            object_store_memory=_OBJECT_STORE,
            include_dashboard=False,
            **quiet,
        )
    else:
        ray.init(address=address, **quiet)


@contextmanager
def _hushed() -> Iterator[None]:
    """Nothing reaches stderr meanwhile: Ray's C++ greets there; what goes wrong is raised."""
    kept, nowhere = os.dup(2), os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, 2)
    try:
        yield
    finally:
        os.dup2(kept, 2)
        os.close(kept)
        os.close(nowhere)


def _machines(ray: Any, workers: int | None) -> Machines:
    counts = [int(node["Resources"].get("CPU", 0)) for node in ray.nodes() if node["Alive"]]
    able = [count for count in counts if count >= 1]
    if not able:
        raise InvalidRequest(
            "[ray] no machine of the cluster has a CPU to give (ray start --num-cpus)"
        )
    return Machines(workers or len(able))


def _first_line(error: BaseException) -> str:
    return str(error).strip().partition("\n")[0][:200] or type(error).__name__
