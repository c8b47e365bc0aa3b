"""Both methods keep accel's contract."""

import pytest
from everyother import AB2, EveryOther

from accel.samplers import DiffusersSampler
from accel.testing import check_method, contract_checks

CACHE = contract_checks(EveryOther(), neutral=EveryOther(every=1))


@pytest.mark.parametrize("check", CACHE)
def test_the_cache(check):
    CACHE[check]()


def test_the_sampler():
    check_method(AB2(steps=4))


def test_the_scheduler_by_its_path():
    check_method(DiffusersSampler("everyother.AB2Scheduler", steps=4))
