"""Counts each column of the rows that a score learned from and of those that it scores: every row, in one scan.

What is counted is kept in `monitoring.distributions`, the bins that it is counted by in `monitoring.bins`.
"""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import msgspec

from ml.encoding import LARGEST, SECONDS_OF_A_DAY, Column
from ml.slices import UNKNOWN
from orchestration import warehouse
from orchestration.warehouse import Connection
from reports.distances import Bins, Distribution

BINS = 10  # of a number, by the deciles of the reference
BOOLEANS = ("false", "true")
MOMENTS = ("mean", "sd", "low", "high", "log_mean", "log_sd", "nonzero")
SAMPLED = 50_000  # rows of the reference that the deciles are of: they are exact to half a percent of the rows
MORE = 4  # deviations of the number of rows with a low hash, so that there are hardly ever fewer than asked for
LARGEST_HASH = 2**64 - 1
NAMED = 5  # new categories
COLUMNS_OF_A_SCAN = 64
OTHER = "(other)"  # the segment of what the reference has not seen


class Segments(msgspec.Struct, frozen=True):
    """A column by whose values the rows are counted besides, and these values."""

    column: str
    values: tuple[str, ...]


class Counted(msgspec.Struct, frozen=True, kw_only=True):
    """A column's distribution in the rows of a `key`, as an as-of date (None: of all keys), or in a segment of them."""

    key: Any
    segment_column: str | None
    segment: str | None
    column: str
    distribution: Distribution


def cleaned(column: Column) -> str:
    """SQL of a column's values as models read them: text of a category, float32 of anything else; NaN is null."""
    name = warehouse.name(column.name)
    if column.type in ("category", "boolean"):
        return f"{name}::varchar"
    if column.type == "date":
        return f"case when isfinite({name}) then ({name}::date - date '1970-01-01')::double end"
    if column.type == "timestamp":
        # in microseconds, which a time zone does not change
        return f"case when isfinite({name}) then (epoch_us({name}) / {1e6 * SECONDS_OF_A_DAY})::float::double end"
    number = f"{name}::double"
    return f"case when not isnan({number}) then greatest(least({number}, {LARGEST}), -{LARGEST})::float::double end"


def sampled(connection: Connection, rows: str, keys: str, most: int) -> str:
    """SQL of `most` rows of a query and a few more, the same ones each time: those whose `keys` (SQL) have a low hash.

    All of them where there are no more. Nothing is sorted, which of wide rows would take much memory.
    """
    (total,) = warehouse.one(connection, f"select count(*) from ({rows})")
    asked = most + MORE * math.sqrt(most)
    if total <= asked:
        return rows
    return f"select * from ({rows}) where hash({keys}) <= {int(asked / total * LARGEST_HASH)}::ubigint"


def learn_bins(connection: Connection, rows: str, columns: Sequence[Column], keys: str) -> list[Bins]:
    """The bins of these columns: of a category those that the model knows, of all else the deciles of a query's rows.

    These are of a sample, if they are many, by the hash of `keys`.
    """
    numbers = [one for one in columns if one.type not in ("category", "boolean")]
    deciles: dict[str, Sequence[float]] = {}
    if numbers:
        read = ", ".join(f"{cleaned(one)} as c{place}" for place, one in enumerate(numbers))
        edges = [place / BINS for place in range(1, BINS)]
        asked = ", ".join(f"quantile_disc(c{place}, {edges})" for place in range(len(numbers)))
        found = warehouse.one(
            connection, f"select {asked} from (select {read} from ({sampled(connection, rows, keys, SAMPLED)}))"
        )
        deciles = {one.name: values or () for one, values in zip(numbers, found, strict=True)}
    return [
        Bins(name=one.name, type=one.type, categories=one.categories or (BOOLEANS if one.type == "boolean" else ()))
        if one.type in ("category", "boolean")
        else Bins(name=one.name, type=one.type, edges=tuple(sorted(set(deciles[one.name]))))
        for one in columns
    ]


def count(
    connection: Connection,
    rows: str,
    by: str,
    bins: Sequence[Bins],
    segments: Sequence[Segments] = (),
    each: bool = True,
) -> list[Counted]:
    """The distributions of the columns of a query, for each value of `by` (SQL), and by segments: of each of these
    values, or of all together.

    Each column is read once, in a few scans: what a scan of very many holds at once grows with them.
    """
    return [
        one
        for place in range(0, len(bins), COLUMNS_OF_A_SCAN)
        for one in _scan(connection, rows, by, bins[place : place + COLUMNS_OF_A_SCAN], segments, each)
    ]


def _scan(
    connection: Connection, rows: str, by: str, bins: Sequence[Bins], segments: Sequence[Segments], each: bool
) -> list[Counted]:
    read = [f"{by} as key"]
    read += [f"{cleaned(Column(one.name, one.type))} as c{place}" for place, one in enumerate(bins)]
    read += [f"{_segment(one)} as s{place}" for place, one in enumerate(segments)]
    sets = ["(key)", *(f"(key, s{place})" if each else f"(s{place})" for place in range(len(segments)))]
    which, value = (
        " ".join(f"when grouping(s{place}) = 0 then {result.format(place)}" for place in range(len(segments)))
        for result in ("{}", "s{}")
    )
    asked = [
        "key",
        f"case {which} end" if segments else "null",
        f"case {value} end" if segments else "null",
        "count(*)",
        *(_counts(one, f"c{place}") for place, one in enumerate(bins)),
    ]
    found = connection.execute(
        f"""
        with cleaned as (select {", ".join(read)} from ({rows}))
        select {", ".join(asked)} from cleaned group by grouping sets ({", ".join(sets)})
        order by 1, 2, 3
        """
    ).fetchall()
    return [
        Counted(
            key=key,
            segment_column=None if place is None else segments[place].column,
            segment=segment,
            column=one.name,
            distribution=_distribution(one, total, told),
        )
        for key, place, segment, total, *columns in found
        for one, told in zip(bins, columns, strict=True)
    ]


def _segment(one: Segments) -> str:
    value = f"{warehouse.name(one.column)}::varchar"
    known = f"{value} in ({', '.join(map(warehouse.literal, one.values))})"
    return f"case when {value} is null then '{UNKNOWN}' when {known} then {value} else '{OTHER}' end"


def _counts(bins: Bins, name: str) -> str:
    """SQL of what is counted of a column, as a struct."""
    if bins.is_category:
        # The warehouse counts all other values under '', which may be a value itself; so each has a sign before it.
        marked = warehouse.literal([f"={value}" for value in bins.categories])
        is_new = f"{name} not in ({', '.join(map(warehouse.literal, bins.categories))})" if bins.categories else "true"
        return (
            f"{{'known': count({name}), 'counts': histogram_exact('=' || {name}, {marked}::varchar[]),"
            f" 'new': approx_top_k({name}, {NAMED}) filter ({is_new})}}"
        )
    edges = f"[{', '.join(map(repr, bins.edges))}]::double[]"
    return (
        f"{{'known': count({name}), 'mean': avg({name}), 'sd': stddev_pop({name}), 'low': min({name}),"
        f" 'high': max({name}), 'log_mean': avg(ln(abs(nullif({name}, 0)))),"
        f" 'log_sd': stddev_pop(ln(abs(nullif({name}, 0)))), 'nonzero': count(nullif({name}, 0)),"
        f" 'counts': {f'histogram({name}, {edges})' if bins.edges else 'null'}}}"
    )


def _distribution(bins: Bins, rows: int, told: Mapping[str, Any]) -> Distribution:
    """What the warehouse has counted of a column; where it holds no value but nulls there is nothing to count."""
    known, counts = told["known"], told["counts"] or {}
    keys: list[Any] = [f"={value}" for value in bins.categories] if bins.is_category else list(bins.edges)
    of_keys = [counts.get(key, 0) for key in keys]
    moments = {} if bins.is_category else {name: told[name] for name in MOMENTS}
    return Distribution(
        rows=rows,
        nulls=rows - known,
        counts=(*of_keys, known - sum(of_keys)),
        new=tuple(told.get("new") or ()),
        **moments,
    )
