"""One API process: services around a server around the application."""

import asyncio
import resource
import signal
import socket
import ssl
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import structlog
import uvicorn
import uvloop
from litestar import Litestar
from uvicorn.lifespan.off import LifespanOff

from ..adapters import logs, memory, tls
from ..adapters.settings import Settings, SettingsError, is_loopback, require_door
from .app import create_app
from .auth import LOCAL
from .connections import CONNECTIONS_MAX, Connection
from .patience import STOPPING
from .services import open_services
from .upgrades import MESSAGE_BYTES_MAX, PING_S, PONG_S_MAX, Upgraded

NOTICE_S = 0.5  # /readyz says no, and all else goes on: for balancers that look in between
GRACE_S = 4  # for what is under way; whatever is not done by then is told so
LAST_WORDS_S = 0.5
KEEP_ALIVE_S = 15
BACKLOG = 2_048
FILES_BESIDE = 500  # open for other things than clients

log = structlog.get_logger(__name__)


def serve(settings: Settings) -> None:
    """Serve on `settings.host` and `settings.port` until SIGTERM or SIGINT, then drain for at most GRACE_S.

    Raises:
        SettingsError: who could listen or ask may not (see require_door() and require_private_wire()), or the
            certificate is none.
        psycopg.OperationalError: the database does not answer.
        OSError: something else listens there.
    """
    require_door(settings)
    tls.require_private_wire(settings)
    context = tls.load_context(settings)
    logs.configure(settings)
    allow_files(settings.live_streams_max + CONNECTIONS_MAX + FILES_BESIDE)
    uvloop.run(_serve(settings, context))


def allow_files(wanted: int) -> None:
    """Let this process hold as many connections as it may; where the machine does not, it says so."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    allowed = wanted if hard == resource.RLIM_INFINITY else min(wanted, hard)
    if soft != resource.RLIM_INFINITY and soft < allowed:
        resource.setrlimit(resource.RLIMIT_NOFILE, (allowed, hard))
    if allowed < wanted:
        log.warning("few_files_allowed", wanted=wanted, allowed=allowed)


class Server(uvicorn.Server):
    """uvicorn's server under our signals: its own raises them again at the end, and would end us before we closed."""

    def __init__(
        self,
        app: Litestar,
        settings: Settings,
        context: ssl.SSLContext | None,
        on_exit: Callable[[], None] = lambda: None,
    ) -> None:
        config = uvicorn.Config(
            app,
            host=settings.host,
            port=settings.port,
            http=Connection,
            ws=Upgraded,
            ws_max_size=MESSAGE_BYTES_MAX,
            ws_ping_interval=PING_S,
            ws_ping_timeout=PONG_S_MAX,
            ws_per_message_deflate=False,
            lifespan="off",
            log_config=None,
            access_log=False,
            server_header=False,
            proxy_headers=False,
            timeout_keep_alive=KEEP_ALIVE_S,
            timeout_graceful_shutdown=GRACE_S,
        )
        config.load()
        super().__init__(config)
        self._app = app
        self._settings = settings
        self._context = context
        self._on_exit = on_exit  # what would not end by itself

    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        loop = asyncio.get_running_loop()
        handled = {signal.SIGTERM: self._stop, signal.SIGINT: self._stop}
        if self._context is not None:
            handled[signal.SIGHUP] = self._read_certificate
        for number, handler in handled.items():
            loop.add_signal_handler(number, handler)
        try:
            yield
        finally:
            for number in handled:
                loop.remove_signal_handler(number)

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:  # noqa: ARG002  # uvicorn's signature
        """Listen. uvicorn's own ends the process where it cannot, and gives a handshake a minute."""
        self.lifespan = LifespanOff(self.config)
        loop = asyncio.get_running_loop()
        server = await loop.create_server(
            lambda: Connection(config=self.config, server_state=self.server_state, app_state={}),
            host=self.config.host,
            port=self.config.port,
            ssl=self._context,
            ssl_handshake_timeout=tls.HANDSHAKE_S_MAX if self._context is not None else None,
            backlog=BACKLOG,
        )
        self.servers = [server]
        self.started = True

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """Answer what is under way. Whoever is cut off at the end of the grace still writes its last answer."""
        await super().shutdown(sockets)
        if self.server_state.tasks:
            await asyncio.wait(self.server_state.tasks, timeout=LAST_WORDS_S)

    def _stop(self) -> None:
        if self._app.state.get(STOPPING):
            self.force_exit = self.should_exit = True  # the second time: now
            return
        self._app.state[STOPPING] = True
        log.info("stopping", requests=len(self.server_state.tasks), connections=len(self.server_state.connections))
        asyncio.get_running_loop().call_later(NOTICE_S, self._exit)

    def _exit(self) -> None:
        self._on_exit()
        self.should_exit = True

    def _read_certificate(self) -> None:
        """A renewed certificate, for connections from now on; with one that is no good we go on as we were."""
        assert self._context is not None
        try:
            tls.load_certificate(self._context, self._settings)
        except SettingsError as error:
            log.warning("certificate_refused", error=str(error))
        else:
            log.info("certificate_read")


async def _serve(settings: Settings, context: ssl.SSLContext | None) -> None:
    async with open_services(settings) as services:
        server = Server(create_app(services), settings, context, services.feed.stop)
        log.info("settings", **settings.redacted())
        if not settings.auth_enabled:
            log.warning("authentication_off", actor=LOCAL.actor, role=LOCAL.rights.role, url=settings.public_url)
        if context is None and not is_loopback(settings.host):
            log.warning("tls_off", host=settings.host, trusted_proxies=settings.trusted_proxies)
        memory.settle()
        await server.serve()
        log.info("stopped")
