"""Times in queries, and how the OpenAPI document tells them."""

from datetime import UTC, datetime
from typing import Any

import msgspec

from .problems import FieldError, FieldsRefused

TIME: dict[str, Any] = {"type": "string", "format": "date-time"}
DAY: dict[str, Any] = {"type": "string", "format": "date"}
POSITION: dict[str, Any] = {"type": "string", "pattern": "^([0-9]{1,40}|[0-9]{1,18}@[0-9a-f]{8})$"}


def moment_of(parameter: str, text: str, *, kinds: str = "an RFC 3339 time") -> datetime:
    """A time that was given with its zone, in UTC.

    Raises:
        FieldsRefused: `text` is not one of the `kinds` that the parameter takes.
    """
    try:
        # In a query `+` is a space; clients forget to escape it in +02:00.
        moment = msgspec.convert(text.replace(" ", "+"), datetime)
        if moment.tzinfo is None:
            raise FieldsRefused([FieldError("the time needs a zone, such as Z", parameter=parameter)])
        # PostgreSQL takes no zone beyond 15:59, and a moment next to the year 0 or 10000 may have no name in UTC.
        return moment.astimezone(UTC)
    except (msgspec.ValidationError, OverflowError) as error:
        raise FieldsRefused([FieldError(kinds, parameter=parameter)]) from error
