"""What a date's drift report costs: seconds and memory, for 3 M rows × 200 columns, beside Evidently on all of them.

A champion has learned from 3 M rows of 200 features and has scored as many, which lie in a warehouse that may take 1 GB
of memory. Measured is all that a run does of it: both sides counted, every column compared by segments, incidents,
files, and Evidently's page of a sample with its snapshot. Beside it Evidently's default preset on the whole table, in a
process of its own, as long as it takes or until it is stopped. `--quick` takes 100,000 rows × 50 columns.
"""

import gzip
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from datetime import UTC, date, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any

import form
from declared import a_card, a_score, places

if TYPE_CHECKING:
    from ml.declarations import Score

SIZES = {False: (100_000, 50), True: (3_000_000, 200)}
TEXTS = 8  # of the columns
WEEKS = 10  # that the champion has learned from
FIRST, AS_OF = date(2024, 1, 1), date(2024, 5, 6)
EVIDENTLY_SECONDS = {False: 120, True: 1200}
MOST_GIGABYTES, MOST_MINUTES = 2.0, 5.0
MEMORY_LIMIT = "1GB"  # of the warehouse
LEARNT_FROM = 20_000


def the_score(columns: int) -> "Score":
    from ml.declarations import Feature

    names = [*(f"number_{place}" for place in range(columns - TEXTS)), *(f"text_{place}" for place in range(TEXTS))]
    declared = tuple(
        Feature(name=name, data_type="double" if name.startswith("number") else "varchar", description="")
        for name in names
    )
    return a_score(declared, bands={"high": 0.5, "low": 0.0}, label="left_later", label_schema="labels")


def values(columns: int, salt: str) -> str:
    """SQL of made-up features: a twentieth of them null, the texts of six values."""
    numbers = [
        f"case when hash(n, {place}, '{salt}') % 20 > 0 then (hash(n, {place}, '{salt}x') % 1000003) / 1000003 end"
        f" as number_{place}"
        for place in range(columns - TEXTS)
    ]
    texts = [
        f"case when hash(n, {place}, '{salt}t') % 20 > 0 then 'value ' || (hash(n, {place}, '{salt}c') % 6) end"
        f" as text_{place}"
        for place in range(TEXTS)
    ]
    return ", ".join([*numbers, *texts])


def make(folder: Path, rows: str, columns: str) -> dict[str, float]:
    """A warehouse with as many rows learned from, in a frozen training set, and scored by a champion."""
    import msgspec
    import numpy as np
    from catboost import CatBoost, Pool

    from ml import registry
    from ml.encoding import encode, learn_encoder
    from ml.fitting import PARAMS
    from orchestration import versions, warehouse

    score, where = the_score(int(columns)), places(folder)
    with warehouse.open_warehouse(where.warehouse) as connection:
        (where.training_sets / score.name).mkdir(parents=True)
        connection.execute(
            f"""
            copy (
                select
                    n as customer_id, date '{FIRST}' + (7 * (n % {WEEKS}))::integer as as_of_date,
                    {values(int(columns), "a")}, (hash(n, 'label') % 10 = 0)::integer as label,
                    date '{FIRST}' + (7 * (n % {WEEKS}))::integer + 28 as matures_on
                from range({rows}) as rows (n)
            ) to '{where.training_sets / score.name}/set.parquet' (format parquet);
            create schema features;
            create table features.customer_features as
            select n as customer_id, date '{AS_OF}' as as_of_date, {values(int(columns), "b")}
            from range({rows}) as rows (n);
            create schema labels;
            create table labels.left_later as select date '{AS_OF}' as as_of_date, date '{AS_OF}' + 28 as matures_on;
            create schema predictions;
            create table predictions.benchmark as
            select
                customer_id, as_of_date, (hash(customer_id) % 1000) / 1000 as score,
                case when score >= 0.5 then 'high' else 'low' end as band, 1 as model_version
            from features.customer_features;
            """
        )
        learnt = connection.sql(f"from features.customer_features limit {LEARNT_FROM}").to_arrow_table()
        names = [column.name for column in score.columns]
        encoder = learn_encoder(learnt, names)
        matrix = encode(encoder, learnt)
        label = np.random.default_rng(0).random(len(matrix)) < np.nan_to_num(matrix[:, 0], nan=0.5) * 0.3
        booster = CatBoost(PARAMS | {"iterations": 20, "depth": 4, "loss_function": "Logloss"})
        booster.fit(Pool(matrix, label.astype(int), feature_names=names))
        shares = dict(zip(names, map(float, booster.get_feature_importance()), strict=True))
        card = a_card(score.name, score.columns, encoder, len(matrix), 20)
        card = msgspec.structs.replace(
            card, importance=dict(sorted(shares.items(), key=lambda pair: -pair[1])), training_set="set"
        )
        card = registry.save(where.models / score.name / "1", booster, card)
        versions.create_tables(connection)
        versions.record_version(connection, card, "")
        connection.execute(
            "update ml.model_versions set training_set = 'set', train_from = ?, train_to = ?, holdout_from = ?,"
            " holdout_to = ?",
            [FIRST, FIRST + timedelta(weeks=WEEKS), AS_OF, AS_OF],
        )
        scored = {"as_of_date": AS_OF, "rows": int(rows), "made_from": "made up"}
        versions.record_scored_dates(connection, score, 1, [scored], datetime.now(UTC))
    return {}


def reported(folder: Path, _: str, columns: str) -> dict[str, float]:
    """Seconds of the parts of a report, imports apart."""
    import catboost  # noqa: F401  (seconds that do not grow with the rows)
    import evidently.presets  # noqa: F401
    from evidently.ui.workspace import Workspace  # noqa: F401

    from orchestration import versions, warehouse
    from orchestration.drift_metrics import measure_drift
    from orchestration.drift_pages import write_pages
    from orchestration.drifting import write_figures
    from orchestration.model_files import load_card

    score, where = the_score(int(columns)), places(folder)
    with warehouse.open_warehouse(where.warehouse) as connection:
        (champion,) = versions.all_versions(connection, score)
        started = time.monotonic()
        assert measure_drift(connection, score, champion, where) == [AS_OF]
        measured = time.monotonic()
        card = load_card(where, score, 1)
        write_figures(connection, score, champion, card, AS_OF, "", where)
        write_pages(connection, score, champion, card, AS_OF, AS_OF, where)
        written = time.monotonic()
    page = (where.reports / score.name / str(AS_OF) / "drift.html").read_bytes()
    return {
        "counted": measured - started,
        "page": written - measured,
        "page megabytes": len(gzip.compress(page, 6)) / 1e6,
    }


def whole_table(folder: Path, rows: str, columns: str) -> dict[str, float]:
    """Evidently's default preset on all rows of both sides."""
    import duckdb
    import evidently.presets  # noqa: F401
    from drift import preset

    score, where = the_score(int(columns)), places(folder)
    names = ", ".join(column.name for column in score.columns)
    started = time.monotonic()
    with duckdb.connect(str(where.warehouse), read_only=True) as connection:
        after = connection.sql(f"select {names} from features.customer_features").df()
        before = connection.sql(f"select {names} from '{where.training_sets / score.name}/set.parquet'").df()
    drifted = preset(before, after)
    return {"seconds": time.monotonic() - started, "drifted": len(drifted)}


def main() -> None:
    full = form.is_full(__doc__ or "")
    rows, columns = SIZES[full]
    os.environ["SCOREHOUSE_MEMORY_LIMIT"] = MEMORY_LIMIT
    with tempfile.TemporaryDirectory(dir=form.results()) as folder:
        form.alone(__file__, "make", folder, rows, columns)
        ours = form.alone(__file__, "reported", folder, rows, columns)
        theirs, told = None, f"stopped after {EVIDENTLY_SECONDS[full]} s"
        try:
            command = [sys.executable, __file__, "--alone", "whole_table", folder, str(rows), str(columns)]
            found = subprocess.run(
                command, capture_output=True, text=True, timeout=EVIDENTLY_SECONDS[full],
                env={**os.environ, "PYTHONPATH": str(form.REPOSITORY)},
            )  # fmt: skip
            if found.returncode == 0:
                theirs = json.loads(found.stdout.splitlines()[-1])
            else:
                told = f"ended by {found.returncode}"
        except subprocess.TimeoutExpired:
            pass
    size = f"{rows:,} rows × {columns} columns"
    seconds = ours["counted"] + ours["page"]
    figures = [
        form.figure(f"report of {size}; {MOST_MINUTES:g} minutes", seconds, 60 * MOST_MINUTES, 1.0),
        form.figure("memory of that process", ours["gigabytes"], MOST_GIGABYTES, 1.0, unit="GB"),
        form.figure("the page, gzipped; 5 MB", ours["page megabytes"], 5.0, 1.0, unit="MB"),
        form.figure("the page and its snapshot, after imports; 10 s", ours["page"], 10.0, 1.0),
    ]
    if theirs is None:
        print(f"Evidently on the whole table: {told}")
    limit = theirs["seconds"] if theirs else float(EVIDENTLY_SECONDS[full])
    which = "Evidently on the whole table" if theirs else f"Evidently on the whole table, {told}"
    figures.append(form.figure(f"report; {which}", seconds, limit, None))
    form.report(
        "drift_scale", figures, {"counted and compared, s": ours["counted"], "page and snapshot, s": ours["page"]}
    )


if __name__ == "__main__":
    works: dict[str, Callable[..., dict[str, Any]]] = {"make": make, "reported": reported, "whole_table": whole_table}
    if sys.argv[1:2] == ["--alone"]:
        work, folder, *rest = sys.argv[2:]
        print(json.dumps(works[work](Path(folder), *rest)))
    else:
        main()
