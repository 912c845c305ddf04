"""The routes of identity with authentication off: everybody is `local`, an ADMIN, and nobody is logged in."""

import pytest
from tests.conftest_service import by
from tests.http.door import Door
from tests.http.identity import registered, token_of

from sightline.adapters.ids import uuid7
from sightline.commands import users as commands
from sightline.domain.access import Role

pytestmark = pytest.mark.asyncio(loop_scope="module")


async def test_with_authentication_off_there_is_nobody_to_log_out(door: Door) -> None:
    me = await door.client.get("/v1/auth/me")
    assert me.json() == {"actor": "local", "role": "ADMIN", "scopes": None, "user": None}
    assert (await door.client.post("/v1/auth/logout")).status_code == 409
    await registered(door, "fay@example.org")
    assert (await token_of(door, "fay@example.org"))["Authorization"]


async def test_the_last_administrator_stays(door: Door) -> None:
    user_id = await registered(door, "only@example.org", Role.ADMIN)
    for step, content in (("role", {"role": "VIEWER"}), ("deactivate", None)):
        answer = await door.client.post(f"/v1/users/{user_id}/{step}", json=content)
        assert (answer.status_code, answer.json()["code"]) == (409, "last_administrator")


async def test_a_deactivated_owner_is_issued_nothing(door: Door) -> None:
    nobody = {"name": "x", "owner_id": str(uuid7())}
    assert (await door.client.post("/v1/api-keys", json=nobody)).status_code == 404
    assert (await door.client.post("/v1/api-keys", json={"name": "x"})).status_code == 422
    user_id = await registered(door, f"{uuid7()}@example.org", Role.OPERATOR)
    command = commands.DeactivateUser(user_id=user_id)
    await door.services.commands.execute(commands.deactivate_user, command, by())
    gone = await door.client.post("/v1/api-keys", json={"name": "x", "owner_id": str(user_id), "role": "OPERATOR"})
    assert gone.status_code == 409
