"""Whether what is published is what the warehouse holds: counted, and compared value by value for a sample."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import msgspec

from ml.declarations import Score
from orchestration import warehouse
from orchestration.warehouse import Connection

if TYPE_CHECKING:
    import pyarrow as pa

    from serving.generations.store import Store

COMPARED = 1000
RESULTS = ("score", "band")


class PublishedDiffers(RuntimeError):
    """What was written for publication is not what the warehouse holds: score, column, customer, both values.

    `columns`: column -> how many of the compared customers differ in it.
    """

    def __init__(self, message: str, columns: Mapping[str, int]) -> None:
        super().__init__(f"{message}; the old generation serves on")
        self.columns = dict(columns)


def compare(connection: Connection, score: Score, opened: "Store", key: str, of_rows: str, of_features: str) -> int:
    """Compares an open generation with the warehouse; gives how many customers were looked up.

    All customers are counted on both sides. Of a sample, the same each time, score, band and every feature are looked
    up as applications do, read as models do, and compared by type with the warehouse's own Arrow, which no JSON has
    been made of. `of_rows` and `of_features` are SQL, `from … where …`, of the predictions and of the features; `key`
    is SQL of the customer's id. Raises `PublishedDiffers` with all columns that differ.
    """
    name, published = opened.generation.generation, opened.generation.rows  # both files were counted at opening
    scored, with_features = (
        warehouse.one(connection, f"select count(*) {of_them}")[0] for of_them in (of_rows, of_features)
    )
    if not published == scored == with_features:
        raise PublishedDiffers(
            f"score '{score.name}': {published} customers are in generation {name}, but the warehouse has"
            f" {scored} scores and the features of {with_features}",
            {},
        )
    features = [feature.name for feature in opened.generation.features]
    held = _held(connection, score, key, features, of_rows, of_features)
    ids = held[0].to_pylist()
    found = _looked_up(opened, score, ids)
    told, columns = [], {}
    for column, ours, theirs in zip((*RESULTS, *features), found, held[1:], strict=True):
        if places := _differing(ours, theirs):
            told.append(
                f"column {column}: {len(places)} of {len(ids)} differ, e.g. customer {ids[places[0]]}:"
                f" {_told(ours, places[0])} published, {_told(theirs, places[0])} in the warehouse"
            )
            columns[column] = len(places)
    if told:
        differ = f"score '{score.name}': generation {name} is not what the warehouse holds: {'; '.join(told)}"
        raise PublishedDiffers(differ, columns)
    return len(ids)


def _held(
    connection: Connection, score: Score, key: str, features: Sequence[str], of_rows: str, of_features: str
) -> "list[pa.Array]":
    """Of the sample what the warehouse holds: ids, scores, bands, and each feature, as its own Arrow."""
    entity = warehouse.names(score.entity)
    # By place, since a feature may be called as a column of predictions is.
    ours = ("_customer", *(f"_{column}" for column in RESULTS))
    columns = [*(f"sampled.{column}" for column in ours), *(f"features.{warehouse.name(name)}" for name in features)]
    listed = ", ".join(f"{column} as _{place}" for place, column in enumerate(columns))
    query = f"""
        with sampled as (
            select {entity}, {key} as _customer, score as _score, band as _band {of_rows}
            order by hash(_customer), _customer limit {COMPARED}
        ),

        features as (select * {of_features})

        select {listed} from sampled left join features using ({entity}) order by sampled._customer
    """
    with warehouse.batches(connection, query) as batches:
        rows = batches.read_all()
    return [column.combine_chunks() for column in rows.columns]


def _looked_up(opened: "Store", score: Score, ids: Sequence[str]) -> "list[pa.Array]":
    """What applications are told of these customers: scores, bands, and each feature."""
    import pyarrow as pa

    from ml import values
    from serving.generations import store

    features = opened.generation.features
    results, rows = [], []
    for customer_id in ids:
        stored, of_features = opened.get(customer_id), opened.features(customer_id)
        if stored is None or of_features is None:
            raise PublishedDiffers(
                f"score '{score.name}': customer '{customer_id}' is in the warehouse but not in generation"
                f" {opened.generation.generation}",
                {},
            )
        results.append(msgspec.json.decode(stored, type=store.CustomerScore))
        decoded = msgspec.json.decode(of_features)
        rows.append(dict(zip((feature.name for feature in features), decoded, strict=True)))
    try:
        batch = values.read_rows(rows, features)
    except values.WrongValues as wrong:
        of_column: dict[str, list[values.Fault]] = {}
        for fault in wrong.faults:
            of_column.setdefault(fault.feature, []).append(fault)
        told = [
            f"column {column}: {len(faults)} of {len(ids)} can't be read, e.g. customer {ids[faults[0].row - 1]}:"
            f" {faults[0].fault}"
            for column, faults in of_column.items()
        ]
        raise PublishedDiffers(
            f"score '{score.name}': generation {opened.generation.generation} is not what the warehouse holds:"
            f" {'; '.join(told)}",
            {column: len(faults) for column, faults in of_column.items()},
        ) from None
    return [
        pa.array([result.value for result in results], pa.float64()),
        pa.array([result.band for result in results], pa.string()),
        *batch.columns,
    ]


def _differing(found: "pa.Array", expected: "pa.Array") -> list[int]:
    """The places where two columns differ. Null is null, and NaN is NaN."""
    import pyarrow as pa
    import pyarrow.compute as pc

    if pa.types.is_dictionary(expected.type):
        expected = expected.dictionary_decode()
    if found.type != expected.type:
        return list(range(len(found)))
    same = pc.fill_null(pc.equal(found, expected), False)
    same = pc.or_(same, pc.and_(found.is_null(), expected.is_null()))
    if pa.types.is_floating(found.type):
        both = pc.and_(pc.is_nan(found), pc.is_nan(expected))
        same = pc.or_(same, pc.fill_null(both, False))
    return [place for place, equal in enumerate(same.to_pylist()) if not equal]


def _told(column: "pa.Array", place: int) -> Any:
    import pyarrow as pa

    return column.slice(place, 1).cast(pa.string())[0].as_py()
