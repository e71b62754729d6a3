"""``python -m mlx_spec``: the same as the ``mlx-spec`` command, which begins here, too."""

import sys


def main() -> int:
    """Run the command line; Ctrl-C while it is still being imported ends it as quietly as later.

    Returns:
        The exit code.
    """
    try:
        from mlx_spec.cli.main import main as run
    except KeyboardInterrupt:
        return 130
    return run()


if __name__ == "__main__":
    sys.exit(main())
