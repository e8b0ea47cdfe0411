"""What a score may learn from: rows whose label has matured, frozen, so that a version can be trained again from it."""

import hashlib
import sys
from datetime import UTC, date, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

import dagster as dg

from ml.declarations import DeclarationError, Project, Score
from orchestration import versions, warehouse
from orchestration.checks import refuse_unsound
from orchestration.project import Paths, ProjectError, load_project, paths, refuse_unrun
from orchestration.warehouse import Connection

if TYPE_CHECKING:
    import pyarrow as pa

# Of the versions trained last. The champion's is kept whatever its age, as is what the next candidate learns from.
KEPT_TRAINING_SETS = 10


class ScoringError(RuntimeError):
    """A score can't be trained, given or published: which, why, and what to do."""


def clock(project: Project) -> date:
    """The day it is for the project: the one it fixed, or today (UTC)."""
    return project.today or datetime.now(UTC).date()


def freeze_training_set(connection: Connection, score: Score, today: date, folder: Path) -> dict[str, Any]:
    """All rows whose label has matured, frozen to Parquet under their checksum; a row of `ml.training_sets`.

    What a score excludes of its feature model is in it too: a champion that still reads it is compared on these rows.

    Raises `ScoringError` if a column of the declaration is missing, a key comes twice, labels would stay immature for
    ever or have no day of maturity after their as-of date, no label has matured, or a label is null.
    """
    features, label = (
        warehouse.name(score.features_schema, score.features),
        warehouse.name(score.label_schema, score.label),
    )
    for schema, model in ((score.features_schema, score.features), (score.label_schema, score.label)):
        if not warehouse.exists(connection, schema, model):
            raise ScoringError(f"score '{score.name}': there is no table {schema}.{model}; make run builds it")
    have = warehouse.columns(connection, score.features_schema, score.features)
    missing = [column.name for column in score.model_columns if column.name not in have]
    if missing:
        raise ScoringError(
            f"score '{score.name}': table {features} lacks {', '.join(missing)};"
            f" build model '{score.features}' again, from scratch (make run FULL_REFRESH=1)"
        )
    keys = (*score.entity, score.as_of)
    _refuse_repeated_keys(connection, score, score.features_schema, score.features)
    _refuse_repeated_keys(connection, score, score.label_schema, score.label)
    _refuse_unripe_labels(connection, score, today)
    query = f"""
        select
            {warehouse.names([*keys, *(column.name for column in score.model_columns)], "features")},
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
        counts = f"(select count(*) from {features}), (select count(*) from {label} where matures_on <= '{today}')"
        has_features, has_labels = warehouse.one(connection, f"select {counts}")
        of_features, of_label = f"{score.features_schema}.{score.features}", f"{score.label_schema}.{score.label}"
        why = (
            f"{of_features} has no rows"
            if not has_features
            else f"no label in {of_label} has matured by {today}"
            if not has_labels
            else f"no row of {of_features} has the {', '.join(keys)} of one in {of_label} that has matured by {today}"
        )
        raise ScoringError(f"score '{score.name}': {why}, so there is nothing to train on")
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
    known = versions.training_set(connection, score, checksum)
    if known is None or known["file_sha256"] is None or sha256_of(file) != known["file_sha256"]:
        warehouse.freeze(connection, query, file)
    row["file_sha256"] = sha256_of(file)
    changed = current is None or current["training_set"] != checksum
    if changed:
        versions.record_training_set(connection, score, row)
    elif known is None or row["file_sha256"] != known["file_sha256"]:
        versions.record_file_of_training_set(connection, score, checksum, row["file_sha256"])
    return {**row, "changed": changed}


def sha256_of(file: Path) -> str | None:
    """The checksum of a file, None if it is missing."""
    try:
        with file.open("rb") as stream:
            return hashlib.file_digest(stream, "sha256").hexdigest()
    except FileNotFoundError:
        return None


def _refuse_repeated_keys(connection: Connection, score: Score, schema: str, model: str) -> None:
    """Raises `ScoringError` if a key of a feature or label model has several rows: each would be trained on."""
    keys = (*score.entity, score.as_of)
    listed = warehouse.names(keys)
    repeated = f"""
        select {listed}, count(*) as "rows of the key" from {warehouse.name(schema, model)}
        group by {listed} having count(*) > 1
    """
    row = warehouse.WHOLE_ROW
    found, example = warehouse.one(connection, f"select count(*), min({row}) from ({repeated}) as {row}")
    if found:
        *values, rows = example.values()
        key = ", ".join(f"{column} {value}" for column, value in zip(keys, values, strict=True))
        raise ScoringError(
            f"score '{score.name}': model '{model}' has {found} keys with more than one row, such as {key} with {rows};"
            f" it must have one row per {' × '.join(keys)}: mend its joins, or the rows it is made from"
            " (an incremental model keeps its rows until make run FULL_REFRESH=1)"
        )


def _refuse_unripe_labels(connection: Connection, score: Score, today: date) -> None:
    """Raises `ScoringError` if labels are of no known maturity, or would be trained on before their outcome is known.

    Rows that have not matured wait. In an incremental label model they would keep the label of now.
    """
    label = warehouse.name(score.label_schema, score.label)
    as_of = warehouse.name(score.as_of)
    undated, early, immature = warehouse.one(
        connection,
        f"""
        select
            count(*) filter (matures_on is null),
            count(*) filter (matures_on::date <= {as_of}::date),
            count(*) filter (matures_on > date '{today}')
        from {label}
        """,
    )
    model = f"score '{score.name}': model '{score.label}'"
    if undated:
        raise ScoringError(
            f"{model} has {undated} rows whose matures_on is null: nobody knows when they may be learned from;"
            " say for each row the first day on which its outcome is known"
        )
    if early:
        raise ScoringError(
            f"{model} has {early} rows that mature on their {score.as_of} or before: an outcome lies after the date it"
            " is foretold from; matures_on is the first day on which it is known, such as the date and 28 days"
        )
    if immature and score.label_is_incremental:
        raise ScoringError(
            f"{model} is incremental and has {immature} rows that mature only after"
            f" {today}; their label would stay as it is now: either let the model select matured rows alone"
            " (where matures_on <= today), or build it anew each time (materialized: table); where it does and the"
            " clock was set back, make run FULL_REFRESH=1"
        )


def training_set_file(folder: Path, score: Score, checksum: str) -> Path:
    return folder / score.name / f"{checksum}.parquet"


def training_rows(connection: Connection, score: Score, training_set: str, where: Paths) -> "pa.Table":
    """The rows of a training set, as they were frozen.

    Raises `ScoringError` if its file is gone or is not what was written. Only what is learned from now can be frozen
    anew: other rows have come or changed since an older one.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    file = training_set_file(where.training_sets, score, training_set)
    known, found = versions.training_set(connection, score, training_set), sha256_of(file)
    try:
        if found is None:
            raise FileNotFoundError("it is missing")
        if known is not None and known["file_sha256"] not in (None, found):
            raise OSError("it is not what was written")
        return pq.read_table(file)
    except (OSError, pa.ArrowException) as error:
        current = versions.current_training_set(connection, score)
        is_current = current is not None and current["training_set"] == training_set
        remedy = (
            "remove the file and run again: it is frozen anew"
            if is_current
            else "bring the file back from a copy, or have a version trained on the rows of now: make train"
            f' SCORE={score.name} REASON="…"'
        )
        raise ScoringError(f"score '{score.name}': its training set {file} can't be read: {error}; {remedy}") from None


def prune_training_sets(connection: Connection, score: Score, folder: Path) -> list[str]:
    """Removes the files that no version worth training again was trained on; gives the names of the removed sets."""
    kept = versions.training_sets_in_use(connection, score, KEPT_TRAINING_SETS)
    removed = [file for file in sorted((folder / score.name).glob("*.parquet")) if file.stem not in kept]
    for file in removed:
        file.unlink()
    return [file.stem for file in removed]


def training_set_asset(
    score: Score, features: dg.AssetKey, label: dg.AssetKey, project: Project, where: Paths
) -> dg.AssetsDefinition:
    """The asset of what a score learns from."""
    keys = (*score.entity, score.as_of)

    @dg.asset(
        key=["training_sets", score.name],
        deps=[features, label],
        group_name=score.name,
        owners=[score.email] if score.email else [],
        kinds={"parquet"},
        description=f"What `{score.name}` learns from: every row of `{score.features}` whose label has matured,"
        " frozen under its checksum.",
        metadata={
            "dagster/column_lineage": dg.TableColumnLineage(
                {
                    **{
                        column: [dg.TableColumnDep(features, column)]
                        for column in (*keys, *(column.name for column in score.model_columns))
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

    return training_set


def told(connection: Connection, project: Project, where: Paths) -> list[dict[str, str]]:
    """Each version of each score with what it was trained on, the newest first, and whether that can be had again."""
    rows = []
    for score in project.scores:
        for version in versions.all_versions(connection, score):
            frozen = versions.training_set(connection, score, version["training_set"]) or {}
            file = training_set_file(where.training_sets, score, version["training_set"])
            found = sha256_of(file)
            known = frozen.get("file_sha256")
            state = "as frozen" if found == known else "not what was written"
            if found is None:
                state = f"removed: files of the {KEPT_TRAINING_SETS} newest versions and the champion's are kept"
            elif known is None:
                state = "not known: written before checksums were kept"
            rows.append(
                {
                    "version": f"{score.name} {version['version']}",
                    "training set": file.stem,
                    "rows": f"{frozen['rows']:,}" if frozen else "?",
                    "as-of dates": f"{frozen['first_as_of']} to {frozen['last_as_of']}" if frozen else "?",
                    "labels known until": str(frozen.get("known_until", "?")),
                    "its file is": state,
                }
            )
    return rows


def main() -> None:
    """`make sets`: prints what each version was trained on."""
    from rich.console import Console
    from rich.table import Table

    where = paths()
    try:
        project = load_project(where)
        refuse_unrun(where, project)
        with warehouse.open_warehouse(where.warehouse) as connection:
            versions.create_tables(connection)
            rows = told(connection, project, where)
    except (DeclarationError, ProjectError, warehouse.WarehouseError) as error:
        sys.exit(str(error))
    if not rows:
        sys.exit(f"{where.data}: no version has been trained there yet; make run does it")
    table = Table(title=f"What each version was trained on, in {where.training_sets}", title_justify="left")
    for title in rows[0]:
        table.add_column(title, overflow="fold")
    for row in rows:
        table.add_row(*row.values())
    Console(width=None if sys.stdout.isatty() else 160).print(table)


if __name__ == "__main__":
    main()
