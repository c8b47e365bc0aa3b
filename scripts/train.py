"""Train the shipped weights of an embedded suite again: `python scripts/train.py --suite digits [--part small]`.

Interrupted runs resume from the last checkpoint below outputs/train/; a finished part writes its fp16 weights into the
suite's assets. Uses a GPU when there is one.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from accel.errors import AccelError, unknown


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--suite", default="digits")
    parser.add_argument("--part", default=None, help="only this network (default: all, in order)")
    parser.add_argument("--work", default="outputs/train", help="folder of the checkpoints")
    parser.add_argument("--assets", default=None, help="where to write the weights (default: the suite's own)")
    parser.add_argument("--device", default=None, help="default: cuda if there is one, else cpu")
    args = parser.parse_args()
    try:
        train(args)
    except AccelError as error:
        sys.exit(f"error: {error}")
    except KeyboardInterrupt:
        sys.exit("\ninterrupted: run the same command again to resume from the last checkpoint.")


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
    from accel.suites.digits import dit_train as digits_dit_train
    from accel.suites.digits import flow_train as digits_flow_train
    from accel.suites.digits import levels_train as digits_levels_train
    from accel.suites.digits import train as digits_train
    from accel.suites.shapes import train as shapes_train

    trainers = {
        "digits": digits_train,
        "digits_dit": digits_dit_train,
        "digits_flow": digits_flow_train,
        "digits_levels": digits_levels_train,
        "shapes": shapes_train,
    }
    if args.suite not in trainers:
        raise unknown("suite to train", args.suite, trainers)
    trainer = trainers[args.suite]
    if args.part and args.part not in trainer.PARTS:
        raise unknown(f"part of suite {args.suite}", args.part, trainer.PARTS)
    device = args.device or ("cuda" if torch.cuda.is_available() else "cpu")
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


if __name__ == "__main__":
    main()
