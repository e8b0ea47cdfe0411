"""What `features.py` is measured against and Scorehouse does not need itself: the same work in polars and in Feast.

`features.py` runs it with the Python of an environment of its own, where these are installed.
"""

import json
import sys
import time
from collections.abc import Callable
from pathlib import Path

WEEK, WINDOW, SHORT = 7, 12, 4  # days of a pane; panes of 84 and of 28 days


def polars(folder: Path) -> dict[str, float]:
    """Five features for the households and dates of keys.parquet, from lines and products; written to polars.parquet.

    A pane is the week up to an as-of date. A line belongs to that of the first as-of date after it was known, which is
    right where it is known in the week in which it happened, as all of the sample is.
    """
    import polars as pl

    started = time.monotonic()
    keys = pl.scan_parquet(folder / "keys.parquet")
    first = keys.select(pl.col("as_of_date").min()).collect().item()
    lines = (
        pl.scan_parquet(folder / "lines.parquet")
        .select(
            "household_id",
            "basket_id",
            "product_id",
            cents=(pl.col("sales_value") * 100).round().cast(pl.Int64),
            day=pl.max_horizontal("occurred_at", "known_at").dt.date(),
        )
        .with_columns(pane=((pl.col("day") - first).dt.total_days() // WEEK + 1).cast(pl.Int32))
        .collect()
        .lazy()
    )
    at = ["household_id", "pane"]
    sums = lines.group_by(at).agg(
        pl.col("cents").sum(), pl.col("basket_id").n_unique().cast(pl.Int64).alias("baskets"), pl.col("day").max()
    )

    # A product enters the count when it is bought, and leaves it after 12 panes, or when it is bought again.
    bought = lines.select("household_id", "product_id", "pane").unique().sort("household_id", "product_id", "pane")
    is_same = pl.all_horizontal(pl.col(key) == pl.col(key).shift(-1) for key in ("household_id", "product_id"))
    again = pl.when(is_same).then(pl.col("pane").shift(-1))
    leaves = pl.min_horizontal(pl.col("pane") + WINDOW, again).cast(pl.Int32)
    stays = bought.with_columns(leaves=leaves)
    changes = (
        pl.concat(
            [
                stays.select("household_id", "pane", change=pl.lit(1, pl.Int64)),
                stays.select("household_id", pane="leaves", change=pl.lit(-1, pl.Int64)),
            ]
        )
        .group_by(at)
        .agg(pl.col("change").sum())
    )

    # The department with the most spent in 12 panes; by name where two are equal.
    products = pl.scan_parquet(folder / "products.parquet").select("product_id", "department")
    top = (
        lines.join(products, on="product_id", how="left")
        .with_columns(pl.col("department").fill_null("UNKNOWN"))
        .group_by("household_id", "department", "pane")
        .agg(pl.col("cents").sum())
        .with_columns(pane=pl.int_ranges("pane", pl.col("pane") + WINDOW, dtype=pl.Int32))
        .explode("pane")
        .group_by("household_id", "pane", "department")
        .agg(pl.col("cents").sum())
        .sort("household_id", "pane", "cents", "department", descending=[False, False, True, False])
        .group_by(at)
        .agg(pl.col("department").first().alias("top_department_84d"))
    )

    # A row per household and pane, without gaps, so that a window is one running sum less an earlier one.
    firsts, lasts = lines.select(pl.col("pane").min()), keys.select(pl.col("as_of_date").max())
    last = (lasts.collect().item() - first).days // WEEK
    panes = pl.LazyFrame({"pane": range(firsts.collect().item(), last + 1)}, schema={"pane": pl.Int32})
    grid = (
        lines.select("household_id")
        .unique()
        .join(panes, how="cross")
        .join(sums, on=at, how="left")
        .join(changes, on=at, how="left")
        .with_columns(pl.col("cents", "baskets", "change").fill_null(0))
        .sort(at)
        .with_columns(pl.col("cents", "baskets", "change").cum_sum().over("household_id"))
        .with_columns(pl.col("day").forward_fill().over("household_id"))
    )

    def within(column: str, panes: int) -> pl.Expr:
        return pl.col(column) - pl.col(column).shift(panes, fill_value=0).over("household_id")

    as_of_date = pl.lit(first) + pl.duration(days=pl.col("pane").cast(pl.Int64) * WEEK)
    features = grid.select(
        "household_id",
        "pane",
        as_of_date.cast(pl.Date).alias("as_of_date"),
        within("cents", WINDOW).alias("spend_84d_cents"),
        within("baskets", SHORT).alias("baskets_28d_count"),
        pl.col("change").alias("products_84d_count"),
        (as_of_date.cast(pl.Date) - pl.col("day")).dt.total_days().alias("days_since_last_basket"),
    ).join(top, on=at, how="left")
    made = keys.join(features.drop("pane"), on=["household_id", "as_of_date"], how="left").collect()
    made.write_parquet(folder / "polars.parquet")
    return {"seconds": time.monotonic() - started, "rows": made.height}


def feast(folder: Path, store: str) -> dict[str, float]:
    """`get_historical_features` of events.parquet from features.parquet, in the offline store `duckdb` or `file`.

    What is timed is the call and its result as Arrow, not the import or the registration.
    """
    import pandas as pd
    import pyarrow.compute as pc
    import pyarrow.parquet as pq
    from feast import Entity, FeatureStore, FeatureView, Field, FileSource, RepoConfig, ValueType
    from feast.types import Float64

    columns = [name for name in pq.read_schema(folder / "features.parquet").names if name.startswith("f_")]
    source = FileSource(path=str(folder / "features.parquet"), timestamp_field="as_of_date")
    household = Entity(name="household", join_keys=["household_id"], value_type=ValueType.INT64)
    view = FeatureView(
        name="households",
        entities=[household],
        schema=[Field(name=name, dtype=Float64) for name in columns],
        source=source,
    )
    features = FeatureStore(
        config=RepoConfig(
            project="bench",
            provider="local",
            registry=str(folder / f"{store}_registry.db"),
            online_store={"type": "sqlite", "path": str(folder / f"{store}_online.db")},
            offline_store={"type": store},
            entity_key_serialization_version=3,
        )
    )
    features.apply([household, view])
    events = pd.read_parquet(folder / "events.parquet")
    started = time.monotonic()
    joined = features.get_historical_features(
        entity_df=events, features=[f"households:{name}" for name in columns]
    ).to_arrow()
    seconds = time.monotonic() - started
    return {
        "seconds": seconds,
        "rows": joined.num_rows,
        "total": sum(pc.sum(joined[name]).as_py() or 0 for name in columns),
    }


PEERS: dict[str, Callable[..., dict[str, float]]] = {"polars": polars, "feast": feast}

if __name__ == "__main__" and sys.argv[1:2] == ["--alone"]:
    print(json.dumps(PEERS[sys.argv[2]](Path(sys.argv[3]), *sys.argv[4:])))
