"""Suite `arch`: a pipeline that people deploy, whole and at its true shapes, with random weights.

Time, memory and multiply-accumulates depend on shapes and types alone, so random weights are honest for these, and for
nothing else: images are noise. What a study of this suite has is cost, times and stages; scores, references and the
converged trajectory are refused with that reason.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import MISSING, dataclass, fields, replace
from pathlib import Path
from typing import Any, ClassVar

from torch import nn

from accel.errors import ConfigError, Refusals, check_float
from accel.records import digest
from accel.suites.architectures import described as archs
from accel.suites.architectures import made
from accel.suites.base import Origin
from accel.suites.hub import attention as hub_attention
from accel.suites.hub import configs as hub_configs
from accel.suites.hub import files as hub_files
from accel.suites.hub import index as hub_index
from accel.suites.hub.kinds import Kind
from accel.suites.hub.suite import DTYPES, HubSuite

PROMPTS = archs.HERE.parent / "prompts.txt"
UNSCORED = "the weights of suite arch are random, so that its images are noise; it has cost and times alone"
TRAINED = "the weights of suite arch are random, and this belongs to trained ones"
OF_WEIGHTS = ("model", "revision", "variant", "gguf", "student", "lora", "controlnet", "decoder")
OF_SCORES = ("feature_weights", "clip", "reference_images", "feature_network")
SMALLEST = 0.01


@dataclass(frozen=True)
class ArchSuite(HubSuite):
    """`arch`: one of those that ship, or a folder of configs. `layers`, `resolution`: shares of the denoiser's and text
    encoders' layers, and of the side of images. What is left out (dtype, size, frames) is what the architecture's
    makers use. See conf/suite/arch.yaml and docs/architectures.md."""

    arch: str = ""
    layers: float = 1.0
    resolution: float = 1.0
    dtype: str | None = None
    name: str = "arch"
    unscored: ClassVar[str | None] = UNSCORED
    pictures: ClassVar[bool] = False

    def __post_init__(self) -> None:
        with Refusals() as refusals:
            for share in ("layers", "resolution"):
                refusals.ask(check_float, f"suite.{share}", getattr(self, share), SMALLEST, 1.0)
            changed = [f.name for f in fields(HubSuite) if f.name in (*OF_WEIGHTS, *OF_SCORES) and _given(self, f)]
            for name in changed:
                why = UNSCORED if name in OF_SCORES else TRAINED
                refusals.add(ConfigError(f"suite.{name} is given, but {why}; leave it out, or use suite=hub."))
            found = refusals.ask(archs.described, str(self.arch))
        self._settle(found)
        super().__post_init__()

    def _settle(self, found: Mapping[str, Any]) -> None:
        """Fill in what is left out; a name that says what is smaller than it was published."""
        settled = {"dtype": self.dtype or found.get("dtype", "float32")}
        kind = hub_index.kind_named(found["model_index"]["_class_name"])
        if self.frames is None and kind.frames:
            settled["frames"] = found.get("frames")
        if self.height is None and self.width is None and kind.sized and kind.told_size:
            usual = found.get("height"), found.get("width")
            if self.resolution < 1 and None in usual:
                usual = hub_configs.image_size(archs.folder_of(str(self.arch)))
            if None not in usual:
                sides = [archs.CELL * archs.fewer(side // archs.CELL, self.resolution) for side in usual]
                settled |= {"height": sides[0], "width": sides[1]}
        if self.prompts.path is None:
            settled["prompts"] = replace(self.prompts, path=str(PROMPTS), beyond="repeat")
        for share in ("layers", "resolution"):
            if (own := getattr(self, share)) < 1 and share not in self.name:
                settled["name"] = f"{settled.get('name', self.name)}_{share}{own:g}"
        for name, value in settled.items():
            object.__setattr__(self, name, value)

    @property
    def folder(self) -> Path:
        """Where the configs are, in this process."""
        kind = hub_index.kind_named(archs.described(str(self.arch))["model_index"]["_class_name"])
        cells = 1.0 if kind.told_size else self.resolution
        return archs.folder_of(str(self.arch), self.layers, cells)

    @property
    def kind(self) -> Kind:
        return hub_index.kind_of(self.folder)

    def pipeline(self) -> Any:
        return self._made("cpu")

    def ready(self, device: str) -> Any:
        return self.on(self._made(device if self.offload == "none" else "cpu"), device)

    def _made(self, device: str) -> Any:
        pipe = made.pipeline(self.folder, self.kind, device, DTYPES[self.dtype], self._texts())
        return self._prepared(pipe)

    def _texts(self) -> tuple[str, ...]:
        return self.prompts.texts() if self.kind.condition == "prompt" else ()

    def check_device(self, device: str) -> None:
        with Refusals() as refusals:
            refusals.ask(super().check_device, device)
            what = f"suite.arch={self.arch} in {self.dtype}"
            refusals.ask(made.check_memory, what, self.folder, DTYPES[self.dtype], device, self.offload)

    def origin(self) -> Origin | None:
        return None

    def models(self) -> dict[str, nn.Module]:
        return {name: self._other(source) for name, source in self.stitch_models}

    def _other(self, arch: str) -> nn.Module:
        folder = archs.folder_of(arch)
        name = hub_files.denoiser_of(folder)
        net = made.network(
            *hub_index.components(folder)[name], hub_files.config_of(folder, name), "cpu", DTYPES[self.dtype]
        )
        if self.attention is not None:
            hub_attention.use(net, self.attention)
        return net

    def model_fingerprint(self) -> dict[str, str]:
        found = {"weights": "random", "configs": _configs(self.folder)}
        found |= {f"stitch {name}": _configs(archs.folder_of(source)) for name, source in self.stitch_models}
        return found | {f"setting {k}": str(v) for k, v in self._settings().items() if v is not None}

    def check(self, n: int) -> None:
        with Refusals() as refusals:
            for _, source in self.stitch_models:
                refusals.ask(archs.folder_of, source)
            refusals.ask(self._check_kind, 1)

    def notes(self, pipe: Any, n: int) -> dict[str, Any]:
        return {}


def _given(suite: ArchSuite, field: Any) -> bool:
    """Whether a setting is not at its default."""
    default = field.default if field.default is not MISSING else field.default_factory()
    value = getattr(suite, field.name)
    if field.name == "reference_images":
        return value.path is not None
    return tuple(value or ()) != default if isinstance(default, tuple) else value not in (default, None, "")


def _configs(folder: Path) -> str:
    """One hash of all configs."""
    index = {"model_index": hub_index.read(folder)}
    parts = hub_index.components(folder).items()
    return digest(index | {p: hub_files.config_of(folder, p) for p, (_, cls) in parts if archs.configured(p, cls)})
