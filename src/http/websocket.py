"""The same frames over a WebSocket: any number of jobs, batches and filters on one connection.

A client sends `{"subscribe": {"job": …}}` (or `batch`, `kind`, or nothing; `after` as elsewhere), and
`{"unsubscribe": 1}`. It is sent `{"subscribed": 1, "position": …}`, then `{"subscription": 1, "id": …, "event": …,
"data": …}`, and `{"error": …}`, a problem detail, for what could not be done.
"""

import asyncio
import time
from typing import Annotated, Any
from urllib.parse import urlsplit
from uuid import UUID

import msgspec
import structlog
from litestar import asgi
from litestar.enums import ScopeType
from litestar.handlers import ASGIRouteHandler
from litestar.types import Receive, Scope, Send
from msgspec import UNSET, Meta, Struct, UnsetType

from ..domain.kernel import Forbidden, Rejection
from .auth import Admitted, takes
from .canonical import SECURITY_HEADERS
from .connections import LIVE_URL
from .cursors import marked
from .feed import Listener, Subscription
from .frames import Asked, Frame
from .live import OVER, PERMISSION, Flow, Visitor, begin, subscribe
from .manners import CURSOR
from .problems import FieldsRefused, MalformedJson, answer_outside, problem_of, refusal_of
from .services import Services

PROTOCOL = "sightline.v1"
BEARER = "bearer."  # what a browser, which can send no header, puts before its token in a subprotocol
SUBSCRIPTIONS_MAX = 16
MISTAKES_MAX = 20  # messages that could not be carried out, before the connection ends
REASON_BYTES_MAX = 123  # of a close frame
NUMBER_MAX = 2**53 - 1

# RFC 6455, 7.4.1: going away, not that kind of data, a policy, an error here, come back.
CLOSE_CODES = {"stopping": 1001, "unsupported_media_type": 1003, "internal_error": 1011, "log_damaged": 1011}
CLOSE_CODES |= {"epoch_changed": 1012}
POLICY = 1008

log = structlog.get_logger("sightline.http")


class SubscribeAsked(Struct, frozen=True, forbid_unknown_fields=True):
    job: UUID | None = None
    batch: UUID | None = None
    kind: Annotated[str, Meta(max_length=64)] | None = None
    after: Annotated[str, Meta(pattern=CURSOR)] | None = None


class MessageAsked(Struct, frozen=True, forbid_unknown_fields=True):
    """What a client may say: one of these."""

    subscribe: SubscribeAsked | UnsetType = UNSET
    unsubscribe: Annotated[int, Meta(ge=1, le=NUMBER_MAX)] | UnsetType = UNSET


class TooManySubscriptions(Rejection):
    """Of one connection."""

    code = "too_many_subscriptions"


_decode = msgspec.json.Decoder(MessageAsked).decode


def route(services: Services) -> ASGIRouteHandler:
    """The handler, which is given connections as they are."""

    @asgi(LIVE_URL.decode(), copy_scope=False, **takes(PERMISSION))
    async def socket(scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == ScopeType.HTTP:
            state: dict[str, Any] = scope["state"]
            scope["path_template"] = LIVE_URL.decode()
            state["code"] = "upgrade_required"
            status, headers, body = answer_outside(
                "upgrade_required", "this path is a WebSocket", request_id=state["request_id"]
            )
            headers += [(b"upgrade", b"websocket"), (b"connection", b"upgrade")]
            await send({"type": "http.response.start", "status": status, "headers": headers})
            await send({"type": "http.response.body", "body": body, "more_body": False})
        else:
            await _Socket(services, scope, receive, send).serve()

    return socket


class _Socket:
    """One connection, from its handshake to its end."""

    def __init__(self, services: Services, scope: Any, receive: Receive, send: Send) -> None:
        self._services = services
        self._scope = scope
        self._receive: Any = receive
        self._send: Any = send
        self._request_id: str = scope["state"]["request_id"]
        self._headers = {name.decode("latin-1"): value.decode("latin-1") for name, value in scope["headers"]}
        self._offered: list[str] = scope.get("subprotocols") or []
        self._began_s = time.monotonic()

    async def serve(self) -> None:
        await self._receive()  # that somebody connects
        try:
            self._require_origin()
            visitor = Visitor(self._services, self._credentials())
            who = await visitor.admitted()
            listener = self._services.feed.join("websocket", who.principal.credential)
        except Exception as error:  # noqa: BLE001  # whatever it is has an answer, as for any request
            await self._refuse(error)
            return
        flow = _Messages(self, listener, visitor, who)
        reason = "left"
        try:
            await self._accept()
            reason = await flow.serve()
        finally:
            self._services.feed.leave(listener)
            self._tell(101, reason, who.principal.actor)

    def _require_origin(self) -> None:
        """A page that somebody opened may come from anywhere, and its browser lets it connect to anything.

        Raises:
            Forbidden: it is neither ours nor one of those that CORS allows.
        """
        origin, allowed = self._headers.get("origin"), self._services.settings.cors_origins
        if (
            origin is not None
            and urlsplit(origin).netloc != self._headers.get("host")
            and not {origin, "*"} & {*allowed}
        ):
            raise Forbidden("pages of this origin may not connect")

    def _credentials(self) -> dict[str, str]:
        """Where no header shows one: the token of a subprotocol."""
        tokens = [one.removeprefix(BEARER) for one in self._offered if one.startswith(BEARER)]
        if tokens and "authorization" not in self._headers:
            return self._headers | {"authorization": f"Bearer {tokens[0]}"}
        return self._headers

    async def _accept(self) -> None:
        headers = [(b"x-request-id", self._request_id.encode())]
        protocol = PROTOCOL if PROTOCOL in self._offered else None  # never the token, which proxies would keep
        await self._send({"type": "websocket.accept", "subprotocol": protocol, "headers": headers})

    async def _refuse(self, error: Exception) -> None:
        refusal = refusal_of(error)
        problem = problem_of(refusal, self._request_id)
        headers = {"content-type": "application/problem+json", "x-request-id": self._request_id}
        headers |= SECURITY_HEADERS | dict(refusal.headers)
        raw = [(name.lower().encode(), value.encode("latin-1")) for name, value in headers.items()]
        await self._send({"type": "websocket.http.response.start", "status": problem.status, "headers": raw})
        await self._send({"type": "websocket.http.response.body", "body": msgspec.json.encode(problem)})
        if problem.code == "internal_error":
            log.error("request_failed", request_id=self._request_id, exc_info=error)
        self._tell(problem.status, problem.code, "anonymous")

    def _tell(self, status: int, code: str, actor: str) -> None:
        log.info(
            "socket",
            route=LIVE_URL.decode(),
            status=status,
            code=code,
            actor=actor,
            duration_ms=round((time.monotonic() - self._began_s) * 1000, 2),
            request_id=self._request_id,
        )

    async def next(self) -> Any:
        """The client's next message; None once there will be no other."""
        message = await self._receive()
        return message if message["type"] == "websocket.receive" else None

    async def say(self, text: str) -> None:
        await self._send({"type": "websocket.send", "text": text})

    async def say_problem(self, error: Exception) -> str:
        """Its code."""
        problem = problem_of(refusal_of(error), self._request_id)
        if problem.code == "internal_error":
            log.error("request_failed", request_id=self._request_id, exc_info=error)
        await self.say(f'{{"error":{msgspec.json.encode(problem).decode()}}}')
        return problem.code

    async def close(self, code: str) -> None:
        reason = code[:REASON_BYTES_MAX]
        await self._send({"type": "websocket.close", "code": CLOSE_CODES.get(code, POLICY), "reason": reason})

    @property
    def services(self) -> Services:
        return self._services


class _Messages(Flow):
    """Frames to the client and its own messages, each in its turn."""

    def __init__(self, socket: _Socket, listener: Listener, visitor: Visitor, who: Admitted) -> None:
        super().__init__(socket.services.feed, listener, visitor, who.owner)
        self._socket = socket
        self._who = who
        self._last_number = 0
        self._mistakes = 0

    async def serve(self) -> str:
        """Until one of us ends it; why."""
        listening = asyncio.create_task(self._listen())
        try:
            reason = await self.run()
            if reason != "left":
                await self._socket.close(reason)
        except OSError:  # it left while something was sent
            reason = "left"
        finally:
            listening.cancel()
            await asyncio.wait({listening})
        return reason

    async def put(self, subscription: Subscription, frames: list[Frame]) -> None:  # type: ignore[override]  # a list it is
        for one in frames:
            await self._socket.say(
                f'{{"subscription":{subscription.number},"id":"{one.id}","event":"{one.topic}","data":{one.data.decode()}}}'
            )

    async def finish(self, subscription: Subscription) -> None:
        reason = msgspec.json.encode({"reason": subscription.status or OVER}).decode()
        await self._socket.say(f'{{"subscription":{subscription.number},"event":"end","data":{reason}}}')

    async def beat(self) -> None:
        """The connection's own pings are the signs of life."""

    async def _listen(self) -> None:
        """Carry out what the client says, one after the other: the next is not read before."""
        try:
            while (message := await self._socket.next()) is not None:
                text = message.get("text")
                if text is None:
                    self.listener.end("unsupported_media_type")
                    return
                try:
                    await self._carry_out(text)
                except OSError:
                    break
                except Exception as error:  # noqa: BLE001  # whatever it is has an answer, as for any request
                    await self._mistaken(error)
        except OSError:
            pass  # it left while something was sent
        self.listener.end("left")

    async def _mistaken(self, error: Exception) -> None:
        code = await self._socket.say_problem(error)
        self._mistakes += 1
        if self._mistakes >= MISTAKES_MAX:
            self.listener.end(code)

    async def _carry_out(self, text: str) -> None:
        try:
            message = _decode(text)
        except msgspec.ValidationError as error:
            raise FieldsRefused.of(str(error)) from error
        except (msgspec.DecodeError, RecursionError, UnicodeError) as error:
            raise MalformedJson("no JSON, or nested too deeply") from error
        if (message.subscribe is UNSET) == (message.unsubscribe is UNSET):
            raise FieldsRefused.of("send either subscribe or unsubscribe")
        if message.subscribe is not UNSET:
            await self._subscribe(message.subscribe)
        elif message.unsubscribe is not UNSET:
            found = self.subscriptions.pop(message.unsubscribe, None)
            if found is None:
                raise FieldsRefused.of("no such subscription - at `$.unsubscribe`")
            self.feed.drop(found)
            await self._socket.say(f'{{"unsubscribed":{found.number}}}')

    async def _subscribe(self, wanted: SubscribeAsked) -> None:
        if len(self.subscriptions) >= SUBSCRIPTIONS_MAX:
            raise TooManySubscriptions(f"one connection has at most {SUBSCRIPTIONS_MAX} subscriptions")
        asked = Asked(job=wanted.job, batch=wanted.batch, kind=wanted.kind, owner=self._who.owner)
        begun = await begin(self._socket.services, asked, wanted.after)
        if self.listener.epoch not in (None, begun.epoch):
            self.listener.end("epoch_changed")
            return
        self._last_number += 1
        number = self._last_number
        mark = marked(begun.cursor, begun.epoch)
        await self._socket.say(f'{{"subscribed":{number},"position":"{mark}"}}')
        subscription = subscribe(self.feed, self.listener, asked, begun, number=number)
        if begun.snapshot is not None:
            await self.put(subscription, [begun.snapshot])
        self.subscriptions[number] = subscription
        self.listener.wake()
