"""Tells people what features there are: the file behind the page /features."""

import json
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

import msgspec

from ml.declarations import Project, Score
from orchestration import versions, warehouse
from orchestration.project import Paths, load_manifest, read_json, replaced
from orchestration.warehouse import Connection
from serving.pages.feature_catalogue import (
    FILE,
    Bin,
    FeatureFigures,
    FeatureModel,
    FeatureReport,
    FeatureUse,
    read_features,
)

if TYPE_CHECKING:
    import pyarrow as pa

BINS = 16  # of a number; of a category the most frequent values, and the others together
SAMPLED = 20_000  # rows that a distribution is drawn from, by hash
# A column is named with its unit last; what config.meta.unit says of it counts more.
UNITS = ("days", "count", "share", "ratio", "usd", "eur", "chf", "gbp", "pct", "hours", "minutes", "km", "kg")


def tell_features(connection: Connection, project: Project, score: Score, where: Paths) -> None:
    """Writes what /features shows of a score's feature model, beside those of other scores, if it has changed.

    Another score's model is told where nothing is known of it, and else stays as it is: each score tells its own, and
    if each told all, a run's time would grow with the square of their number. The file is whole or not written at all.
    """
    manifest = load_manifest(where)
    before = read_features(where.reports)
    known = {model.name: model for model in before.models} if before else {}
    models = []
    for features_id in dict.fromkeys(score.features_id for score in project.scores):
        scores = [one for one in project.scores if one.features_id == features_id]
        name = manifest["nodes"][features_id]["name"]
        if features_id != score.features_id and name in known:
            models.append(known[name])
        elif warehouse.exists(connection, scores[0].features_schema, scores[0].features):
            models.append(_model(connection, manifest, scores, where, known.get(name)))
    if before is not None and before.models == models:
        return
    with replaced(where.reports / FILE) as staged:
        staged.write_bytes(msgspec.json.encode(FeatureReport(written_at=datetime.now(UTC), models=models)))


def _model(
    connection: Connection,
    manifest: Mapping[str, Any],
    scores: Sequence[Score],
    where: Paths,
    before: FeatureModel | None,
) -> FeatureModel:
    """A feature model with its features; what was counted `before` is taken over where the rows are the same."""
    score = scores[0]
    node = manifest["nodes"][score.features_id]
    table, as_of = warehouse.name(score.features_schema, score.features), warehouse.name(score.as_of)
    (newest,) = warehouse.one(connection, f"select max({as_of})::date from {table}")
    of_newest = f"select * from {table} where {as_of}::date = date '{newest}'"
    rows, content = warehouse.content_hash(connection, of_newest if newest else f"select * from {table}")
    types = {
        name: kind
        for name, kind in warehouse.columns(connection, score.features_schema, score.features).items()
        if name in {column.name for column in score.model_columns}
    }
    of = f"{newest} {content} {json.dumps(types)}"
    if before is not None and before.of == of:
        figures = {feature.name: _counted(feature) for feature in before.features}
    else:
        figures = _figures(connection, of_newest, types, score) if newest else dict.fromkeys(types, NOTHING)
    uses = [_uses(connection, one, where) for one in scores]
    lineage = Lineage(manifest, where)
    meta = node["config"]["meta"]
    return FeatureModel(
        name=node["name"],
        description=" ".join(node["description"].split()),
        owner=str(meta.get("owner") or ", ".join(meta.get("dagster", {}).get("owners", []))),
        entity=score.entity,
        as_of=score.as_of,
        newest=newest,
        rows=rows if newest else 0,
        of=of,
        features=[
            FeatureFigures(
                name=column.name,
                data_type=types[column.name],
                unit=_unit(column.name, node["columns"][column.name]),
                description=column.description,
                made_from=lineage.roots(score.features_id, column.name),
                uses=[use[column.name] for use in uses if column.name in use],
                **figures[column.name],
            )
            for column in score.model_columns
            if column.name in types
        ],
    )


NOTHING: dict[str, Any] = {"null_share": 0.0, "distinct": 0, "minimum": None, "maximum": None, "bins": []}


def _counted(feature: FeatureFigures) -> dict[str, Any]:
    """What was counted of a feature, apart from what is said of it."""
    return {name: getattr(feature, name) for name in NOTHING}


def _unit(name: str, column: Mapping[str, Any]) -> str | None:
    declared = (column.get("config", {}).get("meta") or column.get("meta") or {}).get("unit")
    last = name.rpartition("_")[2]
    return str(declared) if declared else last if last in UNITS else None


def _uses(connection: Connection, score: Score, where: Paths) -> dict[str, FeatureUse]:
    """Feature -> what it does in a score; those that it excludes are there while its champion still reads them."""
    champion = versions.champion(connection, score)
    importance = _importance(where, score, champion["version"]) if champion else {}
    reports = sorted((where.reports / score.name).glob("*/drift.json"))
    drift = read_json(reports[-1]).get("metrics", {}) if reports else {}
    page = reports[-1].with_name("drift.html") if reports else None
    link = f"{score.name}/{page.parent.name}/{page.name}" if page and page.is_file() else score.name
    used = {column.name for column in score.columns} | set(importance)
    return {
        name: FeatureUse(
            score=score.name,
            title=score.title,
            version=champion["version"] if champion else None,
            importance=importance.get(name),
            verdict=drift.get(f"column.{name}.verdict"),
            report=link if f"column.{name}.verdict" in drift else None,
        )
        for name in used
    }


def _importance(where: Paths, score: Score, version: int) -> dict[str, float]:
    """Feature -> percent of a version's importance; nothing of a damaged version, which its own step tells."""
    from ml.registry import CorruptModel, load_card

    try:
        return load_card(where.models / score.name / str(version)).importance
    except CorruptModel:
        return {}


class Lineage:
    """Column lineage from a model down to raw tables and seeds, as the last builds have told it, model by model."""

    def __init__(self, manifest: Mapping[str, Any], where: Paths) -> None:
        self._manifest = manifest
        self._folder = where.data / "dbt" / "lineage"
        self._known: dict[str, dict[str, list[tuple[str, str]]]] = {}

    def roots(self, unique_id: str, column: str) -> list[str]:
        """The columns of raw tables and seeds that a model's column is made from, sorted: `raw.orders.amount`."""
        found, seen, waiting = set(), set(), [(unique_id, column)]
        while waiting:
            place = waiting.pop()
            if place in seen:
                continue
            seen.add(place)
            node, name = place
            if not node.startswith("model."):
                of = self._manifest["sources"].get(node) or self._manifest["nodes"][node]
                found.add(f"{of['schema']}.{of.get('identifier') or of['alias']}.{name}")
                continue
            if node not in self._known:
                self._known[node] = read_json(self._folder / f"{node}.json").get("lineage", {})
            known = self._known[node]  # by names in lower case
            waiting += [(parent, made_from) for parent, made_from in known.get(name, known.get(name.lower(), []))]
        return sorted(found)


def _figures(
    connection: Connection, of_newest: str, types: Mapping[str, str], score: Score
) -> dict[str, dict[str, Any]]:
    """Feature -> null share, different values, range and distribution on the newest date; the latter of a sample."""
    from ml.encoding import column_type

    names = {name: warehouse.name(name) for name in types}
    asked = ", ".join(
        f"count({column}), count(distinct {column}), min({column})::varchar, max({column})::varchar"
        for column in names.values()
    )
    total, *counts = warehouse.one(connection, f"select count(*), {asked} from ({of_newest})")
    sample = connection.sql(
        f"select {warehouse.names(list(types))} from ({of_newest}) order by hash({warehouse.names(score.entity)})"
        f" limit {SAMPLED}"
    ).to_arrow_table()
    figures = {}
    for place, name in enumerate(types):
        known, distinct, lowest, highest = counts[4 * place : 4 * place + 4]
        kind = column_type(sample.schema.field(name).type)
        is_range = kind in ("number", "date", "timestamp")
        figures[name] = {
            "null_share": 1 - known / total if total else 0.0,
            "distinct": distinct,
            "minimum": lowest if is_range else None,
            "maximum": highest if is_range else None,
            "bins": (_ranges if is_range else _values)(sample.column(name)),
        }
    return figures


def _values(column: "pa.ChunkedArray") -> list[Bin]:
    """The most frequent values, and all others as one."""
    import pyarrow as pa

    counted = column.cast(pa.string()).drop_null().value_counts().to_pylist()
    counted.sort(key=lambda pair: (-pair["counts"], pair["values"]))
    total = sum(pair["counts"] for pair in counted)
    bins = [Bin(told=pair["values"], share=pair["counts"] / total) for pair in counted[: BINS - 1]]
    others = sum(pair["counts"] for pair in counted[BINS - 1 :])
    return [*bins, Bin(told=f"{len(counted) - BINS + 1} others", share=others / total)] if others else bins


def _ranges(column: "pa.ChunkedArray") -> list[Bin]:
    """The shares of equal ranges from the first to the last percentile; what lies beyond is in the outermost."""
    import numpy as np
    import pyarrow as pa
    import pyarrow.compute as pc

    from ml.encoding import LARGEST, column_type

    as_days = column_type(column.type) in ("date", "timestamp")
    # What is infinite is left out. The ends of time are the largest whole numbers of their type.
    if as_days:
        whole = pa.int32() if pa.types.is_date32(column.type) else pa.int64()
        column = column.filter(pc.less(pc.abs(column.cast(whole)), np.iinfo(whole.to_pandas_dtype()).max))
        if pa.types.is_timestamp(column.type):
            column = column.cast(pa.timestamp("s"), safe=False)
        column = column.cast(pa.date32()).cast(pa.int32())
    numbers = np.asarray(column.drop_null().cast(pa.float64(), safe=False).to_numpy(), dtype=np.float64)
    numbers = np.clip(numbers[np.isfinite(numbers)], -LARGEST, LARGEST)
    if not len(numbers):
        return []
    lowest, highest = np.quantile(numbers, [0.01, 0.99])
    if lowest == highest:
        lowest, highest = numbers.min(), numbers.max()

    def told(number: float) -> str:
        # numpy's days, as Python's end with the year 9999 and the warehouse's do not
        return str(np.datetime64(int(number), "D")) if as_days else f"{number:,.4g}"

    if lowest == highest:
        return [Bin(told=told(lowest), share=1.0)]
    # Numbers that differ by rounding alone leave no room between them for so many edges.
    has_room = bool((np.diff(np.linspace(lowest, highest, BINS + 1)) > 0).all())
    shares, edges = np.histogram(np.clip(numbers, lowest, highest), bins=BINS if has_room else 1)
    return [
        Bin(told=f"{told(left)} to {told(right)}", share=float(count / len(numbers)))
        for count, left, right in zip(shares, edges, edges[1:], strict=False)
    ]
