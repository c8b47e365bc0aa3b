"""Inception Score against its definition, and how the Inception network is found; the network itself where it is."""

from __future__ import annotations

import importlib.util
import math
import sys
import warnings

import pytest
import torch
from torch import nn

from accel.errors import ConfigError
from accel.metrics import feature_network
from accel.metrics.inception import inception_score
from accel.metrics.statistics import groups

INSTALLED = importlib.util.find_spec("torch_fidelity") is not None


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


class Network(nn.Module):
    """Stands in for torchmetrics' NoTrainInceptionV3: same arguments, the mean colour for a feature."""

    def __init__(self, name, features_list, path, antialias):
        super().__init__()
        self.arguments = name, features_list, path, antialias
        self.fc = nn.Linear(3, 5)

    def forward(self, images):
        return images.float().mean((2, 3))


@pytest.fixture
def package(monkeypatch, tmp_path):
    """torch-fidelity as if it were installed, torch.hub's cache, and the downloads that were tried."""
    from types import ModuleType

    import torchmetrics.image.fid

    name = "torch_fidelity.feature_extractor_inceptionv3"
    module = ModuleType(name)
    module.URL_INCEPTION_V3 = "https://somewhere/weights-inception-2015-12-05-6726825d.pth"
    monkeypatch.setitem(sys.modules, "torch_fidelity", ModuleType("torch_fidelity"))
    monkeypatch.setitem(sys.modules, name, module)
    monkeypatch.setattr(torchmetrics.image.fid, "NoTrainInceptionV3", Network)
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))
    tried = []

    def download(url, path, prefix, progress):
        tried.append((url, path, prefix))
        raise OSError("no route")

    monkeypatch.setattr(torch.hub, "download_url_to_file", download)
    return tried


@pytest.mark.skipif(INSTALLED, reason="torch-fidelity is installed")
def test_without_torch_fidelity_the_remedy_is_named():
    reason = feature_network("inception").unavailable()
    assert "Inception FID needs torch_fidelity" in reason
    assert "pip install 'torch-fidelity'" in reason


def test_the_weights_are_looked_for_in_torch_hubs_cache_and_then_at_the_url(package, tmp_path, images):
    network = feature_network("inception", device="cpu")
    file = tmp_path / "checkpoints" / "weights-inception-2015-12-05-6726825d.pth"
    reason = network.unavailable()
    assert f"{file} is not there and cannot be downloaded (no route)" in reason
    assert package == [("https://somewhere/" + file.name, str(file), "6726825d")]
    torch.save({"x": torch.zeros(1)}, file)
    assert network.unavailable() is None
    assert len(package) == 1
    assert network.network.arguments == ("inception-v3-compat", ["2048"], str(file), False)
    assert network(images(2)).numpy() == pytest.approx(images(2).float().mean((2, 3)).numpy())


def test_logits_have_no_bias(package, tmp_path):
    (tmp_path / "checkpoints").mkdir()
    torch.save({}, tmp_path / "w.pth")
    network = feature_network("inception", tmp_path / "w.pth", device="cpu")
    assert network.logits(torch.zeros(2, 3).half()).abs().max() == 0
    weight = network.network.fc.weight
    features = torch.randn(40, 3)
    assert network.scores(features) == {"inception_score": inception_score(network.logits(features))}
    assert network.logits(torch.eye(3)).numpy() == pytest.approx(weight.T.detach().double().numpy())


def test_antialias_is_another_network(package, tmp_path):
    torch.save({}, tmp_path / "w.pth")
    plain, smooth = (feature_network("inception", tmp_path / "w.pth", device="cpu", antialias=a) for a in (False, True))
    assert smooth.network.arguments[-1] is True
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
    assert f"there is no file {tmp_path / 'none.pth'}. Needed: the file of https://somewhere/" in reason
    assert not package


@pytest.mark.skipif(not INSTALLED, reason="needs torch-fidelity")
def test_the_real_network_where_it_is_installed(images):
    """Features and logits of torch-fidelity's own forward, which resizes as TensorFlow 1 did."""
    from torch_fidelity.feature_extractor_inceptionv3 import FeatureExtractorInceptionV3

    network = feature_network("inception", device="cpu")
    if reason := network.unavailable():
        pytest.skip(reason)
    theirs = FeatureExtractorInceptionV3("inception-v3-compat", ["2048", "logits_unbiased"])
    with torch.inference_mode():
        features, unbiased = theirs(images(2, 64, 64))
    found = network(images(2, 64, 64))
    assert found.numpy() == pytest.approx(features.numpy(), abs=1e-4)
    assert network.logits(found).numpy() == pytest.approx(unbiased.numpy(), abs=1e-3)
