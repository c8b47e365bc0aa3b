"""Samplers: what is put at the scheduler seam."""

from accel.core.sampler import Sampler
from accel.samplers.dc_solver import DCSolverScheduler
from accel.samplers.deis import DEISScheduler
from accel.samplers.diffusers_schedulers import DiffusersSampler
from accel.samplers.dpmpp_3m import CorrectedDPMSolver3MScheduler
from accel.samplers.langevin_gibbs import DenoisingLangevinGibbs
from accel.samplers.ode import AdaptiveODE
from accel.samplers.predictor_corrector import PredictorCorrectorScheduler
from accel.samplers.rf_solver import RFSolverScheduler

__all__ = [
    "AdaptiveODE",
    "CorrectedDPMSolver3MScheduler",
    "DCSolverScheduler",
    "DEISScheduler",
    "DenoisingLangevinGibbs",
    "DiffusersSampler",
    "PredictorCorrectorScheduler",
    "RFSolverScheduler",
    "Sampler",
]
