"""Training: exact resume, the formulas of its parts, and that it learns."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
from safetensors.torch import load_file
from torch import nn

from accel.errors import ConfigError
from accel.suites.training.loop import TrainConfig, learning_rate, train, velocity_loss

CONFIG = TrainConfig(steps=23, batch=8, lr=1e-2, warmup=4, weight_decay=0.1, ema_decay=0.9, seed=5, checkpoint_every=5)
IMAGES = torch.randn(40, 1, 4, 4, generator=torch.Generator().manual_seed(0))
LABELS = torch.arange(40) % 3


class Killed(Exception):
    pass


def net(seed: int) -> nn.Module:
    """With all that has a state: parameters, dropout's random numbers, BatchNorm's statistics and counter."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return nn.Sequential(
            nn.Conv2d(1, 4, 3, padding=1), nn.BatchNorm2d(4), nn.SiLU(), nn.Dropout(0.3), nn.Flatten(), nn.Linear(64, 3)
        )


def classify(model, images, labels, generator):
    noisy = images + 0.1 * torch.randn(images.shape, generator=generator)
    return nn.functional.cross_entropy(model(noisy), labels)


def fit(path, model, cfg=CONFIG, kill_after=None, losses=None):
    def on_step(step, loss):
        if losses is not None:
            losses.append((step, loss))
        if step == kill_after:
            raise Killed

    return train(model, classify, IMAGES, LABELS, cfg, path, on_step=on_step)


# --- resume


@pytest.mark.parametrize("muon_lr", [0.0, 0.02])
@pytest.mark.parametrize("kill_after", [5, 6, 13, 22])
def test_killed_and_resumed_equals_uninterrupted(tmp_path, kill_after, muon_lr):
    """A fresh process has another network; everything that matters comes from the checkpoint."""
    losses, parts, cfg = [], [], replace(CONFIG, muon_lr=muon_lr)
    whole = fit(tmp_path / "whole.safetensors", net(0), cfg, losses=losses)
    with pytest.raises(Killed):
        fit(tmp_path / "parts.safetensors", net(0), cfg, kill_after=kill_after, losses=parts)
    resumed_from = (kill_after - 1) // 5 * 5  # on_step comes before the step's own checkpoint
    if resumed_from == 0:
        assert not (tmp_path / "parts.safetensors").exists()
    torch.manual_seed(123)
    resumed = fit(tmp_path / "parts.safetensors", net(0 if resumed_from == 0 else 99), cfg, losses=parts)
    assert [s for s, _ in parts[kill_after:]] == list(range(resumed_from + 1, 24))
    assert dict(parts) == dict(losses), "the same losses, step by step"
    assert set(resumed) == set(net(0).state_dict()) == set(whole)
    for name, tensor in whole.items():
        assert torch.equal(resumed[name], tensor), name
    # Both wrote the same last checkpoint, and no temporary file is left.
    last = [load_file(tmp_path / f"{n}.safetensors") for n in ("parts", "whole")]
    assert all(torch.equal(last[0][k], last[1][k]) for k in last[0].keys() | last[1].keys())
    assert sorted(p.name for p in tmp_path.iterdir()) == ["parts.safetensors", "whole.safetensors"]


def test_finished_training_is_not_run_again(tmp_path):
    done = fit(tmp_path / "a.safetensors", net(0))
    losses = []
    again = fit(tmp_path / "a.safetensors", net(99), losses=losses)
    assert losses == []
    assert all(torch.equal(again[k], done[k]) for k in done)


CHANGES = ({"lr": 2e-2}, {"steps": 30}, {"seed": 6}, {"batch": 9}, {"ema_decay": 0.99}, {"muon_lr": 0.1})


@pytest.mark.parametrize("changes", CHANGES)
def test_changed_settings_are_not_resumed(tmp_path, changes):
    path = tmp_path / "a.safetensors"
    fit(path, net(0), kill_after=None)
    before = path.read_bytes()
    with pytest.raises(ConfigError, match=r"made with other training settings.* Delete it to start again"):
        fit(path, net(0), replace(CONFIG, **changes))
    assert path.read_bytes() == before


def test_checkpoint_without_the_statistics_is_refused(tmp_path):
    """They were not saved once; a resumed BatchNorm would have begun anew, silently."""
    from safetensors import safe_open
    from safetensors.torch import save_file

    path = tmp_path / "a.safetensors"
    fit(path, net(0))
    with safe_open(path, "pt") as file:
        meta = file.metadata()
    save_file({k: v for k, v in load_file(path).items() if not k.startswith("buffer.")}, path, meta)
    with pytest.raises(ConfigError, match=r"older version: it lacks buffer\.1\.num_batches_tracked\. Delete it"):
        fit(path, net(0))


def test_how_often_checkpoints_are_written_is_no_setting_of_the_result(tmp_path):
    with pytest.raises(Killed):
        fit(tmp_path / "a.safetensors", net(0), kill_after=12)
    rare = fit(tmp_path / "a.safetensors", net(99), replace(CONFIG, checkpoint_every=1000))
    whole = fit(tmp_path / "b.safetensors", net(0))
    assert all(torch.equal(rare[k], whole[k]) for k in whole)


def test_seed_decides_the_result(tmp_path):
    one = fit(tmp_path / "a.safetensors", net(0))
    other = fit(tmp_path / "b.safetensors", net(0), replace(CONFIG, seed=6))
    assert not torch.equal(one["0.weight"], other["0.weight"])


# --- formulas


def test_weights_are_the_moving_average_of_the_trajectory(tmp_path):
    """ema_s = d_s ema_(s-1) + (1 - d_s) w_s, d_s = min(decay, (1 + s) / (10 + s)), s from 0; ema starts at w_0."""
    model = net(0)
    expected = {k: p.detach().double().clone() for k, p in model.named_parameters()}

    def on_step(step, loss):
        decay = min(CONFIG.ema_decay, step / (9 + step))  # `step` counts from 1 here
        for k, p in model.named_parameters():
            expected[k] = decay * expected[k] + (1 - decay) * p.detach().double()

    found = train(model, classify, IMAGES, LABELS, CONFIG, tmp_path / "a.safetensors", on_step=on_step)
    for k, tensor in expected.items():
        torch.testing.assert_close(found[k].double(), tensor, rtol=1e-5, atol=1e-6)
    assert not torch.equal(found["0.weight"], model[0].weight)


def test_learning_rate_end_points():
    cfg = TrainConfig(steps=100, lr=3e-3, warmup=10)
    assert learning_rate(cfg, 0) == pytest.approx(3e-4)
    assert learning_rate(cfg, 9) == learning_rate(cfg, 10) == pytest.approx(3e-3)
    assert learning_rate(cfg, 55) == pytest.approx(3e-3 * (0.02 + 0.98 / 2))  # half-way down the cosine
    assert learning_rate(cfg, 100) == pytest.approx(0.02 * 3e-3)
    rates = [learning_rate(cfg, s) for s in range(101)]
    assert rates[:10] == sorted(rates[:10])
    assert rates[10:] == sorted(rates[10:], reverse=True)
    assert min(rates) > 0
    assert learning_rate(TrainConfig(steps=5, warmup=0), 0) == TrainConfig().lr
    linear, constant = (TrainConfig(steps=100, lr=3e-3, warmup=10, decay=decay) for decay in ("linear", "constant"))
    assert learning_rate(linear, 55) == pytest.approx(1.5e-3)
    assert learning_rate(constant, 4) == pytest.approx(1.5e-3)
    assert learning_rate(constant, 55) == learning_rate(constant, 99) == 3e-3


class Probe(nn.Module):
    """Notes its inputs and predicts nothing."""

    def __init__(self):
        super().__init__()
        self.scale = nn.Parameter(torch.zeros(()))
        self.seen = []

    def forward(self, x, t, class_labels, return_dict):
        self.seen.append((x, t, class_labels))
        return (x * self.scale,)


def test_velocity_loss_by_hand():
    """v = alpha eps - sigma x0 (Salimans & Ho 2022): for the prediction 0 the loss is the mean square of v."""
    from diffusers import DDPMScheduler

    scheduler, probe = DDPMScheduler(num_train_timesteps=1000), Probe()
    x0, labels = torch.randn(64, 1, 4, 4).clamp(-1, 1), torch.arange(64) % 10
    loss = velocity_loss(probe, scheduler, x0, labels, torch.Generator().manual_seed(3), 10, 0.25)
    ((x, t, seen),) = probe.seen
    alpha_bar = scheduler.alphas_cumprod[t].reshape(-1, 1, 1, 1)
    eps = (x - alpha_bar.sqrt() * x0) / (1 - alpha_bar).sqrt()
    assert eps.std() == pytest.approx(1, abs=0.1)
    velocity = alpha_bar.sqrt() * eps - (1 - alpha_bar).sqrt() * x0
    assert float(loss.detach()) == pytest.approx(float(velocity.square().mean()), rel=1e-4)
    assert (t.min() < 100) & (t.max() > 900)
    dropped = seen == 10
    assert 0.1 < dropped.float().mean() < 0.45
    assert torch.equal(seen[~dropped], labels[~dropped])

    def loss_of(dropout, seed=3):
        return velocity_loss(Probe(), scheduler, x0, labels, torch.Generator().manual_seed(seed), 10, dropout)

    assert loss_of(0.25) == loss
    assert loss_of(0.25, seed=4) != loss
    for dropout, expected in ((0.0, labels), (1.0, torch.full_like(labels, 10))):
        velocity_loss(probe, scheduler, x0, labels, torch.Generator().manual_seed(3), 10, dropout)
        assert torch.equal(probe.seen[-1][2], expected)


def test_loss_falls_on_a_learnable_problem(tmp_path):
    """Two classes of constant images: predicting the velocity needs the label only."""
    from diffusers import DDPMScheduler, UNet2DModel

    torch.manual_seed(0)
    model = UNet2DModel(sample_size=4, in_channels=1, out_channels=1, block_out_channels=(8,), norm_num_groups=4,
                        layers_per_block=1, down_block_types=("DownBlock2D",), up_block_types=("UpBlock2D",),
                        num_class_embeds=3)  # fmt: skip
    labels = torch.arange(32) % 2
    images = (labels * 2.0 - 1).reshape(-1, 1, 1, 1).expand(-1, 1, 4, 4)
    scheduler, losses = DDPMScheduler(), []

    def loss(model, x0, labels, generator):
        return velocity_loss(model, scheduler, x0, labels, generator, 2, 0.1)

    cfg = TrainConfig(steps=80, batch=32, lr=5e-3, warmup=5, checkpoint_every=1000)
    train(model, loss, images, labels, cfg, tmp_path / "a.safetensors", on_step=lambda s, value: losses.append(value))
    assert all(math.isfinite(value) for value in losses)
    assert sum(losses[-10:]) < 0.4 * sum(losses[:10])
