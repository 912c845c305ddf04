"""Deliveries at the door: what was sent, what came of it, and once more."""

import asyncio
from collections.abc import AsyncIterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any
from uuid import UUID, uuid4

import pytest
import pytest_asyncio
from tests.conftest_log import LogDatabase
from tests.conftest_service import until
from tests.http.door import Door, complete, opened, settings_for
from tests.http.test_webhooks import registered
from tests.workers.receiver import receiving

from sightline.adapters.embedded.valkey import ValkeyServer
from sightline.adapters.standard_webhooks import verify
from sightline.workers import lifecycle, webhooks

pytestmark = pytest.mark.asyncio(loop_scope="module")


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def door(
    door_database: LogDatabase, valkey_server: ValkeyServer, tmp_path_factory: pytest.TempPathFactory
) -> AsyncIterator[Door]:
    """A door with a deliverer behind it that may reach loopback."""
    directory: Path = tmp_path_factory.mktemp("telling")
    settings = settings_for(
        door_database,
        valkey_server.url,
        directory,
        webhook_networks=["127.0.0.0/8"],
        webhook_plain_http=True,
        webhook_retry_scale=0.001,
    )
    async with opened(settings) as door, lifecycle.open_services(settings) as services:
        stopping = asyncio.Event()
        delivering = asyncio.create_task(webhooks.run(services, stopping))
        yield door
        stopping.set()
        await delivering


async def delivered(door: Door, path: str) -> list[dict[str, Any]]:
    async def found() -> list[dict[str, Any]]:
        items: list[dict[str, Any]] = (await door.client.get(path)).json()["items"]
        return items if items and all(one["status"] == "delivered" for one in items) else []

    return await until(found)


async def test_a_job_is_told_listed_and_told_again(door: Door) -> None:
    async with receiving() as receiver, registered(door, url=receiver.url()) as made:
        job = (
            await door.client.post("/v1/jobs", json={"kind": "noop", "callback_url": receiver.url("/callback")})
        ).json()
        await complete(door, UUID(job["id"]), {}, {})
        await receiver.until(2)
        [told] = [one for one in receiver.received if one.path == "/hook"]
        [callback] = [one for one in receiver.received if one.path == "/callback"]
        assert verify(told.headers, told.body, [made["secret"]], datetime.now(UTC)) == told.id
        keys = (await door.client.get("/v1/webhooks/key")).json()["keys"]
        assert verify(callback.headers, callback.body, keys, datetime.now(UTC)) == callback.id

        path = f"/v1/webhooks/{made['id']}/deliveries"
        [listed] = await delivered(door, path)
        assert (listed["message_id"], listed["type"], listed["attempts_made"]) == (told.id, "job.completed", 1)
        [attempt] = listed["attempts"]
        assert (attempt["status_code"], attempt["error"]) == (204, None)
        [called] = await delivered(door, f"/v1/jobs/{job['id']}/callbacks")
        assert called["message_id"] == callback.id

        one = f"{path}/{listed['id']}"
        again = await door.client.post(f"{one}/redeliver")
        assert (again.status_code, again.json()) == (202, {"delivery_id": listed["id"]})
        await receiver.until(3)
        assert receiver.received[-1].id == told.id
        tested = await door.client.post(f"/v1/webhooks/{made['id']}/test", headers={"Idempotency-Key": "t"})
        same = await door.client.post(f"/v1/webhooks/{made['id']}/test", headers={"Idempotency-Key": "t"})
        assert (tested.status_code, tested.json()) == (202, same.json())
        await receiver.until(1, "webhook.test")
        await _pages(door, path, tested.json()["delivery_id"], listed["id"])
        assert (await door.client.get(one)).json()["attempts_made"] == 2
        assert len(receiver.of("webhook.test")) == 1


async def _pages(door: Door, path: str, *ids: str) -> None:
    """Newest first, one by one."""
    await delivered(door, path)
    after = ""
    for number, wanted in enumerate(ids):
        page = (await door.client.get(f"{path}?limit=1{after}")).json()
        assert [one["id"] for one in page["items"]] == [wanted], number
        after = f"&after={page['next']}"
    assert (await door.client.get(f"{path}?limit=1{after}")).json() == {"items": [], "next": None}
    assert (await door.client.get(f"{path}?status=failed")).json()["items"] == []


async def test_what_is_not_there_is_404_and_what_is_under_way_is_409(door: Door) -> None:
    async with receiving(answer=lambda _: 500) as receiver, registered(door, url=receiver.url()) as made:
        path = f"/v1/webhooks/{made['id']}/deliveries"
        answers = [
            await door.client.get(f"{path}/{uuid4()}"),
            await door.client.post(f"{path}/{uuid4()}/redeliver"),
            await door.client.get(f"/v1/webhooks/{uuid4()}/deliveries"),
            await door.client.get(f"/v1/jobs/{made['id']}/callbacks"),
        ]
        assert [one.status_code for one in answers] == [404] * 4
        tested = (await door.client.post(f"/v1/webhooks/{made['id']}/test")).json()["delivery_id"]
        await receiver.until(2)
        under_way = await door.client.post(f"{path}/{tested}/redeliver")
        assert (under_way.status_code, under_way.json()["code"]) == (409, "invalid_state")
        async with registered(door, url=receiver.url("/other")) as other:
            elsewhere = await door.client.get(f"/v1/webhooks/{other['id']}/deliveries/{tested}")
            assert elsewhere.status_code == 404
