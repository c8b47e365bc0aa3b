"""LPIPS is torchmetrics' up to rounding, on a backbone of the same random weights, and needs no torchvision."""

from __future__ import annotations

import sys

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from accel.errors import ConfigError
from accel.metrics.lpips import AlexNet, Lpips
from accel.metrics.similarity import Similarity


def torchvision_features() -> nn.Sequential:
    """What torchvision.models.alexnet().features is, written out."""
    return nn.Sequential(
        nn.Conv2d(3, 64, 11, 4, 2), nn.ReLU(), nn.MaxPool2d(3, 2),
        nn.Conv2d(64, 192, 5, padding=2), nn.ReLU(), nn.MaxPool2d(3, 2),
        nn.Conv2d(192, 384, 3, padding=1), nn.ReLU(),
        nn.Conv2d(384, 256, 3, padding=1), nn.ReLU(),
        nn.Conv2d(256, 256, 3, padding=1), nn.ReLU(), nn.MaxPool2d(3, 2),
    )  # fmt: skip


@pytest.fixture(scope="module")
def backbone():
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return torchvision_features()


@pytest.fixture(scope="module")
def weights(backbone, tmp_path_factory):
    """A file as torchvision publishes it: a pickle, with a classifier beside the features."""
    path = tmp_path_factory.mktemp("alexnet") / "alexnet.pth"
    state = {f"features.{name}": value for name, value in backbone.state_dict().items()}
    torch.save(state | {"classifier.1.weight": torch.zeros(2, 2)}, path)
    return path


@pytest.fixture
def theirs(backbone, monkeypatch):
    """torchmetrics' LPIPS, its backbone given by hand in torchvision's place."""
    from torchmetrics.functional.image import lpips

    monkeypatch.setattr(lpips, "_get_tv_model_features", lambda net, pretrained=False: backbone)
    return lambda resize=None: lpips._LPIPS(pnet_rand=True, net="alex", resize=resize)


def pictures(*shape: int) -> list[torch.Tensor]:
    return [torch.rand(shape, generator=torch.Generator().manual_seed(seed)) for seed in (0, 1)]


@pytest.mark.parametrize(("size", "resize"), [((40, 64), None), ((31, 31), None), ((16, 16), 64)])
def test_it_is_torchmetrics(weights, theirs, size, resize):
    a, b = pictures(3, 3, *size)
    expected = theirs(resize)(a, b, normalize=True).flatten()
    assert expected.min() > 1e-4
    torch.testing.assert_close(Lpips(weights)(a, b), expected, rtol=1e-5, atol=1e-7)
    assert Lpips(weights)(a, a).tolist() == [0, 0, 0]
    assert "torchvision" not in sys.modules


def test_safetensors_and_pickle_give_the_same_and_grey_counts_thrice(weights, tmp_path):
    state = {k: v for k, v in torch.load(weights, weights_only=True).items() if k.startswith("features")}
    save_file(state, tmp_path / "alexnet.safetensors")
    one, other = (Similarity(("lpips",), str(path)) for path in (weights, tmp_path / "alexnet.safetensors"))
    grey = [(255 * x).byte() for x in pictures(2, 1, 32, 32)]
    found = one.paired(*grey)["lpips"]
    torch.testing.assert_close(other.paired(*grey)["lpips"], found, rtol=0, atol=0)
    torch.testing.assert_close(one.paired(*(x.expand(-1, 3, -1, -1) for x in grey))["lpips"], found, rtol=1e-6, atol=0)
    ours, theirs = one.identity()["lpips"], other.identity()["lpips"]
    assert ours["weights_sha256"] != theirs["weights_sha256"]
    assert str(weights.parent) not in str(ours)


@pytest.mark.parametrize(
    ("content", "said"),
    [(None, "there is no file"), (b"no weights", "cannot load"), ({"features.0.weight": torch.zeros(1)}, "no AlexNet")],
)
def test_weights_that_cannot_be_had_are_said_before_any_work(tmp_path, content, said):
    path = tmp_path / "alexnet.pth"
    if isinstance(content, bytes):
        path.write_bytes(content)
    elif content:
        torch.save(content, path)
    with pytest.raises(ConfigError, match=said):
        Similarity(("lpips",), str(path)).identity()


def test_the_five_layers_have_the_sizes_of_the_paper():
    sizes = [tuple(x.shape[1:]) for x in AlexNet()(torch.zeros(1, 3, 64, 64))]
    assert sizes == [(64, 15, 15), (192, 7, 7), (384, 3, 3), (256, 3, 3), (256, 3, 3)]
