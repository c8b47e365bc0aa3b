"""A network that recipes are applied to, and who may use it now: calls of one pipeline at a time.

A recipe wraps a network's forward and may change its modules, so two trajectories cannot pass through one network at
once, nor can a pipeline without the recipe. While recipes are applied to it, a `SharedForward` stands in the place of
its forward. A call of a pipeline holds the lock of each of its networks; the recipe stays attached when the call ends,
for the next one, and is taken off when another pipeline, or anybody else, wants the network.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager
from threading import Lock, RLock
from typing import Any, Protocol

from torch import nn

from accel.errors import ConfigError, IncompatibleError

_SHARING = Lock()
PLACED = ("forward", "__getstate__")  # on the network itself


class Tenant(Protocol):
    """Who may have attached a recipe to a network."""

    @property
    def busy(self) -> bool:
        """Whether a call of it is under way; asked by who holds the lock of one of its networks."""

    def leave(self) -> None:
        """Take the recipe off all of its networks."""


class SharedForward:
    """What stands in the place of `net.forward`: the recipe's for calls of its pipeline, else the network's own.

    `users`: how many recipes are applied; `exclusive`: how many of them change the network's numbers.
    """

    def __init__(self, net: nn.Module) -> None:
        self.net, self.beneath, self.lock = net, net.forward, RLock()
        self.had = "forward" in vars(net)
        self.tenant: Tenant | None = None
        self.routed: Callable[..., Any] | None = None
        self.users = self.exclusive = 0
        self._warned = False

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        with self.lock:  # whoever holds it while its call is under way is that call's own thread
            if self.tenant is not None and self.tenant.busy:
                return (self.routed or self.beneath)(*args, **kwargs)
            if self.exclusive:  # a pipeline asks for the dtype before it comes here: perhaps it was told the recipe's
                raise IncompatibleError(
                    f"a recipe that changes the numbers of this {type(self.net).__name__} is applied to it, and it is "
                    "used without the recipe: by itself, or by a pipeline that shares it. Apply the recipe to that "
                    "pipeline, too, load it with its own network, or call .remove() of what accel.apply() returned."
                )
            if self.users and not self._warned:
                self._warned = True
                warnings.warn(
                    f"a {type(self.net).__name__} that a recipe is applied to is also used without the recipe: by "
                    "itself, or by a pipeline that shares it. That runs plainly; apply the recipe to that pipeline, "
                    "too, if it is meant to be fast.",
                    stacklevel=2,
                )
            self.vacate()
            return self.beneath(*args, **kwargs)

    def vacate(self) -> None:
        """Take off whatever recipe is attached. The lock is held. IncompatibleError within a call that runs it."""
        if self.tenant is not None:
            if self.tenant.busy:
                raise IncompatibleError(
                    f"a pipeline that shares this {type(self.net).__name__} is called within a call of another one, "
                    "whose recipe would be taken off in mid-trajectory; call it when that call has ended."
                )
            self.tenant.leave()
            self.tenant = self.routed = None

    @contextmanager
    def place(self, net: nn.Module, forward: Callable[..., Any]) -> Iterator[None]:
        """Until the context ends calls of the pipeline run `forward` here; see accel.core.denoiser.Place."""
        self.routed = forward
        try:
            yield
        finally:
            self.routed = None

    def state(self) -> dict[str, Any]:
        """What a copy of the network, pickled ones too, is made of: of methods' own copies, within the call that is
        under way, all but this. ConfigError for others', which would hold what a recipe put into the modules."""
        if held := self.lock.acquire(blocking=False):  # by nobody, or by the thread of that call
            self.lock.release()
        if held and self.tenant is not None and self.tenant.busy:
            return {name: value for name, value in vars(self.net).items() if name not in PLACED}
        raise ConfigError(
            f"this {type(self.net).__name__} cannot be copied or pickled while a recipe is applied to it, for the copy "
            "would hold parts of the recipe; call .remove() of what accel.apply() returned first, or copy it before."
        )


def shared_forward(net: nn.Module) -> SharedForward | None:
    """What stands in the place of the network's forward, if recipes are applied to it."""
    found = vars(net).get("forward")
    return found if isinstance(found, SharedForward) and found.users else None


def wrapped(module: nn.Module) -> bool:
    """Whether anything but a recipe stands in the place of the module's own forward."""
    found = vars(module).get("forward")
    return found.had if isinstance(found, SharedForward) else "forward" in vars(module)


@contextmanager
def vacated(nets: Iterable[nn.Module]) -> Iterator[None]:
    """Within the context no recipe is attached to the networks by `apply`, nor can one be."""
    shared = {id(found): found for net in nets if (found := shared_forward(net))}
    with ExitStack() as held:
        for one in sorted(shared.values(), key=lambda one: id(one.net)):
            held.enter_context(one.lock)
            one.vacate()
        yield


def check_free(net: nn.Module) -> None:
    """IncompatibleError if the network is inside accelerate()."""
    if hasattr(vars(net).get("forward"), "beneath") and not isinstance(net.forward, SharedForward):
        raise IncompatibleError(
            f"this {type(net).__name__} is inside accelerate() already, through a pipeline that shares it; leave that "
            "context first, or use accel.apply() for all of them: its calls take turns."
        )


def share(net: nn.Module, exclusive: bool) -> SharedForward:
    """One more user of the network, and whether its numbers change; see `release`."""
    with _SHARING:
        check_free(net)
        shared = vars(net).get("forward")
        if not isinstance(shared, SharedForward):
            shared = SharedForward(net)
            net.forward, net.__getstate__ = shared, shared.state
        shared.users += 1
        shared.exclusive += exclusive
        return shared


def release(shared: SharedForward, exclusive: bool) -> None:
    """One user less; the last one leaves the network as it was found."""
    with _SHARING:
        shared.users -= 1
        shared.exclusive -= exclusive
        if shared.users:
            return
        vars(shared.net).pop("__getstate__", None)
        if vars(shared.net).get("forward") is shared:  # else another library has wrapped it
            if shared.had:
                shared.net.forward = shared.beneath
            else:
                del shared.net.forward
