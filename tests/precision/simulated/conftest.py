"""Rooms of numbers of bits ask what happens to a network, not to which: the light one is enough."""

from __future__ import annotations

import pytest


@pytest.fixture(scope="session")
def digits(light_digits):
    from accel.suites.digits import DigitsSuite

    return DigitsSuite(weights=str(light_digits))
