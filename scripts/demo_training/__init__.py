"""The parts of `scripts/train_demo_models.py`: corpus, model, trainer, teacher, export, evaluation.

Owns everything about making the embedded demo pair; nothing in `mlx_spec` imports it.
"""
