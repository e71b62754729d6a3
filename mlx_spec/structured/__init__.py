"""Constraints on texts: grammars, compiled and followed by ``llguidance``.

The only files that know that library, which is an extra: it is imported with the first constraint.
"""
