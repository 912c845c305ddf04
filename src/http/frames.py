"""One event of a job as those who listen are sent it, whichever way; and the ring of the last of them."""

from collections.abc import Iterator
from uuid import UUID

import msgspec
from msgspec import Struct

from ..adapters.event_store.codec import Recorded
from ..domain import jobs
from .cursors import marked

SNAPSHOT = "snapshot"


class JobFacts(Struct, frozen=True, omit_defaults=True, kw_only=True):
    """What an event says of its job, in short. What it does not say is left out.

    Attributes:
        progress: 0 to 100.
    """

    kind: str
    batch_id: UUID | None = None
    status: str | None = None
    attempt: int | None = None
    progress: int | None = None
    error_code: str | None = None


class FrameData(Struct, frozen=True):
    """The one line of a frame.

    Attributes:
        type: the event's stored tag; `snapshot` where it is the state that a stream begins with.
    """

    position: int
    stream_id: UUID
    type: str
    recorded_at: str
    job: JobFacts


class Asked(Struct, frozen=True, kw_only=True):
    """The jobs that somebody listens to: all that is given must fit.

    Attributes:
        owner: whose; None: everybody's.
    """

    job: UUID | None = None
    batch: UUID | None = None
    kind: str | None = None
    owner: str | None = None

    @property
    def key(self) -> object:
        """Under which a listener is found: the one of its conditions that fits the fewest."""
        return self.job or self.batch or (self.owner and ("owner", self.owner)) or (self.kind and ("kind", self.kind))


class Frame(Struct, frozen=True, gc=False):
    """One event of a job, as it is sent.

    Attributes:
        sse: all of it, as a server-sent event.
        data: its JSON line alone.
    """

    position: int
    job_id: UUID
    batch_id: UUID | None
    kind: str
    owner: str
    topic: str
    status: str | None
    id: str
    data: bytes
    sse: bytes

    def fits(self, asked: Asked) -> bool:
        return (
            asked.job in (None, self.job_id)
            and asked.batch in (None, self.batch_id)
            and asked.kind in (None, self.kind)
            and asked.owner in (None, self.owner)
        )

    def found_under(self) -> Iterator[object]:
        """Of all who could want it; see Asked.key."""
        yield self.job_id
        if self.batch_id is not None:
            yield self.batch_id
        yield "owner", self.owner
        yield "kind", self.kind
        yield None


class Ring:
    """The last frames, in order.

    Attributes:
        floor: every frame past this position is here.
    """

    def __init__(self, frames_max: int) -> None:
        self._frames_max = frames_max
        self._frames: list[Frame] = []
        self.floor = 0

    def begin(self, position: int) -> None:
        self._frames.clear()
        self.floor = position

    def add(self, frame: Frame) -> None:
        self._frames.append(frame)
        if len(self._frames) > self._frames_max:
            kept = self._frames_max * 7 // 8  # some at a time: what is left moves up
            self.floor = self._frames[-kept - 1].position
            del self._frames[:-kept]

    def past(self, position: int) -> Iterator[Frame]:
        low, high = 0, len(self._frames)
        while low < high:
            middle = (low + high) // 2
            if self._frames[middle].position <= position:
                low = middle + 1
            else:
                high = middle
        for number in range(low, len(self._frames)):
            yield self._frames[number]


def frame(recorded: Recorded, event: object, submitted: jobs.JobSubmitted, epoch: UUID) -> Frame:
    facts = _facts(event, submitted)
    return _encoded(recorded.position, recorded.stream_id, recorded.topic, _time(recorded), facts, submitted, epoch)


def _encoded(
    position: int,
    job_id: UUID,
    topic: str,
    at: str,
    facts: JobFacts,
    submitted: jobs.JobSubmitted,
    epoch: UUID,
) -> Frame:
    """A frame, encoded: a position with its epoch is the id, from which a client goes on."""
    data = msgspec.json.encode(FrameData(position, job_id, topic, at, facts))
    mark = marked(position, epoch)
    return Frame(
        position=position,
        job_id=job_id,
        batch_id=submitted.batch_id,
        kind=submitted.kind,
        owner=submitted.owner,
        topic=topic,
        status=facts.status,
        id=mark,
        data=data,
        sse=b"id: %b\nevent: %b\ndata: %b\n\n" % (mark.encode(), topic.encode(), data),
    )


def snapshot(position: int, job_id: UUID, job: jobs.Job, epoch: UUID) -> Frame:
    """The state that a stream begins with, as a frame: what is sent after it came after `position`."""
    assert job.submitted is not None
    assert job.updated_at is not None
    facts = JobFacts(
        kind=job.submitted.kind,
        batch_id=job.submitted.batch_id,
        status=job.status,
        attempt=job.attempt,
        progress=job.percent,
        error_code=job.error_code,
    )
    at = job.updated_at.isoformat().replace("+00:00", "Z")
    return _encoded(position, job_id, SNAPSHOT, at, facts, job.submitted, epoch)


def _time(recorded: Recorded) -> str:
    return recorded.recorded_at.isoformat().replace("+00:00", "Z")


def _facts(event: object, submitted: jobs.JobSubmitted) -> JobFacts:
    """What one event says, by what it makes of a job of which nothing was said before."""
    if event is None:
        return JobFacts(kind=submitted.kind, batch_id=submitted.batch_id)
    then = jobs.evolve(jobs.Job(), event)  # type: ignore[arg-type]  # an event of a job, by its tag
    tells_progress = isinstance(event, jobs.JobSubmitted | jobs.JobStarted | jobs.JobProgressed | jobs.JobCompleted)
    return JobFacts(
        kind=submitted.kind,
        batch_id=submitted.batch_id,
        status=then.status,
        attempt=getattr(event, "attempt", None),
        progress=then.percent if tells_progress else None,
        error_code=then.error_code,
    )
