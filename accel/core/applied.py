"""`apply`: a recipe on a pipeline until `remove`, also where several threads or pipelines use its networks."""

from __future__ import annotations

import functools
import threading
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import nn

from accel.core.calls import Calls, of_class
from accel.core.precision import Precision
from accel.core.recipe import Prepared, Recipe, check_outside
from accel.core.run import Run, run_pipeline
from accel.core.sharing import SharedForward, release, share
from accel.errors import ConfigError


class Applied:
    """A recipe on a pipeline; `remove` takes it off. As a context it is removed at the end.

    Calls of the pipeline run the recipe, each alone: from several threads they wait for one another, and so do calls of
    other pipelines that recipes are applied to, if they share a network. Between two calls the recipe stays attached
    until somebody else wants a network of it.
    """

    def __init__(self, pipe: Any, recipe: Recipe, strict: bool, scale: float | None, **given: Any) -> None:
        self.pipe, self.recipe = pipe, recipe
        self._attached: ExitStack | None = None
        self._run: Run | None = None
        self._caller: int | None = None  # the thread whose call is under way
        self._changing = threading.RLock()
        self._undo = ExitStack()
        # A precision that changes other networks of the pipeline, which are nobody's to guard, stays for a call alone,
        # and so does a decoder: whoever calls `vae.decode` between two calls means the autoencoder's.
        alone = recipe.precision and type(recipe.precision).prepare_pipeline is not Precision.prepare_pipeline
        self._stays = not alone and recipe.decoder is None
        nets = {id(net): net for net in recipe.held(pipe, given["models"])}
        self._shared: list[SharedForward] = []
        try:
            for key in sorted(nets):  # everywhere in one order, so that no two calls wait for each other
                self._shared.append(share(nets[key], recipe.precision is not None))
            with self._turn():
                for shared in self._shared:
                    shared.vacate()  # a recipe is checked on plain networks
                self._ready = Prepared(pipe, recipe, **given)
                self._calls = Calls(type(pipe), self._ready.fixed(strict, scale))
                self._attach()
                why = "run by a recipe; call .remove() of what accel.apply() returned first"
                self._undo.enter_context(of_class(pipe, self._call, why, self))
        except BaseException:
            self._leave_networks()
            raise

    @property
    def run(self) -> Run:
        """What happened in the last call: `nfe`, `strip`, `events`."""
        return self._run

    @property
    def busy(self) -> bool:
        """Whether a call is under way."""
        return self._caller is not None

    def remove(self) -> None:
        """Make the pipeline what it was, once calls that are under way have ended. The second time nothing happens.
        ConfigError within a call of it."""
        if self._caller == threading.get_ident():
            raise ConfigError("remove() is called within a call of the pipeline; call it when that call has ended.")
        with self._turn():
            if not self._shared:
                return
            self._undo.close()
            self._leave_networks()

    def leave(self) -> None:
        """Take the recipe off the networks, until the next call."""
        with self._changing:
            attached, self._attached = self._attached, None
            if attached is not None:
                attached.close()

    def __enter__(self) -> Applied:
        return self

    def __exit__(self, *error: object) -> None:
        self.remove()

    def __repr__(self) -> str:
        return f"<{self.recipe.label} on a {self._calls.cls.__name__}{'' if self._shared else ', removed'}>"

    def _call(self, pipe: Any, *args: Any, **kwargs: Any) -> Any:
        if self._caller == threading.get_ident():  # its own sampler's, of within the call
            return self._calls.drive(pipe, dict(zip(list(self._calls.accepted)[1:], args, strict=False)) | kwargs)
        given = self._calls.arguments(pipe, args, kwargs)
        with self._turn():
            if not self._shared:  # removed while this call waited for its turn
                return pipe(*args, **kwargs)
            if self._attached is not None and pipe.scheduler is not self._run.scheduler:
                raise ConfigError(
                    f"the scheduler of this pipeline was replaced by {type(pipe.scheduler).__name__} after the recipe "
                    f"{self.recipe.label} was applied, which brings its own; call .remove() of what accel.apply() "
                    "returned first."
                )
            self._caller = threading.get_ident()
            try:
                self._attach()
                return run_pipeline(pipe, self.recipe, given)
            finally:
                self._caller = None
                if not self._stays:
                    self.leave()

    @contextmanager
    def _turn(self) -> Iterator[None]:
        with ExitStack() as held:
            for shared in self._shared:
                held.enter_context(shared.lock)
            yield

    def _attach(self) -> None:
        # The locks of all networks are held.
        with self._changing:
            if self._attached is not None:
                return
            for shared in self._shared:
                if shared.tenant is not self:  # else it was taken off for the sake of another network
                    shared.vacate()
            undo = ExitStack()
            try:
                self._run = self._ready.attach(undo, place=self._place)
                self._guard(self._run.scheduler)
            except BaseException:
                undo.close()
                raise
            self._attached = undo
            for shared in self._shared:
                shared.tenant = self

    def _guard(self, scheduler: Any) -> None:
        """Have the recipe's scheduler refuse other pipelines, which would drive the recipe without its networks."""
        begin = scheduler.set_timesteps

        @functools.wraps(begin)
        def guarded(*args: Any, **kwargs: Any) -> Any:
            if self._caller != threading.get_ident():
                raise ConfigError(
                    f"this {type(scheduler).__name__} is the one that accel.apply() brought with the recipe "
                    f"{self.recipe.label}, and works for that pipeline only; from_pipe() takes it along. Give "
                    "from_pipe(..., scheduler=...) one of its own, and apply a recipe to what it makes if that is "
                    "meant to be fast."
                )
            return begin(*args, **kwargs)

        scheduler.set_timesteps = guarded

    @contextmanager
    def _place(self, net: nn.Module, forward: Any) -> Iterator[None]:
        shared: SharedForward = next(one for one in self._shared if one.net is net)
        with shared.place(net, forward):
            yield

    def _leave_networks(self) -> None:
        shared, self._shared = self._shared, []
        self.leave()
        for one in shared:
            with one.lock:
                if one.tenant is self:
                    one.vacate()
                release(one, self.recipe.precision is not None)


def apply(
    pipe: Any,
    recipe: Recipe,
    *,
    models: Mapping[str, nn.Module] | None = None,
    artefacts: Mapping[str, Mapping[str, torch.Tensor]] | None = None,
    strict: bool = True,
    guidance_scale: float | None = None,
) -> Applied:
    """Make calls of `pipe` run `recipe` from now on; `models` and `artefacts` as for `accelerate`.

    A call gets the recipe's number of steps, timesteps and guidance scale, so that one which says nothing of them runs
    what was measured; one that says something else is refused, or with strict=False said in one warning: the recipe's
    values are used, and where a trajectory begins and ends (strength, denoising_end) is the caller's.
    `guidance_scale`: of a network that is told the scale (Flux dev). Raises ConfigError or IncompatibleError if the
    pipeline cannot run the recipe, or runs one already.
    """
    if isinstance(applied := getattr(type(pipe), "_accel_keeps", None), Applied):
        raise ConfigError(
            f"{applied.recipe.label} is applied to this pipeline already; call .remove() of what accel.apply() "
            "returned first, or combine the recipes."
        )
    check_outside(pipe)
    return Applied(pipe, recipe, strict, guidance_scale, models=models, artefacts=artefacts)
