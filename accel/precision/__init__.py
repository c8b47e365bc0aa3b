"""Precision: in which numbers the denoiser's weights and activations are kept, and how many of them."""

from accel.core.precision import Precision
from accel.precision.executed.cast import Cast
from accel.precision.executed.compiled import Compiled
from accel.precision.executed.in_place import InPlace
from accel.precision.executed.openvino import OpenVINO
from accel.precision.executed.static_int8 import StaticInt8
from accel.precision.executed.tf32 import TF32
from accel.precision.executed.torchao import TorchAO
from accel.precision.simulated.binarydm import BinaryDM
from accel.precision.simulated.calibration_sets import DrawnTimesteps, StridedSteps, Trajectories
from accel.precision.simulated.fake_quant import FakeQuant
from accel.precision.simulated.levels import Range
from accel.precision.simulated.mixdq import MixDQ
from accel.precision.simulated.pruning import MagnitudePruning
from accel.precision.simulated.quest import QuEST
from accel.precision.simulated.rounding import AdaQuant, AdaRound, FlexRound

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
    "InPlace",
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
