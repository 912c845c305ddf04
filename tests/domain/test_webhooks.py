"""Webhooks: for each rule what it yields, what it refuses, and when it is silent."""

from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import UUID

import pytest
from tests.spec import given

from sightline.domain import webhooks
from sightline.domain.kernel import Invalid, InvalidState, NotFound
from sightline.domain.sealed import Sealed
from sightline.domain.webhooks import (
    Webhook,
    WebhookChanged,
    WebhookDeleted,
    WebhookDisabled,
    WebhookEnabled,
    WebhookRedeliveryRequested,
    WebhookRegistered,
    WebhookSecretRotated,
    WebhookTested,
)

NOON = datetime(2026, 3, 1, 12, tzinfo=UTC)
LATER = NOON + timedelta(hours=1)
URL = "https://hooks.example/x"
OLD, NEW = Sealed(UUID(int=8), "AAAA"), Sealed(UUID(int=8), "BBBB")
WISH: dict[str, Any] = {"url": URL, "types": ("job.completed",), "kinds": None}
REGISTERED = WebhookRegistered(at=NOON, owner="ada", secret=OLD, **WISH)
DISABLED = WebhookDisabled(at=NOON, by="webhooks", reason="failing")
DELETED = WebhookDeleted(at=NOON, by="ada")
ROTATED = WebhookSecretRotated(at=NOON, secret=NEW, previous_until=NOON + timedelta(hours=24), by="ada")
REQUEST, DELIVERY = UUID(int=1), UUID(int=2)


def webhook(*events: webhooks.Event) -> given[Webhook]:
    return given(webhooks.AGGREGATE, *events)


def test_it_is_registered_once() -> None:
    state = webhook().when(webhooks.register, owner="ada", secret=OLD, now=NOON, **WISH).then(REGISTERED)
    assert (state.status, state.owner, state.url) == ("active", "ada", URL)
    webhook(REGISTERED).when(webhooks.register, owner="bob", secret=NEW, now=NOON, **WISH).then()


@pytest.mark.parametrize(
    "wrong",
    [
        {"url": "ftp://hooks.example"},
        {"url": "https://hooks.example/" + "x" * 2000},
        {"url": "https://hooks.example/\n"},
        {"types": ()},
        {"types": ("job.painted",)},
        {"types": ("webhook.test",)},
        {"types": ("job.failed", "job.failed")},
        {"kinds": ()},
        {"kinds": ("noop", "noop")},
        {"kinds": ("",)},
        {"kinds": ("x" * 65,)},
        {"kinds": tuple(map(str, range(51)))},
    ],
    ids=str,
)
def test_a_wish_that_cannot_be_is_refused(wrong: dict[str, Any]) -> None:
    webhook().when(webhooks.register, owner="ada", secret=OLD, now=NOON, **WISH | wrong).refused(Invalid)
    webhook(REGISTERED).when(webhooks.change, by="ada", now=NOON, **WISH | wrong).refused(Invalid)


def test_it_is_changed_and_saying_the_same_says_nothing() -> None:
    other = WISH | {"kinds": ("noop",)}
    changed = WebhookChanged(at=LATER, by="ada", **other)
    state = webhook(REGISTERED).when(webhooks.change, by="ada", now=LATER, **other).then(changed)
    assert (state.kinds, state.updated_at, state.created_at) == (("noop",), LATER, NOON)
    webhook(REGISTERED).when(webhooks.change, by="ada", now=LATER, **WISH).then()


def test_the_secret_before_signs_for_a_day() -> None:
    state = webhook(REGISTERED).when(webhooks.rotate_secret, secret=NEW, by="ada", now=NOON).then(ROTATED)
    assert webhooks.secrets_at(state, NOON + timedelta(hours=23)) == (NEW, OLD)
    assert webhooks.secrets_at(state, NOON + timedelta(hours=24)) == (NEW,)
    assert webhooks.secrets_at(Webhook(), NOON) == ()
    webhook(REGISTERED).when(webhooks.rotate_secret, secret=OLD, by="ada", now=NOON).then()


def test_it_is_disabled_and_enabled() -> None:
    state = webhook(REGISTERED).when(webhooks.disable, why="failing", by="webhooks", now=NOON).then(DISABLED)
    assert state.disabled_reason == "failing"
    webhook(REGISTERED, DISABLED).when(webhooks.disable, why="asked", by="ada", now=NOON).then()
    enabled = WebhookEnabled(at=NOON, by="ada")
    assert webhook(REGISTERED, DISABLED).when(webhooks.enable, by="ada", now=NOON).then(enabled).disabled_reason is None
    webhook(REGISTERED).when(webhooks.enable, by="ada", now=NOON).then()


def test_deleted_it_has_no_secret_and_is_not_there() -> None:
    state = webhook(REGISTERED, ROTATED).when(webhooks.delete, by="ada", now=NOON).then(DELETED)
    assert (state.secret, state.previous) == (None, None)
    webhook(REGISTERED, DELETED).when(webhooks.delete, by="ada", now=NOON).then()
    webhook().when(webhooks.delete, by="ada", now=NOON).refused(NotFound)
    for events in ((), (REGISTERED, DELETED)):
        there = webhook(*events)
        there.when(webhooks.change, by="ada", now=NOON, **WISH).refused(NotFound)
        there.when(webhooks.rotate_secret, secret=NEW, by="ada", now=NOON).refused(NotFound)
        there.when(webhooks.enable, by="ada", now=NOON).refused(NotFound)
        there.when(webhooks.disable, why="asked", by="ada", now=NOON).refused(NotFound)
        there.when(webhooks.test, request_id=REQUEST, by="ada", now=NOON).refused(NotFound)
        there.when(webhooks.redeliver, delivery_id=DELIVERY, request_id=REQUEST, by="ada", now=NOON).refused(NotFound)


def test_a_request_for_a_delivery_is_one_however_often_it_is_sent() -> None:
    tested = WebhookTested(at=NOON, request_id=REQUEST, by="ada")
    webhook(REGISTERED).when(webhooks.test, request_id=REQUEST, by="ada", now=NOON).then(tested)
    asked = WebhookRedeliveryRequested(at=NOON, delivery_id=DELIVERY, request_id=REQUEST, by="ada")
    there = webhook(REGISTERED)
    there.when(webhooks.redeliver, delivery_id=DELIVERY, request_id=REQUEST, by="ada", now=NOON).then(asked)
    webhook(REGISTERED, DISABLED).when(webhooks.test, request_id=REQUEST, by="ada", now=NOON).refused(InvalidState)


def test_the_schedule_is_that_of_the_specification() -> None:
    plain = [webhooks.retry_delay_s(attempt, scale=1, jitter=0) for attempt in range(1, 11)]
    assert plain == [5, 300, 1800, 7200, 18000, 36000, 50400, 72000, 86400, None]
    assert webhooks.retry_delay_s(2, scale=0.5, jitter=1) == 165
    assert webhooks.retry_delay_s(2, scale=0.5, jitter=-1) == 135


@pytest.mark.parametrize("tag", webhooks.TYPES_BY_TAG)
def test_a_message_says_ids_and_what_it_came_to(tag: str) -> None:
    said = {
        "code": "crashed",
        "message": "of ada@example.org",
        "by": "user:1",
        "task": "depth",
        "previous": None,
        "total": 2,
    }
    data = webhooks.message_data(tag, UUID(int=7), 42, said, "noop")
    assert data["position"] == 42
    assert not {"message", "by", "owner", "at"} & data.keys()
    assert str(UUID(int=7)) in data.values() or tag.startswith("model_slot")
    assert data.get("error_code") == ("crashed" if "fail" in tag or "dead" in tag else None)


def test_a_delivery_has_an_id_of_its_epoch_receiver_and_event() -> None:
    epochs, receivers = (UUID(int=1), UUID(int=2)), (UUID(int=3), UUID(int=4), None)
    ids = {webhooks.delivery_id(epoch, one, at) for epoch in epochs for one in receivers for at in (1, 2)}
    assert len(ids) == 12
    assert webhooks.delivery_id(epochs[0], None, 1) in ids
