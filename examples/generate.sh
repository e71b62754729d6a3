#!/bin/sh
# Complete the first line of every snippet; speculation and batching are on by default.
cd "$(dirname "$0")" && mkdir -p out && exec mlx-spec batch data/snippets.jsonl out/generated.jsonl \
    --prompt-template '{{ text.split("\n")[0] }}' --batch-size 8 --max-tokens 24 --resume
