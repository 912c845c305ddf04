"""R16, models: every one gets its code, the worker's end outlives all, and nothing outside of the job is read."""

import asyncio
import os
import sys
import tempfile
from asyncio.subprocess import DEVNULL
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import onnxruntime  # type: ignore[import-untyped]  # it ships no types
import pytest
import pytest_asyncio
from structlog.testing import capture_logs
from tests.adapters.hostile.case import case
from tests.adapters.hostile.models import BUILTIN, MALFORMED, MEMORY, answering, constant, elsewhere, node
from tests.adapters.hostile.models_odd import models
from tests.adapters.hostile.run import CHILDREN, MODEL_MEMORY_BYTES_MAX, all_loaded, loaded
from tests.adapters.hostile.watch import CANARY, address_space_bytes_max, memory_bytes, watched

from sightline.adapters.images import MEBIBYTE_BYTES
from sightline.adapters.onnx_check import ModelRefused, check
from sightline.workers.runner_client import Runner

pytestmark = pytest.mark.asyncio(loop_scope="module")

GROWTH_BYTES_MAX = 64 * MEBIBYTE_BYTES
HOSTILE = {"PYTHONPATH": str(Path(__file__).parent)}  # where reading_runner.py is


@pytest.fixture(scope="module")
def canary() -> Iterator[Path]:
    """A file that no child has any business with, outside of everything that they are given."""
    with tempfile.TemporaryDirectory(dir="/var/tmp", prefix="sightline-canary-") as directory:
        path = Path(directory) / "weights.bin"
        path.write_bytes(CANARY)
        yield path


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def runners() -> AsyncIterator[list[Runner]]:
    made = [Runner(memory_bytes_max=MODEL_MEMORY_BYTES_MAX) for _ in range(CHILDREN)]
    yield made
    for runner in made:
        await runner.close()


async def test_every_model_gets_its_code_and_nothing_else_happens(
    runners: list[Runner], canary: Path, tmp_path: Path
) -> None:
    cases = models(canary)
    directories = [tmp_path / str(number) for number in range(CHILDREN)]
    for directory in directories:
        directory.mkdir()
        (directory / canary.name).symlink_to(canary)
        (directory / "link").symlink_to(canary)
    before = memory_bytes("self", "VmRSS")
    with capture_logs() as logged, watched(canary, canary.parent) as watch:
        told = await all_loaded(runners, cases, directories)
        assert not watch.touched
    assert [(one.case.name, one.code, one.detail) for one in told if not one.is_right] == []
    assert max(one.peak_bytes for one in told) <= MODEL_MEMORY_BYTES_MAX
    assert memory_bytes("self", "VmRSS") - before <= GROWTH_BYTES_MAX
    written = [path for one in directories for path in (one / "outputs").iterdir()]
    assert written
    assert not any(CANARY[:12] in path.read_bytes() for path in written)
    assert not any(CANARY[:12].decode() in str(entry) for entry in (*logged, *told))
    for runner, directory in zip(runners, directories, strict=True):  # the worker goes on
        honest = await loaded(runner, case("honest", BUILTIN, ""), directory)
        assert honest.is_right, honest
        assert runner.pid is not None
        assert address_space_bytes_max(runner.pid) == str(MODEL_MEMORY_BYTES_MAX)


async def test_pictures_and_models_are_two_hundred_and_more(canary: Path) -> None:
    assert len(models(canary)) >= 150


# Negative controls: with a limit off, the same checks turn red.


async def test_without_a_limit_on_memory_the_model_has_its_way(runners: list[Runner], tmp_path: Path) -> None:
    elements = (MODEL_MEMORY_BYTES_MAX + 64 * MEBIBYTE_BYTES) // 4
    asking = answering([constant("shape", [elements]), node("ConstantOfShape", ["shape"], ["x"])])
    greedy = case("greedy", asking, "", MEMORY)
    assert (await loaded(runners[0], greedy, tmp_path)).is_right
    free = Runner(memory_bytes_max=0)
    try:
        told = await loaded(free, greedy, tmp_path)
        assert not told.is_right
        assert told.peak_bytes > MODEL_MEMORY_BYTES_MAX
    finally:
        await free.close()


LOAD = """
import sys, onnxruntime
session = onnxruntime.InferenceSession(sys.argv[1], providers=["CPUExecutionProvider"])
"""


async def test_without_our_check_the_runtime_reads_the_file(canary: Path, tmp_path: Path) -> None:
    """It takes what lies beside the model, and the check is what keeps it from being asked."""
    [beside] = [one for one in elsewhere(canary) if one.name == "external-name"]
    path = tmp_path / "model.onnx"
    path.write_bytes(beside.content)
    copied = tmp_path / canary.name
    copied.write_bytes(CANARY)
    with pytest.raises(ModelRefused):
        check(beside.content)
    with watched(copied) as watch:
        assert not watch.touched
        loading = await asyncio.create_subprocess_exec(sys.executable, "-P", "-c", LOAD, path, stderr=DEVNULL)
        await loading.wait()
        assert watch.touched


async def test_the_kernel_refuses_the_file_even_to_a_child_that_asks(canary: Path, tmp_path: Path) -> None:
    """As a model would that found a way to run code of its own; see `landlock.py`."""
    runner = Runner(memory_bytes_max=MODEL_MEMORY_BYTES_MAX, module="reading_runner", environ=HOSTILE)
    try:
        with watched(canary) as watch:
            told = await loaded(runner, case("reads", str(canary).encode(), ""), tmp_path)
            assert told.detail == "EACCES", told
            assert not watch.touched
        told = await loaded(runner, case("environment", f"/proc/{os.getpid()}/environ".encode(), ""), tmp_path)
        assert told.detail == "EACCES", told
        told = await loaded(runner, case("kills", b"kill", ""), tmp_path)
        assert told.detail == "EPERM", told
        mine = tmp_path / "mine"
        mine.write_bytes(b"x")
        told = await loaded(runner, case("reads its own", str(mine).encode(), ""), tmp_path)  # the control
        assert told.detail == "read", told
    finally:
        await runner.close()


async def test_the_runtimes_own_format_would_be_guessed(tmp_path: Path) -> None:
    """It has operators of any domain, and none of it would be looked at."""
    path = tmp_path / "m.ort"
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    options.optimized_model_filepath = str(path)
    options.add_session_config_entry("session.save_model_format", "ORT")
    onnxruntime.InferenceSession(BUILTIN, options, providers=["CPUExecutionProvider"])
    content = path.read_bytes()
    onnxruntime.InferenceSession(content, providers=["CPUExecutionProvider"])  # the control
    with pytest.raises(ModelRefused) as refused:
        check(content)
    assert refused.value.code == MALFORMED
