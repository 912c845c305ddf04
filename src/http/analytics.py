"""For analysts: reports as JSON, CSV or Parquet.

An answer is written to a file first and sent then: it is whole or an error, never half of a table, and a client that
reads slowly holds no snapshot of the database.
"""

import asyncio
import tempfile
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager
from datetime import UTC, date, datetime, time
from typing import IO, Annotated, Any, Literal

import msgspec
import psycopg
from litestar import Controller, Request, Response, get
from litestar.params import FromPath, QueryParameter
from litestar.response import Stream
from msgspec import Struct

from ..adapters.tabular import TABLES
from ..domain.kernel import NotFound, Rejection
from ..projections import analytics
from ..projections.analytics import REPORTS, Window
from .auth import takes
from .manners import Parts, Reads, found
from .moments import DAY, TIME, moment_of
from .services import Services

REPORT_BYTES_MAX = 1024 * 1024 * 1024
REPORT_S_MAX = 120
REPORTS_AT_ONCE = 2
IN_MEMORY_BYTES_MAX = 1024 * 1024
CHUNK_BYTES = 256 * 1024

Format = Literal["json", "csv", "parquet"]


class ReportTooLarge(Rejection):
    """More than one answer may hold, or longer in the making than one may take."""

    code = "report_too_large"


class TooManyReports(Rejection):
    code = "too_many_reports"


class ReportView(Struct, frozen=True):
    """Attributes:
    name: in the path.
    """

    name: str
    title: str


class Desk:
    """How many reports this process is making; each costs a connection, a snapshot and a core."""

    def __init__(self, at_once: int) -> None:
        self._free = at_once

    @contextmanager
    def seat(self) -> Iterator[None]:
        """
        Raises:
            TooManyReports: all seats are taken.
        """
        if self._free == 0:
            raise TooManyReports("other reports are being made; try again")
        self._free -= 1
        try:
            yield
        finally:
            self._free += 1


DESK = Desk(REPORTS_AT_ONCE)


class AnalyticsController(Controller):
    path = "/v1/analytics"
    opt = takes("analytics:read")
    tags = ("analytics",)

    @get("/", summary="The reports that there are")
    async def reports(self, services: Parts) -> Response[list[ReportView]]:
        return found(
            [ReportView(name, report.title) for name, report in REPORTS.items()], await services.reads.position()
        )

    @get(
        "/{name:str}",
        summary="A report as JSON, CSV or Parquet",
        produces=tuple(table.media_type for table in TABLES.values()),
        refuses=(413,),
    )
    async def report(
        self,
        request: Request[Any, Any, Any],
        services: Parts,
        reads: Reads,  # noqa: ARG002  # waits for the position that the client asks for
        name: FromPath[str],
        since: Annotated[
            str | None,
            QueryParameter(
                name="from",
                max_length=40,
                description="A day, or a time with zone; from then on.",
                schema_extra={"one_of": [DAY, TIME]},
            ),
        ] = None,
        until: Annotated[
            str | None,
            QueryParameter(
                name="to",
                max_length=40,
                description="A day, or a time with zone; before then.",
                schema_extra={"one_of": [DAY, TIME]},
            ),
        ] = None,
        wanted: Annotated[
            Format | None, QueryParameter(name="format", description="In place of the header Accept.")
        ] = None,
    ) -> Stream:
        """Its columns are those of a view in the data dictionary. In CSV a text that begins like a formula has an
        apostrophe in front of it.
        """
        if name not in REPORTS:
            raise NotFound("no such report")
        window = Window(_moment("from", since), _moment("to", until))
        made_as = wanted or _accepted(request.headers.get("accept", ""))
        with DESK.seat():
            file, position = await _made(services, name, window, made_as)
        kind = TABLES[made_as]
        headers = {"Event-Position": str(position), "Content-Length": str(_size(file)), "Vary": "Accept"}
        if made_as != "json":
            headers["Content-Disposition"] = f'attachment; filename="{name}.{kind.suffix}"'
        return Stream(_chunks(file), media_type=kind.media_type, headers=headers)


async def _made(services: Services, name: str, window: Window, made_as: Format) -> tuple[IO[bytes], int]:
    """A report in a file that has no name, at its begin; and the position that it reflects."""
    dsn = services.settings.database_url
    file: IO[bytes] = tempfile.SpooledTemporaryFile(IN_MEMORY_BYTES_MAX)  # noqa: SIM115  # it outlives this function
    try:
        async with asyncio.timeout(REPORT_S_MAX), analytics.opened(dsn, name, window) as report:
            table = TABLES[made_as](report.columns, _Bounded(file))  # type: ignore[arg-type]  # all that tables call
            await report.pour(table)
    except (TimeoutError, psycopg.errors.QueryCanceled) as error:
        file.close()
        raise ReportTooLarge(f"not made within {REPORT_S_MAX} s; ask for less with from and to") from error
    except BaseException:
        file.close()
        raise
    return file, report.position


class _Bounded:
    """A file that refuses to grow past REPORT_BYTES_MAX."""

    closed = False

    def __init__(self, file: IO[bytes]) -> None:
        self._file = file

    def write(self, data: bytes) -> int:
        if self._file.tell() + len(data) > REPORT_BYTES_MAX:
            raise ReportTooLarge(f"more than {REPORT_BYTES_MAX} bytes; ask for less with from and to")
        return self._file.write(data)

    def tell(self) -> int:
        return self._file.tell()

    def flush(self) -> None:
        self._file.flush()


def _size(file: IO[bytes]) -> int:
    size_bytes = file.tell()
    file.seek(0)
    return size_bytes


async def _chunks(file: IO[bytes]) -> AsyncIterator[bytes]:
    with file:
        while chunk := await asyncio.to_thread(file.read, CHUNK_BYTES):
            yield chunk


def _accepted(accept: str) -> Format:
    """The format that the client names first; JSON where it names none of ours."""
    for given in accept.lower().split(","):
        media_type = given.partition(";")[0].strip()
        for name, table in TABLES.items():
            if media_type == table.media_type.partition(";")[0]:
                return name  # type: ignore[return-value]  # the keys of TABLES are the formats
    return "json"


def _moment(parameter: str, text: str | None) -> datetime | None:
    """A day's begin in UTC, or a time.

    Raises:
        FieldsRefused: `text` is neither.
    """
    if text is None:
        return None
    try:
        return datetime.combine(msgspec.convert(text, date), time(), UTC)
    except msgspec.ValidationError:
        return moment_of(parameter, text, kinds="a day, or an RFC 3339 time")
