"""`make train SUITE=shapes`: every weight that suite `shapes` ships, with progress, checkpoints and resume.

In order: autoencoder, detector, CLIP, then the denoisers on the frozen autoencoder and text encoder, as Stable
Diffusion was made, then the tiny decoder and students of the larger denoiser. Pictures and captions are drawn
anew from their streams (accel/suites/shapes/data.py).
"""

from __future__ import annotations

import os
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import nn
from torch.nn import functional as F

from accel.suites.base import ASSETS, write_manifest
from accel.suites.shapes import data, decoder, students
from accel.suites.shapes.adherence import NAMES
from accel.suites.shapes.captions import COLUMNS, RELATIONS, ROWS, readings
from accel.suites.shapes.encoded import encoded, to_model, tokens
from accel.suites.shapes.models import (
    MAX_TOKENS,
    SCHEDULER,
    WIDTH,
    ShapeDetector,
    build_clip,
    build_tokenizer,
    build_unet,
    build_vae,
)
from accel.suites.shapes.scene import COLOUR_NAMES, SHAPES, SIZE, SIZE_NAMES, TEXTURES
from accel.suites.training.loop import TrainConfig, lowered, train, velocity_error

PARTS = {
    "vae": TrainConfig(steps=3000, batch=16, lr=2e-3, muon_lr=0.01, weight_decay=0.0, label_dropout=0.0, seed=1),
    "detector": TrainConfig(steps=2000, batch=64, lr=3e-3, weight_decay=0.01, label_dropout=0.0, seed=2),
    "clip": TrainConfig(steps=2000, batch=128, lr=1e-3, muon_lr=0.01, weight_decay=0.05, label_dropout=0.0, seed=3),
    # Many steps of small batches: at equal samples, batches of 64 end at a clearly higher loss. High noise, where it is
    # decided how many objects there are and where, is learned last.
    "large": TrainConfig(steps=35000, batch=16, lr=1e-3, muon_lr=0.01, weight_decay=0.01, time_power=0.7, seed=4),
    "small": TrainConfig(steps=30000, batch=16, lr=1e-3, muon_lr=0.01, weight_decay=0.01, time_power=0.7, seed=5),
    decoder.NAME: decoder.TRAINING,
    **students.PARTS,
}
WORKERS = min(8, os.cpu_count() or 1)
KL_WEIGHT = 1e-3  # Rombach et al. 2022 (arXiv:2112.10752) have 1e-6; here no channel may be tiny
# Of the squared, the absolute and the edges' error. Objects are few pixels: absolute errors alone leave them grey.
SQUARED, ABSOLUTE, EDGES = 4.0, 0.5, 0.25
# What each word that speaks of an object is taught to know of it, None: not said. Pictures and captions alone teach a
# text encoder which attributes and places there are long before which belong together.
READ = {
    "shape": SHAPES,
    "colour": COLOUR_NAMES,
    "size": (None, *SIZE_NAMES),
    "texture": (None, *TEXTURES),
    "place": (None, *((row, column) for row in ROWS for column in COLUMNS)),
    "relation": (None, *RELATIONS),
}
READING = 1.0  # weight of that
SIGMA = 0.8  # cells, of the heat around an object's centre


def train_part(
    part: str, work: Path, assets: Path = ASSETS / "shapes", device: str = "cpu", on_step=lambda step, loss: None
):
    """Train one part (see PARTS) and write its fp16 weights under `assets`; the parts before it must be there.
    A student, or the tiny decoder, goes beside that folder."""
    if part in students.PARTS:
        return students.train_part(part, work, assets, device, on_step)
    if part == decoder.NAME:
        return decoder.train_part(work, assets, device, on_step, WORKERS)
    torch.manual_seed(PARTS[part].seed)
    net, inputs, loss = PREPARE[part](assets, work, device)
    index = torch.arange(len(inputs))
    weights = train(net, loss, inputs, index, PARTS[part], work / f"{part}.safetensors", device, on_step)
    net.cpu().eval().load_state_dict(weights, strict=False)
    assets.mkdir(parents=True, exist_ok=True)
    SAVE[part](net, assets)
    write_manifest(assets)
    return net


# --- autoencoder


def _vae(assets: Path, work: Path, device: str):
    def loss(net, images, index, generator):
        x = to_model(images.to(device))
        with lowered(device):
            moments = net.encode(x).latent_dist
            noise = torch.randn(moments.mean.shape, generator=generator).to(device)
            decoded = net.decode(moments.mean + moments.std * noise).sample.float()
        edges = sum((decoded.diff(dim=d) - x.diff(dim=d)).abs().mean() for d in (2, 3))
        error, kl = decoded - x, moments.kl().mean() / x[0].numel()  # Rombach et al. weigh sums, here are means
        return SQUARED * error.square().mean() + ABSOLUTE * error.abs().mean() + EDGES * edges + KL_WEIGHT * kl

    return build_vae(), data.pictures("train", data.TRAIN, WORKERS), loss


def _save_vae(net: nn.Module, assets: Path) -> None:
    images = to_model(data.pictures("train", min(1024, data.TRAIN)))
    with torch.no_grad():
        found = [net.encode(x).latent_dist for x in images.split(64)]
        whiten(net, torch.cat([f.mean for f in found]), torch.cat([f.var for f in found]).mean((0, 2, 3)))
    net.register_to_config(scaling_factor=1.0)
    net.half().save_pretrained(assets / "large" / "vae")


@torch.no_grad()
def whiten(net: nn.Module, latents: torch.Tensor, variance: torch.Tensor) -> None:
    """Fold z -> S^(-1/2) (z - mean) into the 1 x 1 convolutions around the latents (N, C, h, w), S the covariance of
    sampled latents: that of the posterior means plus their mean `variance` (C,).

    Pictures stay what they were. Channels that differ in size by factors would be lost in noise one after the other,
    and Stable Diffusion's single scaling factor cannot mend that. Channels that the autoencoder does not use (variance
    1, mean 0) stay near zero. The posterior keeps its variances, rotated.
    """
    channels = latents.shape[1]
    flat = latents.double().transpose(0, 1).flatten(1)
    mean = flat.mean(1)
    values, vectors = torch.linalg.eigh(torch.cov(flat) + torch.diag(variance.double()))
    into, back = (vectors @ torch.diag(values**power) @ vectors.T for power in (-0.5, 0.5))
    quant, post = net.quant_conv, net.post_quant_conv
    weight, bias = quant.weight[:, :, 0, 0].double(), quant.bias.double()
    quant.weight[:channels, :, 0, 0] = (into @ weight[:channels]).float()
    quant.bias[:channels] = (into @ (bias[:channels] - mean)).float()
    quant.bias[channels:] += (into**2).sum(1).log().float()
    weight = post.weight[:, :, 0, 0].double()
    post.bias += (weight @ mean).float()
    post.weight[:, :, 0, 0] = (weight @ back).float()


# --- detector


def _detector(assets: Path, work: Path, device: str):
    targets = {k: v.to(device) for k, v in detector_targets(data.samples("judge", data.TRAIN, 0, WORKERS)).items()}

    def loss(net, images, index, generator):
        blurred = images.float()
        blurred = torch.where(_coin(len(images), generator), _blur(blurred), blurred)
        noise = torch.rand(len(images), 1, 1, 1, generator=generator) * 12
        x = (blurred + noise * torch.randn(images.shape, generator=generator)).clamp(0, 255)
        with lowered(device):
            maps = {k: v.float() for k, v in net(x.to(device)).items()}
        return detection_loss(maps, {k: v[index] for k, v in targets.items()})

    return ShapeDetector(), data.pictures("judge", data.TRAIN, WORKERS), loss


def detector_targets(samples: list[data.Sample]) -> dict[str, torch.Tensor]:
    """Centre (N, 3, 2) in cells, `there` (N, 3), and the index of each attribute (N, 3), of up to three objects."""
    n, most, cells = len(samples), 3, SIZE // 4
    targets = {"centre": torch.zeros(n, most, 2), "there": torch.zeros(n, most, dtype=torch.bool)}
    targets |= {name: torch.zeros(n, most, dtype=torch.long) for name in NAMES}
    for i, s in enumerate(samples):
        for k, thing in enumerate(s.scene.things):
            targets["centre"][i, k] = torch.tensor([thing.x, thing.y]) * cells / SIZE
            targets["there"][i, k] = True
            for name, names in NAMES.items():
                targets[name][i, k] = names.index(getattr(thing, name))
    return targets


def detection_loss(maps: dict[str, torch.Tensor], targets: dict[str, torch.Tensor]) -> torch.Tensor:
    """Focal loss of the heat (Zhou et al. 2019, eq. 1), absolute error of the offset, cross-entropy of attributes."""
    there, centre = targets["there"], targets["centre"]
    side = maps["heat"].shape[-1]
    grid = torch.arange(side, device=centre.device) + 0.5
    dx, dy = (grid - centre[..., None, i] for i in (0, 1))
    heat = torch.exp(-(dx[:, :, None, :] ** 2 + dy[:, :, :, None] ** 2) / (2 * SIGMA**2)) * there[:, :, None, None]
    b, k = there.nonzero(as_tuple=True)
    column, row = centre[b, k].long().clamp(0, side - 1).T
    wanted = heat.amax(1)
    wanted[b, row, column] = 1.0
    log_p, log_q = F.logsigmoid(maps["heat"][:, 0]), F.logsigmoid(-maps["heat"][:, 0])
    p = log_p.exp()
    peak = wanted == 1
    focal = torch.where(peak, (1 - p) ** 2 * log_p, (1 - wanted) ** 4 * p**2 * log_q)
    loss = -focal.sum() / len(b)
    cell = torch.stack([column, row], 1)
    loss = loss + (maps["offset"][b, :, row, column] - (centre[b, k] - cell)).abs().sum(1).mean()
    for name in NAMES:
        loss = loss + F.cross_entropy(maps[name][b, :, row, column], targets[name][b, k])
    return loss


def _save_detector(net: nn.Module, assets: Path) -> None:
    halves = {k: v.half() if v.is_floating_point() else v for k, v in net.state_dict().items()}
    save_file(halves, assets / "detector.safetensors")
    # Features of real pictures of the benchmark's own prompts: what FID and its kin compare with.
    with torch.inference_mode():
        images = data.pictures("reference", data.REFERENCE)
        features = torch.cat([net.features(x) for x in images.split(256)])
    save_file({"features": features.half()}, assets / "reference.safetensors")


# --- CLIP


def _clip(assets: Path, work: Path, device: str):
    tokenizer = build_tokenizer(assets / "large" / "tokenizer")
    drawn = data.samples("train", data.TRAIN, data.CAPTIONS, WORKERS)
    said = [c for s in drawn for c in s.captions]
    true = tokens(tokenizer, said).reshape(-1, data.CAPTIONS, MAX_TOKENS)
    false = tokens(tokenizer, [c for s in drawn for c in s.false]).reshape(-1, data.CAPTIONS, MAX_TOKENS)
    read = reading_targets(said).reshape(-1, data.CAPTIONS, MAX_TOKENS, len(READ))

    def loss(net, images, index, generator):
        clip, which = net["clip"], torch.randint(data.CAPTIONS, (len(index),), generator=generator)
        ids = torch.cat([true[index, which], false[index, which]]).to(device).long()
        ids = ids[:, : int((ids != ids[0, -1]).sum(1).max()) + 1]  # attention is causal: what follows does not count
        with lowered(device, transformer=True):
            pictured = clip.visual_projection(clip.vision_model(pixel_values=to_model(images.to(device))).pooler_output)
            hidden = clip.text_model(input_ids=ids)
            projected = clip.text_projection(hidden.pooler_output)
            logits = net["reader"](hidden.last_hidden_state[: len(index)])
        found, wanted = F.normalize(pictured.float(), dim=1), F.normalize(projected.float(), dim=1)
        reading = reading_loss(logits.float(), read[index, which, : ids.shape[1]].to(device))
        return contrastive_loss(found, wanted, clip.logit_scale) + READING * reading

    net = nn.ModuleDict({"clip": build_clip(tokenizer), "reader": nn.Linear(WIDTH, sum(map(len, READ.values())))})
    return net, data.pictures("train", data.TRAIN, WORKERS), loss


def reading_targets(captions: list[str]) -> torch.Tensor:
    """For each token and attribute of READ, the index of what `readings` says there (-1: nothing), int8
    (N, MAX_TOKENS, len(READ)); token 0 is the start token."""
    index = [{value: i for i, value in enumerate(values)} for values in READ.values()]
    targets = torch.full((len(captions), MAX_TOKENS, len(READ)), -1, dtype=torch.int8)
    for row, text in zip(targets, captions, strict=True):
        for token, said in enumerate(readings(text)[: MAX_TOKENS - 1], start=1):
            if said:
                row[token] = torch.tensor([i[getattr(said, name)] for i, name in zip(index, READ, strict=True)])
    return targets


def reading_loss(logits: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    """Mean cross-entropy of the attributes that each token should know of its object: logits (B, T, sum of
    classes), targets (B, T, len(READ))."""
    at = targets[..., 0] >= 0
    parts = logits[at].split([len(values) for values in READ.values()], dim=1)
    return sum(F.cross_entropy(part, want) for part, want in zip(parts, targets[at].long().T, strict=True)) / len(READ)


def contrastive_loss(images: torch.Tensor, texts: torch.Tensor, logit_scale: torch.Tensor) -> torch.Tensor:
    """InfoNCE in both directions (Radford et al. 2021, arXiv:2103.00020); images (B, D), texts (2 B, D): true captions,
    then false ones, which the images must tell apart, too (Yuksekgonul et al. 2023, arXiv:2210.01936)."""
    logits = logit_scale.exp().clamp(max=100) * images @ texts.T
    own = torch.arange(len(images), device=images.device)
    return (F.cross_entropy(logits, own) + F.cross_entropy(logits[:, : len(images)].T, own)) / 2


def _save_clip(net: nn.Module, assets: Path) -> None:
    from transformers import CLIPImageProcessor, CLIPTextModel, CLIPTokenizer

    net["clip"].half().save_pretrained(assets / "clip")
    text = CLIPTextModel.from_pretrained(assets / "clip", dtype=torch.float16)
    text.save_pretrained(assets / "large" / "text_encoder")
    CLIPTokenizer.from_pretrained(assets / "large" / "tokenizer").save_pretrained(assets / "clip")
    size = {"height": SIZE, "width": SIZE}
    CLIPImageProcessor(
        size={"shortest_edge": SIZE}, crop_size=size, image_mean=[0.5] * 3, image_std=[0.5] * 3
    ).save_pretrained(assets / "clip")


# --- denoisers


def _denoiser(size: str):
    def prepare(assets: Path, work: Path, device: str):
        from diffusers import DDPMScheduler

        latents, texts = encoded(assets, work, device, WORKERS)
        empty, cfg = texts[-1], PARTS[size]
        scheduler = DDPMScheduler(**{k: v for k, v in SCHEDULER.items() if k in DDPM_OPTIONS})

        def loss(net, x0, index, generator):
            which = torch.randint(data.CAPTIONS, (len(index),), generator=generator)
            condition = texts[index * data.CAPTIONS + which]
            dropped = torch.rand(len(index), generator=generator) < cfg.label_dropout
            condition = torch.where(dropped[:, None, None], empty, condition).to(device, torch.float32)
            noise = torch.randn(x0.shape, generator=generator)
            u = (torch.rand(1, generator=generator) + torch.arange(len(x0)) / len(x0)) % 1
            t = (1000 * u**cfg.time_power).long().clamp(max=999)
            with lowered(device):
                return velocity_error(net, scheduler, x0, noise, t, encoder_hidden_states=condition)

        return build_unet(size), latents, loss

    return prepare


DDPM_OPTIONS = ("num_train_timesteps", "beta_start", "beta_end", "beta_schedule", "prediction_type")


def _save_denoiser(size: str):
    def save(net: nn.Module, assets: Path) -> None:
        from diffusers import DDIMScheduler

        net.half().save_pretrained(assets / size / "unet")
        if size == "large":
            DDIMScheduler(**SCHEDULER).save_pretrained(assets / "large" / "scheduler")
            _write_index(assets / "large")

    return save


def _write_index(folder: Path) -> None:
    from diffusers import AutoencoderKL, DDIMScheduler, StableDiffusionPipeline, UNet2DConditionModel
    from transformers import CLIPTextModel, CLIPTokenizer

    StableDiffusionPipeline(
        vae=AutoencoderKL.from_pretrained(folder / "vae", torch_dtype=torch.float16),
        text_encoder=CLIPTextModel.from_pretrained(folder / "text_encoder", dtype=torch.float16),
        tokenizer=CLIPTokenizer.from_pretrained(folder / "tokenizer"),
        unet=UNet2DConditionModel.from_pretrained(folder / "unet", torch_dtype=torch.float16),
        scheduler=DDIMScheduler(**SCHEDULER),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    ).save_pretrained(folder)


PREPARE = {"vae": _vae, "detector": _detector, "clip": _clip, "large": _denoiser("large"), "small": _denoiser("small")}
SAVE = {
    "vae": _save_vae,
    "detector": _save_detector,
    "clip": _save_clip,
    "large": _save_denoiser("large"),
    "small": _save_denoiser("small"),
}


# --- common


def _coin(count: int, generator: torch.Generator) -> torch.Tensor:
    return torch.rand(count, 1, 1, 1, generator=generator) < 0.3


def _blur(images: torch.Tensor) -> torch.Tensor:
    return F.avg_pool2d(F.pad(images, (1, 1, 1, 1), mode="replicate"), 3, 1)
