"""The time of a refused login tells nobody who is registered. `python -m tests.http.login_timing` asks 500 of each.

Here with hashes that cost a tenth, so that whatever else differs would show the sooner.
"""

import random
from collections.abc import Iterator

import pytest
from argon2 import PasswordHasher
from tests.http.door import Door
from tests.http.login_timing import ALPHA, Hasty, mann_whitney, measured

from sightline.adapters.passwords import Passwords

pytestmark = pytest.mark.asyncio(loop_scope="module")
SAMPLES = 120
CHEAPER = PasswordHasher(time_cost=1, memory_cost=8 * 1024, parallelism=1)


@pytest.fixture
def passwords(request: pytest.FixtureRequest) -> Iterator[Passwords]:
    opened: Passwords = request.param(CHEAPER)
    yield opened
    opened.close()


@pytest.mark.parametrize("passwords", [Passwords], indirect=True)
async def test_known_and_unknown_users_take_as_long(secured_door: Door, passwords: Passwords) -> None:
    """In one of three: of a thousand who are alike one is told apart by chance, and a machine may hiccup."""
    found = []
    for seed in range(3):
        timing = await measured(secured_door, passwords, samples=SAMPLES, seed=1 + seed)
        if not timing.told_apart and 0.35 < timing.longer < 0.65:
            return
        found.append(timing)
    pytest.fail(f"told apart each time: {found}")


@pytest.mark.parametrize("passwords", [Hasty], indirect=True)
async def test_without_the_dummy_hash_they_are_told_apart(secured_door: Door, passwords: Passwords) -> None:
    """The control: each time, however busy the machine is."""
    for seed in range(3):
        timing = await measured(secured_door, passwords, samples=SAMPLES // 2, seed=11 + seed)
        assert timing.told_apart, timing
        assert timing.longer > 0.65, timing


@pytest.mark.parametrize(
    ("first", "second", "share", "p"),
    [
        ([1.0, 2.0, 3.0], [4.0, 5.0, 6.0], 0.0, 0.0809),
        ([1.0, 1.0, 1.0], [1.0, 1.0, 1.0], 0.5, 1.0),
        ([float(n) for n in range(0, 40, 2)], [float(n) for n in range(1, 41, 2)], 0.475, 0.7972),
    ],
)
async def test_the_test_itself(first: list[float], second: list[float], share: float, p: float) -> None:
    """By hand: U, its variance with ties, and the correction for continuity."""
    found_share, found_p = mann_whitney(first, second)
    assert found_share == pytest.approx(share)
    assert found_p == pytest.approx(p, abs=1e-3)


async def test_the_test_finds_a_shift_and_not_more_often_none_than_it_says() -> None:
    chance = random.Random(3)
    drawn = [[chance.gauss(0, 1) for _ in range(200)] for _ in range(400)]
    assert sum(mann_whitney(a, b)[1] < 0.05 for a, b in zip(drawn[::2], drawn[1::2], strict=True)) < 25
    shifted = [one + 0.6 for one in drawn[1]]
    assert mann_whitney(drawn[0], shifted)[1] < ALPHA
