"""Suites of tiny random networks, for the contract: nothing to download, milliseconds an image."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache, partial
from typing import Any

import torch
from diffusers import ImagePipelineOutput
from torch import nn

from accel.core.devices import send
from accel.core.guidance import Guidance
from accel.core.recipe import Recipe
from accel.core.student import Contract, contracted
from accel.digests import weights_hex
from accel.errors import unknown
from accel.registry import groups, method
from accel.suites.base import Student, Suite, TinyAutoencoder, labels
from accel.suites.pipeline import PixelPipeline

CLASSES = 10
SIZE = 8  # pixels
BETAS = {
    "num_train_timesteps": 1000,
    "beta_start": 1e-4,
    "beta_end": 0.02,
    "beta_schedule": "linear",
    "clip_sample": False,
    "prediction_type": "v_prediction",
    "timestep_spacing": "trailing",
}


@dataclass(frozen=True)
class TinySuite(Suite):
    """`kind`: unet (class-conditional, stacks null and condition), transformer (DiTPipeline, stacks condition and
    null), flow (the UNet as a rectified flow), text (a UNet with cross-attention to a text of its class), arc (the UNet
    with angles for timesteps, as trigflow models have them). Sample i shows class i mod 10."""

    kind: str = "unet"
    name: str = ""
    period = CLASSES

    def __post_init__(self) -> None:
        if self.kind not in PIPELINES:
            raise unknown("kind of a tiny suite", str(self.kind), PIPELINES)
        object.__setattr__(self, "name", self.name or f"tiny_{self.kind}")

    def pipeline(self) -> Any:
        return PIPELINES[self.kind]()

    def models(self) -> dict[str, nn.Module]:
        small = {"transformer": partial(dit, layers=1), "text": text_unet}.get(self.kind, unet)
        return {"small": small(seed=1)}

    def students(self) -> dict[str, Student]:
        """Those of the registered names: random networks under their contracts."""
        if self.kind not in ("unet", "flow"):
            return {}
        made = [method("student", name) for name in groups()["student"] if name != "none"]
        contracts = {own.model: Contract(own.kind, own.times, _teacher(), own.guidance) for own in made}
        return {name: Student(partial(_student, contract), {"kind": self.kind}, contract)
                for name, contract in contracts.items()}  # fmt: skip

    def decoders(self) -> dict[str, TinyAutoencoder]:
        """Those of the registered names: a random network, where there are latents."""
        if self.kind != "transformer":
            return {}
        names = {method("decoder", name).model for name in groups()["decoder"] if name != "none"}
        return {name: TinyAutoencoder(tiny_autoencoder, {"kind": self.kind}) for name in names}

    def classifier(self) -> nn.Module | None:
        if self.kind == "transformer":  # whose images are latents' own
            return None
        return _random(1, lambda: nn.Sequential(nn.Flatten(), nn.Linear(SIZE**2, CLASSES)))

    def fingerprint(self) -> dict[str, str]:
        return {"kind": self.kind}

    def conditions(self, start: int, stop: int) -> dict[str, Any]:
        return {"class_labels": [i % CLASSES for i in range(start, stop)]}

    def asked(self, words: Sequence[str]) -> dict[str, Any]:
        return {"class_labels": labels(words, range(CLASSES))}

    def converged(self, guidance: Guidance | None) -> Recipe:
        sampler = {"flow": "flow_euler", "arc": "scm"}.get(self.kind, "ddim")
        return Recipe(method("sampler", sampler, steps=50), None, guidance)


def _random(seed: int, make: Callable[[], nn.Module]) -> Any:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return make().eval().requires_grad_(False)


@lru_cache(maxsize=1)
def _teacher() -> str:
    return weights_hex(unet())


def _student(contract: Contract) -> nn.Module:
    return contracted(unet(seed=2), contract)


def unet(seed: int = 0, layers: int = 1) -> nn.Module:
    """A random class-conditional UNet2DModel of 8 x 8 pixels; with one layer it has four skip connections."""
    from diffusers import UNet2DModel

    settings = {
        "sample_size": SIZE, "in_channels": 1, "out_channels": 1, "num_class_embeds": CLASSES + 1,
        "layers_per_block": layers, "block_out_channels": (8, 16), "norm_num_groups": 4, "attention_head_dim": 8,
        "down_block_types": ("DownBlock2D", "AttnDownBlock2D"), "up_block_types": ("AttnUpBlock2D", "UpBlock2D"),
    }  # fmt: skip
    return _random(seed, lambda: UNet2DModel(**settings))


def dit(seed: int = 0, layers: int = 2, **changes: Any) -> nn.Module:
    """A random DiTTransformer2DModel of 8 x 8 latents. 1,000 classes, because DiTPipeline's null label is 1000."""
    from diffusers import DiTTransformer2DModel

    settings = {
        "num_attention_heads": 2, "attention_head_dim": 8, "in_channels": 4, "out_channels": 4, "num_layers": layers,
        "sample_size": SIZE, "patch_size": 2, "num_embeds_ada_norm": 1000,
    }  # fmt: skip
    return _random(seed, lambda: DiTTransformer2DModel(**settings | changes))


def tiny_autoencoder() -> nn.Module:
    """A random AutoencoderTiny for the latents of `dit`."""
    from diffusers import AutoencoderTiny

    settings = {"latent_channels": 4, "num_encoder_blocks": (0,), "num_decoder_blocks": (1,)}
    settings |= dict.fromkeys(("encoder_block_out_channels", "decoder_block_out_channels"), (4,))
    return _random(3, lambda: AutoencoderTiny(**settings))


def text_unet(seed: int = 0) -> nn.Module:
    """A random UNet2DConditionModel of 8 x 8 pixels, with cross-attention to texts of width 8."""
    from diffusers import UNet2DConditionModel

    settings = {
        "sample_size": SIZE, "in_channels": 1, "out_channels": 1, "layers_per_block": 1, "block_out_channels": (8, 16),
        "norm_num_groups": 4, "cross_attention_dim": 8, "attention_head_dim": 4,
        "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D"),
        "up_block_types": ("CrossAttnUpBlock2D", "UpBlock2D"),
    }  # fmt: skip
    return _random(seed, lambda: UNet2DConditionModel(**settings))


class TextPipeline(PixelPipeline):
    """PixelPipeline of a `text_unet`; a class is a random text of three tokens, the last one that of no class."""

    @property
    def null_label(self) -> int:
        return CLASSES

    def _condition(self, labels: torch.Tensor, guided: bool) -> dict[str, torch.Tensor]:
        if guided:
            labels = torch.cat([torch.full_like(labels, self.null_label), labels])
        texts = torch.randn(CLASSES + 1, 3, 8, generator=torch.Generator().manual_seed(0))
        return {"encoder_hidden_states": send(texts.to(self.unet.dtype), labels.device)[labels]}


class ArcPipeline(PixelPipeline):
    """PixelPipeline of a network on an arc (accel.samplers.trigflow): the scheduler lists where the last step ends, and
    what it is handed is sigma_data times the network's, whose timestep is 1000 times the angle."""

    @torch.no_grad()
    def __call__(
        self,
        class_labels: list[int],
        num_inference_steps: int = 2,
        guidance_scale: float = 1.0,
        generator: torch.Generator | list[torch.Generator] | None = None,
        output_type: str = "pt",
        return_dict: bool = True,
    ):
        labels, scale = self._labels(class_labels, None, None), self.scheduler.config.sigma_data
        x = scale * self._initial_noise(len(labels), generator, None)
        self.scheduler.set_timesteps(num_inference_steps, device=x.device, intermediate_timesteps=None)
        condition = self._condition(send(labels, x.device), False)
        for t in self.scheduler.timesteps[:-1]:
            predicted = scale * self._predict(x / scale, 1000 * t, condition)
            x = self.scheduler.step(predicted, t, x, generator, return_dict=False)[0]
        return ImagePipelineOutput(images=x / scale)


def dit_pipeline(**changes: Any) -> Any:
    """diffusers' own DiTPipeline, which stacks (conditional, null) and gives both halves to the scheduler."""
    from diffusers import AutoencoderKL, DDIMScheduler, DiTPipeline

    vae = _random(0, lambda: AutoencoderKL(block_out_channels=(4,), latent_channels=4, norm_num_groups=4))
    return _quiet(DiTPipeline(dit(**changes), vae, DDIMScheduler(clip_sample=False), id2label=None))


def unet_pipeline() -> PixelPipeline:
    """`unet` with a schedule of betas that predicts v."""
    from diffusers import DDIMScheduler

    return _quiet(PixelPipeline(unet(), DDIMScheduler(**BETAS)))


def text_pipeline() -> TextPipeline:
    """`text_unet` with a schedule of betas that predicts v."""
    from diffusers import DDIMScheduler

    return _quiet(TextPipeline(text_unet(), DDIMScheduler(**BETAS)))


def flow_pipeline() -> PixelPipeline:
    """`unet` as a rectified flow."""
    from diffusers import FlowMatchEulerDiscreteScheduler

    return _quiet(PixelPipeline(unet(), FlowMatchEulerDiscreteScheduler()))


def arc_pipeline() -> ArcPipeline:
    """`unet` on an arc."""
    from diffusers import SCMScheduler

    return _quiet(ArcPipeline(unet(), SCMScheduler()))


def _quiet(pipe: Any) -> Any:
    pipe.set_progress_bar_config(disable=True)
    return pipe


PIPELINES: dict[str, Callable[[], Any]] = {
    "unet": unet_pipeline,
    "transformer": dit_pipeline,
    "flow": flow_pipeline,
    "text": text_pipeline,
    "arc": arc_pipeline,
}
