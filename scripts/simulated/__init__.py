"""Simulated machines and texts for draft-length policies: no clock, the same every time."""
