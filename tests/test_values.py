"""The same value online as offline: what the warehouse writes as JSON, read back, is what the warehouse holds."""

import math
from collections.abc import Sequence
from datetime import UTC, date, datetime
from decimal import Decimal
from typing import Any

import duckdb
import msgspec
import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ml.declarations import Feature
from ml.encoding import encode, learn_encoder
from ml.values import TYPES, WrongValues, arrow_type, read_rows
from orchestration.online_features import json_features

NUL, LINE = "\0", "\u2028"

moments = st.integers(-(2**62), 2**62)
# Of each type SQL that makes a value of it from a parameter, and parameters: the ends of the type among them.
VALUES: dict[str, tuple[str, st.SearchStrategy[Any]]] = {
    "BOOLEAN": ("?::boolean", st.booleans()),
    "TINYINT": ("?::tinyint", st.integers(-(2**7), 2**7 - 1)),
    "SMALLINT": ("?::smallint", st.integers(-(2**15), 2**15 - 1)),
    "INTEGER": ("?::integer", st.integers(-(2**31), 2**31 - 1)),
    "BIGINT": ("?::bigint", st.integers(-(2**63), 2**63 - 1)),
    "HUGEINT": ("?::varchar::hugeint", st.integers(-(2**127), 2**127 - 1).map(str)),
    "UTINYINT": ("?::utinyint", st.integers(0, 2**8 - 1)),
    "USMALLINT": ("?::usmallint", st.integers(0, 2**16 - 1)),
    "UINTEGER": ("?::uinteger", st.integers(0, 2**32 - 1)),
    "UBIGINT": ("?::varchar::ubigint", st.integers(0, 2**64 - 1).map(str)),
    "UHUGEINT": ("?::varchar::uhugeint", st.integers(0, 2**127 - 1).map(str)),
    "FLOAT": ("?::float", st.floats(width=32)),
    "DOUBLE": ("?::double", st.floats()),
    "DECIMAL(4,2)": ("?::varchar::decimal(4,2)", st.decimals("-99.99", "99.99", places=2).map(str)),
    "DECIMAL(18,0)": ("?::varchar::decimal(18,0)", st.integers(1 - 10**18, 10**18 - 1).map(str)),
    "DECIMAL(38,10)": ("(?::varchar || '.0123456789')::decimal(38,10)", st.integers(1 - 10**28, 10**28 - 1).map(str)),
    "DATE": (
        "?::varchar::date",
        st.one_of(
            st.dates().map(str),
            st.sampled_from(["infinity", "-infinity", "0044-03-15 (BC)", "9999-12-31", "12024-01-31"]),
        ),
    ),
    "TIMESTAMP": ("make_timestamp(?::bigint)", moments),
    "TIMESTAMP_S": ("make_timestamp(?::bigint)::timestamp_s", moments),
    "TIMESTAMP_MS": ("make_timestamp(?::bigint)::timestamp_ms", moments),
    "TIMESTAMP_NS": ("make_timestamp_ns(?::bigint)", moments),
    "TIMESTAMP WITH TIME ZONE": ("make_timestamptz(?::bigint)", moments),
    "VARCHAR": (
        "?::varchar",
        st.one_of(
            st.text(max_size=12),
            st.sampled_from(
                ["", 'Zürich, "Kreis 4"', "null", "NaN", "\\u0041", "\\", "[1,2]", NUL, LINE, "日本🙂", "\x1f"]
            ),
        ),
    ),
}
ENDS: dict[str, list[Any]] = {
    "TIMESTAMP": ["'infinity'::timestamp", "'-infinity'::timestamp"],
    "TIMESTAMP_NS": ["'infinity'::timestamp_ns"],
    "TIMESTAMP WITH TIME ZONE": ["'infinity'::timestamptz", "'-infinity'::timestamptz"],
}
FEATURES = tuple(
    Feature(name=f'{kind.lower()} of "{place}"', data_type=kind, description="") for place, kind in enumerate(VALUES)
)


@pytest.fixture(scope="module")
def connection() -> Any:
    with duckdb.connect(config={"autoinstall_known_extensions": False, "TimeZone": "UTC"}) as connection:
        yield connection


def name(feature: Feature) -> str:
    return '"' + feature.name.replace('"', '""') + '"'


def held(connection: Any, rows: Sequence[Sequence[Any]]) -> pa.Table:
    """A table of the warehouse with a row of each parameters, and an id; the Arrow that batches are made of."""
    columns = ", ".join(f"{VALUES[feature.data_type][0]} as {name(feature)}" for feature in FEATURES)
    connection.execute("drop table if exists customers")
    for number, row in enumerate(rows):
        made = f"select {number:03}::varchar as id, {columns}"
        connection.execute(f"create table customers as {made}" if number == 0 else f"insert into customers {made}", row)
    return connection.sql("select * exclude (id) from customers order by id").to_arrow_table()


def online(connection: Any, features: Sequence[Feature] = FEATURES) -> list[dict[str, Any]]:
    """The rows of that table as an application gets them."""
    arrays = [
        msgspec.json.decode(content) for _, content in json_features(connection, features, "id", "from customers")
    ]
    return [dict(zip((feature.name for feature in features), array, strict=True)) for array in arrays]


def bits(matrix: Any) -> bytes:
    """A matrix as models tell it from others: to the last bit, but NaN is NaN, whatever sign the processor gave it."""
    return bytes(np.where(np.isnan(matrix), np.float32("nan"), matrix).tobytes())


def exactly(column: Any) -> list[Any]:
    """The values of a column as Arrow stores them, so that no two that differ are equal."""
    column = column.combine_chunks() if isinstance(column, pa.ChunkedArray) else column
    if pa.types.is_floating(column.type):
        return [None if value is None else "NaN" if math.isnan(value) else value.hex() for value in column.to_pylist()]
    if pa.types.is_date(column.type):
        return column.cast(pa.int32()).to_pylist()
    return column.cast(pa.int64()).to_pylist() if pa.types.is_timestamp(column.type) else column.to_pylist()


a_row = st.tuples(*(st.none() | values for _, values in VALUES.values()))


@settings(max_examples=150, deadline=None)
@given(rows=st.lists(a_row, min_size=1, max_size=4))
def test_what_the_warehouse_writes_and_models_read_back_is_equal_value_by_value_and_bit_by_bit_encoded(
    connection: Any, rows: list[tuple[Any, ...]]
) -> None:
    batch = held(connection, rows)
    answered = online(connection)
    read = read_rows(answered, FEATURES)
    assert read.schema.names == batch.schema.names
    assert read.schema.types == batch.schema.types
    for feature in FEATURES:
        assert exactly(read.column(feature.name)) == exactly(batch.column(feature.name)), feature

    encoder = learn_encoder(batch, batch.schema.names)
    offline = encode(encoder, batch)
    assert bits(encode(encoder, read)) == bits(offline)
    for place, row in enumerate(answered):
        assert bits(encode(encoder, read_rows([row], FEATURES))) == bits(offline[place : place + 1])


def test_the_examples_of_the_documentation_are_what_the_warehouse_writes(connection: Any) -> None:
    connection.execute(
        """
        create or replace table customers as select
            1 as id, true as a, 9007199254740993 as b, 12.5::decimal(12, 2) as c, 'nan'::double as d,
            '-infinity'::float as e,
            date '2024-03-04' as f, timestamp '2024-03-04 05:06:07' as g, timestamptz '2024-03-04 06:06:07.25+01' as h,
            'Zürich' as i, null::date as j, 170141183460469231731687303715884105727::hugeint as k, 0.1::double as l,
            'infinity'::timestamptz as m, '0044-03-15 (BC)'::date as n, 1e300::double as o, '-infinity'::date as p
        """
    )
    types = dict(connection.execute("select column_name, column_type from (describe customers)").fetchall())
    features = [Feature(name=column, data_type=kind, description="") for column, kind in types.items()][1:]
    ((customer_id, content),) = json_features(connection, features, "id::varchar", "from customers")
    assert customer_id == "1"
    assert content.decode() == (
        '[true,9007199254740993,"12.50","NaN","-Infinity","2024-03-04","2024-03-04T05:06:07","2024-03-04T05:06:07.25Z",'
        '"Zürich",null,170141183460469231731687303715884105727,0.1,"Infinity","0044-03-15(BC)",1e300,"-Infinity"]'
    )


@pytest.mark.parametrize("kind", ENDS)
def test_the_ends_of_time_are_read_back(connection: Any, kind: str) -> None:
    features = [Feature(name="x", data_type=kind, description="")]
    for end in ENDS[kind]:
        connection.execute(f"create or replace table customers as select '1' as id, {end} as x")
        batch = connection.sql("select x from customers").to_arrow_table()
        assert exactly(read_rows(online(connection, features), features).column("x")) == exactly(batch.column("x"))


def test_a_session_in_another_time_zone_writes_utc(connection: Any) -> None:
    features = [Feature(name="x", data_type="TIMESTAMP WITH TIME ZONE", description="")]
    connection.execute(
        "create or replace table customers as select '1' as id, timestamptz '2024-07-01 12:00:00+00' as x"
    )
    connection.execute("set TimeZone = 'America/New_York'")
    try:
        assert online(connection, features) == [{"x": "2024-07-01T12:00:00Z"}]
    finally:
        connection.execute("set TimeZone = 'UTC'")


def test_what_is_read_as_text_is_written_as_text(connection: Any) -> None:
    connection.execute(
        """
        create or replace table customers as select
            '1' as id, 'low'::enum('high', 'low') as a, '{"a": [1, "b"]}'::json as b, '[1]' as c,
            '00000000-0000-0000-0000-00000000000a'::uuid as d
        """
    )
    features = [Feature(name=column, data_type="VARCHAR", description="") for column in "abcd"]
    answered = online(connection, features)
    assert answered == [{"a": "low", "b": '{"a": [1, "b"]}', "c": "[1]", "d": "00000000-0000-0000-0000-00000000000a"}]
    batch = connection.sql("select a, b, c, d from customers").to_arrow_table()
    encoder = learn_encoder(batch, list("abcd"))
    assert encode(encoder, read_rows(answered, features)).tobytes() == encode(encoder, batch).tobytes()


def test_a_category_never_seen_in_training_is_read_and_counts_as_rare() -> None:
    features = [Feature(name="colour", data_type="VARCHAR", description="")]
    encoder = learn_encoder(pa.table({"colour": ["red"] * 20 + ["blue"] * 20}), ["colour"])
    rows = read_rows([{"colour": "red"}, {"colour": "grün"}, {"colour": None}], features)
    np.testing.assert_array_equal(encode(encoder, rows)[:, 0], [2, 0, np.nan])


def test_an_integer_may_be_written_with_a_point_while_that_is_exact() -> None:
    features = [
        Feature(name="a", data_type="INTEGER", description=""),
        Feature(name="b", data_type="BIGINT", description=""),
    ]
    rows = read_rows([{"a": 12.0, "b": -(2.0**53)}, {"a": -0.0, "b": 3}], features)
    assert rows.to_pylist() == [{"a": 12, "b": -(2**53)}, {"a": 0, "b": 3}]
    assert rows.schema.types == [pa.int32(), pa.int64()]


def test_every_type_that_is_read_is_tested() -> None:
    assert {kind for kind in VALUES if not kind.startswith("DECIMAL")} == set(TYPES)


WRONG = [
    ("BOOLEAN", 1, "is 1, not true or false (its type: BOOLEAN)"),
    ("INTEGER", True, "is true, not a number without fraction (its type: INTEGER)"),
    ("INTEGER", 1.5, "is 1.5, not a number without fraction (its type: INTEGER)"),
    ("BIGINT", 2.0**60, f"is {2.0**60}, not a number without fraction (its type: BIGINT)"),
    ("TINYINT", 128, "is 128, not from -128 to 127 (its type: TINYINT)"),
    ("UTINYINT", -1, "is -1, not from 0 to 255 (its type: UTINYINT)"),
    ("HUGEINT", 2**127, f"is {2**127}, not from {-(2**127)} to {2**127 - 1} (its type: HUGEINT)"),
    ("DOUBLE", "12", 'is "12", not a number, "NaN", "Infinity" or "-Infinity" (its type: DOUBLE)'),
    ("DOUBLE", 10**400, "is 1" + "0" * 59 + "…, beyond 1.7976931e+308 (its type: DOUBLE)"),
    ("FLOAT", 1e39, "is 1e+39, beyond 3.4028235e+38 (its type: FLOAT)"),
    ("DECIMAL(4,2)", 12.5, 'is 12.5, not a decimal as text (write "12.50") (its type: DECIMAL(4,2))'),
    ("DECIMAL(4,2)", "1e2", 'is "1e2", not a decimal as text (write "12.50") (its type: DECIMAL(4,2))'),
    ("DECIMAL(4,2)", "1.234", 'is "1.234", with more than 2 decimal places (its type: DECIMAL(4,2))'),
    ("DECIMAL(4,2)", "123", 'is "123", with more than 2 digits before the point (its type: DECIMAL(4,2))'),
    ("DATE", "2023-02-29", 'is "2023-02-29", not a date (write "2024-12-31") (its type: DATE)'),
    ("DATE", "2024-03-04T00:00:00", 'is "2024-03-04T00:00:00", not a date (write "2024-12-31") (its type: DATE)'),
    ("DATE", "٢٠٢٤-٠٣-٠٤", 'is "٢٠٢٤-٠٣-٠٤", not a date (write "2024-12-31") (its type: DATE)'),
    (
        "TIMESTAMP",
        "2024-03-04T05:06:07Z",
        'is "2024-03-04T05:06:07Z", with a time zone, which its type has none for (write "2024-12-31T23:59:59")'
        " (its type: TIMESTAMP)",
    ),
    (
        "TIMESTAMP WITH TIME ZONE",
        "2024-03-04T05:06:07",
        'is "2024-03-04T05:06:07", without a time zone (write "2024-12-31T23:59:59Z")'
        " (its type: TIMESTAMP WITH TIME ZONE)",
    ),
    ("TIMESTAMP", "2024-03-04T24:00:00", 'is "2024-03-04T24:00:00", not a timestamp (write "2024-12-31T23:59:59")'),
    ("TIMESTAMP_S", "2024-03-04T05:06:07.5", 'is "2024-03-04T05:06:07.5", with more than 0 decimal places of a second'),
    ("TIMESTAMP_NS", "9999-12-31T00:00:00", 'is "9999-12-31T00:00:00", beyond what its type holds'),
    ("VARCHAR", 7, "is 7, not text (its type: VARCHAR)"),
    ("VARCHAR", ["a"], "is a list, not text (its type: VARCHAR)"),
    ("VARCHAR", "\ud800", 'is "?", no valid Unicode (its type: VARCHAR)'),
]


@pytest.mark.parametrize(("kind", "value", "told"), WRONG)
def test_a_wrong_value_is_told_with_feature_value_and_what_is_expected(kind: str, value: Any, told: str) -> None:
    with pytest.raises(WrongValues) as raised:
        read_rows([{"x": value}], [Feature(name="x", data_type=kind, description="")])
    assert str(raised.value).startswith(f"row 1: feature 'x' {told}")


def test_unknown_missing_and_mistyped_names_of_all_rows_are_told_at_once() -> None:
    features = [Feature(name=name, data_type=kind, description="") for name, kind in (("a", "INTEGER"), ("b", "DATE"))]
    rows = [{"a": 1, "b": None}, {"a": "1", "B": None}, {"b": "2024-01-01", "a": None, "c": {}}, {"a": 2, "b": "today"}]
    with pytest.raises(WrongValues) as raised:
        read_rows(rows, features)
    assert [(fault.row, fault.feature) for fault in raised.value.faults] == [
        (2, "B"),
        (2, "a"),
        (2, "b"),
        (3, "c"),
        (4, "b"),
    ]
    assert str(raised.value) == (
        "row 2: feature 'B' is not known; row 2: feature 'a' is \"1\", not a number without fraction"
        " (its type: INTEGER); row 2: feature 'b' is missing; row 3: feature 'c' is not known;"
        ' row 4: feature \'b\' is "today", not a date (write "2024-12-31") (its type: DATE)'
    )


def test_of_many_faults_the_first_are_told_and_the_others_counted() -> None:
    with pytest.raises(WrongValues, match=r"row 20: feature 'x' is missing; and 980 more$") as raised:
        read_rows([{}] * 1000, [Feature(name="x", data_type="DATE", description="")])
    assert len(raised.value.faults) == 1000


def test_an_offset_is_the_same_instant_in_utc() -> None:
    features = [Feature(name="x", data_type="TIMESTAMP WITH TIME ZONE", description="")]
    column = read_rows([{"x": "2024-03-04T05:06:07.5+05:30"}, {"x": "2024-03-03T18:36:07.5-05:00"}], features).column(
        "x"
    )
    assert column.to_pylist() == [datetime(2024, 3, 3, 23, 36, 7, 500_000, UTC)] * 2


def test_no_rows_give_columns_of_the_right_types() -> None:
    empty = read_rows([], FEATURES)
    assert empty.num_rows == 0
    assert empty.schema.types == [arrow_type(feature.data_type) for feature in FEATURES]


def test_what_python_calls_a_value_is_what_is_read() -> None:
    features = [
        Feature(name=name, data_type=kind, description="") for name, kind in (("a", "DECIMAL(5,2)"), ("b", "DATE"))
    ]
    read = read_rows([{"a": "-0.5", "b": "2024-02-29"}], features)
    assert read.to_pylist() == [{"a": Decimal("-0.50"), "b": date(2024, 2, 29)}]
