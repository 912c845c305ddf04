"""Dead letters at the door: jobs whose attempts are used up, and many of them requeued at once."""

from datetime import datetime
from typing import Annotated, Any
from uuid import UUID

from litestar import Controller, Request, Response, get, post
from litestar.params import FromQuery, JSONBody, QueryParameter
from msgspec import Meta, Struct

from ..commands.dead_letters import Requeued, requeue_all
from ..domain.attempts import CODE_CHARS_MAX
from ..projections import dead_letters as projection
from ..projections.dead_letters import CodeCount, Wanted
from .auth import takes
from .jobs import JobView, view_of_row
from .login import unkeyed
from .manners import PAGE_ROWS_DEFAULT, After, Limit, Owner, Parts, Reads, found, listed
from .moments import TIME, moment_of

REQUEUED_MAX = 10_000
SAMPLE_ROWS = 10
OWNER_CHARS_MAX = 200


class DeadLetters(Struct, frozen=True):
    """One page. `next` is the cursor to pass as `after`; null at the end.

    Attributes:
        counts: of all that fit the filters, by code.
    """

    items: list[JobView]
    next: str | None
    counts: list[CodeCount]


class RequeueAsked(Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Which dead letters; null, or nothing said: any.

    Attributes:
        code: of the error that the last attempt ended with.
        since, until: when it ended: from then on, and before then.
        preview: only tell which would be requeued.
        limit: how many, the oldest ids first; ask again for the rest.
    """

    kind: Annotated[str, Meta(min_length=1, max_length=64)] | None = None
    code: Annotated[str, Meta(max_length=CODE_CHARS_MAX)] | None = None
    batch_id: UUID | None = None
    owner: Annotated[str, Meta(min_length=1, max_length=OWNER_CHARS_MAX)] | None = None
    since: Annotated[datetime, Meta(tz=True)] | None = None
    until: Annotated[datetime, Meta(tz=True)] | None = None
    preview: bool = False
    limit: Annotated[int, Meta(ge=1, le=REQUEUED_MAX)] = REQUEUED_MAX


class RequeueSaid(Struct, frozen=True, kw_only=True):
    """What became of them.

    Attributes:
        matching: that fitted the filters when this was asked, however many `limit` took.
        requeued: that wait again.
        skipped: that do not: they were requeued or deleted meanwhile, or another job has their unique key.
        reasons: of those, by code.
        counts: of the matching, by the error's code.
        sample: the first of them.
    """

    preview: bool
    matching: int
    requeued: int
    skipped: int
    reasons: dict[str, int]
    counts: list[CodeCount]
    sample: list[JobView]


class DeadLetterController(Controller):
    path = "/v1/dead-letters"
    opt = takes("jobs:read")
    tags = ("jobs",)

    @get("/", summary="Jobs whose attempts are used up, oldest first, and how many by code")
    async def page(
        self,
        request: Request[Any, Any, Any],
        reads: Reads,
        owner: Owner,
        kind: Annotated[str | None, QueryParameter(max_length=64)] = None,
        code: Annotated[str | None, QueryParameter(max_length=CODE_CHARS_MAX)] = None,
        batch_id: FromQuery[UUID | None] = None,
        since: Annotated[
            str | None,
            QueryParameter(name="from", max_length=40, description="Ended then or later.", schema_extra=TIME),
        ] = None,
        until: Annotated[
            str | None, QueryParameter(name="to", max_length=40, description="Ended before.", schema_extra=TIME)
        ] = None,
        after: After = None,
        limit: Limit = PAGE_ROWS_DEFAULT,
    ) -> Response[DeadLetters]:
        wanted = Wanted(
            owner=owner,
            kind=kind,
            code=code,
            batch_id=batch_id,
            since=None if since is None else moment_of("from", since),
            until=None if until is None else moment_of("to", until),
        )
        page = await projection.page(reads, wanted, after=after, limit=limit)
        items = [view_of_row(row) for row in page.rows]
        answer = listed(request, items, page.position, limit=limit, cursor=items[-1].id if items else None)
        body = DeadLetters(items, answer.content.next, await projection.counts(reads, wanted))
        return Response(body, headers=answer.headers)

    @post("/requeue", status_code=200, summary="Give many dead letters new attempts", access="jobs:requeue")
    async def requeue(
        self, request: Request[Any, Any, Any], services: Parts, reads: Reads, data: JSONBody[RequeueAsked]
    ) -> Response[RequeueSaid]:
        """Each by a command of its own, whose id follows from the letter: none twice, whoever repeats this. With
        `preview` nothing happens. Takes no Idempotency-Key, for it needs none.
        """
        caller = unkeyed(request, services)
        wanted = Wanted(
            owner=data.owner,
            kind=data.kind,
            code=data.code,
            batch_id=data.batch_id,
            since=data.since,
            until=data.until,
        )
        counts = await projection.counts(reads, wanted)
        sample = await projection.page(reads, wanted, after=None, limit=SAMPLE_ROWS)
        done = Requeued(0, {}, 0)
        if not data.preview:
            letters = await projection.letters(reads, wanted, limit=data.limit)
            done = await requeue_all(services.commands, [(one.job_id, one.attempt) for one in letters.rows], caller)
        said = RequeueSaid(
            preview=data.preview,
            matching=sum(one.jobs for one in counts),
            requeued=done.requeued,
            skipped=sum(done.skipped.values()),
            reasons=done.skipped,
            counts=counts,
            sample=[view_of_row(row) for row in sample.rows],
        )
        return found(said, max(sample.position, done.position))
