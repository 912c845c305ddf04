"""A worker's lease: a row that it renews for as long as it lives, judged by the database's clock.

Renewed by a thread of the worker itself: a process of its own would outlive a worker that was stopped, and the worker's
event loop may be busy without being dead.
"""

import threading
import time
from uuid import UUID

import psycopg
import structlog

from ..adapters.postgres import CONNECT_TIMEOUT_S
from ..adapters.settings import Settings

RENEWALS_PER_LEASE = 4

log = structlog.get_logger(__name__)

RENEW = """
INSERT INTO worker_leases (worker, started_at, expires_at)
SELECT %(worker)s, clock_timestamp(), clock_timestamp() + make_interval(secs => %(lease_s)s)
FROM log_head WHERE epoch = coalesce(%(epoch)s, epoch)
ON CONFLICT (worker) DO UPDATE SET expires_at = excluded.expires_at
RETURNING (SELECT epoch FROM log_head)
"""
RELEASE = "DELETE FROM worker_leases WHERE worker = %(worker)s"
# For the clock: rows so old that nobody asks about them any more.
PRUNE = "DELETE FROM worker_leases WHERE expires_at < clock_timestamp() - interval '1 day'"


class Lease:
    """Held from start() to stop(); `lost` once it could not be renewed for as long as it lasts.

    Attributes:
        epoch: of the log that it was taken in. In another one, after a restore, it cannot be renewed.
        over: the log has another epoch now; the worker has to come again under another name.
    """

    def __init__(self, settings: Settings, worker: str) -> None:
        self._dsn = settings.database_direct_url or settings.database_url
        self._lease_s = settings.worker_lease_s
        self._worker = worker
        self.epoch: UUID | None = None
        self.over = False
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._renew, name="lease", daemon=True)
        self._renewed_at = 0.0

    @property
    def lost(self) -> bool:
        """Whether the clock may have given this worker's jobs to others."""
        return self.over or time.monotonic() - self._renewed_at > self._lease_s

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
                connection.execute(RELEASE, {"worker": self._worker})
        except psycopg.Error as error:
            log.warning("lease_not_released", error=str(error))

    def _renew_once(self, connection: psycopg.Connection) -> None:
        asked_at = time.monotonic()
        row = connection.execute(
            RENEW, {"worker": self._worker, "lease_s": self._lease_s, "epoch": self.epoch}
        ).fetchone()
        if row is None:
            self.over = True
            log.warning("lease_of_another_epoch", worker=self._worker, epoch=str(self.epoch))
            return
        self.epoch = row[0]
        self._renewed_at = asked_at

    def _renew(self) -> None:
        while not self._stopping.is_set() and not self.over:
            try:
                with psycopg.connect(self._dsn, autocommit=True, connect_timeout=CONNECT_TIMEOUT_S) as connection:
                    while not self.over and not self._stopping.wait(self._lease_s / RENEWALS_PER_LEASE):
                        self._renew_once(connection)
            except psycopg.Error as error:
                log.warning("lease_not_renewed", error=str(error))
                self._stopping.wait(self._lease_s / RENEWALS_PER_LEASE)
