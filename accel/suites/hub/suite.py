"""Suite `hub`: any pipeline whose class `kinds` can run, from a local folder or the hub, as it is.

Sample i shows prompt i of a file (`prompts`), a class (DiT), or nothing. Classes: all of them, in an order that
spreads: class (i * stride) mod K with the stride nearest to K / golden ratio that has no factor in common with K, so
that every K samples show every class once and few samples are not all fish. Images are what the pipeline returns for
`output_type="pt"`, rounded to 8 bits, and distances are taken of these bytes.

Quality: features of `feature_network` against `reference` (none: no FID), `clip` (none: no CLIP score), and the
distance to the converged trajectory, which needs neither.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import nn

from accel.core.guidance import Guidance
from accel.core.recipe import Recipe
from accel.errors import ConfigError, Refusals, check_float, check_int, unknown
from accel.metrics.networks import NETWORKS
from accel.registry import method
from accel.samplers.noise_schedule import is_flow
from accel.samplers.trigflow import is_trigflow
from accel.students import Known, under
from accel.suites.base import Origin, TinyAutoencoder, load_pipeline, to_uint8
from accel.suites.hub import attention as hub_attention
from accel.suites.hub import configs as hub_configs
from accel.suites.hub import control as hub_control
from accel.suites.hub import decoder as hub_decoder
from accel.suites.hub import files as hub_files
from accel.suites.hub import gguf as hub_gguf
from accel.suites.hub import lora as hub_lora
from accel.suites.hub import models as hub_models
from accel.suites.hub import offload as hub_offload
from accel.suites.hub import quantised as hub_quantised
from accel.suites.hub import student as hub_student
from accel.suites.hub.inputs import Inputs
from accel.suites.hub.kinds import CONTROLNET, PIXEL, Kind
from accel.suites.hub.prompts import Prompts
from accel.suites.hub.real_images import RealImages
from accel.suites.hub.shown import Shown

DTYPES = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}
CONVERGED = {"unipc": "karras"}  # sampler: its grid, where it has one of its own


@dataclass(frozen=True)
class HubSuite(Shown):
    """`model`: a folder of a diffusers pipeline, or a hub id. See conf/suite/hub.yaml and docs/hub.md."""

    model: str = ""
    revision: str | None = None
    variant: str | None = None
    gguf: str | None = None  # a file with the denoiser's weights, in place of the folder's
    dtype: str = "float32"
    height: int | None = None
    width: int | None = None
    frames: int | None = None  # of each video
    max_sequence_length: int | None = None
    prompts: Prompts = field(default_factory=Prompts)
    inputs: Inputs = field(default_factory=Inputs)
    classes: Sequence[int] | None = None  # None: all
    distilled_guidance: float = 3.5  # what a guidance-distilled network is told; others are not
    reference_images: RealImages = field(default_factory=RealImages)
    feature_network: str = "none"
    feature_weights: str | None = None
    clip: str | None = None
    scoring_device: str = "auto"  # of both; auto: the GPU if there is one
    stitch_models: Mapping[str, str] = field(default_factory=dict)
    controlnet: str | None = None  # see accel/suites/hub/control.py
    lora: Sequence[Any] = ()  # see accel/suites/hub/lora.py
    lora_fused: bool = True
    student: str | None = None  # see accel/suites/hub/student.py
    decoder: str | None = None  # see accel/suites/hub/decoder.py
    known: str = "auto"  # auto: the student of others that the names of files say; none; or such a name
    converged_steps: int = 50
    converged_sampler: str | None = None  # None: unipc, or rf_solver for a flow
    converged_grid: str | None = None  # None: karras for unipc
    vae_slicing: bool = False
    channels_last: bool = False
    compile: bool = False
    offload: str = "none"  # none | model | group
    layerwise_casting: bool = False
    attention: str | None = None  # None: diffusers' own; see accel/suites/hub/attention.py
    name: str = "hub"

    def __post_init__(self) -> None:
        with Refusals() as refusals:
            if self.dtype not in DTYPES:
                refusals.add(unknown("suite.dtype", str(self.dtype), DTYPES))
            if self.feature_network != "none" and self.feature_network not in NETWORKS:
                refusals.add(unknown("suite.feature_network", str(self.feature_network), [*NETWORKS, "none"]))
            for side in ("height", "width", "max_sequence_length"):
                if getattr(self, side) is not None:
                    refusals.ask(check_int, f"suite.{side}", getattr(self, side), 8)
            if self.frames is not None:
                refusals.ask(check_int, "suite.frames", self.frames, 1)
            if (self.height is None) != (self.width is None):
                refusals.add(
                    ConfigError("one of suite.height and suite.width is given; allowed: both, or none of them.")
                )
            if self.offload not in hub_offload.WAYS:
                refusals.add(unknown("suite.offload", str(self.offload), hub_offload.WAYS))
            if self.attention is not None:
                refusals.ask(hub_attention.check_name, self.attention)
            refusals.ask(check_int, "suite.converged_steps", self.converged_steps, 1)
            refusals.ask(check_float, "suite.distilled_guidance", self.distilled_guidance, 1.0)
        for name in ("classes", "stitch_models"):
            value = getattr(self, name)
            hashable = None if value is None else tuple(value.items() if isinstance(value, Mapping) else value)
            object.__setattr__(self, name, hashable)
        object.__setattr__(self, "lora", hub_lora.parsed(self.lora or ()))

    # what generates ------------------------------------------------------------------------------------------------

    @property
    def folder(self) -> Path:
        """Where the model is; ConfigError if it is out of reach or has no safetensors weights."""
        return hub_files.folder_of(self.model, self.revision, self.variant, self.gguf is None)

    @property
    def kind(self) -> Kind:
        return hub_control.kind(self.folder, self.controlnet, self.variant)

    def pipeline(self) -> Any:
        kind = self.kind
        hub_models.quiet()
        options = kind.loading() | hub_models.memory()
        own = self._denoiser if self.student else None
        options |= hub_models.networks(self.folder, DTYPES[self.dtype], self.variant, self.gguf, own)
        if own:
            options[own] = hub_student.load(self.student, own, self.folder, DTYPES[self.dtype], self.variant)
        if self.controlnet:
            options[CONTROLNET] = hub_control.load(self.controlnet, DTYPES[self.dtype], self.variant)
        pipe = load_pipeline(kind.cls(), self.folder, torch_dtype=DTYPES[self.dtype], **options)
        return self._prepared(pipe)

    def _prepared(self, pipe: Any) -> Any:
        """The pipeline of the model's files as the settings want it."""
        if not self.kind.settled:
            hub_control.settle(pipe.vae)
        hub_lora.add(pipe, self.lora, self.lora_fused)
        pipe = hub_models.prepared(pipe, self.vae_slicing, self.channels_last, self.compile)
        net = getattr(pipe, self._denoiser)
        if self.layerwise_casting:
            hub_offload.store(net)
        if self.attention is not None:
            hub_attention.use(net, self.attention)
        return under(pipe, self.contract) if self.contract else pipe

    @property
    def contract(self) -> Known | None:
        """How the model, or its LoRA, may be run if it is a student of others. ConfigError for an unknown one."""
        return hub_student.contract(self.known, self.lora, self.student, self.gguf, self.model)

    def on(self, pipe: Any, device: str) -> Any:
        return hub_offload.place(pipe, device, self.offload)

    def check_device(self, device: str) -> None:
        with Refusals() as refusals:
            refusals.ask(hub_offload.check, self.offload, device)
            refusals.ask(hub_quantised.check_device, self.folder, device)
            if self.attention is not None:
                refusals.ask(hub_attention.check, self.attention, device, DTYPES[self.dtype], self._head_width)

    def origin(self) -> Origin | None:
        kind = self.kind
        if kind.name in PIXEL:
            return None
        local, said = Path(self.model).expanduser(), {"revision": self.revision, "variant": self.variant}
        options = {"torch_dtype": DTYPES[self.dtype], "use_safetensors": True, **kind.loading()}
        options |= {name: value for name, value in said.items() if value is not None}
        model = str(local.absolute()) if local.is_dir() else self.model
        if self.controlnet:
            options[CONTROLNET] = None
        if self.gguf is not None:
            options[self._denoiser] = None
        lines = hub_gguf.lines(self.folder, self.gguf, self.dtype)
        if self.student:
            lines = hub_student.lines(self.student, self._denoiser, self.variant, DTYPES[self.dtype])
        lines += hub_control.lines(kind, self.controlnet, self.variant, DTYPES[self.dtype])
        lines += hub_lora.lines(self.lora, self.lora_fused)
        if self.layerwise_casting:
            lines.append(hub_offload.line(self._denoiser))
        if self._inexact:
            lines.append(hub_attention.line(self._denoiser, self.attention))
        return Origin(kind.name, model, options, lines)

    def models(self) -> dict[str, nn.Module]:
        nets = {
            name: hub_models.denoiser(hub_files.folder_of(source, None, self.variant), DTYPES[self.dtype], self.variant)
            for name, source in self.stitch_models
        }
        for net in nets.values() if self.attention is not None else ():
            hub_attention.use(net, self.attention)
        return nets

    def decoders(self) -> dict[str, TinyAutoencoder]:
        return hub_decoder.decoders(self.decoder, self.variant, DTYPES[self.dtype])

    def fingerprint(self) -> dict[str, str]:
        kind = self.kind
        shown = {"prompts": self.prompts.sha256()} if kind.condition == "prompt" else {}
        return self.model_fingerprint() | shown | self.inputs.identity(kind)

    def model_fingerprint(self) -> dict[str, str]:
        found = hub_files.hashes(self.folder, self.variant, self.gguf is None) | hub_gguf.identity(self.gguf)
        found |= hub_student.hashes(self.student, self._denoiser, self.variant) if self.student else {}
        found |= hub_control.hashes(self.controlnet, self.variant)
        for name, source in self.stitch_models:
            files = hub_files.hashes(hub_files.folder_of(source, None, self.variant), self.variant)
            found |= {f"stitch {name}/{file}": value for file, value in files.items()}
        return found | {f"setting {k}": str(v) for k, v in self._settings().items() if v is not None}

    def _settings(self) -> dict[str, Any]:
        # What decides the images and is in no file.
        settings: dict[str, Any] = {"dtype": self.dtype, **self._sizes(), "frames": self.frames}
        if self.kind.condition == "prompt":
            settings |= {"negative prompt": self.prompts.negative, "max_sequence_length": self.max_sequence_length}
        if self.kind.condition == "label":
            settings["classes"] = self.classes
        settings |= {f"lora {i}": lora.identity() for i, lora in enumerate(self.lora)}
        if self.lora and not self.lora_fused:  # methods that look at layers find others
            settings["lora fused"] = False
        if self.layerwise_casting:
            settings["layerwise casting"] = str(hub_offload.STORED)
        if self._inexact:
            settings["attention"] = self.attention
        settings["quantised weights"] = hub_quantised.said(self.folder, self.gguf)  # None is left out
        if self._distilled:
            settings["distilled guidance"] = float(self.distilled_guidance)
        return settings

    def check(self, n: int) -> None:
        with Refusals() as refusals:
            for _, source in self.stitch_models:
                refusals.ask(hub_files.folder_of, source, None, self.variant)
            if self.prompts.path:
                refusals.ask(self.prompts.texts)
            refusals.ask(self._check_kind, n)
            refusals.ask(self.scoring)  # a network that cannot be loaded is found now

    def _check_kind(self, n: int) -> None:
        """Whether the settings are of this kind of pipeline, and its files whole."""
        kind = self.kind
        with Refusals() as refusals:
            if self.height is not None and not kind.sized:
                refusals.add(
                    ConfigError(
                        f"{kind.name} has one image size, that of its model; leave suite.height and .width out."
                    )
                )
            refusals.ask(hub_configs.check_frames, self.folder, kind, self.frames)
            refusals.ask(hub_configs.check_encoders, self.folder, kind)
            if self.max_sequence_length is not None and kind.sequence is None:
                refusals.add(
                    ConfigError(f"{kind.name} has no max_sequence_length; leave suite.max_sequence_length out.")
                )
            if kind.condition == "prompt":
                refusals.ask(self.prompts.check, n)
            shown = min(n, self.period) if kind.condition == "prompt" and self.prompts.path else n
            refusals.ask(self.inputs.check, kind, shown)
            if self.prompts.negative is not None and kind.condition == "prompt" and not kind.negative:
                refusals.add(ConfigError(f"{kind.name} has no negative prompts; leave suite.prompts.negative out."))
            refusals.ask(hub_configs.check, self.folder)
            refusals.ask(self._check_control)
            refusals.ask(hub_lora.check, self.lora, kind.cls())
            refusals.ask(hub_quantised.check, self.folder)
            refusals.ask(hub_gguf.check, self.folder, self.gguf)
            fused = bool(self.lora) and self.lora_fused
            refusals.ask(hub_quantised.check_settings, self.folder, self.gguf, fused, self.layerwise_casting)
            refusals.ask(hub_student.check, self.student, self.gguf, self._denoiser, self.folder, self.variant)
            refusals.ask(hub_decoder.check, self.decoder, self.variant)
            if contract := refusals.ask(lambda: self.contract):
                refusals.ask(contract.check_scales, [lora.scale for lora in self.lora])
            if kind.condition == "label":
                refusals.ask(self._check_classes)
            if self.clip and kind.condition != "prompt":
                refusals.add(
                    ConfigError(f"{kind.name} has no prompts, so there is no CLIP score; leave suite.clip out.")
                )

    def _check_control(self) -> None:
        others: dict[str, Mapping[str, Any]] = {}
        if self.kind.control_scale is None:
            return
        if self.student:
            others["suite.student"] = hub_student.config(self.student, self._denoiser, self.folder, self.variant)
        for name, source in self.stitch_models:
            folder = hub_files.folder_of(source, None, self.variant)
            others[f"suite.stitch_models.{name}"] = hub_files.config_of(folder, hub_files.denoiser_of(folder))
        hub_control.check_others(self.folder, others)

    def _check_classes(self) -> None:
        count = self._class_count
        if bad := [
            c for c in self.classes or () if isinstance(c, bool) or not isinstance(c, int) or not 0 <= c < count
        ]:
            raise ConfigError(f"suite.classes has {bad[0]!r}; allowed: 0..{count - 1}.")

    @property
    def _inexact(self) -> bool:
        return self.attention is not None and not hub_attention.exact(self.attention)

    @property
    def _head_width(self) -> int:
        width = hub_files.config_of(self.folder, self._denoiser).get("attention_head_dim")
        return width if isinstance(width, int) else hub_attention.WIDTH

    # what it is compared with --------------------------------------------------------------------------------------

    def converged(self, guidance: Guidance | None) -> Recipe:
        config = hub_files.config_of(self.folder, "scheduler")
        own = "scm" if is_trigflow(config) else "rf_solver" if is_flow(config) else "unipc"
        if self.contract and not self.converged_sampler:  # 50 steps of a student are no better images of its
            return self.contract.plain(guidance)
        name = self.converged_sampler or own
        grid = self.converged_grid or CONVERGED.get(name, "none")
        sampler = method("sampler", name, steps=self.converged_steps)
        return Recipe(sampler, method("grid", grid), guidance)

    @property
    def image_size(self) -> tuple[int, int]:
        """Height and width of the generated images."""
        if self.height is not None:
            return self.height, self.width
        return hub_configs.image_size(self.folder)

    def to_uint8(self, images: torch.Tensor) -> torch.Tensor:
        if images.dtype == torch.uint8:
            return images
        return to_uint8(images.float() if self.kind.signed else images.float() * 2 - 1)

    def stored(self, images: torch.Tensor) -> torch.Tensor:
        if self.frames and images.shape[1] != self.frames:
            raise ConfigError(
                f"suite.frames is {self.frames}, and {self.kind.name} makes {images.shape[1]} of that, as its "
                f"autoencoder wants; use suite.frames={images.shape[1]}."
            )
        return self.to_uint8(images)

    def execution(self) -> dict[str, Any]:
        used = {name: True for name in ("vae_slicing", "channels_last", "compile") if getattr(self, name)}
        used |= {} if self.offload == "none" else {"offload": self.offload}
        return used | ({} if self.attention is None or self._inexact else {"attention": self.attention})
