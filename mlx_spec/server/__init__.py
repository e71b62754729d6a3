"""``mlx-spec serve``: HTTP in front of one ``BatchedMLXGenerator``."""
