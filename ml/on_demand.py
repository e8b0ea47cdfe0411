"""Scores on demand: rows that somebody has now, scored as the generation that is served scores its customers.

The numbers, bands and reasons are those of a batch, to the bit. `predict` takes Arrow, as a batch job streams it;
`predict_few` a few rows of JSON by a short way, so that an event loop can wait for it.
"""

from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

import msgspec
import numpy as np
import pyarrow as pa

from ml import explanation
from ml.declarations import Feature
from ml.encoding import encode
from ml.few_rows import FewRowsEncoder, encode_few, few_rows_encoder
from ml.prediction import Judged, by_class, judged
from ml.registry import Model
from ml.sentences import sentence, subject

if TYPE_CHECKING:
    from numpy.typing import NDArray

Knots = tuple["NDArray[np.float64]", "NDArray[np.float64]"]

# What an event loop may wait for, half a millisecond: so many rows, of which trees compare so many numbers.
FEW_ROWS, FEW_NUMBERS = 15, 2**17
FEW_BY_CATBOOST = 5  # rows, where it is CatBoost that is asked

REASON = pa.struct([*explanation.REASON, pa.field("text", pa.string())])


class Scorer(msgspec.Struct, frozen=True, kw_only=True):
    """A model, and what its generation says of how its scores are told. Made by `make_scorer`.

    `knots` are scores and percentiles to interpolate between, of a category by class, else under ""; none where they
    are not known. `few` is the encoder of a few rows. `top` is how many reasons the score's owner has told.
    """

    model: Model
    features: tuple[Feature, ...]
    bands: dict[str, float]
    knots: "dict[str, Knots]"
    top: int
    few: FewRowsEncoder
    subjects: dict[str, str]


def make_scorer(
    model: Model,
    features: Sequence[Feature],
    bands: Mapping[str, float],
    quantiles: Mapping[str, Sequence[float]] = MappingProxyType({}),
    top: int = 3,
) -> Scorer:
    """The scorer of a model for rows of exactly these features, those of a generation.

    `quantiles` are the values of the generation's customers at 0 to 100 percent, evenly spaced: of a category by class,
    else under "". There is no percentile where they are not known.
    Raises `EncodingError` if the model reads others, `UnknownType` if one has a type that no feature can have.
    """
    return Scorer(
        model=model,
        features=tuple(features),
        bands=dict(bands),
        knots={of: _knots(values) for of, values in quantiles.items()},
        top=top,
        few=few_rows_encoder(model.card.encoder, features),
        subjects={feature.name: subject(feature.name, feature.description) for feature in features},
    )


def predict(scorer: Scorer, rows: pa.RecordBatch, reasons: bool = False, texts: bool = True) -> pa.RecordBatch:
    """The predictions of rows as `ml.values.read_rows` gives them, in their order.

    Columns: value double; band varchar, null below the lowest; percentile double, the percent of customers scored no
    higher, null where that is not known; of a category also probabilities map<varchar, double>. With `reasons` also
    reasons list<struct<feature, value, contribution, text>>, of every row, the strongest first, as many as the score's
    owner has told; without `texts` they are as `ml.explanation.reasons` gives them. Raises `EncodingError` if a
    feature is missing or mistyped.
    """
    encoder = scorer.model.card.encoder
    matrix = encode(encoder, rows)
    found = judged(scorer.model, matrix, scorer.bands)
    columns = {
        "value": pa.array(found.scores, pa.float64()),
        "band": found.bands(),
        "percentile": pa.array(_percentiles(scorer, found), pa.float64(), from_pandas=True),
    }
    if found.by_class is not None:
        columns["probabilities"] = by_class(found.names, found.by_class)
    if reasons:
        likeliest = None if found.by_class is None else found.places
        told = explanation.no_reasons(rows.num_rows)
        if scorer.top and rows.num_rows:
            told = explanation.reasons(scorer.model.leaf_table, encoder, rows, matrix, scorer.top, likeliest)
        classes = None if likeliest is None else columns["band"]
        columns["reasons"] = _with_texts(told, scorer.subjects, classes) if texts else told
    return pa.RecordBatch.from_pydict(columns)


def most_at_once(scorer: Scorer) -> int:
    """How many rows `predict_few` predicts while an event loop waits for it; one at the least."""
    trees = scorer.model.trees
    return FEW_BY_CATBOOST if trees is None else max(1, min(FEW_ROWS, FEW_NUMBERS // trees.features.size))


def predict_few(scorer: Scorer, rows: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """The same of a few rows of decoded JSON, without reasons: for each what it has in the columns of `predict`.

    Raises `WrongValues` with all that is wrong with the rows.
    """
    found = judged(scorer.model, encode_few(scorer.few, rows), scorer.bands, scorer.model.trees)
    told = [
        {
            "value": value,
            "band": None if place < 0 else found.names[place],
            "percentile": None if percentile != percentile else percentile,
        }
        for value, place, percentile in zip(
            found.scores.tolist(), found.places.tolist(), _percentiles(scorer, found).tolist(), strict=True
        )
    ]
    if found.by_class is not None:
        for one, probabilities in zip(told, found.by_class.tolist(), strict=True):
            one["probabilities"] = dict(zip(found.names, probabilities, strict=True))
    return told


def _knots(quantiles: Sequence[float]) -> "Knots":
    """Scores, ascending, and the percent of customers scored no higher than each, to interpolate between.

    Customers of equal score are several quantiles: just below it there are fewer of them, from it on all.
    """
    percents = np.linspace(0, 100, len(quantiles))
    values, first, count = np.unique(quantiles, return_index=True, return_counts=True)
    scores: list[float] = []
    places: list[int] = []
    for value, start, equal in zip(values, first, count, strict=True):
        below = np.nextafter(value, -np.inf)
        if equal > 1 and (not scores or scores[-1] < below):
            scores.append(below)
            places.append(start)
        scores.append(value)
        places.append(start + equal - 1)
    return np.array(scores), percents[places]


def _percentiles(scorer: Scorer, found: Judged) -> "NDArray[np.float64]":
    """With two decimals; NaN where they are not known."""
    if found.by_class is None and "" in scorer.knots:
        return np.round(np.interp(found.scores, *scorer.knots[""], left=0.0), 2)
    percentiles = np.full(len(found.scores), np.nan)
    if found.by_class is not None:
        for place, name in enumerate(found.names):
            if name in scorer.knots:
                its = found.places == place
                percentiles[its] = np.round(np.interp(found.scores[its], *scorer.knots[name], left=0.0), 2)
    return percentiles


def _with_texts(told: pa.ListArray, subjects: Mapping[str, str], classes: pa.Array | None) -> pa.ListArray:
    """The reasons with their sentences; of a category they speak for or against each row's class."""
    of_class = [None] * len(told) if classes is None else classes.to_pylist()
    owners = told.value_parent_indices().to_pylist()
    parts = [told.values.field(name) for name in ("feature", "value", "contribution")]
    texts = [
        sentence(subjects[feature], value, contribution, of_class[owner])
        for owner, feature, value, contribution in zip(owners, *(part.to_pylist() for part in parts), strict=True)
    ]
    struct = pa.StructArray.from_arrays([*parts, pa.array(texts, pa.string())], fields=list(REASON))
    return pa.ListArray.from_arrays(told.offsets, struct)
