"""Tells how a score has drifted: its newest customers against the champion's training data, as a report to read."""

import hashlib
import json
from datetime import datetime
from typing import Any

import dagster as dg

from ml.declarations import Project, Score
from orchestration import warehouse
from orchestration.cataloguing import tell_features
from orchestration.checks import refuse_unsound
from orchestration.judging import current_champion
from orchestration.model_files import load_card, load_model
from orchestration.project import Paths, read_json, replaced
from orchestration.training import SEED
from orchestration.training_sets import ScoringError, training_set_file
from orchestration.warehouse import Connection

# Rows of either side that the report reads: enough to see a shift of a few percent, few enough for any table's size.
SAMPLED = 2000
# Features with charts, besides the score: the time and size of Evidently's page grow with the columns, not the rows.
CHARTED = 20
# What the score is called beside the features, of which one may be called "score".
PREDICTION = "the score"


def report_drift(connection: Connection, score: Score, where: Paths) -> dict[str, Any]:
    """Writes the drift report of the newest as-of date, unless it is there; its path, metrics, whether it is new.

    The reference is the champion's own training set, scored by it; compared are the score, of a category its likeliest
    class, and all its features, of which those that move it most have charts.
    The files are drift.html and drift.json in `reports/<score>/<as-of date>`.
    Raises `ScoringError` if the score has no predictions.
    """
    champion = current_champion(connection, score)
    if not warehouse.exists(connection, "predictions", score.name):
        raise ScoringError(f"score '{score.name}': has no predictions yet; materialize predictions/{score.name} first")
    predictions, as_of, keys = (
        warehouse.name("predictions", score.name),
        warehouse.name(score.as_of),
        (*score.entity, score.as_of),
    )
    by_date = warehouse.rows(
        connection,
        f"""
        select as_of_date, count(*) as rows from {predictions} where model_version = ?
        group by as_of_date order by as_of_date desc limit 1
        """,
        [champion["version"]],
    )
    if not by_date:
        raise ScoringError(
            f"score '{score.name}': version {champion['version']} has scored nobody yet;"
            f" materialize predictions/{score.name} first"
        )
    newest, scored_rows = by_date[0]["as_of_date"], by_date[0]["rows"]
    day = newest.date() if isinstance(newest, datetime) else newest
    card = load_card(where, score, champion["version"])
    types = {column.name: column.type for column in card.encoder.columns}
    features = [*card.importance, *(name for name in types if name not in card.importance)]
    same_entity = " and ".join(
        f"predictions.{column} = features.{column}" for column in map(warehouse.name, score.entity)
    )
    is_category = score.kind == "category"
    said = f"predictions.{'band' if is_category else 'score'} as {warehouse.name(PREDICTION)}"
    current_query = f"""
        select {warehouse.names(features, "features")}, {said}
        from {warehouse.name(score.features_schema, score.features)} as features
        inner join {predictions} as predictions
            on predictions.as_of_date = features.{as_of} and {same_entity}
        where predictions.model_version = {champion["version"]} and features.{as_of} = '{newest}'
        order by hash({warehouse.names(score.entity, "features")}, {SEED}), {warehouse.names(score.entity, "features")}
        limit {SAMPLED}
    """
    frozen = training_set_file(where.training_sets, score, champion["training_set"])
    reference_query = f"""
        select {warehouse.names([*keys, *types])} from read_parquet({warehouse.literal(str(frozen))})
        where {as_of}::date <= date '{champion["train_to"]}' and matures_on::date <= date '{champion["holdout_from"]}'
        order by hash({warehouse.names(keys)}, {SEED}), {warehouse.names(keys)}
        limit {SAMPLED}
    """
    _, content = warehouse.content_hash(connection, current_query)
    of = hashlib.sha256(
        f"{champion['version']} {champion['training_set']} {content} {scored_rows} {SAMPLED} {SEED}".encode()
    ).hexdigest()
    folder = where.reports / score.name / str(day)
    html, figures = folder / "drift.html", folder / "drift.json"
    known = read_json(figures)
    if html.is_file() and known.get("of") == of:
        return {"path": html, "day": day, **known, "changed": False}
    if warehouse.frozen_rows(connection, frozen) is None:
        raise ScoringError(
            f"score '{score.name}': {frozen}, from which version {champion['version']} has learned, is missing or"
            " damaged, so its drift can't be told; bring a copy back. The next champion has a training set of its own"
        )

    import pyarrow as pa

    from ml import prediction
    from reports.drift import drift_report

    model = load_model(where, score, champion["version"])
    reference: pa.Table = connection.sql(reference_query).to_arrow_table()
    scored = prediction.score_rows(model, reference)
    said_then = pa.array(card.classes, pa.string()).take(scored.argmax(axis=1)) if is_category else pa.array(scored)
    reference = reference.drop_columns(list(keys)).append_column(PREDICTION, said_then)
    report = drift_report(
        reference,
        connection.sql(current_query).to_arrow_table(),
        title=f"{score.title}: drift at {day}",
        columns={
            PREDICTION: "category" if is_category else "number",
            **{name: "category" if types[name] in ("category", "boolean") else "number" for name in features},
        },
        prediction=PREDICTION,
        columns_name=f"the score and its {len(features)} features"
        + (f"; charts of the {CHARTED} that move it most" if len(features) > CHARTED else ""),
        charted=CHARTED,
        reference_name=f"what version {champion['version']} learned from,"
        f" {champion['train_from']} to {champion['train_to']}",
        current_name=f"the customers scored at {day}",
        drawn_from=(champion["train_rows"], scored_rows),
        sample=SAMPLED,
        seed=SEED,
    )
    known = {"of": of, "model_version": champion["version"], "metrics": report.metrics}
    # The figures say what the page was made of, so they come last.
    for file, text in ((html, report.html), (figures, json.dumps(known, indent=1, default=str))):
        with replaced(file) as staged:
            staged.write_text(text)
    return {"path": html, "day": day, **known, "changed": True}


def drift_asset(score: Score, project: Project, where: Paths) -> dg.AssetsDefinition:
    """The asset of a score's drift report."""

    @dg.asset(
        key=["reports", f"{score.name}_drift"],
        deps=[dg.AssetKey(["predictions", score.name])],
        group_name=score.name,
        owners=[score.email] if score.email else [],
        kinds={"evidently"},
        description=f"How the customers that `{score.name}` scores now differ from those its model learned from.",
        pool="warehouse",
    )
    def drift(context: dg.AssetExecutionContext) -> dg.MaterializeResult[None]:
        refuse_unsound(context)
        with warehouse.open_warehouse(where.warehouse) as connection:
            report = report_drift(connection, score, where)
            tell_features(connection, project, score, where)
        return dg.MaterializeResult(
            metadata={
                "report": dg.MetadataValue.url(
                    f"http://127.0.0.1:8000/reports/{score.name}/{report['day']}/drift.html"
                ),
                "path": dg.MetadataValue.path(str(report["path"])),
                "as-of date": str(report["day"]),
                "figures": dg.MetadataValue.json(report["metrics"]),
                "changed": report["changed"],
            }
        )

    return drift
