"""Executed precisions on one denoiser call: speed, error, bytes, memory and set-up of each, beside float32 uncompiled.

A process for each variant, because compilers keep global state and caches; in it the plain float32 network is timed in
alternation, twice (the A/A floor). One thread: processor time, which neighbours on the machine disturb least; several
threads, and GPUs: wall clock. Compiler caches start empty, so that the set-up is that of a first run.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch

from accel.core.environment import environment, instruction_set
from accel.core.precision import Precision, plain_bytes
from accel.core.recipe import Recipe, accelerate
from accel.errors import AccelError
from accel.evaluation.generate import generate
from accel.evaluation.intervals import median_interval
from accel.evaluation.timing import interleave
from accel.precision import TF32, Cast, Compiled, OpenVINO, StaticInt8, TorchAO
from accel.precision.simulated.calibration import record
from accel.precision.simulated.calibration_sets import Call
from accel.records import Results, describe, digest
from accel.samplers import DiffusersSampler
from accel.suites.digits import DigitsSuite

CONTROL = "fp32"  # the plain network, uncompiled
COMPILED = Compiled("bfloat16").label  # what every other row is held against, too
METHODS: tuple[Precision, ...] = (
    TF32(),
    Compiled("float32"),
    Cast("bfloat16"),
    Cast("float16"),
    Compiled("bfloat16"),
    Compiled("float16"),
    TorchAO("weights", "float32", compile=False),
    TorchAO("weights", "bfloat16"),
    TorchAO("dynamic", "float32", compile=False),
    TorchAO("dynamic", "float32"),
    TorchAO("dynamic", "bfloat16"),
    TorchAO("float8", "bfloat16"),
    StaticInt8(),
    OpenVINO("float32"),
    OpenVINO("bfloat16"),
    OpenVINO("float32", int8=True),
    OpenVINO("bfloat16", int8=True),
)
VARIANTS: dict[str, Precision | None] = {CONTROL: None} | {method.label: method for method in METHODS}
LIBRARIES = ("torchao", "openvino", "nncf")

SAMPLER = DiffusersSampler("DDIMScheduler", 8)
HELD_OUT = 1000  # number of the sample whose evaluations the error is measured on; calibration has the first few
EVALUATIONS = (0, 2, 4, 7)  # of its steps
BLOCK = 0.2  # seconds of the control in one round, in whole calls

Sample = Callable[[Any, int, int], Any]


@dataclass(frozen=True)
class Size:
    """A network to measure: `build()` gives a pipeline and what samples numbers [start, stop) with it.

    `share`: of the asked rounds that are made, because a large network takes long.
    """

    name: str
    build: Callable[[], tuple[Any, Sample]]
    share: float

    def rounds(self, repetitions: int) -> int:
        return max(1, round(repetitions * self.share))


def digits() -> tuple[Any, Sample]:
    """The trained UNet of suite `digits`, 16x16 pixels."""
    suite = DigitsSuite()
    pipe = suite.pipeline()
    return pipe, lambda recipe, a, b: generate(pipe, suite, recipe, seed=0, start=a, stop=b, batch=b - a)


def text_to_image(channels: Sequence[int], context: int, heads: int, size: int) -> tuple[Any, Sample]:
    """A random UNet of Stable Diffusion's kind on latents (4, size, size), under diffusers' own pipeline."""
    from diffusers import AutoencoderKL, DDIMScheduler, StableDiffusionPipeline, UNet2DConditionModel

    with torch.random.fork_rng():
        torch.manual_seed(0)
        net = UNet2DConditionModel(
            sample_size=size, block_out_channels=tuple(channels), cross_attention_dim=context, attention_head_dim=heads
        )
        vae = AutoencoderKL(block_out_channels=(4,), latent_channels=4, norm_num_groups=4)  # never runs
    for part in (net, vae):
        part.eval().requires_grad_(False)
    scheduler = DDIMScheduler(beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear", clip_sample=False)
    pipe = StableDiffusionPipeline(vae, None, None, net, scheduler, None, None, requires_safety_checker=False)
    pipe.set_progress_bar_config(disable=True)

    def sample(recipe: Recipe, start: int, stop: int) -> None:
        generators = [torch.Generator().manual_seed(i) for i in range(start, stop)]
        prompts = torch.stack([torch.randn(77, context, generator=g) for g in generators])
        pipe(prompt_embeds=prompts.to(pipe.device), generator=generators, guidance_scale=1.0, output_type="latent",
             height=size * pipe.vae_scale_factor, width=size * pipe.vae_scale_factor,
             num_inference_steps=recipe.sampler.steps)  # fmt: skip

    return pipe, sample


SIZES = {
    size.name: size
    for size in (
        Size("tiny", digits, 1.0),
        Size("mid-size", lambda: text_to_image((64, 128, 256, 256), 256, 8, 32), 0.5),
        Size("Stable Diffusion 1.5", lambda: text_to_image((320, 640, 1280, 1280), 768, 8, 32), 0.2),
    )
}


def measure_precision(size: Size, variant: str, repetitions: int, device: str = "cpu") -> dict[str, Any]:
    """What one variant does on one network at batch 1, on torch's present number of threads; call it in a process of
    its own. Raises AccelError where the variant cannot run."""
    base, method = _resident(), VARIANTS[variant]
    pipe, sample = size.build()
    pipe.to(device)
    plain, recipe = Recipe(SAMPLER), Recipe(SAMPLER, precision=method)
    recipe.check(pipe)
    bytes_ = method.model_bytes(pipe.unet) if method else plain_bytes(pipe.unet)
    recorded = record(pipe, plain, lambda: sample(plain, HELD_OUT, HELD_OUT + 1))["base"][0]
    calls = [recorded[i] for i in EVALUATIONS]

    start, calibration = time.perf_counter(), 0.0
    artefacts = None
    if method and method.calibrated:
        artefacts = method.calibrate(pipe, recipe, sample)
        calibration = time.perf_counter() - start

    def arm(which: Recipe) -> Callable[[], Any]:
        @contextmanager
        def context() -> Iterator[Callable[[], Any]]:
            with running(pipe, which, artefacts, calls[:1]) as evaluate:
                evaluate()  # what is made once, when a context is entered, is not timed
                yield lambda: [evaluate() for _ in range(count)]

        return context

    _reset_peak(device)
    with running(pipe, recipe, artefacts, calls) as evaluate:
        evaluate(1)
        setup, setup_peak = time.perf_counter() - start, _peak(device, base)
        _reset_peak(device)
        outputs = evaluate()
        peak = _peak(device, base)
    with running(pipe, plain, None, calls) as evaluate:
        exact = evaluate()
        begin = time.perf_counter()
        evaluate(1)
        count = max(1, min(20, round(BLOCK / (time.perf_counter() - begin))))
    rounds = size.rounds(repetitions)
    cpu_time = device == "cpu" and torch.get_num_threads() == 1
    arms = {"plain": arm(plain), "variant": arm(recipe), "again": arm(plain)}
    seconds = interleave(arms, rounds, device, clock=time.process_time if cpu_time else None)
    both = (seconds["plain"] + seconds["again"]) / 2
    return {
        "rounds": rounds,
        "calls": count,
        "clock": "processor time" if cpu_time else "wall clock",
        "ms": median_interval(seconds["variant"] / count * 1000),
        "ratios": (both / seconds["variant"]).tolist(),
        "speedup": median_interval(both / seconds["variant"]),
        "aa": median_interval(seconds["plain"] / seconds["again"]),
        "timesteps": [call.timestep for call in calls],
        "sqnr": [decibel(e, o) for e, o in zip(exact, outputs, strict=True)],
        "model_bytes": bytes_,
        "setup_s": setup,
        "calibration_s": calibration,
        "setup_peak_bytes": setup_peak,
        "peak_bytes": peak,
    }


@contextmanager
def running(pipe: Any, recipe: Recipe, artefacts: Any, calls: Sequence[Call]) -> Iterator[Callable[..., list]]:
    """Within the context, evaluate(first) gives the outputs of the first calls (default: all) under `recipe`."""
    with torch.no_grad(), accelerate(pipe, recipe, artefacts=artefacts):
        pipe.scheduler.set_timesteps(recipe.sampler.steps, device=pipe.device)

        def evaluate(first: int | None = None) -> list[torch.Tensor]:
            return [pipe.unet(**call.inputs.kwargs, return_dict=False)[0] for call in calls[:first]]

        yield evaluate


def decibel(exact: torch.Tensor, output: torch.Tensor) -> float | None:
    """Signal to quantisation noise, 10 log10(|exact|^2 / |exact - output|^2) in dB; None where both are equal."""
    exact, output = exact.double(), output.double()
    noise = float((exact - output).square().sum())
    return 10 * math.log10(float(exact.square().sum()) / noise) if noise else None


# One process for each variant ----------------------------------------------------------------------------------------


def identity(size: str, variant: str, where: Mapping[str, Any]) -> str:
    """Id of a measurement, its place in a table: network, variant, device and threads. A new one replaces the old."""
    place = {key: where[key] for key in ("device", "device_name", "threads")}
    return digest({"size": size, "variant": variant, "place": place})


def made_of(variant: str, where: Mapping[str, Any]) -> dict[str, Any]:
    """What a measurement depends on beyond its id: versions, and the method's settings."""
    return {"environment": where, "libraries": libraries(), "method": describe(VARIANTS[variant])}


def libraries() -> dict[str, str]:
    """Versions of the optional packages that variants run on."""
    found = {}
    for name in LIBRARIES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            found[name] = "absent"
    return found


def pending(
    results: Results, sizes: Sequence[str], repetitions: int, threads: int, device: str = "cpu"
) -> list[tuple[str, str]]:
    """The (size, variant) that are still to be measured with so many rounds; those that could not run come again."""
    where = _where(threads, device)

    def done(size: str, variant: str) -> bool:
        kept = results.load("precision", identity(size, variant, where)) or {}
        kept["environment"] = {key: kept.get("environment", {}).get(key) for key in where}  # without its provenance
        same = {key: kept.get(key) for key in ("environment", "libraries", "method")} == made_of(variant, where)
        return same and kept.get("rounds", 0) >= SIZES[size].rounds(repetitions)

    return [(size, variant) for size in sizes for variant in VARIANTS if not done(size, variant)]


def measure_apart(size: str, variant: str, repetitions: int, threads: int, device: str = "cpu") -> dict[str, Any]:
    """The record of one variant, measured in a process of its own; with `reason` in place of numbers if it cannot."""
    with tempfile.TemporaryDirectory() as folder:
        told = Path(folder) / "measured.json"
        settings = {"size": size, "variant": variant, "repetitions": repetitions, "threads": threads, "device": device}
        own = {"OMP_NUM_THREADS": str(threads), "MKL_NUM_THREADS": str(threads), "TORCHINDUCTOR_CACHE_DIR": folder}
        command = [sys.executable, "-m", "accel.benches.precision_speed", json.dumps(settings), str(told)]
        ended = subprocess.run(
            command, env=os.environ | own, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
        )
        if told.exists():
            found = json.loads(told.read_text())
        else:
            last = (ended.stdout.strip().splitlines() or ["no output"])[-1]
            found = {"reason": f"its process ended with code {ended.returncode}: {last}"}
    where = _where(threads, device)
    return {
        "kind": "precision",
        "id": identity(size, variant, where),
        "size": size,
        "variant": variant,
        "place": [list(SIZES).index(size), list(VARIANTS).index(variant)],
        "isa": instruction_set(device),
        **made_of(variant, where),
        **found,
    }


def _where(threads: int, device: str) -> dict[str, Any]:
    return environment(device) | {"threads": threads}


def _resident() -> int | None:
    return _status("VmRSS")


def _status(key: str) -> int | None:
    path = Path("/proc/self/status")
    lines = path.read_text().splitlines() if path.exists() else []
    return next((int(line.split()[1]) * 1024 for line in lines if line.startswith(key)), None)


def _reset_peak(device: str) -> None:
    if device != "cpu":
        torch.cuda.reset_peak_memory_stats(device)
    elif (path := Path("/proc/self/clear_refs")).exists():
        path.write_text("5")


def _peak(device: str, base: int | None) -> int | None:
    if device != "cpu":
        return torch.cuda.max_memory_allocated(device)
    peak = _status("VmHWM")
    return None if peak is None or base is None else peak - base


def main() -> None:
    """Measure what the first argument says (JSON) and write it to the file of the second one."""
    parser = argparse.ArgumentParser(description=main.__doc__)
    parser.add_argument("settings")
    parser.add_argument("file")
    args = parser.parse_args()
    own = json.loads(args.settings)
    torch.set_num_threads(own["threads"])
    try:
        found = measure_precision(SIZES[own["size"]], own["variant"], own["repetitions"], own["device"])
    except AccelError as error:
        found = {"reason": str(error)}
    Path(args.file).write_text(json.dumps(found))


if __name__ == "__main__":
    main()
