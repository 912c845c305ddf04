"""Reports over HTTP: three formats of the same rows."""

import asyncio
import csv
import io
from datetime import UTC, datetime, timedelta
from uuid import UUID

import httpx
import psycopg
import pyarrow.parquet as pq  # type: ignore[import-untyped]  # it comes without types
import pytest
from tests.http.door import Door, complete, picture

from sightline.http import analytics as analytics_http
from sightline.projections import analytics
from sightline.projections.analytics import REPORTS

pytestmark = pytest.mark.asyncio(loop_scope="module")

PARQUET = "application/vnd.apache.parquet"


async def done_job(door: Door) -> httpx.Response:
    files = {"file": ("p.png", picture(), "image/png")}
    asset_id = (await door.client.post("/api/jobs/upload", files=files)).json()["file_id"]
    job = {"kind": "layer-photo-realistic", "inputs": [asset_id], "params": {"num_layers": 3}}
    made = await door.client.post("/v1/jobs", json=job)
    assert made.status_code == 201, made.text
    await complete(door, UUID(made.json()["id"]), {"layer.png": picture((8, 8))}, {})
    return made


async def test_every_report_in_every_format(door: Door) -> None:
    await done_job(door)
    await door.get("/v1/sessions", await door.client.post("/v1/sessions"))
    listed = (await door.client.get("/v1/analytics")).json()
    assert [one["name"] for one in listed] == list(REPORTS)
    for name in REPORTS:
        as_json = await door.client.get(f"/v1/analytics/{name}")
        assert as_json.status_code == 200, as_json.text
        assert as_json.headers["Content-Type"] == "application/json"
        assert int(as_json.headers["Event-Position"]) > 0
        items = as_json.json()["items"]
        as_csv = await door.client.get(f"/v1/analytics/{name}", headers={"Accept": "text/csv"})
        assert as_csv.headers["Content-Type"].startswith("text/csv")
        header, *lines = csv.reader(io.StringIO(as_csv.text, newline=""))
        as_parquet = await door.client.get(f"/v1/analytics/{name}", headers={"Accept": PARQUET})
        assert as_parquet.headers["Content-Type"] == PARQUET
        assert as_parquet.headers["Content-Disposition"] == f'attachment; filename="{name}.parquet"'
        table = pq.read_table(io.BytesIO(as_parquet.content))
        assert header == table.schema.names
        assert len(items) == len(lines) == table.num_rows
        assert all(list(item) == header for item in items)
        assert items, name


async def test_figures_of_a_day(door: Door) -> None:
    await done_job(door)
    await door.caught_up()
    today = datetime.now(UTC).date()

    async def count(**window: str) -> int:
        answer = await door.client.get("/v1/analytics/jobs", params=window)
        return sum(one["count"] for one in answer.json()["items"] if one["status"] == "completed")

    jobs = (await door.client.get("/v1/jobs?status=completed&limit=200")).json()["items"]
    assert await count() == len(jobs) > 0
    assert await count(**{"from": str(today), "to": str(today + timedelta(days=1))}) == len(jobs)
    assert await count(**{"from": f"{today}T12:00:00Z"}) == len(jobs)  # days that reach into the window
    assert await count(to=str(today)) == 0
    durations = (await door.client.get("/v1/analytics/durations")).json()["items"]
    assert [one["count"] for one in durations] == [len(jobs)]
    assert durations[0]["model_name"]
    assert (await door.client.get("/v1/analytics/durations", params={"to": str(today)})).json()["items"] == []
    active = (await door.client.get("/v1/analytics/model-activations")).json()["items"]
    assert {one["task"] for one in active} == {"depth", "inspect"}
    assert {(one["next_position"], one["valid_until"]) for one in active} == {(None, None)}


@pytest.mark.parametrize(
    ("query", "status", "code"),
    [
        ("jobs?from=yesterday", 422, "validation_failed"),
        ("jobs?from=2026-13-01", 422, "validation_failed"),
        ("jobs?to=2026-01-01T00:00:00", 422, "validation_failed"),
        ("jobs?format=xlsx", 422, "validation_failed"),
        ("jobs?from=%00", 400, "malformed_request"),
        ("nothing", 404, "not_found"),
    ],
)
async def test_what_cannot_be_answered(door: Door, query: str, status: int, code: str) -> None:
    answer = await door.client.get(f"/v1/analytics/{query}")
    assert (answer.status_code, answer.json()["code"]) == (status, code)


async def test_a_time_that_ends_before_it_begins_holds_nothing(door: Door) -> None:
    await door.client.post("/v1/jobs", json={"kind": "noop"})
    await door.caught_up()
    for name in ("job-rows", "jobs-history", "sessions-history", "models-history", "model-activations"):
        answer = await door.client.get(f"/v1/analytics/{name}?from=2099-01-01&to=0477-08-24")
        assert (answer.status_code, answer.json()["items"]) == (200, [])


async def test_a_zone_with_a_plus_that_nobody_escaped(door: Door) -> None:
    answer = await door.client.get("/v1/analytics/jobs?from=2026-01-01T00:00:00+02:00&format=csv")
    assert answer.status_code == 200


async def test_a_report_too_large_is_refused_whole(door: Door, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, limit in (("REPORT_BYTES_MAX", 10), ("REPORT_S_MAX", 0)):
        with monkeypatch.context() as patch:
            patch.setattr(analytics_http, name, limit)
            for kind in ("json", "csv", "parquet"):
                answer = await door.client.get(f"/v1/analytics/events?format={kind}")
                assert (answer.status_code, answer.json()["code"]) == (413, "report_too_large")
    assert (await door.client.get("/v1/analytics/events")).status_code == 200


async def test_a_statement_that_takes_too_long_is_refused(door: Door, monkeypatch: pytest.MonkeyPatch) -> None:
    slow = analytics.Report("slow", "SELECT pg_sleep(20)::text AS slept WHERE {since} < {until}")
    monkeypatch.setitem(REPORTS, "slow", slow)
    monkeypatch.setattr(analytics, "STATEMENT_TIMEOUT_S", 0.2)
    answer = await door.client.get("/v1/analytics/slow")
    assert (answer.status_code, answer.json()["code"]) == (413, "report_too_large")


async def test_reports_are_made_few_at_a_time(door: Door) -> None:
    with analytics_http.DESK.seat(), analytics_http.DESK.seat():
        answer = await door.client.get("/v1/analytics/jobs")
        assert (answer.status_code, answer.json()["code"]) == (503, "too_many_reports")
        assert answer.headers["Retry-After"] == "1"
    answers = await asyncio.gather(*(door.client.get("/v1/analytics/jobs") for _ in range(2)))
    assert [one.status_code for one in answers] == [200, 200]


async def test_no_snapshot_is_held_after_the_answer(door: Door) -> None:
    await door.client.get("/v1/analytics/events")
    async with await psycopg.AsyncConnection.connect(door.services.settings.database_url) as connection:
        cursor = await connection.execute(
            "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND pid <> pg_backend_pid()"
            " AND state LIKE 'idle in transaction%'"
        )
        assert await cursor.fetchone() == (0,)
