"""Whether the time that a refused login takes tells who is registered: `python -m tests.http.login_timing`.

Logins of registered and of unknown emails, each with a wrong password, one after another in a random order, so that a
busy machine troubles both alike. The test is Mann–Whitney's U, two-sided, by its normal approximation with the
correction for ties: it asks whether one kind tends to take longer, however times are distributed. What it says beside
is the share of pairs in which the registered one took longer, which is 0.5 where there is nothing to be told.
"""

import argparse
import asyncio
import logging
import math
import random
import statistics
import tempfile
import time
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import httpx
import structlog
from msgspec import Struct
from msgspec.structs import replace
from tests.conftest_log import TEMPLATE, database
from tests.http.door import BASE_URL, Door, client_of, opened, settings_for
from tests.http.identity import SECRET, registered

from sightline.adapters import postgres
from sightline.adapters.embedded.postgres import PostgresServer
from sightline.adapters.embedded.valkey import ValkeyServer
from sightline.adapters.passwords import Passwords, Verified
from sightline.adapters.tokens import Tokens
from sightline.commands.authentication import Authentication

ALPHA = 0.001
USERS = 20
WARM_UP = 5


class Timing(Struct, frozen=True):
    """Attributes:
    known_ms, unknown_ms: medians.
    longer: the share of pairs in which the known one took longer.
    p: that times differ so much by chance.
    """

    samples: int
    known_ms: float
    unknown_ms: float
    longer: float
    p: float

    @property
    def told_apart(self) -> bool:
        return self.p < ALPHA


class Hasty(Passwords):
    """The control: for an unknown user there is nothing to verify."""

    async def verify(self, password: str, known: str | None) -> Verified:
        return Verified(good=False) if known is None else await super().verify(password, known)


def mann_whitney(first: Sequence[float], second: Sequence[float]) -> tuple[float, float]:
    """The share of pairs in which the first is larger (half where equal), and the two-sided p."""
    both = sorted([(one, 0) for one in first] + [(one, 1) for one in second])
    ranks: dict[float, float] = {}
    counts = Counter(one for one, _ in both)
    position = 0
    for value, count in sorted(counts.items()):
        ranks[value] = position + (count + 1) / 2
        position += count
    n, m = len(first), len(second)
    u = sum(ranks[one] for one in first) - n * (n + 1) / 2
    ties = sum(count**3 - count for count in counts.values())
    variance = n * m / 12 * ((n + m + 1) - ties / ((n + m) * (n + m - 1)))
    if variance == 0:
        return 0.5, 1.0
    z = (abs(u - n * m / 2) - 0.5) / math.sqrt(variance)
    return u / (n * m), min(1.0, math.erfc(max(0.0, z) / math.sqrt(2)))


async def measured(door: Door, passwords: Passwords, *, samples: int, seed: int = 1) -> Timing:
    """`samples` refused logins of each kind."""
    chance = random.Random(seed)
    services = door.services
    tokens = Tokens([SECRET.encode()], lifetime_s=60)
    authentication = Authentication(services.commands, services.vault, passwords, tokens)
    known = [f"{chance.randbytes(8).hex()}@example.org" for _ in range(USERS)]
    for email in known:
        await registered(door, email, password_hash=await passwords.hash("correct horse battery staple"))
    kinds = [True] * (samples + WARM_UP) + [False] * (samples + WARM_UP)
    chance.shuffle(kinds)
    took: dict[bool, list[float]] = {True: [], False: []}
    async with client_of(replace(services, passwords=passwords, authentication=authentication)) as client:
        for kind in kinds:
            email = chance.choice(known) if kind else f"{chance.randbytes(8).hex()}@example.org"
            took[kind].append(await _refused(client, email))
    first, second = took[True][WARM_UP:], took[False][WARM_UP:]
    longer, p = mann_whitney(first, second)
    return Timing(samples, statistics.median(first) * 1e3, statistics.median(second) * 1e3, longer, p)


async def _refused(client: httpx.AsyncClient, email: str) -> float:
    began = time.perf_counter()
    answer = await client.post("/v1/auth/login", json={"email": email, "password": "wrong horse battery staple"})
    took_s = time.perf_counter() - began
    assert answer.status_code == 401, answer.text
    return took_s


async def _main(samples: int, seed: int, *, control: bool) -> Timing:
    with tempfile.TemporaryDirectory(prefix="sightline-timing-") as name:
        directory = Path(name)
        with (
            PostgresServer(directory) as server,
            ValkeyServer(directory) as valkey,
            database(server, TEMPLATE, "template1") as made,
        ):
            await asyncio.to_thread(postgres.migrate, made.dsn)
            settings = settings_for(
                made, valkey.url, directory, auth_enabled=True, secret_key=SECRET, rate_limits_enabled=False
            )
            passwords = Hasty() if control else Passwords()
            try:
                async with opened(settings) as door:
                    return await measured(door, passwords, samples=samples, seed=seed)
            finally:
                passwords.close()


if __name__ == "__main__":
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(logging.WARNING))
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--samples", type=int, default=500, help="of each kind")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--control", action="store_true", help="without the hash that an unknown user costs")
    given = parser.parse_args()
    found = asyncio.run(_main(given.samples, given.seed, control=given.control))
    print(found)
    print(f"told apart at p < {ALPHA}: {'yes' if found.told_apart else 'no'}  ({BASE_URL}, in this process)")
    raise SystemExit(found.told_apart)
