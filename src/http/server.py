"""One API process: services around a server around the application."""

import asyncio
import signal
from collections.abc import Iterator
from contextlib import contextmanager

import structlog
import uvicorn
import uvloop

from ..adapters import logs
from ..adapters.settings import Settings, require_loopback
from .app import create_app
from .auth import LOCAL
from .services import open_services

GRACE_S = 5
HEADER_BYTES_MAX = 64 * 1024
CONNECTIONS_MAX = 2_000
KEEP_ALIVE_S = 15

log = structlog.get_logger(__name__)


def serve(settings: Settings) -> None:
    """Serve on `settings.host` and `settings.port` until SIGTERM or SIGINT, then drain for at most GRACE_S.

    Raises:
        SettingsError: the host is not this machine alone; see require_loopback().
        psycopg.OperationalError: the database does not answer.
    """
    require_loopback(settings.host)
    logs.configure(settings)
    uvloop.run(_serve(settings))


class Server(uvicorn.Server):
    """uvicorn's server under our signals: its own raises them again at the end, and would end us before we closed."""

    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, self._stop)
        try:
            yield
        finally:
            for number in (signal.SIGTERM, signal.SIGINT):
                loop.remove_signal_handler(number)

    def _stop(self) -> None:
        self.force_exit = self.should_exit  # the second time: now
        self.should_exit = True


async def _serve(settings: Settings) -> None:
    async with open_services(settings) as services:
        config = uvicorn.Config(
            create_app(services),
            host=settings.host,
            port=settings.port,
            http="httptools",
            ws="none",
            lifespan="off",
            log_config=None,
            access_log=False,
            server_header=False,
            proxy_headers=False,
            limit_concurrency=CONNECTIONS_MAX,
            h11_max_incomplete_event_size=HEADER_BYTES_MAX,
            timeout_keep_alive=KEEP_ALIVE_S,
            timeout_graceful_shutdown=GRACE_S,
        )
        log.info("settings", **settings.redacted())
        log.warning("authentication_off", actor=LOCAL.actor, role=LOCAL.role, url=settings.public_url)
        await Server(config).serve()
        log.info("stopped")
