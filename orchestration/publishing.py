"""Publishes a score: the newest predictions become a generation, checked against the warehouse before it is served."""

import hashlib
import json
import shutil
from collections.abc import Generator, Iterator
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
from orchestration.online_features import json_features, online_features, refuse_unscored
from orchestration.parity import PublishedDiffers, compare
from orchestration.project import Paths
from orchestration.scoring import feature_rows, what_scores
from orchestration.training_sets import ScoringError
from orchestration.warehouse import Connection

if TYPE_CHECKING:
    from serving.store import Generation

KEPT_GENERATIONS = 3


def published_key(score: Score) -> str:
    """SQL of the customer's id as applications write it: the key as the warehouse writes it as text.

    Parts of a composite key are joined as `serving.store.customer_key` joins texts.
    """
    texts = [f"cast({warehouse.name(column)} as varchar)" for column in score.entity]
    if len(texts) == 1:
        return texts[0]
    return " || ',' || ".join(f"replace(replace({text}, '~', '~0'), ',', '~1')" for text in texts)


def publish(connection: Connection, score: Score, project: Project, where: Paths) -> dict[str, Any]:
    """Publishes the champion's scores of the newest as-of date and the features they were made from, if they are not
    what is served already.

    Writes a new generation beside the served one, verifies it, compares it with the warehouse, and only then flips
    CURRENT. Returns what is served: generation, as_of_date, rows, features, compared, changed. Raises `ScoringError` if
    there are no predictions, two for a customer, or features that have changed since, `PublishedDiffers` if what was
    written is not what the warehouse holds; the old generation then serves on.
    """
    from serving import store

    champion = current_champion(connection, score)
    if not warehouse.exists(connection, "predictions", score.name):
        raise ScoringError(f"score '{score.name}': has no predictions yet; materialize predictions/{score.name} first")
    version = champion["version"]
    predictions = warehouse.name("predictions", score.name)
    (newest,) = warehouse.one(connection, f"select max(as_of_date) from {predictions} where model_version = {version}")
    if newest is None:
        raise ScoringError(
            f"score '{score.name}': version {version} has scored nobody; are there rows in {score.features}"
            f" after {champion['train_to']}?"
        )
    of_newest = f"from {predictions} where model_version = {version} and as_of_date = '{newest}'"
    key = published_key(score)
    rows, ids, nulls = warehouse.one(
        connection, f"select count(*), count(distinct {key}), count(*) filter ({key} is null) {of_newest}"
    )
    if nulls:
        raise ScoringError(
            f"score '{score.name}': {nulls} rows of {predictions} at {newest} have no {' or no '.join(score.entity)};"
            f" each row of {score.features} needs its keys (a not_null test would have told earlier)"
        )
    if rows != ids:
        raise ScoringError(
            f"score '{score.name}': {rows - ids} customers appear twice in {predictions} at {newest};"
            f" is {', '.join(score.entity)} a key of {score.features}?"
        )
    band_counts = dict(
        connection.execute(f"select band, count(*) {of_newest} and band is not null group by 1").fetchall()
    )
    refuse_unscored(connection, score, version, newest)
    card = load_card(where, score, version)
    features = online_features(connection, score, card.encoder.names)
    of_features = f"from ({feature_rows(score)}) where {warehouse.name(score.as_of)} = '{newest}'"
    contents = [
        warehouse.content_hash(connection, query)
        for query in (f"select * exclude (scored_at) {of_newest}", f"select * {of_features}")
    ]
    told = {
        "score": score.name,
        "title": score.title,
        "description": score.description,
        "owner": score.owner,
        "email": score.email,
        "kind": score.kind,
        "entity": score.entity,
        "as_of_date": newest.date() if isinstance(newest, datetime) else newest,
        "fresh_for_days": score.fresh_for_days,
        "today": project.today,
        "model_version": version,
        "bands": score.bands,
        "band_counts": {band: band_counts.get(band, 0) for band in (score.bands or card.classes)},
        "metrics": without_nan(card.metrics),
        "baseline": without_nan(card.baseline),
        "features": features,
        "rows": rows,
    }
    digest = hashlib.sha256(json.dumps([told, contents, what_scores()], default=str).encode()).hexdigest()
    generation = store.Generation(
        generation=f"{told['as_of_date']}-v{version}-{digest[:8]}", published_at=datetime.now(UTC), **told
    )
    folder = where.generations / score.name / generation.generation
    served = {
        "generation": generation.generation,
        "as_of_date": told["as_of_date"],
        "rows": rows,
        "features": len(features),
        "model_version": version,
    }
    sound = _is_sound(folder)
    if sound and _current(where, score) == generation.generation:
        return {**served, "compared": compare(connection, score, folder, key, of_newest, of_features), "changed": False}

    if not sound:
        shutil.rmtree(folder, ignore_errors=True)
        model = model_folder(where.models, score, version)
        attached = {file: model / file for file in ("model.cbm", "card.json")}
        with (
            closing(_customers(connection, score, generation, f"{of_newest} order by customer_key")) as customers,
            closing(json_features(connection, features, key, of_features)) as values,
        ):
            store.write(where.generations, generation, customers, attached, values)
        store.verify(folder)
    compared = compare(connection, score, folder, key, of_newest, of_features)
    store.flip(where.generations, score.name, generation.generation)
    store.prune(where.generations, score.name, keep=KEPT_GENERATIONS)
    return {**served, "compared": compared, "changed": True}


def _is_sound(folder: Path) -> bool:
    from serving import store

    try:
        store.verify(folder)
    except store.CorruptGeneration:
        return False
    return True


def _current(where: Paths, score: Score) -> str | None:
    """The generation served; None where there is none or CURRENT is damaged, which the next flip mends."""
    from serving import store

    try:
        return store.current(where.generations, score.name)
    except store.CorruptGeneration:
        return None


def served_now(score: Score, where: Paths) -> "Generation | None":
    """The manifest of what is served; None if nothing is, or it is damaged, which the next run mends."""
    from serving import store
    from serving.generation import read_manifest

    try:
        current = store.current(where.generations, score.name)
        return read_manifest(where.generations / score.name / current) if current else None
    except store.CorruptGeneration:
        return None


def _customers(
    connection: Connection, score: Score, generation: Any, of_rows: str
) -> Generator[tuple[str, bytes], None, None]:
    """The (id, JSON) of each customer, streamed from the warehouse."""
    from ml import sentences
    from serving import store

    is_category = score.kind == "category"
    columns = ["score", "band", "reasons", "scored_at", *(["probabilities"] if is_category else [])]
    query = f"select {published_key(score)} as customer_key, {', '.join(columns)} {of_rows}"
    subjects = {column.name: sentences.subject(column.name, column.description) for column in generation.features}

    def told(reason: dict[str, Any], of_class: str | None) -> store.Reason:
        about = subjects.get(reason["feature"], reason["feature"])
        return store.Reason(**reason, text=sentences.sentence(about, reason["value"], reason["contribution"], of_class))

    with warehouse.batches(connection, query) as batches:
        for row in (row for batch in batches for row in batch.to_pylist()):
            of_class = row["band"] if is_category else None
            customer = store.CustomerScore(
                score=score.name,
                customer_id=row["customer_key"],
                value=row["score"],
                band=row["band"],
                probabilities=dict(row["probabilities"]) if is_category else None,
                reasons=[told(reason, of_class) for reason in row["reasons"]],
                as_of_date=generation.as_of_date,
                model_version=generation.model_version,
                generation=generation.generation,
                scored_at=row["scored_at"],
            )
            yield row["customer_key"], store.payload(customer)


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
                    passed=True,
                    check_name=check.name,
                    metadata={
                        "customers": served["rows"],
                        "customers compared": served["compared"],
                        "features compared": served["features"],
                    },
                )
            ],
            data_version=dg.DataVersion(served["generation"]),
        )

    return generation
