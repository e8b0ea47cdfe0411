"""Whether a version is good enough to score customers: SQL conditions over its metrics, which DuckDB evaluates."""

import json
import math
import re
from collections.abc import Iterator, Mapping, Sequence
from functools import cache
from typing import Any

import msgspec

from ml.metrics import METRICS, Kind
from ml.slices import LEAST_ROWS, MOST_VALUES, Slice

OF_OTHERS = ("champion_", "baseline_")

OPERATORS = {"+", "-", "*", "/"}
FUNCTIONS = {"abs", "least", "greatest", "coalesce"}
# The least or most of a metric among the slices of a column: min_by('colour', roc_auc).
OF_SLICES = {"min_by": min, "max_by": max}
SLICED = re.compile(r"\b(min_by|max_by)\s*\(\s*'((?:[^']|'')+)'\s*,\s*(\w+)\s*\)", re.IGNORECASE)
# Node classes of DuckDB's parser that a condition may hold, with the types allowed in them (None: every type).
EXPRESSIONS: dict[str, set[str] | None] = {
    "COLUMN_REF": None,
    "COMPARISON": None,
    "CONJUNCTION": None,
    "BETWEEN": None,
    "CONSTANT": None,
    "FUNCTION": None,
    "OPERATOR": {
        "OPERATOR_NOT", "OPERATOR_IS_NULL", "OPERATOR_IS_NOT_NULL", "OPERATOR_COALESCE", "COMPARE_IN", "COMPARE_NOT_IN",
    },
}  # fmt: skip


class GateError(ValueError):
    """A gate condition that is not one plain SQL condition, or that names something unknown."""


class GateResult(msgspec.Struct, frozen=True):
    """What became of one condition: the values it saw, whether it passed, a note where that is not plain from them."""

    condition: str
    values: dict[str, float]
    passed: bool
    note: str


def known_gate_names(kind: Kind) -> list[str]:
    """What a gate may name: the candidate's metrics, and each as champion_<metric> and baseline_<metric>."""
    return [prefix + name for prefix in ("", *OF_OTHERS) for name in METRICS[kind]]


@cache  # a run asks of each condition several times, and each time is a DuckDB of its own
def gate_names(condition: str) -> frozenset[str]:
    """The metrics that a condition names, read by DuckDB's own parser.

    Raises `GateError` unless it is one SQL condition (true or false) of metrics, numbers, comparisons, and/or/not,
    between, in, + - * /, abs, least, greatest, coalesce, and of min_by and max_by, whose metrics are among the names.
    Its message continues "gate '...' ".
    """
    with _duckdb() as connection:
        plain = {name for name in _names(connection, condition) if not SLICED.fullmatch(name)}
    return frozenset(plain | {metric for _, _, metric in _sliced(condition)})


def sliced_columns(conditions: Sequence[str], of_champion: bool = False) -> list[str]:
    """The columns of whose slices the conditions speak, in their order; those where it is the champion's, if asked."""
    return list(
        dict.fromkeys(
            column
            for condition in conditions
            for _, column, metric in _sliced(condition)
            if metric.startswith("champion_") or not of_champion
        )
    )


def check_gate(
    conditions: Sequence[str],
    metrics: Mapping[str, float],
    baseline: Mapping[str, float],
    champion: Mapping[str, float] | None,
    slices: Sequence[Slice] = (),
    champion_slices: Sequence[Slice] = (),
) -> list[GateResult]:
    """Every condition, evaluated by DuckDB over the metrics of the candidate, the baseline and the champion.

    Without a champion its metrics are NULL: a condition that hangs on them alone passes, with a note. Else NULL never
    passes, and neither does a NaN among the values, nor a column of which there are no slices. Raises `GateError` for a
    condition it can't read or whose names it doesn't know.
    """
    values = {name: float(value) for name, value in metrics.items()}
    values |= {f"baseline_{name}": float(value) for name, value in baseline.items()}
    values |= {f"champion_{name}": float(value) for name, value in (champion or {}).items()}
    absent = {f"champion_{name}" for name in metrics} - set(values) if champion is None else set()
    notes: dict[str, str] = {}
    for function, column, metric in (one for condition in conditions for one in _sliced(condition)):
        of_champion = metric.startswith("champion_")
        if of_champion and champion is None:
            absent.add(_called(function, column, metric))
            continue
        value, note = _of_slices(function, column, metric, champion_slices if of_champion else slices)
        values[_called(function, column, metric)], notes[_called(function, column, metric)] = value, note
    with _duckdb() as connection:
        return [_check(connection, condition, values, absent, notes) for condition in conditions]


def _of_slices(function: str, column: str, metric: str, slices: Sequence[Slice]) -> tuple[float, str]:
    """The least or most of a metric among the slices of a column, and which slice has it."""
    name = metric.removeprefix("champion_")
    measured = [
        (one.metrics[name], one.value)
        for one in slices
        if one.column == column and not math.isnan(one.metrics.get(name, math.nan))
    ]
    if not measured:
        needed = f"it makes them where the training set has it, with at most {MOST_VALUES} values of {LEAST_ROWS} rows"
        return math.nan, f"{column} has no slice on which {name} can be measured: {needed}"
    value, where = OF_SLICES[function](measured)
    return value, f"{column} '{where}'"


def _sliced(condition: str) -> list[tuple[str, str, str]]:
    """Function, column and metric of each min_by and max_by of a condition."""
    return [
        (function.lower(), column.replace("''", "'"), metric) for function, column, metric in SLICED.findall(condition)
    ]


def _called(function: str, column: str, metric: str) -> str:
    """What a min_by or max_by is called among the values."""
    quoted = column.replace("'", "''")
    return f"{function}('{quoted}', {metric})"


def _plain(condition: str) -> str:
    """The condition with a name in place of each min_by and max_by."""

    def name(match: re.Match[str]) -> str:
        quoted = _called(match[1].lower(), match[2].replace("''", "'"), match[3]).replace('"', '""')
        return f'"{quoted}"'

    return SLICED.sub(name, condition)


def _check(
    connection: Any, condition: str, values: Mapping[str, float], absent: set[str], notes: Mapping[str, str]
) -> GateResult:
    names = sorted(_names(connection, condition))
    unknown = [name for name in names if name not in values and name not in absent]
    if unknown:
        raise GateError(f"names no metric: {', '.join(unknown)} (known: {', '.join(sorted({*values, *absent}))})")
    seen = {name: values[name] for name in names if name in values}
    undefined = [name for name, value in seen.items() if math.isnan(value)]
    if undefined:
        why = [notes[name] for name in undefined if name in notes] or [
            f"{', '.join(undefined)} can't be measured on these rows"
        ]
        return GateResult(condition, seen, passed=False, note="; ".join(why))
    verdict = _verdict(connection, _plain(condition), {name: seen.get(name) for name in names})
    told = [notes[name] for name in seen if name in notes]
    if verdict is None and any(name in absent for name in names):
        told.append("there was no champion to compare with")
        return GateResult(condition, seen, passed=True, note="; ".join(told))
    told += ["the condition gives null"] if verdict is None else []
    return GateResult(condition, seen, passed=verdict is True, note="; ".join(told))


def _verdict(connection: Any, condition: str, values: Mapping[str, float | None]) -> bool | None:
    """What the condition gives on a table of one row that holds these values."""
    import duckdb

    columns = [name.replace('"', '""') for name in values]
    row = ", ".join(f'?::double as "{name}"' for name in columns) or "1 as nothing"
    try:
        kind, verdict = connection.execute(
            f"select typeof(({condition})), ({condition}) from (select {row})", list(values.values())
        ).fetchone()
    except duckdb.Error as error:
        raise GateError(f"is no condition that can be evaluated: {str(error).splitlines()[0]}") from None
    if kind != "BOOLEAN":
        article = "an" if kind[:1] in "AEIOU" else "a"
        raise GateError(f"gives {article} {kind.lower()}, not true or false (compare it with something)")
    return None if verdict is None else bool(verdict)


def _duckdb() -> Any:
    """An empty DuckDB in memory that can read no file and no network, and in which x / 0 is NULL, not NaN above all."""
    import duckdb

    return duckdb.connect(
        ":memory:",
        config={
            "enable_external_access": "false",
            "autoload_known_extensions": "false",
            "ieee_floating_point_ops": "false",
            "error_on_division_by_zero": "false",
        },
    )


def _names(connection: Any, condition: str) -> set[str]:
    """The columns that the condition reads, each min_by and max_by being one."""
    for mark, what in ((";", "a semicolon"), ("--", "a comment"), ("/*", "a comment")):
        if mark in condition:
            raise GateError(f"holds {what}, but must be one SQL condition")
    for _, column, metric in _sliced(condition):
        if metric.startswith("baseline_"):
            raise GateError(f"asks for {metric} in slices of '{column}', but the baseline is measured as a whole only")
    plain = _plain(condition)
    _parse(connection, f"({plain})")  # so that it is whole in itself: no alias, no from, no second column
    expression = _parse(connection, plain)
    found = [str(node["column_names"][0]) for node in _nodes(expression) if node["class"] == "COLUMN_REF"]
    names = {name if SLICED.fullmatch(name) else name.lower() for name in found}
    _verdict(connection, plain, dict.fromkeys(names, 1.0))
    return names


def _parse(connection: Any, text: str) -> dict[str, Any]:
    """The one expression that `select <text>` selects, from nothing."""
    (serialized,) = connection.execute("select json_serialize_sql(?)", [f"select {text}"]).fetchone()
    parsed = json.loads(serialized)
    if parsed["error"]:
        raise GateError(f"is no SQL condition: {parsed['error_message'].splitlines()[0]}")
    node = parsed["statements"][0]["node"]
    clauses = ("modifiers", "where_clause", "group_expressions", "having", "sample", "qualify")
    whole = (
        node["type"] == "SELECT_NODE"
        and node["from_table"]["type"] == "EMPTY"
        and not any(node[name] for name in clauses)
    )
    if len(parsed["statements"]) != 1 or not whole or len(node["select_list"]) != 1 or node["cte_map"]["map"]:
        raise GateError("is more than one SQL condition")
    expression: dict[str, Any] = node["select_list"][0]
    return expression


def _nodes(expression: Mapping[str, Any]) -> Iterator[Mapping[str, Any]]:
    """The expression and all within it. Raises `GateError` at one that a condition may not hold."""
    kind, detail = expression["class"], expression["type"]
    if kind not in EXPRESSIONS or detail not in (EXPRESSIONS[kind] or {detail}):
        raise GateError(f"holds a {detail.lower().replace('_', ' ')}, but may hold {_allowed()}")
    if expression["alias"]:
        raise GateError(f"names its result '{expression['alias']}', but must be one SQL condition")
    if kind == "COLUMN_REF" and len(expression["column_names"]) != 1:
        raise GateError(f"names '{'.'.join(expression['column_names'])}', but metrics are named without a table")
    if kind == "CONSTANT" and expression["literal"].get("kind") == "STRING":
        raise GateError(f"holds the text '{expression['literal']['text']}', but metrics are numbers")
    if kind == "FUNCTION":
        _check_function(expression)
    yield expression
    for key in ("left", "right", "input", "lower", "upper"):
        if key in expression:
            yield from _nodes(expression[key])
    for child in expression.get("children", []):
        yield from _nodes(child)
    for argument in expression.get("arguments", []):
        yield from _nodes(argument["expression"])


def _check_function(expression: Mapping[str, Any]) -> None:
    name, path = expression["function_name"], expression["qualified_name"]["path"]
    known = name in OPERATORS if expression.get("is_operator") else name in FUNCTIONS and path == [name]
    extras = [key for key in ("distinct", "filter", "export_state") if expression.get(key)]
    if name in OF_SLICES:
        raise GateError(f"calls {name} otherwise than {name}('<column>', <metric>)")
    if not known or extras or expression["order_bys"]["orders"]:
        raise GateError(f"calls {'.'.join(path)}, but may hold {_allowed()}")


def _allowed() -> str:
    functions = ", ".join(sorted(FUNCTIONS))
    return (
        f"metrics, numbers, comparisons, and, or, not, between, in, {' '.join(sorted(OPERATORS))}, {functions},"
        " min_by('<column>', <metric>), max_by"
    )
