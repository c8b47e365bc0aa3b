"""Where the time of a pipeline's call goes: text encoders, denoiser, scheduler, autoencoder, and the rest.

What a method does to the denoiser leaves the other stages as they are, which bounds every speed-up (accel.core.amdahl).
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import nn

from accel.core.amdahl import DENOISER, REST, STAGES
from accel.core.denoiser import denoiser_name, replaced
from accel.core.pipelines import further_denoisers

_METHODS = {"scheduler": {"step": "scheduler"}, "vae": {"encode": "encoder", "decode": "decoder"}}
_METHODS |= dict.fromkeys(("movq", "vqvae", "vqgan"), _METHODS["vae"])


class _Spans:
    """Begin and end of each span of work on a device, named; one inside another is a part of that."""

    def __init__(self, device: torch.device) -> None:
        self._cuda = device.type == "cuda"
        self._device, self._depth = device, 0
        self._marks: list[tuple[str, Any, Any]] = []
        self._begun: Any = None

    def now(self) -> Any:
        if not self._cuda:
            return time.perf_counter()
        with torch.cuda.device(self._device):
            event = torch.cuda.Event(enable_timing=True)
            event.record()
            return event

    def enter(self) -> None:
        self._depth += 1
        if self._depth == 1:
            self._begun = self.now()

    def leave(self, stage: str) -> None:
        self._depth -= 1
        if self._depth == 0:
            self._marks.append((stage, self._begun, self.now()))

    def seconds(self) -> dict[str, float]:
        """Of each stage that there was; waits for the device."""
        found: dict[str, float] = {}
        if self._cuda:
            torch.cuda.synchronize(self._device)
        for stage, begin, end in self._marks:
            found[stage] = found.get(stage, 0.0) + self.between(begin, end)
        return found

    def between(self, begin: Any, end: Any) -> float:
        """Seconds from one `now` to another, both of them over."""
        return begin.elapsed_time(end) / 1000 if self._cuda else end - begin


def stage_seconds(pipe: Any, run: Callable[[], Any]) -> dict[str, float]:
    """Seconds of each stage of `run`, which calls the pipeline, in the order of STAGES; REST is what is left of the
    whole. Empty on accelerators other than CUDA, where each stage would have to be waited for.

    CPU: a wall clock. CUDA: events on the device's current stream, read when the call has ended.
    """
    device = torch.device(pipe.device)
    if device.type not in ("cpu", "cuda"):
        return {}
    with _watched(pipe, spans := _Spans(device)):
        begin = spans.now()
        run()
        end = spans.now()
    found = spans.seconds()
    found[REST] = max(0.0, spans.between(begin, end) - sum(found.values()))
    return {stage: found[stage] for stage in STAGES if stage in found}


@contextmanager
def _watched(pipe: Any, spans: _Spans) -> Iterator[None]:
    with ExitStack() as stack:
        for name, stage in _networks(pipe).items():
            net = getattr(pipe, name)
            before = net.register_forward_pre_hook(lambda *_: spans.enter())
            after = net.register_forward_hook(lambda *_, s=stage: spans.leave(s), always_call=True)
            stack.callback(before.remove)
            stack.callback(after.remove)
        for name, methods in _METHODS.items():
            owner = getattr(pipe, name, None)
            for method, stage in methods.items() if owner is not None else ():
                if hasattr(owner, method):
                    stack.enter_context(replaced(owner, method, _timed(getattr(owner, method), stage, spans)))
        yield


def _networks(pipe: Any) -> dict[str, str]:
    denoiser = denoiser_name(pipe)
    found = dict.fromkeys((denoiser, *further_denoisers(pipe, getattr(pipe, denoiser))), DENOISER)
    encoders = [name for name in pipe.components if name.startswith(("text_encoder", "image_encoder"))]
    return found | {name: "text encoder" for name in encoders if isinstance(getattr(pipe, name), nn.Module)}


def _timed(inner: Callable[..., Any], stage: str, spans: _Spans) -> Callable[..., Any]:
    def timed(*args: Any, **kwargs: Any) -> Any:
        spans.enter()
        try:
            return inner(*args, **kwargs)
        finally:
            spans.leave(stage)

    return timed
