"""What the whole way costs beyond its work: `make run` against one process that does the same work and nothing else.

The floor loads the same files into DuckDB, executes the same compiled SQL, fits CatBoost once per score with as many
trees as the champion has, predicts the newest as-of date and writes it to LMDB. It has no tests, no lineage, no
registry, no holdout, no reasons, no verification and no report. `--quick` takes the small second project, `--full`
the sample company.
"""

import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from graphlib import TopologicalSorter
from pathlib import Path
from typing import Any

import form

PROJECTS = {False: form.REPOSITORY / "tests" / "projects" / "loans", True: form.REPOSITORY / "dbt_project"}
AIM_TOTAL, AIM_OVERHEAD_SECONDS, AIM_SECOND_RUN = 2.5, 20.0, 0.6


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
    from orchestration.loading import READERS, find_files
    from orchestration.warehouse import name

    manifest = json.loads((built / "dbt" / "target" / "manifest.json").read_bytes())
    declared = read_project(manifest, {}, project.name)
    (compiled,) = (built / "dbt" / "target").glob("dbt_build-*/compiled")
    warehouse = duckdb.connect(str(data / "warehouse.duckdb"), config={"memory_limit": "4GB"})
    for source in declared.sources:
        files = find_files(source, project)
        reader = READERS["".join(files[0].suffixes[:1])].format(files=[str(file) for file in files], types="{}")
        warehouse.execute(f"create schema if not exists {name(source.schema)}")
        warehouse.execute(
            f"create table {name(source.schema, source.table)} as select * exclude (_file),"
            f" now() as _loaded_at, '' as _batch_id, '' as _source from {reader}"
        )
    nodes = {key: node for key, node in manifest["nodes"].items() if node["resource_type"] in ("model", "seed")}
    for key in TopologicalSorter(
        {key: set(node["depends_on"]["nodes"]) & set(nodes) for key, node in nodes.items()}
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


def parts(built: Path) -> dict[str, float]:
    """Seconds of a finished run by what they were spent on, from Dagster's events and dbt's own results."""
    import dagster as dg

    os.environ["DAGSTER_HOME"] = str(built / "dagster")
    with dg.DagsterInstance.get() as instance:
        run = instance.get_run_records(limit=1)[0]
        steps = {
            step.step_key: (step.end_time or 0) - (step.start_time or 0)
            for step in instance.get_run_step_stats(run.dagster_run.run_id)
        }
    (results,) = (built / "dbt" / "target").glob("dbt_build-*/run_results.json")
    dbt = json.loads(results.read_bytes())
    in_nodes = sum(result["execution_time"] for result in dbt["results"])
    named: dict[str, float] = {}
    for step, seconds in steps.items():
        kind = step.partition("__")[0]
        kind = (
            kind if kind in ("dbt_build", "training_sets", "models", "predictions", "generations", "reports") else "raw"
        )
        named[f"steps: {kind}"] = named.get(f"steps: {kind}", 0.0) + seconds
    named["  of dbt_build: models, seeds and tests in the warehouse (summed over threads)"] = in_nodes
    named["  of dbt_build: dbt's start, parsing and idle time"] = max(
        0.0, named["steps: dbt_build"] - dbt["elapsed_time"]
    )
    named["Dagster between steps"] = (run.end_time or 0) - (run.start_time or 0) - sum(steps.values())
    return named


def imports(*modules: str) -> float:
    """Seconds of a fresh process that imports these, less those of one that imports nothing."""
    empty = timed(lambda: subprocess.run([sys.executable, "-c", ""], check=True))
    code = "import " + ", ".join(modules)
    return timed(lambda: subprocess.run([sys.executable, "-c", code], check=True, cwd=form.REPOSITORY)) - empty


def main() -> None:
    full = form.is_full(__doc__ or "")
    project = PROJECTS[full]
    with tempfile.TemporaryDirectory() as folder:
        built = Path(folder) / "data"
        environment = {**os.environ, "SCOREHOUSE_DATA": str(built), "SCOREHOUSE_PROJECT": str(project)}
        first = timed(lambda: pipeline(environment))
        spent = parts(built)
        bare = timed(
            lambda: subprocess.run(
                [sys.executable, __file__, "--floor", str(project), folder, str(built)],
                check=True,
                cwd=form.REPOSITORY,
                env={**environment, "PYTHONPATH": str(form.REPOSITORY)},
            )
        )
        second = timed(lambda: pipeline(environment))
    spent["imports: what the engine starts with (dagster, dagster_dbt)"] = imports("dagster", "dagster_dbt")
    spent["imports: CatBoost, scikit-learn and SciPy, when a model is trained"] = imports(
        "catboost", "sklearn.metrics", "scipy.stats"
    )
    spent["imports: Evidently, when a report is made"] = imports("evidently", "evidently.presets")
    form.report(
        "pipeline" if full else "pipeline_quick",
        [
            form.figure(f"{project.name}: first run, whole process, against the floor", first, bare, AIM_TOTAL),
            form.figure(
                f"{project.name}: seconds above the floor, against the allowance",
                first - bare,
                AIM_OVERHEAD_SECONDS,
                1.0,
            ),
            form.figure(
                f"{project.name}: second run with nothing new, against the first", second, first, AIM_SECOND_RUN
            ),
        ],
        spent,
    )


if __name__ == "__main__":
    if sys.argv[1:2] == ["--floor"]:
        floor(*map(Path, sys.argv[2:]))
    else:
        main()
