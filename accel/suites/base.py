"""What a suite is: a pipeline, what to generate for sample i, and the reference to compare with."""

from __future__ import annotations

import json
from abc import ABC, abstractmethod
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

import torch
from safetensors.torch import load_file
from torch import nn

from accel.core.guidance import CLASSIFIER, Guidance
from accel.core.recipe import Recipe
from accel.core.student import Contract
from accel.errors import ConfigError, IntegrityError
from accel.files import file_hash
from accel.metrics.statistics import Estimate

ASSETS = Path(__file__).parent / "assets"


def to_uint8(images: torch.Tensor) -> torch.Tensor:
    """float -1..1 -> uint8 by explicit rounding (never truncation)."""
    return ((images.clamp(-1, 1) + 1) * 127.5).round().to(torch.uint8)


@dataclass(frozen=True)
class Reference:
    """Features (N, D) of the real data that FID and its kin compare with, and what identifies them; `strata`: the class
    of each (N,), 0..K-1, where the real data are of classes that samples rotate over (`Suite.strata`)."""

    name: str
    features: torch.Tensor
    sha256: str
    strata: torch.Tensor | None = None

    def identity(self) -> dict[str, Any]:
        return {"name": self.name, "n": len(self.features), "sha256": self.sha256}


@dataclass(frozen=True)
class Origin:
    """Where diffusers itself loads a pipeline from: its class `name`, the folder or hub id `model`, `options` of
    from_pretrained, and `lines` of Python that then make it what the suite runs."""

    name: str
    model: str
    options: Mapping[str, Any]
    lines: Sequence[str] = ()


@dataclass(frozen=True)
class Student:
    """A student of a suite: `load` gives its network, `fingerprint` hashes what decides its images, `contract` says how
    it may be run and what it cost."""

    load: Callable[[], nn.Module]
    fingerprint: Mapping[str, str]
    contract: Contract


@dataclass(frozen=True)
class TinyAutoencoder:
    """A decoder of a suite: `load` gives its network, `fingerprint` hashes what decides its pictures, `bill` says what
    it cost, if the suite knows."""

    load: Callable[[], nn.Module]
    fingerprint: Mapping[str, str]
    bill: Mapping[str, Any] = field(default_factory=dict)


class Networks(Mapping[str, nn.Module]):
    """Networks by name, some of which (`later`) are loaded when they are first asked for, to `device`."""

    def __init__(
        self, there: Mapping[str, nn.Module], later: Mapping[str, Callable[[], nn.Module]], device: Any = None
    ) -> None:
        self._there, self._later, self._device = dict(there), dict(later), device

    def __getitem__(self, name: str) -> nn.Module:
        if name not in self._there:
            net = self._later[name]()
            self._there[name] = net if self._device is None else net.to(self._device)
        return self._there[name]

    def __iter__(self) -> Iterator[str]:
        return iter({**self._there, **self._later})

    def __len__(self) -> int:
        return len({**self._there, **self._later})

    def __or__(self, others: Mapping[str, nn.Module]) -> Networks:
        """These and others, which stand for those of the same name."""
        later = {name: load for name, load in self._later.items() if name not in others}
        return Networks({**self._there, **others}, later, self._device)

    def to(self, device: Any) -> Networks:
        """The same networks on a device; those that are loaded later go there, too."""
        return Networks({name: net.to(device) for name, net in self._there.items()}, self._later, device)


class Suite(ABC):
    """A benchmark task. Subclasses are frozen dataclasses, so that a suite is its configuration.

    Networks have owners. What `pipeline`, `models` and `classifier` return belongs to the caller, who may move it to
    another device: it shares no tensor with what scores, nor with what another call returned. What scores (`features`,
    `per_sample`) is the suite's own, kept between calls, and stays where it was loaded; images come to it.
    """

    name: str
    period: ClassVar[int] = 1  # after so many samples the conditions repeat
    fid_margin: ClassVar[float | None] = None  # the least margin of FID, where 10 % of a FID near 0 tell nothing
    pictures: ClassVar[bool] = True  # whether images are to be looked at, so that PSNR and the like mean something
    unscored: ClassVar[str | None] = None  # why nothing can be said of its images; such a suite has cost and times
    frames: int | None = (
        None  # of each sample, where samples are videos: images are (B, F, C, H, W), features (B, F, D)
    )
    feature_space: str | None = None  # suffix of fid_* and kid_*; None: no feature network, no such metric

    @abstractmethod
    def pipeline(self) -> Any:
        """A freshly loaded diffusers pipeline."""

    def origin(self) -> Origin | None:
        """Where diffusers loads the same pipeline from by itself; None: its class is accel's own."""
        return None

    def on(self, pipe: Any, device: str) -> Any:
        """A pipeline that `pipeline` gave, on `device`, as the suite runs it there."""
        return pipe.to(device)

    def ready(self, device: str) -> Any:
        """A freshly loaded pipeline on `device`; suites that make their weights make them there."""
        return self.on(self.pipeline(), device)

    def check_device(self, device: str) -> None:  # noqa: B027 (most suites run anywhere)
        """Raise ConfigError now if the suite's settings are not for this device."""

    def models(self) -> dict[str, nn.Module]:
        """Further denoisers by name, for stitching and autoguidance."""
        return {}

    def classifier(self) -> nn.Module | None:
        """Logits (B, K) of clean images as the denoiser predicts them (pixels: -1..1), one for each class; or None. The
        caller's own: one that is kept for scoring is copied."""
        return None

    def students(self) -> dict[str, Student]:
        """Few-step students by name, each loaded when it is asked for, under its contract (accel.core.student)."""
        return {}

    def decoders(self) -> dict[str, TinyAutoencoder]:
        """Tiny decoders by name, for the place of the pipeline's own, each loaded when it is asked for."""
        return {}

    def networks(self) -> Networks:
        """Every network beside the pipeline's that a method may name: `models`, the classifier if there is one,
        `students` and `decoders`."""
        classifier = self.classifier()
        found = self.models() | ({} if classifier is None else {CLASSIFIER: classifier})
        later = self.students() | self.decoders()
        return Networks(found, {name: own.load for name, own in later.items()})

    @abstractmethod
    def fingerprint(self) -> dict[str, str]:
        """Hashes of everything that decides what the pipeline generates."""

    def model_fingerprint(self) -> dict[str, str]:
        """`fingerprint` without what is shown: of the model alone."""
        return {name: value for name, value in self.fingerprint().items() if name != "prompts"}

    @abstractmethod
    def conditions(self, start: int, stop: int) -> dict[str, Any]:
        """Pipeline arguments that say what to generate for samples start..stop-1; a function of the index only."""

    def asked(self, words: Sequence[str]) -> dict[str, Any]:
        """Pipeline arguments for as many samples as there are words, each of which shows what its word names: a class
        label, or a prompt. ConfigError for what this model cannot show."""
        raise ConfigError(f"suite {self.name!r} shows nothing that could be asked for; leave {words[0]!r} out.")

    def strata(self, conditions: dict[str, Any]) -> list[int] | None:
        """The class, 0..K-1, of samples under these conditions, where samples rotate over K classes of equal weight (K
        is then the period) and so are a class-stratified draw; None where they do not."""
        return None

    def guidance_arguments(self, recipe: Recipe) -> dict[str, Any]:
        """Pipeline arguments that make it guide as `recipe` wants."""
        return {"guidance_scale": recipe.guidance_scale}

    def check(self, n: int) -> None:  # noqa: B027 (most suites have nothing to check)
        """Raise ConfigError now if samples 0..n-1 cannot be made: a prompt file with fewer prompts."""

    def execution(self) -> dict[str, Any]:
        """Settings that change how long generation takes, but its results by rounding only; part of a timing's id."""
        return {}

    def scoring(self) -> dict[str, Any]:
        """What `features` and `per_sample` depend on beyond the fingerprint, such as a feature network of choice.

        Where there is any, scores are kept apart from the images, and another choice scores the same images again.
        """
        return {}

    def notes(self, pipe: Any, n: int) -> dict[str, Any]:
        """What else a record of samples 0..n-1 should say, such as how many prompts were cut.

        `warnings`, a list of sentences, are said on the screen too.
        """
        return {}

    @abstractmethod
    def converged(self, guidance: Guidance | None) -> Recipe:
        """The recipe whose result counts as the exact solution for this guidance."""

    def shipped(self) -> Path | None:
        """A file of images that ship with the suite (accel.files.save_tensors): for a run, by its generation id
        (accel.studies.samples), samples 0..N-1 as `stored` keeps them, (N, C, H, W). The id holds the weights and the
        recipe, so that a change of either leaves them unused. None: nothing ships."""
        return None

    def solves(self, guidance: Guidance | None) -> bool:
        """Whether `solve` knows the exact solution under this guidance, so that no sampler stands in for it."""
        return False

    def solve(self, pipe: Any, recipe: Recipe, seed: int, start: int, stop: int) -> torch.Tensor:
        """The exact solution of samples start..stop-1; only suites that override this have one."""
        raise ConfigError(f"suite {self.name!r} has no exact solution; its reference is the converged sampler.")

    def features(self, images: torch.Tensor) -> torch.Tensor | None:
        """Features (B, D), on the CPU, of pipeline output (B, C, H, W) on any device; None without a feature space."""
        return None

    def feature_scores(self, features: torch.Tensor, period: int = 1) -> dict[str, Estimate]:
        """Metrics of the features (N, D) of all samples that need no reference; `period`: of the jackknife's groups."""
        return {}

    def per_sample(self, images: torch.Tensor, conditions: dict[str, Any]) -> dict[str, torch.Tensor]:
        """Further scores of each sample under its condition, by metric name, each (B,) on the CPU."""
        return {}

    def reference(self) -> Reference | None:
        """The reference of the feature metrics."""
        return None

    def reference_identity(self) -> dict[str, Any] | None:
        """What identifies the reference (name, n, sha256), without loading it."""
        return None

    def held_out(self) -> tuple[torch.Tensor, dict[str, Any]] | None:
        """Real images (N, C, H, W) in the pipeline's range that are not in the reference, and their conditions; their
        score is the real-vs-real floor (with strata: that of as many of each class). None without real data."""
        return None

    def to_uint8(self, images: torch.Tensor) -> torch.Tensor:
        """Pipeline output, or what `stored` made of it, -> uint8 (B, C, H, W) for pictures."""
        return to_uint8(images)

    def stored(self, images: torch.Tensor) -> torch.Tensor:
        """What shards keep of pipeline output, and distances are taken of: -1..1 as it is, or uint8 to save space."""
        return images


def labels(words: Sequence[str], allowed: Collection[int]) -> list[int]:
    """The class labels that words name; ConfigError for one that the model does not have."""
    known = {str(label): label for label in allowed}
    if strange := [word for word in words if word.strip() not in known]:
        raise ConfigError(f"class label is {strange[0]!r}; allowed: {min(allowed)}..{max(allowed)}.")
    return [known[word.strip()] for word in words]


def beside(net: nn.Module, x: torch.Tensor) -> torch.Tensor:
    """`x` on the device of the network: who borrows a network brings the input to it, and never moves the network."""
    return x.to(next(net.parameters(), x).device)


def write_manifest(folder: Path, extra: Mapping[str, str] | None = None) -> None:
    """Record the sha256 of every weight file (and `extra` entries) below `folder`."""
    files = sorted(p for p in folder.rglob("*") if p.is_file() and p.name != "MANIFEST.json")
    content = {p.relative_to(folder).as_posix(): file_hash(p) for p in files} | dict(extra or {})
    (folder / "MANIFEST.json").write_text(json.dumps(content, indent=1, sort_keys=True) + "\n")


def remedy(suite: str) -> str:
    """What mends the damaged weights of an embedded suite."""
    return f"Restore it from the repository (git checkout), or train it again with `make train SUITE={suite}`."


def manifest(folder: Path, remedy: str) -> dict[str, str]:
    """What the manifest of `folder` says; IntegrityError says what mends it."""
    if not folder.is_dir() or not (folder / "MANIFEST.json").exists():
        raise IntegrityError(f"no weights at {folder}. {remedy}")
    try:
        return json.loads((folder / "MANIFEST.json").read_text())
    except ValueError as error:
        raise IntegrityError(f"{folder / 'MANIFEST.json'} is damaged: {error}. {remedy}") from error


def check_manifest(folder: Path, remedy: str) -> dict[str, str]:
    """The manifest of `folder`, after checking every file against it; IntegrityError says what mends it."""
    content = manifest(folder, remedy)
    for name, expected in content.items():
        path = folder / name
        if name.startswith("data:"):
            continue
        if not path.exists():
            raise IntegrityError(f"weights file {path} is missing. {remedy}")
        if (found := file_hash(path)) != expected:
            raise IntegrityError(
                f"weights file {path} is damaged: sha256 {found[:12]}..., expected {expected[:12]}.... {remedy}"
            )
    return content


@torch.inference_mode(False)  # whoever asks first: guidance differentiates through it
def load_frozen(make: Callable[[], nn.Module], path: Path) -> nn.Module:
    """The network that `make` builds, with the float16 weights of a safetensors file in float32, for inference."""
    net, state = make(), load_file(path)
    net.load_state_dict({k: v.float() if v.is_floating_point() else v for k, v in state.items()})
    return net.eval().requires_grad_(False)


def load_pipeline(cls: type, folder: Path | str, **kwargs: Any) -> Any:
    """`cls.from_pretrained` on a local folder: safetensors only, no network, quiet; ConfigError if that fails.

    It says nothing about code that a folder may bring along: accel/suites/hub/index.py must have looked before.
    """
    from diffusers.utils import logging

    folder = Path(folder)
    if not (folder / "model_index.json").exists():
        raise ConfigError(f"{folder} is not a diffusers pipeline folder (it has no model_index.json).")
    logging.disable_progress_bar()
    with loading(folder):
        pipe = cls.from_pretrained(
            folder, use_safetensors=True, local_files_only=True, **{"low_cpu_mem_usage": False} | kwargs
        )
    pipe.set_progress_bar_config(disable=True)
    return pipe


@contextmanager
def loading(folder: Path) -> Iterator[None]:
    """Turn whatever a library says while it loads `folder` into a ConfigError."""
    try:
        yield
    except Exception as error:  # each layer below has errors of its own, and none is of interest but as text
        reason = " ".join(str(error).split())[:400] or type(error).__name__
        if "remote_code" in reason:  # a library's advice that is never to be followed here
            reason = "it asks for code of its own, which is never run."
        raise ConfigError(
            f"cannot load {folder}: {reason} Only safetensors weights are loaded, never pickles."
        ) from error


def load_network(cls: type, folder: Path) -> nn.Module:
    """`cls.from_pretrained` on the local folder of a network, in float32 for inference; else as `load_pipeline`."""
    with loading(folder):
        net = cls.from_pretrained(
            folder, use_safetensors=True, local_files_only=True, torch_dtype=torch.float32, low_cpu_mem_usage=False
        )
    return net.eval()
