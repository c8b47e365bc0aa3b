"""Inception Score against its definition, the Inception network against torch-fidelity's, and how weights are found."""

from __future__ import annotations

import math
import sys
import warnings

import pytest
import torch
from torch import nn

from accel.errors import ConfigError
from accel.metrics.inception import URL, inception_score
from accel.metrics.inception_network import InceptionV3, resize_like_tensorflow
from accel.metrics.networks import feature_network
from accel.metrics.statistics import groups


def logits(n: int = 130, classes: int = 7, scale: float = 2.0, seed: int = 0) -> torch.Tensor:
    return scale * torch.randn(n, classes, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def by_definition(x: torch.Tensor) -> float:
    p = x.softmax(1)
    return math.exp(sum(float((row * (row / p.mean(0)).log()).sum()) for row in p) / len(p))


# --- Inception Score ------------------------------------------------------------------------------------------------


def test_the_score_and_its_replicates_are_the_definition():
    x = logits()
    group = torch.from_numpy(groups(130, 20))
    estimate = inception_score(x)
    assert estimate.value == pytest.approx(by_definition(x), rel=1e-12)
    assert estimate.replicates == pytest.approx([by_definition(x[group != g]) for g in range(20)], rel=1e-12)
    assert estimate.lo < estimate.value < estimate.hi


def test_torchmetrics_gives_the_same_score_of_one_split():
    from torchmetrics.image.inception import InceptionScore

    x = logits()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        metric = InceptionScore(feature=nn.Identity(), splits=1)
        metric.update(x)
        mean, _ = metric.compute()
    assert inception_score(x).value == pytest.approx(float(mean), rel=1e-6)


def test_known_scores():
    """K classes, each sample certain: K. All samples alike: 1. Certainty beyond float's range is certainty."""
    certain = 1e4 * torch.eye(5).repeat(20, 1)
    assert inception_score(certain).value == pytest.approx(5, rel=1e-9)
    assert inception_score(torch.zeros(40, 5)).value == pytest.approx(1, abs=1e-12)
    assert inception_score(logits(1).expand(40, -1)).value == pytest.approx(1, abs=1e-12)


@pytest.mark.parametrize("bad", [torch.zeros(40), torch.full((40, 3), torch.nan), torch.full((40, 3), torch.inf)])
def test_unusable_logits_are_refused(bad):
    with pytest.raises(ConfigError, match="samples, classes"):
        inception_score(bad)


# --- the network ----------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def random_network():
    """InceptionV3 with weights that anyone can make again."""
    network, generator = InceptionV3().eval().requires_grad_(False), torch.Generator().manual_seed(0)
    for name, value in sorted(network.state_dict().items()):
        if value.ndim > 1:
            fan_in = value[0].numel()
            value.copy_(torch.randn(value.shape, generator=generator) * (2 / fan_in) ** 0.5)
        elif name.endswith(("running_var", "bn.weight")):
            value.copy_(0.5 + torch.rand(value.shape, generator=generator))
        elif value.is_floating_point():
            value.copy_(0.1 * torch.randn(value.shape, generator=generator))
    return network


def pictures(height: int, width: int) -> torch.Tensor:
    """Two of them, uint8."""
    y, x = torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij")
    waves = [(torch.stack([y * (c + 1) + x * (i + 2), y * x, y - 3 * x])) % 256 for c, i in ((0, 0), (2, 5))]
    return torch.stack(waves).to(torch.uint8)


# Features 0, 400, ... 2000 of `pictures` by torch-fidelity 0.4.0's FeatureExtractorInceptionV3 with these weights.
THEIRS = {
    (40, 24): [1.3052, 3.4882, 1.3182, 8.4593, 0.19305, 5.8579, 1.0912, 2.8058, 1.1003, 6.9396, 0.134, 4.8202],
    (299, 299): [2.557, 5.007, 2.0292, 11.297, 0.21274, 8.1697, 3.0169, 5.2304, 2.2657, 11.574, 0.22757, 8.703],
}


@pytest.mark.parametrize("size", THEIRS)
def test_features_are_those_of_torch_fidelity(random_network, size):
    found = random_network(pictures(*size))
    assert found.shape == (2, 2048)
    assert found[:, ::400].flatten().tolist() == pytest.approx(THEIRS[size], rel=1e-3, abs=1e-4)


def test_the_resize_is_that_of_tensorflow_1():
    """Output i lies at i H / size, and beyond the last input row at that row; a ramp shows where."""
    ramp = torch.arange(4.0)[:, None] + 10 * torch.arange(6.0)
    found = resize_like_tensorflow(ramp.expand(1, 1, 4, 6), 8)
    rows = torch.tensor([0, 0.5, 1, 1.5, 2, 2.5, 3, 3])
    columns = torch.tensor([0, 0.75, 1.5, 2.25, 3, 3.75, 4.5, 5])
    assert found[0, 0].numpy() == pytest.approx((rows[:, None] + 10 * columns).numpy())


def test_antialiasing_is_another_resize(random_network):
    images = pictures(400, 400)
    plain = random_network(images)
    random_network.antialias = True
    try:
        assert (random_network(images) - plain).abs().max() > 1e-3
    finally:
        random_network.antialias = False


# --- its weights ----------------------------------------------------------------------------------------------------


class Network(nn.Module):
    """Stands in for InceptionV3: the mean colour for a feature."""

    def __init__(self, antialias):
        super().__init__()
        self.antialias = antialias
        self.fc = nn.Linear(3, 5)

    def forward(self, images):
        return images.float().mean((2, 3))


@pytest.fixture
def package(monkeypatch, tmp_path):
    """A small network, torch.hub's cache, and the downloads that were tried; neither torch-fidelity nor torchvision."""
    for name in ("torch_fidelity", "torchvision"):
        monkeypatch.setitem(sys.modules, name, None)
    monkeypatch.setattr("accel.metrics.inception.InceptionV3", Network)
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))
    tried = []

    def download(url, path, prefix, progress):
        tried.append((url, path, prefix))
        raise OSError("no route")

    monkeypatch.setattr(torch.hub, "download_url_to_file", download)
    return tried


def test_the_weights_are_looked_for_in_torch_hubs_cache_and_then_at_the_url(package, tmp_path, images):
    network = feature_network("inception", device="cpu")
    file = tmp_path / "checkpoints" / "weights-inception-2015-12-05-6726825d.pth"
    reason = network.unavailable()
    assert f"{file} is not there and cannot be downloaded (no route)" in reason
    assert package == [(URL, str(file), "6726825d")]
    torch.save(Network(False).state_dict(), file)
    assert network.unavailable() is None
    assert len(package) == 1
    assert network.network.antialias is False
    assert network(images(2)).numpy() == pytest.approx(images(2).float().mean((2, 3)).numpy())


def test_logits_have_no_bias(package, tmp_path):
    torch.save(Network(False).state_dict(), tmp_path / "w.pth")
    network = feature_network("inception", tmp_path / "w.pth", device="cpu")
    assert network.logits(torch.zeros(2, 3).half()).abs().max() == 0
    weight = network.network.fc.weight
    features = torch.randn(40, 3)
    assert network.scores(features) == {"inception_score": inception_score(network.logits(features))}
    assert network.logits(torch.eye(3)).numpy() == pytest.approx(weight.T.detach().double().numpy())


def test_antialias_is_another_network(package, tmp_path):
    torch.save(Network(False).state_dict(), tmp_path / "w.pth")
    plain, smooth = (feature_network("inception", tmp_path / "w.pth", device="cpu", antialias=a) for a in (False, True))
    assert smooth.network.antialias is True
    assert plain.identity() == smooth.identity() | {"antialias": False}


class Harmful:
    def __reduce__(self):
        return (print, ("a pickle ran",))


def test_a_pickle_that_would_run_code_is_refused(package, tmp_path, capsys):
    torch.save({"x": Harmful()}, tmp_path / "w.pth")
    reason = feature_network("inception", tmp_path / "w.pth").unavailable()
    assert "cannot load" in reason
    assert "a pickle ran" not in capsys.readouterr().out


def test_a_missing_file_is_named_with_where_to_get_it(package, tmp_path):
    reason = feature_network("inception", tmp_path / "none.pth").unavailable()
    assert f"there is no file {tmp_path / 'none.pth'}. Needed: the file of {URL}" in reason
    assert not package


def test_weights_of_another_network_are_refused(package, tmp_path):
    torch.save(Network(False).state_dict() | {"another": torch.zeros(1)}, tmp_path / "w.pth")
    reason = feature_network("inception", tmp_path / "w.pth").unavailable()
    assert "cannot load" in reason
    assert "another" in reason
