"""Before any test module imports mlx: exactness is tested with the BLAS of MLX's own wheel.

Its batched and single rows agree bit for bit, which a fast BLAS does not promise. Subprocesses
inherit the choice; a test that wants a fast BLAS sets its own environment.
"""

import os

os.environ["MLX_SPEC_BLAS"] = "off"

from collections.abc import Iterator

import pytest


@pytest.fixture(params=["simulator", pytest.param("metal", marks=pytest.mark.metal)])
def gpu(request: pytest.FixtureRequest) -> Iterator[object]:
    """Where Metal kernels run: the simulator, several lane orders and no finding; and a Mac.

    Yields the simulator, or None on the Mac.
    """
    import mlx.core as mx

    from tests import metal_sim

    if request.param == "metal":
        if not mx.metal.is_available():
            pytest.skip("no Metal here")
        yield None
        return
    reason = metal_sim.unavailable()
    if reason is not None:
        pytest.skip(reason)
    with metal_sim.installed(orders=("forward", "reverse", "shuffled:1")) as simulator:
        yield simulator
