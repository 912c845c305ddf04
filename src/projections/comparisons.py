"""Comparisons as readers see them, and what whoever judges them asks."""

from collections.abc import Sequence
from datetime import datetime
from typing import Any
from uuid import UUID

from msgspec import Struct, field
from msgspec.structs import replace
from psycopg import sql

from ..adapters.event_store.codec import Recorded
from ..domain import comparisons
from ..domain.comparisons import Difference, Ran, Tolerance
from .projection import Page, ReadModel, ReadModels


class ComparisonRow(Struct, frozen=True):
    """Attributes:
    status: running, or judged.
    differences: of every output, once judged.
    """

    comparison_id: UUID
    owner: str
    purpose: str
    status: str
    of_job: UUID
    rerun_job: UUID | None
    model_version_id: UUID | None
    tolerance: Tolerance
    created_at: datetime
    updated_at: datetime
    version: int
    position: int
    verdict: str | None = None
    reason: str = ""
    differences: list[Difference] = field(default_factory=list)
    first: Ran | None = None
    second: Ran | None = None
    judged_at: datetime | None = None


def apply(row: ComparisonRow | None, event: Any, at: Recorded) -> ComparisonRow:
    if isinstance(event, comparisons.ComparisonStarted):
        return ComparisonRow(
            comparison_id=at.stream_id,
            owner=event.owner,
            purpose=event.purpose,
            status="running",
            of_job=event.of_job,
            rerun_job=event.rerun_job,
            model_version_id=event.model_version_id,
            tolerance=event.tolerance,
            created_at=event.at,
            updated_at=event.at,
            version=at.originator_version,
            position=at.id,
        )
    assert row is not None, "a comparison begins with ComparisonStarted"
    return replace(
        row,
        status="judged",
        verdict=event.verdict,
        reason=event.reason,
        differences=list(event.differences),
        first=event.first,
        second=event.second,
        judged_at=event.at,
        updated_at=event.at,
        version=at.originator_version,
        position=at.id,
    )


COMPARISONS = ReadModel("comparisons", 1, frozenset({"comparison"}), ComparisonRow, apply)


class Due(Struct, frozen=True):
    """A comparison that can be judged; `position` is that of its last event."""

    comparison_id: UUID
    position: int


class State(Struct, frozen=True):
    """How far a comparison is."""

    comparison_id: UUID
    status: str


class Progress(Struct, frozen=True):
    """How many comparisons of a sample are in a state."""

    status: str
    verdict: str | None
    comparisons: int


PAGE = sql.SQL(
    "SELECT to_json(c) FROM comparisons AS c WHERE (%(owner)s::text IS NULL OR owner = %(owner)s)"
    " AND (%(of_job)s::uuid IS NULL OR of_job = %(of_job)s)"
    " AND (%(verdict)s::text IS NULL OR verdict = %(verdict)s)"
    " AND (%(after)s::uuid IS NULL OR comparison_id > %(after)s) ORDER BY comparison_id LIMIT %(limit)s"
)
# Of those that run, the ones whose second job is over.
DUE = sql.SQL(
    "SELECT json_build_object('comparison_id', c.comparison_id, 'position', c.position)"
    " FROM comparisons AS c JOIN jobs AS j ON j.job_id = c.rerun_job WHERE c.status = 'running'"
    " AND j.status IN ('completed', 'failed', 'cancelled', 'expired', 'deleted')"
    " AND c.comparison_id <> ALL (%(resting)s::uuid[]) ORDER BY j.finished_at LIMIT %(limit)s"
)
STATES = sql.SQL(
    "SELECT json_build_object('comparison_id', comparison_id, 'status', status) FROM comparisons"
    " WHERE comparison_id = ANY (%(ids)s::uuid[])"
)
OF_IDS = sql.SQL("SELECT to_json(c) FROM comparisons AS c WHERE comparison_id = ANY (%(ids)s::uuid[])")
PROGRESS = sql.SQL(
    "SELECT json_build_object('status', status, 'verdict', verdict, 'comparisons', count(*)) FROM comparisons"
    " WHERE comparison_id = ANY (%(ids)s::uuid[]) GROUP BY status, verdict"
)


async def page(
    reads: ReadModels,
    *,
    owner: str | None = None,
    of_job: UUID | None = None,
    verdict: str | None = None,
    after: UUID | None,
    limit: int,
) -> Page[ComparisonRow]:
    """Comparisons that fit the filters, by id, past `after`; at most `limit` rows."""
    values = {"owner": owner, "of_job": of_job, "verdict": verdict, "after": after, "limit": limit}
    return await reads.fetch(ComparisonRow, PAGE, values)


async def due(reads: ReadModels, *, resting: Sequence[UUID] = (), limit: int) -> list[Due]:
    """Comparisons that can be judged, their second job being over; those that are `resting` aside."""
    return (await reads.fetch(Due, DUE, {"resting": list(resting), "limit": limit})).rows


async def states(reads: ReadModels, ids: Sequence[UUID]) -> dict[UUID, str]:
    """The status of those of `ids` that were started."""
    return {row.comparison_id: row.status for row in (await reads.fetch(State, STATES, {"ids": list(ids)})).rows}


async def of_ids(reads: ReadModels, ids: Sequence[UUID]) -> list[ComparisonRow]:
    """Those of `ids` that were started."""
    return (await reads.fetch(ComparisonRow, OF_IDS, {"ids": list(ids)})).rows


async def progress(reads: ReadModels, ids: Sequence[UUID]) -> list[Progress]:
    """How far those of `ids` are that were started."""
    return (await reads.fetch(Progress, PROGRESS, {"ids": list(ids)})).rows
