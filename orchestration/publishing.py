"""Publishes a score: the newest predictions become a generation, checked against the warehouse before it is served."""

import hashlib
import json
import shutil
from collections.abc import Iterator
from contextlib import closing
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

import dagster as dg

from ml.declarations import Project, Score
from ml.metrics import without_nan
from orchestration import warehouse
from orchestration.checks import refuse_unsound
from orchestration.judging import current_champion
from orchestration.model_files import load_card, model_folder
from orchestration.online_features import json_features, online_features, scored_features
from orchestration.parity import PublishedDiffers, compare
from orchestration.project import Paths
from orchestration.published_rows import customers, newest_predictions, published_key, ranking
from orchestration.scoring import feature_rows, what_scores
from orchestration.training_sets import ScoringError
from orchestration.warehouse import Connection

if TYPE_CHECKING:
    from serving.generations.store import Generation, Store


def publish(connection: Connection, score: Score, project: Project, where: Paths) -> dict[str, Any]:
    """Publishes the champion's scores of the newest as-of date and the features they were made from, if they are not
    what is served already.

    Writes a new generation beside the served one, verifies it, compares it with the warehouse, and only then flips
    CURRENT. What was withdrawn by a rollback is not published again. Returns what is served: generation, as_of_date,
    rows, features, compared, changed, and withdrawn where a person's word holds this content back.
    Raises `ScoringError` if there are no predictions, two for a customer, or features that have changed since,
    `PublishedDiffers` if what was written is not what the warehouse holds; the old generation then serves on.
    """
    from serving.generations import store

    keep, key = store.kept_generations(), published_key(score)
    champion = current_champion(connection, score)
    if not warehouse.exists(connection, "predictions", score.name):
        raise ScoringError(f"score '{score.name}': has no predictions yet; materialize predictions/{score.name} first")
    version = champion["version"]
    predictions = warehouse.name("predictions", score.name)
    (day,) = warehouse.one(connection, f"select max(as_of_date) from {predictions} where model_version = {version}")
    if day is None:
        raise ScoringError(
            f"score '{score.name}': version {version} has scored nobody; are there rows in {score.features}"
            f" after {champion['train_to']}?"
        )
    newest = newest_predictions(connection, score, version, day)
    if newest.nulls:
        raise ScoringError(
            f"score '{score.name}': {newest.nulls} rows of {predictions} at {day} have no"
            f" {' or no '.join(score.entity)}; each row of {score.features} needs its keys (a not_null test would have"
            " told earlier)"
        )
    if newest.count != newest.ids:
        raise ScoringError(
            f"score '{score.name}': {newest.count - newest.ids} customers appear twice in {predictions} at {day};"
            f" is {', '.join(score.entity)} a key of {score.features}?"
        )
    of_features = f"from ({feature_rows(score)}) where {warehouse.name(score.as_of)} = '{day}'"
    contents = [
        warehouse.content_hash(connection, f"select * exclude (scored_at) {newest.rows}"),
        scored_features(connection, score, version, day),
    ]
    card = load_card(where, score, version)
    features = online_features(connection, score, card.encoder.names)
    bands = list(score.bands or card.classes)
    told = {
        "score": score.name,
        "title": score.title,
        "description": score.description,
        "owner": score.owner,
        "email": score.email,
        "kind": score.kind,
        "entity": score.entity,
        "as_of_date": day.date() if isinstance(day, datetime) else day,
        "fresh_for_days": score.fresh_for_days,
        "when_stale": score.when_stale,
        "today": project.today,
        "model_version": version,
        "bands": score.bands,
        "band_counts": {band: newest.band_counts.get(band, 0) for band in bands},
        "quantiles": newest.quantiles,
        "reasons": score.explained.top,
        "metrics": without_nan(card.metrics),
        "baseline": without_nan(card.baseline),
        "features": features,
        "rows": newest.count,
    }
    digest = hashlib.sha256(json.dumps([told, contents, what_scores()], default=str).encode()).hexdigest()
    generation = store.Generation(
        generation=f"{told['as_of_date']}-v{version}-{digest[:8]}", published_at=datetime.now(UTC), **told
    )
    folder = where.generations / score.name / generation.generation
    served = {
        "generation": generation.generation,
        "as_of_date": told["as_of_date"],
        "rows": newest.count,
        "features": len(features),
        "model_version": version,
    }
    withdrawn = _withdrawn(where, score, generation.generation)
    if withdrawn and _current(where, score) != generation.generation:
        return {**_as_served(where, score, withdrawn), "compared": 0, "changed": False, "withdrawn": withdrawn}
    opened = _sound(folder)
    is_served = opened is not None and _current(where, score) == generation.generation
    if opened is None:
        shutil.rmtree(folder, ignore_errors=True)
        model = model_folder(where.models, score, version)
        with (
            closing(customers(connection, score, generation, newest.rows)) as scores,
            closing(json_features(connection, features, key, of_features)) as values,
            closing(ranking(connection, score, bands, newest.rows)) as ranks,
        ):
            attached = {file: model / file for file in ("model.cbm", "card.json")}
            store.write(where.generations, generation, scores, attached, values, ranks)
        opened = store.open_store(folder)  # which verifies it
    with opened:
        compared = compare(connection, score, opened, key, newest.rows, of_features)
    if not is_served:
        store.flip(where.generations, score.name, generation.generation)
        store.prune(where.generations, score.name, keep=keep)
    return {**served, "compared": compared, "changed": not is_served}


def _withdrawn(where: Paths, score: Score, generation: str) -> str | None:
    """Who has withdrawn a generation and why, as a person is told it; None if nobody has."""
    from serving.generations.generation import CorruptGeneration
    from serving.generations.withdrawing import told, withdrawals

    try:
        found = withdrawals(where.generations, score.name).get(generation)
    except CorruptGeneration as error:
        raise ScoringError(f"score '{score.name}': {error}") from None
    return told(generation, found) if found else None


def _as_served(where: Paths, score: Score, withdrawn: str) -> dict[str, Any]:
    """What is served in place of a withdrawn generation. Raises `ScoringError` if nothing is."""
    served = served_now(score, where)
    if served is None:
        raise ScoringError(
            f"score '{score.name}': {withdrawn}; and nothing sound is served in its place"
            f" (make generations SCORE={score.name} lists what there is)"
        )
    return {
        "generation": served.generation,
        "as_of_date": served.as_of_date,
        "rows": served.rows,
        "features": len(served.features),
        "model_version": served.model_version,
    }


def _sound(folder: Path) -> "Store | None":
    """What is published in a folder already, open; None if nothing is, or it is damaged."""
    from serving.generations import store

    try:
        return store.open_store(folder)
    except store.CorruptGeneration:
        return None


def _current(where: Paths, score: Score) -> str | None:
    """The generation served; None where there is none or CURRENT is damaged, which the next flip mends."""
    from serving.generations import store

    try:
        return store.current(where.generations, score.name)
    except store.CorruptGeneration:
        return None


def served_now(score: Score, where: Paths) -> "Generation | None":
    """The manifest of what is served; None if nothing is, or it is damaged, which the next run mends."""
    from serving.generations import store
    from serving.generations.generation import read_manifest

    try:
        current = store.current(where.generations, score.name)
        return read_manifest(where.generations / score.name / current) if current else None
    except store.CorruptGeneration:
        return None


def generation_asset(score: Score, project: Project, where: Paths) -> dg.AssetsDefinition:
    """The asset of what applications are served."""
    key = dg.AssetKey(["generations", score.name])
    check = dg.AssetCheckSpec(
        "published_equals_warehouse",
        asset=key,
        description="As many customers as in the warehouse, and of a sample score, band and every feature, looked up"
        " as applications do, are the warehouse's.",
        blocking=True,
    )

    @dg.asset(
        key=key,
        deps=[dg.AssetKey(["predictions", score.name])],
        group_name=score.name,
        owners=[score.email] if score.email else [],
        kinds={"lmdb"},
        description=f"What applications are served as `{score.name}`: every customer's score with its reasons, and the"
        " features it was made from.",
        check_specs=[check],
        pool="warehouse",
    )
    def generation(context: dg.AssetExecutionContext) -> Iterator[dg.AssetCheckResult | dg.MaterializeResult[None]]:
        from serving.generations import store
        from serving.generations.carrying import carry

        store.declare(where.generations, (one.name for one in project.scores))
        refuse_unsound(context)
        with warehouse.open_warehouse(where.warehouse) as connection:
            try:
                served = publish(connection, score, project, where)
            except PublishedDiffers as difference:
                yield dg.AssetCheckResult(
                    passed=False,
                    asset_key=key,
                    check_name=check.name,
                    metadata={"difference": str(difference), "customers that differ": difference.columns},
                )
                raise
        for carried_to in carry(where.generations, score.name):
            context.log.info(f"· generations.{score.name}: pushed to {carried_to}")
        withdrawn = served.get("withdrawn")
        yield dg.MaterializeResult(
            metadata={
                "dagster/row_count": served["rows"],
                "generation": served["generation"],
                "as-of date": str(served["as_of_date"]),
                "model version": served["model_version"],
                "path": dg.MetadataValue.path(str(where.generations / score.name / served["generation"])),
                "changed": served["changed"],
            },
            check_results=[
                dg.AssetCheckResult(
                    passed=not withdrawn,
                    severity=dg.AssetCheckSeverity.WARN if withdrawn else dg.AssetCheckSeverity.ERROR,
                    check_name=check.name,
                    metadata={
                        **({"difference": f"not published: {withdrawn}"} if withdrawn else {}),
                        "customers": served["rows"],
                        "customers compared": served["compared"],
                        "features compared": served["features"],
                    },
                )
            ],
            data_version=dg.DataVersion(served["generation"]),
        )

    return generation
