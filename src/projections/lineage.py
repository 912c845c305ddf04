"""What was made from what: one edge per material that went into or came out of a process.

Edges point the way the material went, so that descendants are found by following them and ancestors against them.
"""

from collections.abc import Iterable
from datetime import datetime
from typing import Any
from uuid import UUID

from msgspec import Struct
from psycopg import sql

from ..adapters.event_store.codec import Recorded
from ..domain import attempts, jobs, sessions
from .projection import EdgeModel, ReadModels

DEPTH_MAX = 20
EDGES_MAX = 10_000


class LineageEdge(Struct, frozen=True):
    """Attributes:
    relation: `used` (material into process), `generated` (process to material), `belongs_to`.
    """

    src: UUID
    src_kind: str
    dst: UUID
    dst_kind: str
    relation: str
    position: int
    at: datetime


def edges(event: Any, at: Recorded) -> Iterable[LineageEdge]:
    match event:
        case jobs.JobSubmitted(inputs=inputs, model_version_id=model_id, session_id=session_id):
            for asset_id in inputs:
                yield _edge(asset_id, "asset", at.stream_id, "job", "used", at)
            if model_id is not None:
                yield _edge(model_id, "model", at.stream_id, "job", "used", at)
            if session_id is not None:
                yield _edge(session_id, "session", at.stream_id, "job", "belongs_to", at)
        case jobs.JobCompleted(outputs=outputs):
            for output in outputs:
                artifact_id = attempts.artifact_id(at.stream_id, output.name)
                yield _edge(at.stream_id, "job", artifact_id, "artifact", "generated", at)
        case sessions.AssetAttached(asset_id=asset_id):
            yield _edge(asset_id, "asset", at.stream_id, "session", "belongs_to", at)


def _edge(src: UUID, src_kind: str, dst: UUID, dst_kind: str, relation: str, at: Recorded) -> LineageEdge:
    return LineageEdge(src, src_kind, dst, dst_kind, relation, at.id, at.recorded_at)


LINEAGE = EdgeModel("lineage_edges", 1, LineageEdge, ("src", "dst", "relation"), edges)

# One text per direction, so that each step is one look into the index of that direction.
_TRACE = sql.SQL(
    "WITH RECURSIVE reached (id, depth) AS ("
    "  SELECT %(root)s::uuid, 0"
    "  UNION"
    "  SELECT e.{to}, r.depth + 1 FROM reached AS r JOIN lineage_edges AS e ON e.{come} = r.id"
    "  WHERE r.depth < %(depth)s"
    ") SELECT to_json(e) FROM lineage_edges AS e"
    " WHERE e.{come} IN (SELECT id FROM reached WHERE depth < %(depth)s) LIMIT %(limit)s"
)
DESCENDANTS = _TRACE.format(come=sql.Identifier("src"), to=sql.Identifier("dst"))
ANCESTORS = _TRACE.format(come=sql.Identifier("dst"), to=sql.Identifier("src"))


async def trace(reads: ReadModels, root: UUID, *, forward: bool, depth: int) -> tuple[list[LineageEdge], int]:
    """Edges reached from `root` within `depth` steps (at most DEPTH_MAX), at most EDGES_MAX, and the position."""
    values = {"root": root, "depth": min(depth, DEPTH_MAX), "limit": EDGES_MAX}
    found = await reads.fetch(LineageEdge, DESCENDANTS if forward else ANCESTORS, values)
    return sorted(found.rows, key=lambda edge: edge.position), found.position
