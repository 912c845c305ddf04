"""Jobs as server-sent events: what is told, and that whoever comes back misses nothing and sees nothing twice."""

import asyncio
import random
from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta
from uuid import UUID

import pytest
import pytest_asyncio
from tests.conftest_service import by
from tests.http.door import Door
from tests.http.live_clients import listening, port_of, served, submitted

from sightline.adapters.ids import uuid7
from sightline.commands import attempts, jobs
from sightline.domain.jobs import Provenance
from sightline.http import connections, feed, live
from sightline.http.feed import Feed
from sightline.http.frames import Asked, Frame
from sightline.http.server import Server

pytestmark = pytest.mark.asyncio(loop_scope="module")

WORKER = "worker:live"


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def server(door: Door) -> AsyncIterator[Server]:
    async with served(door.services) as server:
        yield server


@pytest.fixture
def port(server: Server) -> int:
    return port_of(server)


async def submit(door: Door, *, actor: str = "local") -> UUID:
    wanted = jobs.SubmitJob(job_id=uuid7(), kind="noop", pending_max=100_000)
    return (await door.services.commands.execute(jobs.submit_job, wanted, by(actor))).stream_id


async def start(door: Door, job_id: UUID) -> None:
    command = attempts.StartJob(job_id=job_id, worker=WORKER, lease_until=datetime.now(UTC) + timedelta(seconds=60))
    await door.services.commands.execute(attempts.start_job, command, by(WORKER))


async def progress(door: Door, job_id: UUID, percent: int) -> None:
    command = attempts.ReportProgress(job_id=job_id, attempt=1, worker=WORKER, percent=percent, message="")
    await door.services.commands.execute(attempts.report_progress, command, by(WORKER))


async def complete(door: Door, job_id: UUID) -> None:
    command = attempts.CompleteJob(
        job_id=job_id, attempt=1, worker=WORKER, outputs=(), manifest={}, timings={}, receipt=Provenance()
    )
    await door.services.commands.execute(attempts.complete_job, command, by(WORKER))


async def test_one_job_from_its_state_to_its_end(door: Door, port: int) -> None:
    job_id = await submit(door)
    async with listening(port, f"/v1/jobs/{job_id}/events") as stream:
        assert stream.status == 200
        assert stream.headers["content-type"] == "text/event-stream"
        assert stream.headers["cache-control"] == "no-store"
        [snapshot] = await stream.until("snapshot")
        await start(door, job_id)
        await progress(door, job_id, 40)
        await complete(door, job_id)
        told = await stream.rest()
    assert snapshot.data["job"] == {"kind": "noop", "status": "pending", "attempt": 0, "progress": 0}
    assert snapshot.data["stream_id"] == str(job_id)
    assert [one.name for one in told] == ["job.started", "job.progressed", "job.completed", "end"]
    assert told[0].data["job"] == {"kind": "noop", "status": "processing", "attempt": 1, "progress": 0}
    assert told[1].data["job"] == {"kind": "noop", "attempt": 1, "progress": 40}
    assert told[2].data["job"] == {"kind": "noop", "status": "completed", "attempt": 1, "progress": 100}
    assert told[3].data == {"reason": "completed"}
    assert [one.position for one in told[:3]] == [one.data["position"] for one in told[:3]]
    assert 1_000 <= stream.retry_ms <= 3_000


async def test_whoever_comes_back_goes_on_after_what_he_saw(door: Door, port: int) -> None:
    job_id = await submit(door)
    path = f"/v1/jobs/{job_id}/events"
    async with listening(port, path) as stream:
        await stream.until("snapshot")
        await start(door, job_id)
        await stream.until("job.started")
        seen = stream.last_id
    await progress(door, job_id, 10)
    await complete(door, job_id)
    async with listening(port, path, {"Last-Event-ID": seen}) as stream:
        told = await stream.rest()
    assert [one.name for one in told] == ["job.progressed", "job.completed", "end"]
    async with listening(port, f"{path}?after={seen}") as stream:
        assert [one.name for one in await stream.rest()] == [one.name for one in told]
    async with listening(port, path, {"Last-Event-ID": told[-1].id}) as stream:
        assert stream.status == 204, "there is no more to come, at which EventSource stops asking"
    async with listening(port, path) as stream:
        [snapshot, end] = await stream.rest()
    assert (snapshot.data["job"]["status"], end.data) == ("completed", {"reason": "completed"})


async def test_an_id_comes_before_anything_happens(door: Door, port: int) -> None:
    """Or whoever is cut off before the first event would begin anew, and miss what came meanwhile."""
    async with listening(port, "/v1/stream") as stream:
        await submitted(door.services, 1)
        await stream.until("job.submitted")
    async with listening(port, "/v1/stream") as stream:
        async with asyncio.timeout(60):
            while not stream.last_id:
                stream._text += await stream._chunk()
                block, _, stream._text = stream._text.partition(b"\n\n")
                stream._event(block.decode())
        seen = stream.last_id
    [job_id] = await submitted(door.services, 1)
    async with listening(port, "/v1/stream", {"Last-Event-ID": seen}) as stream:
        [event] = await stream.until("job.submitted")
    assert event.data["stream_id"] == str(job_id)


async def test_a_sign_of_life_moves_the_id_on(door: Door, port: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(live, "HEARTBEAT_S", 0.05)
    async with listening(port, "/v1/stream?kind=embed") as stream:
        await submitted(door.services, 3)
        position = await door.position()
        async with asyncio.timeout(60):
            while stream.last_id.partition("@")[0] != str(position):
                stream._text += await stream._chunk()
                block, found, rest = stream._text.partition(b"\n\n")
                if found:
                    stream._text = rest
                    assert stream._event(block.decode()) is None
        assert stream.beats


# Nothing is missed and nothing comes twice.

EVENTS = 2_000


async def _positions(door: Door, after: int) -> list[int]:
    """Of the events of jobs that the log has past a position."""
    found: list[int] = []
    while page := await door.services.store.reader.page(after=after):
        found += [one.position for one in page if one.topic.startswith("job.")]
        after = page[-1].position
    return found


async def _broken_off(door: Door, port: int, *, resumes: bool) -> tuple[list[int], list[int], int]:
    """Listen, through connections that end at random, while jobs are submitted: what was seen, and what there was."""
    chance = random.Random(5)
    began = await door.position()
    appending = asyncio.create_task(submitted(door.services, EVENTS))
    seen: list[int] = []
    headers = {"Last-Event-ID": str(began)}
    connects = 0
    async with asyncio.timeout(120):
        while not appending.done() or (len(seen) < EVENTS if resumes else connects < 2):
            async with listening(port, "/v1/stream?kind=noop", headers if resumes or not connects else {}) as stream:
                connects += 1
                for _ in range(chance.randrange(1, 120)):
                    if appending.done() and len(seen) >= EVENTS:
                        break
                    try:
                        async with asyncio.timeout(0.5):
                            event = await stream.next()
                    except TimeoutError:
                        break
                    if event is None:
                        break
                    seen.append(event.position)
                headers = {"Last-Event-ID": stream.last_id}
            if not resumes:
                await submitted(door.services, 1)  # while nobody listens
    await appending
    return seen, await _positions(door, began), connects


async def test_a_client_that_is_cut_off_again_and_again_misses_nothing(door: Door, port: int) -> None:
    seen, there, connects = await _broken_off(door, port, resumes=True)
    assert seen == there
    assert len(there) == EVENTS
    assert connects > 10


async def test_one_that_forgets_where_it_was_does(door: Door, port: int) -> None:
    """The control."""
    seen, there, _ = await _broken_off(door, port, resumes=False)
    assert set(seen) < set(there)


@pytest.mark.parametrize("falls_back", [True, False])
async def test_whoever_falls_behind_the_ring_reads_on_from_the_log(
    door: Door, port: int, monkeypatch: pytest.MonkeyPatch, falls_back: bool
) -> None:
    """Without the log, the control, what left the ring is lost."""
    services = door.services
    few = Feed(services.store, services.settings.database_url, streams_max=10, frames_max=64)
    listener = few.join("sse", None)
    begun = await live.begin(services, Asked(kind="noop"), None)
    subscription = live.subscribe(few, listener, Asked(kind="noop"), begun)
    try:
        async with asyncio.timeout(60):
            while few._epoch is None or await few.read(subscription) is not None:
                await listener.rest(0.1)
            ids = await submitted(services, 300)
            while few._head < begun.cursor + 300:  # noqa: ASYNC110  # nothing tells
                await asyncio.sleep(0.01)
        assert few._ring.floor > begun.cursor, "it was overrun"
        if not falls_back:
            monkeypatch.setattr(few._ring, "floor", 0)
        seen: list[UUID] = []
        while (frames := await few.read(subscription)) is not None:
            seen += [one.job_id for one in frames]
        assert (seen == ids) == falls_back
        assert not set(seen) - set(ids)
        assert len(seen) == len(set(seen))
    finally:
        few.leave(listener)
        await few.close()


async def _listeners(door: Door, count: int) -> None:
    async with asyncio.timeout(60):
        while len(door.services.feed) != count:  # noqa: ASYNC110  # nothing tells
            await asyncio.sleep(0.01)


@pytest.mark.parametrize("stalled_s", [1.0, 600.0])
async def test_who_does_not_read_is_let_go_and_others_go_on(
    door: Door, port: int, monkeypatch: pytest.MonkeyPatch, stalled_s: float
) -> None:
    """With the patience that there is, the control, nobody is let go so soon; either way nobody else waits."""
    await _listeners(door, 0)
    monkeypatch.setattr(connections, "STALLED_S_MAX", stalled_s)
    async with (
        listening(port, "/v1/stream", buffer_bytes=4096),
        listening(port, "/v1/stream") as reading,
    ):
        await _listeners(door, 2)

        async def told() -> list[str]:
            return [(await reading.until("job.submitted"))[-1].data["stream_id"] for _ in range(1_500)]

        listened = asyncio.create_task(told())
        ids = await submitted(door.services, 1_500)
        assert await listened == [str(one) for one in ids]
        if stalled_s == 1:
            await _listeners(door, 1)
        else:
            assert len(door.services.feed) == 2


async def test_a_client_that_leaves_is_forgotten(door: Door, port: int) -> None:
    await _listeners(door, 0)
    async with listening(port, "/v1/stream"):
        await _listeners(door, 1)
    await _listeners(door, 0)
    assert door.services.feed.subscriptions == 0
    assert not connections.live


async def test_what_nobody_expected_ends_the_streams_and_not_the_feed(
    door: Door, port: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with listening(port, "/v1/stream") as stream:
        with monkeypatch.context() as broken:
            broken.setattr("sightline.http.feed.frame", lambda *_: 1 / 0)
            await submitted(door.services, 1)
            assert [one.data for one in await stream.rest()] == [{"reason": "internal_error"}]
    async with listening(port, "/v1/stream") as stream:
        await submitted(door.services, 1)
        assert await stream.until("job.submitted")


# What is asked for is what is told.


async def test_a_batch_and_a_kind(door: Door, port: int) -> None:
    answer = await door.client.post("/v1/batches", json={"kind": "noop", "jobs": [{}, {}]})
    assert answer.status_code == 201, answer.text
    batch_id = UUID(answer.json()["id"])
    async with (
        listening(port, f"/v1/batches/{batch_id}/events") as of_batch,
        listening(port, f"/v1/stream?batch={batch_id}&kind=noop") as of_both,
        listening(port, "/v1/stream?kind=embed") as of_kind,
    ):
        await submitted(door.services, 2)
        embeds = await submitted(door.services, 2, kind="embed")
        inside = await submitted(door.services, 2, batch_id=batch_id)
        for stream, wanted in ((of_batch, inside), (of_both, inside), (of_kind, embeds)):
            told = [(await stream.until("job.submitted"))[0] for _ in wanted]
            assert [one.data["stream_id"] for one in told] == [str(one) for one in wanted]
        assert told[0].data["job"]["kind"] == "embed"


@pytest.mark.parametrize(
    ("path", "status", "code"),
    [
        (f"/v1/jobs/{uuid7()}/events", 404, "not_found"),
        (f"/v1/batches/{uuid7()}/events", 404, "not_found"),
        (f"/v1/stream?job={uuid7()}", 404, "not_found"),
        (f"/v1/stream?batch={uuid7()}", 404, "not_found"),
        ("/v1/stream?kind=zzz", 422, "unknown_kind"),
        ("/v1/stream?after=x", 422, "validation_failed"),
        ("/v1/stream?after=1@ffffffff", 409, "epoch_changed"),
        ("/v1/stream?colour=red", 422, "validation_failed"),
    ],
)
async def test_what_cannot_be_is_told_at_once(port: int, path: str, status: int, code: str) -> None:
    async with listening(port, path) as stream:
        assert (stream.status, (await stream.body())["code"]) == (status, code)


async def test_an_id_that_is_none_of_ours_is_refused(port: int) -> None:
    for given in ("x", "1@", "-1", "9" * 30):
        async with listening(port, "/v1/stream", {"Last-Event-ID": given}) as stream:
            assert (stream.status, (await stream.body())["code"]) == (422, "validation_failed")


async def test_head_is_answered_and_holds_nothing(door: Door) -> None:
    answer = await door.client.head("/v1/stream")
    assert (answer.status_code, answer.headers["content-type"]) == (200, "text/event-stream")
    await _listeners(door, 0)


async def test_so_many_and_no_more(door: Door, port: int, monkeypatch: pytest.MonkeyPatch) -> None:
    await _listeners(door, 0)
    monkeypatch.setattr(door.services.feed, "_streams_max", 1)
    async with listening(port, "/v1/stream") as first, listening(port, "/v1/stream") as second:
        assert (first.status, second.status) == (200, 503)
        assert (await second.body())["code"] == "too_many_streams"
        assert second.headers["retry-after"] == "3"


async def test_streams_are_not_among_the_requests_and_connections_of_the_others(
    door: Door, port: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    await _listeners(door, 0)
    monkeypatch.setattr("sightline.http.patience.REQUESTS_MAX", 1)
    monkeypatch.setattr(connections, "CONNECTIONS_MAX", 1)
    async with listening(port, "/v1/stream") as one, listening(port, "/v1/stream") as two:
        assert (one.status, two.status) == (200, 200)
        async with listening(port, "/v1/jobs") as request:
            assert request.status == 200
            async with listening(port, "/livez") as further:  # the control: two that do not stay are one too many
                assert further.status == 503


async def test_a_frame_fits_what_was_asked_for() -> None:
    job_id, batch_id = uuid7(), uuid7()
    frame = Frame(1, job_id, batch_id, "noop", "ada", "job.started", "processing", "1@0", b"{}", b"")
    fitting = [
        Asked(),
        Asked(job=job_id),
        Asked(batch=batch_id, owner="ada"),
        Asked(kind="noop", owner="ada"),
    ]
    other = [Asked(job=uuid7()), Asked(batch=uuid7()), Asked(kind="embed"), Asked(owner="bob")]
    assert all(frame.fits(one) for one in fitting)
    assert not any(frame.fits(one) for one in other)
    assert {one.key for one in fitting} <= set(frame.found_under())
    assert feed.FRAMES_AT_ONCE < feed.LOOKED_AT_MAX
