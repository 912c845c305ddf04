"""Comparisons at the door: run a job again, and read how what came out lies to what came out before."""

from datetime import datetime
from typing import Annotated, Any, ClassVar, Literal
from uuid import UUID

from litestar import Controller, Request, Response, get, post
from litestar.params import FromPath, FromQuery, JSONBody
from msgspec import Meta, Struct

from ..commands import comparisons as commands
from ..commands.transact import Receipt
from ..domain import comparisons, jobs
from ..domain.comparisons import Comparison, Difference, Purpose, Ran, Tolerance, Verdict
from ..domain.kernel import Aggregate, NotFound, derived_id
from ..projections import comparisons as projection
from .auth import takes
from .manners import (
    PAGE_ROWS_DEFAULT,
    After,
    Asks,
    At,
    Limit,
    Listing,
    Owner,
    Parts,
    Reads,
    decided,
    found,
    listed,
    shown,
)
from .nouns import NounController, as_of

NUMBER_MAX = 1e9


class ToleranceAsked(Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """How far outputs may lie apart and still be equivalent.

    Attributes:
        number_max: between two numbers of JSON or of an array.
        channel_max: between two channels of a pixel, of 255.
        psnr_db_min: of a picture as a whole; where it is reached, single pixels may lie further apart.
    """

    number_max: Annotated[float, Meta(ge=0, le=NUMBER_MAX)] = Tolerance().number_max
    channel_max: Annotated[int, Meta(ge=0, le=comparisons.CHANNEL_MAX)] = Tolerance().channel_max
    psnr_db_min: Annotated[float, Meta(ge=0, le=NUMBER_MAX)] = Tolerance().psnr_db_min

    def as_said(self) -> Tolerance:
        """As the domain takes it."""
        return shown(Tolerance, self)


class RerunAsked(Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """A job, again."""

    tolerance: ToleranceAsked = ToleranceAsked()


class ComparisonView(Struct, frozen=True, kw_only=True):
    """A job's outputs beside those of a second run.

    Attributes:
        rerun_job: the second run; null where the job could not be submitted again.
        verdict: null until the second run is over: the worst of what any output comes to.
        reason: of a failed one.
        differences: each output of either run, and what the manifests say.
        first, second: what made the outputs of each run.
    """

    id: UUID
    owner: str
    purpose: Purpose
    status: Literal["running", "judged"]
    of_job: UUID
    rerun_job: UUID | None
    model_version_id: UUID | None
    tolerance: Tolerance
    verdict: Verdict | None
    reason: str
    differences: list[Difference]
    first: Ran | None
    second: Ran | None
    created_at: datetime
    judged_at: datetime | None
    version: int


def _view(comparison_id: UUID, state: Comparison, version: int) -> ComparisonView:
    assert state.started is not None
    started, judged = state.started, state.judged
    return shown(
        ComparisonView,
        started,
        id=comparison_id,
        version=version,
        status="running" if judged is None else "judged",
        verdict=judged.verdict if judged else None,
        reason=judged.reason if judged else "",
        differences=judged.differences if judged else [],
        first=judged.first if judged else None,
        second=judged.second if judged else None,
        created_at=started.at,
        judged_at=judged.at if judged else None,
    )


def _view_of_row(row: projection.ComparisonRow) -> ComparisonView:
    return shown(ComparisonView, row, id=row.comparison_id)


def _answer(receipt: Receipt[Comparison]) -> Response[ComparisonView]:
    body = _view(receipt.stream_id, receipt.state, receipt.version)
    return decided(receipt, body, status_code=201, headers={"Location": f"/v1/comparisons/{receipt.stream_id}"})


class ComparisonController(NounController):
    path = "/v1/comparisons"
    opt = takes("jobs:read", owned=comparisons.AGGREGATE)
    tags = ("comparisons",)
    aggregate: ClassVar[Aggregate[Any]] = comparisons.AGGREGATE

    @get("/", summary="Comparisons, by id")
    async def page(
        self,
        request: Request[Any, Any, Any],
        reads: Reads,
        owner: Owner,
        verdict: FromQuery[Verdict | None] = None,
        after: After = None,
        limit: Limit = PAGE_ROWS_DEFAULT,
    ) -> Response[Listing[ComparisonView]]:
        page = await projection.page(reads, owner=owner, verdict=verdict, after=after, limit=limit)
        items = [_view_of_row(row) for row in page.rows]
        return listed(request, items, page.position, limit=limit, cursor=items[-1].id if items else None)

    @get("/{comparison_id:uuid}", summary="One comparison, now or then")
    async def one(
        self, services: Parts, reads: Reads, comparison_id: FromPath[UUID], at: At = None
    ) -> Response[ComparisonView]:
        if at is not None:
            then = await as_of(services, comparisons.AGGREGATE, comparison_id, at)
            return found(_view(comparison_id, then.state, then.version), then.position, version=then.version)
        row, position = await reads.get(projection.COMPARISONS, comparison_id)
        if row is None:
            raise NotFound("no such comparison")
        return found(_view_of_row(row), position, version=row.version)


class RerunController(Controller):
    """What a job can be asked about its second runs."""

    path = "/v1/jobs"
    opt = takes("jobs:read", owned=jobs.AGGREGATE)
    tags = ("comparisons",)

    @post("/{job_id:uuid}/rerun", summary="Run a completed job again", access="jobs:write", limit="jobs")
    async def rerun(
        self, services: Parts, caller: Asks, job_id: FromPath[UUID], data: JSONBody[RerunAsked | None] = None
    ) -> Response[ComparisonView]:
        """On the model version that it was pinned to, with its inputs and parameters. The second run is a job like any
        other; once it is over, its outputs are compared with those of the first.
        """
        command = commands.StartComparison(
            comparison_id=derived_id("comparison", caller.command_id),
            of_job=job_id,
            tolerance=(data or RerunAsked()).tolerance.as_said(),
            pending_max=services.settings.jobs_pending_max,
        )
        return _answer(await services.commands.execute(commands.start_comparison, command, caller))

    @get("/{job_id:uuid}/comparisons", summary="A job's comparisons")
    async def comparisons(
        self,
        request: Request[Any, Any, Any],
        reads: Reads,
        owner: Owner,
        job_id: FromPath[UUID],
        after: After = None,
        limit: Limit = PAGE_ROWS_DEFAULT,
    ) -> Response[Listing[ComparisonView]]:
        """Those of them that the caller may see."""
        page = await projection.page(reads, owner=owner, of_job=job_id, after=after, limit=limit)
        items = [_view_of_row(row) for row in page.rows]
        return listed(request, items, page.position, limit=limit, cursor=items[-1].id if items else None)
