"""Work on a converted OpenVINO model: its sinusoids cut off, its layers quantised, its compilation."""

from __future__ import annotations

import logging
import sys
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from functools import cache
from typing import Any

import numpy as np
import torch

WAVES = ("Sin", "Cos")
REPORTING = "openvino_telemetry"


@contextmanager
def without_reports() -> Iterator[None]:
    """Import OpenVINO and NNCF within this context: their tools, first imported there, do not report their use to their
    makers over the network, which they do by default."""
    absent = REPORTING not in sys.modules
    if absent:
        sys.modules[REPORTING] = None  # importing it fails, and they take a stand-in that does nothing
    try:
        yield
    finally:
        if absent:
            del sys.modules[REPORTING]


@cache
def abilities() -> tuple[str, ...]:
    """Number formats that OpenVINO's CPU runtime computes in here, e.g. FP32, INT8, BF16."""
    with without_reports():
        import openvino

    return tuple(openvino.Core().get_property("CPU", "OPTIMIZATION_CAPABILITIES"))


def compiled_request(model: Any, hint: str) -> Any:
    """A request to run `model` on the CPU with products in `hint` (f32 or bf16), on torch's number of threads."""
    import openvino

    options = {
        "INFERENCE_PRECISION_HINT": hint,
        "INFERENCE_NUM_THREADS": torch.get_num_threads(),
        "PERFORMANCE_HINT": "LATENCY",
    }
    return openvino.Core().compile_model(model, "CPU", options).create_infer_request()


class Waves:
    """What lies before the sines and cosines of `model`, cut off it and compiled in float32.

    `model` is changed: it gets their values as further inputs, after its own.
    """

    def __init__(self, model: Any) -> None:
        import openvino

        found = [op for op in model.get_ordered_ops() if op.get_type_name() in WAVES]
        self.request = None
        if not found:
            return
        early = openvino.Model([op.output(0) for op in found], model.get_parameters(), "waves").clone()
        self.request = compiled_request(early, "f32")
        for op in found:
            given = openvino.opset13.parameter(op.get_output_partial_shape(0), op.get_output_element_type(0))
            for reader in op.output(0).get_target_inputs():
                reader.replace_source_output(given.output(0))
            model.add_parameters([given])
        model.validate_nodes_and_infer_types()

    def inputs(self, values: Sequence[np.ndarray]) -> list[np.ndarray]:
        """All inputs of the changed model for those of the original."""
        if self.request is None:
            return list(values)
        found = self.request.infer(list(values), share_inputs=True)
        return [*values, *(found[i] for i in range(len(found)))]


def quantised(model: Any, inputs: Sequence[Sequence[np.ndarray]], kept: Iterable[str]) -> Any:
    """`model` with int8 convolutions and matrix products, calibrated on `inputs`, by NNCF.

    kept: names of torch's modules, as they were exported, that stay as they are.
    """
    with without_reports():
        import nncf
        from nncf.common.logging import track_progress

    # An exported weight is named after its module.
    weights = {name.replace(".", "_") + "_weight:0" for name in kept}
    left = [op.get_friendly_name() for op in model.get_ordered_ops() if weights & _weight_names(op)]
    logger = logging.getLogger("nncf")
    level, bars = logger.level, track_progress.Progress
    try:  # its bars would break those of a study
        logger.setLevel(logging.ERROR)
        track_progress.Progress = lambda *args, **options: bars(*args, **options | {"disable": True})
        return nncf.quantize(
            model,
            nncf.Dataset(list(inputs)),
            model_type=nncf.ModelType.TRANSFORMER,
            subset_size=len(inputs),
            ignored_scope=nncf.IgnoredScope(names=left) if left else None,
        )
    finally:
        logger.setLevel(level)
        track_progress.Progress = bars


def _weight_names(op: Any) -> set[str]:
    if op.get_type_name() not in ("Convolution", "MatMul"):
        return set()
    return set(op.input(1).get_source_output().get_names())


def array(tensor: torch.Tensor) -> np.ndarray:
    """The tensor's numbers, in its own memory where it is contiguous."""
    return tensor.detach().contiguous().numpy()
