"""What was said before, found again: an index of texts by their suffixes. No mlx here."""
