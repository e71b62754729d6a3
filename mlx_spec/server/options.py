"""``ServerOptions``: where the server listens, who may ask, and how much. Imports nothing heavy."""

from __future__ import annotations

import ipaddress
from dataclasses import dataclass
from functools import partial

from mlx_spec.config.checks import check_integer, check_number
from mlx_spec.errors import InvalidRequest
from mlx_spec.pipeline.options import option
from mlx_spec.server.store_options import StoreOptions

_server = partial(option, group="Server")
_access = partial(option, group="Access")
_limit = partial(option, group="Limits")

LOG_LEVELS = ("debug", "info", "warning", "error")
MIB = 2**20


@dataclass(frozen=True)
class ServerOptions(StoreOptions):
    """What ``mlx-spec serve`` takes beside the options of models; see ``--help``.

    Raises:
        InvalidRequest: a value outside its range.
    """

    host: str = _server("127.0.0.1", "Address to listen on; 0.0.0.0 is open to the network.")
    port: int = _server(8080, "Port; 0 is one that is free.")
    served_model_name: str | None = _server(
        None, "What answers call the model. Default: as --model has it.", metavar="NAME"
    )
    log_level: str = _server("warning", "info writes a line a request.", choices=LOG_LEVELS)
    api_key: tuple[str, ...] = _access(
        (),
        "Key that callers must give; repeatable. Also MLX_SPEC_API_KEY, which a list of processes "
        "does not show.",
        metavar="KEY",
    )
    api_key_file: str | None = _access(
        None,
        "More keys, one a line; a number after it is its priority.",
        metavar="FILE",
        is_path=bool,
    )
    insecure: bool = _access(False, "Listen to the network without a key.")
    cors_origin: tuple[str, ...] = _access(
        (),
        "Web pages that may ask, such as http://localhost:3000; * is all.",
        "--allowed-origins",
        words=True,
        metavar="ORIGIN,ORIGIN",
    )
    allowed_host: tuple[str, ...] = _access(
        (),
        "Names that this server goes by beside localhost (a proxy's), where there is no key.",
        words=True,
        metavar="NAME,NAME",
    )
    max_request_bytes: int = _limit(8 * MIB, "Most bytes of a request's body.", metavar="BYTES")
    max_file_bytes: int = _limit(200 * MIB, "The same of an uploaded file.", metavar="BYTES")
    max_prompt_tokens: int | None = _limit(
        None, "Most tokens of a prompt. Default: the model's context.", metavar="N"
    )
    max_output_tokens: int | None = _limit(
        None, "Most tokens that a request may ask for. Default: the model's context.", metavar="N"
    )
    max_n: int = _limit(64, "Most texts of one prompt.", metavar="N")
    max_queue: int = _limit(
        256, "Most texts that wait for a row; a request beyond gets 429.", metavar="N"
    )
    max_connections: int = _limit(1024, "Most open connections.", metavar="N")
    request_timeout: float = _limit(
        3600.0, "Longest time for a request, waiting included, in seconds.", metavar="SECONDS"
    )
    read_timeout: float = _limit(
        30.0,
        "Longest wait for a request to come in, or for a reader that stands still, in s.",
        metavar="SECONDS",
    )
    keep_alive_timeout: float = _limit(
        75.0, "How long a connection may be idle between requests, in seconds.", metavar="SECONDS"
    )

    def __post_init__(self) -> None:
        owner = "serve"
        for name in ("max_request_bytes", "max_file_bytes", "max_n", "max_connections"):
            check_integer(owner, name, getattr(self, name), 1)
        for name in ("max_prompt_tokens", "max_output_tokens"):
            if getattr(self, name) is not None:
                check_integer(owner, name, getattr(self, name), 1)
        check_integer(owner, "max_queue", self.max_queue, 0)
        check_integer(owner, "port", self.port, 0)
        if self.port > 65535:
            raise InvalidRequest(f"[{owner}] port={self.port}, expected 0..65535")
        for name in ("request_timeout", "read_timeout", "keep_alive_timeout"):
            check_number(owner, name, getattr(self, name), 0.0, 1e9, "(0, 1e9]")
        self.check_store()
        object.__setattr__(self, "log_level", self.log_level.lower())  # mlx-lm writes INFO
        if self.log_level not in LOG_LEVELS:
            raise InvalidRequest(
                f"[{owner}] log_level={self.log_level!r}, expected one of {LOG_LEVELS}"
            )

    @property
    def local(self) -> bool:
        """Whether only this machine can reach the server."""
        if self.host == "localhost":
            return True
        try:
            return ipaddress.ip_address(self.host).is_loopback
        except ValueError:
            return False
