"""What is published of each customer, as SQL writes it: the id, the JSON with percentile and reasons, the ranking.

Python only carries it from the warehouse to the files: to make the JSON of each customer there takes ten times as long.
"""

from collections.abc import Generator, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from datetime import date
from typing import TYPE_CHECKING, Any

import msgspec

from ml import sentences
from ml.declarations import Score
from orchestration import warehouse
from orchestration.warehouse import Connection

if TYPE_CHECKING:
    from serving.generations.store import Generation

ROWS = 10_000  # of one batch: their JSON takes some megabytes
PERCENTS = [percent / 100 for percent in range(101)]


class Newest(msgspec.Struct, frozen=True, kw_only=True):
    """The predictions of an as-of date: how many, of how many ids, how many without one, customers by band, and the
    quantiles that generation.json tells. `rows` is their SQL, `from … where …`."""

    rows: str
    count: int
    ids: int
    nulls: int
    band_counts: dict[str, int]
    quantiles: dict[str, tuple[float, ...]]


def published_key(score: Score) -> str:
    """SQL of the customer's id as applications write it: the key as the warehouse writes it as text.

    Parts of a composite key are joined as `serving.generations.store.customer_key` joins texts.
    """
    texts = [f"cast({warehouse.name(column)} as varchar)" for column in score.entity]
    if len(texts) == 1:
        return texts[0]
    return " || ',' || ".join(f"replace(replace({text}, '~', '~0'), ',', '~1')" for text in texts)


def newest_predictions(connection: Connection, score: Score, version: int, day: date) -> Newest:
    """What a version has said at an as-of date."""
    of_rows = (
        f"from {warehouse.name('predictions', score.name)} where model_version = {version} and as_of_date = '{day}'"
    )
    key = published_key(score)
    count, ids, nulls = warehouse.one(
        connection, f"select count(*), count(distinct {key}), count(*) filter ({key} is null) {of_rows}"
    )
    bands = connection.execute(f"select band, count(*) {of_rows} and band is not null group by 1").fetchall()
    among = "coalesce(band, '')" if score.kind == "category" else "''"
    quantiles = connection.execute(
        f"select {among}, quantile_disc(score, {PERCENTS}) {of_rows} and isfinite(score) group by 1 order by 1"
    ).fetchall()
    return Newest(
        rows=of_rows,
        count=count,
        ids=ids,
        nulls=nulls,
        band_counts=dict(bands),
        quantiles={name: tuple(values) for name, values in quantiles},
    )


def customers(
    connection: Connection, score: Score, generation: "Generation", of_rows: str
) -> Generator[tuple[str, bytes], None, None]:
    """The (id, JSON of a `CustomerScore`) of each customer, sorted by id, streamed from the warehouse.

    Raises `PublicationError` naming a customer who has a score that is no finite number.
    """
    from serving.generations.store import PublicationError

    for ids, contents in columns(connection, customers_query(score, generation, of_rows)):
        if None in contents:
            refused = ids[contents.index(None)]
            raise PublicationError(f"{score.name}: customer '{refused}' has a score that is not a number")
        yield from zip(ids, contents, strict=True)


def customers_query(score: Score, generation: "Generation", of_rows: str) -> str:
    """SQL of (customer_key, content) of each customer: `content` is null where a number in it is not finite."""
    is_category = score.kind == "category"
    group = "band, " if is_category else ""  # a category's percentiles are among the customers of the same class
    selected = ["score", "band", "reasons", "scored_at", *(["probabilities"] if is_category else [])]
    numbers = ["[score]", "list_transform(told, lambda reason: reason.contribution)"]
    if is_category:
        numbers.append("map_values(probabilities)")
    finite = f"list_bool_and(list_transform(list_concat({', '.join(numbers)}), lambda number: isfinite(number)))"
    fields = {
        "score": warehouse.literal(score.name),
        "customer_id": "customer_key",
        "value": "score",
        "band": "band",
        "percentile": "percentile",
        **({"probabilities": "probabilities"} if is_category else {}),
        "reasons": "told",
        "as_of_date": warehouse.literal(str(generation.as_of_date)),
        "model_version": str(generation.model_version),
        "generation": warehouse.literal(generation.generation),
        "scored_at": "scored_at",
    }
    content = ", ".join(f"{name}: {value}" for name, value in fields.items())
    # Sorted before they become JSON, which is larger. Percentiles are joined to them by their values, since a window
    # over all rows would carry the reasons through a sort of its own.
    return f"""
        with predicted as (
            select {published_key(score)} as customer_key, {", ".join(selected)} {of_rows}
        ),

        percentiles as (
            select
                {group}score,
                round(100 * sum(count(*)) over ({"partition by band " if group else ""}order by score)
                    / sum(count(*)) over ({"partition by band" if group else ""}), 2)::double as percentile
            from predicted
            group by {group}score
        ),

        sorted as (
            select
                predicted.*,
                percentiles.percentile
            from predicted
            left join percentiles
                on percentiles.score = predicted.score
                {"and percentiles.band is not distinct from predicted.band" if is_category else ""}
            order by predicted.customer_key
        ),

        told as (
            select
                * exclude (reasons, scored_at),
                {iso_timestamp("scored_at")} as scored_at,
                list_transform(reasons, lambda reason: {{
                    feature: reason.feature,
                    value: reason.value,
                    contribution: reason.contribution,
                    text: {sentence("reason", "band" if is_category else None, generation)}
                }}) as told
            from sorted
        )

        select
            customer_key,
            case when {finite} then encode(to_json({{{content}}})::varchar) end as content
        from told
    """


def sentence(reason: str, of_class: str | None, generation: "Generation") -> str:
    """SQL of the sentence that `ml.sentences` writes of a reason. `of_class` is SQL of the class, of a category."""
    about = f"{reason}.feature"
    subjects = {column.name: sentences.subject(column.name, column.description) for column in generation.features}
    if subjects:
        listed = ", ".join(f"{warehouse.literal(name)}: {warehouse.literal(told)}" for name, told in subjects.items())
        about = f"coalesce(map {{{listed}}}[{about}], {about})"
    if of_class is None:
        ways = "'raises the score'", "'lowers the score'"
    else:
        ways = f"'speaks for ' || {of_class}", f"'speaks against ' || {of_class}"
    moves = f"case when {reason}.contribution > 0 then {ways[0]} else {ways[1]} end"
    return f"{about} || ': ' || coalesce({reason}.value, 'not known') || ', which ' || {moves} || '.'"


def iso_timestamp(column: str) -> str:
    """SQL of a UTC timestamp as msgspec writes it: microseconds only where there are any."""
    whole = f"date_part('microseconds', {column}) % 1000000 = 0"
    return f"strftime({column}, case when {whole} then '%Y-%m-%dT%H:%M:%SZ' else '%Y-%m-%dT%H:%M:%S.%fZ' end)"


def ranking(connection: Connection, score: Score, bands: Sequence[str], of_rows: str) -> Generator[str, None, None]:
    """The ids of all customers: band by band in this order, who has none last, and within each the highest first."""
    place = f"list_position({warehouse.literal(bands)}::varchar[], band)"
    query = f"select {published_key(score)} {of_rows} order by {place} nulls last, score desc, 1"
    for (ids,) in columns(connection, query):
        yield from ids


def columns(connection: Connection, query: str) -> Iterator[list[list[Any]]]:
    """The values of each column of a query, some thousand rows at a time; a thread fetches the next meanwhile."""
    with warehouse.batches(connection, query, ROWS) as batches, ThreadPoolExecutor(1) as thread:
        coming = thread.submit(next, batches, None)
        while (batch := coming.result()) is not None:
            coming = thread.submit(next, batches, None)
            yield [column.to_numpy(zero_copy_only=False).tolist() for column in batch.columns]
