"""How a score is to be learned, explained and kept learned, as its owner declares it: all that is optional.

Each has a default that suits most scores; `read_learning` and its neighbours tell every mistake at once.
"""

from collections.abc import Mapping, Sequence
from typing import Any, Literal, get_args

import msgspec

from ml.strictness import Faults, days, some, sound_part

Direction = Literal["increasing", "decreasing"]

# What may be said of CatBoost's parameters: each with its type and the least and most that makes sense.
PARAMS: dict[str, tuple[type, float, float]] = {
    "trees": (int, 1, 10_000),
    "depth": (int, 1, 10),
    "learning_rate": (float, 0.001, 1),
    "l2_leaf_reg": (float, 0, 1000),
    "random_strength": (float, 0, 100),
    "rsm": (float, 0.05, 1),
    "positive_weight": (float, 0.001, 1000),
}
SEARCHED = ("depth", "learning_rate", "l2_leaf_reg", "random_strength", "rsm")
MOST_TRIALS = 200
LEARNING_KEYS: dict[str, type] = {"params": dict, "search": dict, "train_on": str, "monotone": dict, "shadow": bool}
SEARCH_KEYS: dict[str, type] = {"trials": int}
REASONS_KEYS: dict[str, type] = {"top": int, "bands": list, "sample": float}
RETRAIN_KEYS: dict[str, type] = {
    "every": str,
    "new_labels": int,
    "drift": float,
    "performance": bool,
    "cooldown": str,
    "budget": int,
}
# What may be written of each key, as YAML.
LEARNING_EXAMPLES = {
    "params": "{depth: 6, learning_rate: 0.05}",
    "search": "{trials: 20}",
    "train_on": "26 weeks",
    "monotone": "{months_late: increasing}",
    "shadow": "true",
}
SEARCH_EXAMPLES = {"trials": "20"}
REASONS_EXAMPLES = {"top": "3", "bands": "[high]", "sample": "0.05"}
RETRAIN_EXAMPLES = {
    "every": "4 weeks",
    "new_labels": "5000",
    "drift": "0.3",
    "performance": "true",
    "cooldown": "7 days",
    "budget": "4",
}
TRIGGERS = ("every", "new_labels", "drift", "performance")
MOST_REASONS = 20
BUDGET_DAYS = 28


class Learning(msgspec.Struct, frozen=True, kw_only=True):
    """What training is told: fixed parameters, how many trials a search has (0: none), the days of the rolling window
    of as-of dates (None: all), and by feature the direction in which alone it may move the score."""

    params: dict[str, float] = {}
    trials: int = 0
    train_on_days: float | None = None
    monotone: dict[str, Direction] = {}


class Explained(msgspec.Struct, frozen=True, kw_only=True):
    """Who is given reasons, and how many: all, or those in some bands, and a share of the others (0 to 1)."""

    top: int = 3
    bands: tuple[str, ...] | None = None
    sample: float = 0.0

    @property
    def everybody(self) -> bool:
        return self.bands is None


class Retrain(msgspec.Struct, frozen=True, kw_only=True):
    """When a champion is to be trained anew: whichever comes first, but never within the cool-down, and `budget` times
    in 28 days at most.

    `every_days` since the last training; `new_labels` matured rows more than it had; `drift`: features of this share of
    the importance have drifted; `performance`: realised performance lies outside of what was promised.
    """

    every_days: float | None = None
    new_labels: int | None = None
    drift: float | None = None
    performance: bool = False
    cooldown_days: float = 0.0
    budget: int | None = None


def read_learning(
    declared: Mapping[str, Any], kind: str | None, numbers: Sequence[str], names: Sequence[str], where: str,
    faults: Faults,
) -> Learning:  # fmt: skip
    """What a score declares of its training. `names` are its features, `numbers` those that can be monotone."""
    params = _params(declared.get("params", {}), kind, where, faults)
    trials = _trials(declared["search"], params, where, faults) if "search" in declared else 0
    return Learning(
        params=params,
        trials=trials,
        train_on_days=days(declared["train_on"], f"{where}: train_on", faults) if "train_on" in declared else None,
        monotone=_monotone(declared.get("monotone", {}), kind, numbers, names, where, faults),
    )


def _params(declared: Mapping[Any, Any], kind: str | None, where: str, faults: Faults) -> dict[str, float]:
    sound = {}
    for name, value in declared.items():
        if name not in PARAMS:
            faults.append(f"{where}: params: unknown key '{name}' (known: {', '.join(PARAMS)})")
            continue
        expected, least, most = PARAMS[name]
        whole = "a whole number" if expected is int else "a number"
        is_number = isinstance(value, int | float) and not isinstance(value, bool)
        if not is_number or (expected is int and not isinstance(value, int)) or not least <= value <= most:
            faults.append(f"{where}: params: {name} is {value!r}, not {whole} from {least:g} to {most:g}")
            continue
        if name == "positive_weight" and kind not in (None, "probability"):
            faults.append(
                f"{where}: params: positive_weight weighs the outcome 1 of a probability, and this is a {kind}"
            )
            continue
        sound[str(name)] = value
    return sound


def _trials(declared: Any, params: Mapping[str, float], where: str, faults: Faults) -> int:
    sound = sound_part(declared, SEARCH_KEYS, ["trials"], f"{where}: search", faults, SEARCH_EXAMPLES)
    trials = sound.get("trials", 1)
    if set(SEARCHED) <= set(params):
        faults.append(f"{where}: search: params sets all that a search tries ({', '.join(SEARCHED)})")
    if not 1 <= trials <= MOST_TRIALS:
        faults.append(f"{where}: search: trials is {trials}, not a whole number from 1 to {MOST_TRIALS}")
    return int(trials)


def _monotone(
    declared: Mapping[Any, Any], kind: str | None, numbers: Sequence[str], names: Sequence[str], where: str,
    faults: Faults,
) -> dict[str, Direction]:  # fmt: skip
    if declared and kind == "category":
        faults.append(
            f"{where}: monotone is for a probability or an amount: of a category each class has its own trees"
        )
    for name, direction in declared.items():
        if names and name not in names:
            faults.append(f"{where}: monotone names {name!r}, which is no feature (features: {some(names, str(name))})")
        elif names and name not in numbers:
            faults.append(
                f"{where}: monotone names '{name}', which is text: only numbers, dates and booleans have an order"
            )
        if direction not in get_args(Direction):
            faults.append(f"{where}: monotone: '{name}' is {direction!r} (possible: {', '.join(get_args(Direction))})")
    return {str(name): direction for name, direction in declared.items()}


def read_explained(declared: Any, bands: Sequence[str], kind: str | None, where: str, faults: Faults) -> Explained:
    """Who is given reasons. `bands` are the score's; those of a category are its classes, which no YAML knows."""
    if declared is None:
        return Explained()
    sound = sound_part(declared, REASONS_KEYS, [], f"{where}: reasons", faults, REASONS_EXAMPLES)
    top, sample = sound.get("top", 3), sound.get("sample", 0.0)
    if not 0 <= top <= MOST_REASONS:
        faults.append(f"{where}: reasons: top is {top}, not a whole number from 0 to {MOST_REASONS}")
    if not 0 <= sample <= 1:
        faults.append(f"{where}: reasons: sample is {sample}, not a share from 0 to 1")
    unknown = [str(band) for band in sound.get("bands", []) if str(band) not in bands and kind != "category"]
    if unknown:
        faults.append(f"{where}: reasons: bands names {', '.join(unknown)} (bands: {', '.join(bands)})")
    chosen = tuple(map(str, sound["bands"])) if "bands" in sound else () if "sample" in sound else None
    return Explained(top=top, bands=chosen, sample=float(sample))


def read_retrain(declared: Any, where: str, faults: Faults) -> Retrain | None:
    """When a score is trained anew; None if it does not say, which is whenever there are new labels."""
    if declared is None:
        return None
    where = f"{where}: retrain"
    sound = sound_part(declared, RETRAIN_KEYS, [], where, faults, RETRAIN_EXAMPLES)
    if not any(sound.get(key) for key in TRIGGERS):
        faults.append(f"{where}: names nothing that starts a training (one of {', '.join(TRIGGERS)})")
    for key in ("new_labels", "budget"):
        if key in sound and sound[key] < 1:
            faults.append(f"{where}: {key} is {sound[key]}, not a whole number from 1 on")
    if not 0 < sound.get("drift", 0.5) <= 1:
        faults.append(f"{where}: drift is {sound['drift']}, not a share of the importance above 0, up to 1")
    lengths = {key: days(sound[key], f"{where}: {key}", faults) for key in ("every", "cooldown") if key in sound}
    faults += [
        f"{where}: {key} is '{sound[key]}', which is none: days are counted by date (write 1 day at least)"
        for key, length in lengths.items()
        if 0 < length < 1
    ]
    return Retrain(
        every_days=lengths.get("every"),
        new_labels=sound.get("new_labels"),
        drift=float(sound["drift"]) if "drift" in sound else None,
        performance=sound.get("performance", False),
        cooldown_days=lengths.get("cooldown", 0.0),
        budget=sound.get("budget"),
    )
