"""An API key: a long-lived credential of one user's, in a role and for permissions that never reach beyond his own.

issued → revoked. The log knows its public prefix and a digest of its secret, which is random enough that no slow hash
is needed. What it may do is asked at each use, of the owner as he is today.
"""

import base64
import re
import unicodedata
from datetime import datetime, timedelta
from uuid import UUID

from msgspec import Struct
from msgspec.structs import replace

from .access import SCOPES, NotAllowed, NotAuthenticated, Rights, Role, may_grant, roles_with
from .kernel import Aggregate, Invalid, NotFound, derived_id, require_sha256, require_within
from .users import User, actor_of, require_active

NAME_CHARS_MAX = 100
LIFETIME_DAYS_MAX = 366
SECRET_BYTES = 32
PREFIX_BYTES = 8
PREFIX = re.compile(rf"[0-9a-f]{{{2 * PREFIX_BYTES}}}")

_TEXT = re.compile(rf"sl_({PREFIX.pattern})_([A-Za-z0-9_-]{{43}})")  # 43 characters of base64url are 32 bytes


# Events. A tag is stored for ever: rename the class if you must, never the tag; new fields get a default.


class ApiKeyIssued(Struct, frozen=True, kw_only=True, tag="api_key.issued"):
    """Attributes:
    scopes: the permissions that it is narrowed to; None: all of the role's.
    hash: SHA-256 of its secret, in hexadecimal.
    """

    at: datetime
    name: str
    owner: UUID
    role: Role
    scopes: list[str] | None
    expires_at: datetime
    prefix: str
    hash: str
    by: str


class ApiKeyRevoked(Struct, frozen=True, kw_only=True, tag="api_key.revoked"):
    at: datetime
    by: str


Event = ApiKeyIssued | ApiKeyRevoked


# State


class ApiKey(Struct, frozen=True):
    name: str = ""
    owner: UUID | None = None
    role: Role = Role.VIEWER
    scopes: frozenset[str] | None = None
    expires_at: datetime | None = None
    prefix: str = ""
    hash: str = ""
    created_at: datetime | None = None
    revoked_at: datetime | None = None


def evolve(key: ApiKey, event: Event) -> ApiKey:
    match event:
        case ApiKeyIssued():
            return ApiKey(
                name=event.name,
                owner=event.owner,
                role=event.role,
                scopes=None if event.scopes is None else frozenset(event.scopes),
                expires_at=event.expires_at,
                prefix=event.prefix,
                hash=event.hash,
                created_at=event.at,
            )
        case ApiKeyRevoked(at=at):
            return replace(key, revoked_at=at)


AGGREGATE = Aggregate("api_key", ApiKey(), evolve, owner=lambda key: "" if key.owner is None else actor_of(key.owner))


# Decisions


def issue(
    key: ApiKey,
    *,
    name: str,
    owner_id: UUID,
    owner_state: User,
    issuer: Rights,
    role: Role,
    scopes: frozenset[str] | None,
    expires_at: datetime,
    prefix: str,
    secret_sha256: str,
    by: str,
    now: datetime,
) -> list[Event]:
    """Hand one out. `owner_state` is what the owner's own stream says, consulted by the caller.

    Raises:
        NotAllowed: it could do what its issuer, or its owner, cannot.
        Invalid: a permission that there is not, a name or an end that cannot be.
        NotFound, InvalidState: there is no such owner, or he was deactivated.
    """
    if key.owner is not None:
        return []
    require_active(owner_state)
    _require_name(name)
    if PREFIX.fullmatch(prefix) is None:
        raise Invalid("a prefix is 16 lower-case hexadecimal digits")
    require_sha256(secret_sha256)
    if not now < expires_at <= now + timedelta(days=LIFETIME_DAYS_MAX):
        raise Invalid(f"expires_at lies in the future, at most {LIFETIME_DAYS_MAX} days from now")
    unknown = sorted((scopes or frozenset()) - SCOPES)
    if unknown:
        raise Invalid(f"a key cannot be narrowed to {', '.join(unknown)[:200]}")
    _require_no_more(issuer, owner_state.role, role, scopes)
    return [
        ApiKeyIssued(
            at=now,
            name=name,
            owner=owner_id,
            role=role,
            scopes=None if scopes is None else sorted(scopes),
            expires_at=expires_at,
            prefix=prefix,
            hash=secret_sha256,
            by=by,
        )
    ]


def revoke(key: ApiKey, *, by: str, now: datetime) -> list[Event]:
    """
    Raises:
        NotFound: there is no such key.
    """
    if key.owner is None:
        raise NotFound("no such API key")
    if key.revoked_at is not None:
        return []
    return [ApiKeyRevoked(at=now, by=by)]


# Questions


def key_id(prefix: str) -> UUID:
    """The stream of the key with this public prefix."""
    return derived_id("api-key", prefix)


def text_of(prefix: str, secret: bytes) -> str:
    """The whole key, as its owner is shown it once: `sl_<prefix>_<secret>`."""
    return f"sl_{prefix}_{base64.urlsafe_b64encode(secret).rstrip(b'=').decode()}"


def parsed(text: str) -> tuple[str, bytes]:
    """Prefix and secret of a key.

    Raises:
        NotAuthenticated: it is none, or not as text_of() writes it.
    """
    found = _TEXT.fullmatch(text)
    if found is not None:
        prefix, secret = found[1], base64.urlsafe_b64decode(found[2] + "=")
        if text_of(prefix, secret) == text:
            return prefix, secret
    raise NotAuthenticated("no such API key")


def require_live(key: ApiKey, owner: User, now: datetime) -> Rights:
    """What the key may do today.

    Raises:
        NotAuthenticated: nothing: it is unknown, revoked or expired, its owner was deactivated, or may no longer do
            himself what the key's role can.
    """
    if key.owner is None or key.expires_at is None:
        raise NotAuthenticated("no such API key")
    if key.revoked_at is not None:
        raise NotAuthenticated("the API key was revoked")
    if now >= key.expires_at:
        raise NotAuthenticated("the API key has expired")
    if owner.status != "active" or not may_grant(owner.role, key.role):
        raise NotAuthenticated("the API key is no longer good: its owner may not do this himself")
    return Rights(key.role, key.scopes)


def _require_name(name: str) -> None:
    require_within("the length of name", len(name), 1, NAME_CHARS_MAX)
    if any(unicodedata.category(character) in {"Cc", "Cs", "Zl", "Zp"} for character in name):
        raise Invalid("name holds a control character")


def _require_no_more(issuer: Rights, owner: Role, role: Role, scopes: frozenset[str] | None) -> None:
    """Whoever came with a narrowed key hands out a narrower one: else a key for keys would be one for everything."""
    for granter in (issuer.role, owner):
        if not may_grant(granter, role):
            raise NotAllowed(f"a {granter} cannot hand out {role}", [one for one in Role if may_grant(one, role)])
    for scope in sorted(scopes or ()):
        if issuer.reach(scope) is None:
            raise NotAllowed(f"a {issuer.role} cannot hand out {scope}", roles_with(scope))
    if issuer.scopes is not None and (scopes is None or not scopes <= issuer.scopes):
        raise NotAllowed("a key cannot hand out more than it has itself", ())
