"""What jobs have been through, for the tests of jobs and of attempts."""

from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import UUID

from sightline.domain.jobs import (
    Artifact,
    JobCancelled,
    JobCancelRequested,
    JobCompleted,
    JobDeadLettered,
    JobDeleted,
    JobExpired,
    JobFailed,
    JobRequeued,
    JobRetryScheduled,
    JobStarted,
    JobSubmitted,
)

NOON = datetime(2026, 3, 1, 12, tzinfo=UTC)
LEASE_END = NOON + timedelta(seconds=10)
SESSION, ASSET, MODEL = UUID(int=1), UUID(int=2), UUID(int=3)
LAYER = Artifact(
    name="Layer_1_background.png", object_key="artifacts/1", sha256="c" * 64, size_bytes=10, content_type="image/png"
)


def wish(**changed: Any) -> dict[str, Any]:
    return {
        "kind": "layer-photo-realistic",
        "owner": "ada",
        "inputs": (ASSET,),
        "params": {"num_layers": 4},
        "session_id": SESSION,
        "model_version_id": MODEL,
        "model_sha256": "a" * 64,
    } | changed


def submitted(**changed: Any) -> JobSubmitted:
    return JobSubmitted(at=NOON, **wish(**changed))


def started(attempt: int = 1, worker: str = "w1", at: datetime = NOON) -> JobStarted:
    return JobStarted(at=at, attempt=attempt, worker=worker, lease_until=LEASE_END)


def completed(attempt: int = 1, worker: str = "w1") -> JobCompleted:
    return JobCompleted(at=NOON, attempt=attempt, worker=worker, outputs=(LAYER,))


def retry(attempt: int = 1, wait_s: float = 0, code: str = "crashed", message: str = "exit 139") -> JobRetryScheduled:
    not_before = NOON + timedelta(seconds=wait_s)
    return JobRetryScheduled(at=NOON, attempt=attempt, not_before=not_before, code=code, message=message)


def failed(attempt: int = 1, code: str = "unreadable", message: str = "not a picture") -> JobFailed:
    return JobFailed(at=NOON, attempt=attempt, code=code, message=message)


def dead(attempt: int = 3) -> JobDeadLettered:
    return JobDeadLettered(at=NOON, attempt=attempt, code="crashed", message="exit 139")


CANCEL_REQUESTED = JobCancelRequested(at=NOON, by="ada")
CANCELLED = JobCancelled(at=NOON, by="ada")
EXPIRED = JobExpired(at=NOON)
DELETED = JobDeleted(at=NOON, by="ada")
REQUEUED = JobRequeued(at=NOON, by="root", attempts_max=6)

PENDING = (submitted(),)
PROCESSING = (submitted(), started())
WAITING = (submitted(), started(), retry(wait_s=4))
SECOND = (submitted(), started(), retry(), started(2, "w2"))
DEAD = (submitted(), started(), retry(), started(2), retry(2), started(3), dead())
TERMINAL = {
    "completed": (*PROCESSING, completed()),
    "failed": (*PROCESSING, failed()),
    "cancelled": (*PENDING, CANCELLED),
    "expired": (*PENDING, EXPIRED),
}
