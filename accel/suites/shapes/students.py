"""The students of `shapes`, few-step networks distilled from `large` under guidance of scale 3:
`make train SUITE=shapes PART=pd4_cfg3`.

`pd4_cfg3` learns four segments from four guided evaluations of DPM-Solver++(2M) each, where its own steps from pure
noise lead, so that it sees captions and no picture; `pd2_cfg3` is halved from it. Times are 999, 749, 499 and 249
(sigma / alpha = 14.6, 4.1, 1.6 and 0.7), nested. `dmd4_cfg3` begins as `pd4_cfg3` and learns the distribution of the
guided teacher's latents at the same times (DMD2, without its discriminator). `guided3` predicts in one evaluation, at
any time, what two of `large` do under guidance (Meng et al., stage 1).
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from diffusers import UNet2DConditionModel
from torch import nn

from accel.suites.base import ASSETS, load_network
from accel.suites.distil import Family, Stage, distil
from accel.suites.shapes import data
from accel.suites.shapes.encoded import Reader, encoded
from accel.suites.shapes.models import CHANNELS, LATENT, MAX_TOKENS, SCHEDULER, WIDTH
from accel.suites.training.distribution import Distribution
from accel.suites.training.guided import Guided
from accel.suites.training.loop import OnStep, TrainConfig, quiet
from accel.suites.training.segments import Segments
from accel.suites.training.task import CONDITIONS, IMAGES, Condition, Draw

ORIGINAL = "large"
SCALE = 3.0  # of the guidance that is built in
FOUR, TWO = (999, 749, 499, 249), (999, 499)
# As for the teacher: Muon, and many updates of small batches, though its evaluations are cheaper in large ones.
TRAINING = TrainConfig(
    steps=900, batch=64, lr=2e-4, muon_lr=0.002, warmup=5, weight_decay=0.0, ema_decay=0.998, label_dropout=0.0,
    checkpoint_every=10, decay="constant", dropout=False, seed=31,
)  # fmt: skip
PARTS = {
    "pd4_cfg3": Stage(Segments(FOUR, guidance=SCALE, start="own", parts=4, passes=2), TRAINING, ORIGINAL),
    "pd2_cfg3": Stage(
        Segments(TWO, order=1, through=FOUR, start="own", parts=4, passes=2),
        replace(TRAINING, steps=250, seed=32),
        "pd4_cfg3",
    ),
    "dmd4_cfg3": Stage(
        Distribution(FOUR, ratio=2, warm=30, critic_lr=1e-4, critic_ema=0.9, guidance=SCALE),
        replace(
            TRAINING, steps=400, batch=32, lr=4e-5, muon_lr=0.0, beta1=0.0, ema_decay=0.98, decay="linear", seed=33
        ),
        "pd4_cfg3",
        ORIGINAL,
    ),
    "guided3": Stage(Guided(SCALE), replace(TRAINING, steps=3000, batch=16, decay="linear", seed=34), ORIGINAL),
}


def train_part(
    part: str, work: Path, assets: Path = ASSETS / "shapes", device: str = "cpu", on_step: OnStep = quiet
) -> nn.Module:
    """Train one student (see PARTS); its fp16 weights and contract go beside the folder `assets` of its teacher."""
    return distil(FAMILY, part, work, assets, device, on_step)


def _network(assets: Path) -> nn.Module:
    return load_network(UNet2DConditionModel, assets / ORIGINAL / "unet")


def _batches(stage: Stage, assets: Path, work: Path, device: str) -> Draw:
    batch = stage.training.batch
    if stage.task.data == CONDITIONS:
        read = Reader(assets / "large", device)
        empty = read([""])

        def draw(generator: torch.Generator) -> tuple[torch.Tensor, Condition, Condition]:
            index = torch.randint(0, data.TRAIN, (batch,), generator=generator).tolist()
            which = torch.randint(0, data.CAPTIONS, (batch,), generator=generator).tolist()
            states = read([data.said("train", i, data.CAPTIONS)[k] for i, k in zip(index, which, strict=True)])
            return torch.zeros(batch, CHANNELS, LATENT, LATENT), _given(states), _given(empty.expand_as(states))

        return draw

    latents, texts = encoded(assets, work, device)

    def drawn(generator: torch.Generator) -> tuple[torch.Tensor, Condition, Condition]:
        index = torch.randint(0, len(latents), (batch,), generator=generator)
        which = torch.randint(0, data.CAPTIONS, (batch,), generator=generator)
        states = texts[index * data.CAPTIONS + which].float()
        return latents[index], _given(states), _given(texts[-1].float().expand_as(states))

    return drawn


def _given(states: torch.Tensor) -> Condition:
    return {"encoder_hidden_states": states}


def _once(net: nn.Module) -> Any:
    states = torch.zeros(1, MAX_TOKENS, WIDTH)
    return net(torch.zeros(1, CHANNELS, LATENT, LATENT), torch.tensor([0]), encoder_hidden_states=states)


FAMILY = Family(
    "shapes", ORIGINAL, UNet2DConditionModel, packed=lambda net: net, network=_network, config=SCHEDULER,
    batches=_batches, once=_once, parts=PARTS, seen={CONDITIONS: "captions", IMAGES: "training images, captions"},
)  # fmt: skip
