"""A unique key: while the job that holds it is not over, its owner has no other job of that kind under that key.

One stream per owner, kind and key, which names the holder. Nothing is released: whoever comes next looks at the holder,
and takes the key over when that is over. Both are expected by the append, so that of any number at once one wins.
"""

from datetime import datetime
from uuid import UUID

from msgspec import Struct

from .kernel import Aggregate, InvalidState, derived_id

# Events. A tag is stored for ever: rename the class if you must, never the tag; new fields get a default.


class UniqueKeyTaken(Struct, frozen=True, kw_only=True, tag="unique_key.taken"):
    """The job holds it from now on, until that is over and another takes it."""

    at: datetime
    owner: str
    kind: str
    key: str
    job_id: UUID


Event = UniqueKeyTaken


# State


class UniqueKey(Struct, frozen=True):
    """Attributes:
    holder: the job that took it last; None before any did.
    """

    owner: str = ""
    holder: UUID | None = None


# Rejections


class JobExists(InvalidState):
    """The job that holds the key, whose id is told, is not over."""

    code = "job_exists"


def evolve(_: UniqueKey, event: Event) -> UniqueKey:
    return UniqueKey(event.owner, event.job_id)


AGGREGATE = Aggregate("unique_key", UniqueKey(), evolve, owner=lambda unique: unique.owner)


# Decisions


def take(
    unique: UniqueKey, *, owner: str, kind: str, key: str, job_id: UUID, holder_over: bool, now: datetime
) -> list[Event]:
    """Have `job_id` hold the key. `holder_over`: whether the job that holds it now, if any does, has ended.

    Raises:
        JobExists: it has not.
    """
    if unique.holder == job_id:
        return []
    if unique.holder is not None and not holder_over:
        raise JobExists(f"job {unique.holder} has this unique_key and is not over", job_id=unique.holder)
    return [UniqueKeyTaken(at=now, owner=owner, kind=kind, key=key, job_id=job_id)]


# Questions


def unique_key_id(owner: str, kind: str, key: str) -> UUID:
    """The stream of a key. The owner's length is told, since owners and keys may hold what stands between them."""
    return derived_id("unique-key", kind, len(owner), owner, key)
