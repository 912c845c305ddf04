"""The janitor: what no event names goes, what one names stays, on a directory and on a real S3."""

import asyncio
from collections.abc import AsyncIterator
from datetime import timedelta
from itertools import pairwise
from pathlib import Path
from uuid import UUID, uuid4

import pytest
import pytest_asyncio
from msgspec.structs import replace
from tests.conftest_objects import SwiftS3
from tests.conftest_service import Service, by

from sightline.adapters.ids import uuid7
from sightline.adapters.objects.port import ObjectStoreUnavailable
from sightline.adapters.settings import Settings
from sightline.commands import assets, attempts, jobs
from sightline.domain.jobs import Artifact, Provenance
from sightline.workers import clock, janitor, lifecycle
from sightline.workers.attempt import objects_prefix
from sightline.workers.janitor import ROUND_EVERY, Janitor

LATER = timedelta(hours=25)
EMPTY_SHA256 = "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855"


@pytest.fixture(params=["directory", "swift"])
def store_settings(request: pytest.FixtureRequest, service_settings: Settings) -> Settings:
    if request.param == "directory":
        return service_settings
    swift: SwiftS3 = request.getfixturevalue("swift_s3")
    return replace(
        service_settings,
        s3_endpoint_url=swift.endpoint_url,
        s3_access_key_id=swift.access_key_id,
        s3_secret_access_key=swift.secret_access_key,
        s3_region=swift.region,
        s3_bucket=f"janitor-{uuid4().hex[:8]}",
    )


@pytest_asyncio.fixture
async def keeper(store_settings: Settings) -> AsyncIterator[Service]:
    """A service whose log began before its objects, to the second that S3 counts in."""
    async with lifecycle.open_services(store_settings) as services:
        service = Service(services)
        await begin(service, clock_s=1.1 if store_settings.s3_endpoint_url else 0.02)
        yield service


async def begin(service: Service, *, clock_s: float = 0.02) -> None:
    """The log's first event, and then a time that the store's clock can tell from it."""
    await service.session()
    await asyncio.sleep(clock_s)


async def put(service: Service, key: str, data: bytes = b"") -> str:
    async def chunks() -> AsyncIterator[bytes]:
        yield data

    store = service.services.objects
    await store.put(key, chunks(), content_type="image/png", size_bytes_max=1000, if_absent=False)
    return key


async def keys(service: Service) -> set[str]:
    return {entry.key for entry in await service.services.objects.list_page()}


async def sweep(service: Service, *, ahead: timedelta = LATER, by_janitor: Janitor | None = None) -> None:
    """One whole round."""
    sweeper = by_janitor or Janitor(service.services)
    await sweeper.remove_orphans(lifecycle.now() + ahead)
    while not sweeper.resting:
        await sweeper.remove_orphans(lifecycle.now() + ahead)


async def asset(service: Service, *, deleted: bool = False) -> str:
    asset_id = uuid7()
    key = await put(service, assets.object_key(asset_id))
    await service.asset(asset_id)
    if deleted:
        await service.run(assets.delete_asset, assets.DeleteAsset(asset_id=asset_id))
    return key


async def started(service: Service, attempt: int = 1) -> UUID:
    job_id = await service.submit()
    for number in range(1, attempt + 1):
        start = attempts.StartJob(job_id=job_id, worker="w", lease_until=lifecycle.now())
        await service.run(attempts.start_job, start, by(now=lifecycle.now() + timedelta(minutes=number)))
        if number < attempt:
            lost = attempts.LoseLease(job_id=job_id, attempt=number, worker="w", retry_delay_s=0)
            await service.run(attempts.lose_lease, lost)
    return job_id


async def completed(service: Service, *, deleted: bool = False) -> str:
    job_id = await started(service)
    key = await put(service, objects_prefix(job_id, 1) + "a.png")
    output = Artifact(name="a.png", object_key=key, sha256=EMPTY_SHA256, size_bytes=0, content_type="image/png")
    done = attempts.CompleteJob(
        job_id=job_id, attempt=1, worker="w", outputs=(output,), manifest={}, timings={}, receipt=Provenance()
    )
    await service.run(attempts.complete_job, done)
    if deleted:
        await service.run(jobs.delete_job, jobs.DeleteJob(job_id=job_id))
    return key


async def test_what_no_event_names_goes_and_what_one_names_stays(keeper: Service) -> None:
    running = await started(keeper, attempt=2)
    named = {
        await asset(keeper),
        await completed(keeper),
        await put(keeper, objects_prefix(running, 2) + "on-its-way.png"),
        await put(keeper, "datasets/of-somebody-else"),
    }
    orphans = {
        await put(keeper, assets.object_key(uuid7())),
        await asset(keeper, deleted=True),
        await completed(keeper, deleted=True),
        await put(keeper, objects_prefix(running, 1) + "too-late.png"),
        await put(keeper, objects_prefix(uuid7(), 1) + "a.png"),
        await put(keeper, "assets/not-an-id"),
    }
    assert await keys(keeper) == named | orphans
    await sweep(keeper, ahead=timedelta(hours=23))
    assert await keys(keeper) == named | orphans, "none is old enough"
    await sweep(keeper)
    assert await keys(keeper) == named


async def test_objects_older_than_the_log_are_another_logs(bare_service: Service) -> None:
    """A service pointed at the wrong database would otherwise empty the store."""
    stranger = await put(bare_service, assets.object_key(uuid7()))
    await sweep(bare_service)
    await begin(bare_service)
    await sweep(bare_service)
    assert await keys(bare_service) == {stranger}


async def test_a_stream_that_cannot_be_read_keeps_its_objects(bare_service: Service) -> None:
    await begin(bare_service)
    key = await asset(bare_service)
    bare_service.services.store.mapper._decoders.pop("asset.scanned")
    await sweep(bare_service)
    assert await keys(bare_service) == {key}


async def test_many_orphans_go_a_few_at_a_tick_and_the_next_round_waits(
    bare_service: Service, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(janitor, "REMOVED_PER_TICK_MAX", 3)
    await begin(bare_service)
    kept = {await asset(bare_service) for _ in range(4)}
    for _ in range(8):
        await put(bare_service, assets.object_key(uuid7()))
    at = lifecycle.now() + LATER
    sweeper = Janitor(bare_service.services)
    left = [8]
    await sweeper.remove_orphans(at)
    while not sweeper.resting:
        await sweeper.remove_orphans(at)
        left.append(len(await keys(bare_service)) - len(kept))
    assert [before - after for before, after in pairwise(left) if before > after] == [3, 3, 2]
    assert await keys(bare_service) == kept

    orphan = await put(bare_service, assets.object_key(uuid7()))
    await sweeper.remove_orphans(at)
    assert sweeper.resting
    assert orphan in await keys(bare_service)
    await sweep(bare_service, ahead=LATER + ROUND_EVERY, by_janitor=sweeper)
    assert await keys(bare_service) == kept


async def test_a_store_that_is_away_costs_the_clock_nothing(
    bare_service: Service, monkeypatch: pytest.MonkeyPatch
) -> None:
    await begin(bare_service)
    calls = 0

    async def away(*_: object, **__: object) -> None:
        nonlocal calls
        calls += 1
        raise ObjectStoreUnavailable("gone")

    monkeypatch.setattr(bare_service.services.objects, "sweep_unfinished", away)
    sweeper = Janitor(bare_service.services)
    for _ in range(3):
        await sweeper.remove_orphans(lifecycle.now())
    assert calls == 1
    assert sweeper.resting


async def test_one_that_cannot_be_removed_keeps_no_other(
    bare_service: Service, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Held back by a rule of the store's, say. It is tried again in the next round."""
    await begin(bare_service)
    held, *_ = [await put(bare_service, f"artifacts/{UUID(int=n)}/1/a.png") for n in range(1, 4)]
    delete = bare_service.services.objects.delete

    async def refused(key: str) -> None:
        if key == held:
            raise ObjectStoreUnavailable("held")
        await delete(key)

    monkeypatch.setattr(bare_service.services.objects, "delete", refused)
    await sweep(bare_service)
    assert await keys(bare_service) == {held}
    monkeypatch.undo()
    await sweep(bare_service)
    assert await keys(bare_service) == set()


async def test_the_clock_sweeps(bare_service: Service) -> None:
    """What uploads left behind goes as well, under the setting's own time."""
    assert "remove_orphans" in [duty.__name__ for duty in clock.Clock(bare_service.services).duties]
    cut = cut_upload(bare_service.settings.data_dir)
    await sweep(bare_service, ahead=timedelta(hours=23))
    assert is_there(cut)
    await sweep(bare_service)
    assert not is_there(cut)


def cut_upload(data_dir: Path) -> Path:
    directory = data_dir / "objects" / "+unfinished"
    directory.mkdir(parents=True)
    (directory / "cut").write_bytes(b"half")
    return directory / "cut"


def is_there(path: Path) -> bool:
    return path.exists()
