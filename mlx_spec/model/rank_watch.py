"""``RankWatch``: whether the other ranks are still there, and a bell for those that wait.

MLX's links say nothing of a peer that is gone: who waits for it there waits for ever, or is ended
without a word. So every rank keeps a plain connection to rank 0, over which hardly anything is
sent; the system closes it when a process ends, however that happens::

    rank 1  ---- words, when it leaves ---->  rank 0  ---- a byte: come and listen ---->  rank 2
            ---- a byte: I was told to end ->          ---- another: it is all over ---->

Where a rank is gone the others end, with a line that says so: a part of the model is missing, and
nothing can be computed any more. Waiting in MLX's links takes a processor; a rank that has nothing
to do waits here for the bell, and takes none. Rank 0's program may end before a model was loaded,
over a mistake or because nothing was to be done: then the others end without a word, too.
"""

from __future__ import annotations

import contextlib
import json
import os
import selectors
import signal
import socket
import sys
import threading
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

HELLO = 16  # bytes by which a connection shows that it is one of ours
PATIENCE = 30.0  # seconds for the connections to be made
SOON = 1.0  # seconds in which a rank leaves that rank 0 has told to
# Seconds for a program to say what it has to say, once a rank is gone.
GRACE = 2.0
_BELL, _DISMISSED, _TOLD_TO_END = b".", b"!", b"\0"
_KEEP_ALIVE = {"TCP_KEEPIDLE": 10, "TCP_KEEPINTVL": 5, "TCP_KEEPCNT": 3}


def address_of_first() -> str:
    """Where rank 0 can be reached, by what ``mlx.launch`` says; else by this machine's name."""
    hosts = os.environ.get("MLX_HOSTFILE")
    if hosts and Path(hosts).is_file():
        first = json.loads(Path(hosts).read_text())[0][0]
        return str(first).rpartition(":")[0].strip("[]")
    coordinator = os.environ.get("MLX_JACCL_COORDINATOR", "")
    return coordinator.rpartition(":")[0] or socket.gethostname()


@dataclass(frozen=True)
class Invitation:
    """Where rank 0 is, and how others show that they are of this program."""

    address: tuple[str, int]
    hello: bytes


class RankWatch:
    """One rank's end of it.

    Args:
        rank, size: this one's, and how many there are.

    Attributes:
        heard: told, in words, when a rank is gone; in a thread of the watch. The link is the first
            of them. The process ends ``GRACE`` seconds later.
    """

    def __init__(self, rank: int, size: int) -> None:
        self.rank, self.size = rank, size
        self.heard: list[Callable[[str], None]] = []
        self._over = threading.Event()
        self._lost = threading.Event()
        self._said, self._told, self._ending = "", False, False
        self._bell, self._dismissed = threading.Semaphore(0), False
        self._peers: dict[socket.socket, int] = {}
        self._words: dict[int, str] = {}

    @staticmethod
    def listen() -> tuple[socket.socket, Invitation]:
        """On rank 0: a socket, and what the others must know of it."""
        host = address_of_first()
        server = socket.create_server((host, 0))
        server.settimeout(PATIENCE)
        return server, Invitation((host, server.getsockname()[1]), os.urandom(HELLO))

    def accept(self, server: socket.socket, invitation: Invitation) -> None:
        """On rank 0: wait until all others are connected."""
        with server:
            while len(self._peers) < self.size - 1:
                peer, _ = server.accept()
                peer.settimeout(PATIENCE)
                data = _exactly(peer, HELLO + 4)
                if data[:HELLO] == invitation.hello:
                    self._take(peer, int.from_bytes(data[HELLO:], "little"))
                else:
                    peer.close()
        self._start()

    def connect(self, invitation: Invitation) -> None:
        """On another rank: connect to rank 0."""
        peer = socket.create_connection(invitation.address, PATIENCE)
        peer.sendall(invitation.hello + self.rank.to_bytes(4, "little"))
        self._take(peer, 0)
        self._start()

    def ring(self) -> None:
        """On rank 0: have the others listen."""
        for peer in self._peers:
            self._send(peer, _BELL)

    def wait(self) -> bool:
        """On another rank: until rank 0 has something to say; False where it has ended."""
        self._bell.acquire()
        return not self._dismissed

    def ends(self) -> bool:
        """On rank 0: the others are about to leave, as they should; whether that is news."""
        news, self._ending = not self._ending, True
        return news

    def dismiss(self) -> None:
        """On rank 0, at its end, where no engine was made: let the others end, loading or not."""
        if self.ends():
            for peer in self._peers:
                self._send(peer, _DISMISSED)
            self.leave("")

    def pass_on(self) -> None:
        """On another rank, which was told to end: that is rank 0's to do, for all."""
        for peer in self._peers:
            self._send(peer, _TOLD_TO_END)

    def leave(self, words: str) -> None:
        """This rank ends: because of what is in ``words``, or as it should."""
        self._over.set()
        for peer in self._peers:
            self._send(peer, words.encode()[:2000])
            if words:  # whatever this process does until it has ended
                with contextlib.suppress(OSError):
                    peer.shutdown(socket.SHUT_WR)

    def _take(self, peer: socket.socket, rank: int) -> None:
        peer.settimeout(None)
        peer.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        peer.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        for name, value in _KEEP_ALIVE.items():
            if hasattr(socket, name):
                peer.setsockopt(socket.IPPROTO_TCP, getattr(socket, name), value)
        self._peers[peer] = rank

    def _start(self) -> None:
        threading.Thread(target=self._watch, name="mlx-spec-ranks", daemon=True).start()

    def _watch(self) -> None:
        with selectors.DefaultSelector() as selector:
            for peer in self._peers:
                selector.register(peer, selectors.EVENT_READ, peer)
            while True:
                for key, _ in selector.select():
                    if not self._read(key.data):
                        self._lose(self._peers[key.data])
                        return

    def _read(self, peer: socket.socket) -> bool:
        """What a peer has sent; False where it is gone."""
        try:
            data = peer.recv(4096)
        except OSError:
            data = b""
        if self.rank:
            self._dismissed |= _DISMISSED in data
            for _ in range(len(data)):
                self._bell.release()
        else:
            rank = self._peers[peer]
            words = data.replace(_TOLD_TO_END, b"").decode(errors="replace")
            self._words[rank] = self._words.get(rank, "") + words
            if _TOLD_TO_END in data:
                os.kill(os.getpid(), signal.SIGTERM)
        return bool(data)

    def why_lost(self) -> str:
        """Who is gone, in words, for somebody who says it; empty where it is nobody."""
        self._told = self._lost.wait(GRACE)
        return self._said if self._told else ""

    def _lose(self, rank: int) -> None:
        if (self.rank or self._ending) and self._over.wait(SOON):
            return
        if self._dismissed:
            os._exit(0)  # whatever it was loading
        self._said = f"rank {rank} of {self.size} is gone"
        if self._words.get(rank):
            self._said += f": {self._words[rank]}"
        self._lost.set()
        for heard in () if self._ending else self.heard:
            heard(self._said)
        if self._over.wait(GRACE):
            return
        if not (self._told or self._ending):
            print(f"mlx-spec: error: rank {self.rank}: {self._said}", file=sys.stderr, flush=True)
        with contextlib.suppress(Exception):
            sys.stdout.flush()
        os._exit(1)  # a thread that waits in one of MLX's links would wait for ever

    @staticmethod
    def _send(peer: socket.socket, data: bytes) -> None:
        with contextlib.suppress(OSError):  # the watch sees that, too
            peer.sendall(data)


def _exactly(peer: socket.socket, count: int) -> bytes:
    data = b""
    while len(data) < count and (more := peer.recv(count - len(data))):
        data += more
    return data
