"""A connection after its upgrade to WebSocket: frames are small, never compressed, and nobody may stall or flood us.

Reading the head, and every limit on it, was Connection's; what is done within these limits is uvicorn's.
"""

import asyncio
from typing import Any

from uvicorn.protocols.websockets.wsproto_impl import WSProtocol
from wsproto.connection import ConnectionState
from wsproto.events import CloseConnection

from . import connections

MESSAGE_BYTES_MAX = 64 * 1024
PING_S = 15.0
PONG_S_MAX = 20.0
CLOSING_S_MAX = 2.0  # for the client's own last word


class Upgraded(WSProtocol):
    """One client's WebSocket."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.close_timeout = CLOSING_S_MAX
        self._stalled: asyncio.TimerHandle | None = None

    def connection_lost(self, exc: Exception | None) -> None:
        self._no_longer_stalled()
        connections.live.discard(self)
        super().connection_lost(exc)

    def pause_writing(self) -> None:
        """Whoever does not read is not read either: answers to its pings would pile up here."""
        super().pause_writing()
        self.transport.pause_reading()
        self._stalled = self._stalled or self.loop.call_later(connections.STALLED_S_MAX, self.transport.abort)

    def resume_writing(self) -> None:
        self._no_longer_stalled()
        if not self.read_paused:
            self.transport.resume_reading()
        super().resume_writing()

    def handle_close(self, event: CloseConnection) -> None:
        """The client's last word, or the parser's own on bytes that are no frame, which the client is told."""
        if not self.close_sent and self.conn.state is ConnectionState.OPEN:
            self.transport.write(self.conn.send(CloseConnection(code=event.code, reason=event.reason)))
        super().handle_close(event)

    def shutdown(self) -> None:
        """The process ends. Whoever was let in is told so by the application, within the grace."""
        if not self.handshake_complete or self.close_sent:
            super().shutdown()

    async def send(self, message: Any) -> None:
        if message["type"] == "websocket.accept":
            connections.hold(self, self.transport)
        await super().send(message)

    def _no_longer_stalled(self) -> None:
        if self._stalled is not None:
            self._stalled.cancel()
            self._stalled = None
