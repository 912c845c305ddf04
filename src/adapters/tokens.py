"""Bearer tokens: JWTs (RFC 7519) of one algorithm, one header per secret and one set of claims.

Nothing of a token is looked at before it is compared: its first part must be, byte for byte, the header that one of
our secrets writes, so that no header field can choose an algorithm, a key or a place to fetch one from.
"""

import hashlib
import hmac
import re
import time
from collections import OrderedDict
from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Annotated, Any
from uuid import UUID, uuid4

import jwt
import msgspec
from msgspec import Meta, Struct

from ..domain.access import NotAuthenticated
from .settings import JWT_ALGORITHM, Settings, secrets_of

ISSUER = "sightline"
AUDIENCE = "sightline"
TOKEN_CHARS_MAX = 1_024
VERIFIED_MAX = 10_000  # tokens that are known to be good; the first that was met goes first
SKEW_S = 5  # by which the clock of the node that issued it may be ahead of ours

_PARTS = re.compile(r"([A-Za-z0-9_-]{1,200})\.([A-Za-z0-9_-]{1,700})\.([A-Za-z0-9_-]{43})")
_LAST_OF_SIGNATURE = frozenset("AEIMQUYcgkosw048")  # 43 characters of base64 hold 258 bits: the last two are 0


Seconds = Annotated[int, Meta(ge=0, lt=253_402_300_800)]  # to the end of the year 9999, the last that we can tell


class Claims(Struct, frozen=True):
    user_id: UUID
    generation: int
    issued_at: datetime
    expires_at: datetime
    token_id: UUID


class _Payload(Struct, frozen=True, forbid_unknown_fields=True):
    """As it is written: each must be there, of its type, and nothing beside."""

    iss: str
    aud: str
    sub: UUID
    iat: Seconds
    exp: Seconds
    jti: UUID
    gen: Annotated[int, Meta(ge=1)]


class Tokens:
    """Issues and verifies.

    Args:
        secrets: at least 32 bytes each, the newest first; it signs, all verify.
        lifetime_s: of a token.
    """

    def __init__(self, secrets: Sequence[bytes], *, lifetime_s: int) -> None:
        self._kid = _kid(secrets[0])
        self._secret = secrets[0]
        self._by_header = {self._header(secret): secret for secret in secrets}
        self._lifetime_s = lifetime_s
        self._verified: OrderedDict[bytes, Claims] = OrderedDict()

    def __repr__(self) -> str:
        return "Tokens(…)"

    @classmethod
    def of(cls, settings: Settings, fallback: bytes) -> "Tokens":
        """With the settings' secrets; where there are none, with `fallback`, which is this installation's own."""
        secrets = [secret.encode() for secret in secrets_of(settings)] or [fallback]
        return cls(secrets, lifetime_s=settings.jwt_expire_minutes * 60)

    def issue(self, user_id: UUID, generation: int) -> tuple[str, datetime]:
        """A token, and when it expires."""
        now = int(time.time())
        payload = {
            "iss": ISSUER,
            "aud": AUDIENCE,
            "sub": str(user_id),
            "iat": now,
            "exp": now + self._lifetime_s,
            "jti": str(uuid4()),
            "gen": generation,
        }
        token = jwt.encode(payload, self._secret, algorithm=JWT_ALGORITHM, headers={"kid": self._kid})
        return token, datetime.fromtimestamp(now + self._lifetime_s, UTC)

    def verify(self, token: str) -> Claims:
        """What a token claims. A good one stays good until its time is over: only that is looked at when it comes
        again, as it does with every request of its holder, a fifth of whose time went into this.

        Raises:
            NotAuthenticated: it is not one of ours as we write them, or its time is over.
        """
        if len(token) > TOKEN_CHARS_MAX:
            raise NotAuthenticated("not a token of ours")
        digest = hashlib.sha256(token.encode(errors="surrogatepass")).digest()  # no token is kept
        claims = self._verified.get(digest)
        if claims is None:
            claims = self._verified[digest] = self._claims(token)
            if len(self._verified) > VERIFIED_MAX:
                self._verified.popitem(last=False)
        elif claims.expires_at.timestamp() <= time.time():
            del self._verified[digest]
            raise NotAuthenticated("not a token that is good now")
        return claims

    def _claims(self, token: str) -> Claims:
        parts = _PARTS.fullmatch(token)
        secret = self._by_header.get(parts[1]) if parts is not None else None
        if parts is None or secret is None or parts[3][-1] not in _LAST_OF_SIGNATURE:
            raise NotAuthenticated("not a token of ours")
        try:
            found: dict[str, Any] = jwt.decode(
                token,
                secret,
                algorithms=[JWT_ALGORITHM],
                issuer=ISSUER,
                audience=AUDIENCE,
                leeway=SKEW_S,
                options={"require": ["iss", "aud", "sub", "iat", "exp", "jti"], "strict_aud": True},
            )
            payload = msgspec.convert(found, _Payload, strict=True)
        except (jwt.InvalidTokenError, msgspec.ValidationError, ValueError, TypeError, OverflowError) as error:
            raise NotAuthenticated("not a token that is good now") from error
        if found["sub"] != str(payload.sub) or found["jti"] != str(payload.jti) or payload.exp <= time.time():
            raise NotAuthenticated("not a token that is good now")
        issued_at, expires_at = (datetime.fromtimestamp(seconds, UTC) for seconds in (payload.iat, payload.exp))
        return Claims(payload.sub, payload.gen, issued_at, expires_at, payload.jti)

    @staticmethod
    def _header(secret: bytes) -> str:
        return jwt.encode({}, secret, algorithm=JWT_ALGORITHM, headers={"kid": _kid(secret)}).partition(".")[0]


def _kid(secret: bytes) -> str:
    """A name for a secret that says nothing of it."""
    return hmac.digest(secret, b"sightline-token-key-1", hashlib.sha256).hex()[:16]
