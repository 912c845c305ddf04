"""Attempts: until it is taken, by the schedule, whoever hangs."""

import asyncio
import base64
from collections.abc import Callable, Sequence

import psycopg
import pytest
from msgspec.structs import replace
from tests.conftest_service import open_service, until
from tests.workers.receiver import Receiver, receiving
from tests.workers.told import Told, note, telling

from sightline.adapters.egress import Egress
from sightline.adapters.egress_rules import Rules
from sightline.adapters.ids import uuid7
from sightline.adapters.settings import Settings
from sightline.commands import webhooks as commands
from sightline.workers import deliveries, lifecycle
from sightline.workers.deliveries import Dispatcher


def in_turn(*statuses: int) -> Callable[[object], int]:
    """Answers one after the other; the last one stays."""
    left = list(statuses)
    return lambda _: left.pop(0) if len(left) > 1 else left[0]


async def test_what_is_not_taken_is_tried_again_as_the_same_message(told: Told, receiver: Receiver) -> None:
    receiver.answer = in_turn(500, 302, 404, 200)
    receiver.headers["Location"] = "http://127.0.0.1:1/"
    receiver.body = b"thank\0you"
    webhook_id, _ = await told.register(receiver.url())
    await told.done()
    [row] = await told.until_delivery(webhook_id, "delivered")
    assert [one.status_code for one in row.attempts] == [500, 302, 404, 200]
    assert [one.number for one in row.attempts] == [1, 2, 3, 4] == list(range(1, row.attempts_made + 1))
    assert {one.answer for one in row.attempts} == {"thank you"}
    assert {one.id for one in receiver.received} == {row.message_id}
    assert {one.body for one in receiver.received} == {receiver.received[0].body}


async def test_the_last_attempt_is_the_last(told_settings: Settings) -> None:
    settings = replace(told_settings, webhook_retry_scale=0.0)
    async with receiving(answer=lambda _: 503) as receiver, telling(settings) as told:
        webhook_id, _ = await told.register(receiver.url())
        await told.done()
        [row] = await told.until_delivery(webhook_id, "failed")
        assert row.attempts_made == len(row.attempts) == len(receiver.received) == 10
        assert (await told.state(webhook_id)).status == "active"


async def test_who_says_gone_is_asked_no_more(told: Told, receiver: Receiver) -> None:
    receiver.answer = lambda _: 410
    webhook_id, _ = await told.register(receiver.url())
    await told.done()
    [row] = await told.until_delivery(webhook_id, "failed")

    async def disabled() -> bool:
        return (await told.state(webhook_id)).disabled_reason == "gone"

    assert await until(disabled)
    assert [one.status_code for one in row.attempts] == [410]
    await told.done()
    other, _ = await told.register(receiver.url("/other"))
    receiver.answer = lambda _: 204
    await told.done()
    await told.until_delivery(other, "delivered")
    assert len(receiver.received) == 2


@pytest.mark.parametrize(("days", "status"), [(0.0, "disabled"), (5.0, "active")])
async def test_who_takes_nothing_for_days_is_disabled(told_settings: Settings, days: float, status: str) -> None:
    settings = replace(told_settings, webhook_failing_days_max=days)
    async with receiving(answer=lambda _: 500) as receiver, telling(settings) as told:
        webhook_id, _ = await told.register(receiver.url())
        await told.done()
        if status == "disabled":

            async def disabled() -> bool:
                return (await told.state(webhook_id)).disabled_reason == "failing"

            assert await until(disabled)
            await told.until_delivery(webhook_id, "abandoned")
        else:
            await receiver.until(3)
            assert (await told.state(webhook_id)).status == "active"


async def test_one_that_is_taken_ends_the_days_of_failing(told: Told, receiver: Receiver) -> None:
    receiver.answer = in_turn(500, 200)
    webhook_id, _ = await told.register(receiver.url())
    await told.done()
    await told.until_delivery(webhook_id, "delivered")

    async def since() -> list[object]:
        with psycopg.connect(told.service.settings.database_url) as connection:
            found = connection.execute("SELECT failing_since FROM webhook_subscriptions").fetchall()
        return [1] if found == [(None,)] else []

    assert await until(since)


async def test_the_rules_hold_at_every_attempt(told_settings: Settings, receiver: Receiver) -> None:
    """What was taken under other rules, or from a name that has moved."""
    asked: list[str] = []

    async def resolve(name: str) -> list[str]:
        asked.append(name)
        return ["127.0.0.1"] if len(asked) == 1 else ["192.168.0.1"] if len(asked) == 2 else ["127.0.0.1"]

    rules = Rules.of(told_settings)
    async with Egress(rules, timeout_s=5, resolve=resolve) as egress, telling(told_settings, egress) as told:
        webhook_id, _ = await told.register(receiver.url(host="hooks.example"))
        await told.done()
        await told.until_delivery(webhook_id, "delivered")
        await told.done()
        rows = await told.until_delivery(webhook_id, "delivered", count=2)
        assert [one.error for one in rows[0].attempts] == ["url_refused:address", None]
        assert len(receiver.received) == 2
        assert asked == ["hooks.example"] * 3


@pytest.mark.parametrize(
    ("host", "error"), [("nobody.invalid", "unresolved"), ("127.0.0.1", "unreachable")], ids=["name", "port"]
)
async def test_why_there_was_no_answer_is_a_word(told_settings: Settings, host: str, error: str) -> None:
    async with receiving() as gone:
        url = gone.url(host=host)
    async with telling(told_settings) as told:
        webhook_id, _ = await told.register(url)
        await told.done()

        async def tried() -> list[str | None]:
            return [one.error for row in await told.deliveries(webhook_id) for one in row.attempts]

        assert (await until(tried))[0] == error


# Whoever hangs holds up nobody else.


async def hanging(settings: Settings, monkeypatch: pytest.MonkeyPatch) -> tuple[int, bool]:
    """Of a host that never answers, with a queue of ten: how many requests it holds when somebody else is to be told,
    and whether there was a place for that.
    """
    monkeypatch.setattr(deliveries, "DRAIN_S", 0.05)
    settings = replace(settings, webhook_concurrency_max=4, webhook_timeout_s=60)
    async with (
        receiving(answer=lambda _: 0) as dead,
        receiving() as alive,
        open_service(settings) as service,
        Egress(Rules.of(settings), timeout_s=60) as egress,
    ):
        told = Told(service)
        await told.register(dead.url(host="localhost"))
        for _ in range(10):
            await told.done()
        await note(settings)
        async with Dispatcher(service.services, egress) as dispatcher:
            await dispatcher.start_due()
            await dead.until(settings.webhook_per_host_max)
            webhook_id, _ = await told.register(alive.url())
            await told.done()
            await note(settings)
            await dispatcher.start_due()
            is_told = len(dispatcher._under_way) > settings.webhook_per_host_max
            if is_told:
                await told.until_delivery(webhook_id, "delivered")
            return len(dead.received), is_told


async def test_a_host_that_hangs_holds_its_own_places_and_no_other(
    told_settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert await hanging(replace(told_settings, webhook_per_host_max=2), monkeypatch) == (2, True)


async def test_without_a_bound_for_a_host_it_would_hold_all(
    told_settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert await hanging(replace(told_settings, webhook_per_host_max=4), monkeypatch) == (4, False)


async def test_hosts_that_fail_have_a_lane_of_their_own(told_settings: Settings, receiver: Receiver) -> None:
    """However many of them there are: known to hang, each has one place in it, and the others keep theirs."""
    settings = replace(told_settings, webhook_concurrency_max=4)
    async with open_service(settings) as service, Egress(Rules.of(settings), timeout_s=60) as egress:
        told = Told(service)
        async with Dispatcher(service.services, egress) as dispatcher:
            assert (dispatcher._wide, dispatcher._narrow) == (4, 1)
            slow = deliveries.Outcome(started_at=lifecycle.now(), error="timed_out")
            quick = deliveries.Outcome(started_at=lifecycle.now(), status_code=500)
            for number in range(50):
                dispatcher._remember(f"dead-{number}", slow)
            dispatcher._remember("dead-0", quick)
            assert len(dispatcher._failing) == 49
            dispatcher._lanes[True] = dispatcher._narrow  # as if one of them hung
            await told.register(receiver.url())
            await told.done()
            await note(settings)
            await dispatcher.start_due()
            await receiver.until(1)


# Nobody is always last.


def put(settings: Settings, hosts: Sequence[str], *, finished: bool = False) -> None:
    """A callback's delivery for each, the first one due for longest; `finished`: and over since long ago."""
    with psycopg.connect(settings.database_url) as connection:
        for number, host in enumerate(hosts):
            connection.execute(
                "INSERT INTO webhook_deliveries (delivery_id, job_id, url, host, message_id, type, body,"
                " event_position, status, attempts_made, tries_left, next_attempt_at, created_at, finished_at)"
                " VALUES (%s, %s, 'http://x/', %s, 'm', 't', '{}', 1, %s, 0, 9, now() - make_interval(secs => %s),"
                " now(), CASE WHEN %s THEN now() - interval '31 days' END)",
                (uuid7(), uuid7(), host, "delivered" if finished else "pending", 1_000 - number, finished),
            )


async def due_hosts(settings: Settings, limit: int) -> list[str]:
    """Whom so many places go to, of hosts of which one has waited for longest, and with three deliveries."""
    async with open_service(settings) as service, Egress(Rules.of(settings), timeout_s=5) as egress:
        put(settings, ["z", "z", "z", "a", "y", "b"])
        dispatcher = Dispatcher(service.services, egress)
        return [due.host for due in await dispatcher._due(failing=False, limit=limit, per_host=3)]


async def test_places_go_in_turn_to_the_hosts_that_waited_longest(told_settings: Settings) -> None:
    assert await due_hosts(told_settings, 3) == ["z", "a", "y"]


@pytest.mark.parametrize(
    ("order", "first"), [("", {"a", "b", "y"}), ("ORDER BY d.next_attempt_at", {"z"})], ids=["none", "age"]
)
async def test_in_another_order_somebody_is_always_last(
    told_settings: Settings, monkeypatch: pytest.MonkeyPatch, order: str, first: set[str]
) -> None:
    """The controls: by the index alone it is the alphabet's, by age alone it is a long queue's."""
    monkeypatch.setattr(deliveries, "DUE", deliveries.DUE.replace("ORDER BY d.turn, d.next_attempt_at", order))
    assert set(await due_hosts(told_settings, 3)) == first


@pytest.mark.parametrize("before", [True, False], ids=["before the request", "after it"])
async def test_a_fault_of_ours_is_no_hail_of_requests(
    told_settings: Settings, receiver: Receiver, monkeypatch: pytest.MonkeyPatch, before: bool
) -> None:
    """A vault that is locked, or an attempt that cannot be marked: tried again by a schedule, not at every look."""
    locked = replace(told_settings, sealing_key=base64.b64encode(bytes(32)).decode(), webhook_retry_scale=1.0)
    async with (
        open_service(told_settings) as service,
        lifecycle.open_services(locked) as elsewhere,
        Egress(Rules.of(told_settings), timeout_s=5) as egress,
    ):
        told = Told(service)
        webhook_id, _ = await told.register(receiver.url())
        await told.done()
        await note(told_settings)
        if not before:
            monkeypatch.setattr(deliveries, "MARK", "SELECT 1 / 0")
        async with Dispatcher(elsewhere if before else service.services, egress) as dispatcher:
            for _ in range(3):
                await dispatcher.start_due()
                await asyncio.gather(*dispatcher._under_way.values())
        [row] = await told.deliveries(webhook_id)
        assert len(receiver.received) == (0 if before else 1)
        assert [one.error for one in row.attempts] == (["not_made"] if before else [])
        assert row.status == "pending"


# At least once


async def interrupted(told: Told, egress: Egress, receiver: Receiver) -> int:
    """How often a message came whose deliverer died in the middle of the first attempt, and another one took over."""
    await told.register(receiver.url(), "job.completed")
    await told.done()
    settings = told.service.settings
    await note(settings)
    for _ in range(2):
        async with Dispatcher(told.service.services, egress) as dispatcher:
            await dispatcher.start_due()
            await asyncio.gather(*dispatcher._under_way.values(), return_exceptions=True)
    return len(receiver.received)


async def test_marked_before_it_is_sent_a_message_would_be_lost(
    told_settings: Settings, receiver: Receiver, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The control of what test_webhooks.py does with a process: died before the mark, it comes; after one that was
    made too early, it never does.
    """
    died: list[deliveries.Due] = []

    async def die(self: Dispatcher, due: deliveries.Due) -> deliveries.Outcome:
        if early:
            await self._mark(due, deliveries.Outcome(started_at=lifecycle.now(), status_code=204))
        if not died:
            died.append(due)
            raise asyncio.CancelledError
        return await made(self, due)

    made = Dispatcher._made
    monkeypatch.setattr(Dispatcher, "_made", die)
    async with open_service(told_settings) as service, Egress(Rules.of(told_settings), timeout_s=5) as egress:
        early = False
        assert await interrupted(Told(service), egress, receiver) == 1
        died.clear()
        receiver.received.clear()
        early = True
        assert await interrupted(Told(service), egress, receiver) == 1, "of the two webhooks by now, the first alone"


async def test_at_the_stop_what_is_under_way_is_answered(told: Told, receiver: Receiver) -> None:
    webhook_id, _ = await told.register(receiver.url())
    await told.done()
    await receiver.until(1)
    await told.stop()
    assert [row.status for row in await told.deliveries(webhook_id)] == ["delivered"]
    told.start()


async def test_what_is_over_is_kept_for_a_while(told: Told, receiver: Receiver) -> None:
    webhook_id, _ = await told.register(receiver.url())
    for _ in range(2):
        await told.done()
    rows = await told.until_delivery(webhook_id, "delivered", count=2)
    await told.stop()
    with psycopg.connect(told.service.settings.database_url, autocommit=True) as connection:
        connection.execute(
            "UPDATE webhook_deliveries SET finished_at = finished_at - interval '31 days' WHERE delivery_id = %s",
            (rows[0].delivery_id,),
        )
    told.start()

    async def pruned() -> bool:
        return len(await told.deliveries(webhook_id)) == 1

    assert await until(pruned)
    assert [one.delivery_id for one in await told.deliveries(webhook_id)] == [rows[1].delivery_id]
    asked = commands.Redeliver(webhook_id=webhook_id, delivery_id=rows[0].delivery_id)
    await told.service.run(commands.redeliver, asked)  # of one that is not there any more: nothing happens
    await told.done()
    await told.until_delivery(webhook_id, "delivered", count=2)
    assert len(receiver.received) == 3


@pytest.mark.parametrize(("pause_s", "left"), [(0.0, [3, 1, 0]), (600.0, [3, 3, 3])])
async def test_what_is_over_goes_a_part_at_a_time_and_soon_the_next(
    told_settings: Settings, monkeypatch: pytest.MonkeyPatch, pause_s: float, left: list[int]
) -> None:
    """The control: with the pause of a table that has little to lose, more would come than goes."""
    monkeypatch.setattr(deliveries, "PRUNED_AT_ONCE", 2)
    monkeypatch.setattr(deliveries, "PRUNE_ON_S", pause_s)
    put(told_settings, ["a"] * 5, finished=True)
    async with open_service(told_settings) as service, Egress(Rules.of(told_settings), timeout_s=5) as egress:
        dispatcher = Dispatcher(service.services, egress)
        for expected in left:
            await dispatcher.start_due()
            with psycopg.connect(told_settings.database_url) as connection:
                assert connection.execute("SELECT count(*) FROM webhook_deliveries").fetchone() == (expected,)
