"""Tests for methods that are not accel's own: `check_method(MyCache())` in the test of another package.

Everything runs on tiny random networks that come with accel, on the CPU, in seconds. See docs/extending.md.
"""

from accel.testing.contract import CHECKS, check_method, contract_checks
from accel.testing.suites import TinySuite, dit, dit_pipeline, unet, unet_pipeline

__all__ = ["CHECKS", "TinySuite", "check_method", "contract_checks", "dit", "dit_pipeline", "unet", "unet_pipeline"]
