"""A webhook: where somebody wants to be told what happened to their things, and of which things.

active ⇄ disabled, either → deleted. What is sent, and when it is tried again, is said here too; who sends it is
workers/deliveries.py.
"""

from collections.abc import Mapping
from datetime import datetime, timedelta
from typing import Any, Literal
from uuid import UUID

from msgspec import Struct
from msgspec.structs import replace

from .kernel import Aggregate, Invalid, InvalidState, NotFound, derived_id, require_within
from .sealed import Sealed

URL_CHARS_MAX = 2000
KINDS_MAX = 50
KIND_CHARS_MAX = 64
PER_OWNER_MAX = 20
SECRET_OVERLAP = timedelta(hours=24)  # how long a secret that was rotated still signs, beside the new one

TEST_TYPE = "webhook.test"
# What is told, by the stored tag that tells it.
TYPES_BY_TAG: Mapping[str, str] = {
    "job.completed": "job.completed",
    "job.failed": "job.failed",
    "job.dead_lettered": "job.failed",
    "job.cancelled": "job.cancelled",
    "job.expired": "job.expired",
    "batch.completed": "batch.completed",
    "model_slot.activated": "model.activated",
    "model_slot.rolled_back": "model.activated",
}
TYPES = tuple(dict.fromkeys(TYPES_BY_TAG.values()))

# Before the second attempt, the third and so on: 5 s, 5 min, 30 min, then hours, three days in all.
DELAYS_S = (5, 300, 1_800, 7_200, 18_000, 36_000, 50_400, 72_000, 86_400)
ATTEMPTS_MAX = len(DELAYS_S) + 1
JITTER = 0.1  # of a delay, more or less, so that what failed together does not come back together

Status = Literal["active", "disabled", "deleted"]
Reason = Literal["asked", "gone", "failing"]


# Events. A tag is stored for ever: rename the class if you must, never the tag; new fields get a default.


class WebhookRegistered(Struct, frozen=True, kw_only=True, tag="webhook.registered"):
    """Attributes:
    kinds: of jobs, whose ends are told; None: all.
    secret: `whsec_…`, sealed.
    """

    at: datetime
    owner: str
    url: str
    types: tuple[str, ...]
    kinds: tuple[str, ...] | None
    secret: Sealed


class WebhookChanged(Struct, frozen=True, kw_only=True, tag="webhook.changed"):
    at: datetime
    url: str
    types: tuple[str, ...]
    kinds: tuple[str, ...] | None
    by: str


class WebhookSecretRotated(Struct, frozen=True, kw_only=True, tag="webhook.secret_rotated"):
    """Attributes:
    previous_until: the secret before signs too until then.
    """

    at: datetime
    secret: Sealed
    previous_until: datetime
    by: str


class WebhookDisabled(Struct, frozen=True, kw_only=True, tag="webhook.disabled"):
    """Attributes:
    reason: `asked`; `gone`: the receiver answered 410; `failing`: nothing was taken for days.
    """

    at: datetime
    by: str
    reason: Reason


class WebhookEnabled(Struct, frozen=True, kw_only=True, tag="webhook.enabled"):
    at: datetime
    by: str


class WebhookDeleted(Struct, frozen=True, kw_only=True, tag="webhook.deleted"):
    at: datetime
    by: str


class WebhookTested(Struct, frozen=True, kw_only=True, tag="webhook.tested"):
    """A message that means nothing is to be delivered."""

    at: datetime
    request_id: UUID
    by: str


class WebhookRedeliveryRequested(Struct, frozen=True, kw_only=True, tag="webhook.redelivery_requested"):
    """A delivery that is over is to be tried again, from the first attempt on."""

    at: datetime
    delivery_id: UUID
    request_id: UUID
    by: str


Event = (
    WebhookRegistered
    | WebhookChanged
    | WebhookSecretRotated
    | WebhookDisabled
    | WebhookEnabled
    | WebhookDeleted
    | WebhookTested
    | WebhookRedeliveryRequested
)


# State


class Webhook(Struct, frozen=True):
    """A webhook as its events tell it; `status` is None before anything was said.

    Attributes:
        previous: the secret before, which signs until `previous_until`.
        requested: the last request for a delivery, so that asking twice is once.
    """

    status: Status | None = None
    owner: str = ""
    url: str = ""
    types: tuple[str, ...] = ()
    kinds: tuple[str, ...] | None = None
    secret: Sealed | None = None
    previous: Sealed | None = None
    previous_until: datetime | None = None
    disabled_reason: Reason | None = None
    requested: UUID | None = None
    created_at: datetime | None = None
    updated_at: datetime | None = None


def evolve(webhook: Webhook, event: Event) -> Webhook:
    return replace(_moved(webhook, event), updated_at=event.at)


def _moved(webhook: Webhook, event: Event) -> Webhook:
    match event:
        case WebhookRegistered(at=at, owner=owner, url=url, types=types, kinds=kinds, secret=secret):
            return Webhook("active", owner, url, types, kinds, secret, created_at=at)
        case WebhookChanged(url=url, types=types, kinds=kinds):
            return replace(webhook, url=url, types=types, kinds=kinds)
        case WebhookSecretRotated(secret=secret, previous_until=previous_until):
            return replace(webhook, secret=secret, previous=webhook.secret, previous_until=previous_until)
        case WebhookDisabled(reason=reason):
            return replace(webhook, status="disabled", disabled_reason=reason)
        case WebhookEnabled():
            return replace(webhook, status="active", disabled_reason=None)
        case WebhookDeleted():
            return replace(webhook, status="deleted", secret=None, previous=None)
        case WebhookTested(request_id=request_id) | WebhookRedeliveryRequested(request_id=request_id):
            return replace(webhook, requested=request_id)


AGGREGATE = Aggregate("webhook", Webhook(), evolve, owner=lambda webhook: webhook.owner)


# Decisions


def register(
    webhook: Webhook,
    *,
    owner: str,
    url: str,
    types: tuple[str, ...],
    kinds: tuple[str, ...] | None,
    secret: Sealed,
    now: datetime,
) -> list[Event]:
    """Have the ends of `owner`'s jobs and batches, and whichever models are activated, told to `url`."""
    if webhook.status is not None:
        return []  # A retried request is not a second webhook.
    _require_wish(url, types, kinds)
    return [WebhookRegistered(at=now, owner=owner, url=url, types=types, kinds=kinds, secret=secret)]


def change(
    webhook: Webhook, *, url: str, types: tuple[str, ...], kinds: tuple[str, ...] | None, by: str, now: datetime
) -> list[Event]:
    """Another address, or other things; what is under way goes to the new address as well."""
    require_present(webhook)
    _require_wish(url, types, kinds)
    if (webhook.url, webhook.types, webhook.kinds) == (url, types, kinds):
        return []
    return [WebhookChanged(at=now, url=url, types=types, kinds=kinds, by=by)]


def rotate_secret(webhook: Webhook, *, secret: Sealed, by: str, now: datetime) -> list[Event]:
    """Sign with `secret` from now on, and for SECRET_OVERLAP with the one until now as well."""
    require_present(webhook)
    if webhook.secret == secret:
        return []
    return [WebhookSecretRotated(at=now, secret=secret, previous_until=now + SECRET_OVERLAP, by=by)]


def disable(webhook: Webhook, *, why: Reason, by: str, now: datetime) -> list[Event]:
    """Send nothing more. What waits to be delivered is given up, and can be asked for again."""
    require_present(webhook)
    if webhook.status == "disabled":
        return []
    return [WebhookDisabled(at=now, by=by, reason=why)]


def enable(webhook: Webhook, *, by: str, now: datetime) -> list[Event]:
    """Tell what happens from now on."""
    require_present(webhook)
    if webhook.status == "active":
        return []
    return [WebhookEnabled(at=now, by=by)]


def delete(webhook: Webhook, *, by: str, now: datetime) -> list[Event]:
    """
    Raises:
        NotFound: there never was one.
    """
    if webhook.status is None:
        raise NotFound("no such webhook")
    if webhook.status == "deleted":
        return []
    return [WebhookDeleted(at=now, by=by)]


def test(webhook: Webhook, *, request_id: UUID, by: str, now: datetime) -> list[Event]:
    """Have a message delivered that means nothing."""
    _require_active(webhook)
    if webhook.requested == request_id:
        return []
    return [WebhookTested(at=now, request_id=request_id, by=by)]


def redeliver(webhook: Webhook, *, delivery_id: UUID, request_id: UUID, by: str, now: datetime) -> list[Event]:
    """Have a delivery tried again. Whether there is one of this id, and it is over, is the outbox's to know."""
    _require_active(webhook)
    if webhook.requested == request_id:
        return []
    return [WebhookRedeliveryRequested(at=now, delivery_id=delivery_id, request_id=request_id, by=by)]


# Questions


def require_present(webhook: Webhook) -> None:
    """Raises: NotFound: never registered, or deleted."""
    if webhook.status in {None, "deleted"}:
        raise NotFound("no such webhook")


def secrets_at(webhook: Webhook, now: datetime) -> tuple[Sealed, ...]:
    """The secrets that sign now, the newest first."""
    overlaps = webhook.previous_until is not None and now < webhook.previous_until
    return tuple(one for one in (webhook.secret, webhook.previous if overlaps else None) if one is not None)


def retry_delay_s(attempt: int, *, scale: float, jitter: float) -> float | None:
    """Seconds from the end of an attempt (1 is the first) to the next one; None: it was the last. The schedule's delay
    times `scale`, and JITTER of that more or less; `jitter` is −1 to 1.
    """
    if attempt >= ATTEMPTS_MAX:
        return None
    return DELAYS_S[attempt - 1] * scale * (1 + JITTER * jitter)


def delivery_id(epoch: UUID, webhook_id: UUID | None, position: int) -> UUID:
    """Of what the event at this position is to tell one webhook (None: its job's callback). The log's epoch belongs to
    it: a receiver that knows a message's id must not take another one, after a restore, for the same.
    """
    return derived_id("webhook-delivery", epoch, webhook_id or "callback", position)


def message_data(tag: str, stream_id: UUID, position: int, said: Mapping[str, Any], kind: str) -> dict[str, Any]:
    """What a message says: ids, what it came to, and where in the log. No names, no texts, no addresses: whoever wants
    more asks for it, and shows who he is. `said` are the event's fields, `kind` is the job's.
    """
    noun, _, _ = tag.partition(".")
    told: dict[str, Any] = {}
    match noun:
        case "job":
            status = TYPES_BY_TAG[tag].partition(".")[2]
            told = {"job_id": str(stream_id), "kind": kind, "status": status}
            if status == "failed":
                told |= {"error_code": said.get("code"), "dead_letter": tag == "job.dead_lettered"}
        case "batch":
            counts = ("total", "completed", "failed", "dead_letters", "cancelled", "expired", "deleted")
            told = {"batch_id": str(stream_id)} | {name: said[name] for name in counts if name in said}
        case "model_slot":
            previous = said.get("previous") or said.get("rolled_back")
            told = {"task": said.get("task"), "model_id": said.get("model_id"), "previous": previous}
    return told | {"position": position}


def _require_active(webhook: Webhook) -> None:
    require_present(webhook)
    if webhook.status != "active":
        raise InvalidState("the webhook is disabled: enable it first")


def _require_wish(url: str, types: tuple[str, ...], kinds: tuple[str, ...] | None) -> None:
    """The shape alone; where a URL may lead is egress's to judge, at every attempt again."""
    if not (url.startswith(("https://", "http://")) and len(url) <= URL_CHARS_MAX and url.isprintable()):
        raise Invalid(f"url is an http(s) URL of at most {URL_CHARS_MAX} characters")
    require_within("the number of types", len(types), 1, len(TYPES))
    if unknown := sorted(set(types) - set(TYPES)):
        raise Invalid(f"no such type: {', '.join(unknown)[:200]}; there are {', '.join(TYPES)}")
    if len(set(types)) != len(types) or (kinds is not None and len(set(kinds)) != len(kinds)):
        raise Invalid("types and kinds are named once each")
    if kinds is not None:
        require_within("the number of kinds", len(kinds), 1, KINDS_MAX)
        if not all(1 <= len(kind) <= KIND_CHARS_MAX and kind.isprintable() for kind in kinds):
            raise Invalid(f"a kind has 1 to {KIND_CHARS_MAX} printable characters")
