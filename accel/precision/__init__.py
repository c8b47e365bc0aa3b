"""Precision: in which numbers the denoiser's weights and activations are kept, and how many of them."""

from accel.precision.base import Precision
from accel.precision.binarydm import BinaryDM
from accel.precision.calibration_sets import DrawnTimesteps, StridedSteps, Trajectories
from accel.precision.cast import Cast
from accel.precision.compiled import Compiled
from accel.precision.fake_quant import FakeQuant
from accel.precision.levels import Range
from accel.precision.mixdq import MixDQ
from accel.precision.openvino import OpenVINO
from accel.precision.pruning import MagnitudePruning
from accel.precision.quest import QuEST
from accel.precision.rounding import AdaQuant, AdaRound, FlexRound
from accel.precision.static_int8 import StaticInt8
from accel.precision.tf32 import TF32
from accel.precision.torchao import TorchAO

__all__ = [
    "TF32",
    "AdaQuant",
    "AdaRound",
    "BinaryDM",
    "Cast",
    "Compiled",
    "DrawnTimesteps",
    "FakeQuant",
    "FlexRound",
    "MagnitudePruning",
    "MixDQ",
    "OpenVINO",
    "Precision",
    "QuEST",
    "Range",
    "StaticInt8",
    "StridedSteps",
    "TorchAO",
    "Trajectories",
]
