"""One log for the eventsourcing library: its schema, its connections, and what a lost answer means.

Synchronous, since that library is. Every statement is a transaction of its own (a call between BEGIN and COMMIT would
hold the head row for as long as a stopped process sleeps) and may be sent again, the append too: it carries the id of
its call. So a lost connection is waited out, up to RETRY_S, and never becomes a conflict that there was not.
"""

import hashlib
import time
from collections import deque
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from threading import Lock
from typing import Any, Literal
from uuid import UUID, uuid4

import psycopg
from eventsourcing import persistence
from eventsourcing.persistence import StoredEvent, Tracking
from msgspec import Struct
from msgspec.structs import replace
from psycopg import sql
from psycopg_pool import ConnectionPool

from .. import postgres

RETRY_S = 10.0
RETRY_PAUSE_S = 0.1
IDENTIFIER_BYTES_MAX = 63
BATCH_CALLS_MAX = 60  # where one conflicts each is a subtransaction, and PostgreSQL keeps 64 of them close at hand
BATCH_EVENTS_MAX = 512  # soft: a call is never split
FUNCTIONS = (
    "append_only",
    "append_batch",
    "library_track",
    "library_append_calls",
    "library_append",
)  # each may call those before it

_MEANINGS: tuple[tuple[type[psycopg.Error], type[persistence.PersistenceError]], ...] = (
    (psycopg.InterfaceError, persistence.InterfaceError),
    (psycopg.OperationalError, persistence.OperationalError),
    (psycopg.DataError, persistence.DataError),
    (psycopg.IntegrityError, persistence.IntegrityError),
    (psycopg.InternalError, persistence.InternalError),
    (psycopg.ProgrammingError, persistence.ProgrammingError),
    (psycopg.NotSupportedError, persistence.NotSupportedError),
    (psycopg.DatabaseError, persistence.DatabaseError),
    (psycopg.Error, persistence.PersistenceError),
)


class LogSettings(Struct, frozen=True, kw_only=True):
    """Where a log is and how it is reached.

    Attributes:
        application: whose log it is; a schema that belongs to another is refused.
        originator_id: the column's type, for ever.
        lock_timeout_s: how long an append waits for its turn; 0 waits without end.
    """

    conninfo: str
    schema: str
    application: str
    originator_id: Literal["uuid", "text"] = "uuid"
    connections_min: int = 5
    connections_max: int = 15
    connect_timeout_s: float = 30.0
    lock_timeout_s: int = 0

    def at(self, schema: str) -> "LogSettings":
        return replace(self, schema=schema)


class _Call(Struct, eq=False):
    """What one thread asked for, and in the end the position before its first event, or an error of its own."""

    id: UUID
    events: Sequence[StoredEvent]
    tracking: Tracking | None
    turn: Lock  # released when it is answered, or the first that waits
    answer: int | Exception | None = None


@contextmanager
def in_their_words() -> Iterator[None]:
    """Errors of the database as the library's."""
    try:
        yield
    except psycopg.Error as error:
        for ours, theirs in _MEANINGS:
            if isinstance(error, ours):
                raise theirs(str(error)) from error
        raise


def _read(name: str) -> str:
    directory = Path(str(postgres.migrations().get_main_option("script_location"))) / "functions"
    return (directory / f"{name}.sql").read_text()


class Log:
    """Connections to one log. They are made when first needed, and shared by the threads of the process."""

    def __init__(self, settings: LogSettings) -> None:
        """
        Raises:
            eventsourcing.persistence.ProgrammingError: the schema's name is too long for PostgreSQL.
        """
        if len(settings.schema.encode()) > IDENTIFIER_BYTES_MAX:
            raise persistence.ProgrammingError(f"Identifier too long: {settings.schema}")
        self.settings = settings
        self.channel = settings.schema
        self._epoch: UUID | None = None
        self._calls: deque[_Call] = deque()  # at most one of each thread
        self._mutex = Lock()
        self._leader: _Call | None = None  # whose thread sends
        schema = sql.Identifier(settings.schema)
        # Binary arrays, cast from whatever width of number they were sent in.
        self._append = sql.SQL(
            "SELECT before, refused FROM {}.library_append("
            "%s, %b::uuid[], %b::integer[], %b::text[], %b::bigint[], "
            "%b::integer[], %b::{}[], %b::bigint[], %b::text[], %b::bytea[])"
        ).format(schema, sql.SQL(settings.originator_id))
        self._head = sql.SQL("SELECT epoch FROM {}.log_head").format(schema)
        self._track = sql.SQL("SELECT {}.library_track(%s, %s)").format(schema)
        search_path = sql.SQL("SET search_path = {}, pg_temp").format(schema)
        lock_timeout = sql.SQL("SET lock_timeout = {}").format(f"{settings.lock_timeout_s}s")

        def configure(connection: psycopg.Connection) -> None:
            connection.execute(search_path)
            connection.execute(lock_timeout)
            # A prepared plan outlives the table that it was made for: scanning was right while that was small.
            connection.execute("SET enable_seqscan = off")

        self._pool = ConnectionPool(
            settings.conninfo,
            min_size=settings.connections_min,
            max_size=max(settings.connections_min, settings.connections_max),
            timeout=settings.connect_timeout_s,
            kwargs={"autocommit": True, "application_name": "sightline-library"},
            configure=configure,
            open=False,
        )

    def close(self) -> None:
        self._pool.close()

    def __del__(self) -> None:
        # The library's own runners drop a factory without closing it.
        with suppress(AttributeError):  # it never came to a pool
            self._pool.close()

    def table(self, name: str) -> sql.Identifier:
        return sql.Identifier(self.settings.schema, name)

    def listen(self) -> psycopg.Connection:
        """A connection of its own that hears of appends. The caller closes it."""
        connection = psycopg.connect(
            self.settings.conninfo, autocommit=True, application_name="sightline-library-subscription"
        )
        try:
            connection.execute(sql.SQL("LISTEN {}").format(sql.Identifier(self.channel)))
        except BaseException:
            connection.close()
            raise
        return connection

    def create(self) -> None:
        """Make the schema, or bring its functions to this release; where there is nothing to do, change nothing.

        Raises:
            eventsourcing.persistence.ProgrammingError: the schema belongs to another application.
        """
        schema = sql.Identifier(self.settings.schema)
        sources = [self._render(name) for name in FUNCTIONS]
        digest = hashlib.sha256("\n".join(sources).encode()).hexdigest()
        with in_their_words(), self.connection() as connection, connection.transaction():
            # Processes that start together must not all create the tables.
            connection.execute("SELECT pg_advisory_xact_lock(hashtext('sightline.library'))")
            connection.execute(sql.SQL("CREATE SCHEMA IF NOT EXISTS {}").format(schema))
            if connection.execute("SELECT to_regclass('face')").fetchone() == (None,):
                connection.execute(self._render("library_log").encode())
            row = connection.execute("SELECT application, functions FROM face").fetchone()
            owner, installed = row or (self.settings.application, None)
            if owner != self.settings.application:
                raise persistence.ProgrammingError(
                    f"schema {self.settings.schema} is the log of {owner}, not of {self.settings.application}"
                )
            if installed == digest:
                return
            for source in sources:
                connection.execute(source.replace("CREATE FUNCTION", "CREATE OR REPLACE FUNCTION").encode())
            connection.execute(
                "CREATE OR REPLACE TRIGGER append_only BEFORE UPDATE OR DELETE OR TRUNCATE ON events"
                " FOR EACH STATEMENT EXECUTE FUNCTION append_only()"
            )
            connection.execute("ALTER TABLE events ENABLE ALWAYS TRIGGER append_only")
            connection.execute(
                "INSERT INTO face (application, functions) VALUES (%s, %s)"
                " ON CONFLICT (one) DO UPDATE SET functions = excluded.functions",
                (owner, digest),
            )

    def _render(self, name: str) -> str:
        """A source file for this schema: the store's own function takes states as bytes here, and ids of this type."""
        text = _read(name).replace("@originator_id@", self.settings.originator_id)
        if name == "append_batch":
            text = text.replace("e_data json[]", "e_data bytea[]")
            text = text.replace("e_stream uuid[]", f"e_stream {self.settings.originator_id}[]")
            text = text.replace("x_stream uuid[]", f"x_stream {self.settings.originator_id}[]")
            assert "e_data bytea[]" in text, "append_batch names its parameters otherwise by now"
        return text.replace("@schema@", sql.Identifier(self.settings.schema).as_string())

    @contextmanager
    def connection(self) -> Iterator[psycopg.Connection]:
        """An autocommit connection from the pool, with the schema first on its search path."""
        self._pool.open()
        with self._pool.connection() as connection:
            yield connection

    def execute(
        self, statement: bytes | sql.Composed, parameters: Sequence[object] = (), *, wake: bool = False
    ) -> list[Any]:
        """The rows of one statement that may be sent again, sent until it is answered.

        With `wake`, subscribers are told after the commit (a NOTIFY inside would serialise all commits). Merely a hint,
        so its failure is nobody's: they poll as well.

        Raises:
            eventsourcing.persistence.OperationalError: nobody answered for RETRY_S. If it was an append, it may have
                been carried out.
            eventsourcing.persistence.IntegrityError: the unique index refused it.
        """
        deadline = time.monotonic() + RETRY_S
        with in_their_words():
            while True:
                lost = True  # nobody was reached at all
                try:
                    with self.connection() as connection:
                        try:
                            rows = (
                                connection.cursor(binary=True).execute(statement, parameters, prepare=True).fetchall()
                            )
                        finally:
                            lost = connection.closed
                        if wake:
                            with suppress(psycopg.Error):
                                connection.execute("SELECT pg_notify(%s, '')", (self.channel,), prepare=True)
                        return rows
                except (psycopg.OperationalError, psycopg.InterfaceError):
                    if not lost or self._pool.closed or time.monotonic() > deadline:
                        raise
                time.sleep(RETRY_PAUSE_S)
                self._pool.check()  # a server that restarted has closed the others too

    def append(self, events: Sequence[StoredEvent], tracking: Tracking | None = None) -> int:
        """Append all of these and the tracking record, or nothing; the position before the first.

        Raises:
            eventsourcing.persistence.IntegrityError: a stream has such a version, or tracking is that far already.
        """
        call = _Call(uuid4(), events, tracking, Lock())
        call.turn.acquire()
        # One thread sends at a time, for all that wait meanwhile: one flush. Then the first of those that came since.
        with self._mutex:
            self._calls.append(call)
            if self._leader is None:
                self._pass_turn()
        try:
            call.turn.acquire()
            if call.answer is None:
                self._send_calls()
        except BaseException:
            self._withdraw(call)
            raise
        assert call.answer is not None
        if isinstance(call.answer, Exception):
            raise call.answer
        return call.answer

    def _withdraw(self, call: "_Call") -> None:
        """Whoever is interrupted while it waits must not be given the turn."""
        with self._mutex:
            if call in self._calls:
                self._calls.remove(call)
                if self._leader is call:
                    self._pass_turn()

    def _pass_turn(self) -> None:
        self._leader = self._calls[0] if self._calls else None
        if self._leader is not None:
            self._leader.turn.release()

    def _send_calls(self) -> None:
        with self._mutex:
            batch = [self._calls.popleft()]
            events = len(batch[0].events)
            while self._calls and len(batch) < BATCH_CALLS_MAX:
                events += len(self._calls[0].events)
                if events > BATCH_EVENTS_MAX:
                    break
                batch.append(self._calls.popleft())
        try:
            self._send(batch)
        except (persistence.OperationalError, persistence.InterfaceError) as error:
            for call in batch:
                call.answer = error  # to ask for each again would take as long for each
        except Exception as error:  # noqa: BLE001  # whatever it is, it is raised by the thread that it belongs to
            for call in batch:
                call.answer = error if len(batch) == 1 else self._alone(call)
        finally:
            for call in batch:
                if call.answer is None:  # nobody else will send it
                    call.answer = persistence.OperationalError("the thread that sent it was interrupted")
            with self._mutex:
                self._pass_turn()
            for call in batch[1:]:
                call.turn.release()

    def _alone(self, call: "_Call") -> int | Exception | None:
        """The answer to a call that had a bad neighbour, or is one. What was carried out after all is recognised."""
        try:
            self._send([call])
        except Exception as error:  # noqa: BLE001  # as above
            return error
        return call.answer

    def _send(self, batch: Sequence["_Call"]) -> None:
        if self._epoch is None:
            self._epoch = self.execute(self._head)[0][0]
        events = [event for call in batch for event in call.events]
        parameters = (
            self._epoch,
            [call.id for call in batch],
            [len(call.events) for call in batch],
            [call.tracking and call.tracking.application_name for call in batch],
            [call.tracking and call.tracking.notification_id for call in batch],
            [number for number, call in enumerate(batch, start=1) for _ in call.events],
            [event.originator_id for event in events],
            [event.originator_version for event in events],
            [event.topic for event in events],
            [event.state for event in events],
        )
        rows = self.execute(self._append, parameters, wake=bool(events))
        for call, (before, refused) in zip(batch, rows, strict=True):
            call.answer = before if refused is None else persistence.IntegrityError(refused)

    def track(self, connection: psycopg.Connection, tracking: Tracking) -> None:
        """The tracking record in a transaction of the caller's, beside what was made of the event."""
        connection.execute(self._track, (tracking.application_name, tracking.notification_id))
