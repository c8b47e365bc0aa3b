"""The students of the digits, few-step networks distilled from `large`: `make train SUITE=digits PART=pd4`.

`pd4` learns four segments from four evaluations of DPM-Solver++(2M) each; `pd2` and `pd1` are halved from it and from
each other (progressive distillation). Times are 999, 550, 350 and 170 (sigma / alpha = 157, 4.6, 1.6 and 0.6), nested.
`dmd1` begins as `pd1` and learns the distribution of its images from `large` (DMD2, without its discriminator). `ect2`
begins as `large` and becomes a consistency function on training images alone (ECT), sampled in two steps. `guided2`
predicts in one evaluation what two of `large` do under guidance of scale 2 (Meng et al., stage 1).
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from diffusers import DDPMScheduler
from torch import nn

from accel.suites.base import ASSETS
from accel.suites.digits.distil import family
from accel.suites.digits.fit import OnStep, quiet
from accel.suites.digits.models import SCHEDULER
from accel.suites.distil import Stage, distil
from accel.suites.training.consistency import Consistency
from accel.suites.training.distribution import Distribution
from accel.suites.training.guided import Guided
from accel.suites.training.loop import TrainConfig
from accel.suites.training.segments import Segments

ORIGINAL = "large"
TRAINING = TrainConfig(
    batch=32, lr=3e-4, warmup=20, weight_decay=0.0, ema_decay=0.99, label_dropout=0.0, checkpoint_every=50,
    decay="linear", dropout=False, beta2=0.99,
)  # fmt: skip
_MATCHING = replace(TRAINING, lr=2e-5, ema_decay=0.98, checkpoint_every=20, beta1=0.0)
_SMOOTH = Distribution((999,), ratio=2, warm=30, critic_lr=5e-5, critic_ema=0.9)
PARTS = {
    "pd4": Stage(Segments((999, 550, 350, 170)), replace(TRAINING, steps=600, seed=11), ORIGINAL),
    "pd2": Stage(
        Segments((999, 350), order=1, through=(999, 550, 350, 170)), replace(TRAINING, steps=300, seed=12), "pd4"
    ),
    "pd1": Stage(Segments((999,), order=1, through=(999, 350)), replace(TRAINING, steps=400, seed=13), "pd2"),
    "dmd1": Stage(_SMOOTH, replace(_MATCHING, steps=420, seed=14), "pd1", ORIGINAL),
    # Pixels from -1 to 1 spread about twice as wide as EDM's data, and noise is measured against them.
    "ect2": Stage(Consistency((999, 350), mean=-0.4), replace(TRAINING, steps=900, seed=15), ORIGINAL),
    "guided2": Stage(Guided(2.0), replace(TRAINING, steps=600, seed=16), ORIGINAL),
}
FAMILY = family("digits", ORIGINAL, DDPMScheduler, SCHEDULER, PARTS)


def train_part(
    part: str, work: Path, assets: Path = ASSETS / "digits", device: str = "cpu", on_step: OnStep = quiet
) -> nn.Module:
    """Train one student (see PARTS); its fp16 weights and contract go beside the folder `assets` of its teacher."""
    return distil(FAMILY, part, work, assets, device, on_step)
