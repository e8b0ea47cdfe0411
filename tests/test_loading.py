"""Raw tables from files: typed as declared, loaded once per change, and never half or worse than before."""

import gzip
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import duckdb
import pytest

from ml.declarations import Source
from orchestration.batches import LoadError
from orchestration.loading import Loaded
from orchestration.loading import load as load_source
from orchestration.project import Paths
from orchestration.warehouse import Connection, WarehouseError, columns, open_warehouse


def source(uri: str, **declared: Any) -> Source:
    return Source(
        **{
            "id": "source.shop.raw.orders",
            "schema": "landing",
            "table": "orders",
            "description": "",
            "uri": uri,
            "cursor": None,
            "key": (),
            "columns": {},
            "types": {},
            "file": "project/models/sources.yml",
            **declared,
        }
    )


@pytest.fixture
def warehouse(tmp_path: Path) -> Iterator[Connection]:
    with open_warehouse(tmp_path / "data" / "warehouse.duckdb") as connection:
        yield connection


CLOCK = datetime(2024, 5, 1, 6, tzinfo=UTC)


def load(connection: Connection, declared: Source, project: Path, clock: datetime = CLOCK) -> Loaded:
    return load_source(connection, declared, Paths(project=project, data=project / "data"), clock)


def orders(connection: Connection) -> list[tuple[Any, ...]]:
    return connection.execute("select * exclude (_loaded_at, _batch_id) from landing.orders order by all").fetchall()


def test_a_text_of_digits_keeps_its_leading_zeros_if_declared_as_text(warehouse: Connection, tmp_path: Path) -> None:
    (tmp_path / "orders.csv").write_text("order_no,zip,amount\n1,00501,2.50\n2,99950,3\n")
    declared = source("orders.csv", types={"zip": "varchar", "amount": "decimal(10, 2)"})
    assert load(warehouse, declared, tmp_path).rows == 2
    assert [(row[1], str(row[2])) for row in orders(warehouse)] == [("00501", "2.50"), ("99950", "3.00")]


def test_all_files_of_a_glob_are_one_table_and_each_row_names_its_file(warehouse: Connection, tmp_path: Path) -> None:
    with gzip.open(tmp_path / "orders-1.jsonl.gz", "wt") as file:
        file.write('{"order_no": 1, "shop": "Zürich"}\n')
    (tmp_path / "orders-2.jsonl").write_text('{"order_no": 2}\n')
    load(warehouse, source("orders-*"), tmp_path)
    assert orders(warehouse) == [(1, "Zürich", "orders-1.jsonl.gz"), (2, None, "orders-2.jsonl")]


def test_a_table_is_loaded_again_only_when_its_files_have_changed(warehouse: Connection, tmp_path: Path) -> None:
    file = tmp_path / "orders.csv"
    file.write_text("order_no\n1\n")
    assert load(warehouse, source("orders.csv"), tmp_path).changed
    assert not load(warehouse, source("orders.csv"), tmp_path).changed
    file.write_text("order_no\n1\n2\n")
    again = load(warehouse, source("orders.csv"), tmp_path)
    assert (again.changed, again.rows) == (True, 2)
    ledger = warehouse.execute("select rows from quality.source_metrics order by loaded_at").fetchall()
    assert ledger == [(1,), (2,)]


def test_a_table_whose_declaration_has_changed_is_loaded_again(warehouse: Connection, tmp_path: Path) -> None:
    (tmp_path / "orders.csv").write_text("order_no,zip\n1,00501\n")
    load(warehouse, source("orders.csv"), tmp_path)
    assert load(warehouse, source("orders.csv", types={"zip": "varchar"}), tmp_path).changed
    assert orders(warehouse)[0][1] == "00501"
    assert load(warehouse, source("orders.csv", columns={"order_no": "The number"}), tmp_path).changed
    assert not load(warehouse, source("orders.csv", columns={"order_no": "Its number"}), tmp_path).changed


def test_a_typed_key_that_no_json_row_has_is_null(warehouse: Connection, tmp_path: Path) -> None:
    (tmp_path / "orders.jsonl").write_text('{"order_no": 1}\n')
    declared = {"order_no": "", "returned_on": ""}
    with pytest.raises(LoadError, match=r"orders\.jsonl lacks the columns returned_on"):
        load(warehouse, source("orders.jsonl", columns=declared), tmp_path)
    load(warehouse, source("orders.jsonl", columns=declared, types={"returned_on": "date"}), tmp_path)
    assert columns(warehouse, "landing", "orders")["returned_on"] == "DATE"
    assert orders(warehouse) == [(1, None, "orders.jsonl")]


def test_the_columns_that_the_engine_adds_may_be_described(warehouse: Connection, tmp_path: Path) -> None:
    (tmp_path / "orders.csv").write_text("order_no\n1\n")
    described = {"_loaded_at": "timestamp with time zone", "order_no": "integer"}
    assert (
        load(warehouse, source("orders.csv", columns=dict.fromkeys(described, ""), types=described), tmp_path).rows == 1
    )


def test_a_line_with_too_many_fields_is_a_bad_row(warehouse: Connection, tmp_path: Path) -> None:
    rows = "".join(f"{number},a,b\n" for number in range(20))
    (tmp_path / "orders.csv").write_text(f"order_no,x,y\n{rows}20,a,b,extra,extra\n{rows}")
    with pytest.raises(LoadError, match=r"1 of 41 rows .* \(too many columns: 1\)[^|]*20,a,b,extra,extra"):
        load(warehouse, source("orders.csv", columns={"order_no": "", "x": "", "y": ""}), tmp_path)


@pytest.mark.parametrize(
    ("changed", "declared", "told"),
    [
        (
            "order_no,amount\n1,ten\n",
            {"types": {"amount": "double"}},
            'amount is no double: {"order_no":"1","amount":"ten"}',
        ),
        ("order_no\n1\n", {"columns": {"order_no": "", "amount": ""}}, "lacks the columns amount"),
        ("", {}, "orders.csv has no content"),
    ],
    ids=["a retyped column", "a missing column", "an empty file"],
)
def test_files_that_are_not_as_declared_leave_the_table_as_it_was(
    warehouse: Connection, tmp_path: Path, changed: str, declared: dict[str, Any], told: str
) -> None:
    file = tmp_path / "orders.csv"
    file.write_text("order_no,amount\n1,2.5\n")
    load(warehouse, source("orders.csv"), tmp_path)
    before = orders(warehouse)
    file.write_text(changed)
    os.utime(file, (0, 0))  # nobody writes to it
    with pytest.raises(LoadError, match=re.escape("project/models/sources.yml: source 'landing.orders'")) as raised:
        load(warehouse, source("orders.csv", **declared), tmp_path)
    assert told in str(raised.value) and "stays as it was" in str(raised.value)
    assert orders(warehouse) == before


@pytest.mark.parametrize(
    ("uri", "told"),
    [
        ("nothing-*.csv", "no such file"),
        ("package://no_such_package/data.csv", "no installed package 'no_such_package'"),
        ("package://pytest/nothing.csv", "no such file"),
        ("orders.xlsx", "files end in .xlsx; one kind of .parquet, .csv, .jsonl, .json can be read"),
        ("orders.*", "files end in .csv, .xlsx"),
    ],
)
def test_a_source_that_leads_nowhere_is_told(warehouse: Connection, tmp_path: Path, uri: str, told: str) -> None:
    (tmp_path / "orders.xlsx").touch()
    (tmp_path / "orders.csv").write_text("order_no\n1\n")
    with pytest.raises(LoadError) as raised:
        load(warehouse, source(uri), tmp_path)
    assert told in str(raised.value)


def test_a_file_with_a_quote_in_its_name_is_loaded(warehouse: Connection, tmp_path: Path) -> None:
    (tmp_path / "o'rders.csv").write_text("order_no\n1\n")
    load(warehouse, source("o'rders.csv"), tmp_path)
    assert orders(warehouse) == [(1, "o'rders.csv")]


def test_a_warehouse_that_another_program_has_open_is_told(tmp_path: Path) -> None:
    file = tmp_path / "warehouse.duckdb"
    duckdb.connect(str(file)).close()
    code = "import duckdb, sys; held = duckdb.connect(sys.argv[1]); print('open', flush=True); sys.stdin.read()"
    with subprocess.Popen(
        [sys.executable, "-c", code, str(file)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as other:
        assert other.stdout is not None and other.stdout.readline() == "open\n"
        with pytest.raises(WarehouseError, match="another program has it open; close it") as raised:
            open_warehouse(file).__enter__()
        assert str(file) in str(raised.value)
        other.communicate("")


def test_a_file_that_is_no_database_is_told_and_stays(tmp_path: Path) -> None:
    file = tmp_path / "warehouse.duckdb"
    file.write_text("not a database, but somebody's notes" * 1000)
    with pytest.raises(WarehouseError, match=re.escape(str(file))):
        open_warehouse(file).__enter__()
    assert file.read_text().startswith("not a database")
