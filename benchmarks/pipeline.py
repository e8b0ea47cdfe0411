"""What the whole way costs beyond its work: `make run` against one process that does the same work and nothing else.

The floor loads the same files into DuckDB, executes the same compiled SQL, fits CatBoost once per score with as many
trees as the champion has, predicts the newest as-of date and writes it to LMDB. It has no tests, no lineage, no
registry, no holdout, no reasons, no verification and no report. `--quick` takes the small second project, `--full`
the sample company.
"""

import json
import os
import resource
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterable
from datetime import UTC, datetime
from graphlib import TopologicalSorter
from pathlib import Path
from typing import Any

import form

PROJECTS = {False: form.REPOSITORY / "tests" / "projects" / "loans", True: form.REPOSITORY / "dbt_project"}
AIM_TOTAL, AIM_OVERHEAD_SECONDS, AIM_SECOND_RUN = 2.5, 20.0, 0.5

DBT_ITSELF = "dbt: its start, its parsing, our column lineage"
DAGSTER_ITSELF = "Dagster, between steps"
AROUND = "before and after: dagster's and dagster_dbt's imports, reading the project, the summary"
BESIDE_DBT = "not in the above: imports of CatBoost, scikit-learn, SciPy, Evidently, while dbt works"


def timed(work: Callable[[], Any]) -> float:
    started = time.monotonic()
    work()
    return time.monotonic() - started


def pipeline(environment: dict[str, str]) -> None:
    """`make run`, as a user's shell does it."""
    done = subprocess.run(
        [sys.executable, "-m", "orchestration.run"],
        env=environment,
        cwd=form.REPOSITORY,
        stdout=subprocess.PIPE,
        text=True,
    )
    if done.returncode:
        sys.exit(f"the pipeline failed, so there is nothing to measure:\n{done.stdout}")


def floor(project: Path, data: Path, built: Path) -> None:
    """The same work in this process; `built` is a finished run's data folder, whose compiled SQL and trees are used."""
    import duckdb
    import lmdb
    import numpy as np
    from catboost import CatBoost

    from ml.declarations import read_project
    from ml.encoding import encode
    from ml.registry import load_card
    from orchestration.figures import create_tables
    from orchestration.files import find_files
    from orchestration.warehouse import name

    manifest = json.loads((built / "dbt" / "target" / "manifest.json").read_bytes())
    declared = read_project(manifest, {}, project.name)
    (compiled,) = (built / "dbt" / "target").glob("dbt_build-*/compiled")
    warehouse = duckdb.connect(str(data / "warehouse.duckdb"), config={"memory_limit": "4GB"})
    for source in declared.sources:
        files = find_files(source, project)
        kind = {"csv": "csv", "jsonl": "json", "parquet": "parquet"}[files[0].name.partition(".")[2]]
        reader = f"read_{kind}({[str(file) for file in files]})"
        known_at = f", {name(source.known_at)}::timestamptz as _known_at" if source.known_at else ""
        warehouse.execute(f"create schema if not exists {name(source.schema)}")
        warehouse.execute(
            f"create table {name(source.schema, source.table)} as select *,"
            f" now() as _loaded_at, '' as _batch_id, '' as _source{known_at} from {reader}"
        )
    create_tables(warehouse)  # a mart reads what the engine records, here nothing
    nodes = {key: node for key, node in manifest["nodes"].items() if node["resource_type"] in ("model", "seed")}
    for key in TopologicalSorter(
        {key: set(node["depends_on"].get("nodes", [])) & set(nodes) for key, node in nodes.items()}
    ).static_order():
        node = nodes[key]
        warehouse.execute(f"create schema if not exists {name(node['schema'])}")
        if node["resource_type"] == "seed":
            file = str(project / node["original_file_path"])
            warehouse.read_csv(file).create(f"{name(node['schema'], node['alias'])}")
        else:
            sql = (compiled / node["package_name"] / node["original_file_path"]).read_text()
            made = "view" if node["config"]["materialized"] == "view" else "table"
            warehouse.execute(f"create {made} {name(node['schema'], node['alias'])} as {sql}")
    for score in declared.scores:
        card = load_card(max((built / "models" / score.name).iterdir(), key=lambda folder: int(folder.name)))
        features, label = name(score.features_schema, score.features), name(score.label_schema, score.label)
        keys = ", ".join(name(column) for column in (*score.entity, score.as_of))
        rows = warehouse.sql(
            f"select * from {features} inner join {label} using ({keys}) order by {keys}"
        ).to_arrow_table()
        booster = CatBoost({**card.params, "iterations": card.trees})
        booster.fit(encode(card.encoder, rows), np.asarray(rows["label"].to_numpy(), dtype=float))
        newest = warehouse.sql(
            f"select * from {features} where {name(score.as_of)} = (select max({name(score.as_of)}) from {features})"
        ).to_arrow_table()
        scores = booster.predict(encode(card.encoder, newest))
        ids = [
            ",".join(map(str, values))
            for values in zip(*(newest[column].to_pylist() for column in score.entity), strict=True)
        ]
        with (
            lmdb.open(str(data / f"{score.name}.mdb"), subdir=False, map_size=1 << 30) as store,
            store.begin(write=True) as transaction,
        ):
            for customer, value in sorted(zip(ids, scores, strict=True)):
                transaction.put(customer.encode(), json.dumps({"id": customer, "value": float(value)}).encode())
    warehouse.close()


def parts(built: Path, whole: float) -> dict[str, float]:
    """Seconds of the newest run by what they were spent on, from Dagster's events and dbt's own results."""
    import dagster as dg

    os.environ["DAGSTER_HOME"] = str(built / "dagster")
    with dg.DagsterInstance.get() as instance:
        run = instance.get_run_records(limit=1)[0]
        steps = {
            step.step_key: (step.end_time or 0) - (step.start_time or 0)
            for step in instance.get_run_step_stats(run.dagster_run.run_id)
        }
    within = (run.end_time or 0) - (run.start_time or 0)
    results = max(
        (built / "dbt" / "target").glob("dbt_build-*/run_results.json"), key=lambda file: file.stat().st_mtime
    )
    in_warehouse = covered(
        (datetime.fromisoformat(timing["started_at"]), datetime.fromisoformat(timing["completed_at"]))
        for result in json.loads(results.read_bytes())["results"]
        for timing in result["timing"]
        if timing["name"] == "execute"
    )
    named = {"raw tables": 0.0, "dbt: models, seeds and tests": in_warehouse}
    named[DBT_ITSELF] = steps.pop("dbt_build") - in_warehouse
    for step, seconds in steps.items():
        room = step.partition("__")[0]
        room = room if room in ("training_sets", "models", "predictions", "generations", "reports") else "raw tables"
        named[room] = named.get(room, 0.0) + seconds
    named[DAGSTER_ITSELF] = (
        within - in_warehouse - sum(seconds for name, seconds in named.items() if not name.startswith("dbt: models"))
    )
    named[AROUND] = whole - within
    return named


def covered(spans: Iterable[tuple[datetime, datetime]]) -> float:
    """Seconds that lie in at least one of these spans, which may overlap."""
    seconds, until = 0.0, datetime.min.replace(tzinfo=UTC)
    for start, end in sorted(spans):
        seconds += max(0.0, (end - max(start, until)).total_seconds())
        until = max(until, end)
    return seconds


def imports() -> float:
    """Seconds of a fresh process that imports what a run does beside dbt, less those of one that imports nothing."""
    from orchestration.transforming import IMPORTED_FOR_PAGES, IMPORTED_LATER

    empty = timed(lambda: subprocess.run([sys.executable, "-c", ""], check=True))
    code = "import " + ", ".join((*IMPORTED_LATER, *IMPORTED_FOR_PAGES))
    return timed(lambda: subprocess.run([sys.executable, "-c", code], check=True, cwd=form.REPOSITORY)) - empty


def main() -> None:
    full = form.is_full(__doc__ or "")
    project = PROJECTS[full]
    with tempfile.TemporaryDirectory() as folder:
        built = Path(folder) / "data"
        environment = {**os.environ, "SCOREHOUSE_DATA": str(built), "SCOREHOUSE_PROJECT": str(project)}
        first = timed(lambda: pipeline(environment))
        peak = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / 1e6  # of one process, in GB
        bare = timed(
            lambda: subprocess.run(
                [sys.executable, __file__, "--floor", str(project), folder, str(built)],
                check=True,
                cwd=form.REPOSITORY,
                env={**environment, "PYTHONPATH": str(form.REPOSITORY)},
            )
        )
        second = timed(lambda: pipeline(environment))
        # All of the work again, by an engine that has read this project before.
        for room in ("warehouse.duckdb", "training_sets", "models", "generations", "reports"):
            made = built / room
            shutil.rmtree(made) if made.is_dir() else made.unlink()
        warm = timed(lambda: pipeline(environment))
        spent = parts(built, warm)
    constant = sum(spent[name] for name in (DBT_ITSELF, DAGSTER_ITSELF, AROUND))
    spent[BESIDE_DBT] = imports()
    spent["the very first run, which also parses the project and makes Dagster's storage"] = first
    spent["its largest process, GB of memory"] = peak
    form.report(
        "pipeline" if full else "pipeline_quick",
        [
            form.figure(f"{project.name}: all the work, warm, against the floor", warm, bare, AIM_TOTAL),
            form.figure(f"{project.name}: of it whatever the data, against 20 s", constant, AIM_OVERHEAD_SECONDS, 1.0),
            form.figure(f"{project.name}: a run with nothing new, against the first", second, first, AIM_SECOND_RUN),
        ],
        spent,
    )


if __name__ == "__main__":
    if sys.argv[1:2] == ["--floor"]:
        floor(*map(Path, sys.argv[2:]))
    else:
        main()
