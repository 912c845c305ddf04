"""The parts that the settings do not point elsewhere, as one thing to start and stop."""

import time
from types import TracebackType

from msgspec.structs import replace

from ..settings import Settings
from .part import Part, PartBusy
from .postgres import PostgresServer
from .valkey import ValkeyServer

TAKE_OVER_S = 10.0  # how long a leaving owner, or a starting one, is waited for
STOP_TIMEOUT_S = 3.0  # beyond it PostgreSQL is ended without its last checkpoint, and replays at the next start
RETRY_S = 0.05


class Parts:
    """Starts what is embedded and answers with settings that name it. A context manager; bound to the main thread.

    Where another process (`sightline up` in the next terminal) owns a part of the same data directory, that one is
    used and left alone. It ends with its owner, also under the hands of a guest: what must last runs under `up`.

    Args:
        attach: False: own every embedded part, or fail. For supervisors, whose parts must not be another's.
        tcp_port: PostgreSQL on 127.0.0.1 as well, with a password; 0 is none.
    """

    def __init__(self, settings: Settings, *, attach: bool = True, tcp_port: int = 0) -> None:
        self._given = settings
        self._attach = attach
        self.postgres = (
            None
            if settings.database_url
            else PostgresServer(settings.data_dir, tcp_port=tcp_port or settings.database_tcp_port)
        )
        self.valkey = None if settings.redis_url else ValkeyServer(settings.data_dir)

    @property
    def owned(self) -> tuple[Part, ...]:
        """The parts that this process started, and will stop."""
        return tuple(part for part in self._embedded if part.owned)

    @property
    def settings(self) -> Settings:
        """The settings given, with `database_url`, `database_direct_url` and `redis_url` filled in."""
        given = self._given
        database_url = self.postgres.dsn if self.postgres else given.database_url
        return replace(
            given,
            data_dir=given.data_dir.absolute(),
            database_url=database_url,
            database_direct_url=given.database_direct_url or database_url,
            redis_url=self.valkey.url if self.valkey else given.redis_url,
        )

    @property
    def environ(self) -> dict[str, str]:
        """What a child process must find in its environment to read the same `settings`' addresses."""
        names = ("data_dir", "database_url", "database_direct_url", "redis_url")
        return {f"SIGHTLINE_{name.upper()}": str(getattr(self.settings, name)) for name in names}

    def start(self) -> Settings:
        """
        Raises:
            PartBusy: a part is another's, who neither lets go of it nor (with `attach`) answers, within `TAKE_OVER_S`.
            PartError: a part cannot run here. In both cases nothing that was started is left running.
        """
        try:
            for part in self._embedded:
                self._own_or_attach(part)
        except BaseException:
            self.stop()
            raise
        return self.settings

    def stop(self, *, timeout_s: float = STOP_TIMEOUT_S) -> None:
        """Stop what is ours. Twice is once."""
        for part in reversed(self._embedded):
            part.stop(timeout_s=timeout_s)

    def __enter__(self) -> Settings:
        return self.start()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.stop()

    @property
    def _embedded(self) -> tuple[Part, ...]:
        return tuple(part for part in (self.postgres, self.valkey) if part is not None)

    def _own_or_attach(self, part: Part) -> None:
        deadline = time.monotonic() + TAKE_OVER_S
        while True:
            try:
                part.start()
            except PartBusy:
                if self._attach and part.is_reachable():
                    return
                if time.monotonic() > deadline:
                    raise
                time.sleep(RETRY_S)
            else:
                return
