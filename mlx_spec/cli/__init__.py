"""The ``mlx-spec`` command: one file a command, heavy imports inside the command's function."""
