"""One attempt, run in this process: what it brings, what it leaves behind, what its worker never pays for."""

import asyncio
import hashlib
import sys
from collections.abc import AsyncIterator, Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any
from uuid import UUID

import pytest
import pytest_asyncio
from msgspec.structs import replace
from tests.conftest_service import Service, until

from sightline.adapters.event_store.writer import StoreBusy
from sightline.commands import assets, attempts, jobs
from sightline.commands.transact import Receipt
from sightline.domain.assets import AGGREGATE as ASSET
from sightline.domain.jobs import Job, Provenance
from sightline.domain.kernel import derived_id
from sightline.domain.kinds import KINDS
from sightline.workers import attempt as attempt_
from sightline.workers import lifecycle
from sightline.workers.attempt import Attempt
from sightline.workers.leases import Lease
from sightline.workers.runner_client import Runner

MEMORY_BYTES_MAX = 4 << 30
ODD_RUNNER = """
import sys
from sightline.workers import kinds, runner
from sightline.workers.kinds import JobOutput, OutputFile, noop

def run(job, progress):
    open(job.output_dir + "/a", "w").close()
    match job.params["sleep_s"]:
        case 1.0: return JobOutput(manifest={"text": chr(0)})
        case 2.0: return JobOutput([OutputFile("a", "text/plain")] * 2)
        case 3.0: return JobOutput([OutputFile("a", "no type at all")])
    return JobOutput([OutputFile("a", "text/plain")])

noop.run = run
runner.main()
"""


@pytest_asyncio.fixture
async def runner() -> AsyncIterator[Runner]:
    made = Runner(memory_bytes_max=MEMORY_BYTES_MAX)
    yield made
    await made.close()


@pytest.fixture
def lease(service: Service) -> Iterator[Lease]:
    held = Lease(service.settings, "w1")
    held.start()
    yield held
    held.stop()


async def start(service: Service, job_id: UUID, worker: str = "w1") -> Receipt[Job]:
    lease_until = lifecycle.now() + timedelta(seconds=10)
    return await service.run(
        attempts.start_job, attempts.StartJob(job_id=job_id, worker=worker, lease_until=lease_until)
    )


async def run(service: Service, runner: Runner, lease: Lease, started: Receipt[Job], worker: str = "w1") -> None:
    attempt = Attempt(
        service.services,
        started.stream_id,
        started.state,
        started_position=started.position,
        correlation_id="correlation",
        epoch=lease.epoch,
    )
    await attempt.run(runner, asyncio.Event(), lease)


async def keys(service: Service, job_id: UUID) -> set[str]:
    """Objects of a job, as <attempt>/<name>."""
    prefix = f"artifacts/{job_id}/"
    return {entry.key.removeprefix(prefix) for entry in await service.services.objects.list_page(prefix)}


async def layers(service: Service, directory: Path) -> UUID:
    await service.install_models()
    params = {"num_layers": 2, "max_size": 256}
    asset_id = await service.picture(directory)
    return await service.submit("layer-photo-realistic", inputs=(asset_id,), params=params)


async def test_a_picture_becomes_layers_with_a_receipt(
    service: Service, runner: Runner, lease: Lease, tmp_path: Path
) -> None:
    job_id = await layers(service, tmp_path)
    await run(service, runner, lease, await start(service, job_id))
    job = await service.job(job_id)
    assert job.status == "completed"
    assert job.result is not None
    assert job.submitted is not None
    [asset_id] = job.submitted.inputs
    asset, _, _ = await service.commands.state(ASSET, asset_id, read_tail=True)
    receipt = job.result.receipt
    assert receipt.input_sha256 == (asset.sha256,)
    assert (receipt.model_version_id, receipt.model_sha256) == (
        job.submitted.model_version_id,
        job.submitted.model_sha256,
    )
    assert receipt.provider == "CPUExecutionProvider"
    for output in job.result.outputs:
        path = tmp_path / "got"
        await service.services.objects.download(output.object_key, path)
        assert hashlib.sha256(path.read_bytes()).hexdigest() == output.sha256
    assert await keys(service, job_id) == {f"1/{output.name}" for output in job.result.outputs}
    told = await service.events(job_id)
    assert told[-1].envelope.causation_id == f"event:{told[1].id}", "the result's cause is the start of its attempt"


async def test_a_late_result_is_refused_and_its_objects_are_removed(
    service: Service, runner: Runner, lease: Lease, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The first attempt does not notice that it lost the job: its watch sleeps. The second one's objects stay."""
    monkeypatch.setattr(attempt_, "PROGRESS_S", 60)
    job_id = await layers(service, tmp_path)
    first = await start(service, job_id)
    lost = attempts.LoseLease(job_id=job_id, attempt=1, worker="w1", retry_delay_s=0)
    await service.run(attempts.lose_lease, lost)
    second = await start(service, job_id, "w2")
    await run(service, runner, lease, second, "w2")
    await run(service, runner, lease, first)
    told = await service.topics(job_id)
    assert told == ["submitted", "started", "retry_scheduled", "started", "completed", "late_result_rejected"]
    found = await keys(service, job_id)
    assert {key[0] for key in found} == {"2"}
    assert "2/composite.png" in found


async def test_without_the_question_why_it_was_refused_its_objects_would_stay(
    service: Service, runner: Runner, lease: Lease, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The control of the removal above."""

    async def keep(*_: object) -> None:
        return

    monkeypatch.setattr(attempt_, "PROGRESS_S", 60)
    monkeypatch.setattr(Attempt, "_remove_if_refused", keep)
    job_id = await layers(service, tmp_path)
    first = await start(service, job_id)
    await service.run(jobs.delete_job, jobs.DeleteJob(job_id=job_id))
    await run(service, runner, lease, first)
    assert "1/composite.png" in await keys(service, job_id)


async def test_a_job_that_is_deleted_while_it_runs_stops_its_runner(
    service: Service, runner: Runner, lease: Lease
) -> None:
    job_id = await service.submit(params={"sleep_s": 600})
    going = asyncio.create_task(run(service, runner, lease, await start(service, job_id)))
    await service.until_said(job_id, "job.progressed")
    await service.run(jobs.delete_job, jobs.DeleteJob(job_id=job_id))
    await asyncio.wait_for(going, 5)
    assert await service.topics(job_id) == ["submitted", "started", "cancelled", "deleted"]


async def test_a_cancel_that_comes_while_the_input_is_fetched_is_heard(
    service: Service, runner: Runner, lease: Lease, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(attempt_, "PROGRESS_S", 0.02)
    job_id = await layers(service, tmp_path)
    started = await start(service, job_id)
    download = service.services.objects.download

    async def slow(key: str, path: Path) -> int:
        await service.run(jobs.cancel_job, jobs.CancelJob(job_id=job_id))
        await asyncio.sleep(0.2)
        return await download(key, path)

    monkeypatch.setattr(type(service.services.objects), "download", lambda _, key, path: slow(key, path))
    await run(service, runner, lease, started)
    assert await service.topics(job_id) == ["submitted", "started", "cancel_requested", "cancelled"]
    assert await keys(service, job_id) == set()
    assert runner.pid is None, "nothing was run"


async def test_an_input_that_is_gone_fails_the_job_for_good(
    service: Service, runner: Runner, lease: Lease, tmp_path: Path
) -> None:
    for how in ("deleted", "lost"):
        job_id = await layers(service, tmp_path)
        started = await start(service, job_id)
        assert started.state.submitted is not None
        [asset_id] = started.state.submitted.inputs
        if how == "deleted":
            await service.run(assets.delete_asset, assets.DeleteAsset(asset_id=asset_id))
        else:
            await service.services.objects.delete(assets.object_key(asset_id))
        await run(service, runner, lease, started)
        job = await service.job(job_id)
        assert (job.status, job.error_code) == ("failed", "input_unavailable")


@pytest.mark.parametrize(
    ("sleep_s", "status", "code"),
    [(0.5, "completed", None), (1.0, "failed", "result_refused"), (2.0, "failed", "result_refused")],
)
async def test_a_result_that_cannot_be_stored_fails_its_job_alone(
    service: Service,
    lease: Lease,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    sleep_s: float,
    status: str,
    code: str | None,
) -> None:
    (tmp_path / "odd_runner.py").write_text(ODD_RUNNER)
    monkeypatch.setitem(KINDS, "noop", replace(KINDS["noop"], writes=True))
    monkeypatch.setenv("PYTHONPATH", ":".join([str(tmp_path), *filter(None, sys.path)]))
    odd = Runner(memory_bytes_max=MEMORY_BYTES_MAX, module="odd_runner")
    job_id = await service.submit(params={"sleep_s": sleep_s})
    await run(service, odd, lease, await start(service, job_id))
    await odd.close()
    job = await service.job(job_id)
    assert (job.status, job.error_code) == (status, code)
    assert bool(await keys(service, job_id)) == (status == "completed")


async def test_a_worker_that_breaks_gives_the_job_another_attempt(
    service: Service, runner: Runner, lease: Lease, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device", "/secret/path")

    job_id = await service.submit()
    with monkeypatch.context() as patch:
        patch.setattr("tempfile.TemporaryDirectory", full)
        await run(service, runner, lease, await start(service, job_id))
    job = await service.job(job_id)
    assert (job.status, job.error_code) == ("pending", "worker_failed")
    assert "/secret" not in job.error_message


async def test_a_result_waits_while_the_log_is_too_busy_to_take_it(
    service: Service, runner: Runner, lease: Lease, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As in an outage: refused before it was queued, which is no reason to lose what was computed."""
    monkeypatch.setattr(attempt_, "BUSY_PAUSE_S", 0.02)
    job_id = await service.submit()
    started = await start(service, job_id)
    execute = service.commands.execute
    refusals = iter(range(5))

    async def busy(handler: Any, command: Any, caller: Any, **more: Any) -> Any:
        if handler is attempts.complete_job and next(refusals, None) is not None:
            raise StoreBusy("the oldest command has waited too long")
        return await execute(handler, command, caller, **more)

    monkeypatch.setattr(service.commands, "execute", busy)
    await run(service, runner, lease, started)
    assert await service.topics(job_id) == ["submitted", "started", "completed"]


async def test_a_result_whose_acknowledgement_was_lost_is_the_same_result(
    service: Service, runner: Runner, lease: Lease
) -> None:
    job_id = await service.submit()
    started = await start(service, job_id)
    await run(service, runner, lease, started)
    again = attempts.CompleteJob(
        job_id=job_id,
        attempt=1,
        worker="w1",
        outputs=(),
        manifest={},
        timings={},
        receipt=Provenance(),
    )
    caller = lifecycle.caller("w1", derived_id("complete", job_id, 1, "w1"), correlation_id="c", cause=1)
    receipt = await service.run(attempts.complete_job, again, caller)
    assert receipt.repeat
    assert await service.topics(job_id) == ["submitted", "started", "completed"]


async def test_progress_is_told_while_it_runs(service: Service, runner: Runner, lease: Lease) -> None:
    job_id = await service.submit(params={"sleep_s": 0.6})

    async def told() -> bool:
        return (await service.row(job_id)).message == "sleeping"

    going = asyncio.create_task(run(service, runner, lease, await start(service, job_id)))
    assert await until(told)
    await going
    assert (await service.row(job_id)).progress == 100
