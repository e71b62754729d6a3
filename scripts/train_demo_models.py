"""Train the embedded demo pair: a 6.4M-parameter target and a 0.63M draft distilled from it.

    pip install torch==2.13.0 tokenizers safetensors numpy transformers "mlx[cpu]" mlx-lm
    python scripts/train_demo_models.py

That one command runs all stages, about 80 minutes on two idle cores, and leaves the pair in
`mlx_spec/demo_models/`. Name stages to run only those; run it again after a stop and it continues
from the last checkpoint.

    tokenizer   byte-level BPE, 2,048 tokens, on the corpus
    target      Llama d=256, 8 layers, next-token loss
    teacher     the target's hidden states over the corpus and over its own continuations
    draft       Llama d=128, 2 layers, KL to the target, then total variation
    export      float16 folders for `mlx_lm.load`
    evaluate    loss, agreement, acceptance, samples; logits against mlx-lm's

The text is the source of the standard library of the Python that runs this: Copyright Python
Software Foundation, PSF licence version 2 (https://docs.python.org/3/license.html).

The order of the data is a function of `--seed` and the step alone. The learning rate follows the
larger of steps done and minutes spent (each as a fraction of its budget), so a slow machine still
ends with a finished schedule; raise the minutes to make the steps decide.
"""

from __future__ import annotations

import argparse
import json
import time
from functools import cached_property
from pathlib import Path

import numpy as np
import torch
from demo_training import evaluate, export, model, teacher, trainer
from demo_training.corpus import (
    SHORT,
    Batches,
    Tokens,
    load_documents,
    tokenize,
    train_tokenizer,
    windows,
)
from tokenizers import Tokenizer
from torch import Tensor
from torch.nn import functional

STAGES = ("tokenizer", "target", "teacher", "draft", "export", "evaluate")
TOKENS_PER_STEP = 4096
_ROOT = Path(__file__).resolve().parents[1]


class Pipeline:
    """The stages, and the files they hand to each other in the checkpoint folder."""

    def __init__(self, options: argparse.Namespace) -> None:
        self._options = options
        self._folder: Path = options.checkpoint_dir
        self._folder.mkdir(parents=True, exist_ok=True)

    @cached_property
    def _tokenizer(self) -> Tokenizer:
        return Tokenizer.from_file(str(self._folder / "tokenizer.json"))

    @cached_property
    def _tokens(self) -> Tokens:
        return tokenize(load_documents(), self._tokenizer)

    @cached_property
    def _held_out(self) -> Tensor:
        """Every eighth validation window, for the check lines of the logs."""
        return torch.from_numpy(windows(self._tokens.validation, SHORT)[::8].astype(np.int64))

    def tokenizer(self) -> None:
        """Train the tokenizer, unless it is there."""
        path = self._folder / "tokenizer.json"
        if not path.exists():
            train_tokenizer(load_documents().train).save(str(path))
        tokens = self._tokens
        print(
            f"{len(tokens.train):,} training tokens, {len(tokens.validation):,} held out, "
            f"{tokens.validation_bytes / len(tokens.validation):.2f} bytes a token",
            flush=True,
        )

    def target(self) -> None:
        """Train the target on the corpus."""
        options = self._options
        plan = trainer.Plan(options.target_steps, options.target_minutes, options.target_rate)
        data = Batches(self._tokens.train, TOKENS_PER_STEP, options.seed)

        def loss_of(target: model.Llama, step: int, _: float) -> Tensor:
            rows = torch.from_numpy(data.batch(step).astype(np.int64))
            logits = target(rows[:, :-1]).flatten(0, 1).float()
            return functional.cross_entropy(logits, rows[:, 1:].flatten())

        run = trainer.Run(model.Llama(model.TARGET, options.seed), plan, self._folder / "target.pt")
        trainer.fit(run, loss_of, lambda target: f"{evaluate.loss_of(target, self._held_out):.4f}")

    def teacher(self) -> None:
        """Let the target read the corpus and write its own text, once."""
        target, stream, folder = self._load("target"), self._tokens.train, self._folder
        if not (folder / "read" / "tokens.npy").exists():
            stream = stream[: self._options.read_tokens]
            teacher.read_corpus(target, stream).save(folder / "read")
        if not (folder / "written" / "tokens.npy").exists():
            rows, seed = self._options.written_rows, self._options.seed
            teacher.write_continuations(target, stream, rows, seed).save(folder / "written")

    def draft(self) -> None:
        """Distil the draft from what the teacher stage left."""
        options, target = self._options, self._load("target")
        plan = trainer.Plan(options.draft_steps, options.draft_minutes, options.draft_rate)
        lessons = [teacher.Lesson.load(self._folder / name) for name in ("read", "written")]
        head = target.model.embed_tokens.weight.detach()
        data = teacher.Distillation(head, *lessons, options.seed)

        def loss_of(draft: model.Llama, step: int, progress: float) -> Tensor:
            late = max(0.0, progress - (1 - plan.decay)) / plan.decay
            return data.loss(draft, step, options.tv_weight * late)

        def check(draft: model.Llama) -> str:
            figures = evaluate.acceptance(target, draft, self._held_out[:, :-1])
            return ", ".join(f"{name} {value:.4f}" for name, value in figures.items())

        run = trainer.Run(
            model.Llama(model.DRAFT, options.seed + 1), plan, self._folder / "draft.pt"
        )
        trainer.fit(run, loss_of, check)

    def export(self) -> None:
        """Write both folders."""
        for name in ("target", "draft"):
            folder = self._options.output / name
            size = export.export(self._load(name), self._tokenizer, folder)
            print(f"{folder}: {size:,} bytes", flush=True)

    def evaluate(self) -> None:
        """Measure the exported pair; the record also lands in the checkpoint folder."""
        record = evaluate.report(self._options.output, self._tokenizer, self._tokens)
        record["largest logit difference from mlx-lm"] = evaluate.check_mlx(self._options.output)
        text = json.dumps(record, indent=2)
        (self._folder / "evaluation.json").write_text(text + "\n")
        print(text, flush=True)

    def _load(self, name: str) -> model.Llama:
        """The model of a checkpoint, finished or not."""
        loaded = model.Llama(model.TARGET if name == "target" else model.DRAFT)
        state = torch.load(self._folder / f"{name}.pt", weights_only=True)
        loaded.load_state_dict(state["model"])
        return loaded.eval()


def parse(arguments: list[str] | None = None) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("stages", nargs="*", metavar="stage", help=f"of {', '.join(STAGES)} (default: all)")
    add("--output", type=Path, default=_ROOT / "mlx_spec" / "demo_models", help="the pair's folder")
    add("--checkpoint-dir", type=Path, default=Path("demo_checkpoints"), help="to continue from")
    add("--seed", type=int, default=0, help="weights, order of the data, continuations")
    add("--threads", type=int, default=2, help="PyTorch threads")
    add("--target-steps", type=int, default=2850, help="of 4,096 tokens")
    add("--target-minutes", type=float, default=49, help="wall time of the target stage")
    add("--target-rate", type=float, default=5e-3, help="peak learning rate")
    add("--read-tokens", type=int, default=None, help="corpus for the teacher (default: all)")
    add("--written-rows", type=int, default=640, help="continuations of 512 tokens")
    add("--draft-steps", type=int, default=4500, help="of 4,096 tokens")
    add("--draft-minutes", type=float, default=15, help="wall time of the draft stage")
    add("--draft-rate", type=float, default=5e-3, help="peak learning rate")
    add("--tv-weight", type=float, default=0.5, help="share of total variation at the end")
    options = parser.parse_args(arguments)
    if unknown := set(options.stages) - set(STAGES):
        parser.error(f"unknown stage {', '.join(sorted(unknown))}; there are {', '.join(STAGES)}")
    return options


def main() -> None:
    """Run the stages asked for, in order."""
    options = parse()
    torch.set_num_threads(options.threads)
    pipeline = Pipeline(options)
    for stage in STAGES:
        if not options.stages or stage in options.stages:
            started = time.perf_counter()
            print(f"== {stage}", flush=True)
            getattr(pipeline, stage)()
            print(f"== {stage} took {time.perf_counter() - started:.0f} s", flush=True)


if __name__ == "__main__":
    main()
