"""The shape of a batch: which columns and types its raw table has once it has landed, and what is bad in its rows."""

import re
from collections.abc import Mapping

import duckdb

from ml.declarations import Rule, Source
from orchestration import warehouse
from orchestration.batches import BROKEN, KNOWN_AT, OWN, Batch, LoadError, is_own, is_taken, table_of, told
from orchestration.warehouse import Connection

DECIMAL = re.compile(r"(?:DECIMAL|DEC|NUMERIC)\b[^,]*(?:,\s*(\d+))?", re.IGNORECASE)
EXACT = re.compile("DECIMAL|U?HUGEINT")


def described(connection: Connection, relation: str) -> dict[str, str]:
    return {row[0]: row[1] for row in connection.execute(f"describe select * from {relation}").fetchall()}


def expected_columns(
    source: Source, batch: Batch, incoming: Mapping[str, str], held: Mapping[str, str]
) -> dict[str, str]:
    """Column -> type of the raw table once the batch has landed: what it holds, then what is new in the batch.

    Raises `LoadError`, with both schemas, where a column is missing or has become another kind of thing.
    """
    taken = [column for column in incoming if is_taken(column)]
    if taken:
        raise LoadError(
            f"{told(source)}: {batch.source} has the columns {', '.join(taken)}, which are the engine's own; call them"
            " otherwise where they come from"
        )
    typed = {column: kind.upper() for column, kind in source.types.items() if not is_own(column)}
    wanted = {**held, **typed}
    listed = [column for column in (*source.columns, *source.key) if not column.startswith("_")]
    # What is declared has to come; where nothing is, what came before. A column that only a batch once had has not to.
    # In JSON a key that nobody has is no key at all: what has a type is null everywhere.
    required = listed if source.columns else dict.fromkeys([*listed, *held])
    absent = [column for column in required if column not in incoming]
    missing = [column for column in absent if batch.form != "json" or column not in wanted]
    if missing:
        raise LoadError(
            f"{told(source)}: {batch.source} lacks the columns {', '.join(missing)}; the table stays as it was"
            + _schemas({**incoming, **batch.sniffed}, {**dict.fromkeys(listed, "any"), **wanted})
            + ("" if len(incoming) > 1 else "\n  do all lines have the same number of fields?")
        )
    retyped = [
        column
        for column, kind in incoming.items()
        if column in wanted
        and _family(kind) != _family(wanted[column])
        and not (_family(kind) == "text" and (batch.form != "typed" or column in typed))
        and not (batch.form == "json" and _family(wanted[column]) == "text")
    ]
    if retyped:
        raise LoadError(
            f"{told(source)}: in {batch.source} the columns {', '.join(retyped)} have another type; the table stays as"
            " it was" + _schemas({c: incoming[c] for c in retyped}, {c: wanted[c] for c in retyped})
        )
    order = [*held, *(c for c in incoming if c not in held), *(c for c in typed if c not in held and c not in incoming)]
    return {column: wanted.get(column) or batch.sniffed.get(column) or incoming[column] for column in order}


def _family(kind: str) -> str:
    """Types among which a value keeps its meaning: an integer may become a double, but not a date."""
    kind = kind.upper().partition("(")[0].strip()
    if kind.endswith("]"):
        return "list"
    if any(word in kind for word in ("INT", "DOUBLE", "FLOAT", "REAL", "DECIMAL", "NUMERIC")):
        return "number"
    if kind.startswith(("DATE", "TIMESTAMP")):
        return "date"
    return "text" if kind in ("VARCHAR", "TEXT", "STRING", "UUID", "ENUM", "JSON", "CHAR", "BPCHAR") else kind.lower()


def _schemas(incoming: Mapping[str, str], expected: Mapping[str, str]) -> str:
    def listed(schema: Mapping[str, str]) -> str:
        return ", ".join(f"{column} {kind}" for column, kind in schema.items())

    return f"\n  it has:   {listed(incoming)}\n  expected: {listed(expected)}"


def left_out(source: Source, incoming: Mapping[str, str], held: Mapping[str, str]) -> tuple[str, ...]:
    """Columns that the table has, nobody declares, and a batch lacks: null in its rows."""
    return tuple(column for column in held if column not in incoming and column not in source.columns)


def refuse_rows_known_at_no_time(connection: Connection, source: Source) -> None:
    """Raises `LoadError` if `known_at` has been declared since the table was loaded: its rows would have none."""
    held = warehouse.columns(connection, source.schema, source.table)
    if source.known_at and held and KNOWN_AT not in held:
        raise LoadError(
            f"{told(source)}: known_at is declared, but the table was loaded without it, and its rows have lost when"
            f" they were known; keep it under another name, or drop table {source.schema}.{source.table}, and run again"
        )


def make_table(connection: Connection, source: Source, expected: Mapping[str, str], held: Mapping[str, str]) -> None:
    own = {**OWN, **({KNOWN_AT: OWN["_loaded_at"]} if source.known_at else {})}
    if not held:
        columns = ", ".join(f"{warehouse.name(column)} {kind}" for column, kind in {**expected, **own}.items())
        connection.execute(
            f"create schema if not exists {warehouse.name(source.schema)};"
            f" create or replace table {table_of(source)} ({columns})"
        )
        # What a table held that was dropped must land again, also if this is the last batch for now.
        connection.execute(
            "update quality.source_metrics set fingerprint = '' where schema_name = ? and table_name = ?",
            [source.schema, source.table],
        )
        return
    for column, kind in expected.items():
        if column not in held:
            connection.execute(f"alter table {table_of(source)} add column {warehouse.name(column)} {kind}")
        elif kind != held[column] and warehouse.canonical_type(connection, kind) != held[column]:
            try:
                connection.execute(
                    f"alter table {table_of(source)} alter column {warehouse.name(column)} set data type {kind}"
                )
            except duckdb.Error as error:
                raise LoadError(
                    f"{told(source)}: column '{column}' is declared {kind} now, but holds {held[column]} that can't be"
                    f" one: {str(error).splitlines()[0]}; the table stays as it was"
                ) from None


def judged_rows(
    relation: str, incoming: Mapping[str, str], expected: Mapping[str, str], rules: list[Rule]
) -> tuple[str, list[str]]:
    """SQL of a batch's rows as the table has them, with `_row` as they came and `_broken_<n>` for each rule by which a
    row may be bad; and what those rules are called."""
    columns: list[str] = []
    misfits: list[str] = []
    faults: list[str] = []
    for column, kind in expected.items():
        name = warehouse.name(column)
        if column not in incoming:
            columns.append(f"null::{kind} as {name}")
        elif incoming[column] == kind:
            columns.append(name)
        else:
            cast = _cast(name, incoming[column], kind)
            columns.append(f"{cast} as {name}")
            # Never null: a row that is neither good nor bad would vanish.
            misfits.append(
                f"{name} is not null and {_misfit(name, incoming[column], cast, kind)} as {broken(len(faults))}"
            )
            faults.append(f"{column} is no {kind.lower()}")
    # JSON has doubles alone: what is more exact is kept as a text, also through a repair.
    packed = ", ".join(
        f"{warehouse.name(column)} := {warehouse.name(column)}{'::varchar' if EXACT.match(kind) else ''}"
        for column, kind in incoming.items()
    )
    typed = f"select {', '.join([*columns, f'struct_pack({packed}) as _row', *misfits])} from {relation}"
    if not rules:
        return typed, faults
    checks = [f"coalesce(not ({rule.holds}), false) as {broken(len(faults) + n)}" for n, rule in enumerate(rules)]
    return f"select *, {', '.join(checks)} from ({typed}) as typed", [*faults, *(rule.name for rule in rules)]


def _cast(name: str, given: str, kind: str) -> str:
    """SQL of a column as another type, null where it can't be one. A time that is written with a zone becomes UTC,
    where a plain cast to a timestamp would drop the zone."""
    wanted = kind.upper()
    if _family(given) == "text" and wanted.startswith(("TIMESTAMP", "DATETIME")) and not _has_zone(wanted):
        moment = f"try_cast(try_cast({name} as timestamptz) as timestamp)"
        return moment if wanted in ("TIMESTAMP", "DATETIME") else f"try_cast({moment} as {kind})"
    return exact_decimal(name, kind) if _family(given) == "text" else f"try_cast({name} as {kind})"


def _has_zone(kind: str) -> bool:
    return kind == "TIMESTAMPTZ" or kind.endswith("WITH TIME ZONE")


def exact_decimal(name: str, kind: str) -> str:
    """SQL of a number's text as another type: null where it can't be one, and where a DECIMAL would be rounded."""
    cast, decimal = f"try_cast({name} as {kind})", DECIMAL.match(kind)
    if not decimal:
        return cast
    scale = int(decimal[1]) if decimal[1] else 0 if "(" in kind else 3  # as the warehouse has it
    beyond = f"regexp_matches({name}, '\\.\\d{{{scale}}}\\d*[1-9]')"
    # Written with an exponent, digits tell nothing.
    rounds = f"case when contains(lower({name}), 'e') then try_cast({name} as double) <> {cast} else {beyond} end"
    return f"case when not {rounds} then {cast} end"


def _misfit(name: str, given: str, cast: str, kind: str) -> str:
    """SQL of whether a value is no such type: a cast that would round a fraction away, or a time of day, is none."""
    family = _family(kind)
    if family == "number" and "INT" in kind.upper():
        return f"({cast} is null or {cast} <> try_cast({name} as double))"
    if family == "date" and kind.upper() == "DATE":
        return f"({cast} is null or {cast} <> try_cast({name} as timestamp))"
    if _family(given) == "text" and kind.upper() in ("DOUBLE", "FLOAT", "REAL"):
        return f"({cast} is null or (isinf({cast}) and not contains(lower({name}), 'inf')))"
    return f"{cast} is null"


def broken(place: int) -> str:
    return f"{BROKEN}{place}"
