"""Lines of JSON objects as rows: whatever brought them, a file, a stream or a page of an API."""

from collections.abc import Mapping

import msgspec

from orchestration import warehouse
from orchestration.warehouse import Connection

TYPES = {"UBIGINT": "BIGINT", "BIGINT": "BIGINT", "DOUBLE": "DOUBLE", "BOOLEAN": "BOOLEAN"}
DATE, MOMENT = r"\d{4}-\d{2}-\d{2}", r"\d{4}-\d{2}-\d{2}[T ]\d{2}:\d{2}(:\d{2}(\.\d+)?)?"
ZONE = r"(Z|[+-]\d{2}:?\d{2})"

SAMPLED = 20_000  # lines from which types are told; what has another type later is a bad row, unless one is declared
KEYS = "select distinct unnest(keys) as key from (select distinct json_keys(line) as keys from temp.objects) order by 1"
TYPED = r"""
    with keys as (select line, unnest(json_keys(line)) as key from ({lines})),
    typed as (
        select
            key,
            json_type(line, '$."' || replace(key, '"', '\"') || '"') as kind,
            json_extract_string(line, '$."' || replace(key, '"', '\"') || '"') as value
        from keys
    )
    select
        key,
        list(distinct kind) filter (kind <> 'NULL') as kinds,
        bool_and(regexp_full_match(value, $date)) filter (kind = 'VARCHAR') as is_date,
        bool_and(regexp_full_match(value, $moment || $zone || '?')) filter (kind = 'VARCHAR') as is_moment,
        bool_or(regexp_full_match(value, $moment || $zone)) filter (kind = 'VARCHAR') as has_zone
    from typed where key <> '' group by key
"""


class Rows(msgspec.Struct, frozen=True):
    """Rows whose values are all text: SQL to select them from, the type that each column's values seem to have, and
    SQL of (rule, row) for the lines that are no objects."""

    relation: str
    sniffed: dict[str, str]
    unreadable: str


def json_rows(connection: Connection, lines: str, wanted: Mapping[str, str] | None = None) -> Rows:
    """The rows of a temporary table whose column `line` has a JSON object in each row; empty lines are none.

    Numbers are told to 17 digits, as JSON readers do, but for columns that are `wanted` as a DECIMAL to the last.
    """
    connection.execute(
        f"""
        create or replace temp table objects as
        select line from {lines} where json_valid(line) and json_type(line) = 'OBJECT'
        """
    )
    keys = [key for (key,) in connection.execute(KEYS).fetchall() if key]
    seen = _types(connection, f"select line from temp.objects limit {SAMPLED}")
    for key in keys:
        if key not in seen:  # in none of the first rows
            has_key = f"list_contains(json_keys(line), {warehouse.literal(key)})"
            seen |= _types(connection, f"select line from temp.objects where {has_key} limit {SAMPLED}")
    sniffed = {key: seen.get(key, "VARCHAR") for key in keys}
    texts = _structure(dict.fromkeys(sniffed, "VARCHAR"))
    exact = {
        column: kind for column, kind in (wanted or {}).items() if kind.upper().startswith("DEC") and column in sniffed
    }
    columns = ", ".join(
        f"coalesce(exact.{name}::varchar, texts.{name}) as {name}" if column in exact else f"texts.{name} as {name}"
        for column, name in ((column, warehouse.name(column)) for column in sniffed)
    )
    connection.execute(
        f"""
        create or replace temp table staged as
        select {columns or "line"} from (
            select line, json_transform(line, {texts}) as texts, json_transform(line, {_structure(exact)}) as exact
            from temp.objects
        )
        """
    )
    if sniffed:
        connection.execute("drop table temp.objects")
    return Rows(
        relation="temp.staged",
        sniffed=sniffed,
        unreadable=f"""
            select 'is no JSON object' as rule, line as row from {lines}
            where line is not null and trim(line) <> '' and coalesce(json_type(try_cast(line as json)), '') <> 'OBJECT'
        """,
    )


def _types(connection: Connection, lines: str) -> dict[str, str]:
    """Key -> the type that its values in these lines seem to have."""
    found = connection.execute(TYPED.format(lines=lines), {"date": DATE, "moment": MOMENT, "zone": ZONE}).fetchall()
    return {key: _type(kinds or [], *looks) for key, kinds, *looks in found}


def _structure(columns: Mapping[str, str]) -> str:
    """The SQL literal of what json_transform is to make of an object."""
    return warehouse.literal(msgspec.json.encode(columns or {"nothing": "VARCHAR"}).decode())


def _type(kinds: list[str], is_date: bool | None, is_moment: bool | None, has_zone: bool | None) -> str:
    """The type for a column with these kinds of JSON values."""
    types = {TYPES.get(kind, "VARCHAR") for kind in kinds}
    if types == {"BIGINT", "DOUBLE"}:
        return "DOUBLE"
    if kinds == ["VARCHAR"] and is_date:
        return "DATE"
    if kinds == ["VARCHAR"] and is_moment:
        return "TIMESTAMP WITH TIME ZONE" if has_zone else "TIMESTAMP"
    return types.pop() if len(types) == 1 else "VARCHAR"
