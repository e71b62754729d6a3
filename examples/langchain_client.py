"""LangChain over `mlx-spec serve`: a chain of two steps, over many texts at a time.

    pip install langchain-openai
    mlx-spec serve --model smollm2 --draft ngram
    python examples/langchain_client.py

A chain's `batch` sends its requests side by side; the server decodes them together.
"""

from __future__ import annotations

import os

from langchain_core.output_parsers import StrOutputParser
from langchain_core.prompts import ChatPromptTemplate
from langchain_openai import ChatOpenAI

ADDRESS = os.environ.get("OPENAI_BASE_URL", "http://127.0.0.1:8080/v1")
TEXTS = ["Rome is the capital of Italy.", "Tea is served at four.", "The library opens at nine."]


def main() -> None:
    model = ChatOpenAI(
        base_url=ADDRESS,
        api_key=os.environ.get("OPENAI_API_KEY", "none"),
        model=os.environ.get("MODEL", "default"),
        max_tokens=32,
        temperature=0,
    )
    ask = ChatPromptTemplate.from_template("Ask one question that this answers: {text}")
    shorten = ChatPromptTemplate.from_template("Say it in five words: {question}")
    text = StrOutputParser()
    chain = ask | model | text | (lambda question: {"question": question}) | shorten | model | text
    inputs = [{"text": one} for one in TEXTS]
    for given, said in zip(TEXTS, chain.batch(inputs, config={"max_concurrency": 8}), strict=True):
        print(f"{given} -> {said!r}")
    print("stream: ", end="")
    for piece in (ask | model | text).stream(inputs[0]):
        print(piece, end="", flush=True)
    print()


if __name__ == "__main__":
    main()
