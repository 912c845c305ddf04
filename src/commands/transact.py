"""Load, decide, append, and again if somebody else spoke first: the one loop around every handler.

A handler is `async def submit_job(tx, command) -> Loaded[Job]`. It loads the streams that its decision looks at, calls
pure functions, says what they yield, and returns the aggregate that the caller is answered from. It may run several
times and therefore does nothing else; sealing, too, may be done twice.
"""

import asyncio
from collections import OrderedDict
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from datetime import datetime
from typing import Any, Generic, TypeVar
from uuid import UUID

import msgspec
from msgspec import Struct

from ..adapters import metrics
from ..adapters.event_store.codec import Recorded
from ..adapters.event_store.store import EventStore
from ..adapters.event_store.writer import Appended, Blocked, Repeat, Stale
from ..adapters.hints import JobHints, Offers
from ..adapters.vault import Vault
from ..domain import api_keys, users
from ..domain.events import kind_of
from ..domain.kernel import Aggregate, Caller, Invalid, NotFound, Rejection
from .freshness import QUESTIONS_MAX, Freshness
from .transaction import KeptResult, Loaded, Queued, States, Transaction

S = TypeVar("S")
C = TypeVar("C")

DECISIONS_MAX = 5
CACHED_STATES_MAX = 20_000


class Contended(Rejection):
    """Others spoke first DECISIONS_MAX times in a row; nothing was appended."""

    code = "conflict"


class KeyReused(Invalid):
    """The idempotency key belongs to another request."""

    code = "idempotency_key_reused"


class EpochChanged(Rejection):
    """What the caller holds, a cursor or an attempt, is of the log before a restore; here it means nothing."""

    code = "epoch_changed"


class Receipt(Struct, Generic[S], frozen=True):
    """What a command led to.

    Attributes:
        stream_id, state, version: of the aggregate that the handler returned, after the command.
        position: of the command's last event, or of the log where it had nothing to say.
        recorded_at: when it became durable.
        events: what was said on that stream now; empty for a repeat.
        repeat: the command id was known: nothing was appended, and the state is today's.
    """

    stream_id: UUID
    state: S
    version: int
    position: int
    recorded_at: datetime | None
    events: Sequence[Any]
    repeat: bool = False


Handler = Callable[[Transaction, C], Awaitable[Loaded[S]]]


class Commands:
    """Runs commands against one event store; one per process.

    Decisions start from cached states. The append's expectations make that safe, and a refusal that rests on the
    cache is decided again on what the log says now.
    """

    def __init__(self, store: EventStore, hints: JobHints | None = None, vault: Vault | None = None) -> None:
        self.store = store
        self.offers = Offers(hints) if hints is not None else None
        self.vault = vault
        self.states: States = OrderedDict()
        self._freshness = Freshness(store.reader)
        self._turns: dict[UUID, tuple[asyncio.Lock, int]] = {}
        store.epochs.append(lambda _: self._forget())

    async def execute(
        self,
        handler: Handler[C, S],
        command: C,
        caller: Caller,
        *,
        versions: frozenset[int] | None = None,
        epoch: UUID | None = None,
    ) -> Receipt[S]:
        """Run one command to its end. The stream that its handler loads first must be at one of `versions`, if given,
        and the log at `epoch`.

        Raises:
            StaleVersion: the stream is not.
            EpochChanged: the log is not.
            Rejection: the decision's no; nothing was appended.
            Contended: others kept coming first.
        """
        doubted: set[UUID] = set()
        turns: set[UUID] = set()
        decisions = 0
        while True:
            async with self._in_turn(turns):
                tx = Transaction(self, caller, doubted, frozenset(turns), versions)
                if epoch is not None and tx.epoch != epoch:
                    raise EpochChanged(f"it belongs to epoch {epoch}")
                try:
                    await _require_live(caller, tx.look)
                    answer = await handler(tx, command)
                except Queued as queue:
                    turns.add(queue.stream_id)
                    continue
                except Rejection:
                    if tx.rests_on_cache and (moved := await _moved(self, tx) - doubted):
                        doubted |= moved  # Look again before saying no.
                        continue
                    # Perhaps refused only because it was granted before, and its answer never came.
                    if (known := await self._replay(tx, caller)) is not None:
                        return known
                    if tx.epoch != self.store.writer.epoch and decisions < DECISIONS_MAX:
                        decisions += 1  # Refused by what the log said before a restore.
                        continue
                    raise
                outcome = await self.store.append(tx.append(answer), epoch=tx.epoch)
                if not isinstance(outcome, Stale):
                    return await self._settled(tx, answer, outcome)
                decisions += 1
                metrics.DECISIONS_REPEATED.inc()
                if decisions >= DECISIONS_MAX:
                    raise Contended(f"others wrote first {DECISIONS_MAX} times in a row")
                doubted |= await _moved(self, tx)
                turns |= {one.stream_id for one in tx.written()}
                if decisions > 1:
                    # What it merely looks at is hot: let those who write it wait, this once.
                    turns |= doubted

    async def _settled(self, tx: Transaction, answer: Loaded[S], outcome: Appended | Repeat | Blocked) -> Receipt[S]:
        if isinstance(outcome, Blocked):
            raise tx.refusal(outcome.key)
        if isinstance(outcome, Repeat):
            for one in tx.written():
                tx.states.pop(one.stream_id, None)
            return await self._repeated(answer.aggregate, answer.stream_id, outcome, tx.caller)
        for one in tx.written():
            _remember(tx.states, one.stream_id, one.state, one.version + len(one.said))
        if self.offers is not None:
            self.offers.add(tx.candidates)
        return Receipt(
            stream_id=answer.stream_id,
            state=answer.state,
            version=answer.version + len(answer.said),
            position=outcome.position,
            recorded_at=outcome.recorded_at,
            events=answer.said,
        )

    async def _replay(self, tx: Transaction, caller: Caller) -> Receipt[Any] | None:
        receipt = await self.store.reader.receipt(caller.command_id)
        if receipt is None or tx.own is None:
            return None
        position, result = receipt
        return await self._repeated(tx.own.aggregate, tx.own.stream_id, Repeat(position, caller.now, result), caller)

    async def _repeated(self, aggregate: Aggregate[S], stream_id: UUID, first: Repeat, caller: Caller) -> Receipt[S]:
        """The answer to a command that was here before, from the state of today."""
        if caller.request_digest and first.result:
            kept = msgspec.json.decode(first.result, type=KeptResult)
            if kept.digest not in (caller.request_digest, *caller.earlier_digests):
                raise KeyReused("the same key was sent with another request")
            stream_id = kept.ref
        await _require_live(caller, self.today)
        state, version, _ = await self.state(aggregate, stream_id, read_tail=True)
        return Receipt(stream_id, state, version, first.position, first.recorded_at, (), repeat=True)

    async def state(self, aggregate: Aggregate[S], stream_id: UUID, *, read_tail: bool) -> tuple[S, int, bool]:
        """State and version of a stream, and whether the log was asked just now.

        Raises:
            NotFound: the stream is another noun's.
        """
        states = self.states
        cached = states.get(stream_id)
        if cached is not None and type(cached[0]) is not type(aggregate.initial):
            raise NotFound(f"no such {aggregate.kind}")
        if cached is not None and not read_tail:
            states.move_to_end(stream_id)
            return *cached, False
        state, version = cached or (aggregate.initial, 0)
        for recorded in await self.store.reader.stream(stream_id, after=version):
            if kind_of(recorded.topic) != aggregate.kind:
                raise NotFound(f"no such {aggregate.kind}")
            state = aggregate.evolve(state, self.store.mapper.event(recorded))
            version = recorded.originator_version
        if version:
            _remember(states, stream_id, state, version)
        return state, version, True

    async def fold_streams(self, aggregate: Aggregate[S], stream_ids: Sequence[UUID]) -> list[tuple[S, Recorded]]:
        """The states of streams of one noun, each with its last event, in one query; and kept, so that what is decided
        on them next reads nothing. Those that there are not, or that are another noun's, are left out.
        """
        states, folded = self.states, dict[UUID, tuple[S, Recorded]]()
        for recorded in await self.store.reader.streams(stream_ids):
            if kind_of(recorded.topic) == aggregate.kind:
                state = folded[recorded.stream_id][0] if recorded.stream_id in folded else aggregate.initial
                state = aggregate.evolve(state, self.store.mapper.event(recorded))
                folded[recorded.stream_id] = state, recorded
        for stream_id, (state, last) in folded.items():
            _remember(states, stream_id, state, last.originator_version)
        return [folded[stream_id] for stream_id in stream_ids if stream_id in folded]

    async def today(self, aggregate: Aggregate[S], stream_id: UUID) -> S:
        """The state as the log has it now; cheap where the cache has it and the log has nothing newer.

        Raises:
            NotFound: the stream is another noun's.
        """
        cached = self.states.get(stream_id)
        doubted = cached is None or await self._freshness.moved(stream_id, cached[1])
        return (await self.state(aggregate, stream_id, read_tail=doubted))[0]  # reads, if it was forgotten meanwhile

    def in_turn(self, stream_id: UUID) -> bool:
        """Whether commands on this stream wait for each other now."""
        return stream_id in self._turns

    @asynccontextmanager
    async def _in_turn(self, stream_ids: set[UUID]) -> AsyncIterator[None]:
        """Hold the turns of these streams; always taken in the same order, so that no two wait for each other."""
        async with AsyncExitStack() as stack:
            for stream_id in sorted(stream_ids):
                lock, waiting = self._turns.get(stream_id) or (asyncio.Lock(), 0)
                self._turns[stream_id] = (lock, waiting + 1)
                stack.callback(self._leave, stream_id)
                await stack.enter_async_context(lock)
            yield

    def _leave(self, stream_id: UUID) -> None:
        lock, waiting = self._turns[stream_id]
        if waiting == 1:
            del self._turns[stream_id]
        else:
            self._turns[stream_id] = (lock, waiting - 1)

    def _forget(self) -> None:
        """Drop every cached state. What is still being read or appended goes into the cache of before, and with it."""
        self.states = OrderedDict()

    async def close(self) -> None:
        """Wait for what is still under way."""
        await self._freshness.close()
        if self.offers is not None:
            await self.offers.close()


async def _require_live(caller: Caller, state_of: Callable[[Aggregate[Any], UUID], Awaitable[Any]]) -> None:
    """The credential, if the caller came with one, is good. Looked at by a transaction, its append rests on that.

    Raises:
        NotAuthenticated: it is not.
    """
    credential = caller.credential
    if credential is None:
        return
    user = await state_of(users.AGGREGATE, credential.user_id)
    if credential.key_id is None:
        users.require_live(user, credential.generation)
    else:
        api_keys.require_live(await state_of(api_keys.AGGREGATE, credential.key_id), user, caller.now)


async def _moved(commands: Commands, tx: Transaction) -> set[UUID]:
    """The streams that are past what a decision saw of them: a batch rests on ten thousand, of which one moved."""
    seen = tx.seen
    if len(seen) == 1:
        return {seen[0][0]}  # to read it is to ask
    moved = set[UUID]()
    for start in range(0, len(seen), QUESTIONS_MAX):
        moved |= await commands.store.reader.moved(seen[start : start + QUESTIONS_MAX])
    return moved


def _remember(states: States, stream_id: UUID, state: Any, version: int) -> None:
    known = states.get(stream_id)
    if known is not None and known[1] > version:
        return  # A later outcome was seen first.
    states[stream_id] = (state, version)
    states.move_to_end(stream_id)
    if len(states) > CACHED_STATES_MAX:
        states.popitem(last=False)
