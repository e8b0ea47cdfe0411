"""Tables and queries of PostgreSQL as sources: as they are there, in one snapshot, each row once whatever breaks."""

import json
import os
import re
import secrets
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from datetime import UTC, date, datetime
from decimal import Decimal
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pytest

from ml.declarations import Rule
from orchestration import tables
from orchestration.batches import LoadError
from orchestration.warehouse import Connection, columns, open_warehouse
from tests.conftest import REPOSITORY
from tests.test_loading import load, source

pytestmark = pytest.mark.postgres

SERVER = "postgresql://postgres@127.0.0.1:5432/test"


def run(statement: str, server: str = SERVER) -> list[tuple[Any, ...]]:
    """Executes on a connection of its own, and commits; rows of a query."""
    from adbc_driver_postgresql import dbapi

    with closing(dbapi.connect(server, autocommit=True)) as connection, closing(connection.cursor()) as cursor:
        cursor.execute(statement)
        return list(cursor.fetchall()) if cursor.description else []


@pytest.fixture(scope="module")
def server() -> str:
    import adbc_driver_manager

    try:
        run("select 1")
    except adbc_driver_manager.Error as error:
        pytest.skip(f"no PostgreSQL at {SERVER}: {str(error).splitlines()[0]}")
    return SERVER


@pytest.fixture
def schema(server: str) -> Iterator[str]:
    name = f"shop_{secrets.token_hex(4)}"
    run(f"create schema {name}")
    yield name
    run(f"drop schema {name} cascade")


@pytest.fixture
def warehouse(tmp_path: Path) -> Iterator[Connection]:
    with open_warehouse(tmp_path / "data" / "warehouse.duckdb") as connection:
        yield connection


def table(schema: str, name: str = "orders", **declared: Any) -> Any:
    return source(f"{SERVER}?table={schema}.{name}", **declared)


def rows_of(connection: Connection, *selected: str) -> list[tuple[Any, ...]]:
    return connection.execute(f"select {', '.join(selected)} from landing.orders order by all").fetchall()


def metrics(connection: Connection) -> dict[str, Any]:
    cursor = connection.execute("select * from quality.source_metrics order by loaded_at desc limit 1")
    names = [column[0] for column in cursor.description]
    return dict(zip(names, cursor.fetchall()[0], strict=True))


def make_orders(schema: str, rows: int = 3, width: int = 10) -> None:
    run(
        f"""
        create table {schema}.orders as
        select
            number as order_no, repeat('x', {width}) as note, number::numeric(10, 2) as amount,
            timestamptz '2024-04-01' + number * interval '1 minute' as changed_at
        from generate_series(1, {rows}) as number
        """
    )


def meanwhile(monkeypatch: pytest.MonkeyPatch, act: Callable[[int], None]) -> None:
    """Does something after each batch of Arrow that a load takes from the server, of which there are many."""
    monkeypatch.setattr(tables, "BATCH_BYTES", 64 << 10)
    monkeypatch.setattr(tables, "RETRY_AFTER_SECONDS", (0.01, 0.02, 0.05))
    real = tables.pulled

    def interfered(stream: Any) -> Iterator[Any]:
        for number, batch in enumerate(real(stream)):
            yield batch
            act(number)

    monkeypatch.setattr(tables, "pulled", interfered)


def break_connections(schema: str) -> None:
    """Ends the server's side of the connections that read from a schema."""
    broken = run(
        f"""
        select pg_terminate_backend(pid) from pg_stat_activity
        where query like '%{schema}%' and pid <> pg_backend_pid() and state = 'active'
        """
    )
    assert broken


def test_a_table_lands_with_its_own_types(warehouse: Connection, tmp_path: Path, schema: str) -> None:
    run(f"create type {schema}.state as enum ('new', 'sent')")
    run(f"create domain {schema}.cents as numeric(12, 2)")
    values = {
        "order_no": ("int8", "9007199254740993", 9007199254740993, "BIGINT"),
        "small": ("int2", "-7", -7, "SMALLINT"),
        "amount": ("numeric(12, 2)", "1234567890.12", Decimal("1234567890.12"), "DECIMAL(12,2)"),
        "price": (f"{schema}.cents", "0.10", Decimal("0.10"), "DECIMAL(12,2)"),
        "huge": (
            "numeric(30, 10)",
            "12345678901234567890.1234567891",
            Decimal("12345678901234567890.1234567891"),
            None,
        ),
        "any_number": ("numeric", "'NaN'", "nan", "DOUBLE"),
        "exact": ("numeric", "0.123456789", Decimal("0.123456789"), "DECIMAL(18,9)"),
        "as_text": ("numeric", "1.500", "1.500", "VARCHAR"),
        "wide": ("numeric(50, 2)", "1.25", 1.25, "DOUBLE"),
        "ratio": ("float8", "0.1", 0.1, "DOUBLE"),
        "is_paid": ("bool", "true", True, "BOOLEAN"),
        "at": ("timestamptz", "'2024-03-31 03:00:00.123456+02'", datetime(2024, 3, 31, 1, 0, 0, 123456, UTC), None),
        "local_at": ("timestamp", "'2024-03-31 03:00'", datetime(2024, 3, 31, 3), "TIMESTAMP"),
        "ordered_on": ("date", "'2024-02-29'", date(2024, 2, 29), "DATE"),
        "opens": ("time", "'08:30'", "08:30:00", "TIME"),
        "span": ("interval", "'1 month 2 days 03:00'", "1 month 2 days 03:00:00", "INTERVAL"),
        "id": ("uuid", "'6b1b3c1e-0000-4000-8000-000000000001'", "6b1b3c1e-0000-4000-8000-000000000001", "UUID"),
        "doc": ("jsonb", """'{"b": [1, null], "a": "ü"}'""", '{"a": "ü", "b": [1, null]}', "JSON"),
        "raw_doc": ("json", r"""'{"a":"\u0000"}'""", r'{"a":"\u0000"}', "JSON"),
        "tags": ("text[]", "array['a, b', null, '']", ["a, b", None, ""], "VARCHAR[]"),
        "bytes": ("bytea", r"'\x00ff'", b"\x00\xff", "BLOB"),
        "state": (f"{schema}.state", "'sent'", "sent", "VARCHAR"),
        "address": ("inet", "'10.0.0.1/8'", "10.0.0.1/8", "VARCHAR"),
        "stay": ("daterange", "'[2024-01-01,2024-01-05)'", "[2024-01-01,2024-01-05)", "VARCHAR"),
        "code": ("char(5)", "'ab'", "ab", "VARCHAR"),
        "spans": (
            "timestamptz[]",
            "array['2024-01-01 01:00+01'::timestamptz]",
            '{"2024-01-01 00:00:00+00"}',
            "VARCHAR",
        ),
        "ever": ("timestamptz", "'infinity'", "infinity", "TIMESTAMP WITH TIME ZONE"),
        "never": ("timestamp", "'-infinity'", "-infinity", "TIMESTAMP"),
        "until": ("date", "'infinity'", "infinity", "DATE"),
        "since": ("date", "'-infinity'", "-infinity", "DATE"),
        "far": ("timestamp", "'294276-01-01'", "infinity", "TIMESTAMP"),
        "ancient": ("date", "'0044-03-15 BC'", "0044-03-15 (BC)", "DATE"),
        'a "quoted" näme': ("text", "'it''s'", "it's", "VARCHAR"),
        "unknown": ("inet", "null", None, "VARCHAR"),
        "unknown_at": ("timestamptz", "null", None, "TIMESTAMP WITH TIME ZONE"),
        "unknown_amount": ("numeric(4, 1)", "null", None, "DECIMAL(4,1)"),
    }
    quoted = {name: '"' + name.replace('"', '""') + '"' for name in values}
    run(f"create table {schema}.orders ({', '.join(f'{quoted[name]} {kind[0]}' for name, kind in values.items())})")
    run(f"insert into {schema}.orders values ({', '.join(value[1] for value in values.values())})")
    load(warehouse, table(schema, types={"exact": "decimal(18, 9)", "as_text": "varchar"}), tmp_path)
    held = columns(warehouse, "landing", "orders")
    for name, (_, _, expected, kind) in values.items():
        as_text = isinstance(expected, str)
        ((found,),) = rows_of(warehouse, f"{quoted[name]}{'::varchar' if as_text else ''}")
        assert found == expected, name
        assert kind is None or held[name] == kind, name
    assert rows_of(warehouse, "_source") == [(f"{schema}.orders",)]


def test_a_value_that_its_exact_type_lacks_is_a_bad_row(warehouse: Connection, tmp_path: Path, schema: str) -> None:
    make_orders(schema, 300)
    run(f"alter table {schema}.orders add column bytes bytea default '\\x00ff'")
    run(f"update {schema}.orders set amount = 'NaN' where order_no = 7")
    loaded = load(warehouse, table(schema, key=("order_no",), rules=(Rule("paid", "amount <> 9"),)), tmp_path)
    assert (loaded.rows, loaded.batches[0].rows, loaded.batches[0].bad_rows) == (298, 300, 2)
    found = warehouse.execute("select rule, row from quarantine.orders order by rule").fetchall()
    assert [(rule, json.loads(row)["order_no"], json.loads(row)["amount"]) for rule, row in found] == [
        ("amount is no decimal(10, 2)", 7, "NaN"),
        ("paid", 9, "9.00"),
    ]
    # What comes again is bad again, but nothing new to look at.
    again = load(warehouse, table(schema, key=("order_no",), rules=(Rule("paid", "amount <> 9"),)), tmp_path)
    assert [(batch.bad_rows, batch.set_aside) for batch in (*loaded.batches, *again.batches)] == [(2, 2), (2, 0)]


def test_a_database_of_another_encoding_is_read(warehouse: Connection, tmp_path: Path, server: str) -> None:
    name = f"latin_{secrets.token_hex(4)}"
    run(f"create database {name} encoding 'LATIN1' lc_collate 'C' lc_ctype 'C' template template0")
    try:
        run("create table orders as select 'Z' || chr(252) || 'rich' as town", server.replace("/test", f"/{name}"))
        load(warehouse, source(f"{server.replace('/test', f'/{name}')}?table=orders"), tmp_path)
        assert rows_of(warehouse, "town", "_source") == [("Zürich", "public.orders")]
    finally:
        run(f"drop database {name}")


def test_a_query_lands_what_it_selects(warehouse: Connection, tmp_path: Path, schema: str) -> None:
    make_orders(schema)
    query = f"select order_no, amount, note like 'x%' as is_x from {schema}.orders where order_no > 1; -- all but one"
    for text in (query.replace("; --", " --"), f"select order_no, amount, true as is_x from {schema}.orders;"):
        load(warehouse, source(f"{SERVER}?query={quote(text)}&connect_timeout=5", key=("order_no",)), tmp_path)
    assert rows_of(warehouse, "*")[1][:3] == (2, Decimal("2.00"), True)
    assert len(rows_of(warehouse, "*")) == 3


def test_a_query_can_write_nothing(warehouse: Connection, tmp_path: Path, schema: str) -> None:
    run(f"create sequence {schema}.numbers")
    with pytest.raises(LoadError, match=r"cannot execute nextval\(\) in a read-only transaction"):
        load(warehouse, source(f"{SERVER}?query=select nextval('{schema}.numbers')"), tmp_path)


def test_an_increment_reads_what_is_new_and_what_is_late(warehouse: Connection, tmp_path: Path, schema: str) -> None:
    make_orders(schema, 1000)
    declared = table(schema, cursor="changed_at", key=("order_no",), overlap_days=10 / 1440)
    assert load(warehouse, declared, tmp_path).rows == 1000
    newest = "timestamptz '2024-04-01' + 1000 * interval '1 minute'"
    run(
        f"""
        insert into {schema}.orders values
            (1001, 'new', 1, {newest} + interval '1 hour'),
            (1002, 'late', 1, {newest} - interval '5 minutes'),
            (1003, 'too late', 1, {newest} - interval '5 hours'),
            (1004, 'without a time', 1, null)
        """
    )
    run(f"update {schema}.orders set note = 'changed', changed_at = {newest} + interval '2 hours' where order_no = 5")
    batch = load(warehouse, declared, tmp_path).batches[0]
    # Of the last ten minutes eleven rows are read again.
    assert (batch.rows, batch.landed, batch.repeated, batch.replaced) == (15, 4, 11, 1)
    assert rows_of(warehouse, "count(*)", "count(distinct order_no)") == [(1003, 1003)]
    assert warehouse.execute("select note from landing.orders where order_no = 5").fetchall() == [("changed",)]
    again = load(warehouse, declared, tmp_path)
    assert (again.changed, again.batches[0].rows) == (False, 2)


@pytest.mark.parametrize(
    ("kind", "first", "later", "overlap"),
    [
        ("date", "'2024-04-01', '2024-04-02', 'infinity'", "'2024-04-02', '2024-04-03'", 0.5),
        ("timestamp", "'2024-04-01 10:00:00.000001', 'infinity'", "'2024-04-01 10:00:00.000001', '2024-04-02'", 0),
        ("int8", "1, 9007199254740992", "9007199254740992, 9007199254740993", 0),
        ("numeric(20, 4)", "1, 1.0001", "1.0001, 1.0002", 0),
        ('text collate "en_US.utf8"', "'A', 'B', 'it''s'", "'j', 'é'", 0),
        ("uuid", "'10000000-0000-4000-8000-000000000001'", "'f0000000-0000-4000-8000-000000000001'", 0),
    ],
    ids=["date", "timestamp", "integer", "decimal", "text", "uuid"],
)
def test_a_cursor_may_be_of_each_type_that_has_an_order(
    warehouse: Connection, tmp_path: Path, schema: str, kind: str, first: str, later: str, overlap: float
) -> None:
    if "en_US" in kind and not run("select 1 from pg_collation where collname = 'en_US.utf8'"):
        kind = "text"
    run(f"create table {schema}.orders (order_no serial, mark {kind})")
    run(f"insert into {schema}.orders (mark) select unnest(array[{first}]::{kind.partition(' collate')[0]}[])")
    declared = table(schema, cursor="mark", key=("order_no",), overlap_days=overlap)
    load(warehouse, declared, tmp_path)
    run(f"insert into {schema}.orders (mark) select unnest(array[{later}]::{kind.partition(' collate')[0]}[])")
    loaded = load(warehouse, declared, tmp_path)
    assert loaded.batches[0].landed == len(later.split(","))
    assert loaded.rows == run(f"select count(*) from {schema}.orders")[0][0]


@pytest.mark.parametrize("word", ["key", "cursor"])
def test_a_key_or_cursor_that_a_double_would_blur_is_refused(
    warehouse: Connection, tmp_path: Path, schema: str, word: str
) -> None:
    run(f"create table {schema}.orders (order_no numeric, mark numeric(10, 0))")
    run(f"insert into {schema}.orders values (9007199254740992, 1), (9007199254740993, 2)")
    declared = {"key": {"key": ("order_no",)}, "cursor": {"key": ("mark",), "cursor": "order_no"}}[word]
    with pytest.raises(LoadError, match=f"{word} 'order_no' is a numeric without a precision"):
        load(warehouse, table(schema, **declared), tmp_path)
    exact = table(schema, types={"order_no": "decimal(38, 0)"}, **declared)
    assert load(warehouse, exact, tmp_path).rows == 2


def test_a_changed_declaration_reads_the_whole_table_again(warehouse: Connection, tmp_path: Path, schema: str) -> None:
    make_orders(schema)
    run(f"alter table {schema}.orders alter column amount type numeric")
    run(f"update {schema}.orders set amount = 0.1 + 1e-17")
    load(warehouse, table(schema, cursor="changed_at", key=("order_no",)), tmp_path)
    exact = table(schema, cursor="changed_at", key=("order_no",), types={"amount": "decimal(20, 17)"})
    assert load(warehouse, exact, tmp_path).batches[0].rows == 3
    assert rows_of(warehouse, "distinct amount") == [(Decimal("0.10000000000000001"),)]
    assert load(warehouse, exact, tmp_path).batches[0].rows == 1


def test_a_column_that_is_new_at_the_source_is_added(warehouse: Connection, tmp_path: Path, schema: str) -> None:
    make_orders(schema)
    declared = table(schema, cursor="changed_at", key=("order_no",))
    load(warehouse, declared, tmp_path)
    run(f"alter table {schema}.orders add column channel text default 'web'")
    assert load(warehouse, declared, tmp_path).batches[0].added_columns == ("channel",)
    run(f"alter table {schema}.orders drop column note")
    with pytest.raises(LoadError, match=r"lacks the columns note; the table stays as it was"):
        load(warehouse, declared, tmp_path)


def test_rows_of_a_key_that_have_not_changed_are_repeated(warehouse: Connection, tmp_path: Path, schema: str) -> None:
    make_orders(schema)
    load(warehouse, table(schema, key=("order_no",)), tmp_path)
    run(f"update {schema}.orders set note = 'changed' where order_no = 2")
    batch = load(warehouse, table(schema, key=("order_no",)), tmp_path).batches[0]
    assert (batch.rows, batch.repeated, batch.replaced, batch.landed) == (3, 2, 1, 1)


def test_a_table_without_a_key_is_replaced_when_its_content_is_another(
    warehouse: Connection, tmp_path: Path, schema: str
) -> None:
    make_orders(schema)
    run(f"insert into {schema}.orders select * from {schema}.orders where order_no = 1")
    load(warehouse, table(schema), tmp_path)
    assert rows_of(warehouse, "order_no") == [(1,), (1,), (2,), (3,)]
    assert load(warehouse, table(schema), tmp_path).batches == []
    run(f"delete from {schema}.orders where order_no = 1")
    assert load(warehouse, table(schema), tmp_path).changed
    assert rows_of(warehouse, "order_no") == [(2,), (3,)]
    run(f"truncate {schema}.orders")
    with pytest.raises(LoadError, match=r"gives no rows any more; the table stays as it was.*delete from"):
        load(warehouse, table(schema), tmp_path)
    assert len(rows_of(warehouse, "order_no")) == 2


def test_an_empty_table_lands_as_an_empty_table(warehouse: Connection, tmp_path: Path, schema: str) -> None:
    make_orders(schema, 0)
    declared = table(schema, cursor="changed_at", key=("order_no",), sweep=True)
    assert load(warehouse, declared, tmp_path).rows == 0
    assert load(warehouse, declared, tmp_path).rows == 0
    assert columns(warehouse, "landing", "orders")["amount"] == "DECIMAL(10,2)"


@pytest.mark.parametrize("cursor", ["changed_at", None])
def test_a_sweep_deletes_what_the_source_no_longer_has(
    warehouse: Connection, tmp_path: Path, schema: str, cursor: str | None
) -> None:
    make_orders(schema, 100)
    declared = table(schema, cursor=cursor, key=("order_no", "note"), sweep=True)
    assert load(warehouse, declared, tmp_path).batches[0].deleted == 0
    run(f"delete from {schema}.orders where order_no in (3, 100)")
    run(f"update {schema}.orders set note = 'renamed', changed_at = '2024-05-01' where order_no = 4")
    loaded = load(warehouse, declared, tmp_path)
    assert (loaded.rows, loaded.batches[0].deleted, metrics(warehouse)["deleted"]) == (98, 3, 3)
    assert loaded.changed
    assert rows_of(warehouse, "*")[2][:2] == (4, "renamed")
    run(f"delete from {schema}.orders where order_no = 50")
    only_deleted = load(warehouse, declared, tmp_path)
    assert (only_deleted.rows, only_deleted.changed) == (97, True)
    assert not load(warehouse, declared, tmp_path).changed
    run(f"delete from {schema}.orders")
    with pytest.raises(LoadError, match="gives no rows any more"):
        load(warehouse, declared, tmp_path)
    assert len(rows_of(warehouse, "*")) == 97


def test_without_a_sweep_deleted_rows_stay(warehouse: Connection, tmp_path: Path, schema: str) -> None:
    make_orders(schema)
    declared = table(schema, cursor="changed_at", key=("order_no",))
    load(warehouse, declared, tmp_path)
    run(f"delete from {schema}.orders")
    assert load(warehouse, declared, tmp_path).rows == 3


@pytest.mark.parametrize(
    ("address", "declared", "told"),
    [
        ("postgresql://nobody:${{PASSWORD}}@127.0.0.1:1/test?table=t", {}, "can't be reached: .*Connection refused"),
        ("postgresql://nobody:${{PASSWORD}}@127.0.0.1:5432/test?table=t", {}, 'role "nobody" does not exist'),
        ("postgresql://x:${{PASSWORD}}@127.0.0.1:5432/no_such_db?table=t", {}, "can't be reached"),
        ("postgresql://x:${{PASSWORD}}@127.0.0.1:5432/test?table=t&no_such=1", {}, "invalid URI query parameter"),
        ("postgresql://x:${{PASSWORD}}@127.0.0.1:port/test?table=t", {}, "invalid integer value"),
        ("{SERVER}", {}, r"write either \?table"),
        ("{SERVER}?table=a&query=select 1", {}, r"write either \?table"),
        ("{SERVER}?table={schema}.ordes", {}, r"there is no table shop_\w+\.ordes.*there is: shop_\w+\.orders"),
        ("{SERVER}?query=select no_such from {schema}.orders", {}, 'column "no_such" does not exist'),
        ("{SERVER}?query=selec", {}, "syntax error"),
        ("{SERVER}?query=select 1 / (order_no - 2) from {schema}.orders", {}, "division by zero; the table stays"),
        ("{SERVER}?table={schema}.orders", {"cursor": "at", "key": ("order_no",)}, "cursor 'at' is no column of it"),
        ("{SERVER}?table={schema}.orders", {"key": ("no",)}, r"key 'no' is no column of it \(it has: order_no, note"),
        (
            "{SERVER}?table={schema}.orders",
            {"cursor": "order_no", "key": ("order_no",), "overlap_days": 1.0},
            "overlap is a length of time, but cursor 'order_no' is int4",
        ),
        ("postgresql://postgres:written@127.0.0.1/test?table=t", {}, "a password is written in it; put it into"),
    ],
)
def test_a_source_that_can_not_be_read_is_told_once_and_without_its_password(
    warehouse: Connection,
    tmp_path: Path,
    schema: str,
    monkeypatch: pytest.MonkeyPatch,
    address: str,
    declared: dict[str, Any],
    told: str,
) -> None:
    make_orders(schema)
    monkeypatch.setenv("PASSWORD", "ge/he@im%")
    with pytest.raises(LoadError, match=told) as raised:
        load(warehouse, source(address.format(SERVER=SERVER, schema=schema), **declared), tmp_path)
    assert str(raised.value).startswith("project/models/sources.yml: source 'landing.orders': load: from postgresql://")
    assert not re.search(r"ge/he|ge%2Fhe|written@|\$\{PASSWORD", str(raised.value))
    assert len(str(raised.value).splitlines()) == 1


def test_a_password_may_have_any_letters(
    warehouse: Connection, tmp_path: Path, schema: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    make_orders(schema)
    password = "a:b/c@d%41 ?&=#+ü"
    monkeypatch.setenv("SHOP_PASSWORD", password)
    declared = source(f"postgresql://postgres:${{SHOP_PASSWORD}}@127.0.0.1:5432/test?table={schema}.orders")
    assert load(warehouse, declared, tmp_path).rows == 3
    address = tables._address(declared)
    assert address.uri == f"postgresql://postgres:{quote(password, safe=':,')}@127.0.0.1:5432/test?"


def test_what_is_read_is_of_one_moment(
    warehouse: Connection, tmp_path: Path, schema: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    make_orders(schema, 100_000, width=200)

    def act(number: int) -> None:
        if number == 3:
            run(f"update {schema}.orders set note = 'changed', changed_at = now() where order_no % 2 = 0")
            run(f"delete from {schema}.orders where order_no > 99000")
            run(f"insert into {schema}.orders values (100001, 'new', 1, '2024-04-01')")

    declared = table(schema, cursor="changed_at", key=("order_no",), sweep=True)
    meanwhile(monkeypatch, act)
    assert load(warehouse, declared, tmp_path).rows == 100_000
    assert rows_of(warehouse, "count(*)") == [(100_000,)]
    assert rows_of(warehouse, "count(*) filter (note = 'changed')") == [(0,)]
    monkeypatch.undo()
    # The row that came late and is older than the newest is beyond an increment without overlap.
    batch = load(warehouse, declared, tmp_path).batches[0]
    assert (batch.replaced, batch.deleted) == (49_500, 1000)


def test_a_broken_connection_is_read_again_and_nothing_is_lost_or_doubled(
    warehouse: Connection, tmp_path: Path, schema: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    make_orders(schema, 200_000, width=200)
    breaks: list[int] = []

    def act(number: int) -> None:
        if number == 3 and len(breaks) < 2:
            breaks.append(number)
            break_connections(schema)

    meanwhile(monkeypatch, act)
    loaded = load(warehouse, table(schema, cursor="changed_at", key=("order_no",)), tmp_path)
    assert len(breaks) == 2
    assert [note.partition(":")[0] for note in loaded.notes] == ["read again from postgresql"] * 2
    assert len(loaded.batches) == 1
    assert rows_of(warehouse, "count(*)", "count(distinct order_no)") == [(200_000, 200_000)]


def test_a_connection_that_breaks_each_time_is_told_and_the_next_load_goes_on(
    warehouse: Connection, tmp_path: Path, schema: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    make_orders(schema, 1000, width=200)
    declared = table(schema, cursor="changed_at", key=("order_no",))
    load(warehouse, declared, tmp_path)
    run(
        f"insert into {schema}.orders select number, repeat('y', 200), 1, timestamptz '2024-05-01'"
        " from generate_series(1001, 200000) as number"
    )
    meanwhile(monkeypatch, lambda number: break_connections(schema) if number == 3 else None)
    with pytest.raises(LoadError, match=r"the connection broke 4 times \(.*\); the table stays as it was; run again"):
        load(warehouse, declared, tmp_path)
    assert rows_of(warehouse, "count(*)") == [(1000,)]
    monkeypatch.undo()
    assert load(warehouse, declared, tmp_path).rows == 200_000
    assert rows_of(warehouse, "count(distinct order_no)") == [(200_000,)]


LOADER = """
import sys, time
from pathlib import Path
from orchestration import tables
from orchestration.warehouse import open_warehouse
from tests.test_loading import load, source
project, uri, stops = Path(sys.argv[1]), sys.argv[2], sys.argv[3] == "stops"
real = tables.pulled
def pulled(stream):
    for number, batch in enumerate(real(stream)):
        yield batch
        if number == 3:
            print("streaming", flush=True)
            if stops:
                time.sleep(600)
tables.BATCH_BYTES, tables.pulled = 64 << 10, pulled
with open_warehouse(project / "data" / "warehouse.duckdb") as connection:
    load(connection, source(uri, key=("order_no",), cursor="changed_at"), project)
"""


@pytest.mark.parametrize("seconds", [None, 0.1, 0.4, 0.7, 1.0])
def test_a_killed_load_is_completed_by_the_next_with_each_row_once(
    tmp_path: Path, schema: str, seconds: float | None
) -> None:
    make_orders(schema, 300_000, width=200)
    declared = table(schema, cursor="changed_at", key=("order_no",))
    with subprocess.Popen(
        [sys.executable, "-c", LOADER, str(tmp_path), declared.uri, "goes on" if seconds else "stops"],
        cwd=REPOSITORY,
        stdout=subprocess.PIPE,
        text=True,
    ) as loader:
        assert loader.stdout is not None and loader.stdout.readline() == "streaming\n"
        time.sleep(seconds or 0)
        loader.send_signal(signal.SIGKILL)
    run(f"insert into {schema}.orders values (300001, 'new', 1, now())")
    with open_warehouse(tmp_path / "data" / "warehouse.duckdb") as connection:
        assert load(connection, declared, tmp_path).rows == 300_001
        assert rows_of(connection, "count(distinct order_no)", "count(*)") == [(300_001, 300_001)]


PEAK = """
import sys
from pathlib import Path
from orchestration.warehouse import open_warehouse
from tests.test_loading import load, source
project = Path(sys.argv[1])
with open_warehouse(project / "data" / "warehouse.duckdb") as connection:
    load(connection, source(sys.argv[2], key=("order_no",)), project)
print("peak", next(line.split()[1] for line in open("/proc/self/status") if line.startswith("VmHWM")))
"""


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="peak memory is read from /proc")
def test_a_table_larger_than_the_memory_is_streamed(tmp_path: Path, schema: str) -> None:
    peaks = []
    for number, rows in enumerate((1, 300_000)):
        run(f"drop table if exists {schema}.orders")
        make_orders(schema, 0)
        # Texts that the server keeps small, but sends, and the warehouse has, at their length: 600 MB.
        run(f"insert into {schema}.orders select n, repeat(md5(n::text), 62) from generate_series(1, {rows}) as n")
        project = tmp_path / str(number)
        loader = subprocess.run(
            [sys.executable, "-c", PEAK, str(project), table(schema).uri],
            cwd=REPOSITORY,
            env={**os.environ, "SCOREHOUSE_MEMORY_LIMIT": "200MB"},
            capture_output=True,
            text=True,
            check=False,
        )
        assert loader.returncode == 0, loader.stderr
        peaks.append(int(loader.stdout.split()[-1]) / 1024)
    assert peaks[1] - peaks[0] < 450


def test_columns_that_differ_in_case_alone_and_the_engines_own_are_refused(
    warehouse: Connection, tmp_path: Path, schema: str
) -> None:
    run(f'create table {schema}.orders as select 4 as "Id", 5 as "id"')
    with pytest.raises(LoadError, match="the columns Id and id differ in case alone"):
        load(warehouse, table(schema), tmp_path)
    run(f"create table {schema}.ruled as select 4 as order_no, 'x' as _rule, true as _broken_0")
    with pytest.raises(LoadError, match="has the columns _rule, _broken_0, which are the engine's own"):
        load(warehouse, table(schema, "ruled"), tmp_path)


def test_a_cursor_of_the_future_hides_nothing_that_comes_until_then(
    warehouse: Connection, tmp_path: Path, schema: str
) -> None:
    make_orders(schema, 3)
    run(f"update {schema}.orders set changed_at = '9999-12-31' where order_no = 2")
    declared = table(schema, key=("order_no",), cursor="changed_at")
    load(warehouse, declared, tmp_path)
    run(f"insert into {schema}.orders values (4, 'new', 4, now())")
    load(warehouse, declared, tmp_path)
    assert rows_of(warehouse, "order_no") == [(1,), (2,), (3,), (4,)]


def test_a_numeric_that_its_declared_type_would_round_is_a_bad_row(
    warehouse: Connection, tmp_path: Path, schema: str
) -> None:
    run(f"create table {schema}.orders as select 1 as order_no, 1.239::numeric as amount union all select 2, 1.20")
    declared = table(schema, types={"amount": "decimal(10, 2)"}, max_rejected=0.5)
    load(warehouse, declared, tmp_path)
    assert rows_of(warehouse, "order_no", "amount::varchar") == [(2, "1.20")]


def test_a_sweep_tells_of_rows_that_came_with_a_cursor_beyond_the_overlap(
    warehouse: Connection, tmp_path: Path, schema: str
) -> None:
    make_orders(schema, 3)
    declared = table(schema, key=("order_no",), cursor="changed_at", sweep=True)
    load(warehouse, declared, tmp_path)
    run(f"insert into {schema}.orders values (9, 'late', 9, '2020-01-01')")
    assert load(warehouse, declared, tmp_path).batches[-1].not_here == 1
