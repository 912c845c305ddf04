"""Around every request, whichever way it ends: ids, security headers, one line in the log, one observation.

Outside the router, so that paths that nothing serves are told as well.
"""

import re
import time
from typing import Any
from urllib.parse import unquote_to_bytes

import structlog
from litestar.datastructures import MutableScopeHeaders
from litestar.enums import ScopeType
from litestar.types import ASGIApp, HTTPScope, Message, Receive, Scope, Send

from ..adapters import metrics
from ..adapters.ids import uuid7
from .auth import LOCAL

METHODS = frozenset({"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"})
UNMATCHED = "unmatched"  # one label for all paths that nothing serves: a stranger may not make series
QUIET_ROUTES = frozenset({"/livez", "/readyz", "/metrics"})

_ID = re.compile(r"[A-Za-z0-9._:@/+=-]{1,128}")

SECURITY_HEADERS = {
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
    "Referrer-Policy": "no-referrer",
    "Content-Security-Policy": "default-src 'none'; frame-ancestors 'none'",
}

log = structlog.get_logger("sightline.http")


class CanonicalLine:
    """ASGI around ASGI."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == ScopeType.WEBSOCKET:
            await self._app(scope, receive, send)
            return
        started = time.perf_counter()
        ids = _ids(scope)
        scope["state"].update(ids)
        answered: dict[str, Any] = {"status": 500, "position": None}

        async def noting(message: Message) -> None:
            if message["type"] == "http.response.start":
                headers = MutableScopeHeaders.from_message(message)
                headers["X-Request-ID"] = ids["request_id"]
                for name, value in SECURITY_HEADERS.items():
                    headers.setdefault(name, value)
                answered.update(status=message["status"], position=_integer(headers.get("Event-Position")))
            await send(message)

        metrics.HTTP_IN_FLIGHT.inc()
        try:
            await self._app(scope, receive, noting)
        finally:
            metrics.HTTP_IN_FLIGHT.dec()
            _tell(scope, ids, answered, time.perf_counter() - started)


def _ids(scope: HTTPScope) -> dict[str, str]:
    """The caller's ids where they are fit for a log, else fresh ones."""
    given = {name: value for name, value in scope["headers"] if name in {b"x-request-id", b"x-correlation-id"}}
    request_id = _fit(given.get(b"x-request-id")) or str(uuid7())
    return {"request_id": request_id, "correlation_id": _fit(given.get(b"x-correlation-id")) or request_id}


def _fit(value: bytes | None) -> str | None:
    text = (value or b"").decode("latin-1")
    return text if _ID.fullmatch(text) else None


def _tell(scope: HTTPScope, ids: dict[str, str], answered: dict[str, Any], seconds: float) -> None:
    route = str(scope.get("path_template") or UNMATCHED)
    method = scope["method"] if scope["method"] in METHODS else "OTHER"
    metrics.HTTP_SECONDS.labels(route, method, answered["status"]).observe(seconds)
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


def _integer(text: str | None) -> int | None:
    return int(text) if text else None


def is_text(raw: bytes) -> bool:
    """Whether percent-encoded bytes of a path or a query are UTF-8 without NUL."""
    try:
        return "\0" not in unquote_to_bytes(raw.replace(b"+", b" ")).decode()
    except UnicodeDecodeError:
        return False
