"""``python -m mlx_spec``: the same as the ``mlx-spec`` command."""

import sys

from mlx_spec.cli.main import main

if __name__ == "__main__":
    sys.exit(main())
