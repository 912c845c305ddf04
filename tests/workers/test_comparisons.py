"""The comparer over real parts: what was run again is held against what was there, once, whoever dies in between."""

import asyncio
import os
import signal
from collections.abc import AsyncIterator, Iterable, Sequence
from datetime import timedelta
from pathlib import Path
from typing import Any
from uuid import UUID

import pytest
import pytest_asyncio
from msgspec.structs import replace
from onnx import TensorProto, helper
from psycopg import sql
from tests.conftest_service import UNTIL_S, Processes, Service, by, until

from sightline.adapters.ids import uuid7
from sightline.adapters.onnx_graph import Graph
from sightline.commands import assets, attempts
from sightline.commands import comparisons as commands
from sightline.commands import jobs as job_commands
from sightline.commands import models as model_commands
from sightline.commands import shadows as shadow_commands
from sightline.domain import comparisons, shadows
from sightline.domain.comparisons import MANIFEST, Comparison, ComparisonJudged, Difference, Tolerance
from sightline.domain.jobs import PRIORITY_MAX, JobSubmitted, Provenance
from sightline.domain.kernel import NotFound, QueueFull
from sightline.domain.shadows import Shadow, ShadowJudged
from sightline.projections import shadows as projection
from sightline.workers import comparisons as workers
from sightline.workers import inference, lifecycle
from sightline.workers.comparisons import IN_FLIGHT_MAX, Comparer

LAYERS = "layer-photo-realistic"
STRICT = Tolerance(number_max=0, channel_max=0, psnr_db_min=1e6)
LOOSE = Tolerance(number_max=1e6, channel_max=255)


@pytest_asyncio.fixture
async def working(service: Service) -> AsyncIterator[Service]:
    """With a worker; nobody compares."""
    stopping = asyncio.Event()
    worker = asyncio.create_task(inference.run(service.services, stopping))
    yield service
    stopping.set()
    await worker


def depth_model(scale: float, *, axes: Sequence[int] = (1,)) -> bytes:
    """Depth is brightness times `scale`; over other axes than the colours it answers a shape that is refused."""
    graph = Graph()
    graph.add("ReduceMean", "picture", to="grey", axes=list(axes), keepdims=1)
    graph.add("Mul", "grey", graph.number("scale", scale), to="depth")
    float32 = TensorProto.FLOAT
    return graph.serialised(
        "depth",
        inputs=[helper.make_tensor_value_info("picture", float32, [1, 3, "height", "width"])],
        outputs=[helper.make_tensor_value_info("depth", float32, [None] * 4)],
        opset=17,
        ir_version=9,
    )


async def registered(service: Service, name: str, content: bytes) -> UUID:
    """A synced version from a file in the model cache."""
    local = service.settings.data_dir / "models" / "local"
    local.mkdir(parents=True, exist_ok=True)
    (local / f"{name}.onnx").write_bytes(content)
    register = model_commands.RegisterModel(
        model_id=uuid7(), name=name, framework="onnx", task="depth", hf_repo=f"local/{name}"
    )
    model_id = (await service.run(model_commands.register_model, register)).stream_id
    await model_commands.sync_model(service.commands, service.services.models, model_id, by())
    return model_id


async def layered(service: Service, directory: Path, model_id: UUID, **params: Any) -> UUID:
    """A completed job on that version."""
    asset_id = await service.picture(directory)
    given = {"num_layers": 2, "max_size": 256, "export_layers": False} | params
    job_id = await service.submit(LAYERS, inputs=(asset_id,), params=given, model_version_id=model_id)
    await service.until_job(job_id, "completed")
    return job_id


async def rerun(service: Service, of_job: UUID, tolerance: Tolerance = STRICT) -> UUID:
    start = commands.StartComparison(comparison_id=uuid7(), of_job=of_job, tolerance=tolerance, pending_max=100)
    return (await service.run(commands.start_comparison, start)).stream_id


async def comparison(service: Service, comparison_id: UUID) -> Comparison:
    state, _, _ = await service.commands.state(comparisons.AGGREGATE, comparison_id, read_tail=True)
    return state


async def judged(service: Service, comparison_id: UUID) -> ComparisonJudged:
    comparer = Comparer(service.services)

    async def found() -> ComparisonJudged | None:
        await comparer.step()
        return (await comparison(service, comparison_id)).judged

    return await until(found)


async def shadowed(service: Service, model_id: UUID, sample: Iterable[UUID], tolerance: Tolerance = STRICT) -> UUID:
    now = lifecycle.now()
    start = shadow_commands.StartShadow(
        shadow_id=uuid7(),
        model_id=model_id,
        kinds=(LAYERS,),
        since=now - timedelta(days=1),
        until=now,
        sample=tuple(sample),
        tolerance=tolerance,
    )
    return (await service.run(shadow_commands.start_shadow, start)).stream_id


async def verdict(service: Service, shadow_id: UUID) -> ShadowJudged:
    comparer = Comparer(service.services)

    async def found() -> ShadowJudged | None:
        await comparer.step()
        state: Shadow = (await service.commands.state(shadows.AGGREGATE, shadow_id, read_tail=True))[0]
        return state.judged

    return await until(found)


def named(said: ComparisonJudged) -> dict[str, Difference]:
    return {one.name: one for one in said.differences}


# Re-run as of then


async def test_doing_nothing_twice_is_identical(working: Service) -> None:
    job_id = await working.submit()
    await working.until_job(job_id, "completed")
    comparison_id = await rerun(working, job_id)
    said = await judged(working, comparison_id)
    assert said.verdict == "identical"
    assert [one.name for one in said.differences] == [MANIFEST]
    assert await working.topics(comparison_id) == ["started", "judged"]
    again = (await working.job(comparisons.rerun_id(comparison_id))).submitted
    first = (await working.job(job_id)).submitted
    assert again is not None
    assert first is not None
    assert (again.kind, again.params, again.owner) == (first.kind, first.params, "ada")


async def test_layers_come_out_the_same_on_the_version_that_was_pinned(working: Service, tmp_path: Path) -> None:
    """Although another version has become the active one since."""
    await working.install_models()
    job_id = await layered(working, tmp_path, await registered(working, "then", depth_model(1.0)), export_layers=True)
    comparison_id = await rerun(working, job_id)
    said = await judged(working, comparison_id)
    assert said.verdict == "identical", said
    assert len(said.differences) == 6
    assert said.first is not None
    assert said.second is not None
    assert (said.first.model_sha256, said.first.provider) == (said.second.model_sha256, "CPUExecutionProvider")
    assert (said.first.runtime or "").startswith("onnxruntime")
    assert said.first.run_s is not None


async def test_what_cannot_be_submitted_again_is_refused_whole(working: Service, tmp_path: Path) -> None:
    model_id = await registered(working, "model", depth_model(1.0))
    job_id = await layered(working, tmp_path, model_id)
    submitted = (await working.job(job_id)).submitted
    assert isinstance(submitted, JobSubmitted)
    before = (await working.services.store.reader.head()).position
    start = commands.StartComparison(comparison_id=uuid7(), of_job=job_id, tolerance=STRICT, pending_max=0)
    with pytest.raises(QueueFull):
        await working.run(commands.start_comparison, start)
    assert (await working.services.store.reader.head()).position == before
    await working.run(assets.delete_asset, assets.DeleteAsset(asset_id=submitted.inputs[0]))
    with pytest.raises(NotFound, match="asset"):
        await rerun(working, job_id)


async def test_a_second_run_that_fails_is_the_verdict(working: Service) -> None:
    job_id = await working.submit()
    await working.until_job(job_id, "completed")
    comparison_id = await rerun(working, job_id)
    again = comparisons.rerun_id(comparison_id)
    await working.run(job_commands.delete_job, job_commands.DeleteJob(job_id=again))
    said = await judged(working, comparison_id)
    assert (said.verdict, said.reason) == ("failed", "its second run is deleted")


# Shadows


async def test_a_candidate_that_differs_a_little_and_where_its_tolerance_ends(working: Service, tmp_path: Path) -> None:
    job_id = await layered(working, tmp_path, await registered(working, "then", depth_model(1.0)))
    candidate = await registered(working, "next", depth_model(0.99))
    strict = await verdict(working, await shadowed(working, candidate, [job_id]))
    assert (strict.total, strict.different, strict.identical) == (1, 1, 0)
    [worst] = strict.worst
    assert (worst.of_job, worst.verdict) == (job_id, "different")
    comparison_id = comparisons.shadow_comparison_id(candidate, job_id)
    said = (await comparison(working, comparison_id)).judged
    assert said is not None
    found = named(said)
    assert (found["depth_map.png"].measure, found["layer_manifest.json"].measure) == ("picture", "numbers")
    assert found["composite.png"].sha256 == found["composite.png"].second_sha256, "laid over each other they give it"
    channel, number = found["depth_map.png"].distance_max, found["layer_manifest.json"].distance_max
    assert channel is not None
    assert number is not None
    assert 1 <= channel <= 3
    assert 0 < number < 5

    # The same runs by other measures: nothing is computed again.
    exactly = Tolerance(number_max=number, channel_max=int(channel), psnr_db_min=1e6)
    at_its_end = await verdict(working, await shadowed(working, candidate, [job_id], exactly))
    assert (at_its_end.equivalent, at_its_end.different) == (1, 0)
    for beyond in (
        Tolerance(number_max=number - 1e-9, channel_max=int(channel), psnr_db_min=1e6),
        Tolerance(number_max=number, channel_max=int(channel) - 1, psnr_db_min=1e6),
    ):
        assert (await verdict(working, await shadowed(working, candidate, [job_id], beyond))).different == 1
    psnr_db = found["depth_map.png"].psnr_db
    assert psnr_db is not None
    by_noise = Tolerance(number_max=number, channel_max=0, psnr_db_min=psnr_db)
    assert (await verdict(working, await shadowed(working, candidate, [job_id], by_noise))).equivalent == 1
    assert await working.topics(comparison_id) == ["started", "judged"]


async def test_the_same_model_under_another_name_is_identical_and_a_broken_one_fails(
    working: Service, tmp_path: Path
) -> None:
    done = await layered(working, tmp_path, await registered(working, "then", depth_model(1.0)))
    gone = await layered(working, tmp_path, await registered(working, "then-too", depth_model(1.0)))
    submitted = (await working.job(gone)).submitted
    assert submitted is not None
    await working.run(assets.delete_asset, assets.DeleteAsset(asset_id=submitted.inputs[0]))

    same = await registered(working, "same", depth_model(1.0))
    said = await verdict(working, await shadowed(working, same, [done, gone]))
    assert (said.total, said.identical, said.failed) == (2, 1, 1)
    [worst] = said.worst
    assert (worst.of_job, worst.reason.partition(":")[0]) == (gone, "not_found")
    assert (said.latency_ratio_p50 or 0) > 0

    broken = await registered(working, "broken", depth_model(1.0, axes=(1, 2)))
    said = await verdict(working, await shadowed(working, broken, [done]))
    assert (said.total, said.failed) == (1, 1)
    assert "model_failed" in said.worst[0].reason


async def test_two_versions_may_call_themselves_differently_but_not_say_other_things(
    working: Service, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The control: were the model's own name compared, no candidate could ever be equivalent."""
    job_id = await layered(working, tmp_path, await registered(working, "then", depth_model(1.0)))
    await rerun(working, job_id)
    candidate, other = [await registered(working, f"next-{scale}", depth_model(scale)) for scale in (0.99, 0.98)]
    assert (await verdict(working, await shadowed(working, candidate, [job_id], LOOSE))).equivalent == 1
    monkeypatch.setattr(workers, "MODEL", "nothing")
    assert (await verdict(working, await shadowed(working, other, [job_id], LOOSE))).different == 1


async def pending_of(service: Service, model_id: UUID) -> list[Any]:
    await service.caught_up()
    owner = shadows.owner(model_id)
    page = await service.reads.fetch(
        projection.Candidate,
        sql.SQL("SELECT json_build_object('job_id', job_id) FROM jobs WHERE owner = %(owner)s AND status = 'pending'"),
        {"owner": owner},
    )
    return page.rows


@pytest.mark.parametrize("most", [IN_FLIGHT_MAX, 1_000])
async def test_a_shadow_queues_behind_everybody_a_few_at_a_time(
    service: Service, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, most: int
) -> None:
    """Nobody works here, so that what waits can be counted. The control: with another bound, all of it waits."""
    monkeypatch.setattr(workers, "IN_FLIGHT_MAX", most)
    model_id, candidate = [await registered(service, f"m{n}", depth_model(1 + n / 10)) for n in (0, 1)]
    sample = await completed(service, tmp_path, model_id, IN_FLIGHT_MAX + 4)
    await shadowed(service, candidate, sample)
    await service.caught_up()
    for _ in range(3):
        await Comparer(service.services).step()
        waiting = await pending_of(service, candidate)
    assert len(waiting) == min(most, len(sample))
    job = await service.job(waiting[0].job_id)
    assert job.submitted is not None
    assert (job.submitted.priority, job.submitted.counted) == (PRIORITY_MAX, False)
    assert job.submitted.owner == f"shadow:{candidate}"


async def completed(service: Service, directory: Path, model_id: UUID, count: int) -> list[UUID]:
    """Jobs that are said to be completed, without outputs."""
    asset_id = await service.picture(directory)
    found = []
    for _ in range(count):
        job_id = await service.submit(LAYERS, inputs=(asset_id,), model_version_id=model_id)
        start = attempts.StartJob(job_id=job_id, worker="w", lease_until=lifecycle.now())
        await service.run(attempts.start_job, start)
        done = attempts.CompleteJob(
            job_id=job_id, attempt=1, worker="w", outputs=(), manifest={}, timings={}, receipt=Provenance()
        )
        await service.run(attempts.complete_job, done)
        found.append(job_id)
    return found


# Once


async def waiting_for_a_verdict(service: Service, count: int) -> list[UUID]:
    """Comparisons whose second job is over."""
    jobs = [await service.submit() for _ in range(count)]
    for job_id in jobs:
        await service.until_job(job_id, "completed")
    found = [await rerun(service, job_id) for job_id in jobs]
    for comparison_id in found:
        await service.until_job(comparisons.rerun_id(comparison_id), "completed")
    await service.caught_up()
    return found


async def verdicts(service: Service, comparison_ids: Sequence[UUID]) -> list[int]:
    """How many each has."""
    return [(await service.topics(one)).count("judged") for one in comparison_ids]


@pytest.mark.parametrize(
    ("own_ids", "said_again", "count"), [(False, False, 1), (True, False, 1), (False, True, 1), (True, True, 3)]
)
async def test_two_at_once_say_one_verdict(
    working: Service, monkeypatch: pytest.MonkeyPatch, own_ids: bool, said_again: bool, count: int
) -> None:
    """Three, and all of them looked before one spoke. Either the command's id or the rule that a comparison is judged
    once would do; the control is the last row, without both.
    """
    waiting = await waiting_for_a_verdict(working, 2)
    if own_ids:
        monkeypatch.setattr(workers, "derived_id", lambda *_: uuid7())
    if said_again:
        once = comparisons.judge
        monkeypatch.setattr(comparisons, "judge", lambda one, **said: once(replace(one, judged=None), **said))
    compared, together = Comparer._compared, asyncio.Barrier(3)

    async def all_together(self: Comparer, *given: Any) -> commands.JudgeComparison:
        judge = await compared(self, *given)
        async with asyncio.timeout(UNTIL_S):
            await together.wait()
        return judge

    monkeypatch.setattr(Comparer, "_compared", all_together)
    async with lifecycle.open_services(working.settings) as elsewhere:
        comparers = [Comparer(one) for one in (working.services, elsewhere, working.services)]
        await asyncio.gather(*(one.step() for one in comparers))
    assert await verdicts(working, waiting) == [count] * 2


async def test_a_kill_between_the_end_and_the_verdict_costs_nothing(working: Service, processes: Processes) -> None:
    """Clock and comparer are one process: it dies while it judges, and the next one says the rest."""
    waiting = await waiting_for_a_verdict(working, 30)
    dying = processes.start("tick")

    async def some() -> bool:
        return sum(await verdicts(working, waiting[:5])) > 0

    await until(some)
    os.kill(dying.pid, signal.SIGKILL)
    dying.wait(10)
    processes.start("tick")

    async def every() -> bool:
        return all(await verdicts(working, waiting))

    await until(every)
    assert await verdicts(working, waiting) == [1] * 30


async def test_one_that_cannot_be_compared_now_keeps_nobody_waiting(
    working: Service, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A disk that is full for once; the next look may fare better."""
    monkeypatch.setattr(workers, "REST_S", (0.0,))
    first, second = await waiting_for_a_verdict(working, 2)
    compared = Comparer._compared

    async def away(self: Comparer, row: Any, *rest: Any) -> Any:
        if row.comparison_id == first:
            raise OSError("the disk is full")
        return await compared(self, row, *rest)

    monkeypatch.setattr(Comparer, "_compared", away)
    comparer = Comparer(working.services)
    assert await comparer.step() == 1
    assert await verdicts(working, [first, second]) == [0, 1]
    monkeypatch.undo()
    await working.caught_up()
    assert await comparer.step() == 1
    assert await verdicts(working, [first, second]) == [1, 1]
