"""Resize, crop and normalisation against transformers' own PIL image processor and against Pillow."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import transformers
from PIL import Image

from accel.errors import ConfigError
from accel.metrics.images import Preprocessing

PROCESSOR = getattr(transformers, "CLIPImageProcessorPil", transformers.CLIPImageProcessor)
HALF = ((0.5,) * 3, (0.5,) * 3)


def processor(**changes):
    return PROCESSOR(**{"size": {"shortest_edge": 32}, "crop_size": {"height": 32, "width": 32}} | changes)


@pytest.mark.parametrize("shape", [(32, 32), (64, 64), (100, 67), (67, 100), (20, 20), (33, 95)])
@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"crop_size": {"height": 21, "width": 26}},
        {"size": 30, "crop_size": 24},  # as older checkpoints write it
        {"size": {"height": 40, "width": 36}},
        {"size": {"height": 24, "width": 48}, "do_center_crop": False},
        {"resample": Image.Resampling.BILINEAR, "image_mean": [0.1, 0.2, 0.3], "image_std": [0.9, 0.8, 0.7]},
    ],
)
def test_it_is_the_image_processors_preprocessing(images, shape, changes):
    theirs = processor(**changes)
    batch = images(3, *shape)
    expected = theirs(images=list(batch), return_tensors="pt")["pixel_values"]
    found = Preprocessing.of_processor(theirs)(batch)
    assert found.dtype == torch.float32
    assert found.shape == expected.shape
    assert float((found - expected).abs().max()) < 2e-6  # one count of 255 would be 0.008 or more


def test_a_square_resize_is_pillows_bicubic(images):
    batch = images(1, 100, 60)
    expected = np.array(Image.fromarray(batch[0].permute(1, 2, 0).numpy()).resize((24, 24), Image.BICUBIC))
    found = Preprocessing((24, 24), None, (0.0,) * 3, (1.0,) * 3)(batch)[0] * 255
    assert torch.equal(found.round().byte().permute(1, 2, 0), torch.from_numpy(expected))


def test_channels_have_their_own_mean_and_deviation():
    white = torch.full((1, 3, 4, 4), 255, dtype=torch.uint8)
    found = Preprocessing(4, None, (0.0, 0.5, 1.0), (1.0, 0.25, 0.5))(white)
    assert found[0, :, 0, 0].tolist() == [1.0, 2.0, 0.0]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"do_resize": False}, "do_resize=False; allowed: true"),
        ({"do_normalize": False}, "do_normalize=False"),
        ({"rescale_factor": 1 / 127.5}, "rescale_factor=0.0078"),
    ],
)
def test_a_processor_that_does_something_else_is_refused(changes, message):
    with pytest.raises(ConfigError, match=message):
        Preprocessing.of_processor(processor(**changes))


def test_a_crop_beyond_the_image_is_refused(images):
    with pytest.raises(ConfigError, match=r"crop to \(40, 40\) of an image resized to \(32, 32\)"):
        Preprocessing(32, (40, 40), *HALF)(images(1))
