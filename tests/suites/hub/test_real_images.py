"""References from folders and files of real images, and the metrics of a hub experiment against them."""

from __future__ import annotations

import struct
import zlib

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file

from accel.cli import reference
from accel.core.recipe import Recipe
from accel.errors import ConfigError
from accel.metrics.distributions import quality
from accel.metrics.fid import Moments, fid
from accel.metrics.statistics import mean_estimate
from accel.records import Results
from accel.samplers import DiffusersSampler
from accel.studies.evaluation import Evaluation
from accel.studies.runner import Runner
from accel.suites.hub import image_folder, real_images
from accel.suites.hub import scored as hub
from accel.suites.hub.real_images import RealImages


class Colours:
    """A feature network of the tests: means and spreads of the colours, (B, 6)."""

    name, num_features = "colours", 6

    def __init__(self, version: str = "1", missing: str | None = None) -> None:
        self.version, self.missing, self.calls = version, missing, 0

    def identity(self):
        return {"network": "colours", "weights_sha256": self.version}

    def unavailable(self):
        return self.missing

    def scores(self, features, period=1):
        return {"inception_score": mean_estimate(features[:, 0].numpy(), period=period)} if self.version == "1" else {}

    def __call__(self, images):
        assert images.dtype == torch.uint8
        self.calls += 1
        flat = images.float().flatten(2)
        return torch.cat([flat.mean(2), flat.std(2)], 1) / 255


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Sixty-two noise images of 12 x 20 pixels in two subfolders, and a text file."""
    root = tmp_path_factory.mktemp("real")
    rng = np.random.default_rng(0)
    for i in range(62):
        (root / f"c{i % 2}").mkdir(exist_ok=True)
        pixels = rng.integers(0, 256, (12, 20, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(root / f"c{i % 2}" / f"{i:03d}.{'png' if i else 'PNG'}")
    (root / "readme.txt").write_text("no image")
    return root


# --- folders


def test_images_are_cropped_about_the_centre_and_resized_with_antialiasing(tmp_path):
    pixels = np.zeros((8, 24, 3), dtype=np.uint8)
    pixels[:, 8:16] = np.indices((8, 8)).sum(0)[..., None] % 2 * 255  # a checkerboard in the middle
    pixels[:, 16:] = 200
    path = tmp_path / "wide.png"
    Image.fromarray(pixels).save(path)
    small = image_folder.read(path, 2, 2).astype(int)
    assert small.shape == (2, 2, 3)
    assert abs(small - 127.5).max() < 20, "the sides are cropped, the checkerboard is averaged"
    assert np.array_equal(image_folder.read(path, 8, 24), pixels), "nothing happens at its own size"
    Image.fromarray(pixels[..., 0]).save(tmp_path / "grey.png")
    assert image_folder.read(tmp_path / "grey.png", 8, 8).shape == (8, 8, 3)


def test_files_are_sorted_counted_and_hashed_by_content(folder, tmp_path):
    paths = image_folder.files(str(folder), None, 60)
    assert [p.relative_to(folder).as_posix() for p in paths[:2]] == ["c0/000.PNG", "c0/002.png"]
    assert len(paths) == 62
    assert image_folder.files(str(folder), 60, 60) == paths[:60]
    with pytest.raises(ConfigError, match=r"holds 62 images .*; needed: at least 63"):
        image_folder.files(str(folder), 63, 60)
    with pytest.raises(ConfigError, match="holds 0 images"):
        image_folder.files(str(tmp_path), None, 60)
    known = image_folder.sha256(paths)
    assert known != image_folder.sha256(paths[:60])
    assert known != image_folder.sha256((paths[1], paths[0], *paths[2:]))
    renamed = tmp_path / "renamed.png"
    renamed.write_bytes(paths[0].read_bytes())
    assert image_folder.sha256((renamed, *paths[1:])) == known


def test_unreadable_images_are_all_named(folder, tmp_path):
    paths = list(image_folder.files(str(folder), None, 60))
    for i, data in ((3, b""), (61, paths[5].read_bytes()[:60])):
        paths[i] = tmp_path / f"bad{i}.png"
        paths[i].write_bytes(data)
    with pytest.raises(ConfigError, match=r"2 of 62 reference images cannot be read: bad3.png \(.*bad61.png \("):
        image_folder.features(tuple(paths), Colours(), 8, 8)


def _turned() -> Image.Exif:
    exif = Image.Exif()
    exif[0x0112] = 6
    return exif


def _sixteen_bits() -> bytes:
    """A PNG of 8 x 8 pixels of 16 bits a channel, which Pillow reads and does not write."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    rows = zlib.compress(b"".join(b"\0" + bytes(48) for _ in range(8)))
    head = struct.pack(">IIBBBBB", 8, 8, 16, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", rows) + chunk(b"IEND", b"")


OTHERWISE = {
    "turned.jpg": (lambda path: Image.new("RGB", (8, 8)).save(path, exif=_turned()), "EXIF orientation 6"),
    "deep.png": (lambda path: Image.new("I;16", (8, 8)).save(path), "more than 8 bits a channel"),
    "float.tif": (lambda path: Image.new("F", (8, 8)).save(path), "mode F"),
    "clear.png": (lambda path: Image.new("RGBA", (8, 8), (9, 9, 9, 254)).save(path), "transparent in places"),
    "key.png": (lambda path: Image.new("P", (8, 8)).save(path, transparency=0), "transparent in places"),
    "film.webp": (lambda path: Image.new("RGB", (8, 8)).save(
        path, save_all=True, append_images=[Image.new("RGB", (8, 8), "red")]), "2 frames"),
    "colours.png": (lambda path: path.write_bytes(_sixteen_bits()), "RGB;16B.*more than 8 bits a channel"),
    "cut.png": (lambda path: path.write_bytes(b"\x89PNG\r\n\x1a\n"), "cannot identify"),
}  # fmt: skip


@pytest.mark.parametrize("name", OTHERWISE)
def test_images_that_rgb_bytes_would_show_otherwise_are_refused(name, tmp_path):
    make, said = OTHERWISE[name]
    make(tmp_path / name)
    with pytest.raises((ValueError, OSError), match=said):
        image_folder.read(tmp_path / name, 8, 8)


@pytest.mark.parametrize("mode", ["1", "L", "P", "RGB", "RGBA", "LA"])
def test_images_of_eight_bits_are_read_as_they_are(mode, tmp_path):
    picture = Image.linear_gradient("L").resize((8, 8)).convert(mode)
    picture.save(tmp_path / "a.png")
    assert np.array_equal(image_folder.read(tmp_path / "a.png", 8, 8), np.array(picture.convert("RGB")))


def test_folder_as_reference(folder):
    network = Colours()
    reference = RealImages(str(folder)).load(network, 8, 8)
    assert reference.features.shape == (62, 6)
    calls = network.calls
    assert RealImages(str(folder)).load(network, 8, 8) is reference, "computed once a process"
    assert network.calls == calls
    identity = RealImages(str(folder)).identity(network, 8, 8)
    assert reference.identity() == identity
    others = [
        RealImages(str(folder), n=60).identity(network, 8, 8),
        RealImages(str(folder), size=12).identity(network, 8, 8),
        RealImages(str(folder)).identity(Colours("2"), 8, 8),
    ]
    assert len({identity["sha256"], *(o["sha256"] for o in others)}) == 4
    assert others[0]["n"] == 60
    with pytest.raises(ConfigError, match=r"suite.reference_images.n is 59; allowed: an integer >= 60"):
        RealImages(str(folder), n=59)


# --- files


def test_script_writes_a_file_that_is_the_folder(folder, tmp_path, monkeypatch):
    monkeypatch.setattr(reference, "feature_network", lambda name, path: Colours())
    out = tmp_path / "real.safetensors"
    reference.write(str(folder), "colours", None, 8, None, out)
    loaded, direct = RealImages(str(out)).load(Colours(), 8, 8), RealImages(str(folder)).load(Colours(), 8, 8)
    torch.testing.assert_close(loaded.features, direct.features, rtol=1e-3, atol=1e-4)
    assert RealImages(str(out), n=60).load(Colours(), 8, 8).features.shape == (60, 6)
    with pytest.raises(ConfigError, match="another feature network than the one in use"):
        RealImages(str(out)).load(Colours("2"), 8, 8)
    with pytest.raises(ConfigError, match="holds features of 62 images; needed: at least 70"):
        RealImages(str(out), n=70).load(Colours(), 8, 8)


def test_moments_give_fid_and_nothing_else(folder, tmp_path):
    features = RealImages(str(folder)).load(Colours(), 8, 8).features
    generated = features[:60] * 0.9 + 0.01
    path = tmp_path / "statistics.npz"
    np.savez(path, mu=features.mean(0).numpy(), sigma=features.T.cov().numpy())
    with pytest.raises(ConfigError, match=r"does not say of how many images.*suite\.reference_images\.n=<N>"):
        RealImages(str(path)).load(Colours(), 8, 8)
    with pytest.raises(ConfigError, match=r"which feature network it is of.*suite\.reference_images\.unchecked=true"):
        RealImages(str(path), n=62).load(Colours(), 8, 8)
    reference = RealImages(str(path), n=62, unchecked=True).load(Colours(), 8, 8)
    assert reference.identity()["n"] == 62
    found = quality(generated, reference.features, "colours")
    assert set(found) == {"fid_colours"}
    assert found["fid_colours"].value == pytest.approx(fid(generated, features), rel=1e-8)
    whole = quality(generated, features, "colours")
    assert found["fid_colours"].se == pytest.approx(whole["fid_colours"].se, rel=1e-6)
    np.savez(path, mu=np.zeros(3), sigma=np.eye(3), n=100, network="other")
    with pytest.raises(ConfigError, match="another feature network"):
        RealImages(str(path)).load(Colours(), 8, 8)
    np.savez(path, mu=np.zeros(3), sigma=np.eye(3), n=100)
    with pytest.raises(ConfigError, match="has 3 dimensions, the network colours 6"):
        RealImages(str(path), unchecked=True).load(Colours(), 8, 8)


WRONG = {
    "shape": (torch.zeros(3), torch.eye(2), r"\(3,\) and sigma \(2, 2\)"),
    "not finite": (torch.full((2,), torch.nan), torch.eye(2), "non-finite"),
    "not symmetric": (torch.zeros(2), torch.tensor([[1.0, 0.5], [0.0, 1.0]]), "not symmetric"),
}


@pytest.mark.parametrize("case", WRONG)
def test_moments_that_are_none_are_refused(case):
    mu, sigma, said = WRONG[case]
    with pytest.raises(ConfigError, match=said):
        Moments(mu, sigma, 100)


def test_unusable_files_are_refused(tmp_path):
    network, path = Colours(), tmp_path / "a.safetensors"
    with pytest.raises(ConfigError, match="there is no"):
        RealImages(str(path)).load(network, 8, 8)
    path.write_bytes(b"damaged")
    with pytest.raises(ConfigError, match="cannot be read"):
        RealImages(str(path)).load(network, 8, 8)
    save_file({"x": torch.zeros(2)}, path, {"n": "100"})
    with pytest.raises(ConfigError, match="has x; needed: features, or mu and sigma"):
        RealImages(str(path), unchecked=True).load(network, 8, 8)
    np.savez(tmp_path / "pickled.npz", mu=np.array([{}], dtype=object))
    with pytest.raises(ConfigError, match="cannot be read"):
        RealImages(str(tmp_path / "pickled.npz"), unchecked=True).load(network, 8, 8)
    (tmp_path / "a.mat").write_text("")
    with pytest.raises(ConfigError, match=r"is no \.safetensors or \.npz file; allowed: a folder of images"):
        RealImages(str(tmp_path / "a.mat")).load(network, 8, 8)


# --- within the harness


class Letters:
    """A CLIP score of the tests: what the tokenizer and the scores of accel.metrics.ClipScore look like."""

    max_length = 12

    def __init__(self, version: str) -> None:
        self.version = version

    def identity(self):
        return {"network": "letters", "weights_sha256": self.version}

    def tokenizer(self, texts, **options):
        class Encoded:
            input_ids = [list(text) for text in texts]  # noqa: RUF012

        return Encoded

    def __call__(self, images, captions):
        assert images.dtype == torch.uint8
        return torch.tensor([float(len(c)) for c in captions], dtype=torch.float64)


def test_metrics_appear_and_another_network_scores_the_same_images(hub_suite, folder, tmp_path, monkeypatch):
    networks = {"inception": Colours("1"), "dinov2": Colours("2")}
    monkeypatch.setattr(hub, "_network", lambda name, path, device: networks[name])
    monkeypatch.setattr(hub, "_clip", lambda path, device: Letters(path))
    recipe = Recipe(DiffusersSampler("DDIMScheduler", 2))
    quick = Evaluation(n=60, distance_n=60, shard=30, batch=30, timing=False, device="cpu")

    def record(**settings):
        said = []
        runner = Runner(hub_suite("sd", converged_steps=2, **settings), quick, Results(tmp_path), said.append)
        return runner.quality(recipe), said

    plain, _ = record()
    assert set(plain["values"]) == {"distance"}
    images = {p: p.stat().st_mtime_ns for p in tmp_path.rglob("shards/*/*.safetensors")}
    real = RealImages(str(folder), size=16)
    scored, said = record(reference_images=real, feature_network="inception", clip="1")
    assert set(scored["values"]) == {
        *("fid_colours", "kid_colours", "precision", "recall", "inception_score", "clip_score", "distance")
    }
    assert scored["reference"]["n"] == 62
    assert "clip_score cuts 30 of 60 prompts at 12 tokens." in said
    assert "tokenizer cuts 30 of 60 prompts at 16 tokens." in said
    again, _ = record(reference_images=real, feature_network="dinov2", clip="2")
    assert again["id"] != scored["id"]
    assert "inception_score" not in again["values"]
    assert again["samples"] == scored["samples"] == plain["samples"]
    assert {p: p.stat().st_mtime_ns for p in images} == images, "no image was made again"


def test_a_network_that_is_not_there_fails_before_any_work(hub_suite, folder, tmp_path, monkeypatch):
    monkeypatch.setattr(hub, "_network", lambda name, path, device: Colours(missing="no weights; fetch them with ..."))
    suite = hub_suite("sd", reference_images=RealImages(str(folder)), feature_network="inception")
    with pytest.raises(ConfigError, match="no weights; fetch them with"):
        Runner(suite, Evaluation(n=60, distance_n=60), Results(tmp_path))
    assert real_images.LEAST == 60
