"""What a study's page says under its table of times: floors, rounds, and whether the machine was busy."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from accel.results.comparison import APART, Comparison, Row, device_of, timed_against
from accel.results.text import comma, device_text, interval, listed


def timing_notes(study: Comparison) -> list[str]:
    """One line a fact; of each device by itself where there are several."""
    notes, several = [], len(study.devices) > 1
    if several and not study.side_by_side:
        notes.append("Timed under several conditions: each has its own section, and speeds do not compare across them.")
    for device in study.devices:
        where = f" on {device_text(device)}" if several and not study.side_by_side else ""
        where = f" at batch {device[2]}" if several and study.side_by_side else where
        timed = [(row, t) for row in study.done for t in row.timings if device_of(t) == device]
        notes += _floors([t for _, t in timed], where)
        notes += _rounds([t for _, t in timed], where)
        notes += _busy(timed, where)
    if any(row.timing for row in study.competing) and study.baseline:
        notes.append(
            "ms/image: the baseline's, the median of all its timings in this study, divided by the row's speed-up, "
            "which was measured in the same rounds."
        )
    base = study.baseline
    timed = [row for row in study.done if base and row.timing]
    if other := [row.label for row in timed if not timed_against(row.timing, base.quality)]:
        notes.append(f"Speed-up is against another baseline for: {comma(other)}.")
    return notes


def _floors(timed: Sequence[dict[str, Any]], where: str) -> list[str]:
    found, own = [t["aa"] for t in timed if t.get("aa")], any(t.get("aa_recipe") for t in timed)
    if not found:
        return []
    recipes = [t["aa_recipe"] for t in timed if t.get("aa_recipe")]
    text = f"A/A floor of the timing{where} (the baseline against itself{_of(found)}): {_widest(found)}"
    if own:
        text += f"; each recipe against itself{_of(recipes)}: {_widest(recipes)}"
    what = "one of its own floors" if own else "its own floor"
    return [f"{text}; a speed-up that {what}, or 1, reaches is {APART}."]


def _of(found: Sequence[dict[str, float]]) -> str:
    return f", the widest of {len(found)}" if len(found) > 1 else ""


def _widest(found: Sequence[dict[str, float]]) -> str:
    return interval(max(found, key=lambda x: (x["hi"] - x["lo"], x["value"])), unit="×")


def _rounds(timed: Sequence[dict[str, Any]], where: str) -> list[str]:
    notes, old = [], [t for t in timed if not t.get("protocol") and t.get("repetitions")]
    if old:
        counts = listed(sorted({t["repetitions"] for t in old}))
        notes.append(f"Times{where}: median of {counts} repetitions interleaved with the baseline.")
    if new := [t for t in timed if t.get("protocol")]:
        counts, wide = [t["repetitions"] for t in new], [t["label"] for t in new if t["stopped"] == "most"]
        many = str(min(counts)) if min(counts) == max(counts) else f"{min(counts)} to {max(counts)}"
        shares = listed(f"{t['timing_precision']:.0%}" for t in new)
        text = (
            f"Times{where}: median of {many} rounds, each of baseline and recipe twice in alternating order, with its "
            f"interval by order statistics; rounds are added until half of it is at most {shares} of the speed-up"
        )
        notes.append(f"{text}, or there are enough: wider are {comma(wide)}." if wide else f"{text}.")
    return notes


def _busy(timed: Sequence[tuple[Row, dict[str, Any]]], where: str) -> list[str]:
    """Whether others used the machine: how many rounds were thrown away, and by name the rows for which disturbed
    rounds had to be kept or whose ms/image is off all the same."""
    new = [(row.label, t) for row, t in timed if t.get("protocol")]
    rejected = sum(t["rejected"] for _, t in new)
    kept = [f"{label} ({t['tolerated']} of {t['repetitions']})" for label, t in new if t["tolerated"]]
    restless = [f"{label} (by {t['disturbance']:.0%})" for label, t in new if not t.get("calm", True)]
    said = []
    if rejected:
        share = rejected / (rejected + sum(t["repetitions"] for _, t in new))
        said.append(f"{share:.0%} of the rounds were thrown away, because others used the processor")
    if kept:
        said.append(f"such rounds had to be kept for {comma(kept)}")
    if restless:
        said.append(f"disturbed all the same, and timed again by the same command: {comma(restless)}")
    return [f"Busy machine{where}: {'; '.join(said)}."] if said else []
