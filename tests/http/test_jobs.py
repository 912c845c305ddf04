"""Jobs at the door."""

from typing import Any
from uuid import UUID, uuid4

import pytest
from tests.http.door import Door, complete, picture

pytestmark = pytest.mark.asyncio(loop_scope="module")

FILES = {"Layer_1_background.png": picture((8, 8)), "layer_manifest.json": b"{}"}


async def _submit(door: Door, **changed: Any) -> dict[str, Any]:
    answer = await door.client.post("/v1/jobs", json={"kind": "noop"} | changed)
    assert answer.status_code == 201, answer.text
    job: dict[str, Any] = answer.json()
    return job


async def _completed(door: Door) -> str:
    job_id: str = (await _submit(door))["id"]
    await complete(door, UUID(job_id), FILES, {"layers": []})
    return job_id


async def test_a_job_is_submitted_with_its_kinds_defaults(door: Door) -> None:
    answer = await door.client.post("/v1/jobs", json={"kind": "noop"})
    job = answer.json()
    assert answer.headers["Location"] == f"/v1/jobs/{job['id']}"
    assert (job["status"], job["priority"], job["timeout_s"], job["attempts_max"]) == ("pending", 5, 600, 3)
    assert job["params"] == {"sleep_s": 0.0, "fail": False}
    assert (await door.get(f"/v1/jobs/{job['id']}", answer)).json() == job


async def test_the_active_model_is_pinned(door: Door) -> None:
    files = {"file": ("a.png", picture(), "image/png")}
    asset_id = (await door.client.post("/api/jobs/upload", files=files)).json()["file_id"]
    job = await _submit(door, kind="layer-photo-realistic", inputs=[asset_id], params={"num_layers": 3})
    active = (await door.client.get("/v1/models/active?task=depth")).json()
    assert (job["model_version_id"], job["model_sha256"]) == (active["id"], active["sha256"])


@pytest.mark.parametrize(
    ("changed", "status", "code"),
    [
        ({"kind": "nonsense"}, 422, "unknown_kind"),
        ({"params": {"sleep_s": 601}}, 422, "rule_violated"),
        ({"inputs": [str(uuid4())]}, 422, "rule_violated"),
        ({"kind": "layer-photo-realistic", "inputs": [str(uuid4())]}, 404, "not_found"),
        ({"session_id": str(uuid4())}, 404, "not_found"),
        ({"priority": 10}, 422, "validation_failed"),
        ({"model_version_id": str(uuid4())}, 422, "rule_violated"),
    ],
)
async def test_submissions_that_are_refused(door: Door, changed: dict[str, Any], status: int, code: str) -> None:
    answer = await door.client.post("/v1/jobs", json={"kind": "noop"} | changed)
    assert (answer.status_code, answer.json()["code"]) == (status, code)


async def test_a_waiting_job_is_cancelled_at_once(door: Door) -> None:
    job_id = (await _submit(door))["id"]
    assert (await door.client.post(f"/v1/jobs/{job_id}/cancel")).json()["status"] == "cancelled"
    assert (await door.client.post(f"/v1/jobs/{job_id}/cancel")).status_code == 200
    answer = await door.client.post(f"/v1/jobs/{job_id}/requeue")
    assert (answer.status_code, answer.json()["code"]) == (409, "invalid_state")


async def test_files_receipt_and_graph_of_a_completed_job(door: Door) -> None:
    job_id = await _completed(door)
    artifacts = (await door.client.get(f"/v1/jobs/{job_id}/artifacts")).json()["items"]
    assert [one["name"] for one in artifacts] == list(FILES)
    for one in artifacts:
        assert list(one) == ["name", "sha256", "size_bytes", "content_type", "url"]
        assert (await door.client.get(one["url"])).content == FILES[one["name"]]
        redirected = await door.client.get(f"/v1/jobs/{job_id}/artifacts/{one['name']}")
        assert (await door.client.get(redirected.headers["Location"])).content == FILES[one["name"]]
    receipt = (await door.client.get(f"/v1/jobs/{job_id}/receipt")).json()
    assert (receipt["attempt"], receipt["runtime"], receipt["timings"]) == (1, "onnxruntime 1", {"run": 0.5})
    assert [one["name"] for one in receipt["outputs"]] == list(FILES)
    trace = (await door.client.get(f"/v1/trace/jobs/{job_id}?direction=descendants")).json()
    assert [edge["relation"] for edge in trace["edges"]] == ["generated", "generated"]
    artifact = trace["edges"][0]["dst"]
    back = (await door.client.get(f"/v1/trace/artifacts/{artifact}?direction=ancestors")).json()
    assert job_id in [node["id"] for node in back["nodes"]]


@pytest.mark.parametrize("path", ["artifacts", "artifacts/x.png", "receipt"])
async def test_an_unfinished_job_has_no_outputs(door: Door, path: str) -> None:
    job_id = (await _submit(door))["id"]
    await door.caught_up()
    answer = await door.client.get(f"/v1/jobs/{job_id}/{path}")
    assert (answer.status_code, answer.json()["code"]) == (409, "invalid_state")


async def test_only_the_jobs_own_names_are_served(door: Door) -> None:
    job_id = await _completed(door)
    for name in ("nothing.png", "..%2Fx", "%2E%2E", "layer_manifest.json%00"):
        assert (await door.client.get(f"/v1/jobs/{job_id}/artifacts/{name}")).status_code in {400, 404}


async def test_deleting_takes_job_and_files_away(door: Door) -> None:
    job_id = await _completed(door)
    answer = await door.client.delete(f"/v1/jobs/{job_id}")
    assert answer.status_code == 204
    assert (await door.get(f"/v1/jobs/{job_id}", answer)).status_code == 404
    assert await door.services.objects.list_page(f"jobs/{job_id}/") == []
    assert (await door.client.delete(f"/v1/jobs/{job_id}")).status_code == 204  # deleting twice is deleting once
    assert (await door.client.delete(f"/v1/jobs/{uuid4()}")).status_code == 404


async def test_jobs_are_filtered(door: Door) -> None:
    session_id = (await door.client.post("/v1/sessions")).json()["id"]
    job_id = (await _submit(door, session_id=session_id))["id"]
    await door.caught_up()

    async def ids(query: str) -> list[str]:
        answer = await door.client.get(f"/v1/jobs?{query}&limit=200")
        return [one["id"] for one in answer.json()["items"]]

    assert await ids(f"session_id={session_id}") == [job_id]
    assert await ids(f"session_id={session_id}&status=completed") == []
    assert await ids(f"session_id={session_id}&kind=noop&status=pending") == [job_id]
    assert await ids("kind=nonsense") == []


async def test_a_job_as_it_was(door: Door) -> None:
    answer = await door.client.post("/v1/jobs", json={"kind": "noop"})
    job_id, then = answer.json()["id"], answer.headers["Event-Position"]
    await complete(door, UUID(job_id), FILES, {})
    assert (await door.client.get(f"/v1/jobs/{job_id}?at={then}")).json() == answer.json()
    assert (await door.client.get(f"/v1/jobs/{job_id}?at={int(then) - 1}")).status_code == 404
    history = (await door.client.get(f"/v1/jobs/{job_id}/history?limit=2")).json()
    epoch = answer.headers["Log-Epoch"]
    assert ([one["version"] for one in history["items"]], history["next"]) == ([1, 2], f"2@{epoch}")
    rest = (await door.client.get(f"/v1/jobs/{job_id}/history?after=2")).json()
    assert (await door.client.get(f"/v1/jobs/{job_id}/history?after={history['next']}")).json() == rest
    assert [one["type"] for one in rest["items"]] == ["job.completed"]
