"""Re-runs and shadows at the door. A test does the worker's work, and so says what comes out the second time."""

import asyncio
from collections.abc import AsyncIterator, Mapping
from typing import Any
from uuid import UUID, uuid4

import httpx
import pytest
import pytest_asyncio
from tests.conftest_service import by
from tests.http.door import Door, complete, picture

from sightline.commands import models
from sightline.domain import comparisons
from sightline.workers import lifecycle
from sightline.workers.comparisons import Comparer

pytestmark = pytest.mark.asyncio(loop_scope="module")

FILES = {"composite.png": picture((8, 8)), "layer_manifest.json": b'{"near": 0.5}'}
CLOSE = FILES | {"layer_manifest.json": b'{"near": 0.50001}'}
FAR = FILES | {"layer_manifest.json": b'{"near": 0.75}'}


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def comparer(door: Door) -> AsyncIterator[Comparer]:
    """As another process has it."""
    async with lifecycle.open_services(door.services.settings) as services:
        yield Comparer(services)


async def post(
    door: Door, path: str, body: Any = None, status: int = 201, headers: Mapping[str, str] | None = None
) -> Any:
    answer = await door.client.post(path, json=body, headers=headers)
    assert answer.status_code == status, answer.text
    return answer.json()


async def refused(door: Door, path: str, body: Any = None) -> tuple[int, str]:
    answer = await door.client.post(path, json=body)
    return answer.status_code, answer.json()["code"]


async def get(door: Door, path: str) -> Any:
    answer = await door.client.get(path)
    assert answer.status_code == 200, answer.text
    return answer.json()


async def done(door: Door, files: Mapping[str, bytes], **job: Any) -> str:
    """A completed job."""
    job_id: str = (await post(door, "/v1/jobs", {"kind": "noop"} | job))["id"]
    await complete(door, UUID(job_id), files, {})
    return job_id


async def asset(door: Door) -> str:
    files = {"file": ("a.png", picture(), "image/png")}
    found: str = (await door.client.post("/api/jobs/upload", files=files)).json()["file_id"]
    return found


async def layered(door: Door, files: Mapping[str, bytes], **job: Any) -> str:
    return await done(door, files, kind="layer-photo-realistic", inputs=[await asset(door)], **job)


async def candidate(door: Door) -> str:
    """A synced version of its own for the task that layers need."""
    model = {"name": "Candidate", "framework": "onnx", "task": "depth", "hf_repo": "local/demo"}
    model_id: str = (await post(door, "/v1/models", model))["id"]
    await post(door, f"/v1/models/{model_id}/sync", status=200)
    return model_id


async def judged(door: Door, comparer: Comparer) -> None:
    """As far as it can be now."""
    await door.caught_up()
    await comparer.step()
    await door.caught_up()


async def test_a_job_is_run_again_and_compared(door: Door, comparer: Comparer) -> None:
    job_id = await done(door, FILES)
    answer = await door.client.post(f"/v1/jobs/{job_id}/rerun")
    begun = answer.json()
    assert (answer.status_code, begun["status"], begun["verdict"]) == (201, "running", None)
    assert (begun["of_job"], begun["purpose"], begun["owner"]) == (job_id, "rerun", "local")
    place = answer.headers["Location"]
    assert (await door.get(place, answer)).json() == begun

    await complete(door, UUID(begun["rerun_job"]), CLOSE, {})
    await judged(door, comparer)
    found = await get(door, place)
    assert (found["status"], found["verdict"], found["version"]) == ("judged", "equivalent", 2)
    by_name = {one["name"]: one for one in found["differences"]}
    assert by_name["composite.png"]["sha256"] == by_name["composite.png"]["second_sha256"]
    manifest = by_name["layer_manifest.json"]
    assert (manifest["measure"], manifest["distance_max"]) == ("numbers", pytest.approx(1e-5))
    assert found["second"]["runtime"] == "onnxruntime 1"

    assert (await get(door, f"/v1/jobs/{job_id}/comparisons"))["items"] == [found]
    assert found in (await get(door, "/v1/comparisons?verdict=equivalent"))["items"]
    assert found not in (await get(door, "/v1/comparisons?verdict=different"))["items"]
    assert (await get(door, f"{place}?at={answer.headers['Event-Position']}")) == begun
    history = await get(door, f"{place}/history")
    assert [one["type"] for one in history["items"]] == ["comparison.started", "comparison.judged"]


async def test_the_callers_own_tolerance_counts(door: Door, comparer: Comparer) -> None:
    job_id = await done(door, FILES)
    begun = await post(door, f"/v1/jobs/{job_id}/rerun", {"tolerance": {"number_max": 0}})
    assert begun["tolerance"] == {"number_max": 0, "channel_max": 2, "psnr_db_min": 40}
    await complete(door, UUID(begun["rerun_job"]), CLOSE, {})
    await judged(door, comparer)
    assert (await get(door, f"/v1/comparisons/{begun['id']}"))["verdict"] == "different"


async def test_outputs_of_one_run_alone_are_told(door: Door, comparer: Comparer) -> None:
    job_id = await done(door, {"a.json": b"1", "b.json": b"1"})
    begun = await post(door, f"/v1/jobs/{job_id}/rerun")
    await complete(door, UUID(begun["rerun_job"]), {"b.json": b"1", "c.json": b"1"}, {})
    await judged(door, comparer)
    found = await get(door, f"/v1/comparisons/{begun['id']}")
    assert found["verdict"] == "different"
    absent = {one["name"]: (one["sha256"] is None, one["second_sha256"] is None) for one in found["differences"]}
    assert absent | {"(manifest)": None} == {
        "(manifest)": None,
        "a.json": (False, True),
        "b.json": (False, False),
        "c.json": (True, False),
    }


async def test_the_same_key_runs_it_once(door: Door) -> None:
    job_id = await done(door, {})
    key = {"Idempotency-Key": str(uuid4())}
    answers = [await post(door, f"/v1/jobs/{job_id}/rerun", headers=key) for _ in range(2)]
    assert answers[0] == answers[1]
    await door.caught_up()
    assert len((await get(door, f"/v1/jobs/{job_id}/comparisons"))["items"]) == 1
    await post(door, f"/v1/jobs/{job_id}/rerun")
    await door.caught_up()
    assert len((await get(door, f"/v1/jobs/{job_id}/comparisons"))["items"]) == 2, "the control"


async def test_what_cannot_be_run_again(door: Door) -> None:
    waiting = (await post(door, "/v1/jobs", {"kind": "noop"}))["id"]
    assert await refused(door, f"/v1/jobs/{waiting}/rerun") == (409, "invalid_state")
    assert await refused(door, f"/v1/jobs/{uuid4()}/rerun") == (404, "not_found")
    gone = await done(door, {})
    await door.client.delete(f"/v1/jobs/{gone}")
    assert await refused(door, f"/v1/jobs/{gone}/rerun") == (404, "not_found")

    picture_id, model_id = await asset(door), await candidate(door)
    layers = {"kind": "layer-photo-realistic", "inputs": [picture_id], "model_version_id": model_id}
    job_id = await done(door, FILES, **layers)
    archive = models.ArchiveModel(model_id=UUID(model_id))
    await door.services.commands.execute(models.archive_model, archive, by("local"))
    assert await refused(door, f"/v1/jobs/{job_id}/rerun") == (409, "model_not_synced")
    other = await layered(door, FILES)
    inputs = (await get(door, f"/v1/jobs/{other}"))["inputs"]
    await door.client.delete(f"/v1/assets/{inputs[0]}")
    assert await refused(door, f"/v1/jobs/{other}/rerun") == (404, "not_found")


@pytest.mark.parametrize(
    "body",
    [
        {"tolerance": {"number_max": -1}},
        {"tolerance": {"channel_max": 256}},
        {"tolerance": {"psnr_db_min": "40"}},
        {"tolerance": {"speed": 1}},
        {"again": True},
        [],
    ],
)
async def test_bodies_that_are_refused(door: Door, body: Any) -> None:
    assert await refused(door, f"/v1/jobs/{uuid4()}/rerun", body) == (422, "validation_failed")


# Shadows


async def ran(door: Door, comparer: Comparer, shadow_id: str, files: Mapping[str, bytes], model_id: str) -> Any:
    """Have all of a shadow's jobs done with these outputs, and judged."""
    for _ in range(100):
        await judged(door, comparer)
        found = await get(door, f"/v1/shadows/{shadow_id}")
        if found["status"] == "judged":
            return found
        for job in (await get(door, "/v1/jobs?status=pending&limit=200"))["items"]:
            if job["owner"] == f"shadow:{model_id}":
                await complete(door, UUID(job["id"]), files, {})
    raise TimeoutError


async def test_a_shadow_speaks_for_a_version(door: Door, comparer: Comparer) -> None:
    began = lifecycle.now().isoformat()
    jobs = {await layered(door, FILES) for _ in range(2)}
    await door.caught_up()
    model_id = await candidate(door)
    answer = await door.client.post(f"/v1/models/{model_id}/shadow", json={"since": began})
    begun = answer.json()
    assert answer.status_code == 201, answer.text
    assert (begun["status"], begun["total"], begun["judged"], begun["passed"]) == ("running", 2, 0, None)
    assert (begun["task"], begun["started_by"]) == ("depth", "local")
    assert "layer-photo-realistic" in begun["kinds"]
    assert "noop" not in begun["kinds"]
    assert (await door.get(answer.headers["Location"], answer)).json() == begun
    unready = f"/v1/models/{model_id}/activate?shadow_id={begun['id']}"
    assert await refused(door, unready) == (409, "shadow_not_passed")

    found = await ran(door, comparer, begun["id"], CLOSE, model_id)
    assert (found["total"], found["judged"], found["equivalent"], found["passed"]) == (2, 2, 2, True)
    assert {one["of_job"] for one in found["worst"]} == jobs
    assert (found["latency_ratio_p50"], found["latency_ratio_p95"]) == (1.0, 1.0)
    last = (await get(door, f"/v1/models/{model_id}"))["last_shadow"]
    assert (last["shadow_id"], last["equivalent"], last["different"]) == (begun["id"], 2, 0)
    listed = {one["id"]: one for one in await get(door, "/v1/models?task=depth")}
    assert listed[model_id]["last_shadow"] == last
    assert [one["id"] for one in (await get(door, f"/v1/shadows?model_id={model_id}"))["items"]] == [begun["id"]]

    # With other measures and the same runs: it does not speak for the version any more, and less for another.
    strict = {"since": began, "tolerance": {"number_max": 0}}
    again = await post(door, f"/v1/models/{model_id}/shadow", strict)
    second = await ran(door, comparer, again["id"], {}, model_id)
    assert (second["different"], second["passed"]) == (2, False)
    wrong = f"/v1/models/{model_id}/activate?shadow_id={again['id']}"
    assert await refused(door, wrong) == (409, "shadow_not_passed")
    other = await candidate(door)
    others = f"/v1/models/{other}/activate?shadow_id={begun['id']}"
    assert await refused(door, others) == (409, "shadow_not_passed")
    activated = await post(door, unready, status=200)
    assert activated["is_active"]
    assert activated["last_shadow"] is None, "an answer to a command: it asks no read model"
    await door.caught_up()
    active = await get(door, "/v1/models/active?task=depth")
    assert (active["id"], active["last_shadow"]["shadow_id"]) == (model_id, again["id"])
    assert active == await get(door, f"/v1/models/{model_id}")


async def test_no_figure_about_real_work_counts_what_a_shadow_did(door: Door, comparer: Comparer) -> None:
    async def counted(model_id: str) -> int:
        rows = (await get(door, "/v1/analytics/durations"))["items"]
        return sum(row["count"] for row in rows if row["model_version_id"] == model_id)

    async def per_day() -> int:
        rows = (await get(door, "/v1/analytics/jobs"))["items"]
        return sum(row["count"] for row in rows if row["kind"] == "layer-photo-realistic")

    began = lifecycle.now().isoformat()
    await layered(door, FILES)
    await door.caught_up()
    before, model_id = await per_day(), await candidate(door)
    begun = await post(door, f"/v1/models/{model_id}/shadow", {"since": began})
    await ran(door, comparer, begun["id"], FILES, model_id)
    assert (await counted(model_id), await per_day()) == (0, before)
    await layered(door, FILES, model_version_id=model_id)
    assert (await counted(model_id), await per_day()) == (1, before + 1), "the control"


async def test_the_sample(door: Door) -> None:
    began = lifecycle.now().isoformat()
    jobs = [await layered(door, {}) for _ in range(4)]
    await done(door, {})
    await door.caught_up()
    model_id = await candidate(door)

    async def sample(**asked: Any) -> list[str]:
        begun = await post(door, f"/v1/models/{model_id}/shadow", {"since": began} | asked)
        history = await get(door, f"/v1/shadows/{begun['id']}/history")
        found: list[str] = history["state"]["started"]["sample"]
        return found

    assert await sample() == jobs[::-1]
    assert await sample(sample_max=2) == jobs[:1:-1]
    drawn = await sample(sample_max=2, seed=1)
    assert drawn == await sample(sample_max=2, seed=1)
    assert len({frozenset(await sample(sample_max=2, seed=seed)) for seed in range(2, 12)}) > 1
    # What ran on the candidate already would be held against itself.
    await layered(door, {}, model_version_id=model_id)
    await door.caught_up()
    assert await sample() == jobs[::-1]


async def test_what_is_no_shadow_is_refused(door: Door) -> None:
    model_id = await candidate(door)
    path = f"/v1/models/{model_id}/shadow"
    assert await refused(door, path, {"since": lifecycle.now().isoformat()}) == (409, "invalid_state")
    assert await refused(door, path, {"kinds": ["noop"]}) == (422, "rule_violated")
    assert await refused(door, path, {"kinds": []}) == (422, "rule_violated")
    assert await refused(door, path, {"until": "0001-01-01T00:00:00Z"}) == (422, "rule_violated")
    assert await refused(door, path, {"since": "9999-12-31T23:59:59Z"}) == (422, "rule_violated")
    assert await refused(door, path, {"since": "2026-01-02T00:00:00Z", "until": "2026-01-01T00:00:00Z"}) == (
        422,
        "rule_violated",
    )
    assert await refused(door, path, {"sample_max": 1001}) == (422, "validation_failed")
    assert await refused(door, path, {"since": "yesterday"}) == (422, "validation_failed")
    assert await refused(door, f"/v1/models/{uuid4()}/shadow") == (404, "not_found")
    unsynced = {"name": "New", "framework": "onnx", "task": "depth", "hf_repo": "local/nothing"}
    new = (await post(door, "/v1/models", unsynced))["id"]
    assert await refused(door, f"/v1/models/{new}/shadow") == (409, "model_not_synced")


@pytest.mark.parametrize("path", ["/v1/comparisons/{}", "/v1/comparisons/{}/history", "/v1/shadows/{}"])
async def test_what_is_not_there(door: Door, path: str) -> None:
    job_id = (await post(door, "/v1/jobs", {"kind": "noop"}))["id"]
    for other in (str(uuid4()), job_id):
        answer: httpx.Response = await door.client.get(path.format(other))
        assert (answer.status_code, answer.json()["code"]) == (404, "not_found")


async def test_comparisons_come_in_pages(door: Door) -> None:
    job_id = await done(door, {})
    begun = await asyncio.gather(*(post(door, f"/v1/jobs/{job_id}/rerun") for _ in range(3)))
    await door.caught_up()
    path = f"/v1/jobs/{job_id}/comparisons?limit=2"
    first = await get(door, path)
    second = await get(door, f"{path}&after={first['next']}")
    assert {one["id"] for one in first["items"] + second["items"]} == {one["id"] for one in begun}
    assert second["next"] is None
    assert comparisons.rerun_id(UUID(begun[0]["id"])) == UUID(begun[0]["rerun_job"])
