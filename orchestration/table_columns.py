"""Columns of PostgreSQL as columns of the warehouse: what is asked of the server, and what becomes of it."""

from collections.abc import Sequence
from typing import Any

import msgspec

from ml.declarations import Source
from orchestration import warehouse
from orchestration.batches import LoadError, Loading, is_taken
from orchestration.shaping import exact_decimal

NUMBERS = ("int2", "int4", "int8", "float4", "float8", "numeric")
TIMES = {"timestamptz": "TIMESTAMPTZ", "timestamp": "TIMESTAMP", "date": "DATE"}
TEXTS = ("text", "varchar", "bpchar", "name", "uuid")
LISTS = ("_int2", "_int4", "_int8", "_float4", "_float8", "_bool", "_text", "_varchar", "_uuid")
# Types that arrive as what they are. Others (enum, inet, range, ...) would be opaque bytes: the server writes them as
# text. So it does numbers of arbitrary precision, which is faster besides, and text that is padded with blanks.
OTHERS = ("bool", "time", "interval", "bytea", "json", "jsonb")
NATIVE = {*NUMBERS, *TIMES, *TEXTS, *LISTS, *OTHERS} - {"numeric", "bpchar"}
# Arrow has no infinity: the driver lets it, and years beyond the warehouse's, overflow to before any time there was.
FIRST_MICROSECOND, FIRST_DAY = -220_000_000_000_000_000, -3_000_000
MINUS_INFINITE_MICROSECOND, MINUS_INFINITE_DAY = -(2**63) + 946_684_800_000_000, -(2**31) + 10_957


class Column(msgspec.Struct, frozen=True):
    """A column of the source: its type there, SQL that asks the server for it, SQL of it as the warehouse has it, and
    the rule that a value breaks if it can't be that."""

    name: str
    kind: str
    asked: str
    stored: str
    rule: str | None = None


def columns_of(loading: Loading, relation: str, cursor: Any) -> list[Column]:
    """The columns as the server describes them, and how each becomes one of the warehouse.

    Exact where it says so: numeric(10, 2) is DECIMAL(10, 2), and one without a precision DOUBLE unless the source's
    owner declares a type. What is declared varchar is asked for as text.
    """
    declared = {
        column: warehouse.canonical_type(loading.connection, kind) for column, kind in loading.source.types.items()
    }
    columns = []
    for field in cursor.adbc_execute_schema(f"select * from {relation}"):
        told_of = {key.decode(): text.decode() for key, text in (field.metadata or {}).items()}
        kind, wanted = told_of["POSTGRESQL:type"], declared.get(field.name)
        name = asked = stored = warehouse.name(field.name)
        rule = None
        if kind not in NATIVE or (wanted == "VARCHAR" and kind != "text"):
            asked = f"{name}::text as {name}"
        if kind == "numeric" and wanted != "VARCHAR":
            stored = wanted or _decimal(int(told_of.get("POSTGRESQL:typmod", -1)))
            rule = f"{field.name} is no {stored.lower()}"
            stored = exact_decimal(name, stored)
        elif kind in ("timestamptz", "timestamp") and wanted != "VARCHAR":
            stored = _finite(f"epoch_us({name})", name, MINUS_INFINITE_MICROSECOND, FIRST_MICROSECOND)
        elif kind == "date" and wanted != "VARCHAR":
            stored = _finite(f"({name} - date '1970-01-01')", name, MINUS_INFINITE_DAY, FIRST_DAY)
        columns.append(Column(field.name, kind, asked, stored, rule))
    return columns


def _decimal(modifier: int) -> str:
    """The type for a numeric of this type modifier, which packs its precision and scale."""
    precision, scale = (modifier - 4) >> 16, (modifier - 4) & 0x7FF
    return f"DECIMAL({precision}, {scale})" if modifier >= 0 and scale <= precision <= 38 else "DOUBLE"


def _finite(number: str, name: str, minus_infinite: int, first: int) -> str:
    infinities = f"when {number} = {minus_infinite} then '-infinity' when {number} < {first} then 'infinity'"
    return f"case {infinities} else {name} end"


def check_columns(source: Source, columns: Sequence[Column], where: str) -> None:
    """Whether cursor and key are columns, and the cursor one that has an order, and times for an overlap."""
    kinds = {column.name: column.kind for column in columns}
    taken = [name for name in kinds if is_taken(name)]
    if taken:
        raise LoadError(
            f"{where}: has the columns {', '.join(taken)}, which are the engine's own; ask for them under another name:"
            " ?query=select ..."
        )
    spelled: dict[str, str] = {}
    for name in kinds:
        if name.lower() in spelled:
            raise LoadError(
                f"{where}: the columns {spelled[name.lower()]} and {name} differ in case alone, which the warehouse"
                " does not tell apart; ask for one of them under another name: ?query=select ..."
            )
        spelled[name.lower()] = name
    for word, named in (("cursor", [source.cursor] if source.cursor else []), ("key", source.key)):
        for column in named:
            if column not in kinds:
                raise LoadError(f"{where}: {word} '{column}' is no column of it (it has: {', '.join(kinds)})")
            if any(one.name == column and one.kind == "numeric" and "as DOUBLE)" in one.stored for one in columns):
                raise LoadError(
                    f"{where}: {word} '{column}' is a numeric without a precision, which a double can't tell apart;"
                    " declare its data_type: decimal(38, 0), with the digits that it has, or varchar"
                )
    if not source.cursor:
        return
    kind = kinds[source.cursor]
    if kind not in (*NUMBERS, *TIMES, *TEXTS):
        raise LoadError(f"{where}: cursor '{source.cursor}' is {kind}, which tells no row newer than another")
    if source.overlap_days and kind not in TIMES:
        raise LoadError(
            f"{where}: overlap is a length of time, but cursor '{source.cursor}' is {kind}; leave it out, or name a"
            " cursor that is a date or timestamp"
        )
