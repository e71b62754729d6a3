"""OpenAI's own client against `mlx-spec serve`: chat, a stream, several at once, a given form.

    mlx-spec serve --model smollm2 --draft ngram
    python examples/openai_client.py

Nothing in it is mlx-spec's: programs that speak OpenAI's API need another address, and no more.
OPENAI_BASE_URL says another one, MODEL a model's name (the first that is served).
"""

from __future__ import annotations

import asyncio
import json
import os

from openai import AsyncOpenAI, OpenAI

ADDRESS = os.environ.get("OPENAI_BASE_URL", "http://127.0.0.1:8080/v1")
KEY = os.environ.get("OPENAI_API_KEY", "none")  # a local server wants one only with --api-key
SCHEMA = {
    "type": "object",
    "properties": {"name": {"enum": ["Tom", "Mia"]}, "age": {"type": "integer", "maximum": 99}},
    "required": ["name", "age"],
    "additionalProperties": False,
}


def chat(client: OpenAI, model: str) -> None:
    """One answer, and what the draft was worth."""
    answer = client.chat.completions.create(
        model=model, messages=[{"role": "user", "content": "Name a cat."}], max_tokens=24
    )
    print("answer:", answer.choices[0].message.content)
    usage = answer.usage
    if usage and usage.completion_tokens_details:
        accepted = usage.completion_tokens_details.accepted_prediction_tokens
        print(f"tokens: {usage.completion_tokens}, of which a draft had guessed {accepted}")


def stream(client: OpenAI, model: str) -> None:
    """Word by word."""
    print("stream: ", end="")
    for event in client.chat.completions.create(
        model=model,
        messages=[{"role": "user", "content": "Count to five."}],
        max_tokens=24,
        stream=True,
    ):
        print(event.choices[0].delta.content or "", end="", flush=True)
    print()


def form(client: OpenAI, model: str) -> None:
    """JSON of a schema, and nothing else."""
    answer = client.chat.completions.create(
        model=model,
        messages=[{"role": "user", "content": "Describe a child."}],
        max_tokens=48,
        response_format={
            "type": "json_schema",
            "json_schema": {"name": "child", "schema": SCHEMA, "strict": True},
        },
    )
    print("form:", json.loads(answer.choices[0].message.content or ""))


async def several(model: str) -> None:
    """Eight at once: they decode together, each as if it were alone."""
    async with AsyncOpenAI(base_url=ADDRESS, api_key=KEY) as client:
        questions = [f"What is {number} + {number}?" for number in range(8)]
        answers = await asyncio.gather(
            *(
                client.chat.completions.create(
                    model=model, messages=[{"role": "user", "content": text}], max_tokens=16
                )
                for text in questions
            )
        )
    for text, answer in zip(questions, answers, strict=True):
        print(f"{text} {answer.choices[0].message.content!r}")


def main() -> None:
    with OpenAI(base_url=ADDRESS, api_key=KEY) as client:
        model = os.environ.get("MODEL") or client.models.list().data[0].id
        chat(client, model)
        stream(client, model)
        form(client, model)
    asyncio.run(several(model))


if __name__ == "__main__":
    main()
