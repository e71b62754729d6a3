"""What the benchmark scripts share: the widened pair, and methods that run in turn."""
