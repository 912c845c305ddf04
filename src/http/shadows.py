"""Shadows at the door: run completed jobs again on a candidate, and read what all of it came to."""

from collections import Counter
from datetime import UTC, datetime, timedelta
from typing import Annotated, Any, ClassVar, Literal
from uuid import UUID

from litestar import Controller, Request, Response, get, post
from litestar.params import FromPath, FromQuery, JSONBody
from msgspec import Meta, Struct

from ..commands import shadows as commands
from ..domain import comparisons, models, shadows
from ..domain.comparisons import Tolerance
from ..domain.kernel import Aggregate, NotFound
from ..domain.shadows import SAMPLE_MAX, Result, Shadow
from ..projections import comparisons as comparison_projection
from ..projections import shadows as projection
from .auth import takes
from .comparisons import ToleranceAsked
from .manners import PAGE_ROWS_DEFAULT, After, Asks, Limit, Listing, Parts, Reads, decided, found, listed, shown
from .nouns import NounController
from .services import Services

WINDOW_DEFAULT = timedelta(days=7)
EPOCH = datetime(2000, 1, 8, tzinfo=UTC)  # a week before which is as early as may be asked for
SAMPLE_DEFAULT = 100
SEED_MAX = 2**53
KINDS_MAX = 20


class ShadowAsked(Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Jobs to be run again on a candidate.

    Attributes:
        kinds: of jobs; all that need the candidate's task, unless they are named.
        since: jobs completed from then on; a week ago, unless it is said.
        until: and before then; now, unless it is said.
        sample_max: at most so many of them.
        seed: any of them, the same ones for the same number; without it, the newest.
    """

    kinds: Annotated[tuple[Annotated[str, Meta(max_length=64)], ...], Meta(max_length=KINDS_MAX)] | None = None
    since: Annotated[datetime, Meta(tz=True)] | None = None
    until: Annotated[datetime, Meta(tz=True)] | None = None
    sample_max: Annotated[int, Meta(ge=1, le=SAMPLE_MAX)] = SAMPLE_DEFAULT
    seed: Annotated[int, Meta(ge=0, le=SEED_MAX)] | None = None
    tolerance: ToleranceAsked = ToleranceAsked()


class ShadowView(Struct, frozen=True, kw_only=True):
    """Jobs run again on a candidate, and what all of it came to.

    Attributes:
        total: how many jobs are run again.
        judged: how many of them are compared; the four figures after it are of these.
        latency_ratio_p50: seconds of computing on the candidate over those of before; null before the end.
        latency_ratio_p95: likewise.
        passed: nothing is different and nothing failed; null before the end.
        worst: failed ones first, then those farthest away.
    """

    id: UUID
    started_by: str
    model_version_id: UUID
    task: str
    kinds: list[str]
    since: datetime
    until: datetime
    tolerance: Tolerance
    status: Literal["running", "judged"]
    total: int
    judged: int
    identical: int
    equivalent: int
    different: int
    failed: int
    latency_ratio_p50: float | None
    latency_ratio_p95: float | None
    passed: bool | None
    worst: list[Result]
    created_at: datetime
    judged_at: datetime | None
    version: int


def _view(shadow_id: UUID, state: Shadow, version: int) -> ShadowView:
    assert state.started is not None
    started, judged = state.started, state.judged
    total = len(started.sample)
    figures: dict[str, Any] = dict.fromkeys(("identical", "equivalent", "different", "failed"), 0)
    figures |= dict.fromkeys(("latency_ratio_p50", "latency_ratio_p95"), None) | {"worst": []}
    return shown(
        ShadowView,
        started,
        **(figures if judged is None else {name: getattr(judged, name) for name in figures}),
        id=shadow_id,
        version=version,
        started_by=started.by,
        status="running" if judged is None else "judged",
        total=total,
        judged=0 if judged is None else total,
        passed=None if judged is None else not (judged.different or judged.failed),
        created_at=started.at,
        judged_at=judged.at if judged else None,
    )


def _view_of_row(row: projection.ShadowRow, counts: Counter[str] | None = None) -> ShadowView:
    """`counts` of verdicts so far, for one that is not judged."""
    if row.status == "judged":
        counts = Counter(identical=row.identical, equivalent=row.equivalent, different=row.different, failed=row.failed)
    counts = counts or Counter()
    return shown(
        ShadowView,
        row,
        id=row.shadow_id,
        total=len(row.sample),
        judged=counts.total(),
        identical=counts["identical"],
        equivalent=counts["equivalent"],
        different=counts["different"],
        failed=counts["failed"],
        passed=not (row.different or row.failed) if row.status == "judged" else None,
    )


class ShadowStartController(Controller):
    path = "/v1/models"
    opt = takes("models:activate")
    tags = ("comparisons",)

    @post("/{model_id:uuid}/shadow", summary="Run completed jobs again on a candidate", limit="jobs")
    async def shadow(
        self, services: Parts, caller: Asks, model_id: FromPath[UUID], data: JSONBody[ShadowAsked | None] = None
    ) -> Response[ShadowView]:
        """Which jobs those are is settled now. They run behind everybody else's, a few at a time, belong to
        `shadow:<model_id>`, and count against nobody's quota. A job that ran on the candidate for an earlier shadow
        does not run again.
        """
        command = await _asked(services, model_id, data or ShadowAsked(), caller.command_id, caller.now)
        receipt = await services.commands.execute(commands.start_shadow, command, caller)
        body = _view(receipt.stream_id, receipt.state, receipt.version)
        return decided(receipt, body, status_code=201, headers={"Location": f"/v1/shadows/{receipt.stream_id}"})


async def _asked(
    services: Services, model_id: UUID, asked: ShadowAsked, command_id: UUID, now: datetime
) -> commands.StartShadow:
    model, _, _ = await services.commands.state(models.AGGREGATE, model_id, read_tail=True)
    kinds = commands.kinds_of(model.task) if asked.kinds is None else asked.kinds
    until = asked.until or now
    since = asked.since or max(until, EPOCH) - WINDOW_DEFAULT
    shadows.require_window(since, until)
    sample = await projection.sample(
        services.reads,
        model_id=model_id,
        kinds=kinds,
        since=since,
        until=until,
        seed=asked.seed,
        limit=asked.sample_max,
    )
    return commands.StartShadow(
        shadow_id=shadows.shadow_id(command_id),
        model_id=model_id,
        kinds=kinds,
        since=since,
        until=until,
        sample=tuple(sample),
        tolerance=asked.tolerance.as_said(),
    )


class ShadowController(NounController):
    path = "/v1/shadows"
    opt = takes("analytics:read")
    tags = ("comparisons",)
    aggregate: ClassVar[Aggregate[Any]] = shadows.AGGREGATE

    @get("/", summary="Shadows, by id")
    async def page(
        self,
        request: Request[Any, Any, Any],
        reads: Reads,
        model_id: FromQuery[UUID | None] = None,
        after: After = None,
        limit: Limit = PAGE_ROWS_DEFAULT,
    ) -> Response[Listing[ShadowView]]:
        """One that is not judged yet shows no figures here."""
        page = await projection.page(reads, model_id=model_id, after=after, limit=limit)
        items = [_view_of_row(row) for row in page.rows]
        return listed(request, items, page.position, limit=limit, cursor=items[-1].id if items else None)

    @get("/{shadow_id:uuid}", summary="One shadow, and how far it is")
    async def one(self, reads: Reads, shadow_id: FromPath[UUID]) -> Response[ShadowView]:
        row, position = await reads.get(projection.SHADOWS, shadow_id)
        if row is None:
            raise NotFound("no such shadow")
        counts: Counter[str] = Counter()
        if row.status == "running":
            ids = [comparisons.shadow_comparison_id(row.model_version_id, of_job) for of_job in row.sample]
            for one in await comparison_projection.progress(reads, ids):
                counts[one.verdict or ""] += one.comparisons
            del counts[""]
        return found(_view_of_row(row, counts), position, version=row.version)
