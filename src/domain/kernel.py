"""What every noun shares: rejections, ids and the caller's envelope. Pure, like the whole floor."""

import hashlib
import hmac
import re
import unicodedata
from collections.abc import Callable, Iterable
from datetime import datetime
from functools import reduce
from typing import Any, Generic, Literal, TypeVar
from uuid import UUID, uuid5

from msgspec import Struct

S = TypeVar("S")

# Ids that follow from other ids (an artifact of an attempt, a command of the clock) are made under this name.
NAMESPACE = UUID("6f1d3a52-6f0c-5c9a-9a55-5d1a5f0f7c11")


class Rejection(Exception):
    """A decision's no. `code` is part of the API: the door turns it into a status, a client may switch on it."""

    code = "rejected"

    def __init__(self, detail: str = "", **extra: Any) -> None:
        super().__init__(detail)
        self.detail = detail
        self.extra = extra


class NotFound(Rejection):
    code = "not_found"


class Forbidden(Rejection):
    code = "forbidden"


class Invalid(Rejection):
    """Well-formed, but against a rule of the domain."""

    code = "rule_violated"


class InvalidState(Rejection):
    """Right at another time, not now."""

    code = "invalid_state"


class QueueFull(Rejection):
    code = "queue_full"


Reach = Literal["own", "any"]


class Credential(Struct, frozen=True):
    """What a caller came with, as far as it can be taken back.

    Attributes:
        user_id: whose it is.
        generation: of that user's credentials; logout, another role and another password begin a new one.
        key_id: of the API key, where it was one.
    """

    user_id: UUID
    generation: int
    key_id: UUID | None = None


class Grant(Struct, frozen=True):
    """The permission under which a command runs, and whether it reaches what others own."""

    permission: str
    reach: Reach


class Caller(Struct, frozen=True, kw_only=True):
    """Who asks, when, and because of what. Taken once per request or job step, never looked up again.

    Attributes:
        actor: the authenticated principal (`local`, `worker:<boot id>`, `clock`).
        now: the time that every decision of this command uses, aware.
        command_id: the same id sent twice is one command; its first outcome is returned again.
        correlation_id: one id from the first request to the last effect.
        causation_id: the command or the event (`event:<position>`) that led to this one.
        request_digest: of the request, keyed, where an idempotency key made the command id; a repeat must match it.
        earlier_digests: of the same request, under the keys that were in use before; a repeat may match one of them.
        grant: what a person may do with it; None: it is the service itself, which may do what its code does.
        credential: that must still be good when the command is appended.
    """

    actor: str
    now: datetime
    command_id: UUID
    correlation_id: str
    causation_id: str
    request_id: str = ""
    request_digest: str = ""
    earlier_digests: tuple[str, ...] = ()
    grant: Grant | None = None
    credential: Credential | None = None

    @classmethod
    def of_itself(cls, actor: str, *, now: datetime, command_id: UUID, correlation_id: str) -> "Caller":
        """The service, or whoever runs it: no request led to this, and no event; the command is its own cause."""
        return cls(
            actor=actor,
            now=now,
            command_id=command_id,
            correlation_id=correlation_id,
            causation_id=f"command:{command_id}",
        )


class Aggregate(Struct, Generic[S], frozen=True):
    """One noun's way from events to state; each aggregate file ends its evolve section with one of these.

    Attributes:
        kind: the first half of the noun's tags, and its name in `/v1/{kind}s/{id}/history`.
        initial: the state before anything was said.
        evolve: state and event to state.
        owner: the actor whose it is; None: it belongs to all.
    """

    kind: str
    initial: S
    evolve: Callable[[S, Any], S]
    owner: Callable[[S], str] | None = None

    def fold(self, state: S, events: Iterable[Any]) -> S:
        """The state that `events` lead to from `state`."""
        return reduce(self.evolve, events, state)


def derived_id(*parts: object) -> UUID:
    """An id that the same parts always give (UUIDv5), for whatever must not happen twice."""
    return uuid5(NAMESPACE, "/".join(map(str, parts)))


def reservation_id(secret: bytes, name: str, key: str) -> UUID:
    """The stream that reserves a natural key. Keyed, so that a guessed key cannot be looked up in the log."""
    digest = hmac.digest(secret, f"{name}\0{key}".encode(), hashlib.sha256)
    bits = int.from_bytes(digest[:16])
    # UUIDv8 (RFC 9562: version 8, variant 10), set by hand: before Python 3.14 `version=8` is refused.
    return UUID(int=bits & ~(0xF << 76 | 0b11 << 62) | 8 << 76 | 0b10 << 62)


def require_sha256(text: str) -> str:
    """`text`, if it is a SHA-256 as we write them: 64 lower-case hexadecimal digits.

    Raises:
        Invalid: it is not.
    """
    if re.fullmatch(r"[0-9a-f]{64}", text) is None:
        raise Invalid("a SHA-256 is 64 lower-case hexadecimal digits")
    return text


def storable(text: str, chars_max: int) -> str:
    """A message from elsewhere, fit for the log: one line's worth, at most `chars_max` characters.

    Control characters and lone surrogates become spaces. The log refuses NUL and surrogates, so that a failure
    whose message held one could otherwise never be told.
    """
    spaced = (" " if unicodedata.category(c) in {"Cc", "Cs"} else c for c in text[:chars_max])
    return "".join(spaced).strip()


def require_within(what: str, value: int, least: int, most: int) -> None:
    """Raises: Invalid: `value` is not between `least` and `most`, both included."""
    if not least <= value <= most:
        raise Invalid(f"{what} is {least} to {most}, not {value}")
