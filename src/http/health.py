"""Is it alive, is it ready, how does it do: for supervisors, balancers and Prometheus."""

import asyncio
from collections.abc import Awaitable
from contextlib import suppress
from datetime import UTC, datetime
from typing import Any, Literal

import psycopg
from litestar import Controller, Request, Response, get
from litestar.openapi.datastructures import ResponseSpec
from msgspec import Struct
from prometheus_client import CONTENT_TYPE_LATEST, generate_latest
from redis.exceptions import RedisError

from ..adapters import metrics
from ..adapters.event_store.wire import Append
from ..adapters.ids import uuid7
from ..adapters.objects.port import ObjectStoreError
from ..domain import kinds
from ..domain.kernel import Rejection
from ..projections import jobs, quarantine
from ..projections.projection import NotYetProjected
from .auth import takes
from .manners import Parts
from .patience import STOPPING
from .services import Services

CHECK_TIMEOUT_S = 2.0
SCRAPE_TIMEOUT_S = 1.0
CATCH_UP_S = 1.0
LAG_EVENTS_MAX = 50_000  # beyond it a reader is told nonsense, even if the projector works


class Alive(Struct, frozen=True):
    status: Literal["ok"] = "ok"


class Check(Struct, frozen=True, omit_defaults=True):
    """Attributes:
    status: `degraded` where a part is missed but nothing depends on it.
    """

    status: Literal["ok", "degraded", "failed"]
    detail: str = ""


class Readiness(Struct, frozen=True):
    status: Literal["ok", "failed"]
    checks: dict[str, Check]


class HealthController(Controller):
    path = "/"
    opt = takes(None)
    tags = ("operations",)

    @get("/livez", summary="The process answers")
    async def alive(self) -> Alive:
        return Alive()

    @get(
        "/readyz",
        summary="Every part that an answer needs is there",
        responses={503: ResponseSpec(Readiness, generate_examples=False, description="A part is missing")},
    )
    async def ready(self, request: Request[Any, Any, Any], services: Parts) -> Response[Readiness]:
        if request.app.state.get(STOPPING):
            return Response(Readiness("failed", {"process": Check("failed", "it ends")}), status_code=503)
        names = ("event_store", "projector", "object_store", "valkey")
        checks = await asyncio.gather(
            _check(_event_store(services)),
            _check(_projector(services)),
            _check(_object_store(services)),
            _check(_valkey(services)),
        )
        failed = any(check.status == "failed" for check in checks)
        body = Readiness("failed" if failed else "ok", dict(zip(names, checks, strict=True)))
        return Response(body, status_code=503 if failed else 200)

    @get("/metrics", media_type=CONTENT_TYPE_LATEST, summary="Metrics of this process, for Prometheus")
    async def metrics(self, services: Parts) -> bytes:
        # An alarm about the database, not about this process; while that does not answer, as it was.
        with suppress(psycopg.Error, TimeoutError):
            async with asyncio.timeout(SCRAPE_TIMEOUT_S), services.store.pool.connection() as connection:
                await quarantine.count(connection)
        with suppress(psycopg.Error, TimeoutError):
            async with asyncio.timeout(SCRAPE_TIMEOUT_S):
                await _measure(services)
        return generate_latest()


async def _measure(services: Services) -> None:
    """What autoscalers ask: how much waits, how long, and how old that answer is. The same of every API process."""
    head = (await services.store.reader.head()).position
    metrics.PROJECTION_LAG.set(max(0, head - await services.reads.position()))
    found = {depth.kind: depth for depth in await jobs.depths(services.reads, now=datetime.now(UTC))}
    for kind in kinds.KINDS:
        depth = found.get(kind)  # none: nothing to do, which is a figure too
        metrics.JOBS_WAITING.labels(kind=kind).set(depth.waiting if depth else 0)
        metrics.JOBS_RUNNING.labels(kind=kind).set(depth.running if depth else 0)
        metrics.JOBS_OLDEST_SECONDS.labels(kind=kind).set(depth.oldest_s if depth else 0)


async def _check(work: Awaitable[Check]) -> Check:
    """Whatever a part does, the answer comes in time and says nothing of its insides."""
    try:
        async with asyncio.timeout(CHECK_TIMEOUT_S):
            return await work
    except TimeoutError:
        return Check("failed", f"no answer within {CHECK_TIMEOUT_S:g} s")
    except (psycopg.Error, ObjectStoreError, OSError) as error:
        return Check("failed", type(error).__name__)
    except Rejection as rejection:
        return Check("failed", rejection.code)


async def _event_store(services: Services) -> Check:
    """Reads answer from a full disk, too: while appends fail, one that says nothing is tried."""
    head = await services.store.reader.head()
    if services.store.writer.failing:
        await services.store.append(Append(command_id=uuid7(), expectations=[], events=[], metadata=b"{}"))
    return Check("ok", f"position {head.position}")


async def _projector(services: Services) -> Check:
    """Ready if the read models reach the log's end soon, or at least move and are not far behind."""
    head = (await services.store.reader.head()).position
    before = await services.reads.position()
    try:
        await services.reads.wait_for(head, timeout_s=CATCH_UP_S)
    except NotYetProjected:
        position = await services.reads.position()
        moves = position > before and head - position <= LAG_EVENTS_MAX
        return Check("ok" if moves else "failed", f"lag {head - position}")
    return Check("ok", "lag 0")


async def _object_store(services: Services) -> Check:
    await services.objects.ready()
    return Check("ok")


async def _valkey(services: Services) -> Check:
    """A hint: without it jobs start a second later, and nothing else changes."""
    try:
        async with asyncio.timeout(CHECK_TIMEOUT_S / 2):
            await services.valkey.ping()
    except (RedisError, TimeoutError, OSError) as error:
        return Check("degraded", type(error).__name__)
    return Check("ok")
