"""What a response of ``/v1/responses`` and its items look like, whole or in the making."""

from __future__ import annotations

from collections.abc import Sequence as Seq
from dataclasses import dataclass
from typing import Any

from mlx_spec.results import GenerationResult
from mlx_spec.server.protocol.asked import Asked
from mlx_spec.server.protocol.ends import ended_itself
from mlx_spec.server.protocol.faults import Fault
from mlx_spec.server.protocol.parts import Called, Part, Thought
from mlx_spec.server.protocol.served import ServedModel
from mlx_spec.server.protocol.usage import TokenCounts

COMPLETED, INCOMPLETE, IN_PROGRESS = "completed", "incomplete", "in_progress"


@dataclass(frozen=True)
class ResponseWords:
    """What whole answers and streams of one request say alike.

    Attributes:
        asked, served: as everywhere.
    """

    asked: Asked
    served: ServedModel

    def response(self, status: str, output: Seq[dict[str, Any]], **more: Any) -> dict[str, Any]:
        """The response as it stands."""
        body, sampling = self.asked.body, self.asked.sampling
        return {
            "id": f"resp_{self.asked.request_id}",
            "object": "response",
            "created_at": self.asked.created,
            "status": status,
            "background": False,
            "error": None,
            "incomplete_details": None,
            "instructions": body.instructions,
            "max_output_tokens": sampling.max_tokens,
            "model": self.served.name,
            "output": list(output),
            "parallel_tool_calls": body.parallel_tool_calls is not False,
            "previous_response_id": None,
            "reasoning": body.reasoning or {"effort": None, "summary": None},
            "store": False,
            "temperature": sampling.temperature,
            "text": body.text or {"format": {"type": "text"}},
            "tool_choice": "auto" if body.tool_choice is None else body.tool_choice,
            "tools": body.tools or [],
            "top_logprobs": sampling.top_logprobs,
            "top_p": sampling.top_p,
            "truncation": "disabled",
            "usage": None,
            "user": None,
            "metadata": body.metadata or {},
            **more,
        }

    def ended(self, results: Seq[GenerationResult], output: Seq[dict[str, Any]]) -> dict[str, Any]:
        """The response at its end."""
        usage = self.usage(results)
        if ended_itself(results[0].finish_reason):
            return self.response(COMPLETED, output, usage=usage)
        why = {"reason": "max_output_tokens"}
        return self.response(INCOMPLETE, output, usage=usage, incomplete_details=why)

    def failed(self, fault: Fault, output: Seq[dict[str, Any]]) -> dict[str, Any]:
        """The response where it failed."""
        error = {"code": "server_error", "message": fault.message}
        return self.response("failed", output, error=error)

    def usage(self, results: Seq[GenerationResult]) -> dict[str, Any]:
        """What it took."""
        counts = TokenCounts.of(self.asked, results, self.served.tokenizer)
        return {
            "input_tokens": counts.prompt,
            "input_tokens_details": {"cached_tokens": counts.reused},
            "output_tokens": counts.said,
            "output_tokens_details": {
                "reasoning_tokens": counts.reasoned,
                "accepted_prediction_tokens": counts.accepted,
                "rejected_prediction_tokens": counts.rejected,
            },
            "total_tokens": counts.prompt + counts.said,
        }

    def item(
        self, place: int, part: Part, status: str = COMPLETED, logprobs: Seq[Any] = ()
    ) -> dict[str, Any]:
        """An item of the output, with all that its part holds."""
        name = f"{self.asked.request_id}_{place}"
        if isinstance(part, Called):
            call = part.call
            return {
                "type": "function_call",
                "id": f"fc_{name}",
                "call_id": call.id,
                "name": call.name,
                "arguments": call.arguments,
                "status": status,
            }
        content = [content_part(part, logprobs)] if part.text else []
        if isinstance(part, Thought):
            head = {"type": "reasoning", "id": f"rs_{name}", "summary": []}
            return {**head, "content": content, "status": status}
        head = {"type": "message", "id": f"msg_{name}", "role": "assistant"}
        return {**head, "content": content, "status": status}


def content_part(part: Part, logprobs: Seq[Any] = ()) -> dict[str, Any]:
    """What an item's content is, of texts."""
    assert not isinstance(part, Called)
    if isinstance(part, Thought):
        return {"type": "reasoning_text", "text": part.text}
    found = list(logprobs)
    return {"type": "output_text", "text": part.text, "annotations": [], "logprobs": found}
