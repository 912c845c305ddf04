"""A process that appends at full speed.

    python -m tests.crash.appender DIRECTORY NUMBER PROCESSES DSN SEED KILLS EVENTS

Ids and events follow from the seed, and the ledger says which commands were acknowledged. So one that is killed and
started again sends first what it has no answer for, under the same ids.
"""

import asyncio
import sys
import time
from collections import Counter
from datetime import UTC, datetime, timedelta
from pathlib import Path
from uuid import UUID

import psycopg
from tests.crash.ledger import APPENDED, REFUSED, REPEAT, Acknowledged, Ledger
from tests.crash.plan import COMMANDS_PER_STREAM, EVENTS_PER_COMMAND, Gate

from sightline.adapters.event_store.codec import EventMapper, Fact
from sightline.adapters.event_store.wire import Append, Expectation
from sightline.adapters.event_store.writer import Appended, Repeat, StoreBusy, StoreUnavailable, Writer
from sightline.domain.events import EVENTS
from sightline.domain.kernel import Caller, derived_id
from sightline.domain.sessions import AssetAttached, SessionClosed, SessionCreated

LANES = 64
GATE_POLL_S = 0.01
RETRY_S = 0.05
BEGAN = datetime(2026, 1, 1, tzinfo=UTC)


class Lane:
    """Commands one after the other: some on each stream, then a new stream."""

    def __init__(self, seed: int, appender: int, number: int, mapper: EventMapper) -> None:
        self.number = number
        self._name = ("crash", seed, appender, number)
        self._mapper = mapper

    def command(self, n: int) -> tuple[Append, UUID, int]:
        """The lane's `n`th, from 0; its stream, and the version that it leads to."""
        stream_id = derived_id(*self._name, "stream", n // COMMANDS_PER_STREAM)
        step = n % COMMANDS_PER_STREAM
        before = step * EVENTS_PER_COMMAND
        command_id = derived_id(*self._name, "command", n)
        caller = Caller(
            actor="appender",
            now=BEGAN,
            command_id=command_id,
            correlation_id=str(stream_id),
            causation_id=f"command:{command_id}",
        )
        events = [_event(stream_id, before + m) for m in range(1, EVENTS_PER_COMMAND + 1)]
        append = Append(
            command_id=command_id,
            expectations=[Expectation(stream_id, before, writes=True)],
            events=[
                self._mapper.to_stored_event(Fact(stream_id, version, event))
                for version, event in enumerate(events, before + 1)
            ],
            metadata=self._mapper.metadata(caller),
        )
        return append, stream_id, before + EVENTS_PER_COMMAND


def _event(stream_id: UUID, version: int) -> SessionCreated | AssetAttached | SessionClosed:
    at = BEGAN + timedelta(seconds=version)
    if version == 1:
        return SessionCreated(at=at, owner="appender", user_id=None, expires_at=BEGAN + timedelta(days=36_500))
    if version == COMMANDS_PER_STREAM * EVENTS_PER_COMMAND:
        return SessionClosed(at=at, by="appender")
    return AssetAttached(at=at, asset_id=derived_id(stream_id, version))


class Appender:
    """All lanes on one writer."""

    def __init__(self, ledger: Ledger, writer: Writer, lanes: list[Lane]) -> None:
        self._ledger = ledger
        self._writer = writer
        self._lanes = lanes
        self._next = Counter({one.lane: 0 for one in ledger})
        for one in ledger:
            self._next[one.lane] += 1
        self._taken = sum(self._next.values())
        self._allowed = 0
        self._closed = False
        self._let = asyncio.Event()

    def let(self, commands: int, *, closed: bool) -> None:
        """So many may have been sent, those of before a restart included; `closed`: and no more will be."""
        self._allowed, self._closed = commands, closed
        self._let.set()

    async def run(self) -> None:
        await asyncio.gather(*map(self._lane, self._lanes))

    async def _lane(self, lane: Lane) -> None:
        while True:
            while self._taken >= self._allowed:
                if self._closed:
                    return
                self._let.clear()
                await self._let.wait()
            self._taken += 1
            await self._send(lane, self._next[lane.number])
            self._next[lane.number] += 1

    async def _send(self, lane: Lane, n: int) -> None:
        append, stream_id, version = lane.command(n)
        while True:
            try:
                outcome = await self._writer.append(append)
            except (StoreUnavailable, StoreBusy):
                await asyncio.sleep(RETRY_S)
                continue
            break
        kind = {Appended: APPENDED, Repeat: REPEAT}.get(type(outcome), REFUSED)
        position = outcome.position if isinstance(outcome, Appended | Repeat) else 0
        self._ledger.write(
            Acknowledged(append.command_id, stream_id, lane.number, version, position, time.monotonic_ns(), kind)
        )


async def append(writer: Writer, ledger: Ledger, *, seed: int, number: int, quotas: list[int], gate: Gate) -> None:
    """Append what the gate lets through, up to the last of `quotas`, in commands by round.

    Those that had no answer when this process was killed are within the quota: the ledger does not have them.
    """
    mapper = EventMapper(EVENTS)
    lanes = [Lane(seed, number, one, mapper) for one in range(LANES)]
    while True:
        try:
            await writer.start()
            break
        except psycopg.OperationalError:
            await asyncio.sleep(RETRY_S)
    appender = Appender(ledger, writer, lanes)
    running = asyncio.create_task(appender.run())
    while not running.done():
        begun = gate.get()
        appender.let(quotas[min(begun, len(quotas)) - 1] if begun else 0, closed=begun >= len(quotas))
        await asyncio.sleep(GATE_POLL_S)
    running.result()
    await writer.close()


def quotas(events: int, kills: int, processes: int) -> list[int]:
    """Commands that one of `processes` may have sent by the end of each round."""
    return [events * done // kills // EVENTS_PER_COMMAND // processes for done in range(1, kills + 1)]


if __name__ == "__main__":
    directory, number, processes, dsn, seed, kills, events = sys.argv[1:]
    asyncio.run(
        append(
            Writer(dsn),
            Ledger(Path(directory) / f"appender-{number}.ledger"),
            seed=int(seed),
            number=int(number),
            quotas=quotas(int(events), int(kills), int(processes)),
            gate=Gate(Path(directory)),
        )
    )
