"""Around the application: how many requests at once, how slowly a body may come, how long an answer may take.

Each limit is one answer, and the connection goes on or ends with it: 503 `overloaded`, 408 `request_timeout`,
503 `timed_out`. Time that a client takes to send its body does not count as ours.
"""

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from typing import Any
from uuid import UUID

from litestar.enums import ScopeType
from litestar.types import ASGIApp, HTTPScope, Message, Receive, Scope, Send

from .problems import Facade, answer_outside

REQUESTS_MAX = 1_000
REQUEST_S_MAX = 120.0  # to the first byte of an answer, the body's way here not counted
LOOK_S = 0.25  # between looks at who is late
BODY_GRACE_S = 20.0  # a body may take this long whatever its size,
BODY_BYTES_PER_S_MIN = 8 * 1024  # and a second more for each so many bytes that came
STOPPING = "stopping"  # in the application's state, once the process was told to end
LIVE = "live"  # in a request's state: its answer does not end by itself; feed.py counts those
HEADLESS_ASKED = "headless_asked"  # in a request's state: it was a HEAD
KEY_UNDER_WAY = "key_under_way"  # in a request's state: the command id that its Idempotency-Key made

UNKNOWN = "whether a command was appended may not be known: the same Idempotency-Key finds out"
ALWAYS_ANSWERED = frozenset({"/livez", "/readyz", "/metrics"})  # or a supervisor ends what is merely busy
HEADLESS = ("/objects/", "/api/")  # they have HEADs of their own: a signature is for one method
SINGULAR = frozenset(
    {
        b"authorization",
        b"x-api-key",
        b"idempotency-key",
        b"content-type",
        b"min-position",
        b"last-event-id",
        b"host",
        b"x-edit-epoch",
    }
)


class Patience:
    """ASGI around ASGI. One timer looks after all requests: one for each would cost more than the rest of this file.

    Args:
        facades: which have words of their own.
        keys_under_way: command ids whose first request has no answer yet; each request's is taken out here.
    """

    def __init__(self, app: ASGIApp, facades: Sequence[Facade], keys_under_way: set[UUID]) -> None:
        self._app = app
        self._facades = facades
        self._keys_under_way = keys_under_way
        self._turns: set[_Turn] = set()
        self._look: asyncio.TimerHandle | None = None

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != ScopeType.HTTP:
            await self._app(scope, receive, send)
            return
        if len(self._turns) >= REQUESTS_MAX and scope["path"] not in ALWAYS_ANSWERED:
            await self._refuse(scope, send, "overloaded", f"{REQUESTS_MAX} requests are being answered")
            return
        if (twice := _said_twice(scope)) is not None:
            await self._refuse(scope, send, "malformed_request", f"{twice} was sent more than once")
            return
        turn = _Turn(receive)
        self._turns.add(turn)
        if self._look is None:
            self._look = turn.loop.call_later(LOOK_S, self._look_after_all)
        try:
            await self._answered(scope, turn, send)
        finally:
            self._turns.discard(turn)
            self._let_go(scope)

    async def _answered(self, scope: HTTPScope, turn: "_Turn", send: Send) -> None:
        async def noting(message: Message) -> None:
            if turn.until_s is not None:
                turn.until_s = None  # from here on it is the client who reads, see connections.py
                if LIVE in scope["state"]:
                    self._turns.discard(turn)
                self._let_go(scope)  # before the answer is out: whoever has it may use its key again
            await send(message)

        try:
            await self._dispatched(scope, turn.receive, noting)
        except asyncio.CancelledError:
            if turn.is_over:
                turn.task.uncancel()
                await self._refuse(scope, send, *turn.verdict)
            elif turn.until_s is not None and scope["litestar_app"].state.get(STOPPING):
                await self._refuse(scope, send, "stopping", f"this process ends; {UNKNOWN}")
            else:
                raise

    def _look_after_all(self) -> None:
        """End the turns whose time is over; again in a while, as long as there are any."""
        for turn in self._turns:
            turn.end_if_late()
        self._look = asyncio.get_running_loop().call_later(LOOK_S, self._look_after_all) if self._turns else None

    async def _dispatched(self, scope: HTTPScope, receive: Receive, send: Send) -> None:
        """HEAD is GET without the body: every path that has the one has the other."""
        if scope["method"] != "HEAD" or scope["path"].startswith(HEADLESS):
            await self._app(scope, receive, send)
            return

        async def headless(message: Message) -> None:
            if message["type"] == "http.response.body":
                message["body"] = b""
            await send(message)

        asked: Any = {**scope, "method": "GET"}
        scope["state"][HEADLESS_ASKED] = True
        try:
            await self._app(asked, receive, headless)
        finally:
            if "path_template" in asked:
                scope["path_template"] = asked["path_template"]

    def _let_go(self, scope: HTTPScope) -> None:
        command_id: UUID | None = scope["state"].pop(KEY_UNDER_WAY, None)
        if command_id is not None:
            self._keys_under_way.discard(command_id)

    async def _refuse(self, scope: HTTPScope, send: Send, code: str, detail: str) -> None:
        state = scope["state"]
        state["code"] = code
        status, headers, body = answer_outside(
            code, detail, path=scope["path"], request_id=state.get("request_id", ""), facades=self._facades
        )
        await send({"type": "http.response.start", "status": status, "headers": headers})
        await send({"type": "http.response.body", "body": body, "more_body": False})


class _Turn:
    """One request's time.

    Attributes:
        until_s: of the loop's clock; None: as long as it takes.
        is_over: the task was cancelled because of it.
    """

    __slots__ = ("_body_bytes", "_body_s", "_is_waiting", "_is_whole", "_receive", "is_over", "loop", "task", "until_s")

    def __init__(self, receive: Receive) -> None:
        task = asyncio.current_task()
        assert task is not None
        self.task = task
        self.loop = task.get_loop()
        self.until_s: float | None = self.loop.time() + REQUEST_S_MAX
        self.is_over = False
        self._receive: Callable[[], Awaitable[Any]] = receive
        self._is_waiting = False
        self._is_whole = False
        self._body_bytes = 0
        self._body_s = 0.0

    @property
    def verdict(self) -> tuple[str, str]:
        if self._is_waiting:
            return "request_timeout", f"a body comes at {BODY_BYTES_PER_S_MIN} bytes/s or more after {BODY_GRACE_S:g} s"
        return "timed_out", f"no answer within {REQUEST_S_MAX:g} s; {UNKNOWN}"

    def end_if_late(self) -> None:
        if self.until_s is not None and not self.is_over and self.loop.time() > self.until_s:
            self.is_over = True
            self.task.cancel()

    async def receive(self) -> Any:
        """The next piece of the body, in its time; after the last, whether the client has left, without a limit."""
        if self._is_whole or self.until_s is None:
            return await self._receive()
        since_s = self.loop.time()
        self._is_waiting = True
        self.until_s = since_s + BODY_GRACE_S + self._body_bytes / BODY_BYTES_PER_S_MIN - self._body_s
        message = await self._receive()
        self._is_waiting = False
        now_s = self.loop.time()
        self._body_s += now_s - since_s
        self._body_bytes += len(message.get("body", b""))
        self._is_whole = not message.get("more_body", False)
        if self.until_s is not None:
            self.until_s = now_s + REQUEST_S_MAX
        return message


def _said_twice(scope: HTTPScope) -> str | None:
    """A header that two readers might read differently: each takes another one of its values."""
    seen: set[bytes] = set()
    for name, _ in scope["headers"]:
        if name in seen:
            return name.decode()
        if name in SINGULAR:
            seen.add(name)
    return None
