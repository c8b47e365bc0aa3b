"""The cascade regression: its model class, what it says between, beyond and at the fitted pairs, and its file."""

from __future__ import annotations

import itertools
import json
import warnings

import numpy as np
import pytest

from accel.errors import ConfigError, IntegrityError
from accel.search import cascade as module
from accel.search.cascade import Cascade

STEPS, SCALES = (5, 6, 8, 10, 12), (1.5, 3.0, 5.0, 7.5)
PAIRS = list(itertools.product(STEPS, SCALES))


def coefficients(shape: tuple[int, int, int] = (4, 3, 3), seed: int = 0) -> np.ndarray:
    c = 0.1 * np.random.default_rng(seed).normal(size=shape)
    c[0, 0, 0] += 1
    return c


def polynomial(c: np.ndarray, steps: int, scale: float, dc_order: int = 2) -> list[float]:
    """The paper's q: steps counted from 1, s = step / NFE, g = scale / 12, n = NFE / 50; 1 without a history."""

    def q(step: int) -> float:
        s, g, n = step / steps, scale / 12, steps / 50
        return sum(v * s**p * g**k * n**m for (p, k, m), v in np.ndenumerate(c))

    return [1.0] * dc_order + [q(step) for step in range(dc_order + 1, steps + 1)]


def data(c: np.ndarray, pairs=PAIRS, dc_order: int = 2) -> dict[tuple[int, float], list[float]]:
    return {pair: polynomial(c, *pair, dc_order) for pair in pairs}


def spread(searched) -> float:
    return float(np.std([q for ratios in searched.values() for q in ratios[2:]]))


# --- the regression


@pytest.mark.parametrize("shape", [(1, 1, 1), (2, 2, 1), (4, 1, 3), (4, 3, 3)], ids=str)
@pytest.mark.parametrize("dc_order", [1, 2, 3])
def test_a_polynomial_of_the_model_class_is_recovered(monkeypatch, shape, dc_order):
    """Exactly, but for the ridge, which costs a few percent of what there is to explain."""
    searched = data(coefficients(shape), dc_order=dc_order)
    for ridge, tolerance in ((1e-15, 1e-5), (module.RIDGE, 0.15 * spread(searched) + 1e-3)):
        monkeypatch.setattr(module, "RIDGE", ridge)
        fitted = Cascade.fit(searched, dc_order)
        for pair, ratios in searched.items():
            np.testing.assert_allclose(fitted.predict(*pair, dc_order), ratios, atol=tolerance, rtol=0)


def test_a_polynomial_of_another_class_is_not():
    """Guards the test before: a table of the fitted values would pass it, and a quartic in s is none of ours."""
    rng = np.random.default_rng(1)
    searched = {(n, g): [1.0, 1.0, *(1 + 0.2 * rng.normal(size=n - 2))] for n, g in PAIRS}
    fitted = Cascade.fit(searched)
    error = max(
        abs(a - b) for pair, ratios in searched.items() for a, b in zip(fitted.predict(*pair), ratios, strict=True)
    )
    assert error > 0.2


@pytest.mark.parametrize("left_out", [(6, 3.0), (8, 5.0), (10, 3.0), (10, 5.0)], ids=str)
def test_a_pair_that_was_not_searched_is_predicted(left_out):
    """Smooth ratios with the noise of a search: better than no compensation, and than the noise of a single search."""
    rng, c = np.random.default_rng(0), coefficients(seed=3) * np.array([1.0, 4, 4, 4]).reshape(4, 1, 1)
    searched = data(c)
    noisy = {k: [1.0, 1.0, *(np.array(v[2:]) + 0.02 * rng.normal(size=len(v) - 2))] for k, v in searched.items()}
    fitted = Cascade.fit({k: v for k, v in noisy.items() if k != left_out})
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # inside the fitted range
        predicted = np.array(fitted.predict(*left_out)[2:])
    truth = np.array(searched[left_out][2:])
    assert np.sqrt(np.mean((predicted - truth) ** 2)) < 0.02
    assert np.sqrt(np.mean((truth - 1) ** 2)) > 0.05


def test_two_pairs_are_interpolated_in_between():
    """The fewest that there may be: the degree in a value that does not vary is 0, a line in the other."""
    flat = {(10, 2.0): [1.0, 1.0, *[0.8] * 8], (10, 6.0): [1.0, 1.0, *[1.2] * 8]}
    fitted = Cascade.fit(flat)
    assert fitted.coefficients.shape == (4, 2, 1)
    for scale, ratio in ((2.0, 0.8), (4.0, 1.0), (6.0, 1.2)):
        np.testing.assert_allclose(fitted.predict(10, scale)[2:], ratio, atol=0.02)


def test_degrees_are_the_papers_at_most():
    assert Cascade.fit(data(coefficients())).coefficients.shape == (4, 3, 3)
    assert Cascade.fit(data(coefficients(), itertools.product((5, 6), SCALES))).coefficients.shape == (4, 3, 2)
    assert Cascade.fit(data(coefficients(), [(4, 2.0), (4, 4.0)])).coefficients.shape == (2, 2, 1)


def test_no_compensation_where_the_data_say_nothing():
    """The ridge pulls towards q = 1, not 0."""
    ones = {pair: [1.0] * pair[0] for pair in PAIRS}
    fitted = Cascade.fit(ones)
    assert all(fitted.predict(n, g) == [1.0] * n for n, g in PAIRS)


# --- what a prediction may be


@pytest.mark.parametrize(
    ("steps", "scale", "inside"),
    [(8, 0.5, (8, 1.5)), (8, 20.0, (8, 7.5)), (20, 3.0, (12, 3.0)), (4, 3.0, (5, 3.0)), (30, 9.0, (12, 7.5))],
    ids=str,
)
def test_outside_the_fitted_range_a_warning_and_the_nearest_inside(steps, scale, inside):
    fitted = Cascade.fit(data(coefficients()))
    with pytest.warns(UserWarning, match=f"{steps} steps at scale {scale:g} .* {inside[0]} steps at {inside[1]:g}"):
        ratios = fitted.predict(steps, scale)
    assert len(ratios) == steps
    # The position of a step within its trajectory stays its own; the levels of steps and scale are the nearest.
    s = (np.arange(2, steps) + 1) / steps
    powers = np.stack([s**p for p in range(4)])
    levels = np.einsum(
        "pkm,k,m->p", fitted.coefficients, *((v ** np.arange(3)) for v in (inside[1] / 12, inside[0] / 50))
    )
    np.testing.assert_allclose(ratios[2:], np.clip(levels @ powers, *fitted.ratios), atol=1e-12)
    if steps == inside[0]:
        assert ratios == fitted.predict(*inside)


def test_inside_there_is_no_warning():
    fitted = Cascade.fit(data(coefficients()))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for steps, scale in ((5, 1.5), (7, 4.0), (12, 7.5)):
            assert len(fitted.predict(steps, scale)) == steps


def test_predictions_stay_within_the_fitted_ratios():
    """A cubic through a step overshoots it."""
    searched = {(10, g): [1.0, 1.0, *[0.7] * 4, *[1.4] * 4] for g in SCALES}
    fitted = Cascade.fit(searched)
    ratios = fitted.predict(10, 3.0)
    assert fitted.ratios == (0.7, 1.4)
    assert min(ratios[2:]) == 0.7
    assert max(ratios[2:]) == 1.4
    wide = Cascade(fitted.coefficients, fitted.steps, fitted.scales, (-9.0, 9.0), 2)
    assert max(wide.predict(10, 3.0)) > 1.4, "without the limits it would"


@pytest.mark.parametrize("steps", [1, 2])
def test_trajectories_without_a_history_are_not_compensated(steps):
    with pytest.warns(UserWarning, match="outside"):
        assert Cascade.fit(data(coefficients())).predict(steps, 3.0) == [1.0] * steps


# --- refusals


def test_too_few_pairs_are_refused():
    for searched in ({}, data(coefficients(), PAIRS[:1])):
        with pytest.raises(ConfigError, match="at least 2"):
            Cascade.fit(searched)


def test_pairs_without_any_ratio_are_refused():
    with pytest.raises(ConfigError, match="more than dc_order=2 steps"):
        Cascade.fit({(2, 1.0): [1.0, 1.0], (2, 3.0): [1.0, 1.0]})


def test_wrong_number_of_ratios_is_refused():
    with pytest.raises(ConfigError, match="7 ratios for 8 steps at scale 3"):
        Cascade.fit({(8, 3.0): [1.0] * 7, (8, 5.0): [1.0] * 8})


def test_another_dc_order_is_refused():
    fitted = Cascade.fit(data(coefficients(), dc_order=1), dc_order=1)
    with pytest.raises(ConfigError, match="dc_order=1, not 2"):
        fitted.predict(8, 3.0)
    assert fitted.predict(8, 3.0, dc_order=1)[1] != 1


# --- the file


def test_file_gives_the_same_predictions(tmp_path):
    fitted = Cascade.fit(data(coefficients(), dc_order=3), dc_order=3)
    fitted.save(tmp_path / "cascade.json")
    loaded = Cascade.load(tmp_path / "cascade.json")
    assert np.array_equal(loaded.coefficients, fitted.coefficients)
    assert (loaded.steps, loaded.scales, loaded.ratios, loaded.dc_order) == ((5, 12), (1.5, 7.5), fitted.ratios, 3)
    assert loaded.predict(7, 4.0, 3) == fitted.predict(7, 4.0, 3)
    assert "sha256" in json.loads((tmp_path / "cascade.json").read_text())


def test_missing_damaged_and_foreign_files_are_one_clear_error(tmp_path):
    path = tmp_path / "cascade.json"
    with pytest.raises(ConfigError, match="no cascade regression at"):
        Cascade.load(path)
    Cascade.fit(data(coefficients())).save(path)
    path.write_text(path.read_text().replace('"dc_order": 2', '"dc_order": 3'))
    with pytest.raises(IntegrityError, match="damaged"):
        Cascade.load(path)
    path.write_text("{")
    with pytest.raises(IntegrityError, match="damaged"):
        Cascade.load(path)
    module.write_json(path, {"timesteps": [999, 3]})
    with pytest.raises(ConfigError, match="is not a cascade regression: it has no"):
        Cascade.load(path)
