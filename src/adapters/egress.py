"""Requests to addresses that strangers name, under the rules that keep them from reaching what only we can reach.

A name is resolved once, all of its addresses are judged, and the connection goes to one of those very addresses: a name
that means something else a moment later changes nothing. A redirect is an answer and is not followed.
"""

import asyncio
import ipaddress
import socket
import ssl
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Self

import aiohttp
from aiohttp.abc import AbstractResolver, ResolveResult
from msgspec import Struct
from yarl import URL

from .egress_rules import Rules, UrlRefused

ANSWER_BYTES_MAX = 1024
ADDRESSES_MAX = 16
CONNECTIONS_MAX = 1_000
USER_AGENT = "Sightline-Webhooks/1"

Resolve = Callable[[str], Awaitable[Sequence[str]]]


class Unresolved(OSError):
    """The name means nothing now."""


class Answer(Struct, frozen=True):
    """What a receiver said.

    Attributes:
        body: the beginning, ANSWER_BYTES_MAX at most.
    """

    status: int
    body: bytes
    duration_s: float


class Egress:
    """Sends requests under the rules; one per process, used as a context.

    Args:
        resolve: a name's addresses; the system's resolver where it is not given.
        tls: whom to trust; the system's certificates where it is not given.
    """

    def __init__(
        self,
        rules: Rules,
        *,
        timeout_s: float,
        resolve: Resolve | None = None,
        tls: ssl.SSLContext | None = None,
        lookups_max: int = 50,
    ) -> None:
        self._rules = rules
        self._timeout_s = timeout_s
        # Of its own: a name server that does not answer holds up these threads, and nobody else's.
        self._threads = ThreadPoolExecutor(lookups_max, thread_name_prefix="lookup")
        self._resolve = resolve or self._look_up
        self._tls = tls or ssl.create_default_context()
        self._session: aiohttp.ClientSession | None = None

    async def __aenter__(self) -> Self:
        connector = aiohttp.TCPConnector(
            ssl=self._tls,
            resolver=_Judged(self._rules, self._resolve),
            use_dns_cache=False,
            force_close=True,  # the next attempt looks again
            limit=CONNECTIONS_MAX,
            socket_factory=self._socket,
        )
        self._session = aiohttp.ClientSession(
            connector=connector,
            cookie_jar=aiohttp.DummyCookieJar(),
            trust_env=False,
            auto_decompress=False,
            headers={"User-Agent": USER_AGENT},
        )
        return self

    async def __aexit__(self, *_: object) -> None:
        if self._session is not None:
            await self._session.close()
        self._threads.shutdown(wait=False, cancel_futures=True)

    async def post(self, url: str, headers: Mapping[str, str], body: bytes) -> Answer:
        """
        Raises:
            UrlRefused: the rules forbid the URL, or what its name means now.
            TimeoutError: no answer within `timeout_s`, looking up and connecting included.
            aiohttp.ClientError, OSError: nobody answers, or not HTTP, or not with a certificate for this name.
        """
        assert self._session is not None, "used as a context"
        target = self._rules.target(url)
        parsed = URL(target.url, encoded=True)
        if (parsed.raw_host, parsed.port) != (target.host, target.port):
            raise UrlRefused("malformed", "it can be read in two ways")
        began = time.monotonic()
        async with (
            asyncio.timeout(self._timeout_s),
            self._session.post(
                parsed,
                data=body,
                headers={"Content-Type": "application/json", **headers},
                allow_redirects=False,
                timeout=aiohttp.ClientTimeout(total=None),
            ) as answer,
        ):
            said = await _beginning(answer.content)
            return Answer(answer.status, said, time.monotonic() - began)

    def _socket(self, info: Any) -> socket.socket:
        """The last gate: whatever was parsed and resolved, this is where the connection goes."""
        family, kind, protocol, _, place = info
        self._rules.judge(ipaddress.ip_address(place[0]))
        made = socket.socket(family, kind, protocol)
        made.setblocking(False)  # noqa: FBT003  # the standard library's signature
        return made

    async def _look_up(self, name: str) -> Sequence[str]:
        loop = asyncio.get_running_loop()
        found = await loop.run_in_executor(self._threads, _getaddrinfo, name)
        return list(dict.fromkeys(str(place[0]) for *_, place in found))


class _Judged(AbstractResolver):
    """The resolver of the connector: one look-up, every address of it judged, and those are what is connected to."""

    def __init__(self, rules: Rules, resolve: Resolve) -> None:
        self._rules = rules
        self._resolve = resolve

    async def resolve(
        self, host: str, port: int = 0, family: socket.AddressFamily = socket.AF_UNSPEC
    ) -> list[ResolveResult]:
        del family  # either
        found = [ipaddress.ip_address(one) for one in (await self._resolve(host))[:ADDRESSES_MAX]]
        if not found:
            raise Unresolved("the name has no address")
        for address in found:
            self._rules.judge(address)  # one that is refused refuses all: an honest name does not mix them
        return [
            ResolveResult(
                hostname=host,
                host=str(address),
                port=port,
                family=socket.AF_INET if isinstance(address, ipaddress.IPv4Address) else socket.AF_INET6,
                proto=0,
                flags=socket.AI_NUMERICHOST | socket.AI_NUMERICSERV,
            )
            for address in found
        ]

    async def close(self) -> None:
        """Nothing is held."""


async def _beginning(content: aiohttp.StreamReader) -> bytes:
    said = b""
    while len(said) < ANSWER_BYTES_MAX:
        part = await content.read(ANSWER_BYTES_MAX - len(said))
        if not part:
            break
        said += part
    return said


def _getaddrinfo(name: str) -> list[Any]:
    return list(socket.getaddrinfo(name, None, type=socket.SOCK_STREAM))
