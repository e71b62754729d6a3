"""Heads that guess from the target's hidden states: what they are, where they come from, what they
share with their target."""
