"""A prediction is the same number in any batch, with the band it falls in and the reasons that add up to it."""

from datetime import UTC, date, datetime, time, timedelta, timezone
from decimal import Decimal
from functools import cache
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from ml.calibration import Calibration
from ml.cards import make_card
from ml.declarations import Kind
from ml.encoding import EncodingError, encode
from ml.explanation import as_text, contributions
from ml.learning import Explained
from ml.prediction import bands_of, outcomes, score_batch, score_rows
from ml.registry import Model
from ml.training import train
from tests.small_data import (
    CLASSES,
    TRAINED_AT,
    TYPES,
    a_model,
    a_model_of_classes,
    a_score,
    a_score_of,
    some_rows,
    with_column,
)

KINDS: list[Kind] = ["probability", "amount"]
ALL_KINDS: list[Kind] = [*KINDS, "category"]
NOW = datetime(2024, 5, 2, 6, 0, tzinfo=UTC)


def batch(customers: int = 20, seed: int = 9) -> pa.RecordBatch:
    """Feature rows as they come to be scored: without labels, of customers the model has not seen."""
    rows = some_rows(customers=customers, seed=seed).drop_columns(["label", "matures_on"])
    (found,) = rows.combine_chunks().to_batches()
    return found


@cache
def model_of(kind: Kind) -> Model:
    return a_model_of_classes() if kind == "category" else a_model(kind)


def scored(kind: Kind = "probability", rows: pa.RecordBatch | None = None, reasons: int = 3) -> pa.RecordBatch:
    score = a_score(kind, explained=Explained(top=reasons))
    return score_batch(model_of(kind), score, batch() if rows is None else rows, NOW)


def with_category(rows: pa.RecordBatch, colour: str) -> pa.RecordBatch:
    return rows.set_column(rows.schema.get_field_index("colour"), "colour", pa.array([colour]))


# --- Scores


def test_a_prediction_has_its_keys_band_reasons_version_and_time() -> None:
    rows = batch()
    predictions = scored(rows=rows)
    assert predictions.schema == pa.schema(
        [
            ("customer_id", pa.int64()),
            ("as_of_date", pa.date32()),
            ("score", pa.float64()),
            ("band", pa.string()),
            (
                "reasons",
                pa.list_(pa.struct([("feature", pa.string()), ("value", pa.string()), ("contribution", pa.float64())])),
            ),
            ("model_version", pa.int32()),
            ("scored_at", pa.timestamp("us", "UTC")),
        ]
    )
    assert predictions.column("customer_id").equals(rows.column("customer_id"))
    assert predictions.column("as_of_date").equals(rows.column("week"))
    assert set(predictions.column("model_version").to_pylist()) == {3}
    assert set(predictions.column("scored_at").to_pylist()) == {NOW}


@pytest.mark.parametrize("kind", KINDS)
def test_a_score_asked_for_on_demand_is_the_score_of_the_batch(kind: Kind) -> None:
    rows = batch()
    in_batch = scored(kind, rows).column("score").to_pylist()
    assert score_rows(a_model(kind), rows).tolist() == in_batch
    asked = [pa.RecordBatch.from_pylist([row], schema=rows.schema) for row in rows.to_pylist()]
    assert [score_rows(a_model(kind), one)[0] for one in asked] == in_batch


@pytest.mark.parametrize("kind", ALL_KINDS)
@pytest.mark.parametrize("size", [1, 7, 100])
def test_scores_and_reasons_are_the_same_to_the_bit_whatever_the_size_of_the_batch(kind: Kind, size: int) -> None:
    rows = batch().slice(0, 105)
    parts = [scored(kind, rows.slice(start, size)) for start in range(0, len(rows), size)]
    assert pa.Table.from_batches(parts).combine_chunks().to_batches()[0].equals(scored(kind, rows))


def test_the_order_of_the_rows_is_kept_and_changes_no_prediction() -> None:
    rows = batch()
    order = pa.array(np.random.default_rng(1).permutation(len(rows)))
    assert scored(rows=rows.take(order)).equals(scored(rows=rows).take(order))


def test_a_request_may_leave_values_out_and_name_categories_never_seen() -> None:
    values = dict.fromkeys(TYPES) | {"days_away": 50, "colour": "plaid"}
    untyped = pa.RecordBatch.from_pylist([values])
    typed = pa.RecordBatch.from_pylist([values | {"colour": "tartan"}], schema=pa.schema(TYPES))
    assert untyped.schema.field("spend").type == pa.null()
    assert score_rows(a_model(), untyped).tolist() == score_rows(a_model(), typed).tolist()


def test_probabilities_lie_between_0_and_1() -> None:
    scores = scored().column("score").to_numpy()
    assert 0 < scores.min() < 0.5 < scores.max() < 1


@pytest.mark.parametrize("kind", ALL_KINDS)
@pytest.mark.parametrize("reasons", [0, 3])
def test_no_rows_give_no_predictions_of_the_same_columns(kind: Kind, reasons: int) -> None:
    none = scored(kind, batch().slice(0, 0), reasons)
    assert len(none) == 0
    assert none.schema == scored(kind, reasons=reasons).schema


@pytest.mark.parametrize("kind", KINDS)
def test_no_rows_have_no_scores(kind: Kind) -> None:
    assert score_rows(a_model(kind), batch().slice(0, 0)).tolist() == []
    assert score_rows(a_model_of_classes(), batch().slice(0, 0)).shape == (0, 3)


def test_a_composite_key_keeps_its_columns_and_their_types() -> None:
    rows = batch()
    rows = rows.append_column("branch", pa.array(["b1", "b2"] * 160).dictionary_encode())
    predictions = score_batch(a_model(), a_score(entity=("branch", "customer_id")), rows, NOW)
    assert predictions.schema.names[:3] == ["branch", "customer_id", "as_of_date"]
    assert predictions.column("branch").equals(rows.column("branch"))


def test_the_time_of_scoring_is_told_in_utc() -> None:
    tokyo = datetime(2024, 5, 2, 15, 0, tzinfo=timezone(timedelta(hours=9)))
    predictions = score_batch(a_model(), a_score(), batch().slice(0, 1), tokyo)
    assert predictions.column("scored_at")[0].as_py() == NOW


def test_a_time_of_scoring_without_zone_is_refused() -> None:
    with pytest.raises(ValueError, match="scored_at is 2024-05-02 06:00:00, without a time zone"):
        score_batch(a_model(), a_score(), batch(), datetime(2024, 5, 2, 6))


def test_rows_that_lack_features_or_have_them_in_another_type_are_refused_with_their_names() -> None:
    rows = batch().drop_columns(["spend"])
    wrong = rows.set_column(rows.schema.get_field_index("member"), "member", pa.array(["yes"] * len(rows)))
    fault = "column 'spend' is missing; column 'member' has type string, but the model was trained with a boolean"
    for score_them in (lambda: scored(rows=wrong), lambda: score_rows(a_model(), wrong)):
        with pytest.raises(EncodingError) as raised:
            score_them()
        assert str(raised.value) == fault


def test_rows_that_lack_their_key_are_refused() -> None:
    with pytest.raises(EncodingError, match="the rows lack their key: customer_id, week"):
        scored(rows=batch().drop_columns(["customer_id", "week"]))


# --- Bands

BANDS = {"high": 0.6, "low": 0.1, "medium": 0.3}


@pytest.mark.parametrize(
    ("score", "band"),
    [
        (0.6, "high"),
        (np.nextafter(0.6, 0), "medium"),
        (0.3, "medium"),
        (np.nextafter(0.3, 0), "low"),
        (0.1, "low"),
        (np.nextafter(0.1, 0), None),
        (0.0, None),
        (1.0, "high"),
    ],
)
def test_a_band_begins_with_the_score_it_starts_at_and_below_the_lowest_is_none(score: float, band: str | None) -> None:
    assert bands_of(np.array([score]), BANDS).to_pylist() == [band]


def test_scores_have_no_band_where_there_are_none() -> None:
    assert bands_of(np.array([0.1, 0.9]), {}).to_pylist() == [None, None]
    assert bands_of(np.array([]), BANDS).type == bands_of(np.array([]), {}).type == pa.string()


def test_amounts_have_bands_too_and_a_negative_one_may_start_at_minus_something() -> None:
    assert bands_of(np.array([-20.0, -5.0, 0.0]), {"loss": -10.0, "gain": 0.0}).to_pylist() == [None, "loss", "gain"]


def test_a_prediction_has_the_band_of_its_score() -> None:
    rows = batch()
    found = scored(rows=rows).column("score").to_pylist()
    edge = sorted(found)[100]
    predictions = score_batch(a_model(), a_score(bands={"upper": edge}), rows, NOW)
    assert predictions.column("band").to_pylist() == ["upper" if score >= edge else None for score in found]


# --- Reasons


def raw(kind: Kind, rows: pa.RecordBatch) -> Any:
    """The raw scores: log-odds, or amounts before they are raised to the lowest."""
    model = a_model(kind, lowest=None)
    scores = score_rows(model, rows)
    return np.log(scores / (1 - scores)) if kind == "probability" else scores


@pytest.mark.parametrize("kind", KINDS)
def test_the_contributions_and_the_expected_score_add_up_to_the_raw_score(kind: Kind) -> None:
    rows, model = batch(), a_model(kind)
    added, expected = contributions(model.leaf_table, encode(model.card.encoder, rows))
    assert added.shape == (len(rows), len(TYPES))
    np.testing.assert_allclose(added.sum(axis=1) + expected, raw(kind, rows), rtol=0, atol=1e-9)


@pytest.mark.parametrize("kind", KINDS)
def test_all_reasons_of_a_row_are_its_contributions(kind: Kind) -> None:
    rows, model = batch().slice(0, 50), a_model(kind)
    added, _ = contributions(model.leaf_table, encode(model.card.encoder, rows))
    for row, reasons in enumerate(scored(kind, rows, reasons=100).column("reasons").to_pylist()):
        told = {reason["feature"]: reason["contribution"] for reason in reasons}
        assert told == {name: size for name, size in zip(TYPES, added[row], strict=True) if size != 0}


@pytest.mark.parametrize("most", [1, 3, 6, 100])
def test_the_strongest_reasons_come_first_and_there_are_no_more_than_asked_for(most: int) -> None:
    rows = batch()
    every = scored(rows=rows, reasons=100).column("reasons").to_pylist()
    for reasons, of in zip(scored(rows=rows, reasons=most).column("reasons").to_pylist(), every, strict=True):
        sizes = [abs(reason["contribution"]) for reason in reasons]
        assert sizes == sorted(sizes, reverse=True)
        assert reasons == of[:most]
    assert len(every[0]) == len(TYPES)


def test_where_nobody_asked_for_reasons_there_are_none() -> None:
    assert scored(reasons=0).column("reasons").to_pylist() == [[]] * 320


def test_a_feature_that_moved_nothing_is_no_reason() -> None:
    score = a_score_of("days_away", "always")
    rows = with_column(some_rows(), "always", [1] * 320)
    candidate = train(rows, score)
    model = Model(candidate.booster, make_card(candidate, score, version=1, training_set="", trained_at=TRAINED_AT))
    reasons = score_batch(model, score, rows.combine_chunks().to_batches()[0], NOW).column("reasons").to_pylist()
    assert {tuple(reason["feature"] for reason in of) for of in reasons} == {("days_away",)}


def test_a_reason_tells_the_value_that_the_row_has() -> None:
    rows = batch()
    told = scored(rows=rows, reasons=100).column("reasons").to_pylist()
    for row, reasons in zip(rows.to_pylist(), told, strict=True):
        values = {reason["feature"]: reason["value"] for reason in reasons}
        member = None if row["member"] is None else str(row["member"]).lower()
        expected = {
            "days_away": None if row["days_away"] is None else str(row["days_away"]),
            "spend": None if row["spend"] is None else f"{row['spend']:.2f}".rstrip("0").rstrip("."),
            "member": member,
            "colour": row["colour"],
            "joined_on": str(row["joined_on"]),
            "seen_at": f"{row['seen_at']:%Y-%m-%d %H:%M:%S}Z",
        }
        assert values == {name: expected[name] for name in values}


def test_a_reason_tells_a_rare_category_by_its_name() -> None:
    one = with_category(batch().slice(0, 1), "ultraviolet")
    (reasons,) = scored(rows=one, reasons=100).column("reasons").to_pylist()
    assert {"feature": "colour", "value": "ultraviolet"}.items() <= next(
        reason for reason in reasons if reason["feature"] == "colour"
    ).items()


TEXTS: dict[str, tuple[pa.Array, list[str | None]]] = {
    "integers": (pa.array([2**63 - 1, -7, 0, None]), ["9223372036854775807", "-7", "0", None]),
    "doubles": (
        pa.array([0.1 + 0.2, 12.3456, 1234567.891, -0.000123456789, 3.0, -0.0, np.nan, None]),
        ["0.3", "12.3456", "1234567.89", "-0.000123457", "3", "0", None, None],
    ),
    "floats": (pa.array([0.1, 3.3], pa.float32()), ["0.1", "3.3"]),
    "decimals": (pa.array([Decimal("12345678.91"), None], pa.decimal128(12, 2)), ["12345678.91", None]),
    "infinite": (pa.array([np.inf, -np.inf]), ["inf", "-inf"]),
    "booleans": (pa.array([True, False, None]), ["true", "false", None]),
    "texts": (pa.array(["Zoë", "", None]), ["Zoë", "", None]),
    "dictionary": (pa.array(["a", None, "a"]).dictionary_encode(), ["a", None, "a"]),
    "dates": (pa.array([date(2017, 12, 31), None]), ["2017-12-31", None]),
    "timestamps": (pa.array([datetime(2024, 1, 2, 3, 4, 5, 678)]), ["2024-01-02 03:04:05"]),
    "timestamps with zone": (pa.array([NOW], pa.timestamp("us", "UTC")), ["2024-05-02 06:00:00Z"]),
    "times": (pa.array([time(17, 30)], pa.time32("s")), ["17:30:00"]),
    "nothing": (pa.nulls(2), [None, None]),
    "no chunk": (pa.chunked_array([], pa.float64()), []),
    "chunks": (pa.chunked_array([[1.5], [2.0]]), ["1.5", "2"]),
}


@pytest.mark.parametrize("name", TEXTS)
def test_values_are_told_as_people_read_them(name: str) -> None:
    values, texts = TEXTS[name]
    assert as_text(values).to_pylist() == texts


# --- Reasons for whom


def explained(told: Explained, rows: pa.RecordBatch | None = None, **changes: Any) -> list[Any]:
    score = a_score(explained=told, **changes)
    return list(
        score_batch(model_of("probability"), score, batch() if rows is None else rows, NOW)
        .column("reasons")
        .to_pylist()
    )


def test_reasons_are_those_of_the_bands_asked_for_and_the_same_as_if_all_had_them() -> None:
    predictions = scored()
    bands, every = predictions.column("band").to_pylist(), predictions.column("reasons").to_pylist()
    assert set(bands) == {"high", "low"}
    told = explained(Explained(bands=("high",)))
    assert told == [reasons if band == "high" else [] for band, reasons in zip(bands, every, strict=True)]
    assert explained(Explained(bands=())) == [[]] * 320


def test_a_share_of_the_others_is_drawn_by_customer_and_the_same_ones_in_any_batch() -> None:
    told = Explained(bands=("high",), sample=0.3)
    rows = batch(customers=200)
    bands = scored(rows=rows).column("band").to_pylist()
    has_reasons = [bool(reasons) for reasons in explained(told, rows)]
    customers = rows.column("customer_id").to_pylist()
    drawn = {
        customer for customer, band, has in zip(customers, bands, has_reasons, strict=True) if has and band != "high"
    }
    assert 40 < len(drawn) < 80
    assert has_reasons == [band == "high" or customer in drawn for customer, band in zip(customers, bands, strict=True)]
    texts = rows.set_column(0, "customer_id", rows.column("customer_id").cast(pa.string()))
    parts = [*explained(told, texts.slice(0, 1000)), *explained(told, texts.slice(1000))]
    assert [bool(reasons) for reasons in parts] == has_reasons
    assert all(explained(Explained(bands=(), sample=1.0), rows))


def test_customers_of_several_columns_are_drawn_by_all_of_them() -> None:
    rows = batch().append_column("branch", pa.array(["b1", "b2"] * 160).dictionary_encode())
    told = Explained(bands=(), sample=0.5)
    both = [bool(reasons) for reasons in explained(told, rows, entity=("branch", "customer_id"))]
    assert 0 < sum(both) < 320
    assert both != [bool(reasons) for reasons in explained(told, rows)]


# --- Categories


@pytest.mark.parametrize("classes", [2, 7, 8, 9, 17, 130])
def test_of_however_many_classes_a_row_has_the_same_probabilities_in_any_batch(classes: int) -> None:
    raw = np.random.default_rng(0).normal(0, 3, (300, classes))
    together = outcomes("category", np.asfortranarray(raw), None, Calibration())  # as CatBoost lays out many rows
    for size in (1, 2, 15):
        parts = [outcomes("category", raw[row : row + size], None, Calibration()) for row in range(0, 300, size)]
        np.testing.assert_array_equal(np.concatenate(parts), together)


def test_a_category_has_the_likeliest_class_as_its_band_and_the_probability_of_each() -> None:
    rows = batch()
    predictions = scored("category", rows)
    assert predictions.schema.field("probabilities").type == pa.map_(pa.string(), pa.float64())
    expected = score_rows(a_model_of_classes(), rows)
    assert expected.shape == (320, 3)
    np.testing.assert_allclose(expected.sum(axis=1), 1)
    for row, one in enumerate(predictions.to_pylist()):
        assert [name for name, _ in one["probabilities"]] == list(CLASSES)
        assert [probability for _, probability in one["probabilities"]] == expected[row].tolist()
        assert (one["band"], one["score"]) == max(one["probabilities"], key=lambda pair: pair[1])
    assert set(predictions.column("band").to_pylist()) == set(CLASSES)


def test_the_reasons_of_a_category_are_what_moved_its_likeliest_class() -> None:
    rows, model = batch(), a_model_of_classes()
    matrix = encode(model.card.encoder, rows)
    added, expected = contributions(model.leaf_table, matrix)
    assert added.shape == (320, 3, len(TYPES))
    raw_of_classes = model.booster.predict(matrix)
    np.testing.assert_allclose(added.sum(axis=2) + expected, raw_of_classes, rtol=0, atol=1e-9)
    predictions = scored("category", rows, reasons=100)
    for row, (band, reasons) in enumerate(
        zip(*(predictions.column(name).to_pylist() for name in ("band", "reasons")), strict=True)
    ):
        told = {reason["feature"]: reason["contribution"] for reason in reasons}
        of_class = added[row, CLASSES.index(band)]
        assert told == {name: size for name, size in zip(TYPES, of_class, strict=True) if size != 0}


def test_a_category_is_explained_in_the_classes_asked_for() -> None:
    score = a_score("category", explained=Explained(bands=("never",)))
    predictions = score_batch(a_model_of_classes(), score, batch(), NOW)
    found = {
        band: bool(reasons)
        for band, reasons in zip(
            predictions.column("band").to_pylist(), predictions.column("reasons").to_pylist(), strict=True
        )
    }
    assert found == {"later": False, "never": True, "soon": False}
