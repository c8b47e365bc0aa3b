"""Every registered method at settings that take a fraction of a second on a tiny suite."""

from __future__ import annotations

import json

from accel.config import choice_of
from accel.core.recipe import Recipe
from accel.samplers.noise_schedule import noise_schedule
from accel.students import KINDS
from accel.testing.temporary import temporary_folder

_DIGITS = {"num_train_timesteps": 1000, "beta_start": 1e-4, "beta_end": 0.02, "beta_schedule": "linear"}


def _searched() -> str:
    # What a search would have found for suite `digits`, or a tiny one of its schedule, with 4 steps.
    path = temporary_folder() / "searched.json"
    path.write_text(json.dumps({"timesteps": [999, 620, 270, 60], "schedule": noise_schedule(_DIGITS).identity}))
    return str(path)


# What learns weights layer by layer learns those of few layers.
_FEW = "precision.keep=['down_blocks.*', 'up_blocks.*', 'transformer_blocks.1.*', 'time_emb*']"
# What a file leaves to the class, which takes 32.
_SEEN = "+precision.calibration={_target_: accel.precision.Trajectories, samples: 2}"
_SEARCH = ("iterations=3", "noises=1", "held_out=1", "reference=12")

QUICK = {
    "deepcache": ["cache.interval=2", "cache.branch=2"],
    "deepcache_nonuniform": ["cache.schedule.interval=2", "cache.schedule.centre=2"],
    "deepcache_steps": ["cache.schedule.steps=[0,2]"],
    "encoder_propagation_steps": ["cache.schedule.steps=[0,2]"],
    "deepcache_table": ["cache.table=[0,2,0,1]"],
    "blocks": ["cache.table=[[],[0,3],[],[1]]"],
    **{name: ["cache.schedule.interval=2"] for name in ("encoder_propagation", "inheritance", "fora", "taylorseer")},
    **{name: ["cache.trajectories=2", "cache.batch=2"] for name in ("harmonica", "l2c")},
    "cache_dit": ["cache.threshold=10.0", "cache.warmup=1"],
    "diffusers_first_block": ["cache.options.threshold=10.0"],
    "diffusers_taylorseer": ["cache.options.cache_interval=2", "cache.options.disable_cache_before_step=1"],
    "diffusers_pab": ["cache.options.spatial_attention_timestep_skip_range=[-1,1001]"],
    "easycache": ["cache.threshold=10.0"],
    "tgate": ["cache.gate=2"],
    "fastercache": ["cache.begin=0", "cache.guidance_begin=0", "cache.guidance_interval=2"],
    "seacache": ["cache.threshold=10.0"],
    "teacache": ["cache.threshold=10.0", "cache.samples=2"],
    "interval": ["guidance.sigma_lo=0.5", "guidance.sigma_hi=20"],
    "linear_ag": ["guidance.samples=2", "guidance.held_out=1"],
    "explicit": ["grid.timesteps=[999,700,400.5,100]"],
    "dc_solver": [f"sampler.search.{setting}" for setting in _SEARCH],
    **{name: ["sampler.ratios=[1,1,1.1,0.9]"] for name in ("dc_ddim", "dc_dpmpp_2m")},
    "ode": ["sampler.steps=1", "sampler.rtol=0.03", "sampler.atol=0.03", "sampler.method=RK23"],  # its own steps
    "ptq4dm": ["precision.calibration.samples=2", "+" + _FEW],
    "w8a8": ["precision.calibration.samples=2", _FEW],
    "qdiffusion": ["precision.calibration.samples=2", "precision.rounding.iterations=2", _FEW],
    "w4a8_adaround": [_SEEN, "precision.rounding.iterations=2", "+" + _FEW],
    "mixdq": [_SEEN, "precision.samples=1", "precision.keep=['*_blocks.*', 'mid_block.*', '*time_emb*']"],
    "quest": [
        "precision.calibration.samples=2",
        "precision.rounding.iterations=2",
        "precision.iterations=2",
        "precision.groups=2",
        _FEW,
    ],
    "binarydm": ["precision.calibration.samples=2", "precision.iterations=2", _FEW],
    "compiled": ["precision.backend=none"],
    "torchao_int8": ["precision.compile=false"],
    "compiled_blocks": ["precision.backend=none"],
    "int8_compiled_blocks": ["precision.backend=eager"],  # else it were int8_in_place
    "static_int8": ["precision.backend=none", "precision.calibration.samples=1"],
    "openvino_int8": ["precision.calibration.samples=1"],
    "searched": [f"grid.path={_searched()}"],
}


def recipe(**axes: str) -> Recipe:
    """Recipe of one config choice on each named axis; 4 steps of ddim (for a grid: dpmpp_2m, for a student as many as
    it has, of the sampler that its family is for) unless given."""
    student = choice_of("student", axes["student"]) if "student" in axes else None
    usual = KINDS[student.kind].use[0] if student else "dpmpp_2m" if "grid" in axes else "ddim"
    axes = {"sampler": usual} | axes
    steps_of = len(student.times) or 4 if student else 4

    def quick(axis: str, choice: str):
        steps = [f"sampler.steps={steps_of}"] if axis == "sampler" else []
        return choice_of(axis, choice, *steps, *QUICK.get(choice, []))

    return Recipe(**{axis: quick(axis, choice) for axis, choice in axes.items()})
