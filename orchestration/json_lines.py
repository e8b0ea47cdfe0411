"""Lines of JSON objects as rows: whatever brought them, a file, a stream or a page of an API."""

from collections.abc import Mapping

import msgspec

from orchestration import warehouse
from orchestration.batches import is_own
from orchestration.warehouse import Connection

TYPES = {"UBIGINT": "BIGINT", "BIGINT": "BIGINT", "DOUBLE": "DOUBLE", "BOOLEAN": "BOOLEAN"}
DATE, MOMENT = r"\d{4}-\d{2}-\d{2}", r"\d{4}-\d{2}-\d{2}[T ]\d{2}:\d{2}(:\d{2}(\.\d+)?)?"
ZONE = r"(Z|[+-]\d{2}:?\d{2})"

SAMPLED = 20_000  # lines from which types are told; what has another type later is a bad row, unless one is declared
# To the warehouse, keys that differ in case alone are one column.
KEYS = """
    with keys as (select distinct unnest(keys) as key from (select distinct json_keys(line) as keys from temp.objects))
    select key, lower(key) as folded from keys where key <> '' order by key
"""
TYPED = """
    with keys as (select line, unnest(json_keys(line)) as key from ({lines})),
    pointed as (select line, key, '/' || replace(replace(key, '~', '~0'), '/', '~1') as pointer from keys),
    typed as (
        select key, json_type(line, pointer) as kind, json_extract_string(line, pointer) as value
        from pointed where key <> ''
    )
    select
        lower(key) as folded,
        list(distinct kind) filter (kind <> 'NULL') as kinds,
        bool_and(regexp_full_match(value, $date)) filter (kind = 'VARCHAR') as is_date,
        bool_and(regexp_full_match(value, $moment || $zone || '?')) filter (kind = 'VARCHAR') as is_moment,
        bool_or(regexp_full_match(value, $moment || $zone)) filter (kind = 'VARCHAR') as has_zone
    from typed group by folded
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
    keys = connection.execute(KEYS).fetchall()
    seen = _types(connection, f"select line from temp.objects limit {SAMPLED}")
    called = {column.lower(): column for column in wanted or {}}  # as it is held, or as the first of its keys
    spelled: dict[str, list[str]] = {}
    sniffed: dict[str, str] = {}
    for key, folded in keys:
        if folded not in seen:  # in none of the first rows
            has_key = f"list_contains(json_keys(line), {warehouse.literal(key)})"
            seen |= _types(connection, f"select line from temp.objects where {has_key} limit {SAMPLED}")
        column = called.setdefault(folded, key)
        spelled.setdefault(column, []).append(key)
        sniffed[column] = seen.get(folded, "VARCHAR")
    exact = {
        column: kind for column, kind in (wanted or {}).items() if kind.upper().startswith("DEC") and column in sniffed
    }
    # A structure can't have keys that differ in case alone: it has the first, and the others are asked for one by one.
    texts = _structure({first: "VARCHAR" for first, *_ in spelled.values()})
    exacts = _structure({spelled[column][0]: kind for column, kind in exact.items()})
    columns = ", ".join(
        f"coalesce({', '.join(_values(keys, column in exact))}) as {warehouse.name(column)}"
        for column, keys in spelled.items()
    )
    held = [warehouse.name(column) for column in wanted or {} if not is_own(column)]
    # Of lines without any key the columns are all absent: they have no column of their own.
    nothing = ", ".join(f"null::varchar as {column}" for column in held) or "line"
    connection.execute(
        f"""
        create or replace temp table staged as
        select {columns or nothing} from (
            select line, json_transform(line, {texts}) as texts, json_transform(line, {exacts}) as exact
            from temp.objects
        )
        """
    )
    connection.execute("drop table temp.objects")
    return Rows(
        relation="temp.staged",
        sniffed=sniffed,
        unreadable=f"""
            select 'is no JSON object' as rule, line as row from {lines}
            where line is not null and trim(line) <> '' and coalesce(json_type(try_cast(line as json)), '') <> 'OBJECT'
        """,
    )


def _values(keys: list[str], is_exact: bool) -> list[str]:
    """SQL of a column's value under each of its keys."""
    first = warehouse.name(keys[0])
    exact = [f"exact.{first}::varchar"] if is_exact else []
    pointers = ["/" + key.replace("~", "~0").replace("/", "~1") for key in keys[1:]]
    others = [f"json_extract_string(line, {warehouse.literal(pointer)})" for pointer in pointers]
    return [*exact, f"texts.{first}", *others]


def _types(connection: Connection, lines: str) -> dict[str, str]:
    """Key in lower case -> the type that its values in these lines seem to have."""
    found = connection.execute(TYPED.format(lines=lines), {"date": DATE, "moment": MOMENT, "zone": ZONE}).fetchall()
    return {folded: _type(kinds or [], *looks) for folded, kinds, *looks in found}


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
