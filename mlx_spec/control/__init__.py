"""Speculation control: how far to draft, from measured costs and acceptance. Knows no mlx."""
