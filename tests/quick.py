"""What ``scripts/test --quick`` leaves out: files, or tests of a file, as node ids begin.

Whoever changes one of these areas runs its file; CI runs everything.
"""

from __future__ import annotations

NOT_QUICK = (
    # Processes of their own, two seconds each only to import: signals, pipes, exits, kill -9.
    "test_cli.py::test_speculation_batching",
    "test_cli_batch.py::test_batching_speculation",
    "test_cli_batch.py::test_ctrl_c",
    "test_cli_batch.py::test_kill_9",
    "test_cli_batch.py::test_progress_is_a_bar_on_a_terminal",
    "test_cli_batch_summary.py::test_failed_records_run_again",
    "test_cli_pipeline.py",
    "test_cli_streams.py",
    "test_examples.py",
    "test_generator.py::test_a_process",
    "test_performance_log.py::test_a_kill",
    "test_pipeline_live.py",
    "test_server_live.py::test_a_second_ctrl_c",
    "test_server_live.py::test_sigterm",
    "test_pipeline_chain.py::test_a_chain_cut",
    "test_pipeline_chain.py::test_a_chain_drops",
    "test_package.py::test_wheel",
    "test_platform.py::test_a_process",
    "test_platform.py::test_a_public_name",
    "test_site.py",
    "test_snippets.py::test_what",
    # Faults planted into our own code, to see that the other tests find them.
    "test_cache_mutants.py",
    "test_kernels_mutants.py",
    "test_mutants.py",
    "test_ring_models.py::test_a_layer_that_reads",
    "test_ring_models.py::test_planted",
    "test_scheduler_mutants.py",
    # Metal in the simulator; off by default, changed with its own tests at hand.
    "test_bench_kernels.py",
    "test_kernels_attention.py",
    "test_kernels_norm_rope.py",
    "simulator/tests/test_",
    # A real browser; its start takes longer than most tests.
    "page/test_answers.py",
    "page/test_faults.py",
    "page/test_real.py",
    # Long runs.
    "test_bench.py::test_a_recommended_command",
    "test_bench.py::test_ctrl_c_shows",
    "test_bench.py::test_drafts_that_lie_here",
    "test_bench.py::test_weights_are_measured",
    "test_training.py::test_a_small_model",
    "test_training.py::test_it_learns",
    "test_draft_length.py::test_one_slow_step",
    "test_kernel_binding.py::test_a_speculating_batch",
    "test_drafters_in_traffic.py",
    "test_kinds_in_traffic.py",
    "test_memory_linear.py",
    "test_ring_models.py::test_ten_windows",
    "test_rotation.py::test_every_architecture",
    "test_soak.py",
)
