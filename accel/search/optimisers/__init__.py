"""Optimisers: each proposes candidates of a space; conf/optimiser/ has a file for each."""

from accel.search.optimisers.base import Optimiser
from accel.search.optimisers.by_optuna import OptunaSearch
from accel.search.optimisers.coordinate import CoordinateDescent
from accel.search.optimisers.evolution import DifferentialEvolution
from accel.search.optimisers.gits import GITS
from accel.search.optimisers.random import RandomSearch

__all__ = ["GITS", "CoordinateDescent", "DifferentialEvolution", "Optimiser", "OptunaSearch", "RandomSearch"]
