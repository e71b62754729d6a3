"""Before any test module imports mlx: exactness is tested with the BLAS of MLX's own wheel.

Its batched and single rows agree bit for bit, which a fast BLAS does not promise. Subprocesses
inherit the choice; a test that wants a fast BLAS sets its own environment.
"""

import os

os.environ["MLX_SPEC_BLAS"] = "off"
