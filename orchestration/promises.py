"""Whether a champion keeps what was promised of it, and where it does not, why that is likely so.

Each cause is a rule over what the engine has recorded anyway, and is told with its figures: several may apply.
"""

import math
from collections.abc import Mapping, Sequence
from datetime import date
from typing import TYPE_CHECKING, Any, Literal

import msgspec

from ml.declarations import Score
from ml.intervals import NORMAL_95
from ml.metrics import METRICS
from ml.realised import Cause, RealisedDate, drifted_share, overall
from orchestration import warehouse
from orchestration.model_files import card_of
from orchestration.outcomes import outcomes_of
from orchestration.project import Paths, load_manifest, read_json
from orchestration.realised import realised_dates
from orchestration.training_sets import training_set_file
from orchestration.warehouse import Connection

if TYPE_CHECKING:
    from ml.registry import Card

# What a score gets wrong that ranks customers as well as ever, but on another level; and what moves with the level of
# the labels, however good the score is.
OF_CALIBRATION = {"log_loss", "brier", "calibration_error", "bias"}
OF_LEVEL = {"average_precision", "lift_top_decile"}
LEAST_REJECTED = 0.01  # share of a raw table's rows, and twice the share of before the training
USUAL_BATCHES = 3  # of a raw table before the training, from which on it is missed if none comes
LEAST_MOVED = 0.1  # of a base rate, relative: among many rows the least move is beyond chance
LEAST_DRIFTED = 0.1  # of the importance
NAMED = 3  # tables, columns or features of a cause


class Kept(msgspec.Struct, frozen=True, kw_only=True):
    """How a champion's newest matured date compares with its promise: in a word, in a sentence, and why if worse."""

    verdict: Literal["as promised", "worse", "better", "nothing matured yet"]
    told: str
    causes: list[Cause] = []


def broken_promise(connection: Connection, score: Score, champion: dict[str, Any], where: Paths) -> str | None:
    """Why a champion is worse than promised, in a sentence with the likely causes; None if it is not.

    It reads what has been measured: `orchestration.realised.measure` measures what has matured since.
    """
    found = kept(connection, score, champion, where)
    return told_with_causes(found) if found.verdict == "worse" else None


def told_with_causes(found: Kept) -> str:
    causes = "; ".join(f"{cause.name}: {cause.told}" for cause in found.causes)
    return f"{found.told}. Likely cause: {causes}" if causes else found.told


def kept(connection: Connection, score: Score, champion: dict[str, Any], where: Paths) -> Kept:
    """The verdict on the newest date that a champion has scored after its held-out ones and whose labels matured."""
    measured = realised_dates(connection, score, newest=1, version=champion["version"])
    if not measured:
        told = f"no labels have matured yet of what version {champion['version']} scored after {champion['holdout_to']}"
        return Kept(verdict="nothing matured yet", told=told)
    (found,) = measured
    verdict = overall(found.metrics)
    told = _told(found, verdict)
    causes = likely_causes(connection, score, champion, found, where) if verdict == "worse" else []
    return Kept(verdict=verdict, told=told, causes=causes)


def _told(found: RealisedDate, verdict: str) -> str:
    which = f"version {found.model_version} at {found.as_of_date}, on {found.rows:,} customers"
    apart = [metric for metric in found.metrics if metric.verdict == verdict]
    if verdict == "as promised":
        first = found.metrics[0]
        return f"{which}: as promised: {first.metric} {figure(first.realised)}, promised {figure(first.promised)}"
    first, *others = apart
    told = (
        f"{which}: {first.metric} {figure(first.realised)}, {verdict} than the promised {figure(first.promised)}"
        f" (chance alone gives {figure(first.low)} to {figure(first.high)})"
    )
    named = ", ".join(f"{one.metric} {figure(one.realised)} (promised {figure(one.promised)})" for one in others)
    return told + (f"; also {named}" if named else "")


def likely_causes(
    connection: Connection, score: Score, champion: dict[str, Any], found: RealisedDate, where: Paths
) -> list[Cause]:
    """What applies where a date is worse than promised, the likeliest first; "none of these" if nothing does.

    What has gone wrong comes before what has moved. A moved base rate comes before drift where customers are ranked as
    well as promised, and after it where they are not.
    """
    card = card_of(where, score, champion["version"])
    moved = [_base_rate(connection, score, champion, found, where), _drift(score, champion, found, card, where)]
    headline = next(metric for metric in found.metrics if metric.metric == next(iter(METRICS[score.kind])))
    if headline.verdict == "worse":
        moved.reverse()
    rules = [_data_quality(connection, score, champion, where), _contract(score, card), *moved, _calibration(found)]
    causes = [cause for cause in rules if cause is not None]
    level = "" if found.label_rate is None else f" (the mean label is {figure(found.label_rate)})"
    none = (
        f"no incident of the raw tables, no changed contract, and neither the base rate{level} nor the features have"
        " moved much"
    )
    return causes or [Cause(name="none of these", told=none)]


def _data_quality(connection: Connection, score: Score, champion: dict[str, Any], where: Paths) -> Cause | None:
    """Failed batches, more rejected rows than usual, or none at all, of a raw table upstream since the training."""
    upstream = raw_tables(score, load_manifest(where))
    if not upstream or not warehouse.exists(connection, "quality", "source_metrics"):
        return None
    since = champion["trained_at"]
    named = ", ".join(
        f"({warehouse.literal(schema)}, {warehouse.literal(table)})" for schema, table in sorted(upstream)
    )
    tables = warehouse.rows(
        connection,
        f"""
        select
            schema_name || '.' || table_name as name,
            count(*) filter (status = 'failed' and loaded_at > $since) as failed,
            max_by(fault, loaded_at) filter (status = 'failed' and loaded_at > $since) as fault,
            coalesce(sum(rejected) filter (loaded_at > $since), 0)::bigint as rejected,
            coalesce(sum(rows) filter (loaded_at > $since), 0)::bigint as rows,
            coalesce(sum(landed) filter (loaded_at > $since), 0)::bigint as landed,
            coalesce(sum(rejected) filter (loaded_at <= $since) / sum(rows) filter (loaded_at <= $since), 0) as usual,
            count(*) filter (landed > 0 and loaded_at <= $since) as batches
        from quality.source_metrics
        where (schema_name, table_name) in ({named})
        group by 1 order by 1
        """,
        {"since": since},
    )
    told = []
    for table in tables:
        if table["failed"]:
            fault = str(table["fault"]).splitlines()[0]
            batches = "batch" if table["failed"] == 1 else "batches"
            told.append(f"{table['failed']} {batches} of {table['name']} failed, the last one: {fault}")
        share = table["rejected"] / table["rows"] if table["rows"] else 0.0
        if share >= LEAST_REJECTED and share >= 2 * table["usual"]:
            told.append(
                f"{table['rejected']:,} of {table['rows']:,} rows of {table['name']} were rejected ({share:.1%},"
                f" {table['usual']:.1%} before)"
            )
        if not table["landed"] and table["batches"] >= USUAL_BATCHES and any(other["landed"] for other in tables):
            told.append(f"no rows of {table['name']} have come, of which {table['batches']} batches came before")
    if not told:
        return None
    return Cause(name="data quality", told=f"since the training ({since:%Y-%m-%d %H:%M}) {_some(told, '; ')}")


def raw_tables(score: Score, manifest: Mapping[str, Any]) -> set[tuple[str, str]]:
    """The raw tables, as (schema, table), that a score's features and label come from."""
    found, waiting = set(), [score.features_id, score.label_id]
    while waiting:
        place = waiting.pop()
        if place not in found:
            found.add(place)
            waiting += manifest["parent_map"].get(place, [])
    sources = [manifest["sources"][place] for place in found if place in manifest["sources"]]
    return {(source["schema"], source["identifier"]) for source in sources}


def _contract(score: Score, card: "Card | None") -> Cause | None:
    """Columns that the champion reads and whose declared type has changed, or that the score has left out since.

    Columns that are new can't be the cause, as it does not read them.
    """
    now = {feature.name: feature.data_type for feature in score.columns}
    told = []
    for feature in card.features if card else ():
        if feature.name not in now:
            told.append(f"{feature.name} is no feature of the score any more")
        elif now[feature.name].lower() != feature.data_type.lower():
            told.append(f"{feature.name} is {now[feature.name]}, and was {feature.data_type} when it was trained")
    return Cause(name="contract", told=_some(told, "; ")) if told else None


def _base_rate(
    connection: Connection, score: Score, champion: dict[str, Any], found: RealisedDate, where: Paths
) -> Cause | None:
    """The mean label, or of a category the share of a class, that differs from the held-out dates' beyond chance."""
    file = training_set_file(where.training_sets, score, champion["training_set"])
    if warehouse.frozen_rows(connection, file) is None:
        return None
    as_of, entity = warehouse.name(score.as_of), warehouse.names(score.entity)
    held_out = f"""
        select label, hash({entity}) as entity from read_parquet({warehouse.literal(str(file))})
        where {as_of}::date between date '{champion["holdout_from"]}' and date '{champion["holdout_to"]}'
    """
    of_date = outcomes_of(
        score,
        found.model_version,
        found.as_of_date,
        f"labels.label, hash({warehouse.names(score.entity, 'labels')}) as entity",
    )
    before, now = _levels(connection, score, held_out), _levels(connection, score, of_date)
    told = []
    for name in sorted(before.keys() | now.keys()):
        (was, was_spread, was_rows), (is_now, spread, rows) = (side.get(name, (0.0, 0.0, 1)) for side in (before, now))
        error = math.sqrt(was_spread**2 / was_rows + spread**2 / rows)
        distance = abs(is_now - was)
        if distance > NORMAL_95 * error and distance >= LEAST_MOVED * abs(was):
            told.append((distance / error if error else math.inf, name, was, is_now))
    if not told:
        return None
    what = {"probability": "the rate of the outcome", "amount": "the mean amount"}.get(score.kind)
    moved = [
        f"{what or f'the share of {name}'} is {figure(is_now)}, and was {figure(was)} on the held-out dates"
        for _, name, was, is_now in sorted(told, reverse=True)
    ]
    return Cause(name="base rate", told=_some(moved, "; "))


def _levels(connection: Connection, score: Score, rows: str) -> dict[str, tuple[float, float, int]]:
    """The mean label of rows, its spread, and how many entities they are of, whose dates go together; of a category
    that of each class."""
    if score.kind == "category":
        query = f"""
            with rows as ({rows}), total as (select count(*) as rows, count(distinct entity) as entities from rows)
            select label::varchar, count(*) / total.rows as share, sqrt(share * (1 - share)), total.entities
            from rows, total group by label, total.rows, total.entities
        """
    else:
        query = f"""
            select '', avg(label::double), coalesce(stddev_samp(label::double), 0), count(distinct entity)
            from ({rows}) having count(*) > 0
        """
    return {name: (mean, spread, entities) for name, mean, spread, entities in connection.execute(query).fetchall()}


def _drift(
    score: Score, champion: dict[str, Any], found: RealisedDate, card: "Card | None", where: Paths
) -> Cause | None:
    """Features that had drifted at the date, or as near to it as there is a report on this version."""
    if card is None:
        return None
    reports = [
        (abs((day - found.as_of_date).days), day, figures)
        for day, figures in drift_figures(score, where, first=champion["train_to"])  # it has scored no date before
        if figures.get("model_version") == found.model_version
    ]
    if not reports:
        return None
    _, day, figures = min(reports, key=lambda report: report[:2])
    drift = drifted_share(figures.get("metrics", {}), card.importance)
    if drift is None or drift[0] < LEAST_DRIFTED:
        return None
    share, features = drift
    named = _some([f"{name} ({card.importance[name]:.0f} %)" for name in features], ", ")
    return Cause(name="drift", told=f"features with {share:.0%} of the importance had drifted at {day}: {named}")


def drift_figures(score: Score, where: Paths, first: date) -> list[tuple[date, dict[str, Any]]]:
    """The as-of dates of a score's drift reports from a first one on, each with its figures, the oldest first."""
    found = []
    for file in sorted((where.reports / score.name).glob("????-??-??/drift.json")):
        try:
            day = date.fromisoformat(file.parent.name)
        except ValueError:
            continue
        if day >= first:
            found.append((day, read_json(file)))
    return found


def _calibration(found: RealisedDate) -> Cause | None:
    """Where customers are ranked as well as promised, and only the level of the score is off."""
    worse = {metric.metric for metric in found.metrics if metric.verdict == "worse"}
    if not worse & OF_CALIBRATION or worse - OF_CALIBRATION - OF_LEVEL:
        return None
    first = found.metrics[0]
    level = "" if found.label_rate is None else f", of which {figure(found.label_rate)} came true"
    return Cause(
        name="calibration",
        told=f"only the level is off: {first.metric} is {figure(first.realised)} (promised {figure(first.promised)}),"
        f" but the mean score {figure(found.mean_score)}{level}",
    )


def _some(told: Sequence[str], between: str) -> str:
    """The first few of a list, and how many more there are."""
    more = len(told) - NAMED
    return between.join([*told[:NAMED], *([f"{more} more"] if more > 0 else [])])


def figure(number: float | None) -> str:
    """A figure of a sentence: 0.8812, 12.35, 1,234."""
    if number is None:
        return "not measurable"
    return f"{number:.4f}" if abs(number) < 1 else f"{number:,.2f}" if abs(number) < 1000 else f"{number:,.0f}"
