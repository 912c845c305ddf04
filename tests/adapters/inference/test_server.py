"""The inference server with real children and real graphs: who runs with whom, who fails with whom, who comes after."""

import asyncio
import os
import random
import signal
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from prometheus_client import REGISTRY
from tests.adapters.inference import graphs, hostile_runtime
from tests.adapters.inference.graphs import array_of, rows_of, scaled, server_of, tensor
from tests.conftest_parts import is_running

from sightline.adapters.inference import queue
from sightline.adapters.inference import server as inference_server
from sightline.adapters.inference.lane import Lane
from sightline.adapters.inference.model import (
    AnswerTooLarge,
    DeadlineExceeded,
    InferenceDied,
    Inferred,
    ModelFailed,
    ModelFile,
    ModelUnusable,
    Overloaded,
    Serving,
    Weight,
)
from sightline.adapters.inference.queue import RequestQueue
from sightline.adapters.inference.server import InferenceServer

LONG_S = 120.0
HOSTILE = {"module": "hostile_runtime", "environ": {"PYTHONPATH": str(Path(__file__).parent)}}


@asynccontextmanager
async def serving(directory: Path, **changed: Any) -> AsyncIterator[InferenceServer]:
    server = server_of(directory, **changed)
    try:
        yield server
    finally:
        await server.close()


async def ask(
    server: InferenceServer, file: ModelFile, value: float, rows: int = 1, timeout_s: float = LONG_S
) -> float:
    found = await server.infer(file, rows_of(value, rows), timeout_s=timeout_s)
    array = array_of(found.outputs[0])
    assert array.shape == (rows, graphs.WIDTH)
    assert (array == array[0, 0]).all()
    return float(array[0, 0])


async def until(true: Callable[[], bool]) -> None:
    async with asyncio.timeout(LONG_S):
        while not true():  # noqa: ASYNC110  # what is waited for is another process
            await asyncio.sleep(0.005)


def rows_run(label: str) -> float:
    """By the metrics, ever."""
    return REGISTRY.get_sample_value("sightline_inference_batch_rows_sum", {"model": label}) or 0.0


@asynccontextmanager
async def stopped(server: InferenceServer) -> AsyncIterator[None]:
    """Its child does nothing meanwhile."""
    [pid] = server.pids
    os.kill(pid, signal.SIGSTOP)
    try:
        yield
    finally:
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGCONT)


async def test_everybody_gets_his_own_rows_however_they_were_put_together(tmp_path: Path) -> None:
    file = scaled(tmp_path, 2.0)
    random.seed(7)
    async with serving(tmp_path) as server:
        async with asyncio.TaskGroup() as group:
            tasks = [(n, group.create_task(ask(server, file, n, random.randint(1, 9)))) for n in range(200)]
        assert all(task.result() == 2.0 * n for n, task in tasks)
        before = rows_run(file.label)
        alone = await server.infer(file, rows_of(1), timeout_s=LONG_S)
        assert (alone.batch_rows, rows_run(file.label) - before) == (1, 1)
        assert alone.execution_provider == "CPUExecutionProvider"
        [pid] = server.pids
    assert not is_running(pid)


async def test_what_waits_goes_together_and_other_lengths_do_not(tmp_path: Path) -> None:
    file = graphs.longer(tmp_path)
    async with serving(tmp_path) as server:
        await server.load(file)
        async with stopped(server):
            waiting = [
                asyncio.create_task(
                    server.infer(file, [tensor("x", np.ones((1, 2 + n % 2), np.float32))], timeout_s=LONG_S)
                )
                for n in range(12)
            ]
            await asyncio.sleep(0)
            await asyncio.sleep(0)
        found = [(await task).batch_rows for task in waiting]
    assert sorted(found) == [1, *[5] * 5, *[6] * 6]  # the first one went alone, since nothing else was there


@pytest.mark.parametrize(("wait_ms", "together"), [(0.0, False), (1_000.0, True)])
async def test_a_model_may_ask_to_wait_for_company(tmp_path: Path, wait_ms: float, together: bool) -> None:
    file = scaled(tmp_path, 2.0, serving=Serving(wait_ms_max=wait_ms, batch_rows_max=2))
    async with serving(tmp_path) as server:
        await server.load(file)
        first = asyncio.create_task(server.infer(file, rows_of(1), timeout_s=LONG_S))
        await asyncio.wait({first}, timeout=0 if together else LONG_S)
        second = asyncio.create_task(server.infer(file, rows_of(2), timeout_s=LONG_S))
        found = [await first, await second]
        assert [one.batch_rows for one in found] == ([2, 2] if together else [1, 1])
        if together:
            assert (await server.infer(file, rows_of(3), timeout_s=LONG_S)).queue_s >= wait_ms / 1000


async def test_a_budget_of_tokens_bounds_a_batch(tmp_path: Path) -> None:
    file = graphs.longer(tmp_path, Serving(weight=Weight("x", (0, 1), 20)))
    async with serving(tmp_path) as server:
        await server.load(file)
        async with stopped(server):
            waiting = [
                asyncio.create_task(server.infer(file, [tensor("x", np.ones((1, 5), np.float32))], timeout_s=LONG_S))
                for _ in range(9)
            ]
            await asyncio.sleep(0)
        assert max([(await task).batch_rows for task in waiting]) == 4


# Failures, and who shares them


async def _neighbours(server: InferenceServer, file: ModelFile, bad: int) -> list[Inferred | BaseException]:
    """Twelve requests of which one, the sixth, asks for a row that is not there."""
    await server.load(file)
    async with stopped(server):
        asked = [server.infer(file, [tensor("i", np.array([[n]], np.int64))], timeout_s=LONG_S) for n in range(5)]
        asked += [server.infer(file, [tensor("i", np.array([[bad]], np.int64))], timeout_s=LONG_S)]
        asked += [server.infer(file, [tensor("i", np.array([[n]], np.int64))], timeout_s=LONG_S) for n in range(6, 10)]
        tasks = [asyncio.create_task(one) for one in asked]
        await asyncio.sleep(0)
    return await asyncio.gather(*tasks, return_exceptions=True)


async def test_one_bad_request_does_not_fail_its_neighbours(tmp_path: Path) -> None:
    async with serving(tmp_path) as server:
        found = await _neighbours(server, graphs.looked_up(tmp_path), 10)
    assert isinstance(found.pop(5), ModelFailed)
    assert [array_of(one.outputs[0])[0, 0] for one in found if isinstance(one, Inferred)] == [0, 1, 2, 3, 4, 6, 7, 8, 9]


async def test_without_running_them_again_it_would(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The control."""

    def fail_all(_: Lane, one: Any, failed: Any) -> None:
        for request in one.batch:
            request.future.set_exception(ModelFailed(failed.message))

    monkeypatch.setattr(Lane, "_fail", fail_all)
    async with serving(tmp_path) as server:
        found = await _neighbours(server, graphs.looked_up(tmp_path), 10)
    assert sum(isinstance(one, ModelFailed) for one in found) > 5


async def test_rows_that_do_not_come_back_as_rows_are_run_one_by_one(tmp_path: Path) -> None:
    file = graphs.summed(tmp_path)
    async with serving(tmp_path) as server:
        await server.load(file)
        async with asyncio.TaskGroup() as group:
            tasks = [group.create_task(server.infer(file, rows_of(n), timeout_s=LONG_S)) for n in range(8)]
        assert [array_of(task.result().outputs[0]).sum() for task in tasks] == [3.0 * n for n in range(8)]


async def test_whoever_kills_the_process_is_told_and_the_others_are_served_by_the_next(tmp_path: Path) -> None:
    file = scaled(tmp_path, 2.0)
    async with serving(tmp_path, **HOSTILE) as server:
        await server.load(file)
        [before] = server.pids
        async with stopped(server):
            values = [1.0, 2.0, hostile_runtime.KILLS, 3.0, 4.0]
            tasks = [asyncio.create_task(ask(server, file, value)) for value in values]
            await asyncio.sleep(0)
        found = await asyncio.gather(*tasks, return_exceptions=True)
        assert isinstance(found.pop(2), InferenceDied)
        assert found == [2.0, 4.0, 6.0, 8.0]
        await until(lambda: server.is_ready)
        assert server.pids != [before]


async def test_readiness_tells_of_a_process_that_is_replaced(tmp_path: Path) -> None:
    file = scaled(tmp_path, 2.0)
    async with serving(tmp_path) as server:
        assert server.is_ready  # nothing is wanted
        loading = asyncio.create_task(server.load(file))
        await asyncio.sleep(0)
        assert not server.holds(file.sha256)
        assert server.is_ready  # what serves is not held up by what is loaded beside it
        await loading
        await until(lambda: server.holds(file.sha256))
        [pid] = server.pids
        os.kill(pid, signal.SIGKILL)
        await until(lambda: not server.is_ready)
        assert not server.holds(file.sha256)
        assert await ask(server, file, 3) == 6.0  # it waits for the next one
        await until(lambda: server.is_ready)


async def test_a_process_that_talks_nonsense_is_replaced(tmp_path: Path) -> None:
    file = scaled(tmp_path, 2.0)
    async with serving(tmp_path, **HOSTILE) as server:
        await server.load(file)
        [before] = server.pids
        with pytest.raises(InferenceDied):
            await ask(server, file, hostile_runtime.LIES)
        assert await ask(server, file, 1) == 2.0
        assert server.pids != [before]


async def test_a_model_that_kills_again_and_again_rests(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(inference_server, "DEATHS_MAX", 1)
    file, other = scaled(tmp_path, 2.0), scaled(tmp_path, 3.0)
    async with serving(tmp_path, **HOSTILE) as server:
        await server.load(other)
        for _ in range(2):
            with pytest.raises(InferenceDied):
                await ask(server, file, hostile_runtime.KILLS)
        with pytest.raises(ModelUnusable) as refused:
            await ask(server, file, 1)
        assert refused.value.extra["retry_after_s"] > 0
        assert await ask(server, other, 1) == 3.0


async def test_a_graph_that_asks_for_too_much_fails_alone(tmp_path: Path) -> None:
    file, other = graphs.greedy(tmp_path), scaled(tmp_path, 2.0)
    async with serving(tmp_path, memory_bytes_max=2 * 1024**3) as server:
        await server.load(other)
        with pytest.raises(ModelFailed):
            await server.infer(file, [tensor("n", np.array([2**33], np.int64))], timeout_s=LONG_S)
        assert await ask(server, other, 1) == 2.0
        with pytest.raises(AnswerTooLarge):
            await server.infer(file, [tensor("n", np.array([2**23], np.int64))], timeout_s=LONG_S)
        small = await server.infer(file, [tensor("n", np.array([5], np.int64))], timeout_s=LONG_S)
        assert small.outputs[0].shape == (5,)


# Time, and room


async def test_whoever_waited_too_long_is_not_run(tmp_path: Path) -> None:
    file = scaled(tmp_path, 11.0)
    async with serving(tmp_path) as server:
        await ask(server, file, 1)
        before = rows_run(file.label)
        async with stopped(server):
            first = asyncio.create_task(ask(server, file, 1))
            await asyncio.sleep(0)
            late = [asyncio.create_task(ask(server, file, n, timeout_s=0.05)) for n in range(5)]
            found = await asyncio.gather(*late, return_exceptions=True)
            assert all(isinstance(one, DeadlineExceeded) for one in found)
        assert await first == 11.0
        assert await ask(server, file, 1) == 11.0
        assert rows_run(file.label) - before == 2


async def test_without_taking_them_out_they_would_be(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The control."""
    file = scaled(tmp_path, 12.0)
    monkeypatch.setattr(RequestQueue, "discard", lambda *_: None)
    monkeypatch.setattr(queue, "is_wanted", lambda _: True)
    async with serving(tmp_path) as server:
        await ask(server, file, 1)
        before = rows_run(file.label)
        async with stopped(server):
            first = asyncio.create_task(ask(server, file, 1))
            await asyncio.sleep(0)
            with pytest.raises(DeadlineExceeded):
                await ask(server, file, 2, timeout_s=0.05)
        await first
        await ask(server, file, 1)
        assert rows_run(file.label) - before == 3


async def test_a_full_queue_refuses_the_next_and_serves_the_others(tmp_path: Path) -> None:
    file = scaled(tmp_path, 2.0)
    async with serving(tmp_path, requests_max=4) as server:
        await server.load(file)
        async with stopped(server):
            tasks = [asyncio.create_task(ask(server, file, n)) for n in range(10)]
            await asyncio.sleep(0)
        found = await asyncio.gather(*tasks, return_exceptions=True)
    assert sum(isinstance(one, Overloaded) for one in found) == 5  # one is with the child, four wait
    assert [one for one in found if isinstance(one, float)] == [2.0 * n for n in range(5)]


async def test_the_least_recently_used_model_makes_room_but_not_one_that_has_work(tmp_path: Path) -> None:
    files = [scaled(tmp_path, factor) for factor in (2.0, 3.0, 4.0)]
    async with serving(tmp_path, models_max=2) as server:
        for file in (files[0], files[1], files[0]):
            await server.load(file)
        assert await ask(server, files[2], 1) == 4.0
        assert [server.holds(file.sha256) for file in files] == [True, False, True]
        async with stopped(server):
            busy = [asyncio.create_task(ask(server, file, 1)) for file in (files[0], files[2])]
            await asyncio.sleep(0)
            with pytest.raises(Overloaded):
                await server.load(files[1])
        assert [await task for task in busy] == [2.0, 4.0]
    async with serving(tmp_path, models_bytes_max=10) as server:
        with pytest.raises(ModelUnusable):
            await server.load(files[0])


async def test_a_model_that_is_released_answers_what_is_under_way_and_goes(tmp_path: Path) -> None:
    file = scaled(tmp_path, 2.0)
    async with serving(tmp_path) as server:
        await server.load(file)
        async with stopped(server):
            under_way = [asyncio.create_task(ask(server, file, n)) for n in range(3)]
            await asyncio.sleep(0)
            server.release(file.sha256)
            assert server.holds(file.sha256)
        assert [await task for task in under_way] == [0.0, 2.0, 4.0]
        assert not server.holds(file.sha256)
        assert await ask(server, file, 5) == 10.0  # and comes back where it is wanted


async def test_a_model_that_is_let_go_while_it_loads_does_not_stay(tmp_path: Path) -> None:
    """As where another device could not load it."""
    first, second = scaled(tmp_path, 2.0), scaled(tmp_path, 3.0)
    async with serving(tmp_path) as server:
        await server.load(first)
        [lane] = server._lanes
        async with stopped(server):
            loading = asyncio.create_task(server.load(second))
            await until(lambda: lane.in_flight == 1)
            model = server._models[second.sha256]
            server._let_go(model)
        await loading
        await until(lambda: lane.in_flight == 0)
        assert not lane.holds(model)
        assert await ask(server, second, 5) == 15.0  # and comes back where it is wanted


async def test_models_that_cannot_be_loaded_say_why_and_hurt_nobody(tmp_path: Path) -> None:
    good = scaled(tmp_path, 2.0)
    path = tmp_path / "rubbish.onnx"
    path.write_bytes(b"rubbish")
    missing = ModelFile("0" * 64, str(tmp_path / "missing.onnx"), 1, "missing")
    async with serving(tmp_path) as server:
        for file in (ModelFile("1" * 64, str(path), 7, "rubbish"), missing):
            with pytest.raises(ModelUnusable):
                await ask(server, file, 1)
        assert await ask(server, good, 1) == 2.0
        assert server.is_ready


async def test_two_devices_share_the_work(tmp_path: Path) -> None:
    file = scaled(tmp_path, 2.0, serving=Serving(batch_rows_max=1))
    async with serving(tmp_path, devices=("0", "1"), **HOSTILE) as server:
        await server.load(file)
        assert len(server.pids) == 2
        slow = asyncio.create_task(ask(server, file, hostile_runtime.SLOW))
        await asyncio.sleep(0)
        assert await ask(server, file, 1) == 2.0
        assert not slow.done()  # the other device took the second one
        await slow


async def test_closing_tells_whoever_waits(tmp_path: Path) -> None:
    file = scaled(tmp_path, 2.0)
    server = server_of(tmp_path)
    await server.load(file)
    async with stopped(server):
        waiting = [asyncio.create_task(ask(server, file, n)) for n in range(3)]
        await asyncio.sleep(0)
        [pid] = server.pids
        await server.close()
        found = await asyncio.gather(*waiting, return_exceptions=True)
    assert all(isinstance(one, InferenceDied) for one in found)
    assert not is_running(pid)
