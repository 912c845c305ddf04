"""Dead letters with authentication: one's own are seen, and only who may requeue does."""

import pytest
from tests.http.door import Door
from tests.http.identity import headers_of, registered
from tests.http.test_dead_letters import PATH, dead

from sightline.domain.access import Role

pytestmark = pytest.mark.asyncio(loop_scope="module")


async def test_a_letter_is_its_owners_and_a_manager_may_requeue_all(secured_door: Door) -> None:
    door = secured_door
    ada, grace = [await registered(door, f"{name}@dead.example", Role.OPERATOR) for name in ("ada", "grace")]
    boss = await registered(door, "boss@dead.example", Role.MANAGER)
    adas = await dead(door, f"user:{ada}", "owned")
    await door.caught_up()
    for who, seen in ((ada, [str(adas)]), (grace, []), (boss, [str(adas)])):
        page = await door.client.get(PATH, headers=await headers_of(door, who))
        assert [one["id"] for one in page.json()["items"]] == seen
        assert len(page.json()["counts"]) == len(seen)
    refused = await door.client.post(f"{PATH}/requeue", json={}, headers=await headers_of(door, ada))
    assert refused.status_code == 403
    done = await door.client.post(f"{PATH}/requeue", json={"code": "owned"}, headers=await headers_of(door, boss))
    assert done.json()["requeued"] == 1
