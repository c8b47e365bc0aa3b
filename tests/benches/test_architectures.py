"""MACs of known architectures: two ways to count agree, and so do published numbers."""

from __future__ import annotations

import pytest

from accel.benches.architectures import ARCHITECTURES, Architecture, cached_costs

TINY = [
    Architecture(
        "two layers", "UNet2DModel",
        {"sample_size": 16, "block_out_channels": (8, 16, 16), "layers_per_block": 2, "norm_num_groups": 4,
         "attention_head_dim": 4, "down_block_types": ("DownBlock2D", "AttnDownBlock2D", "DownBlock2D"),
         "up_block_types": ("UpBlock2D", "AttnUpBlock2D", "UpBlock2D")},
        (3, 16, 16), dict,
    ),
    Architecture(
        "one layer", "UNet2DModel",
        {"sample_size": 16, "block_out_channels": (8, 16), "layers_per_block": 1, "norm_num_groups": 4,
         "down_block_types": ("DownBlock2D",) * 2, "up_block_types": ("UpBlock2D",) * 2},
        (3, 16, 16), dict,
    ),
    ARCHITECTURES["DDPM CIFAR-10"],
]  # fmt: skip


@pytest.mark.parametrize("architecture", TINY, ids=lambda a: a.name)
def test_measured_is_the_sum_of_the_live_parts(architecture):
    rows = list(cached_costs(architecture))
    assert rows[-1]["method"] == "encoder propagation"
    for row in rows:
        assert row["measured"] == row["parts"], (row["method"], row["live"])
        assert row["measured"].dense <= row["measured"].total < row["full"].total
    shallow = [row["measured"].total for row in rows[:-1]]
    assert shallow == sorted(shallow)


def test_deepcache_on_cifar_costs_what_its_paper_prints():
    """Table 12 (uniform 1:5 of 100 steps, branches 1 to 4), convolutions and linear layers only, in G."""
    for row, printed in zip(cached_costs(ARCHITECTURES["DDPM CIFAR-10"]), (1.6, 2.24, 3.01, 3.89), strict=False):
        average = (row["full"].dense + 4 * row["measured"].dense) / 5e9
        assert average == pytest.approx(printed, abs=0.015)
