"""How often one principal may use a route, and somebody may try to log in.

A handler names its policy with the option `limit="jobs"`; how many requests a minute that is, is a setting. The guard
runs behind the one that authenticates and before anything of the body is read, so that a request counts whatever its
body is worth. Fields: draft-ietf-httpapi-ratelimit-headers.
"""

import hashlib
import hmac
from collections.abc import Mapping
from typing import Any

from litestar import Litestar
from litestar.handlers.base import BaseRouteHandler
from litestar.types import Scope

from ..adapters.limits import WINDOW_S, Bucket, Verdict
from ..adapters.settings import Settings
from ..domain.kernel import Rejection
from .addresses import client_address, trusted_networks
from .auth import AnyConnection, admitted
from .canonical import ADDED_HEADERS
from .services import Services

POLICIES = ("sessions", "upload-url", "jobs", "exports", "login", "lots", "lot-lists", "trace")
LIFTS = "limits:lift"  # the scope of an API key that is not counted
ACCOUNT_FACTOR = 3  # an account takes so many times the attempts of one address
KNOWN_S = 30 * 24 * 3600  # how long an address from which an account logged in is its own


class TooManyRequests(Rejection):
    """More than the policy takes; `retry_after_s` is when it takes the next."""

    code = "rate_limited"


class LimitGuard:
    """Counts a request against its route's policy, and has the answer say what is left. Called by the application
    before each handler, behind the Guard that says whose request it is; see _admission() in app.py.
    """

    def __init__(self, services: Services) -> None:
        self._services = services
        self._enabled = in_force(services.settings)
        self._trusted = trusted_networks(services.settings.trusted_proxies)

    async def __call__(self, connection: AnyConnection, handler: BaseRouteHandler) -> None:
        """Raises: TooManyRequests: too often."""
        policy: str | None = handler.opt.get("limit")
        if policy is None or not self._enabled or _lifted(connection):
            return
        limit = per_minute(self._services.settings, policy)
        [verdict] = await self._services.limiter.take([Bucket(f"{_PREFIX}{policy}:{self._who(connection)}", limit)])
        mark(connection.scope, policy, limit, verdict)
        if not verdict.allowed:
            raise TooManyRequests(f"{limit} a minute", retry_after_s=verdict.retry_after_s)

    def _who(self, connection: AnyConnection) -> str:
        """The principal; where there is none of one's own, the address."""
        principal = admitted(connection).principal
        if principal.credential is not None:
            return f"actor:{principal.actor}"
        return f"address:{client_address(connection.scope, self._trusted)}"


_PREFIX = "sightline:limit:"


def in_force(settings: Settings) -> bool:
    return settings.auth_enabled if settings.rate_limits_enabled is None else settings.rate_limits_enabled


def per_minute(settings: Settings, policy: str) -> int:
    """What the settings say of a policy."""
    limit: int = getattr(settings, f"limit_{policy.replace('-', '_')}_per_minute")
    return limit


def mark(scope: Scope, policy: str, limit: int, verdict: Verdict) -> None:
    """Have the answer say what is left."""
    scope["state"][ADDED_HEADERS] = headers_of(policy, limit, verdict)


def headers_of(policy: str, limit: int, verdict: Verdict) -> Mapping[str, str]:
    return {
        "RateLimit-Policy": f'"{policy}";q={limit};w={WINDOW_S}',
        "RateLimit": f'"{policy}";r={verdict.remaining};t={verdict.reset_s}',
    }


def require_policies(app: Litestar) -> None:
    """Raises: LookupError: a route names a policy that there is not. Nothing is served then."""
    for route in app.routes:
        for handler in getattr(route, "route_handlers", ()):
            policy = handler.opt.get("limit")
            if policy is not None and policy not in POLICIES:
                raise LookupError(f"{route.path} ({handler}) names the limit {policy!r}")


async def check_login(services: Services, connection: Any, account: str) -> str:
    """Whether one more login may be tried, asked before anything is hashed; the request's address, and the fields on
    its answer.

    The address may try so often a minute. The account may be tried ACCOUNT_FACTOR times as often, from everywhere
    together, which is what stops somebody who has many addresses. So that those cannot lock its owner out, an address
    from which the account did log in within KNOWN_S (login_succeeded) is counted by itself alone.
    `account` is as it is typed; Valkey is told a keyed digest of it.

    Raises:
        TooManyRequests: too often.
        LimitsUnavailable: Valkey does not answer; nobody is guessed at meanwhile.
    """
    settings = services.settings
    address = client_address(connection.scope, trusted_networks(settings.trusted_proxies))
    if in_force(settings):
        try:
            verdict = await _take_login(services, address, account)
        except TooManyRequests as refused:
            mark(connection.scope, "login", settings.limit_login_per_minute, refused.extra["verdict"])
            raise
        mark(connection.scope, "login", settings.limit_login_per_minute, verdict)
    return address


async def login_succeeded(services: Services, address: str, account: str) -> None:
    """The account logged in from here. Forgetting it costs its owner no more than being counted with everybody."""
    if in_force(services.settings):
        await services.limiter.remember(_known(services, address, account), KNOWN_S)


async def _take_login(services: Services, address: str, account: str) -> Verdict:
    settings = services.settings
    limit = settings.limit_login_per_minute
    buckets = [Bucket(f"{_PREFIX}login:address:{address}", limit)]
    if not await services.limiter.remembers(_known(services, address, account)):
        buckets.append(Bucket(f"{_PREFIX}login:account:{_digest(services, account)}", limit * ACCOUNT_FACTOR))
    verdicts = await services.limiter.take(buckets, fails_closed=True)
    tightest = min(verdicts, key=lambda one: (one.remaining, -one.reset_s))
    if not tightest.allowed:
        wait_s = max(one.retry_after_s for one in verdicts)
        refused = Verdict(allowed=False, remaining=0, reset_s=wait_s, retry_after_s=wait_s)
        raise TooManyRequests("too many logins", retry_after_s=wait_s, verdict=refused)
    return tightest


def _lifted(connection: AnyConnection) -> bool:
    """Only where a key names it: a key without scopes may do what its holder may, and holders are counted."""
    scopes = admitted(connection).principal.rights.scopes
    return scopes is not None and LIFTS in scopes


def _known(services: Services, address: str, account: str) -> str:
    return f"{_PREFIX}known:{_digest(services, account)}:{address}"


def _digest(services: Services, account: str) -> str:
    """No email lies in Valkey, and none can be guessed at there."""
    folded = account.strip().casefold().encode(errors="replace")
    return hmac.digest(services.digest_key, b"login\0" + folded, hashlib.sha256).hex()[:32]
