"""When drift is worth somebody's attention, as the owner of a score declares it: all of it is optional."""

from collections.abc import Sequence
from typing import Any

import msgspec

from ml.strictness import Faults, some, sound_part

ALERTS_KEYS: dict[str, type] = {
    "effect": float,
    "impact": float,
    "rows": int,
    "dates": int,
    "segments": list,
    "report": bool,
}
ALERTS_EXAMPLES = {
    "effect": "0.05",
    "impact": "0.003",
    "rows": "200",
    "dates": "2",
    "segments": "[country]",
    "report": "false",
}
MOST_SEGMENTS = 3


class Alerts(msgspec.Struct, frozen=True, kw_only=True):
    """What makes drift an alert.

    A column has drifted if `effect` of its rows (0 to 1) are elsewhere than they usually are, of `rows` at least. An
    alert needs drifted columns whose effect × share of the importance (0 to 1) come to `impact` together, on so many
    `dates` in a row. `segments` are the columns whose values tell a change everywhere from one in a part of the
    customers; None: the weightiest category. `report`: whether Evidently's page is made.
    """

    effect: float = 0.05
    impact: float = 0.003
    rows: int = 200
    dates: int = 2
    segments: tuple[str, ...] | None = None
    report: bool = True


def read_alerts(declared: Any, names: Sequence[str], where: str, faults: Faults) -> Alerts:
    """The alerts of a score. `names` are its features."""
    if declared is None:
        return Alerts()
    where = f"{where}: alerts"
    sound = sound_part(declared, ALERTS_KEYS, [], where, faults, ALERTS_EXAMPLES)
    for key in ("effect", "impact"):
        if not 0 < sound.get(key, 0.5) <= 1:
            faults.append(f"{where}: {key} is {sound[key]}, not a share above 0, up to 1")
    for key in ("rows", "dates"):
        if sound.get(key, 1) < 1:
            faults.append(f"{where}: {key} is {sound[key]}, not a whole number from 1 on")
    segments: list[Any] = sound.get("segments", [])
    for name in segments:
        if names and name not in names:
            faults.append(f"{where}: segments names {name!r}, which is no feature (features: {some(names, str(name))})")
    if repeated := next((name for name in segments if segments.count(name) > 1), None):
        faults.append(f"{where}: segments names {repeated!r} twice")
    if len(segments) > MOST_SEGMENTS:
        faults.append(f"{where}: segments names {len(segments)} columns, and {MOST_SEGMENTS} are the most")
    default = Alerts()
    return Alerts(
        effect=float(sound.get("effect", default.effect)),
        impact=float(sound.get("impact", default.impact)),
        rows=sound.get("rows", default.rows),
        dates=sound.get("dates", default.dates),
        segments=tuple(map(str, segments)) if "segments" in sound else None,
        report=sound.get("report", default.report),
    )
