"""A study by its name, for whoever shows one that a user has named."""

from __future__ import annotations

from accel.errors import ConfigError
from accel.records import Results
from accel.results.comparison import Comparison


def named(results: Results, name: str) -> Comparison:
    """The study `name`. ConfigError for an unknown one, and for a study of searches, whose table is of another kind."""
    if results.load_study(name) is None and results.load("search_study", name) is not None:
        raise ConfigError(
            f"{name} is a study of searches, which has no rows to compare; its table: {results.root}/tables/{name}.md. "
            "What a search of whole recipes finds (search=recipes) is a study that can be shown."
        )
    return Comparison.load(results, name)
