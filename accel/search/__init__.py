"""Searches: each finds numbers that a method then uses as an artefact, keyed by all that it depends on."""

from accel.search.cascade import Cascade
from accel.search.dc_solver import DCSolver
from accel.search.ratios import RatioSearch

__all__ = ["Cascade", "DCSolver", "RatioSearch"]
