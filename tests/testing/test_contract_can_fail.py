"""Each point of the contract fails a method that breaks it, and a method that breaks nothing passes all of them."""

from __future__ import annotations

from dataclasses import dataclass

import pytest
import torch
from diffusers import EulerDiscreteScheduler, HeunDiscreteScheduler

from accel.caching.rows import Kept, rows_of
from accel.core.guidance import Scaled
from accel.core.method import Method
from accel.core.sampler import Sampler
from accel.errors import ConfigError, IncompatibleError
from accel.samplers import DiffusersSampler
from accel.testing import CHECKS, TinySuite, check_method, contract_checks

# caches ----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Toy(Method):
    """Every other step returns the prediction of the step before; right in all respects."""

    every: int = 2

    def full(self, clock):
        return clock.step % self.every == 0

    def key(self, clock, part):
        return clock.slot, clock.call, part

    def find(self, kept, inputs):
        found = rows_of(kept, inputs)
        return None if found is None else found[0]

    def keep(self, rows, inputs):
        return Kept((rows,), inputs.members)

    def attach(self, node, inner):
        clock, kept = node.clock, {}
        clock.on_reset(kept.clear)

        def denoise(inputs):
            keys = [self.key(clock, part) for part in inputs.parts]
            if not self.full(clock) and all(key in kept for key in keys):
                found = self.find([kept[key] for key in keys], inputs)
                if found is not None:
                    return found.clone()
            prediction = inner(inputs)
            for key, rows in zip(keys, prediction.clone().chunk(len(keys)), strict=True):
                kept[key] = self.keep(rows, inputs)
            return prediction

        return denoise


class IgnoresSlots(Toy):
    def key(self, clock, part):
        return clock.call, part


class IgnoresTheSecondSlot(Toy):
    """Slot 1 has no cache of its own: what slot 0 kept will do."""

    def full(self, clock):
        return super().full(clock) and clock.slot == 0

    key = IgnoresSlots.key


class CountsCalls(Toy):
    """Knows no clock: full at every other call of the network."""

    def attach(self, node, inner):
        kept = []

        def denoise(inputs):
            if kept and len(kept[-1]) == inputs.rows:
                return kept.pop()
            prediction = inner(inputs)
            kept[:] = [prediction.clone()]
            return prediction

        return denoise


class IgnoresParts(Toy):
    """Keeps the whole batch, and reuses it where the number of rows is the same."""

    def attach(self, node, inner):
        clock, kept = node.clock, {}
        clock.on_reset(kept.clear)

        def denoise(inputs):
            key = clock.slot, clock.call, inputs.members
            if not self.full(clock) and len(kept.get(key, ())) == inputs.rows:
                return kept[key].clone()
            kept[key] = inner(inputs).clone()
            return kept[key].clone()

        return denoise


class IgnoresTheOrderOfParts(IgnoresParts):
    """Tells a doubled batch from a half, but not which half comes first."""

    def attach(self, node, inner):
        clock, kept = node.clock, {}
        clock.on_reset(kept.clear)

        def denoise(inputs):
            key = clock.slot, clock.call, tuple(sorted(inputs.parts)), inputs.members
            if not self.full(clock) and key in kept:
                return kept[key].clone()
            kept[key] = inner(inputs).clone()
            return kept[key].clone()

        return denoise


class IgnoresWhichHalf(IgnoresParts):
    """Knows the order of a doubled batch, but not which half comes alone."""

    def attach(self, node, inner):
        clock, kept = node.clock, {}
        clock.on_reset(kept.clear)

        def denoise(inputs):
            key = clock.slot, clock.call, inputs.parts if len(inputs.parts) > 1 else "half", inputs.members
            if not self.full(clock) and key in kept:
                return kept[key].clone()
            kept[key] = inner(inputs).clone()
            return kept[key].clone()

        return denoise


class TakesTheFirstRows(Toy):
    """Ignores members: whoever is left gets the rows of those that were first."""

    def find(self, kept, inputs):
        rows = torch.cat([one.tensors[0] for one in kept])
        return rows[: inputs.rows] if len(rows) >= inputs.rows else None


class ComparesNumbersOfRows(Toy):
    """Ignores members, and reuses where the number of rows is the same."""

    def find(self, kept, inputs):
        rows = torch.cat([one.tensors[0] for one in kept])
        return rows if len(rows) == inputs.rows else None


class ReturnsAllRows(Toy):
    """Ignores members: returns what it has, however many rows were asked for."""

    def find(self, kept, inputs):
        return torch.cat([one.tensors[0] for one in kept])


class TakesBlocksToBeEqual(IgnoresParts):
    """Keeps whole calls, and takes one of as many rows for one of the same samples."""

    uneven = True


class ForgetsToReset(Toy):
    """Counts steps by itself, and goes on counting in the next trajectory."""

    def attach(self, node, inner):
        kept, count = {}, [0]

        def denoise(inputs):
            count[0] += 1
            key = inputs.parts, inputs.members, inputs.rows
            if count[0] % 3 and key in kept:
                return kept[key].clone()
            kept[key] = inner(inputs).clone()
            return kept[key].clone()

        return denoise


class LeavesAHook(Toy):
    def attach(self, node, inner):
        node.net.register_forward_hook(lambda *args: None)
        return super().attach(node, inner)


class DoesNothing(Toy):
    def full(self, clock):
        return True


class Draws(Toy):
    def attach(self, node, inner):
        return lambda inputs: inner(inputs) + torch.rand(())


class MixesTheBatch(Toy):
    def attach(self, node, inner):
        return lambda inputs: inner(inputs) + inputs.sample.mean()


class RefusesInOneWord(Toy):
    def check(self, nets, recipe):
        if "transformer_blocks" in dict(nets["base"].named_children()):
            raise IncompatibleError("no")


class AcceptsButFails(Toy):
    def check(self, nets, recipe):
        raise IncompatibleError("it works nowhere at all, whatever the network is")


class StaysOnTheCPU(Toy):
    def attach(self, node, inner):
        small = torch.full((1, 8, 8), 1e-3)
        return lambda inputs: inner(inputs) + small


class DiffersOnAGPU(Toy):
    def attach(self, node, inner):
        return lambda inputs: inner(inputs) * (2 if inputs.sample.is_cuda else 1)


class ReadsAtEveryStep(Toy):
    def attach(self, node, inner):
        return lambda inputs: inner(inputs) * float(inputs.sample.abs().mean())


class SendsAtEveryStep(Toy):
    def attach(self, node, inner):
        return lambda inputs: inner(inputs) * torch.tensor([1.1], device=inputs.sample.device)


@dataclass
class CanBeChanged(Method):
    every: int = 2


class NoConfiguration(Method):
    pass


CACHES = {
    IgnoresSlots: ("slots", "mixes up the evaluations of a solver step"),
    IgnoresTheSecondSlot: ("slots", "mixes up the evaluations of a solver step"),
    CountsCalls: ("slots", "mixes up the evaluations of a solver step"),
    IgnoresParts: ("parts", "mixes up the parts of a batch, with both halves in one call"),
    IgnoresTheOrderOfParts: ("parts", "in turns in either order"),
    IgnoresWhichHalf: ("parts", "mixes up the parts of a batch, with each half in a call of its own"),
    TakesTheFirstRows: ("members", "mixes up the samples of a batch, with ever fewer samples guided"),
    ComparesNumbersOfRows: ("members", "with another sample left unguided at each step"),
    TakesBlocksToBeEqual: ("members", "with one call, another sample left unguided in it at each step"),
    ReturnsAllRows: ("members", "rows were to be predicted"),
    ForgetsToReset: ("leaks", "keeps something from one batch to the next"),
    LeavesAHook: ("restores", "hooks of the pipeline are not what they were"),
    DoesNothing: ("changes", "changes nothing in 4 steps"),
    Draws: ("repeats", "gives other images for the same seeds"),
    MixesTheBatch: ("repeats", "a sample depends on the others of its batch"),
    RefusesInOneWord: ("refusals", "is refused on tiny_transformer without a reason: 'no'"),
    AcceptsButFails: ("changes", "runs on none of the suites that it was tried on"),
    StaysOnTheCPU: ("gpu", "fails on a GPU: Expected all tensors to be on the same device"),
    DiffersOnAGPU: ("gpu", "differs on a GPU by"),
    ReadsAtEveryStep: ("gpu", "makes the host wait for the GPU at every step: {('read', "),
    SendsAtEveryStep: ("gpu", "makes the host wait for the GPU at every step: {('send', "),
    CanBeChanged: ("configuration", "make it @dataclass(frozen=True)"),
    NoConfiguration: ("configuration", "is no dataclass"),
}


@pytest.mark.parametrize("cache", CACHES, ids=lambda c: c.__name__)
def test_a_cache_that_breaks_the_contract_fails_it(cache):
    check, said = CACHES[cache]
    with pytest.raises(AssertionError) as error:
        contract_checks(cache())[check]()
    assert said in str(error.value)


def test_a_cache_that_keeps_the_contract_passes():
    check_method(Toy(), neutral={"every": 1})


def test_a_neutral_setting_that_is_none_fails():
    with pytest.raises(AssertionError, match=r"at its neutral setting Toy.* changes the result"):
        contract_checks(Toy(), neutral=Toy(3))["neutral"]()


def test_a_method_that_is_said_to_change_nothing_must_not():
    contract_checks(Toy(1), changes=False)["changes"]()
    with pytest.raises(AssertionError, match="though it is said not to"):
        contract_checks(Toy(2), changes=False)["changes"]()


def test_an_unknown_axis_is_refused():
    with pytest.raises(ConfigError, match="axis is 'cash'; allowed: sampler, grid"):
        contract_checks(Toy(), axis="cash")
    with pytest.raises(ConfigError, match=r"unknown kind of a tiny suite 'unett'\. Did you mean unet"):
        TinySuite("unett")


# guidances -------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Rescaled(Scaled):
    """u + s (c - u) at three quarters of the scale; right in all respects."""

    def guide(self, inputs, inner, node):
        uncond, cond = (inner(inputs.take(part)) for part in ("uncond", "cond"))
        guided = uncond + 0.75 * self.scale * (cond - uncond)
        return torch.cat([guided, guided])


class TakesHalvesByPlace(Rescaled):
    def guide(self, inputs, inner, node):
        uncond, cond = inner(inputs).chunk(2)
        guided = uncond + 0.75 * self.scale * (cond - uncond)
        return torch.cat([guided, guided])


class Remembers(Rescaled):
    """The first evaluation of all counts twice; kept outside of node.memory."""

    def attach(self, node, inner):
        seen = []

        def once(inputs):
            seen.append(inputs)
            return inner(inputs) * (2 if len(seen) == 1 else 1)

        return super().attach(node, once)


def test_a_guidance_that_takes_its_halves_by_place_fails():
    contract_checks(Rescaled())["halves"]()
    with pytest.raises(AssertionError, match="takes one half of the batch for the other"):
        contract_checks(TakesHalvesByPlace())["halves"]()


def test_a_guidance_that_remembers_another_batch_fails():
    check_method(Rescaled())
    with pytest.raises(AssertionError, match="keeps something from one batch to the next"):
        contract_checks(Remembers())["leaks"]()


# samplers --------------------------------------------------------------------------------------------------------


class KeepsItsMemory(HeunDiscreteScheduler):
    def set_timesteps(self, *args, **kwargs):
        kept = getattr(self, "prev_derivative", None), getattr(self, "dt", None), getattr(self, "sample", None)
        super().set_timesteps(*args, **kwargs)
        self.prev_derivative, self.dt, self.sample = kept


class AlwaysBegins(EulerDiscreteScheduler):
    def set_begin_index(self, begin_index=0):
        super().set_begin_index(0)


class OneMore(EulerDiscreteScheduler):
    def set_timesteps(self, num_inference_steps=None, *args, **kwargs):
        super().set_timesteps(num_inference_steps + 1, *args, **kwargs)


@dataclass(frozen=True)
class Other(Sampler):
    scheduler: type
    steps: int = 4
    name: str = "other"
    label: str = "other"

    def build(self, config, grid=None):
        return self.scheduler.from_config(config, timestep_spacing="trailing")


@pytest.mark.parametrize(
    ("scheduler", "check", "said"),
    [
        (AlwaysBegins, "begin", "begun at step 1 of 4, ends"),
        (OneMore, "steps", "was asked for 4 solver steps and ran 5"),
        (HeunDiscreteScheduler, "steps", "evaluated the model 7 times in 4 steps, and says at most 4"),
        (KeepsItsMemory, "reset", "keeps something from a trajectory before set_timesteps"),
    ],
)
def test_a_sampler_that_breaks_the_contract_fails_it(scheduler, check, said):
    with pytest.raises(AssertionError) as error:
        contract_checks(Other(scheduler))[check]()
    assert said in str(error.value)


def test_a_sampler_that_keeps_the_contract_passes():
    check_method(DiffusersSampler("EulerDiscreteScheduler", 4))


def test_every_axis_has_a_contract():
    from accel.config import AXES

    assert set(CHECKS) == set(AXES)
