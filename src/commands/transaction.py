"""One run of one handler: the streams that its decision rests on, and what it says of them."""

from collections import OrderedDict
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Generic, TypeVar
from uuid import UUID

import msgspec
from msgspec import Struct
from msgspec.structs import replace

from ..adapters.event_store.codec import Fact
from ..adapters.event_store.wire import Append, Expectation, Guard
from ..adapters.hints import Candidate
from ..domain.access import require_own
from ..domain.kernel import Aggregate, Caller, Invalid, Rejection
from ..domain.sealed import Sealed

if TYPE_CHECKING:
    from .transact import Commands

S = TypeVar("S")

States = OrderedDict[UUID, tuple[Any, int]]


class StaleVersion(Rejection):
    """The caller wants to change what it saw, and the stream has moved since."""

    code = "precondition_failed"


class Loaded(Struct, Generic[S]):
    """One stream within a transaction.

    Attributes:
        state: what has been said, this transaction's own events included.
        version: of the stream when it was loaded; 0 before its first event.
        said: this transaction's events.
        fresh: the log was asked for it in this transaction, or its absence is taken for granted.
    """

    aggregate: Aggregate[S]
    stream_id: UUID
    state: S
    version: int
    said: list[Any]
    fresh: bool


class KeptResult(Struct, frozen=True):
    """What the receipt of a keyed command keeps: enough to rebuild the answer, nothing secret."""

    ref: UUID
    digest: str


class Queued(Exception):
    """The stream is being served in turn; wait for it."""

    def __init__(self, stream_id: UUID) -> None:
        self.stream_id = stream_id


class Known(Rejection):
    """The command has a receipt; nobody is told so, for it is replayed."""


class Transaction:
    """One run of one handler."""

    def __init__(
        self,
        commands: "Commands",
        caller: Caller,
        doubted: set[UUID],
        held: frozenset[UUID],
        versions: frozenset[int] | None = None,
    ) -> None:
        self.caller = caller
        self._versions = versions
        self.commands = commands
        self.epoch = commands.store.writer.epoch
        self.states = commands.states
        self.candidates: list[Candidate] = []
        self.own: Loaded[Any] | None = None  # the first stream that may be written: what the command is about
        self._doubted = doubted
        self._held = held
        self._loaded: dict[UUID, Loaded[Any]] = {}
        self._reasons: dict[UUID, tuple[str, str]] = {}
        self._guards: dict[tuple[str, int | None], Guard] = {}
        self._refusals: dict[str, Rejection] = {}

    async def load(self, aggregate: Aggregate[S], stream_id: UUID) -> Loaded[S]:
        """A stream that may be written; also for one that is only looked at, use look()."""
        if self.commands.in_turn(stream_id) and stream_id not in self._held:
            raise Queued(stream_id)
        loaded = await self._load(aggregate, stream_id)
        self.own = self.own or loaded
        wanted, self._versions = self._versions, None
        if wanted is not None and loaded.version not in wanted:
            raise StaleVersion(f"the version is {loaded.version} now")
        return loaded

    async def look(self, aggregate: Aggregate[S], stream_id: UUID, *, rare: bool = False) -> S:
        """The state of a stream that the decision rests on; if it moves before the append, it is decided again. Of a
        `rare` stream the absence is expected by the append, and it is read only if that was wrong.
        """
        if rare and stream_id not in self.states and stream_id not in self._loaded:
            return (await self.create(aggregate, stream_id)).state
        return (await self._load(aggregate, stream_id)).state

    async def create(self, aggregate: Aggregate[S], stream_id: UUID) -> Loaded[S]:
        """A stream that is new, most likely: its absence is expected by the append, and read only if that was wrong."""
        if stream_id in self._doubted:
            return await self.load(aggregate, stream_id)
        loaded = Loaded(aggregate, stream_id, aggregate.initial, 0, [], fresh=True)
        self._loaded[stream_id] = loaded
        self.own = self.own or loaded
        return loaded

    def say(self, loaded: Loaded[S], events: Sequence[Any]) -> Loaded[S]:
        """Say `events` on a stream; its state moves on at once."""
        for event in events:
            loaded.state = loaded.aggregate.evolve(loaded.state, event)
            loaded.said.append(event)
        return loaded

    async def seal(self, field: str, *, person: str, text: str) -> Sealed:
        """Personal data, as Vault.seal: the only form in which an event may hold it. Called after the command's own
        stream was loaded or created.

        A repeat ends here and is answered as one: it must not give a new key to somebody who was erased meanwhile.
        """
        vault = self.commands.vault
        assert vault is not None, "these commands have no vault"
        await self.end_if_repeated()
        return await vault.seal(field, person=person, text=text)

    def react(self, stream_id: UUID, *, correlation_id: str, causation_id: str) -> None:
        """What is said on this stream has a reason of its own, in a command that is about many things."""
        self._reasons[stream_id] = correlation_id, causation_id

    async def end_if_repeated(self) -> None:
        """A repeat ends here and is answered as one, for commands whose deciding costs or leaves something. Called
        after the command's own stream was loaded or created.
        """
        if await self.commands.store.reader.receipt(self.caller.command_id) is not None:
            raise Known

    def guard(self, key: str, delta: int, limit: int | None = None, refusal: Rejection | None = None) -> None:
        """Move a counter with the append; past its limit the command fails with `refusal`. Moves under one limit are
        one, however many things a command counts.
        """
        moved = self._guards.get((key, limit))
        self._guards[key, limit] = Guard(key, delta if moved is None else moved.delta + delta, limit)
        if refusal is not None:
            self._refusals[key] = refusal

    def waiting(self, candidate: Candidate) -> None:
        """Tell the workers, once the append is durable, that this job waits."""
        self.candidates.append(candidate)

    async def _load(self, aggregate: Aggregate[S], stream_id: UUID) -> Loaded[S]:
        loaded = self._loaded.get(stream_id)
        if loaded is None:
            state, version, fresh = await self.commands.state(
                aggregate, stream_id, read_tail=stream_id in self._doubted
            )
            loaded = self._loaded[stream_id] = Loaded(aggregate, stream_id, state, version, [], fresh=fresh)
            self._require_own(loaded)
        return loaded

    def _require_own(self, loaded: Loaded[Any]) -> None:
        """Whatever a command names, in its path or anywhere in its body, it reaches what its caller may reach."""
        grant, owner_of = self.caller.grant, loaded.aggregate.owner
        if grant is not None and owner_of is not None and loaded.version:
            require_own(grant.reach, owner=owner_of(loaded.state), actor=self.caller.actor, permission=grant.permission)

    @property
    def seen(self) -> list[tuple[UUID, int]]:
        """The streams that the decision rests on, each at the version that it was seen at."""
        return [(one.stream_id, one.version) for one in self._loaded.values()]

    @property
    def rests_on_cache(self) -> bool:
        return not all(one.fresh for one in self._loaded.values())

    def written(self) -> list[Loaded[Any]]:
        return [one for one in self._loaded.values() if one.said]

    def refusal(self, key: str) -> Rejection:
        return self._refusals.get(key) or Invalid(f"{key} is at its limit")

    def append(self, answer: Loaded[Any]) -> Append:
        """The whole transaction as one append."""
        mapper = self.commands.store.mapper
        kept = KeptResult(answer.stream_id, self.caller.request_digest) if self.caller.request_digest else None
        return Append(
            command_id=self.caller.command_id,
            expectations=[Expectation(one.stream_id, one.version, bool(one.said)) for one in self._loaded.values()],
            events=[
                mapper.to_stored_event(Fact(one.stream_id, version, event))
                for one in self.written()
                for version, event in enumerate(one.said, one.version + 1)
            ],
            metadata=mapper.metadata(self.caller),
            metadata_each=self._metadata_each() if self._reasons else None,
            guards=list(self._guards.values()),
            result=msgspec.json.encode(kept) if kept else None,
        )

    def _metadata_each(self) -> list[bytes]:
        metadata = self.commands.store.mapper.metadata
        found = []
        for one in self.written():
            reason = self._reasons.get(one.stream_id)
            caller = self.caller
            if reason is not None:
                caller = replace(caller, correlation_id=reason[0], causation_id=reason[1])
            found += [metadata(caller)] * len(one.said)
        return found
