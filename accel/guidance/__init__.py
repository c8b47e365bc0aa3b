"""Guidance: what is evaluated of the doubled batch (unconditional, conditional), and what its halves return."""

from accel.core.guidance import Guidance
from accel.guidance.adaptive import AdaptiveGuidance
from accel.guidance.apg import APG
from accel.guidance.autoguidance import AutoGuidance
from accel.guidance.cfg import CFG, IntervalCFG
from accel.guidance.cfgpp import CFGPlusPlus
from accel.guidance.classifier import ClassifierGuidance
from accel.guidance.gfcg import GradientFreeClassifierGuidance
from accel.guidance.linear_ag import LinearAG

__all__ = [
    "APG",
    "CFG",
    "AdaptiveGuidance",
    "AutoGuidance",
    "CFGPlusPlus",
    "ClassifierGuidance",
    "GradientFreeClassifierGuidance",
    "Guidance",
    "IntervalCFG",
    "LinearAG",
]
