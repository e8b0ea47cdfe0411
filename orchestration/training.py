"""From features and labels to a champion: the training set, frozen, and the model, with its gate."""

import hashlib
import importlib.metadata
import json
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, date, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

import dagster as dg

from ml.declarations import Project, Score
from ml.encoding import EncodingError
from ml.evaluation import GateResult, check_gate
from orchestration import versions, warehouse
from orchestration.checks import refuse_unsound
from orchestration.project import Paths
from orchestration.warehouse import Connection

if TYPE_CHECKING:
    import pyarrow as pa

    from ml.registry import Card, Model

SEED = 0


class ScoringError(RuntimeError):
    """A score can't be trained, given or published: which, why, and what to do."""


class DamagedModel(ScoringError):
    """A version whose files are gone or changed; the message says where there may be copies."""


def clock(project: Project) -> date:
    """The day it is for the project: the one it fixed, or today (UTC)."""
    return project.today or datetime.now(UTC).date()


def freeze_training_set(connection: Connection, score: Score, today: date, folder: Path) -> dict[str, Any]:
    """All rows whose label has matured, frozen to Parquet under their checksum; a row of `ml.training_sets`.

    Raises `ScoringError` if a column of the declaration is missing, a key comes twice, labels would stay immature for
    ever, no label has matured, or a label is null.
    """
    features, label = (
        warehouse.name(score.features_schema, score.features),
        warehouse.name(score.label_schema, score.label),
    )
    have = warehouse.columns(connection, score.features_schema, score.features)
    missing = [column.name for column in score.columns if column.name not in have]
    if missing:
        raise ScoringError(
            f"score '{score.name}': table {features} lacks {', '.join(missing)};"
            f" build model '{score.features}' again, from scratch (make run FULL_REFRESH=1)"
        )
    keys = (*score.entity, score.as_of)
    _refuse_repeated_keys(connection, score, score.features_schema, score.features)
    _refuse_repeated_keys(connection, score, score.label_schema, score.label)
    _refuse_frozen_labels(connection, score, today)
    query = f"""
        select
            {warehouse.names([*keys, *(column.name for column in score.columns)], "features")},
            labels.label,
            labels.matures_on
        from {features} as features
        inner join {label} as labels using ({warehouse.names(keys)})
        where labels.matures_on <= date '{today}'
        order by {warehouse.names((score.as_of, *score.entity), "features")}
    """
    typed = ", ".join(f"{column} {kind}" for column, kind in have.items())
    as_of = warehouse.name(score.as_of)
    facts = f"min({as_of})::date, max({as_of})::date, count(*) filter (label is null)"
    rows, content, first, last, unlabelled = warehouse.content_hash(connection, query, facts)
    if rows == 0:
        raise ScoringError(
            f"score '{score.name}': no label in {label} has matured by {today}, so there is nothing to train on"
        )
    if unlabelled:
        raise ScoringError(f"score '{score.name}': {unlabelled} of {rows} matured rows in {label} have a null label")
    checksum = hashlib.sha256(f"{typed}\n{content}".encode()).hexdigest()[:16]
    row = {
        "training_set": checksum,
        "rows": rows,
        "first_as_of": first,
        "last_as_of": last,
        "known_until": today,
        "query": query,
    }
    current = versions.current_training_set(connection, score)
    file = training_set_file(folder, score, checksum)
    if warehouse.frozen_rows(connection, file) != rows:
        warehouse.freeze(connection, query, file)
    if current is None or current["training_set"] != checksum:
        versions.record_training_set(connection, score, row)
    return {**row, "changed": current is None or current["training_set"] != checksum}


def _refuse_repeated_keys(connection: Connection, score: Score, schema: str, model: str) -> None:
    """Raises `ScoringError` if a key of a feature or label model has several rows: each would be trained on."""
    keys = (*score.entity, score.as_of)
    listed = warehouse.names(keys)
    repeated = f"""
        select {listed}, count(*) as "rows of the key" from {warehouse.name(schema, model)}
        group by {listed} having count(*) > 1
    """
    found, example = warehouse.one(connection, f"select count(*), min(content) from ({repeated}) as content")
    if found:
        *values, rows = example.values()
        key = ", ".join(f"{column} {value}" for column, value in zip(keys, values, strict=True))
        raise ScoringError(
            f"score '{score.name}': model '{model}' has {found} keys with more than one row, such as {key} with {rows};"
            f" it must have one row per {' × '.join(keys)}: mend its joins, or the rows it is made from"
            " (an incremental model keeps its rows until make run FULL_REFRESH=1)"
        )


def _refuse_frozen_labels(connection: Connection, score: Score, today: date) -> None:
    """Raises `ScoringError` if an incremental label model holds rows that have not matured: they keep that label."""
    if not score.label_is_incremental:
        return
    label = warehouse.name(score.label_schema, score.label)
    (immature,) = warehouse.one(connection, f"select count(*) from {label} where matures_on > date '{today}'")
    if immature:
        raise ScoringError(
            f"score '{score.name}': model '{score.label}' is incremental and has {immature} rows that mature only after"
            f" {today}; their label would stay as it is now: either let the model select matured rows alone"
            " (where matures_on <= today), or build it anew each time (materialized: table); where it does and the"
            " clock was set back, make run FULL_REFRESH=1"
        )


def training_set_file(folder: Path, score: Score, checksum: str) -> Path:
    return folder / score.name / f"{checksum}.parquet"


def model_folder(folder: Path, score: Score, version: int) -> Path:
    return folder / score.name / str(version)


def load_card(where: Paths, score: Score, version: int) -> "Card":
    """A version's card. Raises `DamagedModel` if its file is not as it was saved."""
    from ml import registry

    with _told(where, score, version):
        return registry.load_card(model_folder(where.models, score, version))


def load_model(where: Paths, score: Score, version: int) -> "Model":
    """A version's model, ready to score. Raises `DamagedModel` if its files are not as they were saved."""
    from ml import registry

    with _told(where, score, version):
        return registry.load(model_folder(where.models, score, version))


@contextmanager
def _told(where: Paths, score: Score, version: int) -> Iterator[None]:
    from ml.registry import CorruptModel

    try:
        yield
    except CorruptModel as error:
        copies = where.generations / score.name / f"*-v{version}-*"
        raise DamagedModel(
            f"score '{score.name}': version {version} can't be read: {error}; bring model.cbm and card.json back,"
            f" of which each generation has a copy ({copies})"
        ) from None


def train_version(connection: Connection, score: Score, training_set: str, where: Paths, log: Any) -> dict[str, Any]:
    """Trains a candidate on a frozen training set, saves and records it; gives its row of `ml.model_versions`."""
    from ml import registry, training

    told = time.monotonic()

    def progress(done: int, most: int) -> None:
        nonlocal told
        if time.monotonic() - told >= 1:  # each line is an event that Dagster keeps
            told = time.monotonic()
            log.info(f"training: {done} of at most {most} trees")

    rows = _training_rows(training_set_file(where.training_sets, score, training_set), score)
    candidate = training.train(rows, score, seed=SEED, progress=progress)
    champion = versions.champion(connection, score)
    champion_metrics = None
    if champion is not None:
        try:
            champion_metrics = training.champion_metrics(
                load_model(where, score, champion["version"]), candidate.holdout
            )
        except (EncodingError, DamagedModel) as error:  # it can't score anybody any more: as if there were none
            log.warning(f"version {champion['version']}, the champion, can't be compared with: {error}")
            champion = None
    version = _next_version(connection, score, where)
    folder = model_folder(where.models, score, version)
    made = training.make_card(
        candidate, score, version=version, training_set=training_set, trained_at=datetime.now(UTC)
    )
    card = registry.save(folder, candidate.booster, made)
    versions.record_version(connection, card, engine(), champion_metrics, champion["version"] if champion else None)
    found = versions.newest_version(connection, score)
    assert found is not None, "the version just recorded"
    return found


def _training_rows(file: Path, score: Score) -> "pa.Table":
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        return pq.read_table(file)
    except (OSError, pa.ArrowException) as error:
        raise ScoringError(
            f"score '{score.name}': its training set {file} can't be read: {error}; remove the file and run again:"
            " it is frozen anew"
        ) from None


def _next_version(connection: Connection, score: Score, where: Paths) -> int:
    """One more than any version that the warehouse or the disk knows.

    They differ where the warehouse was removed, or a run was killed between saving a model and recording it. What
    `registry.save` had half written is no version: it has another name, and is removed by the next save.
    """
    newest = versions.newest_version(connection, score)
    kept = [folder.name for folder in (where.models / score.name).glob("*")]
    numbers = [int(name) for name in kept if name.isascii() and name.isdigit()]
    return max([newest["version"] if newest else 0, *numbers]) + 1


def is_whole(where: Paths, score: Score, version: dict[str, Any]) -> bool:
    """Whether the files of a version are as they were saved."""
    from ml import registry

    try:
        return registry.verify(model_folder(where.models, score, version["version"])) == str(version["booster_sha256"])
    except registry.CorruptModel:
        return False


def engine() -> str:
    """What else than data decides what a training gives, and what is known of it: where it differs, train again."""
    from ml.training import recipe

    packages = ("scorehouse", "catboost", "scikit-learn", "numpy")
    versions_of = " ".join(f"{package} {importlib.metadata.version(package)}" for package in packages)
    return f"{versions_of} seed {SEED} recipe {recipe()}"


def judge(connection: Connection, score: Score, version: dict[str, Any]) -> list[GateResult]:
    """The gate's verdict on a version, taken again if the declared conditions have changed since."""
    known = versions.gate_of(connection, score, version["version"])
    if [result.condition for result in known] == list(score.gate):
        return known
    champion_metrics = json.loads(version["champion_metrics"]) if version["champion_metrics"] else None
    results = check_gate(
        score.gate, json.loads(version["metrics"]), json.loads(version["baseline_metrics"]), champion_metrics
    )
    versions.record_gate(connection, score, version["version"], results)
    return results


def current_champion(connection: Connection, score: Score) -> dict[str, Any]:
    """The champion's row of `ml.model_versions`. Raises `ScoringError`, with what failed, if there is none."""
    versions.create_tables(connection)
    champion = versions.champion(connection, score)
    if champion is None:
        newest = versions.newest_version(connection, score)
        verdict = versions.gate_of(connection, score, newest["version"]) if newest else []
        failed = [described(result) for result in verdict if not result.passed]
        raise ScoringError(
            f"score '{score.name}': no version has passed its gate yet, so nobody is scored"
            + (f"; version {newest['version']}: {'; '.join(failed)}" if newest and failed else "")
        )
    return champion


def training_assets(
    score: Score, features: dg.AssetKey, label: dg.AssetKey, project: Project, where: Paths
) -> list[dg.AssetsDefinition]:
    """The assets that turn a score's features and labels into a champion."""
    group, owners = score.name, [score.email] if score.email else []
    training_set_key, model_key = dg.AssetKey(["training_sets", score.name]), dg.AssetKey(["models", score.name])
    keys = (*score.entity, score.as_of)

    @dg.asset(
        key=training_set_key,
        deps=[features, label],
        group_name=group,
        owners=owners,
        kinds={"parquet"},
        description=f"What `{score.name}` learns from: every row of `{score.features}` whose label has matured,"
        " frozen under its checksum.",
        metadata={
            "dagster/column_lineage": dg.TableColumnLineage(
                {
                    **{
                        column: [dg.TableColumnDep(features, column)]
                        for column in (*keys, *(column.name for column in score.columns))
                    },
                    **{column: [dg.TableColumnDep(label, column)] for column in ("label", "matures_on")},
                }
            )
        },
        pool="warehouse",
    )
    def training_set(context: dg.AssetExecutionContext) -> dg.MaterializeResult[None]:
        refuse_unsound(context)
        with warehouse.open_warehouse(where.warehouse) as connection:
            versions.create_tables(connection)
            frozen = freeze_training_set(connection, score, clock(project), where.training_sets)
        return dg.MaterializeResult(
            metadata={
                "dagster/row_count": frozen["rows"],
                "as-of dates": f"{frozen['first_as_of']} to {frozen['last_as_of']}",
                "labels known until": str(frozen["known_until"]),
                "path": dg.MetadataValue.path(
                    str(training_set_file(where.training_sets, score, frozen["training_set"]))
                ),
                "changed": frozen["changed"],
            },
            data_version=dg.DataVersion(frozen["training_set"]),
        )

    @dg.asset(
        key=model_key,
        deps=[training_set_key],
        group_name=group,
        owners=owners,
        kinds={"catboost"},
        description=f"The model behind `{score.name}`: a candidate is trained when the training set has changed,"
        f" and becomes the champion if it passes its gate: {'; '.join(score.gate)}.",
        check_specs=[
            dg.AssetCheckSpec("gate", asset=model_key, description="The candidate meets: " + "; ".join(score.gate))
        ],
        pool="warehouse",
    )
    def model(context: dg.AssetExecutionContext) -> Iterator[dg.MaterializeResult[None]]:
        refuse_unsound(context)
        with warehouse.open_warehouse(where.warehouse) as connection:
            versions.create_tables(connection)
            current = versions.current_training_set(connection, score)
            if current is None:
                raise ScoringError(
                    f"score '{score.name}': has no training set yet; materialize training_sets/{score.name} first"
                )
            version = versions.newest_version(connection, score)
            made_from = (score.kind, current["training_set"], engine())
            trained = (
                version is None
                or (version["kind"], version["training_set"], version["engine"]) != made_from
                or not is_whole(where, score, version)
            )
            if version is None or trained:
                version = train_version(connection, score, current["training_set"], where, context.log)
            verdict = judge(connection, score, version)
            champion = versions.champion(connection, score)
        metrics, baseline = json.loads(version["metrics"]), json.loads(version["baseline_metrics"])
        passed = all(result.passed for result in verdict)
        table = dg.MetadataValue.md(
            "\n".join(
                [f"| metric | version {version['version']} | baseline: {version['baseline']} |", "|---|---|---|"]
                + [f"| {metric} | {value:.4f} | {baseline[metric]:.4f} |" for metric, value in metrics.items()]
            )
        )
        yield dg.MaterializeResult(
            metadata={
                "dagster/row_count": version["train_rows"],
                "version": version["version"],
                "champion": champion["version"] if champion else "none",
                "metrics on held-out dates": table,
                "trained on": f"{version['train_from']} to {version['train_to']}",
                "held out": f"{version['holdout_from']} to {version['holdout_to']}",
                "trees": version["trees"],
                "card": dg.MetadataValue.path(str(model_folder(where.models, score, version["version"]) / "card.json")),
                "changed": trained,
                **{f"metric/{metric}": value for metric, value in metrics.items()},
            },
            check_results=[
                dg.AssetCheckResult(
                    passed=passed,
                    check_name="gate",
                    # A refusal leaves the champion scoring; without a champion there is nothing to score with.
                    severity=dg.AssetCheckSeverity.WARN if champion else dg.AssetCheckSeverity.ERROR,
                    metadata={result.condition: described(result) for result in verdict},
                )
            ],
            data_version=dg.DataVersion(f"{version['version']}-{version['booster_sha256'][:12]}"),
        )

    return [training_set, model]


def described(result: GateResult) -> str:
    """A gate's condition with the figures it was judged by: `roc_auc >= 0.8 (roc_auc 0.8791): passed`."""
    figures = ", ".join(f"{name} {value:.4f}" for name, value in result.values.items())
    return f"{result.condition} ({figures}): {'passed' if result.passed else 'failed'}" + (
        f", {result.note}" if result.note else ""
    )
