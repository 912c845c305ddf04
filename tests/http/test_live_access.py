"""Who is told what, for how long: of one's own jobs, until the credential is taken back or the log is another."""

import json
from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import UUID

import pytest
import pytest_asyncio
from tests.conftest_log import LogDatabase
from tests.conftest_service import by
from tests.http.door import Door, opened, settings_for
from tests.http.identity import headers_of, registered
from tests.http.live_clients import listening, port_of, served, submitted, talking
from tests.http.test_live import _listeners

from sightline.adapters.embedded.valkey import ValkeyServer
from sightline.adapters.ids import uuid7
from sightline.commands import users
from sightline.domain.access import Role
from sightline.http import live
from sightline.http.feed import Feed
from sightline.http.frames import Asked, Frame
from sightline.http.server import Server

pytestmark = pytest.mark.asyncio(loop_scope="module")


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def server(secured_door: Door) -> AsyncIterator[Server]:
    async with served(secured_door.services) as server:
        yield server


@pytest.fixture
def port(server: Server) -> int:
    return port_of(server)


async def somebody(door: Door, role: Role) -> tuple[UUID, str, dict[str, str]]:
    """An id, the actor and the header of somebody new."""
    user_id = await registered(door, f"{uuid7()}@example.org", role)
    return user_id, f"user:{user_id}", await headers_of(door, user_id)


@pytest.mark.parametrize("is_kept", [True, False])
async def test_everybody_is_told_of_his_own(
    secured_door: Door, port: int, monkeypatch: pytest.MonkeyPatch, is_kept: bool
) -> None:
    """With filters that overlook whose a job is, the control, he is told of others' too."""
    if not is_kept:
        fits = Frame.fits
        monkeypatch.setattr(
            Frame, "fits", lambda one, asked: fits(one, Asked(job=asked.job, batch=asked.batch, kind=asked.kind))
        )
        monkeypatch.setattr(Asked, "key", property(lambda _: None))
    _, ada, adas = await somebody(secured_door, Role.OPERATOR)
    _, bob, _ = await somebody(secured_door, Role.OPERATOR)
    _, _, auditors = await somebody(secured_door, Role.AUDITOR)
    async with (
        listening(port, "/v1/stream", adas) as own,
        listening(port, "/v1/stream", auditors) as everything,
        talking(port, adas) as socket,
    ):
        socket.say({"subscribe": {}})
        await socket.next()
        theirs = await submitted(secured_door.services, 1, owner=bob)
        mine = await submitted(secured_door.services, 1, owner=ada)
        first, second = [(await everything.until("job.submitted"))[0].data["stream_id"] for _ in range(2)]
        assert [first, second] == [str(theirs[0]), str(mine[0])]
        told = (await own.until("job.submitted"))[0].data["stream_id"]
        assert (told == str(mine[0])) == is_kept
        assert ((await socket.next())["data"]["stream_id"] == str(mine[0])) == is_kept


async def test_what_is_others_is_refused_by_its_name(secured_door: Door, port: int) -> None:
    _, _, adas = await somebody(secured_door, Role.OPERATOR)
    _, bob, bobs = await somebody(secured_door, Role.OPERATOR)
    answer = await secured_door.client.post("/v1/batches", json={"kind": "noop", "jobs": [{}]}, headers=bobs)
    batch_id = answer.json()["id"]
    [job_id] = await submitted(secured_door.services, 1, owner=bob)
    paths = [f"/v1/jobs/{job_id}/events", f"/v1/batches/{batch_id}/events"]
    paths += [f"/v1/stream?job={job_id}", f"/v1/stream?batch={batch_id}"]
    for path in paths:
        async with listening(port, path, adas) as stream:
            assert (stream.status, (await stream.body())["code"]) == (403, "forbidden"), path
        async with listening(port, path, bobs) as stream:
            assert stream.status == 200, path
    async with talking(port, adas) as socket:
        for wanted in ({"job": str(job_id)}, {"batch": batch_id}):
            socket.say({"subscribe": wanted})
            assert (await socket.next())["error"]["code"] == "forbidden"


async def test_nobody_is_told_anything(port: int) -> None:
    for headers in ({}, {"Authorization": "Bearer x"}, {"X-API-Key": "sl_0_0"}):
        async with listening(port, "/v1/stream", headers) as stream:
            assert (stream.status, (await stream.body())["code"]) == (401, "not_authenticated")
        async with talking(port, headers) as socket:
            assert (socket.status, json.loads(socket.body)["code"]) == (401, "not_authenticated")
            assert socket.headers["www-authenticate"].startswith("Bearer")


async def test_a_browser_shows_its_token_in_a_subprotocol(secured_door: Door, port: int) -> None:
    _, _, adas = await somebody(secured_door, Role.VIEWER)
    token = adas["Authorization"].removeprefix("Bearer ")
    async with talking(port, subprotocols=["sightline.v1", f"bearer.{token}"]) as socket:
        assert (socket.status, socket.subprotocol) == (101, "sightline.v1")
    async with talking(port, subprotocols=[f"bearer.{token}"]) as socket:
        assert (socket.status, socket.subprotocol) == (101, None), "it is never said back"
    async with talking(port, subprotocols=["sightline.v1", "bearer.x"]) as socket:
        assert socket.status == 401


async def _deactivated(door: Door, user_id: UUID) -> None:
    await door.services.commands.execute(users.deactivate_user, users.DeactivateUser(user_id=user_id), by("system"))


async def _logged_out(door: Door, user_id: UUID) -> None:
    await door.services.commands.execute(users.revoke_tokens, users.RevokeTokens(user_id=user_id), by("system"))


async def _with_another_role(door: Door, user_id: UUID) -> None:
    command = users.ChangeRole(user_id=user_id, role=Role.VIEWER)
    await door.services.commands.execute(users.change_role, command, by("system"))


@pytest.mark.parametrize("take_back", [_deactivated, _logged_out, _with_another_role])
async def test_whose_credential_is_taken_back_is_told_nothing_more(
    secured_door: Door, port: int, take_back: Any
) -> None:
    user_id, _, headers = await somebody(secured_door, Role.MANAGER)
    _, _, others = await somebody(secured_door, Role.MANAGER)
    async with (
        listening(port, "/v1/stream", headers) as stream,
        listening(port, "/v1/stream", others) as other,
        talking(port, headers) as socket,
    ):
        socket.say({"subscribe": {}})
        await socket.next()
        [before] = await submitted(secured_door.services, 1)
        await other.until("job.submitted")
        await take_back(secured_door, user_id)
        [after] = await submitted(secured_door.services, 1)
        told = await stream.rest()
        assert [one.name for one in told] == ["job.submitted", "end"]
        assert told[0].data["stream_id"] == str(before)
        assert told[1].data == {"reason": "not_authenticated"}
        assert (await socket.next())["data"]["stream_id"] == str(before)
        assert (await socket.ended(), socket.reason) == (1008, "not_authenticated")
        assert (await other.until("job.submitted"))[0].data["stream_id"] == str(after)


async def test_a_key_that_is_taken_back(secured_door: Door, port: int) -> None:
    _, _, headers = await somebody(secured_door, Role.OPERATOR)
    asked = {"name": "k", "role": "VIEWER", "expires_at": (datetime.now(UTC) + timedelta(days=1)).isoformat()}
    made = await secured_door.client.post("/v1/api-keys", json=asked, headers=headers)
    assert made.status_code == 201, made.text
    async with listening(port, "/v1/stream", {"X-API-Key": made.json()["key"]}) as stream:
        assert stream.status == 200
        gone = await secured_door.client.delete(f"/v1/api-keys/{made.json()['id']}", headers=headers)
        assert gone.status_code == 204
        assert [one.data for one in await stream.rest()] == [{"reason": "not_authenticated"}]


async def test_who_is_not_looked_at_again_goes_on(
    secured_door: Door, port: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The control. But a sign of life looks, too: also for what has merely expired."""
    monkeypatch.setattr(Feed, "_doubt", lambda *_: None)
    user_id, _, headers = await somebody(secured_door, Role.MANAGER)
    async with listening(port, "/v1/stream", headers) as stream:
        await submitted(secured_door.services, 1)
        await stream.until("job.submitted")
        await _deactivated(secured_door, user_id)
        await submitted(secured_door.services, 1)
        await stream.until("job.submitted")
    user_id, _, headers = await somebody(secured_door, Role.MANAGER)
    monkeypatch.setattr(live, "HEARTBEAT_S", 0.1)
    async with listening(port, "/v1/stream", headers) as stream:
        await _deactivated(secured_door, user_id)
        assert (await stream.rest())[-1].data == {"reason": "not_authenticated"}
    await _listeners(secured_door, 0)


async def test_another_epoch_ends_what_was_of_the_one_before(
    log_database: LogDatabase, valkey_server: ValkeyServer, tmp_path_factory: pytest.TempPathFactory
) -> None:
    """A position means nothing in a log that was restored: whoever comes back with one is told so."""
    directory = tmp_path_factory.mktemp("restored")
    async with (
        opened(settings_for(log_database, valkey_server.url, directory)) as door,
        served(door.services) as server,
    ):
        port = port_of(server)
        async with listening(port, "/v1/stream") as stream, talking(port) as socket:
            socket.say({"subscribe": {}})
            await socket.next()
            await submitted(door.services, 1)
            seen = (await stream.until("job.submitted"))[-1].id
            with log_database.connect() as connection:
                connection.execute("SELECT renew_epoch()")
            assert (await stream.rest())[-1].data == {"reason": "epoch_changed"}
            await socket.next()
            assert (await socket.ended(), socket.reason) == (1012, "epoch_changed")
        async with listening(port, "/v1/stream", {"Last-Event-ID": seen}) as stream:
            assert (stream.status, (await stream.body())["code"]) == (409, "epoch_changed")
        async with listening(port, "/v1/stream") as stream:
            await submitted(door.services, 1)
            assert (await stream.until("job.submitted"))[-1].id.partition("@")[2] != seen.partition("@")[2]


def _without_one(database: LogDatabase) -> None:
    """The log with a hole in it; its epoch is the same, so that nothing else tells."""
    with database.connect(superuser=True) as connection:
        connection.execute("ALTER TABLE events DISABLE TRIGGER ALL")
        connection.execute("DELETE FROM events WHERE position = (SELECT max(position) - 1 FROM events)")
        connection.execute("ALTER TABLE events ENABLE TRIGGER ALL")


async def test_a_hole_in_the_log_ends_it(
    log_database: LogDatabase, valkey_server: ValkeyServer, tmp_path_factory: pytest.TempPathFactory
) -> None:
    directory = tmp_path_factory.mktemp("damaged")
    async with (
        opened(settings_for(log_database, valkey_server.url, directory)) as door,
        served(door.services) as server,
    ):
        began = await door.position()
        await submitted(door.services, 5)
        await door.caught_up()
        _without_one(log_database)
        async with listening(port_of(server), f"/v1/stream?after={began}") as stream:
            assert (await stream.rest())[-1].data == {"reason": "log_damaged"}
