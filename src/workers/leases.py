"""A worker's lease: a row that it renews for as long as it lives, judged by the database's clock.

Renewed by a thread of the worker itself: a process of its own would outlive a worker that was stopped, and the worker's
event loop may be busy without being dead.
"""

import threading
import time

import psycopg
import structlog

from ..adapters.postgres import CONNECT_TIMEOUT_S
from ..adapters.settings import Settings

RENEWALS_PER_LEASE = 4

log = structlog.get_logger(__name__)

RENEW = """
INSERT INTO worker_leases (worker, started_at, expires_at)
VALUES (%(worker)s, clock_timestamp(), clock_timestamp() + make_interval(secs => %(lease_s)s))
ON CONFLICT (worker) DO UPDATE SET expires_at = excluded.expires_at
"""
RELEASE = "DELETE FROM worker_leases WHERE worker = %(worker)s"
# For the clock: who holds a lease now, and rows so old that nobody asks about them any more.
LIVE = "SELECT worker FROM worker_leases WHERE expires_at > clock_timestamp()"
PRUNE = "DELETE FROM worker_leases WHERE expires_at < clock_timestamp() - interval '1 day'"


class Lease:
    """Held from start() to stop(); `lost` once it could not be renewed for as long as it lasts."""

    def __init__(self, settings: Settings, worker: str) -> None:
        self._dsn = settings.database_direct_url or settings.database_url
        self._lease_s = settings.worker_lease_s
        self._values = {"worker": worker, "lease_s": settings.worker_lease_s}
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._renew, name="lease", daemon=True)
        self._renewed_at = 0.0

    @property
    def lost(self) -> bool:
        """Whether the clock may have given this worker's jobs to others."""
        return time.monotonic() - self._renewed_at > self._lease_s

    def start(self) -> None:
        """Take the lease; returns when it is in the database.

        Raises:
            psycopg.OperationalError: the database does not answer.
        """
        with psycopg.connect(self._dsn, autocommit=True, connect_timeout=CONNECT_TIMEOUT_S) as connection:
            self._renew_once(connection)
        self._thread.start()

    def stop(self) -> None:
        """Give the lease back, so that nobody waits for it to run out."""
        self._stopping.set()
        self._thread.join(timeout=CONNECT_TIMEOUT_S)
        try:
            with psycopg.connect(self._dsn, autocommit=True, connect_timeout=1) as connection:
                connection.execute(RELEASE, self._values)
        except psycopg.Error as error:
            log.warning("lease_not_released", error=str(error))

    def _renew_once(self, connection: psycopg.Connection) -> None:
        asked_at = time.monotonic()
        connection.execute(RENEW, self._values)
        self._renewed_at = asked_at

    def _renew(self) -> None:
        while not self._stopping.is_set():
            try:
                with psycopg.connect(self._dsn, autocommit=True, connect_timeout=CONNECT_TIMEOUT_S) as connection:
                    while not self._stopping.wait(self._lease_s / RENEWALS_PER_LEASE):
                        self._renew_once(connection)
            except psycopg.Error as error:
                log.warning("lease_not_renewed", error=str(error))
                self._stopping.wait(self._lease_s / RENEWALS_PER_LEASE)
