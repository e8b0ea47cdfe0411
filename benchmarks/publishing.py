"""What publishing costs: rows a second of `publish`, whole, beside a bare append of the very same bytes to LMDB files.

Predictions with three reasons and 20 features of each customer lie in a warehouse; to publish them is to check that
they are what was scored, to write a generation (scores as JSON, features as JSON, ranking), to verify it, to compare it
with the warehouse, and to flip CURRENT. The reference reads what was published and appends it, sorted as it is, to new
files, one after the other, and waits until they are on the disk: nothing is made, sorted, hashed or verified.
The two take turns, each in a process, and so a memory, of its own; the warehouse's share of it is limited to 600 MB.
Memory is what the process has taken for itself: pages of files that are mapped, as LMDB maps them, are the system's to
take back, and are told apart.
What SQL takes to make the JSON, and what hashing takes, is told beside it. `--quick` takes 200,000 customers, `--full`
1 and 5 million.
"""

import json
import os
import shutil
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, date, datetime
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import form
from declared import a_card, a_score, places

if TYPE_CHECKING:
    from ml.declarations import Project, Score

Measured = dict[str, float]

SIZES = {False: (200_000,), True: (1_000_000, 5_000_000)}
NUMBERS, COUNTS, TEXTS = 12, 6, 2
AS_OF = date(2024, 5, 6)
AIM, MOST_GIGABYTES = 0.7, 1.5
MEMORY_LIMIT = "600MB"  # of the warehouse, which keeps what it has read up to its limit
TIMES, ONCE_FROM = 3, 5_000_000  # the fastest of so many turns counts, of so many customers the first
FILES = ("store.mdb", "features.mdb", "ranking.mdb")


def the_project() -> "tuple[Project, Score]":
    from ml.declarations import Feature, Project

    kinds = {"number": ("DOUBLE", NUMBERS), "count": ("INTEGER", COUNTS), "text": ("VARCHAR", TEXTS)}
    columns = tuple(
        Feature(name=f"{name}_{place}", data_type=kind, description=f"The {name} that has place {place} of them.")
        for name, (kind, number) in kinds.items()
        for place in range(number)
    )
    score = a_score(columns, bands={"high": 0.6, "medium": 0.3, "low": 0.0})
    return Project(name="benchmark", today=AS_OF, sources=(), scores=(score,)), score


def make(folder: Path, rows: str) -> Measured:
    """A warehouse with so many customers' features, and the predictions of a champion that has scored them."""
    import numpy as np
    from catboost import CatBoost, Pool

    from ml import registry
    from ml.encoding import encode, learn_encoder
    from ml.fitting import PARAMS
    from orchestration import scoring, versions, warehouse

    _, score = the_project()
    names = [column.name for column in score.columns]
    drawn = {
        "number": "case when hash(n, '{name}') % 20 > 0 then (hash(n, '{name}', 'x') % 1000003) / 1000003 end",
        "count": "(hash(n, '{name}') % 100)::integer",
        "text": "'category ' || (hash(n, '{name}') % 30)",
    }
    columns = ", ".join(f"{drawn[name.partition('_')[0]].format(name=name)} as {name}" for name in names)
    with warehouse.open_warehouse(places(folder).warehouse) as connection:
        connection.execute(
            f"create schema features; create table features.customer_features as"
            f" select n as customer_id, date '{AS_OF}' as as_of_date, {columns} from range({rows}) as rows (n)"
        )
        learnt = connection.sql("from features.customer_features limit 1000").to_arrow_table()
        encoder = learn_encoder(learnt, names)
        matrix = encode(encoder, learnt)
        booster = CatBoost(PARAMS | {"iterations": 10, "loss_function": "Logloss"})
        booster.fit(Pool(matrix, np.nan_to_num(matrix[:, 0]) > 0.5, feature_names=names))
        card = a_card(score.name, score.columns, encoder, len(matrix), 10)
        card = registry.save(places(folder).models / score.name / "1", booster, card)
        versions.create_tables(connection)
        versions.record_version(connection, card, "")
        versions.record_gate(connection, score, 1, [])
        # Scores and reasons are drawn, as what a model says has no part in what it costs to publish it.
        scoring._make_table(connection, score)
        reasons = ", ".join(
            f"{{feature: 'number_' || (hash(n, {place}) % {NUMBERS}), value: (hash(n, {place}, 'v') / 2^64)::varchar,"
            f" contribution: hash(n, {place}, 'c') / 2^64 - 0.5}}"
            for place in range(3)
        )
        connection.execute(
            f"""
            insert into predictions.{score.name} by name
            select
                n as customer_id,
                date '{AS_OF}' as as_of_date,
                hash(n, 's') / 2^64 as score,
                case when score >= 0.6 then 'high' when score >= 0.3 then 'medium' else 'low' end as band,
                [{reasons}] as reasons,
                1 as model_version,
                timestamptz '2024-05-07 06:30:00.25+00' as scored_at
            from range({rows}) as rows (n)
            """
        )
        made_from = scoring.made_from(connection, score, scoring.feature_rows(score))
        versions.record_scored_dates(connection, score, 1, made_from, datetime(2024, 5, 7, 6, 30, tzinfo=UTC))
        connection.execute("checkpoint")
    return {}


def published(folder: Path) -> Measured:
    """Customers a second that `publish` brings from the warehouse to applications."""
    from orchestration import warehouse
    from orchestration.publishing import publish
    from serving.generations import store  # noqa: F401  (imports do not grow with the rows)

    project, score = the_project()
    shutil.rmtree(places(folder).generations, ignore_errors=True)
    with warehouse.open_warehouse(places(folder).warehouse) as connection, own_memory() as memory:
        started = time.monotonic()
        told = publish(connection, score, project, places(folder))
        rate = told["rows"] / (time.monotonic() - started)
    return {"rate": rate, "own": max(memory)}


@contextmanager
def own_memory() -> Iterator[list[float]]:
    """GB of this process without the pages of files, looked up every 20 ms until the end of the block."""
    found, done = [0.0], threading.Event()

    def look() -> None:
        while not done.wait(0.02):
            found.append(int(Path("/proc/self/status").read_text().partition("RssAnon:")[2].split()[0]) / 1e6)

    looking = threading.Thread(target=look)
    looking.start()
    try:
        yield found
    finally:
        done.set()
        looking.join()


def appended(folder: Path) -> Measured:
    """Customers a second of a bare append of what was published."""
    import lmdb

    from serving.generations import store

    home = places(folder).generations / "benchmark"
    generation = home / str(store.current(home.parent, home.name))
    target = folder / "bare"
    target.mkdir(exist_ok=True)
    rows, seconds = 0, 0.0
    for name in FILES:
        size = 2 * (generation / name).stat().st_size
        with (
            lmdb.open(str(generation / name), subdir=False, lock=False, readonly=True) as published,
            lmdb.open(str(target / name), subdir=False, lock=False, sync=False, map_size=size) as bare,
            published.begin() as reading,
        ):
            started = time.monotonic()
            pairs = reading.cursor().iternext()
            left = rows = published.stat()["entries"]
            while left > 0:
                with bare.begin(write=True) as writing:
                    taken, added = writing.cursor().putmulti(
                        (next(pairs) for _ in range(min(left, 5_000))), append=True
                    )
                left -= taken
            bare.sync(True)
            seconds += time.monotonic() - started
        assert added == taken
    shutil.rmtree(target)
    return {"rate": rows / seconds}


def parts(folder: Path) -> Measured:
    """Seconds in which SQL makes what is stored of all customers, without writing it, and in which files are hashed."""
    from orchestration import warehouse
    from orchestration.online_features import json_features, online_features
    from orchestration.published_rows import customers, newest_predictions, published_key, ranking
    from orchestration.scoring import feature_rows
    from serving.generations import store
    from serving.generations.generation import sha256_of

    _, score = the_project()
    home = places(folder).generations / score.name
    generation = home / str(store.current(home.parent, home.name))
    took: Measured = {}

    def timed(name: str, rows: Any) -> None:
        started = time.monotonic()
        for _ in rows:
            pass
        took[name] = time.monotonic() - started

    with warehouse.open_warehouse(places(folder).warehouse) as connection:
        of_features = f"from ({feature_rows(score)})"
        features = online_features(connection, score, [])
        of_rows = newest_predictions(connection, score, 1, AS_OF).rows
        manifest = store.verify(generation)
        timed("scores as JSON, s", customers(connection, score, manifest, of_rows))
        timed("features as JSON, s", json_features(connection, features, published_key(score), of_features))
        timed("ranking, s", ranking(connection, score, list(score.bands), of_rows))
    timed("sha256 of all files once, s", (sha256_of(generation / name) for name in FILES))
    took["bytes of a customer"] = sum((generation / name).stat().st_size for name in FILES) / manifest.rows
    return took


def at_size(folder: Path, rows: int, notes: Measured) -> list[dict[str, Any]]:
    size = f"{rows / 1e6:g} M customers"
    alone = partial(form.alone, __file__)
    alone("make", folder, rows)
    turns = [(alone("published", folder), alone("appended", folder)) for _ in range(TIMES if rows < ONCE_FROM else 1)]
    ours, bare = (max((turn[place] for turn in turns), key=lambda one: one["rate"]) for place in (0, 1))
    most = max(turn[0]["own"] for turn in turns)
    notes[f"{size}: memory with the pages of files, GB"] = max(turn[0]["gigabytes"] for turn in turns)
    for name, value in alone("parts", folder).items():
        if name != "gigabytes":
            notes[f"{size}: {name}"] = value
    notes[f"{size}: memory of the bare append, with the pages of files, GB"] = bare["gigabytes"]
    return [
        form.figure(
            f"{size} published; bare append of the same bytes",
            ours["rate"],
            bare["rate"],
            AIM,
            unit="rows/s",
            more_is_better=True,
        ),
        form.figure(f"{size}: memory; {MOST_GIGABYTES} GB", most, MOST_GIGABYTES, 1.0, unit="GB"),
    ]


def main() -> None:
    full = form.is_full(__doc__ or "")
    os.environ["SCOREHOUSE_MEMORY_LIMIT"] = MEMORY_LIMIT
    figures: list[dict[str, Any]] = []
    notes: Measured = {}
    with tempfile.TemporaryDirectory(dir=form.results()) as name:
        for rows in SIZES[full]:
            with tempfile.TemporaryDirectory(dir=name) as place:
                figures += at_size(Path(place), rows, notes)
    form.report("publishing" if full else "publishing_quick", figures, notes)


ALONE = {work.__name__: work for work in (make, published, appended, parts)}

if __name__ == "__main__":
    if sys.argv[1:2] == ["--alone"]:
        print(json.dumps(ALONE[sys.argv[2]](Path(sys.argv[3]), *sys.argv[4:])))
    else:
        main()
