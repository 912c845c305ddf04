"""Some hundred changed files in each run, the same ones each time; `python -m tests.adapters.hostile` has more."""

import asyncio
import tempfile
from collections.abc import Iterator
from pathlib import Path
from random import Random
from typing import get_args

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tests.adapters.hostile.case import case
from tests.adapters.hostile.fuzz import EDITS_MAX, INTERESTING, Edit, mutated, mutated_model, seeds
from tests.adapters.hostile.run import (
    MODEL_MEMORY_BYTES_MAX,
    PICTURE_MEMORY_BYTES_MAX,
    PIXELS_MAX,
    loaded,
    scanned,
)

from sightline.adapters.images import Code, ImageScanner
from sightline.workers.runner_client import Runner

MODELS = 60
PLACES = st.floats(0, 1) | st.floats(0, 0.02)
EDITS = st.lists(
    st.tuples(PLACES, st.integers(0, 40), st.sampled_from(INTERESTING) | st.binary(max_size=8)),
    min_size=1,
    max_size=EDITS_MAX,
)


@pytest.fixture(scope="module")
def loop() -> Iterator[asyncio.Runner]:
    with asyncio.Runner() as made:
        yield made


@pytest.fixture(scope="module")
def scanner(loop: asyncio.Runner) -> Iterator[ImageScanner]:
    async def opened() -> ImageScanner:
        made = ImageScanner(pixels_max=PIXELS_MAX, memory_bytes_max=PICTURE_MEMORY_BYTES_MAX, concurrency=1)
        return await made.__aenter__()

    made = loop.run(opened())
    yield made
    loop.run(made.__aexit__(None, None, None))


@settings(max_examples=400, derandomize=True, deadline=None, database=None, suppress_health_check=list(HealthCheck))
@given(which=st.sampled_from(seeds()), edits=EDITS)
def test_a_changed_picture_gets_a_verdict(
    loop: asyncio.Runner, scanner: ImageScanner, which: tuple[str, bytes], edits: list[Edit]
) -> None:
    declared, content = which
    with tempfile.TemporaryDirectory() as directory:
        told = loop.run(scanned(scanner, case("changed", mutated(content, edits), declared), Path(directory)))
    assert told.code in get_args(Code)
    assert told.code != "scan_timed_out"
    assert told.peak_bytes <= PICTURE_MEMORY_BYTES_MAX
    assert scanner.pids  # none of them killed it; one that does belongs into the corpus


async def test_a_changed_model_fails_with_a_code_of_ours(tmp_path: Path) -> None:
    random = Random(4)
    runner = Runner(memory_bytes_max=MODEL_MEMORY_BYTES_MAX)
    try:
        told = [await loaded(runner, case(str(n), mutated_model(random), ""), tmp_path) for n in range(MODELS)]
    finally:
        await runner.close()
    assert {one.code for one in told} - {"internal_error"} == {one.code for one in told}
    assert max(one.peak_bytes for one in told) <= MODEL_MEMORY_BYTES_MAX
    assert len({one.code for one in told}) > 2  # not all are refused at the first look
