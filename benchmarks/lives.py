"""A log as long as wanted: whole lives of sessions, assets and jobs, made by the domain's own decisions, interleaved.

No database is needed to make it; whoever wants one with it copies the rows in.
"""

import random
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from itertools import islice
from typing import Any
from uuid import UUID

from sightline.adapters.event_store.codec import EventMapper, Fact, Recorded
from sightline.domain import assets, attempts, jobs, sessions
from sightline.domain.events import EVENTS
from sightline.domain.jobs import Artifact, Provenance
from sightline.domain.kernel import Aggregate, Caller

BEGIN = datetime(2026, 1, 1, tzinfo=UTC)
AT_ONCE = 64  # lives that are under way at any time
STEP = timedelta(milliseconds=2)
LEASE = timedelta(seconds=10)
OWNERS = ("ada", "grace", "edsger", "barbara")

Said = tuple[UUID, Any]  # a stream, and what is decided next of it


class Log:
    """Events in order, from position 1."""

    def __init__(self, seed: int = 1) -> None:
        self._random = random.Random(seed)
        self._mapper = EventMapper(EVENTS)
        self._now = BEGIN
        self._versions: dict[UUID, int] = {}
        self._session = self._id()

    def events(self, count: int) -> Iterator[Recorded]:
        return islice(self._all(), count)

    def _id(self) -> UUID:
        """Like a UUIDv7: close to one another in time means close in order."""
        milliseconds = int(self._now.timestamp() * 1000)
        return UUID(int=milliseconds << 80 | 7 << 76 | self._random.getrandbits(76))

    def _all(self) -> Iterator[Recorded]:
        lives: list[Iterator[Said]] = []
        position = 0
        while True:
            while len(lives) < AT_ONCE:
                lives.append(self._job())
            life = self._random.choice(lives)
            said = next(life, None)
            if said is None:
                lives.remove(life)
                continue
            stream, event = said
            position += 1
            yield self._recorded(position, stream, event)

    def _recorded(self, position: int, stream: UUID, event: Any) -> Recorded:
        version = self._versions[stream] = self._versions.get(stream, 0) + 1
        stored = self._mapper.to_stored_event(Fact(stream, version, event))
        command_id = self._id()
        caller = Caller(
            actor=self._random.choice(OWNERS),
            now=self._now,
            command_id=command_id,
            correlation_id=str(stream),
            causation_id=f"command:{command_id}",
            request_id=f"{command_id.hex[:12]}",
        )
        return Recorded(stream, version, stored.topic, stored.state, position, self._mapper.metadata(caller), self._now)

    def _tick(self) -> datetime:
        self._now += STEP
        return self._now

    def _life(self, aggregate: Aggregate[Any], stream: UUID) -> "_Life":
        return _Life(aggregate, stream)

    def _job(self) -> Iterator[Said]:
        """A job's whole life; every fourth one comes with an asset of its own, every tenth with a session."""
        dice = self._random
        if dice.random() < 0.1:
            yield from self._new_session()
        inputs: tuple[UUID, ...] = ()
        if dice.random() < 0.25:
            inputs = (self._id(),)
            yield from self._asset(inputs[0])
        stream = self._id()
        life = _Life(jobs.AGGREGATE, stream)
        yield from life.say(
            jobs.submit,
            kind="layer-photo-realistic" if inputs else "noop",
            owner=dice.choice(OWNERS),
            inputs=inputs,
            params={"num_layers": dice.randint(2, 5), "max_size": 1024} if inputs else {"sleep_s": dice.random()},
            session_id=self._session,
            priority=dice.randint(0, 9),
            now=self._tick(),
        )
        if dice.random() < 0.05:
            yield from life.say(jobs.cancel, by="ada", now=self._tick())
            return
        for attempt in (1, 2, 3):
            held: dict[str, Any] = {"attempt": attempt, "worker": f"worker:{dice.randint(1, 8)}"}
            now = self._tick() + LEASE * attempt
            yield from life.say(attempts.start, **held, lease_until=now + LEASE, now=now)
            for percent in (30, 70):
                yield from life.say(
                    attempts.report_progress, **held, percent=percent, message=f"step {percent}", now=self._tick()
                )
            if dice.random() < 0.05:
                failed: dict[str, Any] = {"code": "crashed", "message": "exit 139", "retryable": True}
                yield from life.say(attempts.fail, **held, **failed, retry_delay_s=1.0, now=self._tick())
                continue
            yield from life.say(attempts.complete, **held, **self._result(stream, inputs), now=self._tick())
            return

    def _result(self, stream: UUID, inputs: tuple[UUID, ...]) -> dict[str, Any]:
        """What a completed job brings; one in six wrote a file."""
        made = Artifact(
            name="Layer_1_background.png",
            object_key=f"jobs/{stream}/1/Layer_1_background.png",
            sha256=f"{self._random.getrandbits(256):064x}",
            size_bytes=self._random.randint(1, 10**6),
            content_type="image/png",
        )
        return {
            "outputs": (made,) if inputs else (),
            "manifest": {"layers": [{"order": 1, "coverage_percent": 33.5}]} if inputs else {},
            "timings": {"decode": self._random.random(), "run": self._random.random()},
            "receipt": Provenance(input_sha256=("b" * 64,) * len(inputs), runtime="onnxruntime 1.23.0"),
        }

    def _new_session(self) -> Iterator[Said]:
        stream = self._id()
        life = _Life(sessions.AGGREGATE, stream)
        yield from life.say(sessions.create, owner=self._random.choice(OWNERS), now=self._tick())
        self._session = stream

    def _asset(self, stream: UUID) -> Iterator[Said]:
        size_bytes = self._random.randint(1, 10**6)
        yield from _Life(assets.AGGREGATE, stream).say(
            assets.register,
            filename="photo.png",
            content_type="image/png",
            found_content_type="image/png",
            sha256=f"{self._random.getrandbits(256):064x}",
            size_bytes=size_bytes,
            scan=assets.Scan(engine="pillow", width_px=640, height_px=480),
            purpose="image",
            owner=self._random.choice(OWNERS),
            object_key=f"assets/{stream}",
            now=self._tick(),
        )


class _Life:
    """One stream: what is decided is said, and changes what can be decided next."""

    def __init__(self, aggregate: Aggregate[Any], stream: UUID) -> None:
        self._aggregate, self._stream, self._state = aggregate, stream, aggregate.initial

    def say(self, decide: Any, **said: Any) -> Iterator[Said]:
        for event in decide(self._state, **said):
            self._state = self._aggregate.evolve(self._state, event)
            yield self._stream, event
