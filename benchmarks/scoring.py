"""What scoring costs: rows a second of the engine's own way, and its memory, for 1 M and 10 M rows × 40 features.

The rows lie in a warehouse, 8 of the features are text with 30 categories, and a twentieth of the values is null; a
champion of 300 trees of depth 6 waits. Measured is `score_dates`: it hashes the rows, reads, encodes and scores them,
and writes the predictions back, without reasons, with reasons for all, and for the tenth with the highest scores. It is
held against CatBoost's bare `predict` on a Pool of the same rows that is made beforehand; what features add to raw
scores against CatBoost's own ShapValues. What the engine does beside `predict` costs the same whatever the trees, so it
is held against a champion of 1000 trees too. Beside them, on the same encoded rows, MLflow's pyfunc of the same
booster, if it is installed, and scikit-learn's HistGradientBoosting of as many trees. Each measurement has a process,
and so a memory, of its own; the warehouse's share of it is limited to 500 MB. `--quick` takes 100,000 rows.
"""

import json
import os
import sys
import tempfile
import time
from collections.abc import Callable
from datetime import date
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

import form
from declared import a_card, a_score, places

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from ml.declarations import Score
    from ml.learning import Explained
    from ml.registry import Model

Measured = dict[str, float]

SIZES = {False: (100_000,), True: (1_000_000, 10_000_000)}
NUMBERS, TEXTS, CATEGORIES = 32, 8, 30
TREES, MANY_TREES, DEPTH, LEARNT_FROM = 300, 1000, 6, 60_000
AS_OF = date(2024, 5, 6)
FEW = 20_000  # rows that others explain and learn from: more would take minutes
AIM_OF_PREDICT, AIM_OF_SHAP, AIM_GROWTH, MOST_GIGABYTES = 0.5, 4.0, 1.5, 2.0
MEMORY_LIMIT = "500MB"  # of the warehouse, which keeps what it has read up to its limit
TIMES, ONCE_FROM = 3, 5_000_000  # the fastest of so many tries counts, of so many rows the first
WAYS = {"none": "without reasons", "all": "with reasons for all", "high": "with reasons for the highest tenth"}


def the_score(explained: "Explained", high: float) -> "Score":
    """Its declaration; `high` is the lowest score of the highest tenth."""
    from ml.declarations import Feature

    names = [*(f"number_{place}" for place in range(NUMBERS)), *(f"text_{place}" for place in range(TEXTS))]
    columns = tuple(
        Feature(name=name, data_type="double" if name.startswith("number") else "varchar", description="")
        for name in names
    )
    return a_score(columns, bands={"high": high, "low": 0.0}, explained=explained)


def make(folder: Path, rows: str, trees: str) -> Measured:
    """A warehouse with so many rows of features and a champion of so many trees that has scored none of them."""
    import numpy as np
    from catboost import CatBoost, Pool

    from ml import prediction, registry
    from ml.calibration import Calibration
    from ml.encoding import encode, learn_encoder
    from ml.fitting import PARAMS
    from ml.learning import Explained
    from orchestration import versions, warehouse

    score = the_score(Explained(), 0.0)
    numbers = ", ".join(
        f"case when hash(n, {place}) % 20 > 0 then (hash(n, {place}, 'x') % 1000003) / 1000003 end as number_{place}"
        for place in range(NUMBERS)
    )
    texts = ", ".join(
        f"case when hash(n, {place}, 't') % 20 > 0 then 'category ' || (hash(n, {place}, 'c') % {CATEGORIES}) end"
        f" as text_{place}"
        for place in range(TEXTS)
    )
    with warehouse.open_warehouse(places(folder).warehouse) as connection:
        connection.execute(
            f"create schema features; create table features.customer_features as"
            f" select n as customer_id, date '{AS_OF}' as as_of_date, {numbers}, {texts} from range({rows}) as rows (n)"
        )
        learnt = connection.sql(f"from features.customer_features limit {LEARNT_FROM}").to_arrow_table()
        names = [column.name for column in score.columns]
        encoder = learn_encoder(learnt, names)
        matrix = encode(encoder, learnt)
        plain = np.nan_to_num(matrix, nan=0.5)
        logit = 3 * plain[:, 0] + 4 * plain[:, 1] * plain[:, 2] - plain[:, 3] + np.sin(plain[:, NUMBERS]) - 4
        label = np.random.default_rng(0).random(len(matrix)) < 1 / (1 + np.exp(-logit))
        booster = CatBoost(PARAMS | {"iterations": int(trees), "depth": DEPTH, "loss_function": "Logloss"})
        booster.fit(Pool(matrix, label.astype(int), feature_names=names))
        card = a_card(score.name, score.columns, encoder, len(matrix), int(trees))
        card = registry.save(places(folder).models / score.name / "1", booster, card)
        versions.create_tables(connection)
        versions.record_version(connection, card, "")
        versions.record_gate(connection, score, 1, [])
        scores = prediction.outcomes("probability", booster.predict(matrix), None, Calibration())
        return {"high": float(np.quantile(scores, 0.9))}


def scored(folder: Path, way: str, high: str) -> Measured:
    """Seconds in which the engine scores all rows and writes them back."""
    import catboost  # noqa: F401  (a second that does not grow with the rows)

    from ml.learning import Explained
    from orchestration import scoring, versions, warehouse

    who = {"none": Explained(top=0), "all": Explained(), "high": Explained(bands=("high",))}
    score = the_score(who[way], float(high))
    with warehouse.open_warehouse(places(folder).warehouse) as connection:
        champion = versions.champion(connection, score)
        assert champion is not None
        ((rows,),) = connection.execute("select count(*) from features.customer_features").fetchall()

        def forget() -> None:
            connection.execute("drop schema if exists predictions cascade; delete from ml.scored_dates; checkpoint")

        return rate(partial(scoring.score_dates, connection, score, champion, places(folder)), rows, before=forget)


def encoded(folder: Path, rows: int | None = None) -> "tuple[Model, NDArray[np.float32]]":
    """The champion and the rows of the warehouse as it reads them, so many of them, or all."""
    import numpy as np

    from ml import registry
    from ml.encoding import encode
    from orchestration import warehouse

    model = registry.load(places(folder).models / "benchmark" / "1")
    with warehouse.open_warehouse(places(folder).warehouse) as connection:
        query = f"from features.customer_features {f'limit {rows}' if rows else ''}"
        with warehouse.batches(connection, query) as batches:
            parts = [encode(model.card.encoder, batch) for batch in batches]
    return model, np.asfortranarray(np.concatenate(parts))


def rate(work: Callable[[], Any], rows: int, times: int = TIMES, before: Callable[[], None] | None = None) -> Measured:
    """Rows a second of the fastest of a few tries."""
    seconds = []
    for _ in range(times if rows < ONCE_FROM else 1):
        if before:
            before()
        started = time.monotonic()
        work()
        seconds.append(time.monotonic() - started)
    return {"rate": rows / min(seconds)}


def bare(folder: Path) -> Measured:
    """CatBoost's predict alone, of all rows in a Pool that is made beforehand."""
    from catboost import Pool

    model, matrix = encoded(folder)
    pool = Pool(matrix, feature_names=model.booster.feature_names_)
    return rate(partial(model.booster.predict, pool, prediction_type="Probability"), len(matrix))


def shap(folder: Path) -> Measured:
    """CatBoost's own ShapValues."""
    from catboost import Pool

    model, matrix = encoded(folder, FEW)
    pool = Pool(matrix, feature_names=model.booster.feature_names_)
    return rate(partial(model.booster.get_feature_importance, pool, type="ShapValues"), len(matrix))


def looked_up(folder: Path) -> Measured:
    """What each feature adds to each row's raw score, leaf by leaf, and the seconds in which the table is made."""
    from ml.leaf_table import added_by_features

    model, matrix = encoded(folder, 200_000)
    started = time.monotonic()
    table = model.leaf_table
    seconds = time.monotonic() - started
    return {**rate(partial(added_by_features, table, matrix), len(matrix)), "table": seconds}


def boosting(folder: Path) -> Measured:
    """scikit-learn's predict_proba on the encoded rows, of as many trees with as many leaves."""
    import numpy as np
    from sklearn.ensemble import HistGradientBoostingClassifier
    from threadpoolctl import threadpool_limits

    model, matrix = encoded(folder, 1_000_000)
    learnt = np.ascontiguousarray(matrix[:FEW])  # its trees are as large with fewer rows
    label = np.asarray(model.booster.predict(learnt)) > 0
    peer = HistGradientBoostingClassifier(max_iter=TREES, max_leaf_nodes=2**DEPTH, max_bins=64, early_stopping=False)
    with threadpool_limits(1):  # learning from few rows, its threads wait for each other
        peer.fit(learnt, label)
    rows = np.ascontiguousarray(matrix)
    return rate(partial(peer.predict_proba, rows), len(rows), times=1)


def pyfunc(folder: Path) -> Measured:
    """MLflow's pyfunc of the same booster, on a data frame of the encoded rows."""
    import mlflow
    import pandas as pd

    model, matrix = encoded(folder, 1_000_000)
    with tempfile.TemporaryDirectory(dir=folder) as place:
        mlflow.catboost.save_model(model.booster, f"{place}/model")
        loaded = mlflow.pyfunc.load_model(f"{place}/model")
        frame = pd.DataFrame(matrix, columns=list(model.booster.feature_names_))
        return rate(partial(loaded.predict, frame), len(frame), times=1)


def alone(work: Callable[..., Measured], *arguments: object) -> Measured:
    """What a function of this script measures in a process of its own."""
    return form.alone(__file__, work.__name__, *arguments)


def against(name: str, ours: Measured, reference: Measured, aim: float | None) -> dict[str, Any]:
    return form.figure(name, ours["rate"], reference["rate"], aim, unit="rows/s", more_is_better=True)


def at_size(folder: Path, rows: int, peers: bool, notes: Measured) -> tuple[list[dict[str, Any]], dict[str, Measured]]:
    """The figures of so many rows, and what the engine needed each way."""
    size = f"{rows / 1e6:g} M rows"
    high = alone(make, folder, rows, TREES)["high"]
    predict = alone(bare, folder)
    ways = {way: alone(scored, folder, way, high) for way in WAYS}
    figures = [
        against(f"{size} {WAYS[way]}; bare predict", took, predict, AIM_OF_PREDICT if way == "none" else None)
        for way, took in ways.items()
    ]
    for way, took in ways.items():
        notes[f"{size} {WAYS[way]}: memory, GB"] = took["gigabytes"]
    if peers:
        figures += beside_peers(folder, ways, notes)
    return figures, ways


def beside_peers(folder: Path, ways: dict[str, Measured], notes: Measured) -> list[dict[str, Any]]:
    """Reasons beside CatBoost's own, and all of scoring beside others' prediction alone."""
    theirs, ours = alone(shap, folder), alone(looked_up, folder)
    notes["making the table of leaves, s"] = ours["table"]
    figures = [
        against("contributions, leaf by leaf; CatBoost's ShapValues", ours, theirs, AIM_OF_SHAP),
        against("all of scoring, reasons for all; ShapValues alone", ways["all"], theirs, None),
        against("all of scoring; HistGradientBoosting's predict alone", ways["none"], alone(boosting, folder), None),
    ]
    if find_spec("mlflow"):
        figures.append(against("all of scoring; MLflow's pyfunc alone", ways["none"], alone(pyfunc, folder), None))
    else:
        notes["MLflow's pyfunc: not measured, it is not installed"] = 0.0
    return figures


def with_many_trees(folder: Path, rows: int) -> dict[str, Any]:
    """The engine beside bare predict where predicting takes longer."""
    high = alone(make, folder, rows, MANY_TREES)["high"]
    name = f"{rows / 1e6:g} M rows, {MANY_TREES} trees, without reasons; bare predict"
    return against(name, alone(scored, folder, "none", high), alone(bare, folder), AIM_OF_PREDICT)


def main() -> None:
    full = form.is_full(__doc__ or "")
    os.environ["SCOREHOUSE_MEMORY_LIMIT"] = MEMORY_LIMIT
    figures: list[dict[str, Any]] = []
    notes: Measured = {}
    memory: dict[str, dict[int, float]] = {}
    with tempfile.TemporaryDirectory(dir=form.results()) as name:
        for rows in SIZES[full]:
            with tempfile.TemporaryDirectory(dir=name) as place:
                found, ways = at_size(Path(place), rows, rows == SIZES[full][0], notes)
            figures += found
            for way, took in ways.items():
                memory.setdefault(way, {})[rows] = took["gigabytes"]
        if full:
            with tempfile.TemporaryDirectory(dir=name) as place:
                figures.append(with_many_trees(Path(place), SIZES[full][0]))
    for way, by_size in memory.items():
        least, most = by_size[min(by_size)], by_size[max(by_size)]
        if len(by_size) > 1:
            figures.append(form.figure(f"memory {WAYS[way]}: 10 M rows; 1 M rows", most, least, AIM_GROWTH, unit="GB"))
        figures.append(form.figure(f"memory {WAYS[way]}; 2 GB", most, MOST_GIGABYTES, 1.0, unit="GB"))
    form.report("scoring" if full else "scoring_quick", figures, notes)


ALONE = {work.__name__: work for work in (make, scored, bare, shap, looked_up, boosting, pyfunc)}

if __name__ == "__main__":
    if sys.argv[1:2] == ["--alone"]:
        print(json.dumps(ALONE[sys.argv[2]](Path(sys.argv[3]), *sys.argv[4:])))
    else:
        main()
