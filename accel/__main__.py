"""`accel`, `python -m accel`: a subcommand (help, list ...); one run; a study (experiment=...); or a multirun (-m).

Only what every Python has loaded is imported here: an interrupt while the rest is being imported ends like any other.
"""

from __future__ import annotations

import os
import signal
import sys
from types import FrameType

STOPPED = "finished shards are kept; run the same command again to resume."


class Terminated(KeyboardInterrupt):
    """The process was asked to end (SIGTERM), which it does as after an interrupt."""


def main() -> None:
    """Entry point. Exit codes: 0 done, 1 some cells failed, 2 the request is wrong, 130 interrupted, 143 terminated."""
    _threads_wait_a_little()
    before = _terminates_as_an_interrupt()
    try:
        from accel.cli.application import answer

        code = answer(sys.argv[1:])
    except KeyboardInterrupt as stop:
        terminated = isinstance(stop, Terminated)
        print(f"\n{'terminated' if terminated else 'interrupted'}: {STOPPED}", file=sys.stderr)
        code = 143 if terminated else 130
    except BrokenPipeError:  # `accel list | head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        code = 0
    except Exception as error:  # what a user can mend is one message, never a traceback
        if os.environ.get("ACCEL_TRACEBACK"):
            raise
        from accel.errors import told

        print(f"error: {told(error)}", file=sys.stderr)
        code = 2
    finally:
        if before is not None:
            signal.signal(signal.SIGTERM, before)
    sys.exit(code)


def _threads_wait_a_little() -> None:
    """Before torch loads: let threads of OpenMP that wait spin for about a millisecond, and sleep then, unless the
    environment says how they wait. By their own choice they spin on, and slow each other down thirty times on busy
    cores; those that sleep at once take twice the time on quiet ones."""
    if not os.environ.keys() & {"OMP_WAIT_POLICY", "GOMP_SPINCOUNT", "KMP_BLOCKTIME"}:
        os.environ |= {"GOMP_SPINCOUNT": "10000", "KMP_BLOCKTIME": "1"}  # GNU's OpenMP (turns); LLVM's, Intel's (ms)


def _terminates_as_an_interrupt():
    """Make SIGTERM raise Terminated; what handled it before, or None where that cannot be changed."""

    def stop(number: int, frame: FrameType | None) -> None:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)  # a second one ends it at once
        raise Terminated

    try:
        return signal.signal(signal.SIGTERM, stop)
    except ValueError:  # not the main thread
        return None


if __name__ == "__main__":
    main()
