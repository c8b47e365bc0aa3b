"""Rooms of numbers of bits ask what happens to a network, not to which: the light one is enough.

What is made of the suite is made here, too: a fixture of the whole session that is not would be kept, with the light
network, for the tests of other rooms.
"""

from __future__ import annotations

import pytest


@pytest.fixture(scope="session")
def digits(light_suite):
    return light_suite


@pytest.fixture(scope="session")
def pipe(digits):
    return digits.pipeline()


@pytest.fixture(scope="session")
def models(digits):
    return digits.networks()
