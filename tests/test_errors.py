"""Refusals that are gathered: one as it is, several as one numbered list."""

from __future__ import annotations

import pytest

from accel.errors import (
    AccelError,
    ConfigError,
    IncompatibleError,
    IntegrityError,
    Refusals,
    check_bool,
    check_int,
)


def refuse(kind: type[AccelError], text: str) -> None:
    raise kind(text)


def test_one_is_raised_as_it_is_and_none_not_at_all():
    with Refusals() as refusals:
        assert refusals.ask(len, "abc") == 3
    with pytest.raises(IntegrityError, match=r"^damaged$"), Refusals() as refusals:
        assert refusals.ask(refuse, IntegrityError, "damaged") is None


def test_several_are_a_numbered_list_each_once():
    def wrong() -> None:
        with Refusals() as refusals:
            refusals.ask(check_int, "threads", 0, 1)
            refusals.ask(refuse, IncompatibleError, "no such pair")
            refusals.ask(check_int, "threads", 0, 1)
            raise IntegrityError("damaged")  # what is raised is one of them

    with pytest.raises(ConfigError) as raised:
        wrong()
    assert str(raised.value) == (
        "3 things to mend before anything runs:\n  1. threads is 0; allowed: an integer >= 1.\n  2. no such pair\n"
        "  3. damaged"
    )
    assert [type(reason) for reason in raised.value.reasons] == [ConfigError, IncompatibleError, IntegrityError]


def test_lists_within_lists_are_one_list():
    def inner() -> None:
        with Refusals() as own:
            own.ask(refuse, IncompatibleError, "a")
            own.ask(refuse, IncompatibleError, "b")

    def outer() -> None:
        with Refusals() as refusals:
            refusals.ask(inner)
            refusals.ask(refuse, IncompatibleError, "c")

    with pytest.raises(IncompatibleError, match=r"^3 things") as raised:
        outer()
    assert [str(reason) for reason in raised.value.reasons] == ["a", "b", "c"]


def test_other_exceptions_are_not_hidden():
    def broken() -> None:
        with Refusals() as refusals:
            refusals.ask(refuse, ConfigError, "a")
            raise KeyError("b")

    with pytest.raises(KeyError):
        broken()


def test_bounds_say_what_they_are_for():
    with pytest.raises(ConfigError, match=r"n is 3; allowed: an integer >= 60 \(twenty groups\)\.$"):
        check_int("n", 3, 60, why="twenty groups")
    for value in ("abc", 1, None, []):
        with pytest.raises(ConfigError, match="allowed: true or false"):
            check_bool("timing", value)
    check_bool("timing", False)
