"""A model learns from what was known before the first held-out date, the same from the same rows, or says why not."""

from collections.abc import Callable
from datetime import UTC, date, datetime, timedelta
from pathlib import Path
from typing import Any
from uuid import UUID

import msgspec
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pytest

from ml.baseline import Naive, feature_values, fit_naive, naive_forecast
from ml.cards import make_card
from ml.declarations import Kind, Score
from ml.encoding import Column, ColumnType, Encoder, EncodingError, encode
from ml.labels import BadLabel, TooFewRows, TrainingError, label_numbers
from ml.metrics import evaluate
from ml.prediction import score_rows
from ml.registry import Model, save
from ml.splitting import TooFewDates, held_out_dates
from ml.training import Candidate, NoFeature, OneClass, champion_metrics, train
from tests.small_data import FIRST_DAY, TYPES, a_candidate, a_score, a_score_of, some_rows, with_column

KINDS: list[Kind] = ["probability", "amount", "category"]


def model_of(candidate: Candidate, kind: Kind = "probability") -> Model:
    when = datetime(2024, 5, 1, tzinfo=UTC)
    return Model(candidate.booster, make_card(candidate, a_score(kind), version=1, training_set="", trained_at=when))


def week(number: int) -> date:
    return FIRST_DAY + timedelta(weeks=number)


# --- Time

# Sixteen weeks, labels mature after two: 12 to 15 are held out, and the labels of week 11 mature too late for week 12.


@pytest.mark.parametrize("kind", KINDS)
def test_the_newest_dates_are_held_out_and_trained_is_on_what_had_matured_before_them(kind: Kind) -> None:
    candidate = a_candidate(kind)
    assert candidate.dates == {
        "train_from": week(0),
        "train_to": week(10),
        "holdout_from": week(12),
        "holdout_to": week(15),
    }
    assert candidate.rows == {"train": 11 * 20, "holdout": 4 * 20}
    assert set(candidate.holdout.column("week").to_pylist()) == {week(number) for number in range(12, 16)}


@pytest.mark.parametrize("kind", KINDS)
def test_labels_that_were_not_known_on_the_first_held_out_date_teach_nothing(kind: Kind, tmp_path: Path) -> None:
    rows = some_rows(kind=kind)
    unknown = pc.greater(rows.column("week"), pa.scalar(week(10)))
    worst = {
        "probability": lambda label: pc.subtract(1, label),
        "amount": lambda label: pc.multiply(label, -1e6),
        "category": lambda label: pc.if_else(pc.equal(label, "keen"), "lost", "keen"),
    }[kind](rows.column("label"))
    poisoned = train(with_column(rows, "label", pc.if_else(unknown, worst, rows.column("label"))), a_score(kind))
    assert checksum(poisoned, tmp_path / "b", kind) == checksum(a_candidate(kind), tmp_path / "a", kind)
    assert poisoned.metrics != a_candidate(kind).metrics
    assert poisoned.baseline_name == a_candidate(kind).baseline_name


def test_the_features_of_held_out_rows_teach_nothing(tmp_path: Path) -> None:
    rows = some_rows()
    unknown = pc.greater(rows.column("week"), pa.scalar(week(10)))
    poisoned = with_column(rows, "spend", pc.if_else(unknown, 1e9, rows.column("spend")))
    poisoned = with_column(poisoned, "colour", pc.if_else(unknown, "ultraviolet", rows.column("colour")))
    assert checksum(train(poisoned, a_score()), tmp_path / "b") == checksum(a_candidate(), tmp_path / "a")


def test_a_label_that_matures_on_the_first_held_out_date_is_used_and_one_a_day_later_is_not() -> None:
    rows = some_rows()
    late = pc.and_(pc.equal(rows.column("week"), pa.scalar(week(10))), pc.equal(rows.column("customer_id"), 0))
    later = pc.if_else(late, pa.scalar(week(12) + timedelta(days=1)), rows.column("matures_on"))
    assert train(with_column(rows, "matures_on", later), a_score()).rows["train"] == 11 * 20 - 1


@pytest.mark.parametrize(("dates", "held_out"), [(2, 1), (4, 1), (7, 1), (8, 2), (12, 3), (15, 3), (16, 4), (400, 4)])
def test_a_quarter_of_the_dates_is_held_out_and_four_at_most(dates: int, held_out: int) -> None:
    assert held_out_dates(dates) == held_out


@pytest.mark.parametrize("kept", [pa.timestamp("us"), pa.timestamp("us", "UTC"), pa.timestamp("s"), pa.date64()])
def test_the_as_of_column_may_be_a_date_or_timestamp_of_any_kind(kept: pa.DataType) -> None:
    days = some_rows().column("week")
    typed = days.cast(pa.timestamp("us")).cast(kept) if pa.types.is_timestamp(kept) else days.cast(kept)
    candidate = train(with_column(some_rows(), "week", typed), a_score())
    assert (candidate.dates, candidate.rows) == (a_candidate().dates, a_candidate().rows)


@pytest.mark.parametrize("weeks", [4, 5, 6])
def test_few_dates_are_enough_where_one_had_matured(weeks: int) -> None:
    candidate = train(some_rows(weeks=weeks, customers=60), a_score())
    assert candidate.dates["train_to"] == week(weeks - 3)
    assert candidate.rows == {"train": 60 * (weeks - 2), "holdout": 60}


# --- The same model


def checksum(candidate: Candidate, folder: Path, kind: Kind = "probability") -> str:
    """Of the booster's bytes, as it lies on disk."""
    return save(folder, candidate.booster, model_of(candidate, kind).card).booster_sha256


@pytest.mark.parametrize("kind", KINDS)
def test_the_same_rows_in_another_order_give_the_same_model_to_the_byte(kind: Kind, tmp_path: Path) -> None:
    rows = some_rows(kind=kind)
    order = np.random.default_rng(1).permutation(rows.num_rows)
    shuffled = train(pa.concat_tables([rows.take(pa.array(part)) for part in np.split(order, 4)]), a_score(kind))
    assert checksum(shuffled, tmp_path / "b", kind) == checksum(a_candidate(kind), tmp_path / "a", kind)
    assert (shuffled.metrics, shuffled.baseline) == (a_candidate(kind).metrics, a_candidate(kind).baseline)
    assert shuffled.importance == a_candidate(kind).importance
    assert shuffled.holdout.equals(a_candidate(kind).holdout)


def test_customers_may_be_named_by_uuids(tmp_path: Path) -> None:
    rows = some_rows()
    ids = pa.array([UUID(int=number).bytes for number in rows.column("customer_id").to_pylist()], pa.binary(16))
    named = with_column(rows, "customer_id", pa.ExtensionArray.from_storage(pa.uuid(), ids))
    assert checksum(train(named, a_score()), tmp_path / "b") == checksum(a_candidate(), tmp_path / "a")


def test_a_feature_may_have_any_name(tmp_path: Path) -> None:
    rows = some_rows()
    for name in ("place", "score", "row", "index"):
        rows = rows.append_column(name, rows.column("spend"))
    names = ("spend", "place", "score", "row", "index")
    assert train(rows, a_score_of(*names)).encoder.names == names


def test_other_rows_give_another_model(tmp_path: Path) -> None:
    other = train(some_rows(seed=8), a_score())
    assert checksum(other, tmp_path / "b") != checksum(a_candidate(), tmp_path / "a")


def test_a_composite_entity_is_put_in_order_by_all_its_columns(tmp_path: Path) -> None:
    rows = some_rows()
    rows = with_column(rows, "branch", [f"b{number % 4}" for number in rows.column("customer_id").to_pylist()])
    rows = with_column(rows, "number", [number // 4 for number in rows.column("customer_id").to_pylist()])
    score = a_score(entity=("branch", "number"))
    order = pa.array(np.random.default_rng(2).permutation(rows.num_rows))
    straight, shuffled = train(rows, score), train(rows.take(order), score)
    assert checksum(straight, tmp_path / "a") == checksum(shuffled, tmp_path / "b")
    assert straight.holdout.equals(shuffled.holdout)


# --- How good


@pytest.mark.parametrize("kind", KINDS)
def test_a_candidate_has_its_metrics_on_the_held_out_rows(kind: Kind) -> None:
    candidate = a_candidate(kind)
    scores = score_rows(model_of(candidate, kind), candidate.holdout)
    truth = label_numbers(candidate.holdout, kind, candidate.classes)
    assert candidate.metrics == evaluate(kind, truth, scores)
    assert candidate.scores.tolist() == scores.tolist()


@pytest.mark.parametrize(("kind", "metric"), [("probability", "roc_auc"), ("amount", "r2"), ("category", "roc_auc")])
def test_what_can_be_learnt_is_learnt_better_than_the_naive_forecast(kind: Kind, metric: str) -> None:
    assert a_candidate(kind).metrics[metric] > max(0.75, a_candidate(kind).baseline[metric])


def test_a_champion_is_measured_on_the_rows_the_candidate_held_out() -> None:
    candidate = a_candidate()
    assert champion_metrics(model_of(candidate), candidate.holdout) == candidate.metrics
    champion = model_of(train(some_rows(seed=8), a_score_of("days_away")))
    assert champion_metrics(champion, candidate.holdout) != candidate.metrics


def test_a_champion_whose_feature_is_gone_can_not_be_measured() -> None:
    champion = model_of(a_candidate())
    with pytest.raises(EncodingError, match="column 'spend' is missing"):
        champion_metrics(champion, a_candidate().holdout.drop_columns(["spend"]))


def test_importance_is_in_percent_and_the_greatest_comes_first() -> None:
    importance = a_candidate().importance
    assert set(importance) == set(TYPES)
    assert next(iter(importance)) == "days_away"
    assert list(importance.values()) == sorted(importance.values(), reverse=True)
    assert sum(importance.values()) == pytest.approx(100, abs=0.01)


def test_a_date_of_which_only_early_outcomes_are_known_is_neither_learned_from_nor_measured_on() -> None:
    rows = some_rows(weeks=30, customers=100)
    label, week = rows.column("label").to_numpy(), rows.column("week").to_pylist()
    # Who leaves is known to have left on that day, who stays after 28 days.
    days = np.where(label == 1, np.random.default_rng(0).integers(1, 29, len(label)), 28)
    matures_on = [day + timedelta(days=int(after)) for day, after in zip(week, days, strict=True)]
    rows = with_column(rows, "matures_on", pa.array(matures_on, pa.date32()))
    known = rows.filter(pc.less_equal(rows.column("matures_on"), pa.scalar(FIRST_DAY + timedelta(weeks=30))))
    candidate = train(known, a_score())
    assert candidate.dates["holdout_to"] == FIRST_DAY + timedelta(weeks=26)
    assert candidate.dates["train_to"] == FIRST_DAY + timedelta(weeks=19)
    assert candidate.rows["holdout"] == 400 and candidate.rows["train"] == 2000
    assert candidate.rates["train"] == pytest.approx(label[:2000].mean())


def test_months_of_other_lengths_are_whole_dates_once_their_labels_have_matured() -> None:
    rows = some_rows(weeks=30, customers=20)
    week = rows.column("week").to_pylist()
    longer = {day: 28 + place % 4 for place, day in enumerate(sorted(set(week)))}
    longer[max(week)] = 28  # the newest is the shortest
    matures_on = pa.array([day + timedelta(days=longer[day]) for day in week], pa.date32())
    candidate = train(with_column(rows, "matures_on", matures_on), a_score())
    assert candidate.dates["holdout_to"] == max(week)


def test_the_number_of_trees_is_found_on_the_newest_training_dates() -> None:
    assert 1 < a_candidate().trees < 1000
    noise = with_column(some_rows(), "label", np.random.default_rng(4).integers(0, 2, 320))
    assert train(noise, a_score()).trees < a_candidate().trees


def test_a_candidate_tells_whether_its_dates_left_no_room_for_labels_to_mature_before_the_newest() -> None:
    assert not a_candidate().validation_overlaps
    short = train(some_rows(weeks=4, customers=60), a_score())  # on weeks 0 and 1, whose labels mature after two
    assert short.validation_overlaps and model_of(short).card.validation_overlaps
    one_date = train(some_rows(weeks=3, customers=60), a_score())
    assert not one_date.validation_overlaps, "there is nothing to validate on"


def test_the_number_of_trees_is_fixed_where_the_earlier_dates_have_one_outcome() -> None:
    rows = some_rows()
    early = pc.less(rows.column("week"), pa.scalar(week(8)))
    assert train(with_column(rows, "label", pc.if_else(early, 0, rows.column("label"))), a_score()).trees == 100
    amounts = some_rows(kind="amount")
    constant = with_column(amounts, "label", pc.if_else(early, 5.0, amounts.column("label")))
    assert train(constant, a_score("amount")).trees == 100


@pytest.mark.parametrize("kind", KINDS)
def test_progress_is_told_in_order_and_never_beyond_the_most_there_can_be(kind: Kind) -> None:
    told: list[tuple[int, int]] = []
    candidate = train(some_rows(kind=kind), a_score(kind), progress=lambda done, most: told.append((done, most)))
    done, most = [done for done, _ in told], [most for _, most in told]
    assert done == list(range(1, len(done) + 1))
    assert most == sorted(most, reverse=True)
    assert all(done <= most for done, most in told)
    assert done[-1] == most[-1] > candidate.trees


# --- Amounts


def test_an_amount_is_never_negative_where_no_label_was() -> None:
    candidate, rows = a_candidate("amount"), some_rows(kind="amount", seed=11, customers=100)
    raw = candidate.booster.predict(encode(candidate.encoder, rows))
    scores = score_rows(model_of(candidate, "amount"), rows)
    assert raw.min() < 0 and scores.min() == 0
    assert scores.tolist() == np.maximum(raw, 0).tolist()


def test_an_amount_may_be_negative_where_a_label_was() -> None:
    rows = some_rows(kind="amount")
    lower = with_column(rows, "label", pc.subtract(rows.column("label"), 60))
    candidate = train(lower, a_score("amount"))
    assert candidate.lowest is None
    assert score_rows(model_of(candidate, "amount"), rows).min() < 0


def test_a_probability_has_no_lowest_amount() -> None:
    assert a_candidate().lowest is None


# --- Odd features


def test_nulls_everywhere_and_columns_that_never_differ_do_no_harm() -> None:
    rows = some_rows()
    mask = np.random.default_rng(6).random(rows.num_rows) < 0.5
    for name in TYPES:
        rows = with_column(rows, name, pc.if_else(pa.array(mask), pa.scalar(None, TYPES[name]), rows.column(name)))
    odd = {
        "nothing": pa.nulls(320, pa.float64()),
        "no_text": pa.nulls(320, pa.string()),
        "constant": pa.array([7] * 320),
        "one_text": pa.array(["same"] * 320),
        "endless": pa.array([np.inf, -np.inf, np.nan, None] * 80),
    }
    for name, values in odd.items():
        rows = with_column(rows, name, values)
    candidate = train(rows, a_score_of(*TYPES, *odd))
    assert candidate.encoder.names == (*TYPES, *odd)
    assert {candidate.importance[name] for name in list(odd)[:4]} == {0.0}
    assert np.isfinite(score_rows(model_of(candidate), rows)).all()


@pytest.mark.parametrize("kind", KINDS)
def test_infinite_numbers_beside_nulls_can_be_learnt_from(kind: Kind) -> None:
    rows = some_rows(kind=kind)
    high = pc.greater(rows.column("label"), {"probability": 0, "amount": 40, "category": "lost"}[kind]).to_numpy()
    endless = np.where(high, np.nan, np.where(np.arange(320) % 3, -np.inf, np.inf))
    candidate = train(with_column(rows, "x", pa.array(endless, from_pandas=True)), a_score_of("x", kind=kind))
    assert all(np.isfinite(value) for value in (*candidate.metrics.values(), *candidate.baseline.values()))


def test_columns_that_are_no_features_are_ignored(tmp_path: Path) -> None:
    rows = with_column(some_rows(), "leak", some_rows().column("label"))
    assert checksum(train(rows, a_score()), tmp_path / "b") == checksum(a_candidate(), tmp_path / "a")


# --- What can't be trained on


def edited(name: str, value: Any, at: int = 5, kind: Kind = "probability") -> pa.Table:
    rows = some_rows(kind=kind)
    values = rows.column(name).to_pylist()
    values[at] = value
    return with_column(rows, name, values)


def never_matured() -> pa.Table:
    rows = some_rows(weeks=3)
    later = pc.add(rows.column("matures_on"), pa.scalar(timedelta(days=28)))
    return with_column(rows, "matures_on", later.cast(pa.date32()))


def constant() -> pa.Table:
    rows = some_rows()
    for name in TYPES:
        rows = with_column(rows, name, rows.column(name).take(pa.array([1] * 320)))
    return rows


Case = tuple[Callable[[], pa.Table], Score, type[Exception], str]
UNSOUND: dict[str, Case] = {
    "no rows": (
        lambda: some_rows().slice(0, 0),
        a_score(),
        TooFewRows,
        "the training set is empty: 20 rows are needed to train on",
    ),
    "hardly a row": (
        lambda: some_rows(weeks=4, customers=9),
        a_score(),
        TooFewRows,
        "18 training rows (of 36; the others are held out or matured too late): 20 are needed",
    ),
    "hardly a row to measure on": (
        lambda: some_rows(weeks=6, customers=19),
        a_score(),
        TooFewRows,
        "19 held-out rows (of 114; as-of dates 2024-02-05 to 2024-02-05): 20 are needed to measure on",
    ),
    "one date": (
        lambda: some_rows(weeks=1, customers=60),
        a_score(),
        TooFewDates,
        "1 as-of dates with matured labels: 1 to hold out and one before them are needed",
    ),
    "nothing matured": (
        never_matured,
        a_score(),
        TooFewDates,
        "3 as-of dates with matured labels, of which 1 are held out, from 2024-01-15 on: none of the 2 before had its"
        " labels matured by then (the first matures on 2024-02-12, nearly all within 42 days)",
    ),
    "one outcome": (
        lambda: with_column(some_rows(), "label", [1] * 320),
        a_score(),
        OneClass,
        "all 220 training rows have the label 1: both outcomes are needed",
    ),
    "one amount": (
        lambda: with_column(some_rows(), "label", [2.5] * 320),
        a_score("amount"),
        OneClass,
        "all 220 training rows have the label 2.5: two amounts at least are needed",
    ),
    "no feature differs": (
        constant,
        a_score(),
        NoFeature,
        "none of the 6 features differs between the 220 training rows",
    ),
    "null label": (
        lambda: edited("label", None),
        a_score(),
        BadLabel,
        "keys, label and matures_on are never null, but of 320 rows: label in 1 rows",
    ),
    "null keys": (
        lambda: with_column(edited("customer_id", None), "matures_on", pa.nulls(320, pa.date32())),
        a_score(),
        BadLabel,
        "keys, label and matures_on are never null, but of 320 rows: customer_id in 1 rows, matures_on in 320 rows",
    ),
    "one class": (
        lambda: with_column(some_rows(), "label", ["keen"] * 320),
        a_score("category"),
        OneClass,
        "all 220 training rows have the label keen: two classes at least are needed",
    ),
    "too many classes": (
        lambda: with_column(some_rows(), "label", [str(number % 51) for number in range(320)]),
        a_score("category"),
        BadLabel,
        "the label has 51 classes (0, 1, 10, 11, 12, ...): 50 at most",
    ),
    "classes that are no names": (
        lambda: some_rows(kind="amount"),
        a_score("category"),
        BadLabel,
        "the label of a category is text, a boolean or a whole number, but has type double",
    ),
    "NaN": (
        lambda: edited("label", np.nan, kind="amount"),
        a_score("amount"),
        BadLabel,
        "1 of 320 labels are NaN or infinite",
    ),
    "infinite": (
        lambda: edited("label", -np.inf, kind="amount"),
        a_score("amount"),
        BadLabel,
        "1 of 320 labels are NaN or infinite",
    ),
    "beyond all numbers": (
        lambda: edited("label", 1e300, kind="amount"),
        a_score("amount"),
        BadLabel,
        "1 of 320 labels are beyond 3.4e+38, the largest that can be learned (they go from 0 to 1e+300)",
    ),
    "amounts that a booster can't tell apart": (
        lambda: with_column(some_rows(), "label", [1e9 + number % 2 for number in range(320)]),
        a_score("amount"),
        OneClass,
        "all 220 training rows have the label 1e+09: two amounts at least are needed",
    ),
    "no outcome but an id": (
        lambda: with_column(some_rows(), "label", [2**60 + 1] * 320),
        a_score(),
        BadLabel,
        "the label of a probability is 0 or 1, but there are others: 1.152921504606847e+18",
    ),
    "no outcome": (
        lambda: with_column(some_rows(), "label", [0.0, 1.0, 0.5, 2.0] * 80),
        a_score(),
        BadLabel,
        "the label of a probability is 0 or 1, but there are others: 0.5, 2.0",
    ),
    "text": (
        lambda: with_column(some_rows(), "label", ["yes", "no"] * 160),
        a_score(),
        BadLabel,
        "the label is a number or boolean, but has type string",
    ),
    "no keys": (
        lambda: some_rows().drop_columns(["customer_id", "matures_on"]),
        a_score(),
        TrainingError,
        "the training set lacks customer_id, matures_on",
    ),
    "features that can't be": (
        lambda: with_column(some_rows().drop_columns(["spend"]), "colour", [[1]] * 320),
        a_score(),
        EncodingError,
        "column 'spend' is missing; column 'colour' has type list<item: int64>, which can't be a feature",
    ),
}


@pytest.mark.parametrize("unsound", UNSOUND)
def test_rows_that_no_sound_model_can_be_trained_on_are_refused_with_what_is_wrong(unsound: str) -> None:
    rows, score, error, message = UNSOUND[unsound]
    with pytest.raises(error) as raised:
        train(rows(), score)
    assert type(raised.value) is error
    assert message in str(raised.value)


@pytest.mark.parametrize("kept", [pa.bool_(), pa.int8(), pa.float32(), pa.decimal128(25, 2)])
def test_outcomes_may_be_of_any_type_that_is_0_and_1(kept: pa.DataType, tmp_path: Path) -> None:
    typed = with_column(some_rows(), "label", some_rows().column("label").cast(kept))
    assert checksum(train(typed, a_score()), tmp_path / "b") == checksum(a_candidate(), tmp_path / "a")


# --- A category


def test_a_category_has_its_classes_in_order_and_a_probability_of_each() -> None:
    candidate = a_candidate("category")
    assert candidate.classes == ("keen", "lost", "wary")
    assert candidate.scores.shape == (80, 3)
    assert candidate.scores.sum(axis=1) == pytest.approx(1)


@pytest.mark.parametrize(
    ("kept", "classes"),
    [(pa.int8(), ("0", "1")), (pa.bool_(), ("false", "true")), (pa.dictionary(pa.int8(), pa.string()), ("0", "1"))],
)
def test_classes_may_be_whole_numbers_booleans_or_an_enum(kept: pa.DataType, classes: tuple[str, ...]) -> None:
    label = some_rows().column("label")
    stored = label.cast(pa.string()).dictionary_encode() if pa.types.is_dictionary(kept) else label.cast(kept)
    assert train(with_column(some_rows(), "label", stored), a_score("category")).classes == classes


def test_a_class_that_first_appears_among_the_held_out_rows_counts_as_wrong() -> None:
    rows = some_rows(kind="category")
    late = pc.greater_equal(rows.column("week"), pa.scalar(week(12)))
    odd = pc.and_(late, pc.equal(rows.column("customer_id"), 3))
    candidate = train(with_column(rows, "label", pc.if_else(odd, "new", rows.column("label"))), a_score("category"))
    assert candidate.classes == ("keen", "lost", "wary")
    assert candidate.metrics["accuracy"] <= a_candidate("category").metrics["accuracy"]


def test_the_naive_category_is_that_of_the_number_whose_ranges_tell_the_classes() -> None:
    rows = some_rows(kind="category")
    assert a_candidate("category").baseline_name in ("days_away alone", "spend alone")
    told = train(
        with_column(rows, "told", pc.index_in(rows.column("label"), pa.array(["keen", "lost"]))),
        a_score_of("told", "spend", kind="category"),
    )
    assert told.baseline_name == "told alone"
    assert told.baseline["accuracy"] == 1


def test_where_no_number_tells_the_classes_the_naive_category_has_their_shares() -> None:
    candidate = train(some_rows(kind="category"), a_score_of("colour", "member", kind="category"))
    assert candidate.baseline_name == "the shares of the classes"
    assert candidate.baseline["roc_auc"] == 0.5


# --- The naive forecast


def naive(
    kind: Kind, columns: dict[str, list[Any]], label: list[float], held_out: dict[str, list[Any]], **types: ColumnType
) -> tuple[list[float], str]:
    def matrix(values: dict[str, list[Any]]) -> Any:
        return np.array(list(values.values()), dtype=np.float32).T

    encoder = Encoder(tuple(Column(name, types.get(name, "number")) for name in columns))
    fitted = fit_naive(kind, encoder, matrix(columns), np.array(label, dtype=float))
    kept = msgspec.json.decode(msgspec.json.encode(fitted), type=Naive)
    assert kept == fitted, "it can be kept"
    return naive_forecast(kept, feature_values(encoder, matrix(held_out), kept)).tolist(), kept.told


def test_the_naive_probability_is_that_of_the_number_which_ranks_the_training_rows_best() -> None:
    columns = {"worse": [3.0, 2.0, 4.0, 1.0], "best": [1.0, 2.0, 3.0, 4.0]}
    forecast, name = naive("probability", columns, [0, 0, 1, 1], {"worse": [4.0, 1.0], "best": [1.0, 4.0]})
    assert (forecast, name) == (pytest.approx([0.005, 0.995]), "best alone")


def test_a_number_that_falls_where_the_outcome_is_likelier_ranks_as_well() -> None:
    forecast, name = naive("probability", {"x": [4.0, 3.0, 2.0, 1.0]}, [0, 0, 1, 1], {"x": [1.0, 4.0]})
    assert (forecast, name) == (pytest.approx([0.995, 0.005]), "x alone")


def test_a_naive_probability_is_never_certain_so_its_log_loss_is_not_worse_than_that_of_the_base_rate() -> None:
    random = np.random.default_rng(5)
    x = random.normal(size=5300)
    label = (random.random(5300) < 1 / (1 + np.exp(-x))).astype(float)
    forecast, _ = naive("probability", {"x": list(x[:300])}, list(label[:300]), {"x": list(x[300:])})
    of_base_rate = evaluate("probability", label[300:], np.full(5000, label[:300].mean()))
    assert evaluate("probability", label[300:], np.array(forecast))["log_loss"] < of_base_rate["log_loss"]


@pytest.mark.parametrize("scale", [0.001, 1.0, 1e6])
@pytest.mark.parametrize("falling", [False, True])
def test_a_null_has_the_rate_of_nulls_and_not_of_the_values_beside_it(scale: float, falling: bool) -> None:
    values = [0.1, 0.5, 0.1, 0.5, None, None]
    sign = -1 if falling else 1
    columns = {"x": [np.nan if value is None else sign * scale * value for value in values]}
    held_out = {"x": [sign * scale * 0.1, sign * scale * 0.5, sign * scale * 0.9, np.nan]}
    forecast, _ = naive("probability", columns, [0, 0, 0, 1, 1, 1], held_out)
    assert forecast == pytest.approx([0.005, 0.5, 0.5, 0.995])  # 0.9 is beyond all: as the highest


def test_a_null_that_no_training_row_had_has_the_base_rate() -> None:
    assert naive("probability", {"x": [1.0, 2.0, 3.0, 4.0]}, [0, 0, 1, 1], {"x": [np.nan]}) == ([0.5], "x alone")


@pytest.mark.parametrize("values", [[1.0] * 4, [np.nan] * 4, [1.0, 2.0, 1.0, 2.0]])
def test_where_no_number_ranks_the_naive_probability_is_the_base_rate(values: list[float]) -> None:
    assert naive("probability", {"x": values}, [0, 0, 1, 1], {"x": [1.0, 2.0]}) == ([0.5, 0.5], "base rate")


@pytest.mark.parametrize("rows", [60, 200, 1000])
def test_numbers_that_tell_nothing_of_the_class_are_no_naive_forecast(rows: int) -> None:
    random = np.random.default_rng(1)
    columns = {f"noise_{place}": random.normal(size=rows).tolist() for place in range(3)}
    label = random.integers(0, 3, rows).tolist()
    _, name = naive("category", columns, label, {of: [0.0] for of in columns})
    assert name == "the shares of the classes"


def test_only_numbers_take_part_in_the_naive_forecast() -> None:
    columns = {"a": [0.0, 0.0, 1.0, 1.0], "b": [0.0, 0.0, 1.0, 1.0]}
    of = {"a": [1.0], "b": [1.0]}
    assert naive("probability", columns, [0, 0, 1, 1], of, a="boolean", b="category") == ([0.5], "base rate")
    assert naive("amount", columns, [0, 0, 1, 1], of, a="date", b="timestamp") == ([0.5], "the mean as the forecast")


def test_the_naive_amount_is_the_number_nearest_to_it_on_the_training_rows_with_the_mean_for_null() -> None:
    columns = {"far": [9.0, 8.0, 7.0, 6.0], "near": [11.0, 19.0, 31.0, np.nan]}
    forecast, name = naive("amount", columns, [10, 20, 30, 40], {"far": [50.0, 50.0], "near": [5.0, np.nan]})
    assert (forecast, name) == ([5.0, 25.0], "near as the forecast")


def test_where_no_number_is_nearer_the_naive_amount_is_the_mean() -> None:
    assert naive("amount", {"x": [40.0, 30.0, 20.0, 10.0]}, [10, 20, 30, 40], {"x": [1.0]}) == (
        [25.0],
        "the mean as the forecast",
    )


def test_a_candidate_is_measured_against_the_naive_forecast() -> None:
    assert a_candidate().baseline_name == "days_away alone"
    assert a_candidate().baseline["roc_auc"] > 0.75
    assert train(some_rows(), a_score_of("member", "colour")).baseline_name == "base rate"
