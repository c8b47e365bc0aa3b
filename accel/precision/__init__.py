"""Precision: in which numbers the denoiser's weights and activations are kept, and how many of them."""

from accel.precision.base import Precision
from accel.precision.binarydm import BinaryDM
from accel.precision.calibration_sets import DrawnTimesteps, StridedSteps, Trajectories
from accel.precision.cast import Cast
from accel.precision.fake_quant import FakeQuant
from accel.precision.levels import Range
from accel.precision.mixdq import MixDQ
from accel.precision.pruning import MagnitudePruning
from accel.precision.quest import QuEST
from accel.precision.rounding import AdaQuant, AdaRound, FlexRound

__all__ = [
    "AdaQuant",
    "AdaRound",
    "BinaryDM",
    "Cast",
    "DrawnTimesteps",
    "FakeQuant",
    "FlexRound",
    "MagnitudePruning",
    "MixDQ",
    "Precision",
    "QuEST",
    "Range",
    "StridedSteps",
    "Trajectories",
]
