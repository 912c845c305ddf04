"""The eventsourcing library's applications on our way of storing: say `PERSISTENCE_MODULE` is this module.

Its recorders, factory and subscription over `library_log`. What differs from its own `eventsourcing.postgres`: an
append is one statement under a row lock instead of four messages under a table lock, positions have no gaps, an append
whose answer was lost is recognised, and a subscription lives through a restart of the server.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from threading import Thread
from typing import Any, cast
from uuid import UUID

import psycopg
from eventsourcing import persistence
from eventsourcing.persistence import Notification, StoredEvent, Tracking
from eventsourcing.utils import Environment, EnvType, resolve_topic, strtobool
from psycopg import sql
from psycopg.conninfo import make_conninfo
from typing_extensions import TypeVar

from .library_log import Log, LogSettings, in_their_words

POLL_S = 0.05
RECONNECT_PAUSE_S = 0.5
_EVENT = sql.SQL("stream_id, version, topic, data")


class Recorder:
    """What all recorders have: the log."""

    def __init__(self, log: Log) -> None:
        self.log = log


class AggregateRecorder(Recorder, persistence.AggregateRecorder):
    """Streams without an order between them; snapshots are kept in one."""

    def insert_events(self, stored_events: Sequence[StoredEvent], **_: Any) -> Sequence[int] | None:
        if stored_events:
            self.log.append(stored_events)
        return None

    def select_events(
        self,
        originator_id: UUID | str,
        *,
        gt: int | None = None,
        lte: int | None = None,
        desc: bool = False,
        limit: int | None = None,
    ) -> Sequence[StoredEvent]:
        query = sql.SQL("SELECT {} FROM {} WHERE stream_id = %s").format(_EVENT, self.log.table("events"))
        parameters: list[object] = [originator_id]
        if gt is not None:
            query += sql.SQL(" AND version > %s")
            parameters.append(gt)
        if lte is not None:
            query += sql.SQL(" AND version <= %s")
            parameters.append(lte)
        query += sql.SQL(" ORDER BY version DESC LIMIT %s" if desc else " ORDER BY version LIMIT %s")
        return [StoredEvent(*row) for row in self.log.execute(query, [*parameters, limit])]


class ApplicationRecorder(AggregateRecorder, persistence.ApplicationRecorder):
    """Streams, and all their events in one order: positions from 1, without a gap, in the order of commits."""

    def insert_events(self, stored_events: Sequence[StoredEvent], **_: Any) -> Sequence[int] | None:
        return self._insert(stored_events, None)

    def _insert(self, stored_events: Sequence[StoredEvent], tracking: Tracking | None) -> Sequence[int] | None:
        if not stored_events and tracking is None:
            return None
        before = self.log.append(stored_events, tracking)
        return list(range(before + 1, before + 1 + len(stored_events))) or None

    def select_notifications(
        self,
        start: int | None,
        limit: int,
        stop: int | None = None,
        topics: Sequence[str] = (),
        *,
        inclusive_of_start: bool = True,
    ) -> Sequence[Notification]:
        after = 0 if start is None else start - 1 if inclusive_of_start else start
        query = sql.SQL("SELECT {}, position FROM {} WHERE position > %s").format(_EVENT, self.log.table("events"))
        parameters: list[object] = [after]
        if stop is not None:
            query += sql.SQL(" AND position <= %s")
            parameters.append(stop)
        if topics:
            query += sql.SQL(" AND topic = ANY(%s)")
            parameters.append(list(topics))
        query += sql.SQL(" ORDER BY position LIMIT %s")
        found = [Notification(*row) for row in self.log.execute(query, [*parameters, limit])]
        if found and not topics and found[-1].id - found[0].id != len(found) - 1:
            raise persistence.InternalError(f"the log has a hole between {found[0].id} and {found[-1].id}")
        return found

    def max_notification_id(self) -> int | None:
        query = sql.SQL("SELECT position FROM {} ORDER BY position DESC LIMIT 1").format(self.log.table("events"))
        rows = self.log.execute(query)
        return cast(int, rows[0][0]) if rows else None

    def subscribe(self, gt: int | None = None, topics: Sequence[str] = ()) -> "Subscription":
        return Subscription(self, gt=gt, topics=topics)


class Subscription(persistence.ListenNotifySubscription[ApplicationRecorder]):
    """Looks when told to, and every POLL_S in any case: a notification is a hint that a lost connection swallows."""

    def __init__(self, recorder: ApplicationRecorder, gt: int | None = None, topics: Sequence[str] = ()) -> None:
        super().__init__(recorder, gt=gt, topics=topics)
        self._listener = Thread(target=self._listen)
        self._listener.start()

    def __exit__(self, *args: object, **kwargs: Any) -> None:
        try:
            super().__exit__(*args, **kwargs)
        finally:
            self._listener.join()

    def _listen(self) -> None:
        while not self._has_been_stopped:
            try:
                # Not from the pool: as many subscriptions as it has connections would leave none to read with.
                with self._recorder.log.listen() as connection:
                    while not self._has_been_stopped:
                        for _ in connection.notifies(timeout=POLL_S, stop_after=1):
                            pass
                        self._has_been_notified.set()
            except psycopg.Error:
                self._has_been_notified.wait(RECONNECT_PAUSE_S)  # set by stop()
                self._has_been_notified.set()  # the reader asks by itself meanwhile


class TrackingRecorder(Recorder, persistence.TrackingRecorder):
    """How far each upstream application was processed. A view that lives in PostgreSQL subclasses it."""

    def create_table(self) -> None:
        """Make the tables of a subclass; called where the factory creates the log."""

    def insert_tracking(self, tracking: Tracking) -> None:
        self.log.append((), tracking)

    @contextmanager
    def tracked(self, tracking: Tracking) -> Iterator[psycopg.Connection]:
        """A transaction that has recorded `tracking`: write there what the event means, and it counts once.

        Raises:
            eventsourcing.persistence.IntegrityError: it was tracked before.
        """
        with in_their_words(), self.log.connection() as connection, connection.transaction():
            self.log.track(connection, tracking)
            yield connection

    def max_tracking_id(self, application_name: str) -> int | None:
        query = sql.SQL(
            "SELECT notification_id FROM {} WHERE application_name = %s ORDER BY notification_id DESC LIMIT 1"
        ).format(self.log.table("tracking"))
        rows = self.log.execute(query, (application_name,))
        return cast(int, rows[0][0]) if rows else None


class ProcessRecorder(TrackingRecorder, ApplicationRecorder, persistence.ProcessRecorder):
    """Events and the tracking record of what they came from, in one append; also when nothing came of it."""

    def insert_events(self, stored_events: Sequence[StoredEvent], **kwargs: Any) -> Sequence[int] | None:
        return self._insert(stored_events, kwargs.get("tracking"))


T = TypeVar("T", bound=TrackingRecorder, default=TrackingRecorder)


class Factory(persistence.InfrastructureFactory[TrackingRecorder]):
    """Recorders for the application that the environment is named after.

    Reads, like the library's own, with the application's name before it or without: POSTGRES_DBNAME, POSTGRES_HOST,
    POSTGRES_PORT, POSTGRES_USER, POSTGRES_PASSWORD, POSTGRES_SCHEMA (default: the application's name),
    POSTGRES_POOL_SIZE, POSTGRES_MAX_OVERFLOW, POSTGRES_CONNECT_TIMEOUT and POSTGRES_LOCK_TIMEOUT (both in s),
    ORIGINATOR_ID_TYPE (uuid, text), CREATE_TABLE, and the topics of recorders of one's own.
    """

    def __init__(self, env: Environment | EnvType | None) -> None:
        """
        Raises:
            OSError: a setting is missing or makes no sense.
        """
        super().__init__(env)
        self._settings = self._read_settings()
        self._logs: dict[str, Log] = {}

    def _read_settings(self) -> LogSettings:
        application = self.env.name
        schema = self.env.get("POSTGRES_SCHEMA") or application.lower()
        if not schema:
            raise OSError("an application without a name needs POSTGRES_SCHEMA")
        id_type = (self.env.get("ORIGINATOR_ID_TYPE") or "uuid").lower()
        if id_type not in ("uuid", "text"):
            raise OSError(f"ORIGINATOR_ID_TYPE is uuid or text, not '{id_type}'")
        size = self._whole("POSTGRES_POOL_SIZE", 5)
        return LogSettings(
            conninfo=make_conninfo(
                dbname=self._needed("POSTGRES_DBNAME"),
                host=self._needed("POSTGRES_HOST"),
                port=self._whole("POSTGRES_PORT", 5432),
                user=self._needed("POSTGRES_USER"),
                password=self.env.get("POSTGRES_PASSWORD") or None,
                connect_timeout=self._whole("POSTGRES_CONNECT_TIMEOUT", 30),
            ),
            schema=schema,
            application=application,
            originator_id="uuid" if id_type == "uuid" else "text",
            connections_min=size,
            connections_max=size + self._whole("POSTGRES_MAX_OVERFLOW", 10),
            connect_timeout_s=self._whole("POSTGRES_CONNECT_TIMEOUT", 30),
            lock_timeout_s=self._whole("POSTGRES_LOCK_TIMEOUT", 0),
        )

    def _needed(self, key: str) -> str:
        value = self.env.get(key)
        if value is None:
            raise OSError(f"{key} is not in the environment")
        return value

    def _whole(self, key: str, default: int) -> int:
        value = self.env.get(key) or str(default)
        if not value.isdecimal():
            raise OSError(f"{key} is a whole number, not '{value}'")
        return int(value)

    def _log(self, purpose: str = "events") -> Log:
        """The application's log, or the one beside it: snapshots have an order of their own."""
        schema = self._settings.schema if purpose == "events" else f"{self._settings.schema}_{purpose}"
        if schema not in self._logs:
            self._logs[schema] = Log(self._settings.at(schema))
        if self._may_create():
            self._logs[schema].create()
        return self._logs[schema]

    def _may_create(self) -> bool:
        return strtobool(self.env.get("CREATE_TABLE") or "yes")

    def aggregate_recorder(self, purpose: str = "events") -> persistence.AggregateRecorder:
        return AggregateRecorder(self._log(purpose))

    def application_recorder(self) -> persistence.ApplicationRecorder:
        topic = self.env.get(self.APPLICATION_RECORDER_TOPIC)
        recorder_class: type[ApplicationRecorder] = resolve_topic(topic) if topic else ApplicationRecorder
        assert issubclass(recorder_class, ApplicationRecorder)
        return recorder_class(self._log())

    # The library binds its type variable to the abstract recorder; ours have the log to be built on.
    def tracking_recorder(self, tracking_recorder_class: type[T] | None = None) -> T:
        topic = self.env.get(self.TRACKING_RECORDER_TOPIC)
        recorder_class = tracking_recorder_class or (resolve_topic(topic) if topic else cast(type[T], TrackingRecorder))
        assert issubclass(recorder_class, TrackingRecorder)
        recorder = recorder_class(self._log())
        if self._may_create():
            recorder.create_table()
        return recorder

    def process_recorder(self) -> persistence.ProcessRecorder:
        topic = self.env.get(self.PROCESS_RECORDER_TOPIC)
        recorder_class: type[ProcessRecorder] = resolve_topic(topic) if topic else ProcessRecorder
        assert issubclass(recorder_class, ProcessRecorder)
        return recorder_class(self._log())

    def close(self) -> None:
        for log in self._logs.values():
            log.close()
