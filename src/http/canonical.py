"""Around every request, whichever way it ends: ids, security headers, one line in the log, one observation.

Outside the router, so that paths that nothing serves are told as well.
"""

import re
import time
from collections.abc import Container, Iterable, Mapping
from functools import lru_cache
from typing import Any
from urllib.parse import unquote_to_bytes

import structlog
from litestar.enums import ScopeType
from litestar.types import ASGIApp, HTTPScope, Message, Receive, Scope, Send, WebSocketScope
from prometheus_client import Histogram

from ..adapters import metrics
from ..adapters.ids import uuid7
from ..adapters.redaction import Redactor
from .auth import LOCAL

METHODS = frozenset({"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"})
UNMATCHED = "unmatched"  # one label for all paths that nothing serves: a stranger may not make series
SERIES_MAX = 4_096  # of routes, methods and statuses; all are ours
QUIET_ROUTES = frozenset({"/livez", "/readyz", "/metrics"})

ADDED_HEADERS = "added_headers"  # in a request's state: for its answer, whichever that will be

_ID = re.compile(r"[A-Za-z0-9._:@/+=-]{1,128}")

SECURITY_HEADERS = {
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
    "Referrer-Policy": "no-referrer",
    "Content-Security-Policy": "default-src 'none'; base-uri 'none'; frame-ancestors 'none'",
    "Cache-Control": "no-store",  # answers are somebody's own, and old by the next event
}
TLS_HEADERS = {"Strict-Transport-Security": "max-age=31536000"}  # where clients reach us by https and nothing else

_REDACTOR = Redactor()

log = structlog.get_logger("sightline.http")


class CanonicalLine:
    """ASGI around ASGI.

    Args:
        is_https: clients reach us by TLS, ours or a proxy's.
    """

    def __init__(self, app: ASGIApp, *, is_https: bool = False) -> None:
        self._app = app
        security = SECURITY_HEADERS | (TLS_HEADERS if is_https else {})
        self._security = [(name.lower().encode(), value.encode()) for name, value in security.items()]

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        ids = _ids(scope)
        scope["state"].update(ids)
        if scope["type"] == ScopeType.WEBSOCKET:
            await self._app(scope, receive, send)  # it has a line of its own
            return
        started = time.perf_counter()
        answered: dict[str, Any] = {"status": 500, "position": None}

        async def noting(message: Message) -> None:
            if message["type"] == "http.response.start":
                given = {name.lower(): value for name, value in message["headers"]}
                added = {"X-Request-ID": ids["request_id"], **scope["state"].get(ADDED_HEADERS, {})}
                message["headers"] = _with(message["headers"], added, given, self._security)
                answered.update(status=message["status"], position=_integer(given.get(b"event-position")))
            await send(message)

        metrics.HTTP_IN_FLIGHT.inc()
        try:
            await self._app(scope, receive, noting)
        finally:
            metrics.HTTP_IN_FLIGHT.dec()
            _tell(scope, ids, answered, time.perf_counter() - started)


def _ids(scope: HTTPScope | WebSocketScope) -> dict[str, str]:
    """The caller's ids where they are fit for a log, else fresh ones."""
    given = {name: value for name, value in scope["headers"] if name in {b"x-request-id", b"x-correlation-id"}}
    request_id = _fit(given.get(b"x-request-id")) or str(uuid7())
    return {"request_id": request_id, "correlation_id": _fit(given.get(b"x-correlation-id")) or request_id}


def _fit(value: bytes | None) -> str | None:
    """A stranger's id goes into logs and events: printable, short, and nothing that looks like a secret."""
    text = (value or b"").decode("latin-1")
    return text if _ID.fullmatch(text) and _REDACTOR.text(text) == text else None


def _with(
    headers: Iterable[tuple[bytes, bytes]],
    added: Mapping[str, str],
    given: Container[bytes],
    security: Iterable[tuple[bytes, bytes]],
) -> list[tuple[bytes, bytes]]:
    """An answer's headers with ours: those that are added replace, those of security yield to what the answer has.

    As bytes, in one go: Litestar's mutable headers look through all of them for each one that is set.
    """
    ours = {name.lower().encode(): value.encode("latin-1") for name, value in added.items()}
    kept = [one for one in headers if one[0].lower() not in ours]
    return [*kept, *ours.items(), *(one for one in security if one[0] not in given and one[0] not in ours)]


def _tell(scope: HTTPScope, ids: dict[str, str], answered: dict[str, Any], seconds: float) -> None:
    route = str(scope.get("path_template") or UNMATCHED)
    method = scope["method"] if scope["method"] in METHODS else "OTHER"
    _seconds_of(route, method, answered["status"]).observe(seconds)
    tell = log.debug if route in QUIET_ROUTES else log.info
    tell(
        "request",
        method=method,
        route=route,
        status=answered["status"],
        code=scope["state"].get("code"),
        duration_ms=round(seconds * 1000, 2),
        actor=scope["state"].get("actor", LOCAL.actor),
        position=answered["position"],
        **ids,
    )


@lru_cache(maxsize=SERIES_MAX)
def _seconds_of(route: str, method: str, status: int) -> Histogram:
    return metrics.HTTP_SECONDS.labels(route, method, status)


def _integer(text: bytes | None) -> int | None:
    return int(text) if text else None


def is_text(raw: bytes) -> bool:
    """Whether percent-encoded bytes of a path or a query are UTF-8 without NUL."""
    try:
        return "\0" not in unquote_to_bytes(raw.replace(b"+", b" ")).decode()
    except UnicodeDecodeError:
        return False
