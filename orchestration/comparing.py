"""How the rows of a feature model that are stored differ from those that were computed anew beside them."""

import msgspec

from ml.declarations import Score
from orchestration import warehouse
from orchestration.warehouse import Connection

STORED = ("right_in_time", "stored")  # the table of the warehouse's rows, beside those computed anew
CLOSE = 1e-9  # how far floating-point numbers may lie apart, relative: sums depend on the order of rows
NOISE = 1e-12  # or relative to the column's largest: what cancels out leaves a rest of its own size each time


class NotRecomputed(RuntimeError):
    """Rows of the past can't be built anew: model, why, and what to do."""


class Difference(msgspec.Struct, frozen=True, kw_only=True):
    """How stored and recomputed rows differ: in which column (None: whole rows are missing) and how many rows, with an
    example, whose values are given as the warehouse writes them."""

    column: str | None
    rows: int
    entity: str
    stored: str
    recomputed: str


def compare(connection: Connection, score: Score, as_of: str) -> tuple[int, list[Difference]]:
    """How many rows of a date are stored, and how they differ from those just built."""
    built = warehouse.name(score.features_schema, score.features)
    types = warehouse.columns(connection, *STORED)
    alone = set(types) ^ set(warehouse.columns(connection, score.features_schema, score.features))
    if alone:
        raise NotRecomputed(
            f"{score.features}: the stored table and the model differ in the columns {', '.join(sorted(alone))};"
            " make run FULL_REFRESH=1 builds the table as the model is now"
        )
    of_date = f"where {warehouse.name(score.as_of)}::varchar = {warehouse.literal(as_of)}"
    entity = "{" + ", ".join(f"{warehouse.literal(c)}: {warehouse.name(c)}" for c in score.entity) + "}"
    row = warehouse.WHOLE_ROW
    # Both sides as structs, so that no column of theirs can be taken for one of the comparison's.
    connection.execute(
        f"""
        create or replace temp table compared as
        with stored as (select {entity} as entity, {row} as row from {warehouse.name(*STORED)} as {row} {of_date}),
        recomputed as (select {entity} as entity, {row} as row from {built} as {row} {of_date})
        select coalesce(stored.entity, recomputed.entity) as entity, stored.row as stored, recomputed.row as recomputed
        from stored full outer join recomputed on stored.entity is not distinct from recomputed.entity
        """
    )
    in_both = "stored is not null and recomputed is not null"
    found = [
        *_difference(connection, None, "recomputed is null", "'a row'", "'none'"),
        *_difference(connection, None, "stored is null", "'none'", "'a row'"),
    ]
    for column, kind in types.items():
        if column not in (*score.entity, score.as_of):
            one, other = f"stored.{warehouse.name(column)}", f"recomputed.{warehouse.name(column)}"
            differs = f"{in_both} and {one} is distinct from {other}"
            if kind in ("DOUBLE", "FLOAT"):
                # Infinite and no numbers are close to each other by this measure, so they have to be the same.
                are_finite = f"isfinite({one}) and isfinite({other})"
                largest = f"(select max(abs({one})) filter (isfinite({one})) from temp.compared)"
                near = f"greatest({CLOSE} * abs({one}), {CLOSE} * abs({other}), {NOISE} * {largest})"
                are_close = f"abs({one} - {other}) <= {near}"
                differs += f" and not coalesce({are_finite} and {are_close}, false)"
            found += _difference(connection, column, differs, f"{one}::varchar", f"{other}::varchar")
    (rows,) = warehouse.one(connection, "select count(*) from temp.compared where stored is not null")
    return int(rows), found


def _difference(
    connection: Connection, column: str | None, condition: str, stored: str, computed: str
) -> list[Difference]:
    """The rows that meet a condition, as a difference with the first of them as its example; none if no row does."""
    first = connection.execute(
        f"""
        select count(*) over (), entity, coalesce({stored}, 'null'), coalesce({computed}, 'null')
        from temp.compared where {condition} order by entity limit 1
        """
    ).fetchall()
    return [
        Difference(
            column=column,
            rows=rows,
            entity=", ".join(f"{key} {value}" for key, value in entity.items()),
            stored=one,
            recomputed=other,
        )
        for rows, entity, one, other in first
    ]
