"""Connections, before there is a request and after its answer: whoever is slow, large or many is told so and let go.

uvicorn's parser takes heads of any size at any speed, refuses in plain text, and waits for ever for a client that does
not read. Each limit below ends one of these; what can still be answered is answered as a problem detail.
"""

import asyncio
import socket
from collections.abc import Callable
from http import HTTPStatus
from typing import Any

import httptools
import structlog
from uvicorn.protocols.http.httptools_impl import STATUS_LINE, HttpToolsProtocol

from ..adapters.ids import uuid7
from .canonical import SECURITY_HEADERS, TLS_HEADERS
from .problems import answer_outside

CONNECTIONS_MAX = 2_000
URL_BYTES_MAX = 16 * 1024
HEAD_BYTES_MAX = 64 * 1024
HEADERS_MAX = 100
HEAD_S_MAX = 10.0  # from a connection's or a request's first byte to the end of its head
REST_S_MAX = 5.0  # for the rest of a body that was answered before its end
STALLED_S_MAX = 30.0  # for a client to read on
LIVE_BUFFER_BYTES = 16 * 1024  # kept here for one who listens and does not read; the kernel keeps about four times that
LIVE_SEND_BYTES = 32 * 1024
KEY_CHARS = 24  # of a handshake's key: 16 bytes in base64
LIVE_URL = b"/v1/ws"  # the one path that is spoken to as a WebSocket
BECOME_LIVE = "become_live"  # in a request's state: what its handler calls before an answer that does not end

log = structlog.get_logger(__name__)

live: set[asyncio.BaseProtocol] = set()  # of this process, held by clients that listen; feed.py says how many may be


def hold(connection: asyncio.BaseProtocol, transport: asyncio.Transport) -> None:
    """Count a connection among those that stay, and keep little for it: there may be many, and each may stop reading.

    One whose bytes nobody acknowledges ends as soon as one that is stalled.
    """
    live.add(connection)
    transport.set_write_buffer_limits(high=LIVE_BUFFER_BYTES)
    found = transport.get_extra_info("socket")
    if found is not None and found.family in (socket.AF_INET, socket.AF_INET6):
        found.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, LIVE_SEND_BYTES)
        found.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, int(STALLED_S_MAX * 1000))


class Connection(HttpToolsProtocol):
    """One client's connection. What it does within its limits is uvicorn's."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._head_bytes = 0  # received in pieces that end within a head
        self._kept_bytes = 0  # of headers that are whole
        self._in_head = True
        self._has_begun = False
        self._in_body = False
        self._is_refused = False
        self._upgrades = False
        self._refusal = ("malformed_request", "not an HTTP/1.1 request")
        self._patience: asyncio.TimerHandle | None = None
        self._stalled: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]  # as uvicorn's own
        super().connection_made(transport)
        if len(self.connections) - len(live) > CONNECTIONS_MAX:
            self._refuse("overloaded", f"{CONNECTIONS_MAX} connections are open")
        else:
            self._wait(HEAD_S_MAX, self._head_is_late)

    def connection_lost(self, exc: Exception | None) -> None:
        self._wait_no_longer()
        live.discard(self)
        self.resume_writing()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        if self._is_refused or self.transport.is_closing():
            return
        self._unset_keepalive_if_required()
        if self._patience is None and self._is_idle:
            self._wait(HEAD_S_MAX, self._head_is_late)
        was_in_head = self._in_head
        try:
            self.parser.feed_data(data)
        except httptools.HttpParserUpgrade:
            if self._upgrades:
                self.handle_websocket_upgrade()
            return  # any other is to something that we do not speak: the request is answered as it is
        except httptools.HttpParserError:
            self._refuse(*self._refusal)
            return
        if self._in_head and was_in_head:
            self._head_bytes += len(data)
            if self._head_bytes > HEAD_BYTES_MAX:
                self._refuse("headers_too_large", f"a head has at most {HEAD_BYTES_MAX} bytes")

    def on_message_begin(self) -> None:
        super().on_message_begin()
        self.scope["state"][BECOME_LIVE] = self._become_live
        self._in_head = self._has_begun = True
        self._head_bytes = self._kept_bytes = 0
        self._wait(HEAD_S_MAX, self._head_is_late)

    def on_url(self, url: bytes) -> None:
        super().on_url(url)
        if len(self.url) > URL_BYTES_MAX:
            self._stop_parsing("url_too_long", f"a URL has at most {URL_BYTES_MAX} bytes")

    def on_header(self, name: bytes, value: bytes) -> None:
        super().on_header(name, value)
        self._kept_bytes += len(name) + len(value)
        if len(self.headers) > HEADERS_MAX or self._kept_bytes > HEAD_BYTES_MAX:
            self._stop_parsing("headers_too_large", f"at most {HEADERS_MAX} headers, {HEAD_BYTES_MAX} bytes in all")

    def on_headers_complete(self) -> None:
        self._wait_no_longer()
        self._in_head, self._has_begun, self._in_body = False, False, True
        self._upgrades = self.parser.should_upgrade() and self._is_handshake()
        super().on_headers_complete()

    def on_message_complete(self) -> None:
        self._in_body = False
        if self._is_idle:
            self._wait_no_longer()
        super().on_message_complete()

    def on_response_complete(self) -> None:
        super().on_response_complete()
        if self._in_body and not self.pipeline and not self.transport.is_closing():
            self._linger()

    def pause_writing(self) -> None:
        super().pause_writing()
        self._stalled = self._stalled or self.loop.call_later(STALLED_S_MAX, self.transport.abort)

    def resume_writing(self) -> None:
        if self._stalled is not None:
            self._stalled.cancel()
            self._stalled = None
        if self.flow is not None:
            super().resume_writing()

    def send_400_response(self, msg: str) -> None:
        self._refuse("malformed_request", msg)

    def _should_upgrade(self) -> bool:
        return self._upgrades

    def _is_handshake(self) -> bool:
        """The head of a request for a WebSocket where there is one, with no other request before it (RFC 6455, 4.1)."""
        given = dict(self.headers)
        return (
            self.ws_protocol_class is not None
            and self._is_idle
            and not self.pipeline
            and (self.parser.get_method(), self.parser.get_http_version()) == (b"GET", "1.1")
            and self.url.partition(b"?")[0] == LIVE_URL
            and given.get(b"upgrade", b"").lower() == b"websocket"
            and given.get(b"sec-websocket-version") == b"13"
            and len(given.get(b"sec-websocket-key", b"")) == KEY_CHARS
            and not {b"content-length", b"transfer-encoding"} & given.keys()
        )

    def _become_live(self) -> None:
        hold(self, self.transport)

    @property
    def _is_idle(self) -> bool:
        return self.cycle is None or self.cycle.response_complete

    def _wait(self, seconds: float, otherwise: Callable[[], None]) -> None:
        self._wait_no_longer()
        self._patience = self.loop.call_later(seconds, otherwise)

    def _wait_no_longer(self) -> None:
        if self._patience is not None:
            self._patience.cancel()
            self._patience = None

    def _head_is_late(self) -> None:
        if not self._is_idle:  # a next request that came before the answer to this one
            self._wait(HEAD_S_MAX, self._head_is_late)
        elif self._has_begun:
            self._refuse("request_timeout", f"the head of a request takes at most {HEAD_S_MAX:g} s")
        else:
            self.transport.close()

    def _stop_parsing(self, code: str, detail: str) -> None:
        self._refusal = (code, detail)
        raise ValueError(code)  # httptools makes its own error of it

    def _linger(self) -> None:
        """Close soon. At once would reset the connection under a client that still sends, its answer unread."""
        self._wait(REST_S_MAX, self.transport.close)

    def _refuse(self, code: str, detail: str) -> None:
        """Answer where an answer can still be read as one, and read no more."""
        self._wait_no_longer()
        if self.transport.is_closing():
            return
        self._is_refused = True
        if self._is_idle and not self.pipeline:
            request_id = str(uuid7())
            status, headers, body = answer_outside(code, detail, request_id=request_id)
            security = SECURITY_HEADERS | (TLS_HEADERS if self.scheme == "https" else {})
            headers += [(name.lower().encode(), value.encode()) for name, value in security.items()]
            headers += [(b"x-request-id", request_id.encode()), (b"connection", b"close")]
            lines = b"".join(b"%b: %b\r\n" % one for one in [*self.server_state.default_headers, *headers])
            self.transport.write(b"%b%b\r\n%b" % (STATUS_LINE[status], lines, body))
            log.info("connection_refused", code=code, status=status, request_id=request_id)
            if status != HTTPStatus.SERVICE_UNAVAILABLE:
                if self.transport.can_write_eof():
                    self.transport.write_eof()
                self._linger()
                return
        self.transport.close()
