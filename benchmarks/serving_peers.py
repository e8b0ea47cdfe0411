"""What `serving.py` is measured against and Scorehouse does not need itself: Feast's Python feature server.

`serving.py` runs it with the Python of an environment of its own, where Feast is installed.
"""

import json
import sys
import time
from datetime import UTC, datetime
from pathlib import Path

FIELDS = ("value", "band", "reasons", "as_of_date", "model_version", "generation", "scored_at")
CONFIG = """project: bench
provider: local
registry: {folder}/registry.db
online_store: {{type: sqlite, path: {folder}/online.db}}
offline_store: {{type: file}}
entity_key_serialization_version: 3
"""
BATCH = 20_000  # customers


def feast(folder: Path, rows: str) -> dict[str, float]:
    """A feature repository with the same customers in its online store, in `folder`, for `feast serve`."""
    import pandas as pd
    from feast import Entity, FeatureStore, FeatureView, Field, FileSource, ValueType
    from feast.types import Float64, Int64, String

    folder.mkdir()
    (folder / "feature_store.yaml").write_text(CONFIG.format(folder=folder))
    stored = json.loads((folder.parent / "customer.json").read_text())
    at = datetime(2024, 5, 6, tzinfo=UTC)
    row = {field: stored[field] for field in FIELDS} | {"reasons": json.dumps(stored["reasons"])}
    pd.DataFrame([row | {"customer_id": "", "at": at}]).to_parquet(folder / "customers.parquet")
    customer = Entity(name="customer", join_keys=["customer_id"], value_type=ValueType.STRING)
    types = {"value": Float64, "model_version": Int64}
    view = FeatureView(
        name="churn",
        entities=[customer],
        schema=[Field(name=field, dtype=types.get(field, String)) for field in FIELDS],
        source=FileSource(path=str(folder / "customers.parquet"), timestamp_field="at"),
    )
    store = FeatureStore(repo_path=str(folder))
    store.apply([customer, view])
    started = time.monotonic()
    for first in range(0, int(rows), BATCH):
        ids = [f"{10_000_000 + number}" for number in range(first, min(first + BATCH, int(rows)))]
        store.write_to_online_store("churn", pd.DataFrame(row | {"customer_id": ids, "at": at}))
    return {"seconds": time.monotonic() - started}


if __name__ == "__main__" and sys.argv[1:2] == ["--alone"]:
    print(json.dumps(feast(Path(sys.argv[3]), *sys.argv[4:])))
