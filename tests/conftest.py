import os

os.environ["MLX_SPEC_BLAS"] = "off"
