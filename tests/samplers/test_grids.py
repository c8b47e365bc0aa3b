"""Timestep grids: equal to diffusers' where it has them, to their formulas elsewhere, and never a noise level twice."""

from __future__ import annotations

import json

import diffusers
import numpy as np
import pytest
import torch
from diffusers.schedulers import AysSchedules

from accel.config import choice_of, groups
from accel.errors import AccelError, ConfigError, IncompatibleError
from accel.samplers import DEISScheduler, DiffusersSampler
from accel.samplers.grids import ExplicitGrid, Grid, PowerGrid, SearchedGrid, TableGrid, grid_of
from accel.samplers.noise_schedule import noise_schedule

LINEAR = {"num_train_timesteps": 1000, "beta_start": 1e-4, "beta_end": 0.02, "beta_schedule": "linear"}
SD = LINEAR | {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear"}
SCHEDULES = {
    "vp": noise_schedule(LINEAR),
    "sd": noise_schedule(SD),
    "flow": noise_schedule({"use_flow_sigmas": True}),
}
NAMED = ["trailing", "linspace", "leading", "karras", "exponential"]
AYS = tuple(AysSchedules["StableDiffusionTimesteps"])
GRIDS = [
    *map(Grid, NAMED),
    *(PowerGrid(space=space, kappa=kappa) for space in ("t", "rho") for kappa in (1.0, 2.0, 3.0, 7.0)),
    PowerGrid(space="t", kappa=0.5),
    TableGrid("ays", AYS),
]
name_of = lambda grid: grid.name  # noqa: E731


def choice(name: str, *overrides: str):
    return choice_of("grid", name, *overrides)


# --- what diffusers has


@pytest.mark.parametrize("cls", [diffusers.DPMSolverMultistepScheduler, diffusers.DEISMultistepScheduler])
@pytest.mark.parametrize("name", ["trailing", "linspace", "leading"])
def test_named_grids_are_the_timesteps_of_diffusers(name, cls):
    """Every N, because N decides which way halves are rounded."""
    for offset in (0, 1) if name == "leading" else (0,):
        scheduler = cls(**SD, timestep_spacing=name, steps_offset=offset)
        for steps in [*range(1, 130), 250, 333, 500, 998, 1000]:
            if name != "trailing" and steps == 1000:
                continue  # diffusers repeats timesteps there
            scheduler.set_timesteps(steps)
            found = Grid(name).times(SCHEDULES["sd"], steps, True, offset)
            np.testing.assert_array_equal(found, scheduler.timesteps[:steps].numpy())


def test_trailing_has_the_steps_that_were_asked_for():
    """Known flaw of diffusers: T / N is rounded, so that it evaluates timestep -1 as well for some N."""
    scheduler = diffusers.DPMSolverMultistepScheduler(**SD, timestep_spacing="trailing")
    scheduler.set_timesteps(61)
    assert len(scheduler.timesteps) == 62
    assert len(Grid("trailing").times(SCHEDULES["sd"], 61)) == 61


@pytest.mark.parametrize("steps", [2, 5, 10, 37])
@pytest.mark.parametrize("name", ["karras", "exponential"])
def test_power_laws_are_the_sigmas_of_diffusers_before_it_rounds_timesteps(name, steps):
    for config in (LINEAR, SD):
        schedule = noise_schedule(config)
        scheduler = diffusers.DPMSolverMultistepScheduler(**config, **{f"use_{name}_sigmas": True})
        # Its sigmas come from float32 cumulative products; here it is given exact ones.
        scheduler.alphas_cumprod = torch.from_numpy(1 / (1 + np.exp(2 * schedule.log_rho)))
        scheduler.set_timesteps(steps)
        times = Grid(name).times(schedule, steps)
        np.testing.assert_allclose(schedule.rho(times), scheduler.sigmas[:-1].numpy(), rtol=1e-6)
        assert np.abs(times - scheduler.timesteps.numpy()).max() < 1, "rounded or truncated"


def test_a_power_law_with_one_step_starts_at_the_largest_noise():
    for schedule in SCHEDULES.values():
        for grid in (Grid("karras"), Grid("exponential"), PowerGrid(space="rho", kappa=3.0)):
            for to_zero in (True, False):
                assert grid.times(schedule, 1, to_zero).tolist() == [schedule.t_max]


def test_leading_starts_below_the_largest_noise_and_the_offset_shifts_it():
    plain, shifted = (Grid("leading").times(SCHEDULES["sd"], 10, True, offset) for offset in (0, 1))
    assert plain.tolist() == [900, 810, 720, 630, 540, 450, 360, 270, 180, 90]
    assert (shifted - plain == 1).all()


def test_a_flows_linear_grids_start_at_one_and_are_not_rounded():
    times = Grid("trailing").times(SCHEDULES["flow"], 3)
    np.testing.assert_allclose(times, [1000, 2000 / 3, 1000 / 3], rtol=1e-14)
    np.testing.assert_allclose(Grid("linspace").times(SCHEDULES["flow"], 2), [1000, 500.5], rtol=1e-14)


# --- power grids


@pytest.mark.parametrize("kappa", [1.0, 2.0, 3.5])
@pytest.mark.parametrize("schedule", SCHEDULES)
def test_power_grid_in_t_is_the_papers_formula(schedule, kappa):
    schedule, steps = SCHEDULES[schedule], 12
    times = PowerGrid(space="t", kappa=kappa).times(schedule, steps, to_zero=False)
    ends = schedule.t_max ** (1 / kappa), schedule.t_min ** (1 / kappa)
    expected = [(ends[0] + i / steps * (ends[1] - ends[0])) ** kappa for i in range(steps)]
    np.testing.assert_allclose(times, expected, rtol=1e-13)
    # Uniform in t^(1 / kappa), with the end of the last step at t_min.
    np.testing.assert_allclose(np.diff(np.append(times, schedule.t_min) ** (1 / kappa), n=2), 0, atol=1e-9)
    np.testing.assert_array_equal(times, PowerGrid(space="t", kappa=kappa).times(schedule, steps, to_zero=True))


@pytest.mark.parametrize("to_zero", [True, False])
@pytest.mark.parametrize("schedule", ["vp", "sd", "flow"])
def test_power_grid_in_rho_is_uniform_in_the_root(schedule, to_zero):
    """Down to the smallest noise level, which is evaluated if the trajectory goes on to sigma = 0."""
    schedule, kappa = SCHEDULES[schedule], 3.0
    times = PowerGrid(space="rho", kappa=kappa).times(schedule, 10, to_zero)
    rho = schedule.rho(times if to_zero else np.append(times, schedule.t_min))
    np.testing.assert_allclose(np.diff(rho ** (1 / kappa)), (rho[-1] ** (1 / 3) - rho[0] ** (1 / 3)) / (len(rho) - 1))
    assert rho[0] == schedule.rho(schedule.t_max)
    assert rho[-1] == pytest.approx(float(schedule.rho(schedule.t_min)), rel=1e-12)


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_kappa_7_in_rho_is_karras_and_a_large_kappa_is_exponential(schedule):
    schedule = SCHEDULES[schedule]
    for to_zero in (True, False):
        karras, exponential = (Grid(name).times(schedule, 20, to_zero) for name in ("karras", "exponential"))
        np.testing.assert_array_equal(PowerGrid(space="rho", kappa=7.0).times(schedule, 20, to_zero), karras)
        limit = PowerGrid(space="rho", kappa=1000.0).times(schedule, 20, to_zero)
        assert np.abs(limit - exponential).max() < 0.02 * np.abs(karras - exponential).max() + 0.02


# --- explicit, tables, searched


def test_table_is_itself_at_its_own_length_and_log_linear_at_others():
    schedule = SCHEDULES["sd"]
    grid = TableGrid(table=AYS)
    assert grid.times(schedule, 10).tolist() == list(AYS)
    table = np.log(schedule.rho(np.array(AYS)))
    # 19 steps put one between every two of the table, at the geometric mean of their noise levels.
    found = np.log(schedule.rho(grid.times(schedule, 19)))
    np.testing.assert_allclose(found[::2], table, rtol=1e-10)
    np.testing.assert_allclose(found[1::2], (table[1:] + table[:-1]) / 2, rtol=1e-10)
    ends = grid.times(schedule, 4)[[0, -1]]
    np.testing.assert_allclose(ends, [999, 24], rtol=1e-12)


def test_table_noise_levels_are_those_that_its_authors_give():
    """diffusers has the same table as sigmas, with three decimals and for integer timesteps."""
    given = AysSchedules["StableDiffusionSigmas"][:-1]
    np.testing.assert_allclose(SCHEDULES["sd"].rho(np.array(AYS)), given, rtol=0.02)


def test_explicit_timesteps_are_taken_as_they_are():
    grid = ExplicitGrid(timesteps=(999, 500.25, 1))
    assert grid.times(SCHEDULES["vp"], 3).tolist() == [999, 500.25, 1]
    assert ExplicitGrid(timesteps=[3, 2]) == ExplicitGrid(timesteps=(3, 2)), "a list from a file is the same grid"


@pytest.mark.parametrize(
    ("timesteps", "steps", "said"),
    [
        ((999, 500), 3, "has 2 timesteps, but 3 steps are wanted; set steps=2"),
        ((999, 500, 500), 3, "timestep 500 is followed by 500; allowed: each smaller"),
        ((500, 999), 2, "not strictly decreasing: timestep 500 is followed by 999"),
        ((1000, 500), 2, "timesteps from 1000 to 500; allowed: 999 down to 0"),
        ((500, -1), 2, "from 500 to -1; allowed: 999 down to 0"),
        ((float("nan"), 5), 2, "allowed: 999 down to 0"),
    ],
)
def test_explicit_timesteps_that_do_not_fit_are_refused(timesteps, steps, said):
    with pytest.raises(ConfigError, match=said) as caught:
        ExplicitGrid(timesteps=timesteps).times(SCHEDULES["vp"], steps)
    assert "\n" not in str(caught.value)


def found(tmp_path, **changes):
    path = tmp_path / "found.json"
    path.write_text(json.dumps({"timesteps": [999, 600, 200.5], "schedule": SCHEDULES["vp"].identity} | changes))
    return SearchedGrid(path=str(path))


def test_searched_grid_reads_its_file(tmp_path):
    assert found(tmp_path).times(SCHEDULES["vp"], 3).tolist() == [999, 600, 200.5]


@pytest.mark.parametrize(
    ("changes", "steps", "said"),
    [
        ({"schedule": SCHEDULES["sd"].identity}, 3, "searched for another noise schedule .* search again"),
        ({}, 4, "has 3 timesteps, but 4 steps are wanted"),
        ({"timesteps": [1, 2, 3]}, 3, "not strictly decreasing"),
        ({"timesteps": "fast"}, 3, "timesteps is 'fast'; allowed: a list of numbers"),
        ({"timesteps": []}, 3, "allowed: a list of numbers"),
        ({"timesteps": None}, 3, "allowed: a list of numbers"),
    ],
)
def test_searched_grid_that_does_not_fit_is_refused(tmp_path, changes, steps, said):
    with pytest.raises(ConfigError, match=said):
        found(tmp_path, **changes).times(SCHEDULES["vp"], steps)


@pytest.mark.parametrize("text", ["not json", "[1, 2]", '{"timesteps": [3]}', "3"])
def test_a_file_that_is_not_a_searched_grid_is_refused(tmp_path, text):
    (tmp_path / "other").write_text(text)
    with pytest.raises(ConfigError, match=r"is not a searched grid: .* needs `timesteps` and `schedule`"):
        SearchedGrid(path=str(tmp_path / "other")).times(SCHEDULES["vp"], 1)


def test_searched_grid_needs_a_file_that_can_be_read(tmp_path):
    with pytest.raises(ConfigError, match=r"grid\.path is missing"):
        choice("searched").times(SCHEDULES["vp"], 3)
    with pytest.raises(ConfigError, match=r"cannot read the searched grid .*No such file"):
        SearchedGrid(path=str(tmp_path / "none")).times(SCHEDULES["vp"], 3)
    with pytest.raises(ConfigError, match=r"cannot read the searched grid .*Is a directory"):
        SearchedGrid(path=str(tmp_path)).times(SCHEDULES["vp"], 3)


# --- every grid


@pytest.mark.parametrize("schedule", SCHEDULES)
@pytest.mark.parametrize("grid", GRIDS, ids=name_of)
def test_no_noise_level_appears_twice(grid, schedule):
    schedule = SCHEDULES[schedule]
    for steps in (1, 2, 5, 10, 20, 50):
        for to_zero in (True, False):
            times = grid.times(schedule, steps, to_zero)
            assert times.shape == (steps,)
            assert times.dtype == np.float64
            assert schedule.t_min <= times[-1] <= times[0] <= schedule.t_max
            assert (np.diff(times) < 0).all()
            rho = schedule.rho(times)
            assert (np.diff(rho) < 0).all()
            end = 0 if to_zero else schedule.rho(schedule.t_min)
            assert rho[-1] > end, "the end of the last step is not evaluated"
            if grid.name not in ("leading", "ays"):
                assert times[0] == schedule.t_max


@pytest.mark.parametrize("schedule", SCHEDULES)
@pytest.mark.parametrize("grid", GRIDS, ids=name_of)
def test_a_scheduler_takes_every_grid_to_either_end(grid, schedule):
    """As its nodes: the grid, then the end; the noise level falls strictly, also where a flow has alpha = 0."""
    config = {"vp": LINEAR, "sd": SD, "flow": {"use_flow_sigmas": True, "prediction_type": "flow_prediction"}}[schedule]
    for final_sigma in ("zero", "min"):
        scheduler = DEISScheduler(**config, ab_order=0, grid=grid.spec(), final_sigma=final_sigma)
        for steps in (1, 2, 5, 10, 20, 50):
            scheduler.set_timesteps(steps)
            expected = grid.times(scheduler.schedule, steps, final_sigma == "zero")
            np.testing.assert_allclose(scheduler.timesteps.double().numpy(), expected, rtol=1e-14)
            assert len(scheduler.nodes.t) == steps + 1
            assert np.isfinite(scheduler.nodes.rho).all()
            assert (np.diff(scheduler.nodes.rho) < 0).all()
            assert (scheduler.nodes.sigma[-1] == 0) == (final_sigma == "zero")


@pytest.mark.parametrize("grid", [*map(Grid, NAMED), PowerGrid(), PowerGrid(space="rho", kappa=3.0)], ids=name_of)
def test_a_trajectory_can_start_later(grid):
    for t_max in (600, 600.5, 12):
        for schedule in SCHEDULES.values():
            times = grid.times(schedule.starting_at(t_max), 5)
            assert times[0] <= t_max
            assert (np.diff(times) < 0).all()


@pytest.mark.parametrize("name", NAMED)
def test_more_steps_than_timesteps_are_refused_or_strictly_decreasing(name):
    for schedule in (noise_schedule(LINEAR | {"num_train_timesteps": 20}), SCHEDULES["flow"]):
        steps = schedule.total + 5
        if name in ("karras", "exponential"):
            assert (np.diff(Grid(name).times(schedule, steps)) < 0).all()
        else:
            with pytest.raises(ConfigError, match=rf"{steps} steps are more than the {schedule.total} of the noise"):
                Grid(name).times(schedule, steps)


# --- configuration


@pytest.mark.parametrize("grid", [*GRIDS, ExplicitGrid(timesteps=(9, 4.5)), SearchedGrid(path="a.json")], ids=name_of)
def test_spec_survives_json_and_a_schedulers_config(grid, tmp_path):
    assert grid_of(json.loads(json.dumps(grid.spec()))) == grid
    assert grid_of(grid) is grid
    scheduler = DEISScheduler(grid=grid.spec())
    scheduler.save_pretrained(tmp_path)
    assert DEISScheduler.from_pretrained(tmp_path).grid == grid


def test_grid_of_takes_names_lists_and_specs():
    assert grid_of("karras") == Grid("karras")
    assert grid_of([9, 4.5]) == ExplicitGrid(timesteps=(9, 4.5))
    assert grid_of({"type": "PowerGrid", "space": "rho", "kappa": 3}).name == "rho^3"


@pytest.mark.parametrize(
    ("spec", "said"),
    [
        ("kerras", "unknown grid 'kerras'. Did you mean karras"),
        ([], r"timesteps is \(\); allowed: a list of numbers"),
        (["a"], "allowed: a list of numbers"),
        (5, "grid is 5; allowed: a grid's name"),
        ({"type": "PowrGrid"}, "unknown type of grid 'PowrGrid'. Did you mean PowerGrid"),
        ({"type": "PowerGrid", "kapa": 2}, "unknown setting of PowerGrid 'kapa'. Did you mean kappa"),
        ({"type": "PowerGrid", "space": "sigma"}, "unknown space of a power grid 'sigma'"),
        ({"type": "PowerGrid", "kappa": 0}, r"kappa is 0; allowed: a number in \[0.1, 1000.0\]"),
        ({"type": "TableGrid"}, r"table is \(\); allowed: a list of numbers"),
    ],
)
def test_what_is_not_a_grid_is_refused(spec, said):
    with pytest.raises(ConfigError, match=said) as caught:
        grid_of(spec)
    assert isinstance(caught.value, AccelError)
    assert "\n" not in str(caught.value)


def test_the_configs_grids_compose_and_have_their_files_names():
    made = {name: choice(name) for name in groups()["grid"] if name != "none"}
    assert {*NAMED, "t_quadratic", "rho_power", "explicit", "ays_sd15", "searched"} <= set(made)
    assert all(grid.name == name for name, grid in made.items())
    assert (made["t_quadratic"].space, made["t_quadratic"].kappa) == ("t", 2.0)
    assert (made["rho_power"].space, made["rho_power"].kappa) == ("rho", 3.0)
    assert made["ays_sd15"].table == AYS
    assert len(made["explicit"].times(SCHEDULES["vp"], 10)) == 10
    assert choice("explicit", "grid.timesteps=[7.5,2]").timesteps == (7.5, 2)
    assert choice("searched", "grid.path=here.json").path == "here.json"


# --- explicit grids on diffusers' schedulers

TAKE = ["DPMSolverMultistepScheduler", "EulerDiscreteScheduler", "HeunDiscreteScheduler"]
REFUSE = ["DDIMScheduler", "DEISMultistepScheduler", "UniPCMultistepScheduler"]


@pytest.mark.parametrize("name", TAKE)
def test_diffusers_schedulers_with_timesteps_get_them_rounded(name):
    sampler = DiffusersSampler(name, 4)
    for grid, expected in (
        (ExplicitGrid(timesteps=(999, 700.4, 300.6, 10)), [999, 700, 301, 10]),
        (PowerGrid(space="t", kappa=2.0), [999, 562, 250, 62]),
        (TableGrid(table=AYS), np.round(TableGrid(table=AYS).times(SCHEDULES["sd"], 4)).tolist()),
    ):
        for steps in (4, 50):  # what a pipeline asks for does not matter: the grid decides
            scheduler = sampler.build(SD, grid)
            scheduler.set_timesteps(steps)
            timesteps = scheduler.timesteps.tolist()
            assert list(dict.fromkeys(timesteps)) == expected
            assert len(timesteps) == (7 if name.startswith("Heun") else 4)
            sigmas = list(dict.fromkeys(scheduler.sigmas.tolist()))
            np.testing.assert_allclose(sigmas[:-1], SCHEDULES["sd"].rho(np.array(expected)), rtol=1e-3)
            assert sigmas[-1] == 0


@pytest.mark.parametrize("name", TAKE)
def test_explicit_timesteps_win_over_the_models_own_law_of_sigmas(name):
    """diffusers refuses timesteps beside `use_karras_sigmas`, which some models' configs have."""
    for law in ("karras", "exponential"):
        config = SD | {f"use_{law}_sigmas": True}
        scheduler = DiffusersSampler(name, 2).build(config, ExplicitGrid(timesteps=(999, 400)))
        scheduler.set_timesteps(2)
        assert list(dict.fromkeys(scheduler.timesteps.tolist())) == [999, 400]
        for grid in ("trailing", "karras", "exponential"):
            config = DiffusersSampler(name, 4).build(config, Grid(grid)).config
            assert config["use_karras_sigmas"] == (grid == "karras")
            assert config["use_exponential_sigmas"] == (grid == "exponential")


@pytest.mark.parametrize("name", REFUSE)
@pytest.mark.parametrize("grid", [ExplicitGrid(timesteps=(999, 5)), PowerGrid(), TableGrid(table=AYS)], ids=name_of)
def test_diffusers_schedulers_without_timesteps_refuse_with_a_reason(name, grid):
    said = f"{name}.set_timesteps takes no timesteps, so grid .* use one of accel's own samplers"
    with pytest.raises(IncompatibleError, match=said):
        DiffusersSampler(name, 2).build(SD, grid)


def test_timesteps_that_round_to_the_same_integer_are_refused_where_integers_are_needed():
    grid = ExplicitGrid(timesteps=(999, 400.4, 400.1))
    with pytest.raises(ConfigError, match="less than 1 apart, and EulerDiscreteScheduler takes integers"):
        DiffusersSampler("EulerDiscreteScheduler", 3).build(SD, grid)
    accepted = DiffusersSampler("DEISScheduler", 3, options={"ab_order": 0}).build(SD, grid)
    assert accepted.timesteps.tolist() == [999, 400.4, 400.1]


@pytest.mark.parametrize("name", TAKE)
def test_the_number_of_steps_must_be_the_grids(name):
    with pytest.raises(ConfigError, match="has 2 timesteps, but 3 steps are wanted; set steps=2"):
        DiffusersSampler(name, 3).build(SD, ExplicitGrid(timesteps=(999, 5)))


def test_a_pipelines_own_timesteps_win_over_the_grid():
    scheduler = DiffusersSampler("DPMSolverMultistepScheduler", 2).build(SD, ExplicitGrid(timesteps=(999, 5)))
    scheduler.set_timesteps(timesteps=[800, 300, 100])
    assert scheduler.timesteps.tolist() == [800, 300, 100]
    euler = DiffusersSampler("EulerDiscreteScheduler", 2).build(SD, ExplicitGrid(timesteps=(999, 5)))
    euler.set_timesteps(sigmas=[10.0, 1.0, 0.0])
    np.testing.assert_allclose(euler.sigmas.numpy(), [10, 1, 0])


def test_accels_own_scheduler_takes_fractions_and_any_grid():
    sampler = DiffusersSampler("DEISScheduler", 5)
    for grid in GRIDS:
        scheduler = sampler.build(SD, grid)
        scheduler.set_timesteps(5)
        np.testing.assert_array_equal(scheduler.timesteps.double().numpy(), grid.times(SCHEDULES["sd"], 5))
        assert scheduler.grid == grid
