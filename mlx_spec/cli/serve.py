"""``mlx-spec serve``: an HTTP server for the model, in the APIs that people's programs speak."""

from __future__ import annotations

import typer

from mlx_spec.cli.parameters import takes
from mlx_spec.cli.sharded import follow_where_told
from mlx_spec.server.flags import ServeFlags
from mlx_spec.server.options import ServerOptions

# Of single texts or of files; or told by each request.
_NOT_HERE = {"unordered", "prefill_response", "prompt_logprobs", "json_schema", "regex"}
_NOT_HERE |= {"choices", "grammar", "logprobs", "top_logprobs"}


@takes("options", ServerOptions)
@takes("flags", ServeFlags, without=_NOT_HERE)
def serve(*, options: ServerOptions, flags: ServeFlags) -> None:
    """Serve a model over HTTP: OpenAI's and Anthropic's APIs, a playground at /, and /metrics.

    Requests are decoded together, join and leave at any step, and are speculated on; each gets
    the tokens that it would get alone. Ctrl-C or SIGTERM finishes what runs; a second one does not.
    """
    follow_where_told(flags)
    from mlx_spec.cli.serve_run import run_server

    raise typer.Exit(run_server(options, flags))
