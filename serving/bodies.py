"""Bodies of requests that handlers read themselves: what is wrong with one is told by place, and OpenAPI knows it.

Litestar's own reading tells neither where JSON breaks nor survives what is no UTF-8.
"""

from dataclasses import dataclass
from typing import TypeVar

import msgspec
from litestar.exceptions import ClientException
from litestar.openapi.spec import Example, OpenAPIMediaType, Operation, RequestBody, Schema

T = TypeVar("T")


def read_body(body: bytes, decoder: msgspec.json.Decoder[T]) -> T:
    """What a body says. Raises a 400 with what is wrong and where."""
    try:
        return decoder.decode(body)
    except (msgspec.MsgspecError, ValueError, RecursionError) as error:
        if not body.strip():
            raise ClientException(detail="The body is empty; it has to be JSON, as /docs describes.") from None
        if isinstance(error, msgspec.ValidationError):
            raise ClientException(detail=f"The body is not as /docs describes: {error}.") from None
        raise ClientException(detail=f"The body is no JSON that can be read: {error}.") from None


def operation_with_body(schema: Schema, **examples: Example) -> type[Operation]:
    """The OpenAPI operation of a handler that reads its body itself: JSON of this schema, with examples by name."""

    @dataclass
    class WithBody(Operation):
        def __post_init__(self) -> None:
            content = OpenAPIMediaType(schema=schema, examples=dict(examples))
            self.request_body = RequestBody(content={"application/json": content}, required=True)

    return WithBody
