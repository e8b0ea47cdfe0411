"""Reading what people declare in YAML, strictly, and telling all that is wrong with it at once.

Each reader adds what is wrong to `faults` and goes on with what is sound, so what it gives counts only without faults.
"""

import difflib
import re
import sys
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

Node = Mapping[str, Any]
Faults = list[str]

MOST_DAYS = 36_500
LARGEST = sys.float_info.max
DAYS = {"minute": 1 / 1440, "hour": 1 / 24, "day": 1.0, "week": 7.0}
YAML_WORDS: dict[type, str] = {
    str: "text",
    list: "a list",
    dict: "a mapping",
    bool: "true or false",
    int: "a whole number",
    float: "a number",
}


class DeclarationError(ValueError):
    """Declarations in the dbt project that the engine can't act on: of each file, thing, fault, what is possible."""


def sound_part(
    declared: Any,
    keys: Mapping[str, type],
    required: Sequence[str],
    where: str,
    faults: Faults,
    examples: Mapping[str, str] | None = None,
) -> dict[str, Any]:
    """Of a mapping as declared the known keys whose values have the right YAML type; required ones must be there.

    `examples` are what may be written of a key, as YAML: of another type one knows what it is not, and not what it is.
    """
    if not isinstance(declared, dict):
        faults.append(f"{where}: is {declared!r}, not a mapping (keys: {', '.join(keys)})")
        return {}
    sound = {}
    for key, value in declared.items():
        if key not in keys:
            faults.append(f"{where}: unknown key '{key}' (known: {', '.join(keys)})")
            continue
        expected = (int, float) if keys[key] is float else keys[key]
        if not isinstance(value, expected) or (isinstance(value, bool) and keys[key] is not bool):
            example = f" (write e.g. {key}: {examples[key]})" if examples else ""
            faults.append(f"{where}: {key} is {value!r}, not {YAML_WORDS[keys[key]]}{example}")
            continue
        if keys[key] is float and isinstance(value, int) and abs(value) > LARGEST:
            faults.append(f"{where}: {key} is {value}, larger than any number ({LARGEST:.1e})")
            continue
        sound[key] = value
    missing = [key for key in required if key not in declared]
    if missing:
        faults.append(f"{where}: lacks {', '.join(missing)} (keys: {', '.join(keys)})")
    return sound


def find_alike(tables: Mapping[str, str], faults: Faults) -> None:
    """Finds, of things and the tables they go to, those that the warehouse would put into one."""
    seen: dict[str, str] = {}
    for thing, table in tables.items():
        other = seen.setdefault(table.lower(), thing)
        if other != thing:
            faults.append(
                f"{thing}: '{table}' can't be told from '{tables[other]}' ({other}) by the warehouse, which ignores"
                " case: call one of them otherwise"
            )


def some(names: Iterable[str], like: str) -> str:
    """The names that a mistyped one may have meant, or the first ones."""
    known = list(names)
    shown = difflib.get_close_matches(like, known) or known[:10]
    return ", ".join(shown) + (f", and {len(known) - len(shown)} more" if len(shown) < len(known) else "")


def days(text: str, where: str, faults: Faults) -> float:
    """'8 days' -> 8.0."""
    number, _, unit = text.strip().partition(" ")
    each = DAYS.get(unit.strip().removesuffix("s"), 0.0)
    length = float(number) * each if re.fullmatch(r"[0-9]+(\.[0-9]+)?", number) else 0.0
    if not 0 < length <= MOST_DAYS:
        faults.append(
            f"{where}: '{text}' is no length of time"
            f" (write e.g. '8 days'; units: minutes, hours, days, weeks; at most {MOST_DAYS} days)"
        )
    return length
