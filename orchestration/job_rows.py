"""The rows of a job's file, a batch at a time: what was uploaded, and what each value is by its column's type."""

import csv
import re
from collections.abc import Iterator, Sequence
from pathlib import Path

import duckdb
import msgspec
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from ml import values
from ml.scores import Feature
from orchestration import warehouse
from serving.generations.generation import BadCustomerId, customer_key
from serving.jobs.uploads import CUSTOMER_ID

BATCH = 32_768  # rows: of a CSV they are Python texts for a moment, some hundred bytes a value
LONGEST_VALUE = 1 << 20  # characters


Record = list[str | None]


class UnreadableFile(Exception):
    """A file that can't be read to its end: why."""


class Rows(msgspec.Struct):
    """Some rows of a file: those from number `first` on, and of which (by place) nothing can be read, and why."""

    first: int
    batch: pa.RecordBatch
    broken: dict[int, str]


class WrongValue(msgspec.Struct, frozen=True):
    """A value that can't be what its column is."""

    place: int  # of the row in its batch
    column: str
    fault: str


def count_rows(file: Path) -> int:
    """How many rows a file has: of a CSV its line breaks outside of quotes, so that an empty line counts, too."""
    if file.suffix == ".parquet":
        return int(pq.read_metadata(file).num_rows)
    lines, in_quotes, last = 0, False, b"\n"
    with file.open("rb") as stream:
        while chunk := stream.read(1 << 20):
            for place, part in enumerate(chunk.split(b'"')):
                in_quotes = in_quotes != (place > 0)
                lines += 0 if in_quotes else part.count(b"\n")
            last = chunk[-1:]
    return max(0, lines - 1 + (last != b"\n"))


def read(file: Path) -> Iterator[Rows]:
    """All rows of a file, in their order. Of a CSV every value is text, and an empty one null.

    Raises `UnreadableFile` if a Parquet file is damaged; what is wrong with a line of a CSV breaks that row alone.
    """
    yield from _read_parquet(file) if file.suffix == ".parquet" else _read_csv(file)


def _read_parquet(file: Path) -> Iterator[Rows]:
    first = 1
    try:
        with pq.ParquetFile(file) as opened:
            for batch in opened.iter_batches(BATCH):
                yield Rows(first, batch, {})
                first += batch.num_rows
    except (pa.ArrowException, OSError) as error:
        raise UnreadableFile(f"the file can't be read after row {first - 1:,}: {error}") from None


def _read_csv(file: Path) -> Iterator[Rows]:
    csv.field_size_limit(LONGEST_VALUE)
    # What is no UTF-8 is let through, to be a fault of its row.
    with file.open(encoding="utf-8-sig", errors="surrogateescape", newline="") as stream:
        lines = csv.reader(stream, strict=True)
        names = next(lines)
        first, records, broken = 1, list[Record](), dict[int, str]()
        empty: Record = [None] * len(names)
        while True:
            try:
                record: Record | None = next(lines, None)  # type: ignore[assignment]
            except csv.Error as error:
                broken[len(records)] = f"is no line of a CSV: {error}"
                records.append(empty)
                continue
            if record is not None and not record:
                continue  # an empty line
            if record is not None and len(record) != len(names):
                broken[len(records)] = f"has {len(record)} of the header's {len(names)} values"
                record = empty
            if record is not None:
                records.append(record)
            if records and (record is None or len(records) >= BATCH):
                yield Rows(first, _texts(names, records, broken), broken)
                first, records, broken = first + len(records), [], {}
            if record is None:
                return


def _texts(names: Sequence[str], records: list[Record], broken: dict[int, str]) -> pa.RecordBatch:
    """The records as columns of text; what is no UTF-8 becomes one of the broken."""
    try:
        columns = [pa.array(column, pa.string()) for column in zip(*records, strict=True)]
    except UnicodeEncodeError:
        for place, record in enumerate(records):
            if not all(value is None or _is_unicode(value) for value in record):
                broken[place] = "is no text in UTF-8"
                records[place] = [None] * len(names)
        columns = [pa.array(column, pa.string()) for column in zip(*records, strict=True)]
    empty = pa.scalar(None, pa.string())
    return pa.RecordBatch.from_arrays(
        [pc.if_else(pc.equal(column, ""), empty, column) for column in columns], names=list(names)
    )


def _is_unicode(value: str) -> bool:
    try:
        value.encode()
    except UnicodeEncodeError:
        return False
    return True


def ids_of(batch: pa.RecordBatch, entity: Sequence[str]) -> list[str | None]:
    """Each row's customer id, as `serving.generations.generation.customer_key` writes it; None where there is none."""
    if CUSTOMER_ID in batch.schema.names and (CUSTOMER_ID not in entity or len(entity) == 1):
        named = batch.column(CUSTOMER_ID).to_pylist()
        return [None if value in (None, "") else str(value) for value in named]
    if not set(entity) <= set(batch.schema.names):
        return [None] * batch.num_rows

    def joined(parts: tuple[object, ...]) -> str | None:
        try:
            return customer_key([None if part == "" else part for part in parts])
        except BadCustomerId:
            return None

    return [joined(parts) for parts in zip(*(batch.column(name).to_pylist() for name in entity), strict=True)]


def typed(batch: pa.RecordBatch, features: Sequence[Feature]) -> tuple[pa.RecordBatch, list[WrongValue]]:
    """The features of these rows as exactly their types, and every value that can't be of its column's; null there."""
    with duckdb.connect(config={"TimeZone": "UTC", "autoinstall_known_extensions": False}) as connection:
        plain = pa.RecordBatch.from_arrays(
            [_plain(batch.column(feature.name)) for feature in features], names=[feature.name for feature in features]
        )
        connection.register("incoming", plain)
        asked = []
        for feature, column in zip(features, plain.columns, strict=True):
            value, is_wrong = _cast(warehouse.name(feature.name), values.read_as(feature.data_type), column.type)
            asked.append(f"case when not ({is_wrong}) then {value} end")
            asked.append(f"coalesce({is_wrong}, false)")
        names = [f"c{place}" for place in range(len(asked))]
        query = ", ".join(f"{sql} as {name}" for sql, name in zip(asked, names, strict=True))
        found = connection.sql(f"select {query} from incoming").to_arrow_table().combine_chunks()
    columns = [found.column(place).combine_chunks() for place in range(len(asked))]
    wrong = [
        WrongValue(place, feature.name, f"is {_short(plain.column(number)[place])}, {wanted(feature.data_type)}")
        for number, feature in enumerate(features)
        for place in columns[2 * number + 1].to_numpy(zero_copy_only=False).nonzero()[0].tolist()
    ]
    return pa.RecordBatch.from_arrays(columns[::2], names=[feature.name for feature in features]), wrong


def _plain(column: pa.Array) -> pa.Array:
    return column.dictionary_decode() if pa.types.is_dictionary(column.type) else column


def _cast(name: str, kind: str, arrow: pa.DataType) -> tuple[str, str]:
    """SQL of a value as its type, and of whether it can't be: not null, and nothing of that type without a loss."""
    target = values.arrow_type(kind)
    if pa.types.is_null(arrow):
        return f"null::{kind}", "false"
    if kind == "VARCHAR":
        return name, "false"
    if pa.types.is_string(arrow) or pa.types.is_large_string(arrow) or pa.types.is_string_view(arrow):
        pattern = warehouse.literal(_pattern(kind))
        cast, lossy = f"try_cast({name} as {kind})", f"not regexp_full_match({name}, {pattern})"
        if pa.types.is_floating(target):
            lossy += f" or (isinf({cast}) and {name} not ilike '%inf%')"
        return cast, f"{name} is not null and ({lossy} or {cast} is null)"
    value = f"case when not isnan({name}) then {name} end" if pa.types.is_floating(arrow) else name
    cast, lossy = f"try_cast({value} as {kind})", "false"
    if pa.types.is_integer(target) or kind.endswith("HUGEINT"):
        lossy = f"{cast}::double <> {value}::double"
    elif pa.types.is_decimal(target):
        lossy = f"abs({cast}::double - {value}::double) > 1e-9 * greatest(1, abs({value}::double))"
    if pa.types.is_floating(target):
        cast = f"try_cast({name} as {kind})"
    return cast, f"{value} is not null and ({cast} is null or {lossy})"


_DAY = r"\d{4}-\d\d-\d\d"
_TIME = r"[T ]([01]\d|2[0-3]):[0-5]\d(:[0-5]\d(\.\d{1,9})?)?"


def _pattern(kind: str) -> str:
    """How a value of a type is written in a CSV."""
    target = values.arrow_type(kind)
    if pa.types.is_boolean(target):
        return "(?i)true|false"
    if pa.types.is_floating(target):
        return r"(?i)[+-]?((\d+\.?\d*|\.\d+)(e[+-]?\d+)?|inf|infinity)|nan"
    if pa.types.is_decimal(target) and not kind.endswith("HUGEINT"):
        return rf"[+-]?\d+(\.\d{{0,{target.scale}}}0*)?"
    if pa.types.is_date(target):
        return _DAY
    if pa.types.is_timestamp(target):
        return _DAY + _TIME + (r"(Z|[+-]\d\d(:?\d\d)?)" if target.tz else "")
    return r"[+-]?\d+(\.0*)?"


def wanted(data_type: str) -> str:
    """What a value of a type ought to be, as a message goes on after the value."""
    kind = values.read_as(data_type)
    target = values.arrow_type(kind)
    if pa.types.is_boolean(target):
        told = "neither true nor false"
    elif pa.types.is_floating(target):
        told = "not a number"
    elif pa.types.is_decimal(target) and not kind.endswith("HUGEINT"):
        told = f"not a number with {target.scale} decimal places at most and {target.precision} digits"
    elif pa.types.is_date(target):
        told = "not a date (write 2024-12-31)"
    elif pa.types.is_timestamp(target):
        told = f"not a timestamp (write 2024-12-31T23:59:59{'Z' if target.tz else ''})"
    else:
        told = "not a whole number in its range"
    return f"{told} (its type: {data_type})"


def _short(value: pa.Scalar) -> str:
    text = re.sub(r"\s+", " ", str(value.as_py()))
    return f"'{text if len(text) <= 60 else text[:60] + '…'}'"
