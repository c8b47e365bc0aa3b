"""Train the shipped weights of an embedded suite again: `accel train --suite digits [--part small]`.

Interrupted runs resume from the last checkpoint below outputs/train/; a finished part writes its fp16 weights into the
suite's assets. Uses a GPU when there is one.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from importlib import import_module
from pathlib import Path

from accel.benches.options import Parser
from accel.errors import ConfigError, unknown

TRAINERS = {
    "digits": "accel.suites.digits.train",
    "digits_dit": "accel.suites.digits.dit_train",
    "digits_flow": "accel.suites.digits.flow_train",
    "digits_levels": "accel.suites.digits.levels_train",
    "shapes": "accel.suites.shapes.train",
}


def main(words: Sequence[str]) -> int:
    """`accel train`; an interrupted one resumes from its last checkpoint."""
    options = Parser(__doc__, "train")
    options.add_argument("--suite", default="digits")
    options.add_argument("--part", default=None, help="only this network (default: all, in order)")
    options.add_argument("--work", default="outputs/train", help="folder of the checkpoints")
    options.add_argument("--assets", default=None, help="where to write the weights (default: the suite's own)")
    options.add_argument("--device", default=None, help="default: cuda if there is one, else cpu")
    train(options.parse_args(words))
    return 0


def train(args: argparse.Namespace) -> None:
    import torch
    from rich.progress import (
        BarColumn,
        MofNCompleteColumn,
        Progress,
        TextColumn,
        TimeElapsedColumn,
        TimeRemainingColumn,
    )

    from accel.suites.base import ASSETS

    if args.suite not in TRAINERS:
        raise unknown("suite to train", args.suite, TRAINERS)
    trainer = import_module(TRAINERS[args.suite])
    if args.part and args.part not in trainer.PARTS:
        raise unknown(f"part of suite {args.suite}", args.part, trainer.PARTS)
    device = args.device or ("cuda" if torch.cuda.is_available() else "cpu")
    try:
        torch.empty(0, device=device)
    except Exception as error:  # whatever torch says of a device that is not there
        raise ConfigError(f"--device is {device!r}, which torch cannot use here; allowed: cpu, or a GPU.") from error
    assets = Path(args.assets) if args.assets else ASSETS / args.suite
    name, loss = TextColumn("{task.description:<12}"), TextColumn("loss {task.fields[loss]:.4f}")
    columns = (name, BarColumn(), MofNCompleteColumn(), loss, TimeElapsedColumn(), TimeRemainingColumn())
    with Progress(*columns) as progress:
        for part in [args.part] if args.part else trainer.PARTS:
            bar = progress.add_task(part, total=trainer.PARTS[part].steps, loss=float("nan"))
            smooth = None

            def on_step(step: int, loss: float, bar=bar) -> None:
                nonlocal smooth
                smooth = loss if smooth is None else 0.99 * smooth + 0.01 * loss
                progress.update(bar, completed=step, loss=smooth)

            trainer.train_part(part, Path(args.work) / args.suite, assets, device, on_step)
    print(f"weights written to {assets}")
