"""A few rows are encoded without Arrow to the same bits as any rows are, whatever they hold."""

from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ml.declarations import Feature
from ml.encoding import Column, Encoder, EncodingError, column_type, encode
from ml.few_rows import encode_few, few_rows_encoder
from ml.values import TYPES, WrongValues, arrow_type, integer_range, read_rows

INTEGERS = [kind for kind in TYPES if kind.endswith(("INT", "INTEGER"))]
DAYS = st.dates().map(str) | st.sampled_from(["Infinity", "-Infinity", "0044-03-15(BC)", "12024-01-31", "9999-12-31"])
CLOCK = st.times().map(lambda time: time.replace(microsecond=0).isoformat())
ZONE = st.sampled_from(["Z", "+02:00", "-11:30"])
ENDS = st.sampled_from(["Infinity", "-Infinity"])
COLOURS = ("blue", "grün", "red")

# Of each type the JSON that is read as it.
VALUES: dict[str, st.SearchStrategy[Any]] = {
    "BOOLEAN": st.booleans(),
    **{kind: st.integers(*integer_range(kind)) | st.sampled_from(integer_range(kind)) for kind in INTEGERS},
    "FLOAT": st.floats(width=32, allow_nan=False, allow_infinity=False) | ENDS | st.just("NaN") | st.integers(-99, 99),
    "DOUBLE": st.floats(allow_nan=False, allow_infinity=False) | ENDS | st.sampled_from(["NaN", 3.4028235677973366e38]),
    "DECIMAL(4,2)": st.decimals("-99.99", "99.99", places=2).map(str),
    "DECIMAL(18,3)": (st.integers(-2, 2) | st.integers(-5 * 10**17, 5 * 10**17))
    .flatmap(lambda more: st.sampled_from([2**53 + more, -(2**53) + more, more]))
    .map(lambda unscaled: f"{'-' * (unscaled < 0)}{abs(unscaled) // 1000}.{abs(unscaled) % 1000:03}"),
    "DECIMAL(18,0)": st.integers(1 - 10**18, 10**18 - 1).map(str),
    "DECIMAL(38,10)": st.integers(1 - 10**28, 10**28 - 1).map("{}.0123456789".format),
    "DATE": DAYS,
    "TIMESTAMP_S": st.builds("{}T{}".format, st.dates(), CLOCK) | ENDS,
    "TIMESTAMP_MS": st.builds("{}T{}.{:03}".format, st.dates(), CLOCK, st.integers(0, 999)) | ENDS,
    "TIMESTAMP": st.builds("{}T{}.{:06}".format, st.dates(), CLOCK, st.integers(0, 999_999)) | ENDS,
    "TIMESTAMP_NS": st.builds("{}-02-28T{}.{:09}".format, st.integers(1678, 2261), CLOCK, st.integers(0, 999_999_999))
    | ENDS,
    "TIMESTAMP WITH TIME ZONE": st.builds("{}T{}.{:06}{}".format, st.dates(), CLOCK, st.integers(0, 999_999), ZONE)
    | ENDS,
    "VARCHAR": st.sampled_from([*COLOURS, "", "Red", "red\0"]) | st.text(max_size=5),
}
FEATURES = [Feature(name=f"a {kind}", data_type=kind, description="") for kind in VALUES]
UNREAD = Feature(name="read by no model", data_type="DECIMAL(4,2)", description="")
ENCODER = Encoder(
    tuple(
        Column(feature.name, kind, COLOURS if kind == "category" else ())
        for feature in reversed(FEATURES)
        if (kind := column_type(arrow_type(feature.data_type)))
    )
)
A_ROW = st.fixed_dictionaries(
    {feature.name: st.none() | VALUES[feature.data_type] for feature in FEATURES}
    | {UNREAD.name: st.none() | VALUES[UNREAD.data_type]}
)


def bits(matrix: Any) -> bytes:
    return bytes(np.where(np.isnan(matrix), np.float32("nan"), matrix).tobytes())


@settings(max_examples=100, deadline=None)
@given(rows=st.lists(A_ROW, max_size=3))
def test_a_few_rows_are_encoded_to_the_same_bits_as_any_number_of_them(rows: list[dict[str, Any]]) -> None:
    features = [*FEATURES, UNREAD]
    few = encode_few(few_rows_encoder(ENCODER, features), rows)
    assert few.dtype == np.float32
    assert bits(few) == bits(encode(ENCODER, read_rows(rows, features)))


def test_every_type_of_a_feature_is_tested() -> None:
    assert {kind for kind in VALUES if not kind.startswith("DECIMAL")} == set(TYPES)


@pytest.mark.parametrize(
    "row",
    [
        {"days": 1},
        {"days": 1, "colour": "red", "other": 2},
        {"days": 1, "other": "red"},
        {"days": 1.5, "colour": 3},
        {"days": 2**31, "colour": None},
        {},
    ],
)
def test_a_few_wrong_rows_are_told_as_any_are(row: dict[str, Any]) -> None:
    features = [
        Feature(name="days", data_type="INTEGER", description=""),
        Feature(name="colour", data_type="VARCHAR", description=""),
    ]
    encoder = few_rows_encoder(Encoder((Column("days", "number"), Column("colour", "category"))), features)
    rows = [{"days": 1, "colour": "red"}, row]
    with pytest.raises(WrongValues) as few:
        encode_few(encoder, rows)
    with pytest.raises(WrongValues) as any_number:
        read_rows(rows, features)
    assert few.value.faults == any_number.value.faults


def test_features_that_the_encoder_does_not_read_as_they_are_are_refused_before_any_row() -> None:
    encoder = Encoder((Column("days", "number"), Column("colour", "category")))
    with pytest.raises(EncodingError) as refused:
        few_rows_encoder(encoder, [Feature(name="colour", data_type="DATE", description="")])
    assert "column 'days' is missing" in str(refused.value)
    assert "column 'colour' has type date32[day], but the model was trained with a category" in str(refused.value)


def test_the_columns_are_the_encoders_whatever_the_order_of_the_features() -> None:
    schema = pa.schema([(feature.name, arrow_type(feature.data_type)) for feature in FEATURES])
    row = dict.fromkeys(schema.names) | {"a VARCHAR": "red", "a TINYINT": 7}
    found = encode_few(few_rows_encoder(ENCODER, FEATURES), [row])[0]
    assert dict(zip(ENCODER.names, found.tolist(), strict=True))["a VARCHAR"] == 3
    assert dict(zip(ENCODER.names, found.tolist(), strict=True))["a TINYINT"] == 7
