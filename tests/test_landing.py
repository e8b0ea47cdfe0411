"""Batches of rows as they land: good ones once, bad ones in quarantine with the reason, or nothing at all."""

import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from datetime import UTC, date, datetime
from pathlib import Path
from typing import Any

import duckdb
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from ml.declarations import Rule
from orchestration.batches import LoadError
from orchestration.warehouse import Connection, columns, content_hash, open_warehouse
from tests.conftest import REPOSITORY
from tests.test_loading import CLOCK, load, source

WHOLE = (0, 0)  # a time of change long ago: nobody writes to the file


@pytest.fixture
def warehouse(tmp_path: Path) -> Iterator[Connection]:
    with open_warehouse(tmp_path / "data" / "warehouse.duckdb") as connection:
        yield connection


def rows_of(connection: Connection, *selected: str) -> list[tuple[Any, ...]]:
    return connection.execute(f"select {', '.join(selected)} from landing.orders order by all").fetchall()


def quarantined(connection: Connection) -> list[tuple[str, dict[str, Any]]]:
    found = connection.execute("select rule, row from quarantine.orders order by all").fetchall()
    return [(rule, json.loads(row)) for rule, row in found]


def metrics(connection: Connection) -> dict[str, Any]:
    cursor = connection.execute("select * from quality.source_metrics order by loaded_at desc limit 1")
    names = [column[0] for column in cursor.description]
    return dict(zip(names, cursor.fetchall()[0], strict=True))


def lines(*rows: dict[str, Any]) -> str:
    return "".join(json.dumps(row) + "\n" for row in rows)


def test_a_row_that_breaks_a_rule_is_set_aside_as_it_came_and_the_others_land(
    warehouse: Connection, tmp_path: Path
) -> None:
    good = "".join(f"{number},{number}.5,2024-01-01\n" for number in range(400))
    (tmp_path / "orders.csv").write_text(
        f"order_no,amount,ordered_on\n{good}400,ten,2024-01-01\n401,-3,2024-01-01\n,1,x\n"
    )
    declared = source(
        "orders.csv",
        types={"order_no": "integer", "amount": "decimal(10, 2)", "ordered_on": "date"},
        rules=(Rule("order_no is null", "order_no is not null"), Rule("amount fails amount >= 0", "amount >= 0")),
    )
    loaded = load(warehouse, declared, tmp_path)
    assert (loaded.rows, loaded.batches[0].rows) == (400, 403)
    assert quarantined(warehouse) == [
        ("amount fails amount >= 0", {"order_no": "401", "amount": "-3", "ordered_on": "2024-01-01"}),
        ("amount is no decimal(10, 2)", {"order_no": "400", "amount": "ten", "ordered_on": "2024-01-01"}),
        ("ordered_on is no date; order_no is null", {"order_no": None, "amount": "1", "ordered_on": "x"}),
    ]
    recorded = metrics(warehouse)
    assert (recorded["rows"], recorded["landed"], recorded["rejected"]) == (403, 400, 3)
    assert json.loads(recorded["rejected_by_rule"])["order_no is null"] == 1


def test_more_bad_rows_than_allowed_land_nothing_and_are_told(warehouse: Connection, tmp_path: Path) -> None:
    file = tmp_path / "orders.csv"
    file.write_text("order_no\n1\n")
    declared = source("orders.csv", types={"order_no": "integer"})
    load(warehouse, declared, tmp_path)
    file.write_text("order_no\n1\n2\nthree\n")
    with pytest.raises(
        LoadError, match=r"1 of 3 rows of orders\.csv are bad, more than the 1\.00% .*order_no is no integer: 1"
    ):
        load(warehouse, declared, tmp_path)
    assert rows_of(warehouse, "order_no") == [(1,)]
    assert quarantined(warehouse) == []
    assert (metrics(warehouse)["status"], metrics(warehouse)["landed"]) == ("failed", None)
    tolerant = source("orders.csv", types={"order_no": "integer"}, max_rejected=0.5)
    assert load(warehouse, tolerant, tmp_path).rows == 2


def test_a_repaired_row_is_admitted_by_the_next_load_and_a_bad_repair_goes_back(
    warehouse: Connection, tmp_path: Path
) -> None:
    (tmp_path / "orders.csv").write_text("order_no,amount\n1,1\n2,two\n3,three\n")
    declared = source(
        "orders.csv", types={"order_no": "integer", "amount": "integer"}, key=("order_no",), max_rejected=1
    )
    load(warehouse, declared, tmp_path)
    warehouse.execute(
        """
        update quarantine.orders set repaired = json_merge_patch(row, '{"amount": 2}') where row->>'order_no' = '2';
        update quarantine.orders set repaired = json_merge_patch(row, '{"amount": "3!"}') where row->>'order_no' = '3'
        """
    )
    assert load(warehouse, declared, tmp_path).rows == 2
    assert rows_of(warehouse, "order_no", "amount", "_source") == [
        (1, 1, "orders.csv"),
        (2, 2, "orders.csv"),
    ]
    waiting = "select row->>'amount' from quarantine.orders where readmitted_at is null"
    assert warehouse.execute(waiting).fetchall() == [("3!",)]
    assert not load(warehouse, declared, tmp_path).changed


def test_a_file_that_is_mended_at_its_source_replaces_what_was_repaired_here(
    warehouse: Connection, tmp_path: Path
) -> None:
    (tmp_path / "orders.csv").write_text("order_no,amount\n1,1\n2,two\n")
    declared = source("orders.csv", types={"amount": "integer"}, max_rejected=0.5)
    load(warehouse, declared, tmp_path)
    warehouse.execute("""update quarantine.orders set repaired = json_merge_patch(row, '{"amount": 22}')""")
    load(warehouse, declared, tmp_path)
    assert rows_of(warehouse, "amount") == [(1,), (22,)]
    (tmp_path / "orders.csv").write_text("order_no,amount\n1,1\n2,2\n")
    load(warehouse, declared, tmp_path)
    assert rows_of(warehouse, "amount") == [(1,), (2,)]


def test_a_column_that_is_called_as_the_engines_own_is_refused(warehouse: Connection, tmp_path: Path) -> None:
    (tmp_path / "orders.csv").write_text("order_no,_Source\n1,web\n")
    with pytest.raises(LoadError, match=r"orders\.csv has the columns _Source, which are the engine's own"):
        load(warehouse, source("orders.csv"), tmp_path)


def test_a_time_with_a_zone_is_told_in_utc_where_the_column_has_none(warehouse: Connection, tmp_path: Path) -> None:
    (tmp_path / "orders.csv").write_text("sent_at\n2024-01-01T10:00:00+02:00\n2024-01-01 10:00:00\n")
    load(warehouse, source("orders.csv", types={"sent_at": "timestamp"}), tmp_path)
    assert rows_of(warehouse, "sent_at") == [(datetime(2024, 1, 1, 8),), (datetime(2024, 1, 1, 10),)]


def test_bad_rows_of_one_file_excuse_none_of_another(warehouse: Connection, tmp_path: Path) -> None:
    declared = source("*.csv", types={"amount": "integer"}, max_rejected=0.2)
    (tmp_path / "1.csv").write_text("amount\n" + "1\n" * 8 + "x\ny\n")
    load(warehouse, declared, tmp_path)
    (tmp_path / "2.csv").write_text("amount\n1\nx\ny\n")
    with pytest.raises(LoadError, match=r"2 of 3 rows of 2\.csv are bad"):  # another file's are its own
        load(warehouse, declared, tmp_path)


def test_bad_rows_of_two_files_are_set_aside_both_and_only_their_own_file_takes_them_back(
    warehouse: Connection, tmp_path: Path
) -> None:
    declared = source("*.csv", types={"amount": "integer"}, max_rejected=0.5)
    for name in ("1", "2"):
        (tmp_path / f"{name}.csv").write_text("amount\n1\nx\n")
    load(warehouse, declared, tmp_path)
    assert [row["amount"] for _, row in quarantined(warehouse)] == ["x", "x"]
    (tmp_path / "1.csv").write_text("amount\n1\n2\n")
    load(warehouse, declared, tmp_path)
    assert warehouse.execute("select source from quarantine.orders").fetchall() == [("2.csv",)]
    # A repair that repairs nothing waits again.
    warehouse.execute("update quarantine.orders set repaired = row")
    load(warehouse, declared, tmp_path)
    waiting = "select source, row->>'amount' from quarantine.orders where readmitted_at is null"
    assert warehouse.execute(waiting).fetchall() == [("2.csv", "x")]


def test_a_row_that_one_file_gives_up_is_taken_from_the_other_that_has_it_too(
    warehouse: Connection, tmp_path: Path
) -> None:
    declared = source("*.csv", key=("order_no",))
    (tmp_path / "1.csv").write_text("order_no\n16\n17\n18\n")
    (tmp_path / "2.csv").write_text("order_no\n17\n19\n")
    load(warehouse, declared, tmp_path)
    (tmp_path / "1.csv").write_text("order_no\n16\n")
    first = load(warehouse, declared, tmp_path)
    assert [(batch.deleted, batch.landed) for batch in first.batches] == [(2, 1), (0, 1)]
    assert rows_of(warehouse, "order_no") == [(16,), (17,), (19,)]
    assert not load(warehouse, declared, tmp_path).changed


def test_a_value_that_would_be_rounded_is_a_bad_row(warehouse: Connection, tmp_path: Path) -> None:
    (tmp_path / "orders.csv").write_text(
        "units,sent_on,amount\n1.5,2024-01-01,1\n2.0,2024-01-01 10:00:00,2\n3,2024-01-01 00:00:00,3.10\n"
        "4,2024-01-01,1.239\n"
    )
    types = {"units": "bigint", "sent_on": "date", "amount": "decimal(10, 2)"}
    load(warehouse, source("orders.csv", types=types, max_rejected=0.9), tmp_path)
    assert rows_of(warehouse, "units", "sent_on") == [(3, date(2024, 1, 1))]
    assert [rule for rule, _ in quarantined(warehouse)] == [
        "amount is no decimal(10, 2)",
        "sent_on is no date",
        "units is no bigint",
    ]


def test_a_column_may_have_any_name(warehouse: Connection, tmp_path: Path) -> None:
    (tmp_path / "orders.csv").write_text("good,content,held,accepted\n1,a,b,c\n1,a,b,d\n")
    loaded = load(warehouse, source("orders.csv", key=("good",), max_rejected=0.5), tmp_path)
    assert (loaded.rows, loaded.batches[0].repeated, loaded.batches[0].bad_rows) == (1, 0, 1)
    rows = "select * from (values (1, 2)) as t(content, other)"
    assert content_hash(warehouse, rows) != content_hash(warehouse, rows.replace("(1, 2)", "(1, 3)"))


def test_the_first_full_load_is_history_in_all_its_files_also_after_a_stop(
    warehouse: Connection, tmp_path: Path
) -> None:
    declared = source("*.csv", known_at="recorded_at", types={"units": "integer"})
    (tmp_path / "1.csv").write_text("recorded_at,units\n2024-01-01 10:00:00,1\n")
    (tmp_path / "2.csv").write_text("recorded_at,units\n2024-01-02 10:00:00,two\n")
    with pytest.raises(LoadError, match=r"2\.csv are bad"):
        load(warehouse, declared, tmp_path)
    (tmp_path / "2.csv").write_text("recorded_at,units\n2024-01-02 10:00:00,2\n")
    load(warehouse, declared, tmp_path)
    history = [(1, datetime(2024, 1, 1, 10, tzinfo=UTC)), (2, datetime(2024, 1, 2, 10, tzinfo=UTC))]
    assert rows_of(warehouse, "units", "_known_at") == history
    # Read again, as under another declaration, what was known stays known; what is new in a file is known now.
    (tmp_path / "2.csv").write_text("recorded_at,units\n2024-01-02 10:00:00,2\n2024-01-03 10:00:00,3\n")
    described = source("*.csv", known_at="recorded_at", types={"units": "integer"}, columns={"units": "How many"})
    load(warehouse, described, tmp_path)
    assert rows_of(warehouse, "units", "_known_at") == [*history, (3, CLOCK)]


def test_known_at_can_not_be_declared_afterwards(warehouse: Connection, tmp_path: Path) -> None:
    (tmp_path / "1.csv").write_text("recorded_at\n2024-01-01 10:00:00\n")
    load(warehouse, source("*.csv"), tmp_path)
    with pytest.raises(LoadError, match="known_at is declared, but the table was loaded without it"):
        load(warehouse, source("*.csv", known_at="recorded_at"), tmp_path)  # also where nothing new has come


def test_ids_in_json_stay_the_text_they_are(warehouse: Connection, tmp_path: Path) -> None:
    ids = ["AAAAAAAA-0000-4000-8000-00000000000B", "99999999999999999991", "1.0", "12:30", "2024-01-01T05:00:00Z"]
    (tmp_path / "orders.jsonl").write_text(lines(*({"order_no": text} for text in ids)) + '{"order_no": 7}\n')
    load(warehouse, source("orders.jsonl", types={"order_no": "varchar"}), tmp_path)
    assert rows_of(warehouse, "order_no") == sorted([(text,) for text in [*ids, "7"]])
    (tmp_path / "orders.jsonl").write_text('{"amount": 1234567890123456.78}\n{"amount": 99999999999999999991}\n')
    warehouse.execute("drop table landing.orders")
    load(warehouse, source("orders.jsonl", types={"amount": "decimal(30, 2)"}), tmp_path)
    assert [str(row[0]) for row in rows_of(warehouse, "amount")] == ["1234567890123456.78", "99999999999999999991.00"]


def test_of_one_key_the_newest_row_counts_whenever_it_comes(warehouse: Connection, tmp_path: Path) -> None:
    declared = source("*.jsonl", key=("order_no",), cursor="changed_at")
    early, late = "2024-01-01T00:00:00", "2024-01-02T00:00:00"
    (tmp_path / "1.jsonl").write_text(
        lines(
            {"order_no": 1, "state": "sent", "changed_at": late},
            {"order_no": 1, "state": "new", "changed_at": early},
            {"order_no": 2, "state": "new", "changed_at": early},
            {"order_no": 2, "state": "new", "changed_at": early},
        )
    )
    first = load(warehouse, declared, tmp_path).batches[0]
    assert (first.landed, first.superseded, first.repeated) == (2, 1, 1)
    (tmp_path / "2.jsonl").write_text(
        lines(
            {"order_no": 1, "state": "new", "changed_at": early},
            {"order_no": 2, "state": "sent", "changed_at": late},
            {"order_no": 3, "state": "new", "changed_at": late},
        )
    )
    second = load(warehouse, declared, tmp_path).batches[0]
    assert (second.landed, second.superseded, second.replaced) == (2, 1, 1)
    assert rows_of(warehouse, "order_no", "state", "_source") == [
        (1, "sent", "1.jsonl"),
        (2, "sent", "2.jsonl"),
        (3, "new", "2.jsonl"),
    ]


def test_rows_of_one_key_that_contradict_each_other_are_bad(warehouse: Connection, tmp_path: Path) -> None:
    (tmp_path / "orders.jsonl").write_text(lines({"order_no": 1, "zip": "a"}, {"order_no": 1, "zip": "b"}))
    loaded = load(warehouse, source("orders.jsonl", key=("order_no",), max_rejected=0.5), tmp_path)
    assert loaded.rows == 1
    assert quarantined(warehouse)[0][0] == "order_no repeats with other values"


def test_a_batch_that_comes_again_changes_nothing(warehouse: Connection, tmp_path: Path) -> None:
    declared = source("*.csv", key=("order_no",))
    (tmp_path / "1.csv").write_text("order_no,zip\n1,\n2,8000\n")
    load(warehouse, declared, tmp_path)
    before = rows_of(warehouse, "*")
    (tmp_path / "2.csv").write_text("order_no,zip\n2,8000\n1,\n")
    again = load(warehouse, declared, tmp_path)
    assert (again.changed, again.batches[0].repeated) == (False, 2)
    assert rows_of(warehouse, "*") == before


def test_a_changed_file_replaces_its_own_rows_and_a_removed_one_is_noted(warehouse: Connection, tmp_path: Path) -> None:
    for number in (1, 2, 3):
        (tmp_path / f"{number}.csv").write_text(f"order_no\n{number}\n")
    load(warehouse, source("*.csv"), tmp_path)
    batches = dict(rows_of(warehouse, "_source", "_batch_id"))
    (tmp_path / "2.csv").write_text("order_no\n2\n22\n")
    (tmp_path / "3.csv").unlink()
    loaded = load(warehouse, source("*.csv"), tmp_path)
    assert [batch.rows for batch in loaded.batches] == [2]
    assert loaded.notes == ["gone, their rows stay: 3.csv"]
    assert rows_of(warehouse, "order_no") == [(1,), (2,), (3,), (22,)]
    after = dict(rows_of(warehouse, "_source", "_batch_id"))
    assert [name for name in batches if batches[name] != after[name]] == ["2.csv"]


def test_a_new_column_is_added_and_told(warehouse: Connection, tmp_path: Path) -> None:
    (tmp_path / "1.csv").write_text("order_no\n1\n")
    load(warehouse, source("*.csv"), tmp_path)
    (tmp_path / "2.csv").write_text("order_no,channel\n2,web\n")
    loaded = load(warehouse, source("*.csv"), tmp_path)
    assert loaded.batches[0].added_columns == ("channel",)
    assert rows_of(warehouse, "order_no", "channel") == [(1, None), (2, "web")]
    assert metrics(warehouse)["added_columns"] == "channel"


@pytest.mark.parametrize(
    ("table", "told"),
    [
        (pa.table({"order_no": [2]}), r"lacks the columns amount.*it has: +order_no BIGINT.*expected: .*amount DOUBLE"),
        (
            pa.table({"order_no": [2], "amount": ["2"]}),
            r"columns amount have another type.*VARCHAR.*expected: amount DOUBLE",
        ),
        (
            pa.table({"order_no": [date(2024, 1, 1)], "amount": [1.0]}),
            r"order_no have another type.*order_no DATE.*order_no BIGINT",
        ),
    ],
    ids=["missing", "text for a number", "a date for a number"],
)
def test_a_column_that_is_missing_or_retyped_stops_the_source_and_shows_both_schemas(
    warehouse: Connection, tmp_path: Path, table: pa.Table, told: str
) -> None:
    pq.write_table(pa.table({"order_no": [1], "amount": [1.5]}), tmp_path / "1.parquet")
    load(warehouse, source("*.parquet"), tmp_path)
    pq.write_table(table, tmp_path / "2.parquet")
    with pytest.raises(LoadError, match=re.compile(told, re.DOTALL)):
        load(warehouse, source("*.parquet"), tmp_path)
    assert rows_of(warehouse, "order_no", "amount") == [(1, 1.5)]


def test_a_file_that_is_being_written_is_left_for_the_next_run(warehouse: Connection, tmp_path: Path) -> None:
    whole = tmp_path / "1.csv"
    whole.write_text("order_no\n1\n")
    growing = tmp_path / "2.csv"
    growing.write_text("order_no\n2\n3")
    loaded = load(warehouse, source("*.csv"), tmp_path)
    assert loaded.rows == 1
    assert loaded.notes[0].startswith("left for the next run: 2.csv does not end in a new line")
    growing.write_text("order_no\n2\n33\n")
    assert load(warehouse, source("*.csv"), tmp_path).rows == 3


def test_a_parquet_file_without_its_footer_is_left_and_told_as_damaged_once_nobody_writes(
    warehouse: Connection, tmp_path: Path
) -> None:
    pq.write_table(pa.table({"order_no": [1]}), tmp_path / "1.parquet")
    broken = tmp_path / "2.parquet"
    broken.write_bytes((tmp_path / "1.parquet").read_bytes()[:-8])
    assert load(warehouse, source("*.parquet"), tmp_path).notes == [
        "left for the next run: 2.parquet has no Parquet footer"
    ]
    os.utime(broken, WHOLE)
    with pytest.raises(LoadError, match=r"2\.parquet has no Parquet footer; the table stays as it was"):
        load(warehouse, source("*.parquet"), tmp_path)


def test_a_csv_without_a_last_newline_is_taken_once_nobody_writes(warehouse: Connection, tmp_path: Path) -> None:
    (tmp_path / "1.csv").write_text("order_no\n1")
    os.utime(tmp_path / "1.csv", WHOLE)
    assert load(warehouse, source("*.csv"), tmp_path).rows == 1


def test_history_keeps_its_own_clock_and_what_comes_later_is_known_when_it_comes(
    warehouse: Connection, tmp_path: Path
) -> None:
    declared = source("*.csv", key=("order_no",), known_at="recorded_at")
    (tmp_path / "1.csv").write_text("order_no,recorded_at\n1,2024-01-01 10:00:00\n")
    load(warehouse, declared, tmp_path)
    (tmp_path / "2.csv").write_text("order_no,recorded_at\n2,2024-01-02 10:00:00\n")
    load(warehouse, declared, tmp_path)
    assert rows_of(warehouse, "order_no", "_known_at") == [(1, datetime(2024, 1, 1, 10, tzinfo=UTC)), (2, CLOCK)]


def test_the_figures_of_a_batch_are_kept(warehouse: Connection, tmp_path: Path) -> None:
    declared = source("*.csv", key=("order_no",), cursor="ordered_at")
    for name, count in (("1", 10), ("2", 30), ("3", 5)):
        rows = "".join(
            f"{name}{number},{'' if number else 8000},2024-04-30 0{number % 10}:00:00\n" for number in range(count)
        )
        (tmp_path / f"{name}.csv").write_text(f"order_no,zip,ordered_at\n{rows}")
    load(warehouse, declared, tmp_path)
    found = metrics(warehouse)
    assert (found["source"], found["rows"], found["distinct_keys"]) == ("3.csv", 5, 5)
    assert json.loads(found["null_shares"]) == {"order_no": 0.0, "zip": 0.8, "ordered_at": 0.0}
    assert (found["cursor_min"], found["cursor_max"]) == ("2024-04-30 00:00:00", "2024-04-30 04:00:00")
    assert found["freshness_lag_seconds"] == 21 * 3600  # of the table, whose newest came with the file before
    assert (found["trailing_median_rows"], found["volume_ratio"]) == (20, 0.25)


def test_dates_that_are_written_another_way_are_read_and_nested_json_is_kept(
    warehouse: Connection, tmp_path: Path
) -> None:
    (tmp_path / "1.csv").write_text("order_no;ordered_on\n1;31/12/2023\n2;01/02/2024\n")
    load(warehouse, source("1.csv"), tmp_path)
    assert rows_of(warehouse, "ordered_on") == [(date(2023, 12, 31),), (date(2024, 2, 1),)]
    (tmp_path / "o.jsonl").write_text(
        lines({"order_no": 2**60 + 1, "lines": [{"sku": "a, b"}], "sent_at": "2024-01-01T10:00:00+02:00", "no": "007"})
    )
    warehouse.execute("drop table landing.orders")
    load(warehouse, source("o.jsonl"), tmp_path)
    assert rows_of(warehouse, "order_no", "lines", "sent_at", "no") == [
        (2**60 + 1, '[{"sku":"a, b"}]', datetime(2024, 1, 1, 8, tzinfo=UTC), "007")
    ]


def test_dates_that_may_be_two_days_are_refused(warehouse: Connection, tmp_path: Path) -> None:
    (tmp_path / "1.csv").write_text("order_no;ordered_on\n1;05/04/2024\n2;06/04/2024\n")
    with pytest.raises(LoadError, match="the dates in column 'ordered_on' may have the day or the month first"):
        load(warehouse, source("1.csv"), tmp_path)
    load(warehouse, source("1.csv", types={"ordered_on": "varchar"}), tmp_path)
    assert rows_of(warehouse, "ordered_on")[0] == ("05/04/2024",)


def test_a_constraint_that_is_no_sql_is_told(warehouse: Connection, tmp_path: Path) -> None:
    (tmp_path / "1.csv").write_text("order_no\n1\n")
    with pytest.raises(LoadError, match=r"a constraint can't be asked of its rows: Binder Error.*no_such"):
        load(warehouse, source("1.csv", rules=(Rule("x", "no_such > 1"),)), tmp_path)


LOADER = """
import sys
from pathlib import Path
from tests.test_loading import load, source
from orchestration.warehouse import open_warehouse
project = Path(sys.argv[1])
with open_warehouse(project / "data" / "warehouse.duckdb") as connection:
    print("loading", flush=True)
    load(connection, source("*.parquet", key=("order_no",)), project)
"""


@pytest.mark.parametrize("seconds", [0.02, 0.1, 0.25, 0.5])
def test_a_load_of_files_that_is_killed_is_completed_by_the_next_with_each_row_once(
    tmp_path: Path, seconds: float
) -> None:
    for part in range(4):
        numbers = range(part * 200_000, (part + 1) * 200_000)
        pq.write_table(pa.table({"order_no": numbers, "zip": [str(n) for n in numbers]}), tmp_path / f"{part}.parquet")
    with subprocess.Popen(
        [sys.executable, "-c", LOADER, str(tmp_path)], cwd=REPOSITORY, stdout=subprocess.PIPE, text=True
    ) as loader:
        assert loader.stdout is not None and loader.stdout.readline() == "loading\n"
        time.sleep(seconds)
        loader.send_signal(signal.SIGKILL)
    with open_warehouse(tmp_path / "data" / "warehouse.duckdb") as connection:
        load(connection, source("*.parquet", key=("order_no",)), tmp_path)
        found = connection.execute("select count(*), count(distinct order_no) from landing.orders").fetchall()
        assert found == [(800_000, 800_000)]
        assert columns(connection, "landing", "orders")["order_no"] == "BIGINT"


def test_a_killed_load_leaves_no_half_batch(tmp_path: Path) -> None:
    """The warehouse as the killed one left it: whole batches only."""
    test_a_load_of_files_that_is_killed_is_completed_by_the_next_with_each_row_once(tmp_path, 0.15)
    with duckdb.connect(str(tmp_path / "data" / "warehouse.duckdb"), read_only=True) as connection:
        per_batch = connection.execute("select count(*) from landing.orders group by _batch_id").fetchall()
    assert per_batch == [(200_000,)] * 4


@pytest.mark.parametrize("column", ["_broken_0", "_Broken_1", "_rule", "_came", "_row", "_batch_id"])
def test_a_column_that_would_pass_for_the_engines_own_is_refused(
    warehouse: Connection, tmp_path: Path, column: str
) -> None:
    (tmp_path / "1.jsonl").write_text(lines(*({"order_no": number} for number in range(100))))
    declared = source("*.jsonl", key=("order_no",), types={"order_no": "bigint"})
    load(warehouse, declared, tmp_path)
    (tmp_path / "2.jsonl").write_text(lines({"order_no": 100}, {"order_no": 101, column: None}))
    with pytest.raises(LoadError, match=f"2.jsonl has the columns {column}, which are the engine's own"):
        load(warehouse, declared, tmp_path)
    assert len(rows_of(warehouse, "order_no")) == 100


def test_a_column_that_came_once_and_is_not_declared_has_not_to_come_again(
    warehouse: Connection, tmp_path: Path
) -> None:
    declared = source("*.csv", columns={"order_no": "", "note": ""})
    (tmp_path / "1.csv").write_text("order_no,note\n1,a\n")
    (tmp_path / "2.csv").write_text("order_no,note,stray\n2,b,x\n")
    load(warehouse, declared, tmp_path)
    (tmp_path / "3.csv").write_text("order_no,note\n3,c\n")
    (batch,) = load(warehouse, declared, tmp_path).batches
    assert batch.left_out_columns == ("stray",)
    assert rows_of(warehouse, "order_no", "stray") == [(1, None), (2, "x"), (3, None)]
    (tmp_path / "4.csv").write_text("order_no\n4\n")
    with pytest.raises(LoadError, match=r"4\.csv lacks the columns note;"):
        load(warehouse, declared, tmp_path)


def test_a_slip_in_a_repair_makes_no_column(warehouse: Connection, tmp_path: Path) -> None:
    (tmp_path / "1.csv").write_text("order_no,amount\n1,ten\n2,20\n")
    declared = source("1.csv", types={"amount": "double"}, max_rejected=0.9)
    load(warehouse, declared, tmp_path)
    warehouse.execute("""update quarantine.orders set repaired = json_merge_patch(row, '{"amuont": "10"}')""")
    load(warehouse, declared, tmp_path)
    assert rows_of(warehouse, "order_no") == [(2,)]
    assert "amuont" not in columns(warehouse, "landing", "orders")
    refused = {"order_no": "1", "amount": "ten", "amuont": "10"}
    assert ("the table has no column amuont", refused) in quarantined(warehouse)


def test_an_exact_number_is_as_exact_after_a_repair(warehouse: Connection, tmp_path: Path) -> None:
    pq.write_table(
        pa.table(
            {
                "quantity": pa.array([-1, 1]),
                "amount": pa.array(["12345678901234567890.12", "0.10"]).cast(pa.decimal128(38, 2)),
            }
        ),
        tmp_path / "orders.parquet",
    )
    declared = source("orders.parquet", rules=(Rule("quantity", "quantity > 0"),), max_rejected=0.5)
    load(warehouse, declared, tmp_path)
    warehouse.execute("""update quarantine.orders set repaired = json_merge_patch(row, '{"quantity": 1}')""")
    load(warehouse, declared, tmp_path)
    assert rows_of(warehouse, "amount::varchar") == [("0.10",), ("12345678901234567890.12",)]


@pytest.mark.parametrize(
    ("kind", "value", "fits"),
    [
        ("decimal(10, 2)", "12.340", True),
        ("decimal(10, 2)", "12.345", False),
        ("decimal(10, 2)", "1.2345e1", False),
        ("decimal(10, 2)", "1.2e1", True),
        ("decimal(10)", "12.0", True),
        ("decimal(10)", "12.5", False),
        ("decimal", "1.2345", False),
        ("numeric(38,20)", "12345678901.12345678901234567890", True),
        ("double", "1e309", False),
        ("double", "Infinity", True),
        ("timestamp_ms", "2024-01-01T00:00:00+05:00", True),
    ],
)
def test_a_value_is_kept_or_set_aside_but_never_another(
    warehouse: Connection, tmp_path: Path, kind: str, value: str, fits: bool
) -> None:
    (tmp_path / "orders.csv").write_text(f"order_no,it\n1,{value}\n")
    load(warehouse, source("orders.csv", types={"it": kind}, max_rejected=1.0), tmp_path)
    assert (len(rows_of(warehouse, "it")), len(quarantined(warehouse))) == (int(fits), int(not fits))
    if kind == "timestamp_ms":
        assert rows_of(warehouse, "it::varchar") == [("2023-12-31 19:00:00",)]


def test_quotes_that_come_late_in_a_file_are_quotes(warehouse: Connection, tmp_path: Path) -> None:
    plain = "".join(f"{number},plain\n" for number in range(25_000))
    late = "".join(f'{number},"x, y"\n' for number in range(25_000, 25_200))
    (tmp_path / "orders.csv").write_text(f"order_no,note\n{plain}{late}")
    loaded = load(warehouse, source("orders.csv"), tmp_path)
    assert (loaded.rows, loaded.batches[0].bad_rows) == (25_200, 0)
    assert warehouse.execute("select distinct note from landing.orders order by 1").fetchall() == [
        ("plain",),
        ("x, y",),
    ]


def test_a_file_without_content_fixes_no_schema(warehouse: Connection, tmp_path: Path) -> None:
    import gzip

    for name, content in (("1.csv", b"\n"), ("2.csv.gz", gzip.compress(b""))):
        (tmp_path / name).write_bytes(content)
        os.utime(tmp_path / name, WHOLE)
        with pytest.raises(LoadError, match="has no content"):
            load(warehouse, source(name), tmp_path)
    (tmp_path / "3.csv.gz").write_bytes(gzip.compress(b"order_no\n1\n")[:-9] + b"\xff" * 9)
    os.utime(tmp_path / "3.csv.gz", WHOLE)
    with pytest.raises(LoadError, match="is a gzip file that breaks off, or none at all"):
        load(warehouse, source("3.csv.gz"), tmp_path)


def test_a_load_that_goes_well_ends_the_fault_of_the_one_before(warehouse: Connection, tmp_path: Path) -> None:
    (tmp_path / "orders.csv").write_text("order_no\n1\n")
    last = "select fault from quality.last_loads"
    with pytest.raises(LoadError, match="the environment has no FOLDER_OF_ORDERS"):
        load(warehouse, source("${FOLDER_OF_ORDERS}orders.csv"), tmp_path)
    assert "FOLDER_OF_ORDERS" in warehouse.execute(last).fetchall()[0][0]
    assert metrics(warehouse)["status"] == "failed"
    load(warehouse, source("orders.csv"), tmp_path)
    load(warehouse, source("orders.csv"), tmp_path)
    assert warehouse.execute(last).fetchall() == [(None,)]


def test_a_cursor_that_a_file_lacks_is_told_with_its_columns(warehouse: Connection, tmp_path: Path) -> None:
    (tmp_path / "orders.csv").write_text("order_no,note\n1,a\n")
    with pytest.raises(LoadError, match=r"'nope', which orders\.csv does not have .it has: order_no"):
        load(warehouse, source("orders.csv", cursor="nope"), tmp_path)
