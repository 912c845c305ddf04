"""Batches at the door: many jobs in one request, all or none, counted exactly."""

import json
from typing import Any
from uuid import UUID, uuid4

import pytest
from tests.http.door import Door, complete

from sightline.domain import batches
from sightline.http.batches import BODY_BYTES_MAX

pytestmark = pytest.mark.asyncio(loop_scope="module")

COUNTS = ("pending", "processing", "completed", "failed", "dead_letters", "cancelled", "expired", "deleted")


async def _submit(door: Door, count: int = 3, **changed: Any) -> dict[str, Any]:
    answer = await door.client.post("/v1/batches", json={"kind": "noop", "jobs": [{}] * count} | changed)
    assert answer.status_code == 201, answer.text
    await door.caught_up()
    said: dict[str, Any] = answer.json()
    return said


async def _jobs(door: Door, batch_id: str, query: str = "") -> list[dict[str, Any]]:
    answer = await door.client.get(f"/v1/batches/{batch_id}/jobs?limit=200{query}")
    assert answer.status_code == 200, answer.text
    items: list[dict[str, Any]] = answer.json()["items"]
    return items


def _counts(view: dict[str, Any]) -> dict[str, int]:
    """Without those that are none; and what they come to is always the whole."""
    assert sum(view[name] for name in COUNTS if name != "dead_letters") == view["total"]
    return {name: view[name] for name in COUNTS if view[name]}


async def test_a_batch_is_its_jobs(door: Door) -> None:
    wanted = [{"ref": "first"}, {"params": {"fail": True}}, {"params": {"sleep_s": 2}, "ref": "é😀"}]
    defaults = {"params": {"sleep_s": 1}, "priority": 2, "timeout_s": 30, "attempts_max": 1}
    answer = await door.client.post("/v1/batches", json={"kind": "noop", "defaults": defaults, "jobs": wanted})
    said = answer.json()
    assert (answer.status_code, said["total"], said["outcome"]) == (201, 3, None)
    assert answer.headers["Location"] == f"/v1/batches/{said['id']}"
    view = await door.get(f"/v1/batches/{said['id']}", answer)
    assert view.json() | said == view.json()  # and more
    assert (view.json()["status"], view.json()["progress"], _counts(view.json())) == ("pending", 0, {"pending": 3})
    assert int(view.headers["Event-Position"]) >= int(answer.headers["Event-Position"])
    jobs = await _jobs(door, said["id"])
    assert [(one["number"], one["ref"]) for one in jobs] == [(1, "first"), (2, None), (3, "é😀")]
    assert [one["params"]["sleep_s"] for one in jobs] == [1, 1, 2]
    assert [one["params"]["fail"] for one in jobs] == [False, True, False]
    assert {(one["priority"], one["timeout_s"], one["attempts_max"]) for one in jobs} == {(2, 30, 1)}
    assert [one["id"] for one in jobs] == [str(batches.job_id(UUID(said["id"]), number)) for number in (1, 2, 3)]
    one = (await door.client.get(f"/v1/jobs/{jobs[0]['id']}")).json()
    assert one == {name: value for name, value in jobs[0].items() if name != "number"}


async def test_counts_follow_the_jobs_and_tell_what_was_so_before(door: Door) -> None:
    said = await _submit(door)
    before = await door.position()
    first, second, third = (UUID(one["id"]) for one in await _jobs(door, said["id"]))
    await complete(door, first, {}, {})
    await door.client.post(f"/v1/jobs/{second}/cancel")
    await door.client.delete(f"/v1/jobs/{third}")
    await door.caught_up()
    view = (await door.client.get(f"/v1/batches/{said['id']}")).json()
    assert _counts(view) == {"completed": 1, "cancelled": 1, "deleted": 1}
    assert (view["status"], view["progress"], view["finished_at"] is None) == ("completed", 100, False)
    assert [one["status"] for one in await _jobs(door, said["id"])] == ["completed", "cancelled"]
    assert [one["id"] for one in await _jobs(door, said["id"], "&status=cancelled")] == [str(second)]
    then = await door.client.get(f"/v1/batches/{said['id']}?at={before}")
    assert (then.status_code, then.headers["Event-Position"]) == (200, str(before))
    assert (_counts(then.json()), then.json()["status"]) == ({"pending": 3}, "pending")
    now = (await door.client.get(f"/v1/batches/{said['id']}?at={await door.position()}")).json()
    assert now == view
    created = int((await door.client.get(f"/v1/batches/{said['id']}/history")).json()["items"][0]["position"])
    assert (await door.client.get(f"/v1/batches/{said['id']}?at={created - 1}")).status_code == 404


async def test_two_batches_of_one_millisecond_are_told_apart(door: Door, monkeypatch: pytest.MonkeyPatch) -> None:
    ids = [UUID(int=(1 << 80) - 1), UUID(int=1)]  # the same time, all zeros
    monkeypatch.setattr("sightline.http.batches.uuid7", ids.pop)
    said = [await _submit(door, count) for count in (2, 3)]
    at = await door.position()
    for one in said:
        assert len(await _jobs(door, one["id"])) == one["total"]
        then = (await door.client.get(f"/v1/batches/{one['id']}?at={at}")).json()
        assert _counts(then) == {"pending": one["total"]}


async def test_a_key_sent_twice_is_one_batch(door: Door) -> None:
    headers = {"Idempotency-Key": f"k-{uuid4()}"}
    body = {"kind": "noop", "jobs": [{}] * 5}
    first = await door.client.post("/v1/batches", json=body, headers=headers)
    before = await door.position()
    again = await door.client.post("/v1/batches", json=body, headers=headers)
    assert (again.status_code, again.json()) == (201, first.json())
    assert again.headers["Event-Position"] == first.headers["Event-Position"]
    other = await door.client.post("/v1/batches", json=body | {"jobs": [{}]}, headers=headers)
    assert (other.status_code, other.json()["code"]) == (422, "idempotency_key_reused")
    assert await door.position() == before


@pytest.mark.parametrize(
    ("changed", "status", "code"),
    [
        ({"jobs": []}, 422, "validation_failed"),
        ({"jobs": [{}] * (batches.JOBS_MAX + 1)}, 422, "validation_failed"),
        ({"jobs": [{"parms": {}}]}, 422, "validation_failed"),
        ({"jobs": [{"ref": "x" * 201}]}, 422, "validation_failed"),
        ({"kind": "nonsense"}, 422, "unknown_kind"),
        ({"jobs": [{}, {"params": {"sleep_s": -1}}]}, 422, "rule_violated"),
        ({"jobs": [{}, {"inputs": [str(uuid4())]}]}, 422, "rule_violated"),
        ({"defaults": {"params": {"sleep": 1}}}, 422, "rule_violated"),
        ({"defaults": {"priority": 10}}, 422, "validation_failed"),
        ({"defaults": {"not_before": "2999-01-01T00:00:00Z"}}, 422, "rule_violated"),
        ({"defaults": {"model_version_id": str(uuid4())}}, 422, "rule_violated"),
        ({"defaults": {"session_id": str(uuid4())}}, 404, "not_found"),
        ({"kind": "layer-photo-realistic", "jobs": [{"inputs": [str(uuid4())]}]}, 404, "not_found"),
        ({"jobs": [{"ref": "\0"}]}, 400, "malformed_json"),
    ],
)
async def test_what_is_refused_leaves_nothing(door: Door, changed: dict[str, Any], status: int, code: str) -> None:
    before = await door.position()
    body = {"kind": "noop", "jobs": [{}] * 2} | changed
    answer = await door.client.post("/v1/batches", json=body)
    assert (answer.status_code, answer.json()["code"]) == (status, code), answer.text
    assert await door.position() == before


async def test_a_refusal_names_the_job(door: Door) -> None:
    wanted: list[dict[str, Any]] = [{}] * 7 + [{"params": {"sleep_s": -1}}]
    answer = await door.client.post("/v1/batches", json={"kind": "noop", "jobs": wanted})
    assert answer.json()["detail"].startswith("rule_violated: job 8: ")


async def test_a_batch_may_be_larger_than_other_bodies_and_no_larger_than_that(door: Door) -> None:
    limit: int = door.services.settings.json_body_bytes_max
    pad = "x" * 200
    jobs = [{"ref": pad}] * (limit // len(pad))
    body = json.dumps({"kind": "noop", "jobs": jobs}).encode()
    assert limit < len(body) < BODY_BYTES_MAX
    sent = {"Content-Type": "application/json"}
    answer = await door.client.post("/v1/batches", content=body, headers=sent)
    assert (answer.status_code, answer.json()["total"]) == (201, len(jobs))
    too_large = await door.client.post("/v1/batches", content=b" " * (BODY_BYTES_MAX + 1), headers=sent)
    assert (too_large.status_code, too_large.json()["code"]) == (413, "payload_too_large")
    elsewhere = await door.client.post("/v1/jobs", content=body, headers=sent)
    assert (elsewhere.status_code, elsewhere.json()["code"]) == (413, "payload_too_large")
    await door.client.post(f"/v1/batches/{answer.json()['id']}/cancel")


async def test_a_batch_is_cancelled_once(door: Door) -> None:
    said = await _submit(door)
    for _ in range(2):
        answer = await door.client.post(f"/v1/batches/{said['id']}/cancel")
        assert (answer.status_code, answer.json()["cancelled_by"]) == (200, "local")
    view = (await door.get(f"/v1/batches/{said['id']}", answer)).json()
    assert (view["status"], _counts(view)) == ("cancelling", {"pending": 3})
    history = (await door.client.get(f"/v1/batches/{said['id']}/history")).json()
    assert [one["type"] for one in history["items"]] == ["batch.submitted", "batch.cancelled"]
    stale = await door.client.post(f"/v1/batches/{said['id']}/cancel", headers={"If-Match": '"1"'})
    assert (stale.status_code, stale.json()["code"]) == (412, "precondition_failed")


async def test_batches_come_in_pages(door: Door) -> None:
    made = [(await _submit(door, count))["id"] for count in (1, 2, 3)]
    after = str(UUID(int=UUID(made[0]).int - 1))
    page = await door.client.get(f"/v1/batches?limit=2&after={after}")
    assert [one["id"] for one in page.json()["items"]] == made[:2]
    rest = (await door.client.get(f"/v1/batches?after={page.json()['next']}")).json()["items"]
    assert [(one["id"], _counts(one)) for one in rest[:1]] == [(made[2], {"pending": 3})]
    jobs = await door.client.get(f"/v1/batches/{made[2]}/jobs?limit=2")
    assert [one["number"] for one in jobs.json()["items"]] == [1, 2]
    more = await door.client.get(f"/v1/batches/{made[2]}/jobs?limit=2&after={jobs.json()['next']}")
    assert [one["number"] for one in more.json()["items"]] == [3]


@pytest.mark.parametrize("path", ["", "/jobs", "/history", "?at=1"])
async def test_a_batch_that_is_not_there(door: Door, path: str) -> None:
    job_id = (await door.client.post("/v1/jobs", json={"kind": "noop"})).json()["id"]
    await door.caught_up()
    for batch_id in (uuid4(), job_id):
        answer = await door.client.get(f"/v1/batches/{batch_id}{path}")
        assert (answer.status_code, answer.json()["code"]) == (404, "not_found")
