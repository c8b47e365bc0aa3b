"""What a device does with accel, as far as a time limit allows. It resumes: each result is written once it is known.

contract   every method on the device against the CPU: difference, refusals, waits of the host
overhead   what the harness and one step of each scheduler cost there
speed      realised against ideal speed-ups on the shapes of deployed networks, with random weights
stack      float32, TF32, channels_last and compiled blocks against plain bfloat16

Each part may take its share of the time; what one leaves the next ones get, and in the end the parts that are not done.
Run it again to go on. Tables are named for the device.
"""

from __future__ import annotations

import logging
import time
import warnings
from collections.abc import Callable, Sequence

import torch

from accel.benches import device_contract, device_overhead, device_speed, device_stack
from accel.benches.device_job import Job
from accel.benches.device_table import write_device
from accel.benches.options import parser
from accel.errors import ConfigError, unknown
from accel.records import Results

PARTS: dict[str, tuple[Callable[[Job], bool], float]] = {  # and until which share of the time
    "contract": (device_contract.run, 0.18),
    "overhead": (device_overhead.run, 0.25),
    "speed": (device_speed.run, 0.75),
    "stack": (device_stack.run, 1.0),
}


def measure(device: str, parts: Sequence[str], minutes: float, results: Results) -> dict[str, bool]:
    """Run `parts` for at most about `minutes`; for each, whether all of it is measured."""
    begin, total = time.monotonic(), minutes * 60
    last = max(PARTS[name][1] for name in parts)
    shares = {name: PARTS[name][1] / last for name in parts}
    done: dict[str, bool] = {}
    for until in (shares, dict.fromkeys(parts, 1.0)):
        for name in parts:
            left = Job(device, results, begin + total * until[name])
            if done.get(name) or left.left() <= 0:
                continue
            start = time.monotonic()
            done[name] = PARTS[name][0](left)
            print(f"{name}: {'done' if done[name] else 'not done'}, {time.monotonic() - start:.0f} s", flush=True)
            write_device(results)
    return {name: done.get(name, False) for name in parts}


def main(words: Sequence[str]) -> None:
    """`accel bench device`: records and tables/device_<device>*.{md,csv}."""
    options = parser(__doc__, "bench device")
    options.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    options.add_argument("--minutes", type=float, default=9.0, help="after which no measurement begins (default: 9)")
    options.add_argument("--only", default=",".join(PARTS), help="parts, separated by commas (default: all)")
    args = options.parse_args(words)
    parts = [part.strip() for part in args.only.split(",")]
    for part in parts:
        if part not in PARTS:
            raise unknown("part", part, PARTS)
    if torch.device(args.device).type == "cuda" and not torch.cuda.is_available():
        raise ConfigError(f"--device is {args.device}, but torch sees no CUDA device; use --device cpu.")
    for name in ("diffusers", "torch._inductor", "torch._dynamo"):
        logging.getLogger(name).setLevel(logging.ERROR if name == "diffusers" else logging.WARNING)
    warnings.filterwarnings("ignore", category=FutureWarning)
    warnings.filterwarnings("ignore", category=DeprecationWarning)
    results = Results(args.results)
    results.ready()
    done = measure(args.device, parts, args.minutes, results)
    for path in write_device(results):
        print(path)
    if not all(done.values()):
        print("not all is measured: run the same command again to go on")
