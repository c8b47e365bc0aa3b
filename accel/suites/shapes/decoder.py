"""The tiny decoder of `shapes`, distilled from that of its autoencoder: `make train SUITE=shapes PART=tiny`.

An `AutoencoderTiny` (TAESD, github.com/madebyollin/taesd) is told what the autoencoder makes of the latents of training
pictures, sampled from their posterior: the error is that which the autoencoder itself was trained by. Where it saves
is the full resolution, which the autoencoder spends half of its time on and this passes with two convolutions. Its
encoder is none: it is not trained, and no recipe asks for it.
"""

from __future__ import annotations

import hashlib
import os
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import nn

from accel.core.decoder import Distilled
from accel.core.macs import count_macs
from accel.digests import weights_hex
from accel.suites.base import ASSETS, check_manifest, load_network, remedy
from accel.suites.decoders import folder_of, save
from accel.suites.distil import Spent
from accel.suites.shapes import data
from accel.suites.shapes.encoded import to_model
from accel.suites.shapes.models import CHANNELS, LATENT
from accel.suites.training.learner import Learner
from accel.suites.training.loop import OnStep, TrainConfig, quiet, run
from accel.suites.training.task import BACKWARD, IMAGES

NAME = "tiny"
PICTURES = 8192  # that it learns from
WIDTH, BLOCKS = 32, (3, 3, 1, 0)  # channels, and blocks at 8, 16, 32 and 64 pixels
TRAINING = TrainConfig(
    steps=6000, batch=16, lr=2e-3, muon_lr=0.01, warmup=50, weight_decay=0.0, ema_decay=0.995, label_dropout=0.0,
    checkpoint_every=100, seed=41,
)  # fmt: skip
SQUARED, ABSOLUTE, EDGES = 4.0, 0.5, 0.25  # of the squared, the absolute and the edges' error, as for the autoencoder


def build() -> nn.Module:
    """An untrained AutoencoderTiny for the latents of the suite: 8 x 8 x 12 to 64 x 64 x 3."""
    from diffusers import AutoencoderTiny

    return AutoencoderTiny(
        latent_channels=CHANNELS, encoder_block_out_channels=(8,) * 4, num_encoder_blocks=(0,) * 4,
        decoder_block_out_channels=(WIDTH,) * 4, num_decoder_blocks=BLOCKS,
    )  # fmt: skip


def train_part(
    work: Path, assets: Path = ASSETS / "shapes", device: str = "cpu", on_step: OnStep = quiet, workers: int = 0
) -> nn.Module:
    """Train the tiny decoder; its fp16 weights, with its origin, go beside the folder `assets` of the autoencoder."""
    from diffusers import AutoencoderKL

    check_manifest(assets, remedy("shapes"))
    vae = load_network(AutoencoderKL, assets / "large" / "vae")
    latents, pictures = decoded(vae, work, device, workers)
    torch.manual_seed(TRAINING.seed)
    net, spent = build(), Spent(work / f"{NAME}.seconds", TRAINING.checkpoint_every)
    learner = Learner(net.decoder, TRAINING, device)

    def turn(step: int, generator: torch.Generator) -> float:
        rows = torch.randint(0, len(latents), (TRAINING.batch,), generator=generator)
        wanted = to_model(pictures[rows]).to(device)
        return learner.descend(picture_error(net.decoder(latents[rows].float().to(device)), wanted), step)

    def told(step: int, loss: float) -> None:
        spent(step)
        on_step(step, loss)

    origin = weights_hex(vae)
    run({"": learner}, turn, TRAINING, work / f"{NAME}.safetensors", told, {"autoencoder": origin})
    net.decoder.cpu().load_state_dict(learner.averaged())
    net.eval()
    save(net.half(), Distilled(origin, _bill(net, vae, spent.total)), folder_of(assets) / NAME)
    return net


def picture_error(found: torch.Tensor, wanted: torch.Tensor) -> torch.Tensor:
    """What a decoder of pictures (B, 3, H, W) in -1..1 minimises. Objects are few pixels: absolute errors alone leave
    them grey, and squared ones soft."""
    edges = sum((found.diff(dim=d) - wanted.diff(dim=d)).abs().mean() for d in (2, 3))
    error = found - wanted
    return SQUARED * error.square().mean() + ABSOLUTE * error.abs().mean() + EDGES * edges


def decoded(vae: nn.Module, work: Path, device: str, workers: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    """Latents (N, C, h, w) in float16 of the training pictures, sampled, and the uint8 pictures (N, 3, H, W) that `vae`
    makes of them; kept in `work` for a resumed run."""
    made_for = f"{weights_hex(vae)}/{PICTURES}/{data.TRAIN}"
    kept = work / f"decoded-{hashlib.sha256(made_for.encode()).hexdigest()[:12]}.safetensors"
    if not kept.exists():
        found: dict[str, list[torch.Tensor]] = {"latents": [], "pictures": []}
        generator = torch.Generator().manual_seed(TRAINING.seed)
        vae = vae.to(device)
        with torch.no_grad():
            for images in data.pictures("train", min(PICTURES, data.TRAIN), workers).split(128):
                posterior = vae.encode(to_model(images).to(device)).latent_dist
                noise = torch.randn(posterior.mean.shape, generator=generator).to(device)
                z = (posterior.mean + posterior.std * noise).half()
                own = vae.decode(z.float()).sample.clamp(-1, 1)
                found["latents"].append(z.cpu())
                found["pictures"].append(((own + 1) * 127.5).round().to(torch.uint8).cpu())
        vae.cpu()
        kept.parent.mkdir(parents=True, exist_ok=True)
        temporary = kept.with_suffix(f".{os.getpid()}.tmp")
        save_file({name: torch.cat(parts).contiguous() for name, parts in found.items()}, temporary)
        os.replace(temporary, kept)
    tensors = load_file(kept)
    return tensors["latents"], tensors["pictures"]


def _bill(net: nn.Module, vae: nn.Module, seconds: float) -> dict[str, Any]:
    """What it costs; the autoencoder decodes (and encodes, which is not counted) each picture once."""
    z = torch.zeros(1, CHANNELS, LATENT, LATENT)
    with torch.no_grad():
        (_, own), (_, theirs) = (count_macs(lambda f=f: f(z)) for f in (net.float().decoder, vae.decode))
    samples = TRAINING.steps * TRAINING.batch
    macs = samples * (1 + BACKWARD) * own + min(PICTURES, data.TRAIN) * theirs
    return {"seconds": round(seconds, 1), "steps": TRAINING.steps, "samples": samples, "macs": macs, "data": IMAGES}
