"""Commands on webhooks. The secret is sealed on its way into an event, under a person of its own: the webhook."""

from uuid import UUID

from msgspec import Struct

from ..adapters.egress_rules import Rules
from ..domain import webhooks
from ..domain.kernel import Invalid
from ..domain.webhooks import Webhook
from .transaction import Loaded, Transaction

SECRET = "webhook.secret"  # noqa: S105  # what the seal is bound to


class RegisterWebhook(Struct, frozen=True, kw_only=True):
    """Attributes:
    rules: that the URL is judged by, now and at every attempt.
    secret: `whsec_…`.
    """

    webhook_id: UUID
    url: str
    types: tuple[str, ...]
    kinds: tuple[str, ...] | None
    secret: str
    rules: Rules

    def __repr__(self) -> str:
        return f"RegisterWebhook({self.webhook_id}, …)"


class ChangeWebhook(Struct, frozen=True, kw_only=True):
    webhook_id: UUID
    url: str
    types: tuple[str, ...]
    kinds: tuple[str, ...] | None
    rules: Rules


class RotateSecret(Struct, frozen=True, kw_only=True):
    webhook_id: UUID
    secret: str

    def __repr__(self) -> str:
        return f"RotateSecret({self.webhook_id}, …)"


class DisableWebhook(Struct, frozen=True, kw_only=True):
    webhook_id: UUID
    reason: webhooks.Reason = "asked"


class EnableWebhook(Struct, frozen=True, kw_only=True):
    webhook_id: UUID


class DeleteWebhook(Struct, frozen=True, kw_only=True):
    webhook_id: UUID


class TestWebhook(Struct, frozen=True, kw_only=True):
    webhook_id: UUID


class Redeliver(Struct, frozen=True, kw_only=True):
    webhook_id: UUID
    delivery_id: UUID


async def register_webhook(tx: Transaction, command: RegisterWebhook) -> Loaded[Webhook]:
    command.rules.target(command.url)
    webhook = await tx.create(webhooks.AGGREGATE, command.webhook_id)
    secret = await tx.seal(SECRET, person=person_of(command.webhook_id), text=command.secret)
    owner = tx.caller.actor
    events = webhooks.register(
        webhook.state,
        owner=owner,
        url=command.url,
        types=command.types,
        kinds=command.kinds,
        secret=secret,
        now=tx.caller.now,
    )
    if events:
        refusal = Invalid(f"one may have {webhooks.PER_OWNER_MAX} webhooks")
        tx.guard(_counter(owner), 1, webhooks.PER_OWNER_MAX, refusal)
    return tx.say(webhook, events)


async def change_webhook(tx: Transaction, command: ChangeWebhook) -> Loaded[Webhook]:
    command.rules.target(command.url)
    webhook = await tx.load(webhooks.AGGREGATE, command.webhook_id)
    events = webhooks.change(
        webhook.state,
        url=command.url,
        types=command.types,
        kinds=command.kinds,
        by=tx.caller.actor,
        now=tx.caller.now,
    )
    return tx.say(webhook, events)


async def rotate_secret(tx: Transaction, command: RotateSecret) -> Loaded[Webhook]:
    webhook = await tx.load(webhooks.AGGREGATE, command.webhook_id)
    webhooks.require_present(webhook.state)  # before anything is sealed
    secret = await tx.seal(SECRET, person=person_of(command.webhook_id), text=command.secret)
    events = webhooks.rotate_secret(webhook.state, secret=secret, by=tx.caller.actor, now=tx.caller.now)
    return tx.say(webhook, events)


async def disable_webhook(tx: Transaction, command: DisableWebhook) -> Loaded[Webhook]:
    webhook = await tx.load(webhooks.AGGREGATE, command.webhook_id)
    events = webhooks.disable(webhook.state, why=command.reason, by=tx.caller.actor, now=tx.caller.now)
    return tx.say(webhook, events)


async def enable_webhook(tx: Transaction, command: EnableWebhook) -> Loaded[Webhook]:
    webhook = await tx.load(webhooks.AGGREGATE, command.webhook_id)
    return tx.say(webhook, webhooks.enable(webhook.state, by=tx.caller.actor, now=tx.caller.now))


async def delete_webhook(tx: Transaction, command: DeleteWebhook) -> Loaded[Webhook]:
    webhook = await tx.load(webhooks.AGGREGATE, command.webhook_id)
    events = webhooks.delete(webhook.state, by=tx.caller.actor, now=tx.caller.now)
    if events:
        tx.guard(_counter(webhook.state.owner), -1)
    return tx.say(webhook, events)


async def test_webhook(tx: Transaction, command: TestWebhook) -> Loaded[Webhook]:
    webhook = await tx.load(webhooks.AGGREGATE, command.webhook_id)
    caller = tx.caller
    events = webhooks.test(webhook.state, request_id=caller.command_id, by=caller.actor, now=caller.now)
    return tx.say(webhook, events)


async def redeliver(tx: Transaction, command: Redeliver) -> Loaded[Webhook]:
    webhook = await tx.load(webhooks.AGGREGATE, command.webhook_id)
    caller = tx.caller
    events = webhooks.redeliver(
        webhook.state,
        delivery_id=command.delivery_id,
        request_id=caller.command_id,
        by=caller.actor,
        now=caller.now,
    )
    return tx.say(webhook, events)


def person_of(webhook_id: UUID) -> str:
    """Under which its secrets are sealed: `sightline people erase webhook:<id>` destroys them everywhere."""
    return f"webhook:{webhook_id}"


def _counter(owner: str) -> str:
    return f"webhooks:{owner}"
