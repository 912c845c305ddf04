"""Rows into tables and back: whatever a text may hold comes out as it went in."""

from datetime import UTC, datetime
from uuid import UUID

import psycopg
import pytest
from tests.conftest_log import LogDatabase

from sightline.adapters import postgres
from sightline.adapters.event_store.codec import Recorded
from sightline.adapters.ids import uuid7
from sightline.domain.jobs import Artifact
from sightline.projections import tables
from sightline.projections.canonical import canonical_row
from sightline.projections.jobs import JOBS, JobRow
from sightline.projections.lineage import LINEAGE, LineageEdge

NOON = datetime(2026, 1, 1, 12, tzinfo=UTC)
TEXTS = (
    *("", "null", "NULL", "\\N", "\\.", "[", "]", ",", '"', '""', "\\", '\\"', "\\\\n", "a\nb", "a\r\nb", "a\tb"),
    *("\x01\x1f\x7f", "\u2028\u2029", "é😀", "{}", "{a,b}", " spaces ", "'", '{"a": "\\n"}', "x" * 3000),
)


def row(text: str, *, inputs: int = 0) -> JobRow:
    return JobRow(
        job_id=uuid7(),
        kind=text,
        owner=text,
        status="pending",
        priority=5,
        inputs=[uuid7() for _ in range(inputs)],
        params={text: [text, None, True, -1.5, {"deep": text}], "x": 1e300},
        timeout_s=1,
        attempts_max=1,
        created_at=NOON,
        updated_at=NOON,
        version=1,
        position=1,
        session_id=uuid7() if inputs else None,
        worker=text,
        message=text,
        outputs=[Artifact(name=text, object_key=text, sha256=text, size_bytes=1, content_type=text)] * inputs,
        error_code=text,
    )


async def loaded(connection: psycopg.AsyncConnection, keys: list[UUID]) -> dict[UUID, bytes]:
    found = await tables.load(connection, JOBS, JOBS.table, keys)
    return {key: canonical_row(one) for key, one in found.items()}


@pytest.mark.parametrize("text", TEXTS)
async def test_a_text_comes_out_as_it_went_in(log_database: LogDatabase, text: str) -> None:
    rows = [row(text, inputs=number) for number in range(3)]
    keys = [one.job_id for one in rows]
    async with await postgres.connect(log_database.dsn) as connection:
        await tables.insert(connection, JOBS, JOBS.table, rows)
        assert await loaded(connection, keys) == {one.job_id: canonical_row(one) for one in rows}
        for one in rows:
            at = Recorded(one.job_id, 1, "job.submitted", b"", 1, b"", NOON.replace(microsecond=123456))
            async with tables.copying_history(connection, JOBS, JOBS.history_table) as copy:
                await copy.write(tables.history_line(one, at, one.job_id))
            cursor = await connection.execute(
                "SELECT position, at, row ->> 'message', row #>> '{outputs,0,name}' FROM jobs_history"
                " WHERE job_id = %s",
                (one.job_id,),
            )
            name = text if one.outputs else None
            assert await cursor.fetchall() == [(1, at.recorded_at, text, name)]


async def test_rows_are_replaced_and_edges_only_added(log_database: LogDatabase) -> None:
    first, second = row("a"), row("b")
    async with await postgres.connect(log_database.dsn) as connection:
        await tables.replace(connection, JOBS, JOBS.table, [first], [first.job_id])
        await tables.replace(connection, JOBS, JOBS.table, [second], [first.job_id, second.job_id])
        found = await loaded(connection, [first.job_id, second.job_id])
        assert found == {second.job_id: canonical_row(second)}
        edges = [LineageEdge(UUID(int=1), "asset", UUID(int=2), "job", "used", n, NOON) for n in (1, 2)]
        for edge in edges:
            await tables.add(connection, LINEAGE, LINEAGE.table, [edge])
        cursor = await connection.execute("SELECT position FROM lineage_edges")
        assert await cursor.fetchall() == [(1,)]
