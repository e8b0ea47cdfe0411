"""The two sides of `serving.py`, each in a process of its own: what is published, and the floors it is held against.

It runs with `python -P`, so that `serving` is the product and not the benchmark beside this file.
"""

import json
import sys
import time
from collections.abc import Awaitable, Callable, Iterator
from datetime import UTC, date, datetime
from pathlib import Path
from typing import Any

from declared import a_card

Measured = dict[str, float]

SCORE, PREDICTED = "churn", "predicted"
AS_OF, SCORED_AT = date(2024, 5, 6), datetime(2024, 5, 6, 4, tzinfo=UTC)
NUMBERS, TEXTS, CATEGORIES, TREES, DEPTH, LEARNT_FROM = 32, 8, 30, 300, 6, 20_000
BATCH = 1000  # ids in one lookup of many


def a_generation(name: str, score: str, **changes: Any) -> Any:
    from serving.generations.store import Generation

    facts: dict[str, Any] = {
        "generation": name,
        "score": score,
        "title": score,
        "description": "What a benchmark looks up.",
        "owner": "CRM analytics",
        "email": "crm@example.com",
        "kind": "probability",
        "entity": ("customer_id",),
        "as_of_date": AS_OF,
        "fresh_for_days": 8,
        "today": AS_OF,
        "model_version": 1,
        "bands": {"high": 0.6, "medium": 0.3, "low": 0.0},
        "band_counts": {},
        "metrics": {"roc_auc": 0.88},
        "baseline": {"roc_auc": 0.81},
        "published_at": SCORED_AT,
    }
    return Generation(**facts | changes)


def an_id(number: int) -> str:
    """Ids of one length, so that their order is that of the numbers."""
    return f"{10_000_000 + number}"


def a_payload(generation: Any, customer_id: str) -> bytes:
    from serving.generations.store import CustomerScore, Reason, payload

    reasons = [
        Reason(
            feature=f"visits_{days}d_count",
            value=str(days),
            contribution=0.8125 - days / 100,
            text=f"Visits in the last {days} days: {days}, which raises the score.",
        )
        for days in (28, 56, 84)
    ]
    return payload(
        CustomerScore(
            score=generation.score,
            customer_id=customer_id,
            value=0.8312345678901234,
            band="high",
            reasons=reasons,
            as_of_date=AS_OF,
            model_version=1,
            generation=generation.generation,
            scored_at=SCORED_AT,
        )
    )


def customers(generation: Any, rows: int) -> Iterator[tuple[str, bytes]]:
    """So many customers, all with the same score: what it costs to make their JSON is not what is measured."""
    before, after = a_payload(generation, "\x01").split(b"\\u0001")
    for number in range(rows):
        customer_id = an_id(number)
        yield customer_id, before + customer_id.encode() + after


def publish(data: Path, name: str, rows: str) -> Measured:
    """Writes a generation and makes it current; its seconds, and the moment at which it was current."""
    from serving.generations.store import flip, write

    root, generation = data / "generations", a_generation(name, SCORE)
    started = time.monotonic()
    write(root, generation, customers(generation, int(rows)), {})
    seconds = time.monotonic() - started
    (data / "customer.json").write_bytes(a_payload(generation, an_id(0)))
    flip(root, SCORE, name)
    return {"seconds": seconds, "at": time.time()}


def append(data: Path, name: str, rows: str) -> Measured:
    """The floor of publishing: the same sorted pairs put into an LMDB file, in transactions of as many."""
    from itertools import islice

    import lmdb

    pairs = customers(a_generation(name, SCORE), int(rows))
    started = time.monotonic()
    file = data / "append.mdb"
    with lmdb.open(str(file), subdir=False, lock=False, sync=False, map_size=1 << 36) as environment:
        while chunk := [(customer_id.encode(), stored) for customer_id, stored in islice(pairs, 20_000)]:
            with environment.begin(write=True) as transaction:
                transaction.cursor().putmulti(chunk, append=True)
        environment.sync(True)
    seconds = time.monotonic() - started
    file.unlink()
    return {"seconds": seconds}


def get(data: Path, name: str, rows: str) -> Measured:
    """The floor of looking up many: ids a second out of the LMDB file alone."""
    import random

    import lmdb

    ids = [an_id(random.randrange(int(rows))).encode() for _ in range(100 * BATCH)]
    file = data / "generations" / SCORE / name / "store.mdb"
    with lmdb.open(str(file), subdir=False, lock=False, readonly=True) as environment:
        started = time.monotonic()
        for place in range(0, len(ids), BATCH):
            with environment.begin() as transaction:
                found = [transaction.get(customer_id) for customer_id in ids[place : place + BATCH]]
        seconds = time.monotonic() - started
    if None in found:
        sys.exit(f"{file} lacks customers that it should have")
    return {"per_second": len(ids) / seconds}


def train(data: Path) -> Measured:
    """Publishes a small score with its model and features, and gives the p50 of CatBoost's `predict` of one row, in ms.

    A request to predict one row is written to predict.json.
    """
    import numpy as np
    import pyarrow as pa
    from catboost import CatBoost, Pool

    from ml import registry
    from ml.declarations import Feature
    from ml.encoding import encode, learn_encoder
    from ml.fitting import PARAMS
    from serving.generations.store import flip, write

    random = np.random.default_rng(0)
    columns = {f"number_{place}": random.random(LEARNT_FROM) for place in range(NUMBERS)}
    texts = {f"text_{place}": random.integers(0, CATEGORIES, LEARNT_FROM) for place in range(TEXTS)}
    rows = pa.table(columns | {name: [f"category {code}" for code in codes] for name, codes in texts.items()})
    features = tuple(
        Feature(name=name, data_type="DOUBLE" if name in columns else "VARCHAR", description="A feature.")
        for name in rows.column_names
    )
    encoder = learn_encoder(rows, rows.column_names)
    matrix = encode(encoder, rows)
    label = random.random(len(matrix)) < 1 / (1 + np.exp(4 - 3 * matrix[:, 0] - 4 * matrix[:, 1] * matrix[:, 2]))
    booster = CatBoost(PARAMS | {"iterations": TREES, "depth": DEPTH, "loss_function": "Logloss"})
    booster.fit(Pool(matrix, label.astype(int), feature_names=rows.column_names))
    card = a_card(PREDICTED, features, encoder, len(matrix), TREES)
    registry.save(data / "model", booster, card)
    generation = a_generation("g1", PREDICTED, features=features)
    values = [list(row.values()) for row in rows.slice(0, BATCH).to_pylist()]
    write(
        data / "generations",
        generation,
        customers(generation, len(values)),
        {name: data / "model" / name for name in ("model.cbm", "card.json")},
        ((an_id(number), json.dumps(row).encode()) for number, row in enumerate(values)),
    )
    flip(data / "generations", PREDICTED, "g1")
    one = {"rows": [{"features": dict(zip(rows.column_names, values[0], strict=True))}]}
    (data / "predict.json").write_text(json.dumps(one))
    row, times = [float(value) for value in matrix[0]], []
    for _ in range(2000):
        started = time.perf_counter()
        booster.predict([row], prediction_type="Probability")
        times.append(time.perf_counter() - started)
    return {"p50_ms": sorted(times)[len(times) // 2] * 1000}


Send = Callable[[dict[str, Any]], Awaitable[None]]


def floor_app() -> Callable[..., Awaitable[None]]:
    """A bare ASGI app that answers each request with the bytes of a customer, once it has heard what is posted."""
    body = a_payload(a_generation("g1", SCORE), an_id(0))[:-1] + b',"stale":false}'
    headers = [(b"content-type", b"application/json"), (b"content-length", str(len(body)).encode())]
    start = {"type": "http.response.start", "status": 200, "headers": headers}
    rest = {"type": "http.response.body", "body": body}

    async def app(scope: dict[str, Any], receive: Callable[[], Awaitable[Any]], send: Send) -> None:
        if scope["type"] == "http":
            while scope["method"] == "POST" and (await receive()).get("more_body"):
                pass
            await send(start)
            await send(rest)

    return app


def floor(data: Path, port: str, workers: str) -> Measured:
    """The floor of a lookup: `floor_app` under the server and the settings of `python -m serving`, until it is told."""
    from granian.constants import Interfaces
    from granian.log import LogLevels
    from granian.server import Server

    Server(
        "serving_sides:floor_app",
        factory=True,
        port=int(port),
        interface=Interfaces.ASGI,
        workers=int(workers),
        websockets=False,
        log_level=LogLevels.warning,
    ).serve()
    return {}


ALONE: dict[str, Callable[..., Measured]] = {work.__name__: work for work in (publish, append, get, train, floor)}

if __name__ == "__main__" and sys.argv[1:2] == ["--alone"]:
    print(json.dumps(ALONE[sys.argv[2]](Path(sys.argv[3]), *sys.argv[4:])))
