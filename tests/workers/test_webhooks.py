"""The outbox, on a real log: who is told what, once; and by which key it is signed."""

import asyncio
import subprocess
from typing import Any

import psycopg
import pytest
from structlog.testing import capture_logs
from tests.conftest_log import LogDatabase
from tests.conftest_service import Processes, open_service, until
from tests.workers.receiver import Received, Receiver
from tests.workers.told import FAST, LOOPBACK, Told

from sightline.adapters import postgres
from sightline.adapters.egress_rules import Rules
from sightline.adapters.ids import uuid7
from sightline.adapters.settings import Settings
from sightline.adapters.standard_webhooks import CallbackSigner, NotSigned, new_secret, verify
from sightline.commands import users
from sightline.commands import webhooks as commands
from sightline.domain import webhooks as domain
from sightline.domain.access import Role
from sightline.projections import deliveries
from sightline.projections.deliveries import DeliveryRow
from sightline.workers import lifecycle, webhooks


async def test_the_end_of_a_job_is_told_signed_and_small(told: Told, receiver: Receiver) -> None:
    webhook_id, secret = await told.register(receiver.url("/hook?a=b"), "job.completed", "job.failed")
    job_id, position = await told.done()
    [one] = await receiver.until(1)
    assert one.path == "/hook?a=b"
    assert one.headers["content-type"] == "application/json"
    assert verify(one.headers, one.body, [secret], lifecycle.now()) == one.id
    assert one.message["data"] == {"job_id": str(job_id), "kind": "noop", "status": "completed", "position": position}
    failed = await told.service.submit()
    await told.end(failed, "failed")
    [_, two] = await receiver.until(2)
    assert two.message["type"] == "job.failed"
    assert two.message["data"]["error_code"] == "crashed"
    assert b"secret words" not in two.body
    rows = await told.until_delivery(webhook_id, "delivered", count=2)
    assert [row.attempts[0].status_code for row in rows] == [204, 204]
    assert {row.message_id for row in rows} == {one.id, two.id}


async def test_it_is_told_to_whoever_wants_it_and_may_know(told: Told, receiver: Receiver) -> None:
    """Whose job, of which kind, of which type; as of the event."""
    await told.done()  # before anybody wanted to know
    mine, _ = await told.register(receiver.url("/mine"), "job.completed")
    await told.register(receiver.url("/theirs"), "job.completed", owner="bob")
    await told.register(receiver.url("/failures"), "job.failed")
    await told.register(receiver.url("/embed"), "job.completed", kinds=["embed"])
    await told.register(receiver.url("/noop"), "job.completed", kinds=["noop", "embed"])
    await told.register(receiver.url("/models"), "model.activated", kinds=["embed"])
    job_id, _ = await told.done()
    await told.service.install_models()
    await receiver.until(1, "model.activated")
    await told.until_delivery(mine, "delivered")
    seen = {(one.path, one.message["data"].get("job_id")) for one in await receiver.until(3)}
    assert seen == {("/mine", str(job_id)), ("/noop", str(job_id)), ("/models", None)}
    model = receiver.of("model.activated")[0].message["data"]
    assert model.keys() == {"task", "model_id", "previous", "position"}


async def test_nothing_is_told_while_it_is_disabled_nor_after(told: Told, receiver: Receiver) -> None:
    webhook_id, _ = await told.register(receiver.url())
    await told.service.run(commands.disable_webhook, commands.DisableWebhook(webhook_id=webhook_id))
    await told.done()
    await told.service.run(commands.enable_webhook, commands.EnableWebhook(webhook_id=webhook_id))
    job_id, _ = await told.done()
    await told.until_delivery(webhook_id, "delivered")
    gone, _ = await told.register(receiver.url("/gone"))
    await told.service.run(commands.delete_webhook, commands.DeleteWebhook(webhook_id=gone))
    await told.done()
    await told.until_delivery(webhook_id, "delivered", count=2)
    assert receiver.received[0].message["data"]["job_id"] == str(job_id)
    assert {one.path for one in receiver.received} == {"/hook"}


async def test_who_is_out_is_told_nothing_any_more(told: Told, receiver: Receiver) -> None:
    user_id = uuid7()
    owner = f"user:{user_id}"
    webhook_id, _ = await told.register(receiver.url("/out"), owner=owner)
    await told.register(receiver.url("/in"))
    await told.done(owner=owner)
    await receiver.until(1)
    register = users.RegisterUser(
        user_id=user_id, email="out@example.org", full_name="Out", role=Role.VIEWER, password_hash="x"
    )
    await told.service.run(users.register_user, register)
    await told.service.run(users.deactivate_user, users.DeactivateUser(user_id=user_id))
    told.start()
    await told.done(owner=owner)
    await told.done()
    await receiver.until(2)
    assert [one.path for one in receiver.received] == ["/out", "/in"]
    assert len(await told.deliveries(webhook_id)) == 1


async def test_a_secret_stands_nowhere_in_the_clear(told: Told, receiver: Receiver) -> None:
    webhook_id, secret = await told.register(receiver.url("/findable"))
    rotate = commands.RotateSecret(webhook_id=webhook_id, secret=new_secret())
    await told.service.run(commands.rotate_secret, rotate)
    await told.done()
    await told.until_delivery(webhook_id, "delivered")
    await told.service.caught_up()
    tables = ["events", "receipts", "webhooks_v1", "webhook_subscriptions", "webhook_deliveries", "webhook_attempts"]
    with psycopg.connect(told.service.settings.database_url) as connection:
        rows = [
            str(connection.execute(f"SELECT json_agg(t) FROM {table} AS t".encode()).fetchone()) for table in tables
        ]
    text = "\n".join(rows)
    assert "/findable" in text, "the control: what stands there is found"
    for one in (secret, rotate.secret):
        assert one.removeprefix("whsec_")[:20] not in text
    assert secret not in repr(rotate) + repr(await told.state(webhook_id))


async def test_while_a_secret_rotates_both_sign_and_a_new_sealing_key_changes_nothing(
    told: Told, receiver: Receiver
) -> None:
    webhook_id, old = await told.register(receiver.url())
    new = new_secret()
    await told.service.run(commands.rotate_secret, commands.RotateSecret(webhook_id=webhook_id, secret=new))
    vault = told.service.commands.vault
    assert vault is not None
    assert await vault.rotate() >= 1
    await told.done()
    [one] = await receiver.until(1)
    assert len(one.headers["webhook-signature"].split(" ")) == 2
    for secret in (old, new):
        assert verify(one.headers, one.body, [secret], lifecycle.now())
    with pytest.raises(NotSigned):
        verify(one.headers, one.body, [new_secret()], lifecycle.now())


async def test_an_erased_secret_signs_nothing(told: Told, receiver: Receiver) -> None:
    webhook_id, _ = await told.register(receiver.url())
    vault = told.service.commands.vault
    assert vault is not None
    subject = await vault.subject_of(commands.person_of(webhook_id))
    assert subject is not None
    await vault.erase([subject])
    await told.done()
    [row] = await told.until_delivery(webhook_id, "failed")
    assert [one.error for one in row.attempts] == ["secret_erased"]
    assert receiver.received == []


async def test_a_test_and_a_redelivery_are_the_same_way(told: Told, receiver: Receiver) -> None:
    webhook_id, secret = await told.register(receiver.url(), "job.completed")
    receipt = await told.service.run(commands.test_webhook, commands.TestWebhook(webhook_id=webhook_id))
    [one] = await receiver.until(1, domain.TEST_TYPE)
    assert one.message["data"] == {"webhook_id": str(webhook_id)}
    epoch = told.service.services.store.writer.epoch
    assert epoch is not None
    [row] = await told.until_delivery(webhook_id, "delivered")
    assert row.delivery_id == domain.delivery_id(epoch, webhook_id, receipt.position)
    again = commands.Redeliver(webhook_id=webhook_id, delivery_id=row.delivery_id)
    await told.service.run(commands.redeliver, again)
    first, second = await receiver.until(2, domain.TEST_TYPE)
    assert first.id == second.id
    assert verify(second.headers, second.body, [secret], lifecycle.now())
    other, _ = await told.register(receiver.url("/other"))
    await told.service.run(commands.redeliver, commands.Redeliver(webhook_id=other, delivery_id=row.delivery_id))
    await told.done()
    await receiver.until(2, "job.completed")
    assert len(receiver.of(domain.TEST_TYPE)) == 2, "a webhook's own deliveries, and no other's"


async def test_a_callback_is_signed_with_the_services_own_key(told: Told, receiver: Receiver) -> None:
    job_id, position = await told.done(callback_url=receiver.url("/callback"))
    [one] = await receiver.until(1)
    signer = CallbackSigner.load(told.service.settings.data_dir / "keys")
    assert one.headers["webhook-signature"].startswith("v1a,")
    assert verify(one.headers, one.body, signer.public_keys, lifecycle.now())
    assert one.message["data"]["position"] == position

    async def delivered() -> list[DeliveryRow]:
        rows = await deliveries.of_job(told.service.services.store.pool, job_id, limit=10)
        return [row for row in rows if row.status == "delivered"]

    assert len(await until(delivered)) == 1


async def test_a_batch_says_what_it_came_to(told: Told) -> None:
    said = {"type": "batch.completed", "total": 3, "completed": 2, "failed": 1, "cancelled": 0, "note": "x"}
    batch = uuid7()
    data = domain.message_data("batch.completed", batch, 7, said, "noop")
    assert data == {"batch_id": str(batch), "total": 3, "completed": 2, "failed": 1, "cancelled": 0, "position": 7}


# One delivery for each event and receiver


async def noted(settings: Settings) -> tuple[psycopg.AsyncConnection, webhooks.Outbox]:
    connection = await postgres.connect(settings.database_url)
    return connection, await webhooks.open_outbox(connection, Rules.of(settings))


def count(settings: Settings) -> tuple[int, int]:
    """Deliveries, and events and receivers that they are of."""
    with psycopg.connect(settings.database_url) as connection:
        row = connection.execute(
            "SELECT count(*), count(DISTINCT (webhook_id, event_position)) FROM webhook_deliveries"
        ).fetchone()
    assert row is not None
    return row[0], row[1]


async def twice(settings: Settings) -> None:
    """Two outboxes over the same events at once, and a third time after one lost its connection before the commit."""
    pairs = [await noted(settings) for _ in range(2)]
    steps = await asyncio.gather(*(outbox.step() for _, outbox in pairs), return_exceptions=True)
    for connection, _ in pairs:
        await connection.close()
    assert any(isinstance(one, int) for one in steps)
    connection, outbox = await noted(settings)
    while await outbox.step():
        pass
    await connection.close()


async def test_an_event_is_noted_once_whoever_dies_or_races(told_settings: Settings, receiver: Receiver) -> None:
    async with open_service(told_settings) as service:
        told = Told(service)
        for path in ("/a", "/b"):
            await told.register(receiver.url(path), "job.completed")
        for _ in range(5):
            await told.done()
        connection, outbox = await noted(told_settings)

        async def lost(page: webhooks.Page) -> None:
            await webhooks.Outbox._write(outbox, page)
            raise psycopg.OperationalError("the connection was lost before the commit")

        outbox._write = lost  # type: ignore[method-assign]  # the moment of the loss
        with pytest.raises(psycopg.OperationalError):
            await outbox.step()
        await connection.close()
        assert count(told_settings) == (0, 0), "neither the checkpoint nor the deliveries"
        await twice(told_settings)
        assert count(told_settings) == (10, 10)


async def test_without_the_checkpoints_compare_and_set_it_would_be_noted_twice(
    told_settings: Settings, receiver: Receiver, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The control: the checkpoint moves whoever moved it before, and ids do not follow from what is told."""
    async with open_service(told_settings) as service:
        told = Told(service)
        await told.register(receiver.url(), "job.completed")
        await told.done()
        monkeypatch.setattr(webhooks, "MOVE", "UPDATE webhook_outbox SET position = %s WHERE position >= %s - 1000")
        monkeypatch.setattr(domain, "delivery_id", lambda *_: uuid7())
        await twice(told_settings)
        assert count(told_settings) == (2, 1)


# What goes wrong again and again


async def pauses(told: Told, monkeypatch: pytest.MonkeyPatch, count: int) -> list[float]:
    """How long it rests after each failure, though here it does not."""
    rested: list[float] = []

    async def at_once(stopping: asyncio.Event, seconds: float) -> None:
        rested.append(seconds)
        await lifecycle.pause(stopping, 0.0)

    async def enough() -> bool:
        return len(rested) >= count

    with monkeypatch.context() as patched:
        patched.setattr(webhooks, "pause", at_once)
        told.start()
        await until(enough)
        await told.stop()
    return rested[:count]


REFUSE = (
    "CREATE FUNCTION refuse() RETURNS trigger LANGUAGE plpgsql AS 'BEGIN RAISE ''no''; END';"
    "CREATE TRIGGER refuse BEFORE UPDATE ON webhook_outbox EXECUTE FUNCTION refuse()"
)
RETRIES = list(webhooks.RETRY_PAUSE_S)


async def test_the_pause_grows_until_a_page_is_noted(
    told_settings: Settings, monkeypatch: pytest.MonkeyPatch, log_database: LogDatabase, receiver: Receiver
) -> None:
    """A page that is refused each time: that the outbox could be opened is no success. A page that was noted is one."""
    async with open_service(told_settings) as service:
        told = Told(service)
        webhook_id, _ = await told.register(receiver.url())
        with log_database.connect(superuser=True) as superuser:
            superuser.execute(REFUSE)
            await told.done()
            assert await pauses(told, monkeypatch, 7) == [*RETRIES, RETRIES[-1]]
            superuser.execute("ALTER TABLE webhook_outbox DISABLE TRIGGER refuse")
            told.start()
            await told.until_delivery(webhook_id, "delivered")
            await told.stop()
            superuser.execute("ALTER TABLE webhook_outbox ENABLE TRIGGER refuse")
        await told.done()
        assert await pauses(told, monkeypatch, 2) == RETRIES[:2]


@pytest.mark.parametrize("damage", ["DELETE FROM events", "UPDATE events SET data = '[]'"], ids=["hole", "payload"])
async def test_a_damaged_log_is_an_alarm_and_no_end(
    told_settings: Settings, monkeypatch: pytest.MonkeyPatch, log_database: LogDatabase, receiver: Receiver, damage: str
) -> None:
    """What it cannot go past it says again and again; the process, and what is delivered already, live on."""
    async with open_service(told_settings) as service:
        told = Told(service)
        await told.register(receiver.url())
        await told.done()
        with log_database.connect(superuser=True) as superuser:
            superuser.execute("ALTER TABLE events DISABLE TRIGGER ALL")
            superuser.execute(f"{damage} WHERE position = 1".encode())
            with capture_logs() as said:
                await pauses(told, monkeypatch, 3)
        assert [one["log_level"] for one in said if one["event"] == "webhooks_stand"][:3] == ["critical"] * 3


# Processes


def deliverer(processes: Processes) -> "subprocess.Popen[bytes]":
    """As `sightline deliver`, with the settings of these tests."""
    given: dict[str, Any] = FAST | {"webhook_networks": ",".join(LOOPBACK)}
    return processes.start("deliver", **given)


async def test_killed_between_the_request_and_the_mark_it_is_delivered_again_and_nothing_is_lost(
    told_settings: Settings, processes: Processes, receiver: Receiver
) -> None:
    async with open_service(told_settings) as service:
        told = Told(service)
        webhook_id, _ = await told.register(receiver.url(), "job.completed")
        positions = [(await told.done())[1] for _ in range(3)]
        first = deliverer(processes)

        def kill(_: Received) -> int:
            first.kill()
            return 204

        receiver.answer = kill
        await receiver.until(1)
        first.wait()
        [killed, *_] = receiver.received
        assert [row.status for row in await told.deliveries(webhook_id)] == ["pending"] * 3
        receiver.answer = lambda _: 204
        deliverer(processes)
        rows = await told.until_delivery(webhook_id, "delivered", count=3)
        assert sorted(row.event_position for row in rows) == positions
        again = [one for one in receiver.received if one.id == killed.id]
        assert len(again) >= 2
        assert {one.body for one in again} == {killed.body}


async def test_of_two_deliverers_one_works_and_the_other_takes_over(
    told_settings: Settings, processes: Processes, receiver: Receiver
) -> None:
    async with open_service(told_settings) as service:
        told = Told(service)
        webhook_id, _ = await told.register(receiver.url(), "job.completed")
        one, _ = deliverer(processes), deliverer(processes)
        await told.done()
        await told.until_delivery(webhook_id, "delivered")
        assert len(receiver.received) == 1
        one.kill()
        one.wait()
        await told.done()
        await told.until_delivery(webhook_id, "delivered", count=2)
        assert len(receiver.received) == 2
