"""Deliveries: attempts what the outbox noted, at least once each, until it is taken or the schedule is at its end.

An attempt is marked after it was made. Killed between the two, it is made again under the same `webhook-id`, by which
its receiver knows it. Hosts that fail have a lane of their own and one place in it each, so that however many of them
hang, those that answer are told without delay.
"""

import asyncio
import random
import ssl
from collections import Counter, OrderedDict
from collections.abc import Sequence
from datetime import datetime
from typing import LiteralString, Self
from uuid import UUID

import aiohttp
import psycopg
import structlog
from msgspec import Struct

from ..adapters import metrics, standard_webhooks
from ..adapters.egress import Egress
from ..adapters.egress_rules import UrlRefused
from ..adapters.standard_webhooks import CallbackSigner
from ..commands import webhooks as commands
from ..domain import webhooks
from ..domain.kernel import derived_id
from .lifecycle import Services, caller, now
from .patience import Patience

ACTOR = "webhooks"
DRAIN_S = 5.0  # less than a supervisor waits
SLOW_S = 5.0
FAILING_HOSTS_MAX = 10_000  # that are remembered
FAILING_SHARE = 4  # the lane of failing hosts is so many times narrower
ANSWER_CHARS_MAX = 1_024
KEPT_DAYS = 30
PRUNED_AT_ONCE = 5_000
PRUNE_EVERY_S = 600.0
PRUNE_ON_S = 5.0  # where there was more to prune than that
REST_S = (1.0, 5.0, 30.0, 300.0)
GONE = 410
NOT_MADE = "not_made"  # the fault is ours, and nothing was asked

# Each host by itself, so that a long queue for one hides no other: its index is skipped from host to host. Places go
# to the eldest of each host, then to each one's next: in the index's order the alphabet's first would have them all.
DUE: LiteralString = (
    "WITH RECURSIVE hosts (host) AS ("
    "  (SELECT host FROM webhook_deliveries WHERE status = 'pending' ORDER BY host LIMIT 1)"
    "  UNION ALL SELECT (SELECT d.host FROM webhook_deliveries AS d WHERE d.status = 'pending' AND d.host > h.host"
    "   ORDER BY d.host LIMIT 1) FROM hosts AS h WHERE h.host IS NOT NULL"
    ") SELECT d.delivery_id, d.webhook_id, d.url, d.host, d.message_id, d.type, d.body, d.event_position,"
    " d.attempts_made, d.tries_left FROM hosts AS h, LATERAL ("
    "  SELECT *, row_number() OVER (ORDER BY next_attempt_at) AS turn FROM webhook_deliveries"
    "  WHERE status = 'pending' AND host = h.host AND next_attempt_at <= clock_timestamp()"
    "  AND delivery_id <> ALL (%(not_now)s) ORDER BY next_attempt_at LIMIT %(per_host)s"
    ") AS d WHERE h.host IS NOT NULL AND (h.host = ANY (%(failing)s)) = %(lane)s"
    " ORDER BY d.turn, d.next_attempt_at LIMIT %(limit)s"
)
ATTEMPTED: LiteralString = (
    "INSERT INTO webhook_attempts (delivery_id, number, started_at, duration_ms, status_code, error, answer)"
    " VALUES (%s, %s, %s, %s, %s, %s, %s) ON CONFLICT DO NOTHING"
)
MARK: LiteralString = (
    "UPDATE webhook_deliveries SET status = %(status)s, attempts_made = %(number)s, tries_left = %(left)s,"
    " next_attempt_at = clock_timestamp() + make_interval(secs => %(delay_s)s),"
    " finished_at = CASE WHEN %(status)s <> 'pending' THEN clock_timestamp() END"
    " WHERE delivery_id = %(delivery_id)s AND status = 'pending'"
)
HEALTHY: LiteralString = (
    "UPDATE webhook_subscriptions SET failing_since = NULL WHERE webhook_id = %s AND failing_since IS NOT NULL"
)
FAILING: LiteralString = (
    "UPDATE webhook_subscriptions SET failing_since = coalesce(failing_since, clock_timestamp())"
    " WHERE webhook_id = %s RETURNING failing_since < clock_timestamp() - make_interval(secs => %s)"
)
PRUNE: LiteralString = (
    "DELETE FROM webhook_deliveries WHERE delivery_id IN (SELECT delivery_id FROM webhook_deliveries"
    " WHERE finished_at < clock_timestamp() - make_interval(days => %s) LIMIT %s)"
)

log = structlog.get_logger(__name__)


class Due(Struct, frozen=True):
    """A delivery to be attempted; `url` is a callback's, a webhook's is asked of the log."""

    delivery_id: UUID
    webhook_id: UUID | None
    url: str | None
    host: str
    message_id: str
    type: str
    body: str
    event_position: int
    attempts_made: int
    tries_left: int


class Outcome(Struct, frozen=True, kw_only=True):
    """What an attempt came to.

    Attributes:
        status_code: None where nobody answered; then `error` says why, in a word.
        final: trying again would not help.
    """

    started_at: datetime
    duration_s: float = 0.0
    status_code: int | None = None
    error: str | None = None
    answer: str = ""
    final: bool = False

    @property
    def taken(self) -> bool:
        return self.status_code is not None and self.status_code // 100 == 2  # noqa: PLR2004  # success, RFC 9110


class Abandoned(Exception):
    """There is nobody to tell any more."""


class Dispatcher:
    """The attempts of one process; used as a context, which waits for those under way.

    Attributes:
        freed: an attempt ended since start_due() was called.
    """

    def __init__(self, services: Services, egress: Egress) -> None:
        settings = services.settings
        self._services = services
        self._egress = egress
        self._signer = CallbackSigner.load(settings.data_dir / "keys")
        self._wide = max(1, settings.webhook_concurrency_max)
        self._narrow = max(1, self._wide // FAILING_SHARE)
        self._per_host = max(1, settings.webhook_per_host_max)
        self._under_way: dict[UUID, asyncio.Task[None]] = {}
        self._of_host: Counter[str] = Counter()
        self._lanes: Counter[bool] = Counter()  # attempts under way, by whether their host was failing
        self._failing: OrderedDict[str, None] = OrderedDict()
        self._patience = Patience(REST_S)  # with attempts that could not be marked: they were made
        self._prune_at = 0.0
        self.freed = False

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        tasks = set(self._under_way.values())
        if tasks:
            await asyncio.wait(tasks, timeout=DRAIN_S)
        for task in tasks:
            task.cancel()  # not marked, it is made again
        await asyncio.gather(*tasks, return_exceptions=True)

    async def start_due(self) -> None:
        """Begin what is due, as far as there are places.

        Raises:
            psycopg.Error: the database failed.
        """
        self.freed = False
        for failing, places, per_host in ((False, self._wide, self._per_host), (True, self._narrow, 1)):
            free = places - self._lanes[failing]
            if free > 0:
                for due in await self._due(failing=failing, limit=free, per_host=per_host):
                    if self._of_host[due.host] < per_host:
                        self._start(due, failing=failing)
        await self._prune()

    async def _due(self, *, failing: bool, limit: int, per_host: int) -> Sequence[Due]:
        values = {
            "not_now": [*self._under_way, *self._patience.resting()],
            "failing": list(self._failing),
            "lane": failing,
            "per_host": per_host,
            "limit": limit + len(self._under_way),
        }
        async with self._services.store.pool.connection() as connection:
            cursor = await connection.execute(DUE, values)
            found = [Due(*row) for row in await cursor.fetchall()]
        return [one for one in found if self._of_host[one.host] < per_host][:limit]

    def _start(self, due: Due, *, failing: bool) -> None:
        self._of_host[due.host] += 1
        self._lanes[failing] += 1
        task = asyncio.create_task(self._attempt(due), name=f"delivery-{due.delivery_id}")
        self._under_way[due.delivery_id] = task

        def ended(_: "asyncio.Task[None]") -> None:
            del self._under_way[due.delivery_id]
            self._lanes[failing] -= 1
            self._of_host[due.host] -= 1
            if not self._of_host[due.host]:
                del self._of_host[due.host]
            self.freed = True

        task.add_done_callback(ended)

    async def _attempt(self, due: Due) -> None:
        try:
            try:
                outcome = await self._made(due)
            except Abandoned:
                await self._settle(due, "abandoned", due.attempts_made, 0, 0.0)
                return
            if outcome.error != NOT_MADE:
                self._remember(due.host, outcome)
            await self._mark(due, outcome)
            self._patience.forget(due.delivery_id)
        except Exception as error:  # noqa: BLE001  # whatever it is, it is this delivery's
            # Not marked: it stays due, and is tried again when whatever failed here is back; made already, not at once.
            tries = self._patience.failed(due.delivery_id)
            log.warning("delivery_not_marked", delivery_id=str(due.delivery_id), tries=tries, error=repr(error))

    async def _made(self, due: Due) -> Outcome:
        """One request, whatever comes of it.

        Raises:
            Abandoned: the webhook is disabled or deleted.
            psycopg.Error: the database failed.
        """
        started_at = now()
        url, keys = due.url, list[str]()
        try:
            if due.webhook_id is not None:
                url, keys = await self._receiver(due.webhook_id, started_at)
                if not keys:
                    return Outcome(started_at=started_at, error="secret_erased", final=True)
        except (psycopg.Error, Abandoned):
            raise
        except Exception:  # a locked vault, a stream that cannot be read: the schedule's next attempt may fare better
            log.exception("delivery_not_made", delivery_id=str(due.delivery_id))
            return Outcome(started_at=started_at, error=NOT_MADE)
        assert url is not None, "a callback has a URL"
        body, stamp = due.body.encode(), int(started_at.timestamp())
        signed = [standard_webhooks.signature(key, due.message_id, stamp, body) for key in keys]
        signed = signed or self._signer.signatures(due.message_id, stamp, body)
        try:
            answer = await self._egress.post(url, standard_webhooks.headers(due.message_id, stamp, signed), body)
        except (UrlRefused, TimeoutError, aiohttp.ClientError, OSError, ValueError) as error:
            elapsed_s = (now() - started_at).total_seconds()
            return Outcome(started_at=started_at, duration_s=elapsed_s, error=_word(error))
        return Outcome(
            started_at=started_at,
            duration_s=answer.duration_s,
            status_code=answer.status,
            answer=_printable(answer.body),
            final=answer.status == GONE,
        )

    async def _receiver(self, webhook_id: UUID, moment: datetime) -> tuple[str, list[str]]:
        """Where it is, and by which secrets it knows us; none where they were erased."""
        webhook = await self._services.commands.today(webhooks.AGGREGATE, webhook_id)
        if webhook.status != "active":
            raise Abandoned
        vault = self._services.commands.vault
        assert vault is not None, "workers have a vault"
        opened = await vault.open_many(commands.SECRET, webhooks.secrets_at(webhook, moment))
        return webhook.url, [one for one in opened if one is not None]

    def _remember(self, host: str, outcome: Outcome) -> None:
        """A host that answers soon, whatever it says, is no host that hangs."""
        if outcome.status_code is not None and outcome.duration_s < SLOW_S:
            self._failing.pop(host, None)
            return
        self._failing[host] = None
        self._failing.move_to_end(host)
        if len(self._failing) > FAILING_HOSTS_MAX:
            self._failing.popitem(last=False)

    async def _mark(self, due: Due, outcome: Outcome) -> None:
        number = due.attempts_made + 1
        tried = webhooks.ATTEMPTS_MAX - due.tries_left + 1
        jitter = random.uniform(-1, 1)  # noqa: S311  # no secret rests on it
        delay_s = webhooks.retry_delay_s(tried, scale=self._services.settings.webhook_retry_scale, jitter=jitter)
        status = "delivered" if outcome.taken else "failed" if outcome.final or delay_s is None else "pending"
        given = (
            due.delivery_id,
            number,
            outcome.started_at,
            round(outcome.duration_s * 1000),
            outcome.status_code,
            outcome.error,
            outcome.answer,
        )
        await self._settle(due, status, number, due.tries_left - 1, delay_s or 0.0, given)
        metrics.WEBHOOK_ATTEMPTS.labels("retried" if status == "pending" else status).inc()
        log.info(
            "delivery_attempted",
            delivery_id=str(due.delivery_id),
            webhook_id=str(due.webhook_id),
            type=due.type,
            host=due.host,
            attempt=number,
            status=status,
            status_code=outcome.status_code,
            error=outcome.error,
            position=due.event_position,
            duration_s=outcome.duration_s,
        )
        if due.webhook_id is not None and outcome.error != NOT_MADE:
            await self._judge(due, due.webhook_id, outcome)

    async def _settle(
        self, due: Due, status: str, number: int, left: int, delay_s: float, attempt: tuple[object, ...] | None = None
    ) -> None:
        values = {
            "delivery_id": due.delivery_id,
            "status": status,
            "number": number,
            "left": max(left, 0),
            "delay_s": delay_s,
        }
        async with self._services.store.pool.connection() as connection, connection.transaction():
            if attempt is not None:
                await connection.execute(ATTEMPTED, attempt)
            await connection.execute(MARK, values)

    async def _judge(self, due: Due, webhook_id: UUID, outcome: Outcome) -> None:
        """A receiver that says it is gone, or that took nothing for days, is not asked any more."""
        async with self._services.store.pool.connection() as connection:
            if outcome.taken:
                await connection.execute(HEALTHY, (webhook_id,))
                return
            failing_s_max = self._services.settings.webhook_failing_days_max * 86_400
            row = await (await connection.execute(FAILING, (webhook_id, failing_s_max))).fetchone()
        if outcome.status_code == GONE:
            await self._disable(due, webhook_id, "gone")
        elif row is not None and row[0]:
            await self._disable(due, webhook_id, "failing")

    async def _disable(self, due: Due, webhook_id: UUID, reason: webhooks.Reason) -> None:
        command_id = derived_id(ACTOR, "disable", due.delivery_id, due.attempts_made)
        asking = caller(ACTOR, command_id, correlation_id=str(webhook_id), cause=due.event_position)
        command = commands.DisableWebhook(webhook_id=webhook_id, reason=reason)
        await self._services.commands.execute(commands.disable_webhook, command, asking)
        log.warning("webhook_disabled", webhook_id=str(webhook_id), host=due.host, reason=reason)

    async def _prune(self) -> None:
        moment = asyncio.get_running_loop().time()
        if moment < self._prune_at:
            return
        async with self._services.store.pool.connection() as connection:
            pruned = await connection.execute(PRUNE, (KEPT_DAYS, PRUNED_AT_ONCE))
        self._prune_at = moment + (PRUNE_EVERY_S if pruned.rowcount < PRUNED_AT_ONCE else PRUNE_ON_S)


def _word(error: Exception) -> str:
    """Why there was no answer, as the log of deliveries says it; nothing of what was found behind an address."""
    match error:
        case UrlRefused(reason=reason):
            return f"url_refused:{reason}"
        case TimeoutError():
            return "timed_out"
        case aiohttp.ClientConnectorDNSError():
            return "unresolved"
        case ssl.SSLError() | aiohttp.ClientSSLError():
            return "tls"
        case aiohttp.ClientOSError() | OSError():
            return "unreachable"
    return "no_http"


def _printable(body: bytes) -> str:
    text = body.decode(errors="replace")[:ANSWER_CHARS_MAX]
    return "".join(one if one.isprintable() or one == "\n" else " " for one in text)
