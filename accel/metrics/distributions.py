"""All distribution metrics of precomputed features at once: FID, KID, CMMD, precision and recall, with intervals.

The reference set is taken as fixed: intervals are over the generated samples, at the given reference, which all rows of
a table share. They are a delete-group jackknife's, and of recall those of balanced half-samples. All arithmetic is
float64 on the CPU.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from accel.errors import check_int
from accel.metrics.cmmd import cmmd_estimate
from accel.metrics.features import Reference, as_reference, checked
from accel.metrics.fid import Moments, frechet_to
from accel.metrics.kid import kid_estimate
from accel.metrics.mmd import Strata
from accel.metrics.precision_recall import NEIGHBOURS, precision_recall_estimate
from accel.metrics.statistics import Estimate, jackknife


def quality(
    features: Tensor | np.ndarray,
    reference: Tensor | np.ndarray | Reference | Moments,
    suffix: str,
    count: int = 20,
    period: int = 1,
    strata: Strata | None = None,
) -> dict[str, Estimate]:
    """All distribution metrics of features (N, D) against a reference (M, D), each with its interval.

    Of `Moments` there is `fid_<suffix>` only.

    Keys: `fid_<suffix>`, `kid_<suffix>`, `precision`, `recall`; the suffix names the feature network, so that a metric
    of a suite's own network is never taken for Inception FID. In the space `clip` also `cmmd`. Sample i must come from
    seed i for `paired` to apply.
    `period`: after so many samples their conditions repeat; groups are of whole periods. `strata`: the class of each
    sample, shape (N,), where the reference has strata and the samples were drawn class by class; KID needs it.
    Raises ConfigError for non-finite features, another dimension than the reference's, fewer than 4 references, or too
    few samples: 2 in each group, 4 outside any group, and 4 groups.
    """
    reference = reference if isinstance(reference, Moments) else as_reference(reference)
    check_int("count", count, 2)
    distance = frechet_to(reference)
    x = checked("the features", features, 2 * count, distance.dimension)
    frechet = jackknife(lambda kept: distance(x[torch.from_numpy(kept)]), len(x), count, period)
    if isinstance(reference, Moments):
        return {f"fid_{suffix}": frechet}
    precision, recall = precision_recall_estimate(x, reference, NEIGHBOURS, count, period)
    values = {
        f"fid_{suffix}": frechet,
        f"kid_{suffix}": kid_estimate(x, reference, count, period, strata),
        "precision": precision,
        "recall": recall,
    }
    return values | {"cmmd": cmmd_estimate(x, reference, count, period)} if suffix == "clip" else values
