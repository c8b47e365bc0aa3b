"""What `accel recommend` is asked: a model, what its images should show or resemble, and how much time there is."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from accel.deploy.recipe_file import NAME
from accel.errors import AccelError, ConfigError, Refusals, check_float, check_int, unknown
from accel.grammar import quoted
from accel.metrics.networks import NETWORKS

# Each word -> the setting of suite `hub` that it is short for.
MODEL = {
    "model": "suite.model",
    "prompts": "suite.prompts.path",
    "reference": "suite.reference_images.path",
    "features": "suite.feature_network",
    "feature_weights": "suite.feature_weights",
    "clip": "suite.clip",
    "small": "+suite.stitch_models.small",
}
FILES = ("prompts", "reference")  # of them, what is never looked for on the hub
OWN = ("budget", "steps", "scale", "to", "results", "plan", "ms")
UNITS = {"s": 1, "m": 60, "h": 3600}
LEAST = 60  # seconds
BATCH = 8  # samples in one call of a model of somebody's, whose size is not known


@dataclass(frozen=True)
class Wanted:
    """`suite`: overrides that choose model and scoring. `budget`: seconds for all of it. `steps`, `scale`: what is run
    today (None: the pipeline's own defaults). `to`: the folder of the recipe file. `others`: further overrides, which
    have the last word. `plan`: say what would be done, and do nothing; `ms`: milliseconds of an evaluation of the
    denoiser for one image, with `plan` in place of measuring it here."""

    suite: tuple[str, ...]
    budget: float
    steps: int | None
    scale: float | None
    to: Path
    results: str
    others: tuple[str, ...]
    plan: bool
    ms: float | None = None

    def evaluation(self, name: str, default: str) -> str:
        """A setting of the evaluation, as text."""
        said = [word.partition("=")[2] for word in self.others if word.startswith(f"evaluation.{name}=")]
        return said[-1] if said else default

    @property
    def name(self) -> str:
        """Of the study."""
        chosen = next(word for word in reversed(self.suite) if word.startswith(("suite=", "suite.model=")))
        last = Path(chosen.partition("=")[2].strip("'\"")).name
        return "recommend_" + re.sub(r"[^A-Za-z0-9._-]+", "_", last).strip("_.")


def read(words: Sequence[str], further: Callable[[Wanted], None] | None = None) -> Wanted:
    """The request that the words of a command line make; all that is wrong with them is said at once, and with that
    what `further` finds wrong: it is asked wherever there is a model to ask about."""
    own: dict[str, str] = {}
    others: list[str] = []
    with Refusals() as refusals:
        for word in words:
            key, equals, value = word.partition("=")
            if not equals:
                refusals.add(_bare(word))
            elif key in own:
                refusals.add(ConfigError(f"{key}= is given twice; give it once."))
            elif key in MODEL or key in OWN:
                own[key] = value
                refusals.ask(_said, key, value)
            elif re.match(r"[+~]*(suite|evaluation|search|optimiser|baseline|wandb|threads)\b", key):
                others.append(word)
            else:
                refusals.add(
                    unknown("word of accel recommend", key, [*MODEL, *OWN, "suite.<setting>", "search.<setting>"])
                )
        if "model" in own and any(word.startswith("suite=") for word in others):
            refusals.add(ConfigError("model= is of suite hub, and suite= chooses a suite; give one of them."))
        if "model" not in own and not any(word.startswith("suite=") for word in others):
            refusals.add(ConfigError("no model is given; model=<folder of a diffusers pipeline, or its hub id>."))
        if "reference" not in own and (lost := sorted({"features", "feature_weights"} & set(own))):
            refusals.add(ConfigError(f"{lost[0]}= is for reference=<folder of real images>; add it, or leave it out."))
        if own.get("features", "inception") not in NETWORKS:
            refusals.add(unknown("features", own["features"], NETWORKS))
        budget = refusals.ask(_seconds, own.get("budget", "60m"))
        steps = refusals.ask(_number, "steps", own.get("steps"), int)
        scale = refusals.ask(_number, "scale", own.get("scale"), float)
        plan = refusals.ask(_yes, own.get("plan", "false"))
        ms = refusals.ask(_number, "ms", own.get("ms"), float)
        if ms == 0:
            refusals.add(ConfigError("ms is 0; allowed: a number > 0."))
        if ms is not None and plan is False:
            refusals.add(ConfigError("ms= is for a plan of another machine: add plan=true, or leave it out."))
        to = Path(own.get("to", "recommended"))
        if (to / NAME).exists() and not plan:
            refusals.add(ConfigError(f"{to / NAME} is there already; choose another folder, to=..., or delete it."))
        absent = [own[key] for key in FILES if own.get(key) and not Path(own[key]).exists()]
        # What was refused above is left out, or stands at its default: the rest is asked about all the same.
        wanted = Wanted(
            _suite(own, others), budget or 0.0, steps, scale, to, own.get("results") or "outputs", _rest(own, others),
            bool(plan), ms,
        )  # fmt: skip
        if further is not None and any(word.startswith("suite=") for word in wanted.suite):
            for reason in _asked(further, wanted):
                if not any(path in str(reason) for path in absent):  # it is said already, by the word that names it
                    refusals.add(reason)
    return wanted


def _asked(further: Callable[[Wanted], None], wanted: Wanted) -> Sequence[AccelError]:
    """What `further` finds wrong."""
    found = Refusals()
    found.ask(further, wanted)
    return found.reasons


def _suite(own: dict[str, str], others: list[str]) -> tuple[str, ...]:
    """Overrides that choose model and scoring."""
    suite = [f"{MODEL[key]}={quoted(own[key])}" for key in MODEL if own.get(key)]
    if "model" in own:
        suite.insert(0, "suite=hub")
    if "reference" in own and "features" not in own:
        suite.append("suite.feature_network=inception")
    return (*suite, *(word for word in others if word.lstrip("+~").startswith("suite")))


def _rest(own: dict[str, str], others: list[str]) -> tuple[str, ...]:
    """All other overrides."""
    rest = [word for word in others if not word.lstrip("+~").startswith("suite")]
    if "model" in own and not any(word.startswith("evaluation.batch=") for word in rest):
        rest.insert(0, f"evaluation.batch={BATCH}")
    return tuple(rest)


def _bare(word: str) -> ConfigError:
    return ConfigError(
        f"cannot read {word!r}: words of accel recommend are <name>=<value>, such as model=<folder> "
        "prompts=prompts.txt budget=60m."
    )


def _said(key: str, value: str) -> None:
    if not value:
        raise ConfigError(f"{key}= has no value; give one, or leave it out.")
    if key in FILES and not Path(value).exists():
        raise ConfigError(f"{key}={value}: there is no such {'file' if key == 'prompts' else 'folder or file'}.")


def _seconds(text: str) -> float:
    found = re.fullmatch(r"(\d+(?:\.\d+)?)([smh])", text)
    if found is None or (seconds := float(found[1]) * UNITS[found[2]]) < LEAST:
        raise ConfigError(f"budget is {text!r}; allowed: at least 60s, as in 90s, 60m or 2h.")
    return seconds


def _number(name: str, text: str | None, kind: Callable[[str], float]) -> float | None:
    if text is None:
        return None
    try:
        value = kind(text)
    except ValueError:
        raise ConfigError(f"{name} is {text!r}; allowed: a number.") from None
    if kind is int:
        check_int(name, value, 2)
    else:
        check_float(name, value, 0.0)
    return value


def _yes(text: str) -> bool:
    if text not in ("true", "false"):
        raise ConfigError(f"plan is {text!r}; allowed: true, false.")
    return text == "true"
