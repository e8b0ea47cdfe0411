"""The file of a job as it arrives: streamed to the disk, and known by its columns."""

import asyncio
import csv
import hashlib
import io
from collections import Counter
from collections.abc import AsyncIterator, Sequence
from pathlib import Path
from typing import Any, Literal, cast

from litestar.exceptions import ClientException, HTTPException

from ml import values
from serving.generations.generation import Generation
from serving.jobs.folder import What
from serving.problems import short

CUSTOMER_ID = "customer_id"
Name = Literal["input.csv", "input.parquet"]
MEDIA_TYPES: dict[str, Name] = {
    "text/csv": "input.csv",
    "application/vnd.apache.parquet": "input.parquet",
}
UNTOLD = "application/octet-stream"  # what generated clients send
UNNAMED = "upload"
LONGEST_HEADER = 1 << 20  # bytes of a CSV's first line
WRITTEN_AT_ONCE = 1 << 20
MOST_LISTED = 20  # columns in a message


class BadUpload(HTTPException):
    """A file whose columns say nothing that can be scored: which are missing, which unknown, and what is possible."""

    status_code = 422


async def save(chunks: AsyncIterator[bytes], file: Path, announced: int | None) -> tuple[int, str]:
    """Writes a body to a file as it comes; gives its bytes and their sha256.

    Raises a 400 if there are fewer than `announced`, `OSError` of a full disk. That there are not too many is the
    guard's to see.
    """
    size, digest, pending = 0, hashlib.sha256(), bytearray()

    def write(content: bytes) -> None:
        digest.update(content)
        stream.write(content)

    with file.open("wb") as stream:
        async for chunk in chunks:
            size += len(chunk)
            pending += chunk
            if len(pending) >= WRITTEN_AT_ONCE:
                await asyncio.to_thread(write, bytes(pending))
                pending.clear()
        await asyncio.to_thread(write, bytes(pending))
    if announced is not None and size < announced:
        raise ClientException(
            detail=f"The body ended after {size:,} of the {announced:,} bytes announced. Send it again."
        )
    return size, digest.hexdigest()


def named(file: Path) -> tuple[Path, Name]:
    """An uploaded file under the name of its form, which is told by its first bytes where its sender has not."""
    if file.name == UNNAMED:
        with file.open("rb") as upload:
            name: Name = "input.parquet" if upload.read(4) == b"PAR1" else "input.csv"
        return file.rename(file.with_name(name)), name
    return file, cast(Name, file.name)


def columns_of(file: Path) -> dict[str, Any]:
    """Column -> Arrow type of an uploaded file; of a CSV, where all is text, None. Raises `BadUpload`."""
    if file.suffix == ".parquet":
        import pyarrow as pa
        import pyarrow.parquet as pq

        try:
            schema = pq.read_schema(file)
        except (pa.ArrowException, OSError) as error:
            raise BadUpload(detail=f"The file is no Parquet that can be read: {short(str(error))}.") from None
        names = [field.name for field in schema]
        _refuse_doubled(names)
        return {field.name: field.type for field in schema}
    with file.open("rb") as stream:
        line = stream.readline(LONGEST_HEADER)
        if line.count(b'"') % 2:  # a name with a line break in it
            line += stream.read(LONGEST_HEADER)
    try:
        names = next(csv.reader(io.StringIO(line.decode("utf-8-sig"), newline="")), [])
    except (UnicodeDecodeError, csv.Error) as error:
        raise BadUpload(detail=f"The file's first line is no header of a CSV in UTF-8: {error}.") from None
    if not any(names):
        raise BadUpload(detail="The file has no first line with the names of its columns.")
    _refuse_doubled(names)
    return dict.fromkeys(names)


def _refuse_doubled(names: Sequence[str]) -> None:
    doubled = [name for name, count in Counter(names).items() if count > 1]
    if doubled:
        raise BadUpload(detail=f"The file has columns of the same name: {_listed(doubled)}.")


def what_it_holds(columns: dict[str, Any], generation: Generation) -> What:
    """Whether a file's columns (name -> Arrow type or None) are ids or features of a score. Raises `BadUpload`."""
    features = {feature.name: feature for feature in generation.features}
    names = set(columns)
    by_parts = set(generation.entity)
    if names in ({CUSTOMER_ID}, by_parts):
        _refuse_types([(name, columns[name], "text or a whole number", _is_id) for name in columns])
        return "ids"
    allowed = {CUSTOMER_ID} | by_parts
    missing = [name for name in features if name not in names]
    unknown = [name for name in columns if name not in features and name not in allowed]
    if (names & by_parts) - set(features) and not by_parts <= names:
        missing += [name for name in generation.entity if name not in names]
    if missing or unknown or not features:
        faults = [f"Missing: {_listed(missing)}."] if missing else []
        faults += [f"Unknown: {_listed(unknown)}."] if unknown else []
        by_name = f", or {', '.join(generation.entity)} alone" if by_parts != {CUSTOMER_ID} else ""
        one = len(columns) == 1 and any(sign in next(iter(columns)) for sign in ";\t|")
        hint = " A CSV has commas between its columns." if one else ""
        rows = (
            f"; or, for rows of features, each of the {len(features)} features of score '{generation.score}', as"
            f" GET /scores/{generation.score}/contract tells them with their types, and if you like"
            f" {' or '.join(dict.fromkeys([CUSTOMER_ID, ', '.join(generation.entity)]))}"
            if features
            else ""
        )
        raise BadUpload(
            detail=f"The file's columns say nothing that can be scored. {' '.join(faults)}{hint} Possible:"
            f" {CUSTOMER_ID} alone{by_name}, for the scores of these customers{rows}."
        )
    _refuse_types(
        [(name, columns[name], feature.data_type, _fits(feature.data_type)) for name, feature in features.items()]
        + [(name, columns[name], "text or a whole number", _is_id) for name in columns if name not in features]
    )
    return "features"


def _refuse_types(asked: Sequence[tuple[str, Any, str, Any]]) -> None:
    """Raises `BadUpload` naming each column whose Arrow type can't hold what is asked of it. Text always can."""
    faults = [
        f"column '{name}' is of type {found}, asked is {wanted}"
        for name, found, wanted, fits in asked
        if found is not None and not fits(found)
    ]
    if faults:
        raise BadUpload(detail=f"The file's columns have wrong types: {'; '.join(faults[:MOST_LISTED])}.")


def _is_id(found: Any) -> bool:
    import pyarrow as pa

    kinds = pa.types
    return bool(_is_text(found) or kinds.is_integer(found) or kinds.is_null(found))


def _is_text(found: Any) -> bool:
    from ml.encoding import column_type

    return column_type(found) == "category"


def _fits(data_type: str) -> Any:
    def fits(found: Any) -> bool:
        import pyarrow as pa

        from ml.encoding import column_type

        wanted = column_type(values.arrow_type(data_type))
        return bool(pa.types.is_null(found) or column_type(found) in (wanted, "category"))

    return fits


def _listed(names: Sequence[str]) -> str:
    more = f" and {len(names) - MOST_LISTED} more" if len(names) > MOST_LISTED else ""
    return ", ".join(short(name) for name in names[:MOST_LISTED]) + more
