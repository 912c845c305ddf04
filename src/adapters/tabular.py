"""Rows as files: CSV, Parquet and JSON, written as they come, so that memory does not grow with them.

Kinds of columns and how each format has them:

    kind      CSV                     Parquet                 JSON
    text      text, see safe_text()   string                  string
    json      JSON text               string, JSON text       the value itself
    uuid      text                    string                  string
    uuids     JSON array              list of string          array
    integer   decimal                 int64                   number
    float     decimal                 double                  number
    boolean   true, false             bool                    boolean
    date      YYYY-MM-DD              date32                  string
    time      RFC 3339, UTC, µs       timestamp, UTC, µs      string
    null      nothing                 null                    null
"""

import csv
import io
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from typing import IO, Any, Literal, Protocol

import msgspec
from msgspec import Struct

Kind = Literal["text", "json", "uuid", "uuids", "integer", "float", "boolean", "date", "time"]

GROUP_ROWS_MAX = 20_000  # of one Parquet row group,
GROUP_CHARS_MAX = 8 * 1024 * 1024  # which ends earlier where its texts are long

# A spreadsheet takes a cell that begins so for a formula, and runs it.
FORMULA = ("=", "+", "-", "@", "\t", "\r", "\n")

_encode = msgspec.json.Encoder().encode


class Column(Struct, frozen=True):
    name: str
    kind: Kind


class Table(Protocol):
    """Takes rows, tuples in the order of the columns, and writes them to a file that somebody else closes."""

    def write(self, rows: Sequence[Sequence[Any]]) -> None: ...

    def finish(self) -> None:
        """Write what is left, and what stands at the end."""


class CsvTable:
    """RFC 4180: UTF-8, a header, CRLF, quotes where they are needed."""

    media_type = "text/csv; charset=utf-8; header=present"
    suffix = "csv"

    def __init__(self, columns: Sequence[Column], file: IO[bytes]) -> None:
        self._columns = columns
        self._file = file
        self._write([[column.name for column in columns]])

    def write(self, rows: Sequence[Sequence[Any]]) -> None:
        kinds = [column.kind for column in self._columns]
        self._write([[_cell(kind, value) for kind, value in zip(kinds, row, strict=True)] for row in rows])

    def finish(self) -> None:
        pass

    def _write(self, rows: Sequence[Sequence[str]]) -> None:
        text = io.StringIO(newline="")
        csv.writer(text).writerows(rows)
        self._file.write(text.getvalue().encode())


class ParquetTable:
    """Parquet with a schema from the columns, so that a table without rows has the same types; zstd."""

    media_type = "application/vnd.apache.parquet"
    suffix = "parquet"

    def __init__(self, columns: Sequence[Column], file: IO[bytes]) -> None:
        # Half a second and 100 MB that only this format needs. It comes without types.
        import pyarrow as pa  # type: ignore[import-untyped]  # noqa: PLC0415  # both for the reasons above
        import pyarrow.parquet  # type: ignore[import-untyped]  # noqa: PLC0415  # as above

        types: Mapping[Kind, Any] = {
            "integer": pa.int64(),
            "float": pa.float64(),
            "boolean": pa.bool_(),
            "date": pa.date32(),
            "time": pa.timestamp("us", tz="UTC"),
            "uuids": pa.list_(pa.string()),
        }
        self._arrow = pa
        self._schema = pa.schema([(column.name, types.get(column.kind, pa.string())) for column in columns])
        self._writer = pyarrow.parquet.ParquetWriter(file, self._schema, compression="zstd")
        self._rows: list[Sequence[Any]] = []
        self._chars = 0

    def write(self, rows: Sequence[Sequence[Any]]) -> None:
        self._rows += rows
        self._chars += sum(len(value) for row in rows for value in row if isinstance(value, str | list))
        if len(self._rows) >= GROUP_ROWS_MAX or self._chars >= GROUP_CHARS_MAX:
            self._flush()

    def finish(self) -> None:
        self._flush()
        self._writer.close()

    def _flush(self) -> None:
        if not self._rows:
            return
        columns = zip(*self._rows, strict=True)
        arrays = [self._arrow.array(values, field.type) for values, field in zip(columns, self._schema, strict=True)]
        self._writer.write_batch(self._arrow.record_batch(arrays, schema=self._schema))
        self._rows, self._chars = [], 0


class JsonTable:
    """`{"items": [{column: value, …}, …], "next": null}`."""

    media_type = "application/json"
    suffix = "json"

    def __init__(self, columns: Sequence[Column], file: IO[bytes]) -> None:
        self._names = [column.name for column in columns]
        self._raw = [n for n, column in enumerate(columns) if column.kind == "json"]
        self._file = file
        self._before = b'{"items":['

    def write(self, rows: Sequence[Sequence[Any]]) -> None:
        for row in rows:
            values = list(row)
            for n in self._raw:
                if values[n] is not None:
                    values[n] = msgspec.Raw(values[n].encode())
            self._file.write(self._before + _encode(dict(zip(self._names, values, strict=True))))
            self._before = b","

    def finish(self) -> None:
        self._file.write((self._before if self._before != b"," else b"") + b'],"next":null}')


TABLES: Mapping[str, type[CsvTable] | type[ParquetTable] | type[JsonTable]] = {
    "csv": CsvTable,
    "parquet": ParquetTable,
    "json": JsonTable,
}


def safe_text(text: str) -> str:
    """`text` as a cell that no spreadsheet runs: where it could be taken for a formula, with an apostrophe in front."""
    return f"'{text}" if text.startswith(FORMULA) else text


def _cell(kind: Kind, value: Any) -> str:
    if value is None:
        return ""
    match kind:
        case "text":
            return safe_text(value)
        case "uuids":
            return _encode(value).decode()
        case "boolean":
            return "true" if value else "false"
        case "time":
            moment: datetime = value
            return moment.astimezone(UTC).strftime("%Y-%m-%dT%H:%M:%S.%fZ")
        case _:
            return str(value)
