"""Webhooks at the door. A secret is in one answer, that of the request which made it, and nowhere else."""

from collections.abc import Sequence
from datetime import datetime
from typing import Annotated, Any, ClassVar, Literal
from uuid import UUID

from litestar import Request, Response, delete, get, post, put
from litestar.params import FromPath, FromQuery, JSONBody
from msgspec import Meta, Struct

from ..adapters.egress_rules import Rules
from ..adapters.ids import uuid7
from ..adapters.objects.streams import in_thread
from ..adapters.standard_webhooks import CallbackSigner, new_secret
from ..commands import webhooks as commands
from ..commands.transact import Receipt
from ..domain import jobs, webhooks
from ..domain.kernel import Aggregate, InvalidState, NotFound
from ..domain.webhooks import Webhook
from ..projections import deliveries
from ..projections import webhooks as projection
from .auth import takes
from .login import unkeyed
from .manners import (
    PAGE_ROWS_DEFAULT,
    PAGE_ROWS_MAX,
    After,
    Asks,
    Limit,
    Listing,
    Owner,
    Parts,
    Reads,
    Versions,
    decided,
    found,
    gone,
    listed,
    next_link,
    shown,
)
from .nouns import NounController
from .services import Services

Type = Literal["job.completed", "job.failed", "job.cancelled", "job.expired", "batch.completed", "model.activated"]
Kind = Annotated[str, Meta(min_length=1, max_length=webhooks.KIND_CHARS_MAX)]
DeliveryStatus = Literal["pending", "delivered", "failed", "abandoned"]


class WebhookAsked(Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """What to tell, and where.

    Attributes:
        url: `https`, on port 443 or from 1024 up, at a public address; asked by POST.
        types: of messages, once each.
        kinds: of jobs and batches; without them, or null: all.
    """

    url: Annotated[str, Meta(min_length=8, max_length=webhooks.URL_CHARS_MAX)]
    types: Annotated[tuple[Type, ...], Meta(min_length=1, max_length=len(webhooks.TYPES))]
    kinds: Annotated[tuple[Kind, ...], Meta(min_length=1, max_length=webhooks.KINDS_MAX)] | None = None


class WebhookView(Struct, frozen=True, kw_only=True):
    """A webhook without its secret.

    Attributes:
        kinds: null: all.
        disabled_reason: `asked`, `gone` (it answered 410), `failing` (it took nothing for days).
        previous_until: the secret before signs too until then.
    """

    id: UUID
    owner: str
    url: str
    types: list[str]
    kinds: list[str] | None
    status: webhooks.Status
    disabled_reason: webhooks.Reason | None
    previous_until: datetime | None
    created_at: datetime
    updated_at: datetime
    version: int


class WebhookWithSecret(WebhookView, frozen=True, kw_only=True):
    """Attributes:
    secret: `whsec_…`; messages are signed with it. It is said here and never again.
    """

    secret: str


class AttemptView(Struct, frozen=True, kw_only=True):
    """Attributes:
    status_code: null where nobody answered; then `error` says why: `timed_out`, `unresolved`, `unreachable`, `tls`,
        `no_http`, `secret_erased`, `url_refused:` and the rule, or `not_made`: the fault was ours, nobody was asked.
    answer: the beginning of what was answered.
    """

    number: int
    started_at: datetime
    duration_ms: int
    status_code: int | None
    error: str | None
    answer: str


class DeliveryView(Struct, frozen=True, kw_only=True):
    """One message to one receiver.

    Attributes:
        message_id: what the receiver sees as `webhook-id`, the same in every attempt.
        status: `abandoned`: the webhook was disabled or deleted, or its owner is out.
        event_position: in the log, of what is told.
        attempts_made: in all; those of them that are kept are in `attempts`.
    """

    id: UUID
    message_id: str
    type: str
    status: DeliveryStatus
    event_position: int
    attempts_made: int
    next_attempt_at: datetime | None
    created_at: datetime
    finished_at: datetime | None
    attempts: list[AttemptView]


class DeliveryAsked(Struct, frozen=True):
    """Attributes:
    delivery_id: under which the delivery will be listed.
    """

    delivery_id: UUID


class CallbackKeys(Struct, frozen=True):
    """Attributes:
    keys: `whpk_…`, Ed25519: what calls to a job's `callback_url` are signed with, as `v1a`; the newest first.
    """

    keys: list[str]


def view_of_state(webhook_id: UUID, webhook: Webhook, version: int) -> WebhookView:
    return shown(WebhookView, webhook, id=webhook_id, version=version)


def _delivery(row: deliveries.DeliveryRow) -> DeliveryView:
    return shown(DeliveryView, row, id=row.delivery_id, attempts=[shown(AttemptView, one) for one in row.attempts])


def _answer(receipt: Receipt[Webhook]) -> Response[WebhookView]:
    return decided(receipt, view_of_state(receipt.stream_id, receipt.state, receipt.version))


def _with_secret(receipt: Receipt[Webhook], secret: str, *, status_code: int) -> Response[WebhookWithSecret]:
    view = view_of_state(receipt.stream_id, receipt.state, receipt.version)
    headers = {"Location": f"/v1/webhooks/{view.id}"}
    return decided(receipt, shown(WebhookWithSecret, view, secret=secret), status_code=status_code, headers=headers)


async def _present(services: Services, webhook_id: UUID) -> Webhook:
    """Raises: NotFound: there is no such webhook."""
    webhook, _, _ = await services.commands.state(webhooks.AGGREGATE, webhook_id, read_tail=False)
    webhooks.require_present(webhook)
    return webhook


class WebhookController(NounController):
    path = "/v1/webhooks"
    opt = takes("webhooks:read", owned=webhooks.AGGREGATE)
    tags = ("webhooks",)
    aggregate: ClassVar[Aggregate[Any]] = webhooks.AGGREGATE

    @post("/", summary="Have things told to a URL", access="webhooks:write")
    async def register(
        self, request: Request[Any, Any, Any], services: Parts, data: JSONBody[WebhookAsked]
    ) -> Response[WebhookWithSecret]:
        """Of one's own jobs and batches, and of models. The answer has the secret, this once."""
        caller, secret = unkeyed(request, services), new_secret()
        command = commands.RegisterWebhook(
            webhook_id=uuid7(),
            url=data.url,
            types=data.types,
            kinds=data.kinds,
            secret=secret,
            rules=Rules.of(services.settings),
        )
        receipt = await services.commands.execute(commands.register_webhook, command, caller)
        return _with_secret(receipt, secret, status_code=201)

    @get("/", summary="Webhooks")
    async def page(
        self,
        request: Request[Any, Any, Any],
        reads: Reads,
        owner: Owner,
        after: After = None,
        limit: Limit = PAGE_ROWS_DEFAULT,
    ) -> Response[Listing[WebhookView]]:
        page = await projection.page(reads, owner=owner, after=after, limit=limit)
        items = [shown(WebhookView, row, id=row.webhook_id) for row in page.rows]
        return listed(request, items, page.position, limit=limit, cursor=items[-1].id if items else None)

    @get("/key", summary="What verifies calls to a job's callback_url", opt=takes("webhooks:read"))
    async def key(self, services: Parts) -> CallbackKeys:
        signer = await in_thread(CallbackSigner.load, services.settings.data_dir / "keys")  # it may make the files
        return CallbackKeys(signer.public_keys)

    @get("/{webhook_id:uuid}", summary="One webhook")
    async def one(self, reads: Reads, webhook_id: FromPath[UUID]) -> Response[WebhookView]:
        row, position = await reads.get(projection.WEBHOOKS, webhook_id)
        if row is None or row.status == "deleted":
            raise NotFound("no such webhook")
        return found(shown(WebhookView, row, id=row.webhook_id), position, version=row.version)

    @put("/{webhook_id:uuid}", summary="Tell other things, or somewhere else", access="webhooks:write")
    async def change(
        self,
        services: Parts,
        caller: Asks,
        versions: Versions,
        webhook_id: FromPath[UUID],
        data: JSONBody[WebhookAsked],
    ) -> Response[WebhookView]:
        """What is not delivered yet goes to the new URL."""
        command = commands.ChangeWebhook(
            webhook_id=webhook_id,
            url=data.url,
            types=data.types,
            kinds=data.kinds,
            rules=Rules.of(services.settings),
        )
        return _answer(await services.commands.execute(commands.change_webhook, command, caller, versions=versions))

    @delete("/{webhook_id:uuid}", status_code=204, summary="Tell nothing more", access="webhooks:write")
    async def remove(
        self, services: Parts, caller: Asks, versions: Versions, webhook_id: FromPath[UUID]
    ) -> Response[None]:
        command = commands.DeleteWebhook(webhook_id=webhook_id)
        return gone(await services.commands.execute(commands.delete_webhook, command, caller, versions=versions))

    @post(
        "/{webhook_id:uuid}/rotate-secret",
        status_code=200,
        summary="Sign with a new secret",
        access="webhooks:write",
        refuses=(409,),
    )
    async def rotate_secret(
        self, request: Request[Any, Any, Any], services: Parts, webhook_id: FromPath[UUID]
    ) -> Response[WebhookWithSecret]:
        """The one until now signs too for 24 hours. The answer has the new one, this once."""
        caller, secret = unkeyed(request, services), new_secret()
        command = commands.RotateSecret(webhook_id=webhook_id, secret=secret)
        receipt = await services.commands.execute(commands.rotate_secret, command, caller)
        return _with_secret(receipt, secret, status_code=200)

    @post(
        "/{webhook_id:uuid}/enable", status_code=200, summary="Tell what happens from now on", access="webhooks:write"
    )
    async def enable(
        self, services: Parts, caller: Asks, versions: Versions, webhook_id: FromPath[UUID]
    ) -> Response[WebhookView]:
        command = commands.EnableWebhook(webhook_id=webhook_id)
        return _answer(await services.commands.execute(commands.enable_webhook, command, caller, versions=versions))

    @post("/{webhook_id:uuid}/disable", status_code=200, summary="Tell nothing for now", access="webhooks:write")
    async def disable(
        self, services: Parts, caller: Asks, versions: Versions, webhook_id: FromPath[UUID]
    ) -> Response[WebhookView]:
        """What is not delivered yet is given up; each can be asked for again."""
        command = commands.DisableWebhook(webhook_id=webhook_id)
        return _answer(await services.commands.execute(commands.disable_webhook, command, caller, versions=versions))

    @post(
        "/{webhook_id:uuid}/test",
        status_code=202,
        summary="Deliver a message that means nothing",
        access="webhooks:write",
    )
    async def test(self, services: Parts, caller: Asks, webhook_id: FromPath[UUID]) -> Response[DeliveryAsked]:
        """Its type is `webhook.test`."""
        command = commands.TestWebhook(webhook_id=webhook_id)
        receipt = await services.commands.execute(commands.test_webhook, command, caller)
        epoch = services.store.writer.epoch or (await services.store.reader.head()).epoch
        made = webhooks.delivery_id(epoch, webhook_id, receipt.position)
        return decided(receipt, DeliveryAsked(made), status_code=202)

    @get("/{webhook_id:uuid}/deliveries", summary="What was sent, newest first", refuses=(404,))
    async def deliveries(
        self,
        request: Request[Any, Any, Any],
        services: Parts,
        webhook_id: FromPath[UUID],
        status: FromQuery[DeliveryStatus | None] = None,
        after: After = None,
        limit: Limit = PAGE_ROWS_DEFAULT,
    ) -> Response[Listing[DeliveryView]]:
        """Kept for 30 days after the last attempt."""
        await _present(services, webhook_id)
        rows = await deliveries.page(services.store.pool, webhook_id, status=status, after=after, limit=limit)
        return _deliveries(request, rows, limit)

    @get("/{webhook_id:uuid}/deliveries/{delivery_id:uuid}", summary="One delivery, with its attempts")
    async def delivery(
        self, services: Parts, webhook_id: FromPath[UUID], delivery_id: FromPath[UUID]
    ) -> Response[DeliveryView]:
        return Response(_delivery(await _one_delivery(services, webhook_id, delivery_id)))

    @post(
        "/{webhook_id:uuid}/deliveries/{delivery_id:uuid}/redeliver",
        status_code=202,
        summary="Deliver once more",
        access="webhooks:write",
        refuses=(409,),
    )
    async def redeliver(
        self, services: Parts, caller: Asks, webhook_id: FromPath[UUID], delivery_id: FromPath[UUID]
    ) -> Response[DeliveryAsked]:
        """The same message under the same `webhook-id`, from the first attempt on."""
        row = await _one_delivery(services, webhook_id, delivery_id)
        if row.status == "pending":
            raise InvalidState("it is still being delivered")
        command = commands.Redeliver(webhook_id=webhook_id, delivery_id=delivery_id)
        receipt = await services.commands.execute(commands.redeliver, command, caller)
        return decided(receipt, DeliveryAsked(delivery_id), status_code=202)


@get(
    "/v1/jobs/{job_id:uuid}/callbacks",
    summary="What was sent to the job's callback_url",
    opt=takes("jobs:read", owned=jobs.AGGREGATE),
    tags=("webhooks",),
    refuses=(404,),
)
async def callbacks(services: Parts, job_id: FromPath[UUID]) -> Listing[DeliveryView]:
    job, _, _ = await services.commands.state(jobs.AGGREGATE, job_id, read_tail=False)
    jobs.require_present(job)
    rows = await deliveries.of_job(services.store.pool, job_id, limit=PAGE_ROWS_MAX)
    return Listing([_delivery(row) for row in rows])


async def _one_delivery(services: Services, webhook_id: UUID, delivery_id: UUID) -> deliveries.DeliveryRow:
    """Raises: NotFound: the webhook, or the delivery, is not there."""
    await _present(services, webhook_id)
    row = await deliveries.one(services.store.pool, webhook_id, delivery_id)
    if row is None:
        raise NotFound("no such delivery, or not any more")
    return row


def _deliveries(
    request: Request[Any, Any, Any], rows: Sequence[deliveries.DeliveryRow], limit: int
) -> Response[Listing[DeliveryView]]:
    items = [_delivery(row) for row in rows]
    following = str(items[-1].id) if len(items) == limit else None
    headers = {"Link": next_link(request, following)} if following is not None else {}
    return Response(Listing(items, following), headers=headers)
