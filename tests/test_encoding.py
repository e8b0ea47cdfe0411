"""What a model sees of a table: every type as a number, the same in training, in a batch and for one row."""

import re
from datetime import UTC, date, datetime, time, timedelta, timezone
from decimal import Decimal
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from ml.encoding import LARGEST, EncodingError, column_type, encode, learn_encoder
from tests.small_data import TYPES, some_rows

NAN, INFINITY = float("nan"), float("inf")
DAY = 86_400
NOON = datetime(1970, 1, 3, 12, tzinfo=UTC)  # 2.5 days after the start of 1970
TYPED: dict[str, tuple[pa.Array, str, list[float]]] = {
    "integer": (pa.array([-3, 0, 7, None], pa.int64()), "number", [-3, 0, 7, NAN]),
    "byte": (pa.array([255, None], pa.uint8()), "number", [255, NAN]),
    "large integer": (pa.array([2**63 - 1, -(2**63)], pa.int64()), "number", [2.0**63, -(2.0**63)]),
    "unsigned integer": (pa.array([2**64 - 1], pa.uint64()), "number", [2.0**64]),
    "double": (pa.array([1.5, None, NAN], pa.float64()), "number", [1.5, NAN, NAN]),
    "float": (pa.array([0.25, None], pa.float32()), "number", [0.25, NAN]),
    "half float": (pa.array([np.float16(0.5), None], pa.float16()), "number", [0.5, NAN]),
    "decimal": (pa.array([Decimal("12.25"), None], pa.decimal128(10, 2)), "number", [12.25, NAN]),
    "wide decimal": (pa.array([Decimal("-0.5"), None], pa.decimal256(60, 2)), "number", [-0.5, NAN]),
    "boolean": (pa.array([True, False, None]), "boolean", [1, 0, NAN]),
    "date": (pa.array([date(1970, 1, 3), date(1969, 12, 31), None]), "date", [2, -1, NAN]),
    "date in milliseconds": (pa.array([date(1970, 1, 3), None], pa.date64()), "date", [2, NAN]),
    "timestamp": (pa.array([datetime(1970, 1, 3, 12), None], pa.timestamp("us")), "timestamp", [2.5, NAN]),
    "timestamp in nanoseconds": (pa.array([DAY * 10**9], pa.timestamp("ns")), "timestamp", [1]),
    "timestamp before 1970": (pa.array([-DAY // 4], pa.timestamp("s")), "timestamp", [-0.25]),
    "timestamp with zone": (pa.array([NOON, None], pa.timestamp("us", "UTC")), "timestamp", [2.5, NAN]),
    "timestamp elsewhere": (pa.array([NOON], pa.timestamp("ms", "Asia/Tokyo")), "timestamp", [2.5]),
    "text": (pa.array(["b"] * 20 + ["a"] * 20 + [None]), "category", [2] * 20 + [1] * 20 + [NAN]),
    "empty text": (pa.array([""] * 20 + ["a"] * 20), "category", [1.0] * 20 + [2.0] * 20),
    "large text": (pa.array(["a"] * 20 + [None], pa.large_string()), "category", [1] * 20 + [NAN]),
    "text view": (pa.array(["a"] * 20 + [None], pa.string_view()), "category", [1] * 20 + [NAN]),
    "dictionary of text": (pa.array(["b"] * 20 + [None]).dictionary_encode(), "category", [1] * 20 + [NAN]),
    "dictionary with a null": (
        pa.DictionaryArray.from_arrays(pa.array([0] * 20 + [1, None]), pa.array(["a", None])),
        "category",
        [1] * 20 + [NAN, NAN],
    ),
    "dictionary of integers": (pa.array([4, None, 4]).dictionary_encode(), "number", [4, NAN, 4]),
    "all null": (pa.nulls(2, pa.float64()), "number", [NAN, NAN]),
    "all null text": (pa.nulls(2, pa.string()), "category", [NAN, NAN]),
}


def learnt(values: Any) -> list[float]:
    """The column as the encoder that was learnt from it reads it."""
    rows = pa.table({"x": values})
    return encode(learn_encoder(rows, ["x"]), rows)[:, 0].tolist()  # type: ignore[no-any-return]


@pytest.mark.parametrize("name", TYPED)
def test_a_column_of_each_type_becomes_numbers_with_null_as_nan(name: str) -> None:
    values, kind, numbers = TYPED[name]
    assert column_type(values.type) == kind
    np.testing.assert_array_equal(learnt(values), np.array(numbers, dtype=np.float32))


def test_infinite_numbers_and_those_beyond_float32_become_its_largest() -> None:
    assert learnt([INFINITY, -INFINITY, 1e300, -1e300, LARGEST]) == [LARGEST, -LARGEST, LARGEST, -LARGEST, LARGEST]


@pytest.mark.parametrize("unit", ["s", "ms", "us", "ns"])
def test_the_end_of_time_is_the_largest_number_of_its_unit(unit: str) -> None:
    last = 2**63 - 1  # as the warehouse's Arrow has its infinity
    of_a_day = DAY * {"s": 1, "ms": 10**3, "us": 10**6, "ns": 10**9}[unit]
    assert learnt(pa.array([last, -last], pa.timestamp(unit))) == pytest.approx([last / of_a_day, -last / of_a_day])


def test_a_timestamp_is_the_same_instant_in_every_zone_and_unit() -> None:
    instant = datetime(2024, 2, 29, 23, 30, tzinfo=timezone(timedelta(hours=-5)))
    zones = ("UTC", "America/New_York", "Asia/Kolkata")
    found = {learnt(pa.array([instant], pa.timestamp(unit, zone)))[0] for unit in ("s", "us", "ns") for zone in zones}
    (days,) = found
    assert days == pytest.approx((instant - datetime(1970, 1, 1, tzinfo=UTC)) / timedelta(days=1), abs=3 / 24 / 60)


def test_rare_and_unseen_categories_are_0_and_the_others_are_counted_in_alphabetical_order() -> None:
    encoder = learn_encoder(pa.table({"x": ["zebra"] * 20 + ["Ant"] * 21 + ["bee"] * 19 + [None] * 40}), ["x"])
    assert encoder.columns[0].categories == ("Ant", "zebra")
    asked = pa.table({"x": ["zebra", "Ant", "bee", "unseen", "", "ZEBRA", None]})
    np.testing.assert_array_equal(encode(encoder, asked)[:, 0], [2, 1, 0, 0, 0, 0, NAN])


def test_only_the_255_most_frequent_categories_keep_a_code_and_of_equals_the_first_by_name() -> None:
    names = [f"c{number:03}" for number in range(300)]
    values = [name for name in reversed(names) for _ in range(21 if name >= "c290" else 20)]
    kept = learn_encoder(pa.table({"x": values}), ["x"]).columns[0].categories
    assert kept == (*names[:245], *names[290:])


def test_chunks_with_dictionaries_of_their_own_are_read_as_one_column() -> None:
    chunks = [pa.array(["b"] * 20).dictionary_encode(), pa.array(["a"] * 20 + ["b"]).dictionary_encode()]
    assert learnt(pa.chunked_array(chunks)) == [2] * 20 + [1] * 20 + [2]


def test_a_dictionary_encoded_column_is_read_by_an_encoder_learnt_from_plain_text_and_the_other_way_round() -> None:
    plain = pa.table({"x": ["a", "b", None] * 20})
    encoded = pa.table({"x": plain.column("x").dictionary_encode()})
    of_plain, of_encoded = learn_encoder(plain, ["x"]), learn_encoder(encoded, ["x"])
    assert of_plain == of_encoded
    np.testing.assert_array_equal(encode(of_plain, encoded), encode(of_encoded, plain))


def test_a_number_may_come_in_another_type_of_number_than_in_training() -> None:
    encoder = learn_encoder(pa.table({"x": [1, 2]}), ["x"])
    for values in (pa.array([2.0]), pa.array([Decimal(2)]), pa.array([2], pa.int8())):
        assert encode(encoder, pa.table({"x": values})).tolist() == [[2.0]]


UNFIT = {
    "list": pa.array([[1]]),
    "struct": pa.array([{"a": 1}]),
    "binary": pa.array([b"x"]),
    "time": pa.array([time(1)]),
    "duration": pa.array([timedelta(1)]),
    "nothing": pa.nulls(1),
}


def test_every_column_that_can_not_be_a_feature_is_named_in_one_error() -> None:
    rows = pa.Table.from_arrays(
        [pa.array([1]), *UNFIT.values(), pa.array([1]), pa.array([2])], names=["fine", *UNFIT, "twice", "twice"]
    )
    with pytest.raises(EncodingError) as raised:
        learn_encoder(rows, ["fine", "absent", *UNFIT, "twice"])
    faults = str(raised.value).split("; ")
    assert faults[0] == "column 'absent' is missing"
    assert faults[-1] == "column 'twice' occurs 2 times"
    assert [re.findall(r"'(\w+)' has type", fault) for fault in faults[1:-1]] == [[name] for name in UNFIT]
    assert "(possible: numbers, booleans, text, dates, timestamps)" in faults[1]


def test_every_column_missing_doubled_or_mistyped_since_training_is_named_in_one_error() -> None:
    encoder = learn_encoder(some_rows(), list(TYPES))
    found = pa.Table.from_arrays(
        [pa.array(["7"]), pa.array([1.0]), pa.array([2.0]), pa.array([1]), pa.array([True]), pa.array(["2024-01-01"])],
        names=["days_away", "spend", "spend", "member", "colour", "joined_on"],
    )
    with pytest.raises(EncodingError) as raised:
        encode(encoder, found)
    assert str(raised.value).split("; ") == [
        "column 'days_away' has type string, but the model was trained with a number",
        "column 'spend' occurs 2 times",
        "column 'member' has type int64, but the model was trained with a boolean",
        "column 'colour' has type bool, but the model was trained with a category",
        "column 'joined_on' has type string, but the model was trained with a date",
        "column 'seen_at' is missing",
    ]


def test_a_column_that_holds_nothing_and_has_no_type_is_read_as_any_type() -> None:
    encoder = learn_encoder(some_rows(), list(TYPES))
    matrix = encode(encoder, pa.table({name: pa.nulls(2) for name in TYPES}))
    assert matrix.shape == (2, len(TYPES)) and np.isnan(matrix).all()


def test_no_rows_give_a_matrix_without_rows() -> None:
    rows = some_rows()
    encoder = learn_encoder(rows, list(TYPES))
    for none in (rows.schema.empty_table(), rows.slice(0, 0), rows.to_batches()[0].slice(0, 0)):
        assert encode(encoder, none).shape == (0, len(TYPES))


def test_the_order_of_the_rows_changes_neither_the_encoder_nor_any_row() -> None:
    rows = some_rows()
    order = np.random.default_rng(1).permutation(rows.num_rows)
    shuffled = rows.take(pa.array(order))
    encoder = learn_encoder(rows, list(TYPES))
    assert learn_encoder(shuffled, list(TYPES)) == encoder
    np.testing.assert_array_equal(encode(encoder, shuffled), encode(encoder, rows)[order])


def test_a_row_alone_is_encoded_as_within_a_batch() -> None:
    rows = some_rows()
    encoder = learn_encoder(rows, list(TYPES))
    whole = encode(encoder, rows)
    for place in range(0, rows.num_rows, 9):
        one = pa.RecordBatch.from_pylist(rows.slice(place, 1).to_pylist(), schema=rows.schema)
        np.testing.assert_array_equal(encode(encoder, one)[0], whole[place])


def test_other_columns_and_the_order_of_the_columns_make_no_difference() -> None:
    rows = some_rows()
    encoder = learn_encoder(rows, list(TYPES))
    assert encoder.names == tuple(TYPES)
    turned = rows.select(list(reversed(rows.column_names)))
    np.testing.assert_array_equal(encode(encoder, turned), encode(encoder, rows.select(list(TYPES))))


def test_the_matrix_lies_in_memory_as_catboost_reads_it_without_a_copy() -> None:
    rows = some_rows()
    matrix = encode(learn_encoder(rows, list(TYPES)), rows)
    assert matrix.dtype == np.float32 and matrix.flags.f_contiguous
