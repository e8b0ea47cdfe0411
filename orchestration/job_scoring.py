"""From the file or the date of a job to its result: scored in batches, kept beside the job and in the warehouse."""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

import duckdb
import msgspec
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from ml.declarations import Score
from ml.explanation import REASON
from orchestration import job_rows, warehouse
from orchestration.job_rows import Rows, UnreadableFile
from orchestration.project import Paths, replaced
from orchestration.published_rows import published_key
from orchestration.warehouse import Connection
from serving.generations import store
from serving.generations.generation import CustomerScore, Generation
from serving.jobs import folder as jobs
from serving.jobs.folder import Job, JobFault
from serving.jobs.uploads import BadUpload, columns_of, what_it_holds

if TYPE_CHECKING:
    from ml.on_demand import Scorer

RESULT = pa.schema(
    [
        ("row", pa.int64()),
        ("customer_id", pa.string()),
        ("score", pa.string()),
        ("value", pa.float64()),
        ("band", pa.string()),
        ("percentile", pa.float64()),
        ("reasons", pa.list_(REASON)),
        ("model_version", pa.int32()),
        ("as_of_date", pa.date32()),
        ("scored_at", pa.timestamp("us", "UTC")),
        ("error", pa.string()),
    ]
)
ERRORS = pa.schema([("row", pa.int64()), ("customer_id", pa.string()), ("column", pa.string()), ("fault", pa.string())])
SCORED = ("value", "band", "percentile", "reasons", "model_version", "as_of_date", "scored_at")

MOST_LISTED = 20  # dates in a message
_customer = msgspec.json.Decoder(CustomerScore)

# What became of some rows: batches of RESULT, and what is wrong with them.
Scored = tuple[pa.RecordBatch, list[JobFault]]
Tell = Callable[[jobs.State], None]


class JobFailed(Exception):
    """A job that can't be done, however often it is tried: why."""


class JobCancelled(Exception):
    """Somebody has asked for the end of the job that is worked on."""


def score_job(job: Job, score: Score, where: Paths, state: jobs.State, tell: Tell) -> jobs.State:
    """Does a job that this process holds, and gives its state at the end, which is for the caller to write.

    `tell` is given the state after each batch. The result takes its place beside the job whole, once the warehouse has
    it. Raises `JobFailed`, and `JobCancelled` before the next batch once it is cancelled; no result is left then.
    """
    folder = where.data / "jobs" / job.job
    with (
        replaced(folder / "result.parquet") as result,
        replaced(folder / "errors.parquet") as errors,
    ):
        with _opened(score, where) as served:
            generation = served.generation
            state = msgspec.structs.replace(
                state, generation=generation.generation, model_version=generation.model_version
            )
            with _scored(job, score, where, served) as (total, ready):
                state = _write(result, errors, job, where, ready, msgspec.structs.replace(state, total=total), tell)
        with warehouse.open_warehouse(where.warehouse) as connection:
            _save(connection, score, job, result)
    return state


@contextmanager
def _opened(score: Score, where: Paths) -> Iterator[store.Store]:
    """What is served of a score, verified."""
    name = store.current(where.generations, score.name)
    if name is None:
        raise JobFailed(f"nothing is published of score '{score.name}' any more")
    with store.open_store(where.generations / score.name / name) as served:
        yield served


@contextmanager
def _scored(job: Job, score: Score, where: Paths, served: store.Store) -> Iterator[tuple[int, Iterator[Scored]]]:
    """How many rows a job has, and what becomes of them, a batch at a time."""
    if job.what == "as_of_date":
        with warehouse.open_warehouse(where.warehouse) as connection:
            total, query = _of_date(connection, score, served.generation, job)
            with warehouse.batches(connection, query) as batches:
                yield total, ((batch.cast(RESULT), []) for batch in batches)
        return
    assert job.file is not None, "what is no date is a file"
    file = where.data / "jobs" / job.job / job.file
    rows = _read(file)
    if job.what == "ids":
        yield job_rows.count_rows(file), (_looked_up(batch, score, served) for batch in rows)
        return
    _refuse_other_features(job, file, served.generation)
    scorer = _scorer(score, where, served.generation)
    yield job_rows.count_rows(file), (_predicted(batch, score, scorer, served.generation) for batch in rows)


def _of_date(connection: Connection, score: Score, generation: Generation, job: Job) -> tuple[int, str]:
    """How many customers the served version has scored at the job's date, and SQL of their rows as in RESULT."""
    predictions, version = warehouse.name("predictions", score.name), generation.model_version
    known = warehouse.rows(
        connection,
        f"select as_of_date::date as day, count(*) as rows from {predictions} where model_version = {version}"
        " group by 1 order by 1",
    )
    rows = {row["day"]: row["rows"] for row in known}.get(job.as_of_date)
    if rows is None:
        listed = ", ".join(str(row["day"]) for row in known[-MOST_LISTED:])
        raise JobFailed(
            f"version {version} of score '{score.name}' has scored nobody as of {job.as_of_date}; it has as of"
            f" {'… ' if len(known) > MOST_LISTED else ''}{listed}"
        )
    of_class = "partition by band" if score.kind == "category" else ""
    return (
        rows,
        f"""
        select
            row_number() over (order by {published_key(score)}) as row,
            {published_key(score)} as customer_id,
            {warehouse.literal(score.name)} as score,
            score as value,
            band,
            round(100 * count(*) over ({of_class} order by score) / count(*) over ({of_class}), 2) as percentile,
            reasons,
            model_version,
            as_of_date::date as as_of_date,
            scored_at,
            null::varchar as error
        from {predictions}
        where model_version = {version} and as_of_date::date = date '{job.as_of_date}'
        order by 1
    """,
    )


def _read(file: Path) -> Iterator[Rows]:
    try:
        yield from job_rows.read(file)
    except UnreadableFile as error:
        raise JobFailed(str(error)) from None


def _refuse_other_features(job: Job, file: Path, generation: Generation) -> None:
    """Raises `JobFailed` if what is served now has other features than when the file came."""
    try:
        what_it_holds(columns_of(file), generation)
    except BadUpload as error:
        raise JobFailed(f"since the job came, another model is served: {error.detail}") from None


def _scorer(score: Score, where: Paths, generation: Generation) -> "Scorer":
    """What predicts on demand with the model that a generation carries."""
    from ml import on_demand, registry

    try:
        model = registry.load(where.generations / score.name / generation.generation)
    except registry.CorruptModel as error:
        raise JobFailed(f"the served model can't be read: {error}; publish anew or roll back") from None
    return on_demand.make_scorer(model, generation.features, generation.bands, generation.quantiles, generation.reasons)


def _looked_up(rows: Rows, score: Score, served: store.Store) -> Scored:
    """The published scores of the customers whose ids these rows are."""
    told: dict[str, list[Any]] = {name: [] for name in SCORED}
    faults = []
    ids = job_rows.ids_of(rows.batch, score.entity)
    for place, customer_id in enumerate(ids):
        stored = served.get(customer_id) if customer_id is not None else None
        customer = _customer.decode(stored) if stored is not None else None
        if customer is None:
            missing = f"is no customer as of {served.generation.as_of_date}" if customer_id else "has no id"
            fault = rows.broken.get(place) or missing
            faults.append(JobFault(row=rows.first + place, customer_id=customer_id, column=None, fault=fault))
        for name, values in told.items():
            values.append(getattr(customer, name, None))
    told["reasons"] = [
        reasons and [{"feature": one.feature, "value": one.value, "contribution": one.contribution} for one in reasons]
        for reasons in told["reasons"]
    ]
    return _result(rows, ids, score, {name: pa.array(told[name], RESULT.field(name).type) for name in SCORED}, faults)


def _predicted(rows: Rows, score: Score, scorer: "Scorer", generation: Generation) -> Scored:
    """The scores of these rows of features, but of those that have a value which can't be its column's."""
    ids = job_rows.ids_of(rows.batch, score.entity)
    features, wrong = job_rows.typed(rows.batch, generation.features)
    faults = [
        JobFault(row=rows.first + place, customer_id=ids[place], column=None, fault=fault)
        for place, fault in rows.broken.items()
    ] + [
        JobFault(row=rows.first + one.place, customer_id=ids[one.place], column=one.column, fault=one.fault)
        for one in wrong
    ]
    faults.sort(key=lambda fault: fault.row)
    bad = {fault.row - rows.first for fault in faults}
    sound = [place for place in range(features.num_rows) if place not in bad]
    made = predictions(scorer, features.take(pa.array(sound, pa.int64())))
    back = pa.array([None] * features.num_rows, pa.int64())
    if sound:
        places: list[int | None] = [None] * features.num_rows
        for number, place in enumerate(sound):
            places[place] = number
        back = pa.array(places, pa.int64())
    return _result(rows, ids, score, {name: pc.take(column, back) for name, column in made.items()}, faults)


def predictions(scorer: "Scorer", features: pa.RecordBatch) -> dict[str, pa.Array]:
    """Column of SCORED -> its values for these rows of features."""
    from ml import on_demand

    made, length = on_demand.predict(scorer, features, reasons=True, texts=False), features.num_rows
    return {
        **{name: made.column(name) for name in ("value", "band", "percentile", "reasons")},
        "model_version": pa.array([scorer.model.card.version] * length, pa.int32()),
        "as_of_date": pa.nulls(length, pa.date32()),  # what the rows were known as of, only their sender knows
        "scored_at": pa.array([datetime.now(UTC)] * length, pa.timestamp("us", "UTC")),
    }


def _result(
    rows: Rows, ids: list[str | None], score: Score, told: dict[str, pa.Array], faults: list[JobFault]
) -> Scored:
    """The batch of RESULT that these columns of SCORED make, with the faults of each row as its error."""
    errors: dict[int, list[str]] = {}
    for fault in faults:
        about = f"{fault.column} {fault.fault}" if fault.column else fault.fault
        errors.setdefault(fault.row - rows.first, []).append(about)
    length = rows.batch.num_rows
    columns = {
        "row": pa.array(range(rows.first, rows.first + length), pa.int64()),
        "customer_id": pa.array(ids, pa.string()),
        "score": pa.array([score.name] * length, pa.string()),
        **told,
        "error": pa.array(["; ".join(errors[place]) if place in errors else None for place in range(length)]),
    }
    cells = [columns[field.name].cast(field.type) for field in RESULT]
    return pa.RecordBatch.from_arrays(cells, schema=RESULT), faults


def _write(
    result: Path, errors: Path, job: Job, where: Paths, ready: Iterator[Scored], state: jobs.State, tell: Tell
) -> jobs.State:
    """Writes what becomes of the rows as it is made, and tells how far it is, once a second at most."""
    root, told = where.data / "jobs", 0.0
    with (
        pq.ParquetWriter(result, RESULT, compression="zstd") as results,
        pq.ParquetWriter(errors, ERRORS, compression="zstd") as wrong,
    ):
        for batch, faults in ready:
            results.write_batch(batch)
            if faults:
                wrong.write_batch(pa.RecordBatch.from_pylist([msgspec.structs.asdict(one) for one in faults], ERRORS))
            state = msgspec.structs.replace(
                state,
                rows=state.rows + batch.num_rows,
                # A line with a quote too many hides others from the count.
                total=max(state.total or 0, state.rows + batch.num_rows),
                wrong_rows=state.wrong_rows + len({fault.row for fault in faults}),
                faults=(*state.faults, *faults[: jobs.MOST_FAULTS - len(state.faults)]),
            )
            if time.monotonic() - told >= 1:
                tell(state)
                told = time.monotonic()
            if jobs.is_cancelled(root, job.job):
                raise JobCancelled
    return msgspec.structs.replace(state, total=state.rows)  # an empty line of a CSV was counted, but is no row


def _save(connection: Connection, score: Score, job: Job, result: Path) -> None:
    """Puts a result into the table `jobs.<score>`, in the place of what an earlier attempt has put there."""
    table = warehouse.name("jobs", score.name)
    parts = dict.fromkeys(score.entity, "customer_id")
    if len(score.entity) > 1:
        parts = {
            name: f"replace(replace(split_part(customer_id, ',', {place}), '~1', ','), '~0', '~')"
            for place, name in enumerate(score.entity, 1)
        }
    keys = "".join(f"{sql} as {warehouse.name(name)}, " for name, sql in parts.items())
    query = f"""
        select
            {warehouse.literal(job.job)} as job_id, row, {keys}value as score, band, percentile, reasons, model_version,
            as_of_date, scored_at, error
        from read_parquet({warehouse.literal(str(result))})
    """
    connection.execute(f"create schema if not exists jobs; create table if not exists {table} as {query} limit 0")
    with warehouse.transaction(connection):
        connection.execute(f"delete from {table} where job_id = ?", [job.job])
        try:
            connection.execute(f"insert into {table} by name {query}")
        except duckdb.BinderException as error:
            raise JobFailed(
                f"the table {table} has other columns than the results of now ({str(error).splitlines()[0]}); keep it"
                " under another name, and send the job again"
            ) from None
