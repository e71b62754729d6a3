#!/bin/sh
# The same corpus over two workers of a Ray cluster and on this machine alone: the bytes are equal.
# RAY=auto for the cluster that this machine has joined; see docs/distributed.md. LIMIT=6: less of it.
set -e
cd "$(dirname "$0")" && mkdir -p out
run() {
    mlx-spec batch data/snippets.jsonl "$@" --prompt-template '{{ text.split("\n")[0] }}' \
        --batch-size 4 --max-tokens 16 --temp 0.8 --seed 1 --overwrite --limit "${LIMIT:-1000}"
}
run out/over_ray.jsonl --ray "${RAY:-local}" --ray-workers 2
run out/alone.jsonl
cmp out/over_ray.jsonl out/alone.jsonl && echo "the same bytes"
