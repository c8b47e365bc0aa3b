"""The contract on a real GPU, as `accel bench device` measures it, held to limits; skipped without one."""

from __future__ import annotations

import pytest
import torch
from registry import METHODS, WAITS

from accel.benches.device_contract import measured
from accel.precision.executed.tf32 import float32_products
from accel.testing.bench import Bench
from accel.testing.contract import TINY
from accel.testing.quick import recipe

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]
# Of the images' range: kernels sum in another order; rounding to few bits then flips single levels.
SAME, ROUNDED = 2e-3, 0.5


@pytest.fixture(scope="module")
def there():
    return {suite: Bench(suite, "cuda") for suite in TINY}, {}


@pytest.mark.parametrize(("axis", "choice"), METHODS, ids=map("-".join, METHODS))
def test_every_method_gives_the_cpus_images_and_does_not_wait(axis, choice, there):
    with float32_products("ieee"):
        found = measured(recipe(**{axis: choice}), axis, *there)
    if "refused" in found:
        pytest.skip(found["refused"])
    assert "failed" not in found, found
    allowed = ROUNDED if axis == "precision" or choice == "ode" else SAME
    if found["against"] == "cpu":
        assert found["difference"] <= allowed * max(1.0, found["range"])
    assert sum(found["waits"].values()) <= WAITS.get(choice, 0), found["waits"]
