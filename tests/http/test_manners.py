"""What every answer carries and every request may ask: positions, versions, keys, ids, headers."""

import asyncio
from uuid import UUID, uuid4

import pytest
from msgspec.structs import replace
from tests.http.door import Door, client_of

pytestmark = pytest.mark.asyncio(loop_scope="module")


async def test_post_then_get_holds_for_whoever_passes_the_position(door: Door) -> None:
    async def one() -> None:
        made = await door.client.post("/v1/sessions")
        read = await door.get(f"/v1/sessions/{made.json()['id']}", made)
        assert read.status_code == 200
        assert int(read.headers["Event-Position"]) >= int(made.headers["Event-Position"])

    await asyncio.gather(*(one() for _ in range(50)))


async def test_a_position_that_is_not_there_yet_is_425_at_once(door: Door) -> None:
    beyond = str(await door.position() + 1_000)
    async with asyncio.timeout(9):  # at once, that is: whoever waits does so for ten seconds
        answer = await door.client.get("/v1/jobs", headers={"Min-Position": beyond, "Prefer": "wait=10"})
    assert (answer.status_code, answer.json()["code"]) == (425, "not_yet_projected")
    assert answer.headers["Retry-After"] == "1"


async def test_commands_never_wait(door: Door) -> None:
    answer = await door.client.post("/v1/sessions", headers={"Min-Position": str(10**9)})
    assert answer.status_code == 201


async def test_if_match(door: Door) -> None:
    made = await door.client.post("/v1/sessions")
    path = f"/v1/sessions/{made.json()['id']}/close"
    for stale in ('"7"', 'W/"1"', '"x"', '"2", "3"'):
        answer = await door.client.post(path, headers={"If-Match": stale})
        assert (answer.status_code, answer.json()["code"]) == (412, "precondition_failed")
    closed = await door.client.post(path, headers={"If-Match": f'"5", {made.headers["ETag"]}'})
    assert (closed.status_code, closed.headers["ETag"]) == (200, '"2"')
    assert (await door.client.post(path, headers={"If-Match": made.headers["ETag"]})).status_code == 412
    assert (await door.client.post(path, headers={"If-Match": "*"})).status_code == 200


async def test_if_match_rests_on_the_log_not_on_what_is_remembered(door: Door) -> None:
    """Another process moved the stream; this one still remembers the version before."""
    made = await door.client.post("/v1/sessions")
    remembered = dict(door.services.commands.states)
    path = f"/v1/sessions/{made.json()['id']}/close"
    closed = await door.client.post(path)
    door.services.commands.states.update(remembered)
    assert (await door.client.post(path, headers={"If-Match": made.headers["ETag"]})).status_code == 412
    door.services.commands.states.update(remembered)
    assert (await door.client.post(path, headers={"If-Match": closed.headers["ETag"]})).status_code == 200


async def test_the_same_key_is_one_command(door: Door) -> None:
    key = {"Idempotency-Key": str(uuid4())}
    before = await door.position()
    answers = await asyncio.gather(
        *(door.client.post("/v1/jobs", json={"kind": "noop"}, headers=key) for _ in range(10))
    )
    assert {answer.status_code for answer in answers} == {201, 409}
    waiting = [answer for answer in answers if answer.status_code == 409]
    assert {(one.json()["code"], one.headers["Retry-After"]) for one in waiting} == {("idempotency_key_in_use", "1")}
    again = await door.client.post("/v1/jobs", json={"kind": "noop"}, headers=key)
    answers = [answer for answer in (*answers, again) if answer.status_code == 201]
    assert len({answer.json()["id"] for answer in answers}) == 1
    assert len({answer.headers["Event-Position"] for answer in answers}) == 1
    assert await door.position() == before + 1
    assert door.services.keys_under_way == set()


async def test_without_the_map_of_this_process_the_log_still_makes_them_one(
    door: Door, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As two processes would; and the control of the test above."""

    class Blind(set[UUID]):
        def __contains__(self, _: object) -> bool:
            return False

    under_way = Blind()
    async with client_of(replace(door.services, keys_under_way=under_way)) as client:
        key = {"Idempotency-Key": str(uuid4())}
        before = await door.position()
        answers = await asyncio.gather(
            *(client.post("/v1/jobs", json={"kind": "noop"}, headers=key) for _ in range(10))
        )
    assert {answer.status_code for answer in answers} == {201}
    assert len({answer.json()["id"] for answer in answers}) == 1
    assert await door.position() == before + 1


async def test_a_key_is_free_again_whichever_way_its_request_ended(door: Door) -> None:
    key = {"Idempotency-Key": str(uuid4())}
    for refused in ({"kind": "nonsense"}, {"kind": "noop", "inputs": [str(uuid4())]}):
        assert (await door.client.post("/v1/jobs", json=refused, headers=key)).status_code in {404, 422}
        assert door.services.keys_under_way == set()
    assert (await door.client.post("/v1/jobs", json={"kind": "noop"}, headers=key)).status_code == 201
    assert door.services.keys_under_way == set()


async def test_the_same_key_with_another_request_is_422(door: Door) -> None:
    key = {"Idempotency-Key": str(uuid4())}
    assert (await door.client.post("/v1/jobs", json={"kind": "noop"}, headers=key)).status_code == 201
    for other in (
        await door.client.post("/v1/jobs", json={"kind": "noop", "priority": 1}, headers=key),
        await door.client.post("/v1/sessions", headers=key),
    ):
        assert (other.status_code, other.json()["code"]) == (422, "idempotency_key_reused")


async def test_a_refused_request_does_not_use_its_key_up(door: Door) -> None:
    key = {"Idempotency-Key": str(uuid4())}
    session = (await door.client.post("/v1/sessions")).json()["id"]
    await door.client.post(f"/v1/sessions/{session}/close")
    refused = await door.client.post("/v1/jobs", json={"kind": "noop", "session_id": session}, headers=key)
    assert refused.status_code == 409
    assert (await door.client.post("/v1/jobs", json={"kind": "noop"}, headers=key)).status_code == 201


async def test_ids_are_echoed_where_they_are_fit_and_made_where_not(door: Door) -> None:
    answer = await door.client.post("/v1/sessions", headers={"X-Request-ID": "req-1", "X-Correlation-ID": "cor-1"})
    assert answer.headers["X-Request-ID"] == "req-1"
    stream = await door.client.get("/v1/events", params={"stream": answer.json()["id"]})
    event = stream.json()["items"][0]
    assert (event["request_id"], event["correlation_id"]) == ("req-1", "cor-1")
    for unfit in ("a b", "x" * 129, "", 'a"b'):
        made = await door.client.get("/livez", headers={"X-Request-ID": unfit})
        assert made.headers["X-Request-ID"] not in {unfit, ""}


async def test_security_headers_are_on_every_answer(door: Door) -> None:
    for path in ("/", "/nothing", "/docs", "/v1/jobs", "/api/jobs/x"):
        headers = (await door.client.get(path)).headers
        assert headers["X-Content-Type-Options"] == "nosniff"
        assert headers["X-Frame-Options"] == "DENY"
        assert headers["Referrer-Policy"] == "no-referrer"
        assert "base-uri 'none'; frame-ancestors 'none'" in headers["Content-Security-Policy"]
        assert ("script-src" in headers["Content-Security-Policy"]) == (path == "/docs")


async def test_no_header_is_said_twice(door: Door) -> None:
    for path in ("/v1/jobs", "/docs", "/metrics", "/api/jobs"):
        names = [name for name, _ in (await door.client.get(path)).headers.raw]
        assert len(names) == len(set(names))
