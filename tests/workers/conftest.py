"""A receiver on loopback, and a service that tells it."""

from collections.abc import AsyncIterator

import pytest
import pytest_asyncio
from msgspec.structs import replace
from tests.workers.receiver import Receiver, receiving
from tests.workers.told import FAST, Told, telling

from sightline.adapters.settings import Settings


@pytest.fixture
def told_settings(service_settings: Settings) -> Settings:
    return replace(service_settings, **FAST)


@pytest_asyncio.fixture
async def told(told_settings: Settings) -> AsyncIterator[Told]:
    async with telling(told_settings) as opened:
        yield opened


@pytest_asyncio.fixture
async def receiver() -> AsyncIterator[Receiver]:
    async with receiving() as opened:
        yield opened
