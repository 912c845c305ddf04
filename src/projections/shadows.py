"""Shadows as readers see them, what whoever judges them asks, and which jobs one may take."""

from collections.abc import Sequence
from datetime import datetime
from typing import Any
from uuid import UUID

from msgspec import Struct, field
from msgspec.structs import replace
from psycopg import sql

from ..adapters.event_store.codec import Recorded
from ..domain import shadows
from ..domain.comparisons import Tolerance
from ..domain.shadows import Result
from .projection import Page, ReadModel, ReadModels


class ShadowRow(Struct, frozen=True):
    """Attributes:
    status: running, or judged; the figures are those of the verdict.
    sample: the jobs that are run again.
    """

    shadow_id: UUID
    started_by: str
    model_version_id: UUID
    task: str
    kinds: list[str]
    since: datetime
    until: datetime
    sample: list[UUID]
    tolerance: Tolerance
    status: str
    created_at: datetime
    updated_at: datetime
    version: int
    position: int
    total: int = 0
    identical: int = 0
    equivalent: int = 0
    different: int = 0
    failed: int = 0
    latency_ratio_p50: float | None = None
    latency_ratio_p95: float | None = None
    worst: list[Result] = field(default_factory=list)
    judged_at: datetime | None = None


def apply(row: ShadowRow | None, event: Any, at: Recorded) -> ShadowRow:
    if isinstance(event, shadows.ShadowStarted):
        return ShadowRow(
            shadow_id=at.stream_id,
            started_by=event.by,
            model_version_id=event.model_version_id,
            task=event.task,
            kinds=list(event.kinds),
            since=event.since,
            until=event.until,
            sample=list(event.sample),
            tolerance=event.tolerance,
            status="running",
            created_at=event.at,
            updated_at=event.at,
            version=at.originator_version,
            position=at.id,
        )
    assert row is not None, "a shadow begins with ShadowStarted"
    return replace(
        row,
        status="judged",
        total=event.total,
        identical=event.identical,
        equivalent=event.equivalent,
        different=event.different,
        failed=event.failed,
        latency_ratio_p50=event.latency_ratio_p50,
        latency_ratio_p95=event.latency_ratio_p95,
        worst=list(event.worst),
        judged_at=event.at,
        updated_at=event.at,
        version=at.originator_version,
        position=at.id,
    )


SHADOWS = ReadModel("shadows", 1, frozenset({"shadow"}), ShadowRow, apply)


class Candidate(Struct, frozen=True):
    """A job that may be run again."""

    job_id: UUID


PAGE = sql.SQL(
    "SELECT to_json(s) FROM shadows AS s"
    " WHERE (%(model_id)s::uuid IS NULL OR model_version_id = %(model_id)s)"
    " AND (%(after)s::uuid IS NULL OR shadow_id > %(after)s) ORDER BY shadow_id LIMIT %(limit)s"
)
RUNNING = sql.SQL(
    "SELECT to_json(s) FROM shadows AS s WHERE status = 'running'"
    " AND shadow_id <> ALL (%(resting)s::uuid[]) ORDER BY created_at LIMIT %(limit)s"
)
LAST_OF_MODELS = sql.SQL(
    "SELECT to_json(s) FROM (SELECT DISTINCT ON (model_version_id) * FROM shadows"
    " WHERE model_version_id = ANY (%(ids)s::uuid[]) AND status = 'judged'"
    " ORDER BY model_version_id, position DESC) AS s"
)
# Real work alone: neither what a shadow had done, nor what ran on the candidate already. By md5 of id and seed the
# same sample comes again, whatever was completed since outside of the time.
SAMPLE = sql.SQL(
    "SELECT json_build_object('job_id', job_id) FROM jobs WHERE status = 'completed' AND kind = ANY (%(kinds)s)"
    " AND finished_at >= %(since)s AND finished_at < %(until)s AND NOT starts_with(owner, %(shadow)s)"
    " AND model_version_id IS DISTINCT FROM %(model_id)s"
    " ORDER BY CASE WHEN %(seed)s::bigint IS NOT NULL THEN md5(job_id::text || %(seed)s::bigint) END,"
    " finished_at DESC, job_id LIMIT %(limit)s"
)


async def page(reads: ReadModels, *, model_id: UUID | None = None, after: UUID | None, limit: int) -> Page[ShadowRow]:
    """Shadows, of one version or of all, by id, past `after`; at most `limit` rows."""
    return await reads.fetch(ShadowRow, PAGE, {"model_id": model_id, "after": after, "limit": limit})


async def running(reads: ReadModels, *, resting: Sequence[UUID] = (), limit: int) -> list[ShadowRow]:
    """Shadows that are not judged yet, oldest first; those that are `resting` aside."""
    return (await reads.fetch(ShadowRow, RUNNING, {"resting": list(resting), "limit": limit})).rows


async def last_of_models(reads: ReadModels, model_ids: Sequence[UUID]) -> dict[UUID, ShadowRow]:
    """The last shadow that was judged of each of these versions."""
    found = await reads.fetch(ShadowRow, LAST_OF_MODELS, {"ids": list(model_ids)})
    return {row.model_version_id: row for row in found.rows}


async def sample(
    reads: ReadModels,
    *,
    model_id: UUID,
    kinds: Sequence[str],
    since: datetime,
    until: datetime,
    seed: int | None,
    limit: int,
) -> list[UUID]:
    """Jobs of `kinds` completed from `since` until `until` on another version: the newest, or by `seed` any."""
    values = {"kinds": list(kinds), "since": since, "until": until, "model_id": model_id, "seed": seed}
    values |= {"limit": limit, "shadow": shadows.OWNER_PREFIX}
    return [row.job_id for row in (await reads.fetch(Candidate, SAMPLE, values)).rows]
