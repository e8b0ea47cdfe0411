"""The body of a prediction's request: read, and where it is wrong all that is wrong with it, by row."""

import difflib
from collections.abc import Sequence
from typing import TYPE_CHECKING

import msgspec
from litestar.exceptions import ClientException, HTTPException
from msgspec import UNSET

from serving.answers import EventFault
from serving.contracts import MOST_FAULTS
from serving.predicting.answers import MOST_ROWS, PredictRequest, Row

if TYPE_CHECKING:
    from ml.values import Fault

MOST_NAMES = 20  # of features, that a message lists
ROWS_HAVE = "A row has all features, or a customer_id."


class _AnyRequest(msgspec.Struct, forbid_unknown_fields=True):
    """A request whose rows are not read yet."""

    rows: list[msgspec.Raw]
    reasons: bool = False


_request = msgspec.json.Decoder(PredictRequest)
_row = msgspec.json.Decoder(Row)
_any_rows = msgspec.json.Decoder(_AnyRequest)


class WrongRows(HTTPException):
    """Rows that can't be predicted: how many faults they have, and the first of them."""

    status_code = 422


def read_request(body: bytes) -> PredictRequest:
    """The rows of a body, which are 1 to 1,000. Raises the problem to answer with if it is no such request."""
    try:
        asked = _request.decode(body)
    except (msgspec.MsgspecError, ValueError, RecursionError) as error:
        raise _told(body, error) from None
    faults = [
        EventFault(row=number, column=None, fault=fault)
        for number, row in enumerate(asked.rows, 1)
        if (fault := _fault_of(row))
    ]
    if not asked.rows or len(asked.rows) > MOST_ROWS:
        raise _wrong_number(len(asked.rows))
    if faults:
        raise wrong_rows(faults, ROWS_HAVE)
    return asked


def _told(body: bytes, error: Exception) -> HTTPException:
    """The problem of a body that is not as it should be, with the rows that are not."""
    if isinstance(error, RecursionError):
        return ClientException(detail="The body is nested too deeply: a feature's value is no list and no object.")
    if not body:
        return ClientException(detail="The body is empty.")
    if not isinstance(error, msgspec.ValidationError):
        return ClientException(detail=f"The body is no JSON: {error}.")
    try:
        rows = _any_rows.decode(body).rows
    except RecursionError as deep:
        return _told(body, deep)
    except msgspec.MsgspecError as whole:
        return WrongRows(detail=f'The body has to be {{"rows": [...], "reasons": true or false}}: {whole}.')
    if len(rows) > MOST_ROWS:
        return _wrong_number(len(rows))
    faults = []
    for number, row in enumerate(rows, 1):
        try:
            _row.decode(row)
        except msgspec.MsgspecError as fault:
            faults.append(EventFault(row=number, column=None, fault=str(fault)))
    return wrong_rows(faults, ROWS_HAVE)


def _fault_of(row: Row) -> str | None:
    """What is wrong with the names in a row."""
    if (row.features is UNSET) == (row.customer_id is UNSET):
        return f"has {'neither features nor a' if row.features is UNSET else 'both features and a'} customer_id"
    if row.features is UNSET and row.id is not UNSET:
        return "has an id, which only rows with features may have: a customer has one"
    if row.customer_id is UNSET and row.overrides is not UNSET:
        return "has overrides, which only rows with a customer_id may have"
    return None


def _wrong_number(rows: int) -> HTTPException:
    limit = f"One request has 1 to {MOST_ROWS:,} rows"
    if rows:
        return WrongRows(detail=f"{limit}, and this one has {rows:,}. Send several.")
    return WrongRows(detail=f"{limit}, and this one has none.")


def wrong_rows(faults: Sequence[EventFault], detail: str) -> HTTPException:
    """The problem of these faults, ordered by row."""
    rows = len({fault.row for fault in faults})
    return WrongRows(
        detail=f"{rows} row{' is' if rows == 1 else 's are'} wrong, so nothing is predicted: {len(faults)}"
        f" fault{'' if len(faults) == 1 else 's'}{', the first of which are listed' * (len(faults) > MOST_FAULTS)}."
        f" {detail}",
        extra={"errors": list(faults[:MOST_FAULTS])},
    )


def wrong_values(faults: "Sequence[Fault]", names: Sequence[str], score: str) -> HTTPException:
    """The problem of features that are unknown, missing or mistyped: for the first unknown ones what may be meant."""
    from ml.values import NOT_KNOWN

    told = []
    for place, fault in enumerate(faults):
        alike = (
            difflib.get_close_matches(fault.feature, names, 1)
            if place < MOST_FAULTS and fault.fault == NOT_KNOWN
            else []
        )
        meant = f" (is '{alike[0]}' meant?)" if alike else ""
        told.append(EventFault(row=fault.row, column=fault.feature, fault=fault.fault + meant))
    all_names = f"The features are {', '.join(names)}."
    many = f"GET /scores/{score}/contract tells the {len(names)} features with their types."
    return wrong_rows(told, many if len(names) > MOST_NAMES else all_names)
