"""Rows in the one form that they have wherever they come from, and digests of them: by these two folds are compared."""

import hashlib
from collections.abc import Iterable
from datetime import UTC, datetime
from typing import Any

import msgspec
from msgspec import Struct
from msgspec.structs import replace

EXACT_MAX = 2**53  # beyond it JSON numbers are doubles (RFC 8785)

# What tables rewrite on the way: numbers of many digits, minus zero, the zone of a time. Looked for in a copy with each
# digit as a nought and whatever may stand before a number as a colon: a twentieth of what a regular expression takes.
_ROUGHLY = bytes.maketrans(b"123456789[,-", b"000000000:::")
_DIGITS, _EAST, _WEST = b":" + b"0" * 16, b'+00:00"', b':00:00"'

_encode = msgspec.json.Encoder(order="deterministic").encode


def canonical_row(row: Struct) -> bytes:
    """One row as JSON that is the same whether it was folded or read back from a table: fields in their order, keys
    sorted, numbers beyond EXACT_MAX as doubles, times in UTC.
    """
    text = _encode(row)
    rough = text.translate(_ROUGHLY)
    if _DIGITS in rough or _EAST in rough or _WEST in rough or b"-0.0" in text:
        return _encode(_normal(row))
    return text


def _normal(value: Any) -> Any:
    match value:
        case bool() | str() | None:
            return value
        case int() if abs(value) > EXACT_MAX:
            return _double(value)
        case float() if value == 0:
            return 0.0
        case dict():
            return {key: _normal(one) for key, one in value.items()}
        case list() | tuple():
            return [_normal(one) for one in value]
        case datetime():
            return value.astimezone(UTC)
        case Struct():
            return replace(value, **{name: _normal(getattr(value, name)) for name in value.__struct_fields__})
    return value


def _double(value: int) -> float | str:
    try:
        return float(value)
    except OverflowError:
        return str(value)


class Digest:
    """SHA-256 over canonical rows, a line each, taken one by one in the order of their keys."""

    def __init__(self) -> None:
        self._hash = hashlib.sha256()
        self.rows = 0

    def add(self, row: Struct) -> None:
        self.add_canonical(canonical_row(row))

    def add_canonical(self, text: bytes) -> None:
        self._hash.update(text + b"\n")
        self.rows += 1

    def hex(self) -> str:
        return self._hash.hexdigest()


def digest(rows: Iterable[Struct]) -> str:
    """The digest of a read model's rows, given in the order of their keys; hex."""
    found = Digest()
    for row in rows:
        found.add(row)
    return found.hex()
