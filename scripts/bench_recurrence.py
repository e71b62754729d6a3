"""What verifying several tokens costs where a model keeps a recurrent state.

A step of ``--batch`` rows: a pass of W tokens, the target's own choices, ``commit`` of a random
part of them. Random models of about 50 million parameters, shaped as Qwen3-Next (gated delta net
beside attention), Mamba 2, Nemotron-H and Jamba are. The ways run in turn, round after round.
Milliseconds are the process's own CPU time, which others on the machine disturb least; ratios are
medians of ratios within a round. "pass" is one of W tokens that nobody cuts: what is beyond it is
what keeping the states right costs. The last line is JSON.

    python scripts/bench_recurrence.py --batch 4 --width 5 --rounds 15
"""

from __future__ import annotations

import argparse
import importlib
import time
from functools import partial
from typing import Any

from bench_support.results import add_save, finish, table
from bench_support.rounds import Figures, interleave, ratio

import mlx_spec.model  # noqa: F401  isort: skip (loads the fast BLAS before mlx)
import mlx.core as mx  # isort: skip

from mlx_spec.model.passes.form import WHOLE, PassForm
from mlx_spec.model.passes.make import make_pass
from mlx_spec.model.recurrence.replay import Way
from mlx_spec.model.runner import ModelRunner, Rows

COMMON = {
    "vocab_size": 8192,
    "hidden_size": 512,
    "num_hidden_layers": 8,
    "intermediate_size": 2048,
    "num_attention_heads": 8,
    "num_key_value_heads": 4,
    "head_dim": 64,
    "rms_norm_eps": 1e-5,
    "layer_norm_epsilon": 1e-5,
    "max_position_embeddings": 4096,
    "rope_theta": 10000.0,
    "tie_word_embeddings": True,
}
SHAPES: dict[str, dict[str, Any]] = {
    "qwen3_next": {
        "linear_num_value_heads": 8,
        "linear_num_key_heads": 4,
        "linear_key_head_dim": 64,
        "linear_value_head_dim": 64,
        "linear_conv_kernel_dim": 4,
        "num_experts": 0,
        "num_experts_per_tok": 0,
        "decoder_sparse_step": 1,
        "shared_expert_intermediate_size": 0,
        "mlp_only_layers": [],
        "moe_intermediate_size": 0,
        "partial_rotary_factor": 0.5,
    },
    "mamba2": {
        "num_heads": 16,
        "head_dim": 64,
        "time_step_rank": 32,
        "num_hidden_layers": 24,
        "state_size": 64,
        "conv_kernel": 4,
        "n_groups": 1,
        "use_bias": False,
        "use_conv_bias": True,
        "time_step_limit": [0.0, 100.0],
    },
    "nemotron_h": {
        "mamba_num_heads": 16,
        "mamba_head_dim": 64,
        "mamba_proj_bias": False,
        "ssm_state_size": 64,
        "conv_kernel": 4,
        "n_groups": 1,
        "use_conv_bias": True,
        "use_bias": False,
        "mlp_bias": False,
        "attention_bias": False,
        "time_step_limit": [0.0, 100.0],
        "num_hidden_layers": 24,
        "hybrid_override_pattern": "M-M-M-M*M-M-M-M*M-M-M-M*",
    },
    "jamba": {
        "attn_layer_offset": 3,
        "attn_layer_period": 4,
        "expert_layer_offset": 1,
        "expert_layer_period": 2,
        "mamba_d_conv": 4,
        "mamba_d_state": 16,
        "mamba_expand": 2,
        "num_experts": 1,
        "num_experts_per_tok": 1,
    },
}


def build(name: str) -> Any:
    """A random float32 model."""
    module = importlib.import_module(f"mlx_lm.models.{name}")
    mx.random.seed(0)
    config = {"model_type": name, **COMMON, **SHAPES[name]}
    model = module.Model(module.ModelArgs.from_dict(config))
    model.set_dtype(mx.float32)
    model.eval()
    mx.eval(model.parameters())
    return model


class Bench:
    """Steps over the slots of one model."""

    def __init__(self, model: Any, options: argparse.Namespace) -> None:
        self.runner = ModelRunner(model, options.batch)
        self.batch, self.steps = options.batch, options.steps
        pool = self.runner.pool
        pool.acquire(options.batch)
        pool.reserve(4096)
        first = mx.zeros((options.batch, 32), mx.int32)
        self.runner.feed(Rows(first, mx.zeros(options.batch, mx.int32), 32), 512, wait=True)
        self.start = mx.full((options.batch,), 32, mx.int32)
        grouped = self.runner.support.grouped_masks
        self.ways = {
            form: make_pass(form, model, pool, grouped=grouped)
            for form in (WHOLE, PassForm(tokens_apart=True))
        }

    def run(self, form: PassForm, width: int, cut: bool = True) -> Figures:
        """Some steps, in milliseconds each; the time that describing them takes apart."""
        through, starts = self.ways[form], self.start
        tokens = mx.zeros((self.batch, width), mx.int32)
        began, described = time.process_time(), 0.0
        for step in range(self.steps):
            asked = time.thread_time()
            limit = 32 + width * (step + 1)
            logits = through.forward(Rows(tokens, starts, limit, tentative=cut, since=32))
            chosen = mx.argmax(logits, axis=-1)
            kept = mx.random.randint(1, width + 1, (self.batch,), key=mx.random.key(step))
            if cut:
                through.commit(kept)
            described += time.thread_time() - asked
            starts = starts + kept
            mx.eval(starts, chosen, self.runner.pool.arrays)
        spent = time.process_time() - began
        return {"ms": 1e3 * spent / self.steps, "described": 1e3 * described / self.steps}


def main() -> None:
    """Measure, print tables and JSON."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--models", nargs="+", default=list(SHAPES), choices=list(SHAPES))
    parser.add_argument("--batch", type=int, default=4)
    parser.add_argument("--width", type=int, default=5, help="tokens verified")
    parser.add_argument("--steps", type=int, default=6, help="of a round")
    parser.add_argument("--rounds", type=int, default=9)
    add_save(parser)
    options = parser.parse_args()
    found: dict[str, Any] = {}
    rows = []
    for name in options.models:
        bench = Bench(build(name), options)
        apart = PassForm(tokens_apart=True)
        results = interleave(
            {
                "plain": partial(bench.run, WHOLE, 1),
                "pass": partial(bench.run, WHOLE, options.width, cut=False),
                "replay": partial(bench.run, WHOLE, options.width),
                "token by token": partial(bench.run, apart, options.width),
            },
            options.rounds,
        )
        whole = results["pass"]
        figures = {way: ratio(results[way], whole, "ms") for way in results}
        described = {way: series.median("described") for way, series in results.items()}
        found[name] = {"pass_ms": whole.median("ms"), "described": described, **figures}
        parameters = round(bench.runner.parameters / 1e6)
        ways = {probe.way for probe in bench.runner.support.recurrence.probes.values()}
        how = "one by one" if Way.ONE_BY_ONE in ways else "at once"
        ratios = [f"{figures[way]:.2f}" for way in ("plain", "replay", "token by token")]
        host = [f"{described[way]:.1f}" for way in ("pass", "replay", "token by token")]
        rows.append([name, parameters, how, whole.span("ms"), *ratios, " / ".join(host)])
    title = f"A step of {options.batch} rows, {options.width} tokens each, against a pass of them"
    header = ("model", "million", "run again", "pass, ms", "plain", "replay", "token by token")
    table(title, (*header, "described, ms: pass / replay / token by token"), rows)
    finish(options, found)


if __name__ == "__main__":
    main()
