"""Kinds of things that a stranger might add, each in one file: tests, and examples in the docs."""
