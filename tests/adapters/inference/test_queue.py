"""Which requests run together: as many as fit, of one kind, in their order, and not one is lost."""

import asyncio
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.adapters.inference.graphs import WIDTH, tensor

from sightline.adapters.inference.messages import Loaded, Port
from sightline.adapters.inference.model import (
    Bounds,
    ModelUnusable,
    Overloaded,
    Request,
    Serving,
    TensorRefused,
    Weight,
    bounds_of,
    request_of,
    serving_of,
)
from sightline.adapters.inference.queue import RequestQueue

MANY = 1_000_000


def request(rows: int = 1, width: int = WIDTH, weight: int = 0) -> Request:
    return Request([tensor("x", np.zeros((rows, width), np.float32))], (), weight)


def bounds(rows_max: int = 8, size_bytes_max: int = MANY, weight_max: int | None = None, wait_s: float = 0) -> Bounds:
    weight = None if weight_max is None else Weight("x", (0, 1), weight_max)
    return Bounds(rows_max, size_bytes_max, weight, wait_s)


async def test_what_is_there_goes_together_up_to_each_bound() -> None:
    for bound, sizes in (
        (bounds(rows_max=4), [4, 4, 2]),
        (bounds(size_bytes_max=36), [3, 3, 3, 1]),
        (bounds(weight_max=50), [5, 5]),
        (bounds(rows_max=1), [1] * 10),
    ):
        queue = RequestQueue(bound, 100)
        asked = [request(weight=10) for _ in range(10)]
        for one in asked:
            queue.put(one)
        taken = [queue.take() for _ in sizes]
        assert [len(batch) for batch in taken] == sizes
        assert [one for batch in taken for one in batch] == asked
        assert (len(queue), queue.take()) == (0, [])


async def test_other_shapes_run_by_themselves_and_whoever_waits_longest_goes_first() -> None:
    queue = RequestQueue(bounds(), 100)
    narrow, wide, later = request(), request(width=5), request()
    for one in (narrow, wide, later):
        queue.put(one)
    assert queue.take() == [narrow, later]
    assert queue.take() == [wide]


async def test_a_full_queue_says_so_and_takes_nothing() -> None:
    queue = RequestQueue(bounds(), 2)
    for _ in range(2):
        queue.put(request())
    with pytest.raises(Overloaded):
        queue.put(request())
    assert len(queue) == 2


async def test_a_batch_that_is_full_waits_for_nobody() -> None:
    queue = RequestQueue(bounds(rows_max=2, wait_s=10), 100)
    first = request()
    queue.put(first)
    assert (queue.is_full, queue.due_s) == (False, first.since_s + 10)
    queue.put(request())
    assert (queue.is_full, queue.due_s) == (True, first.since_s)


async def test_whoever_is_put_back_goes_first_and_alone_if_so_said() -> None:
    queue = RequestQueue(bounds(), 2)
    first, second, gone, third = (request() for _ in range(4))
    gone.future.cancel()
    queue.put(third)
    queue.put_back([first, gone, second])
    assert queue.take() == [first, second, third]
    queue.put(third)
    queue.put_back([first, second], alone=True)
    assert [queue.take() for _ in range(3)] == [[first], [second], [third]]


STEPS = st.sampled_from(["put", "put", "put", "take", "back", "alone", "discard"])


@given(st.lists(st.tuples(STEPS, st.integers(1, 5)), max_size=60))
def test_none_is_lost_or_comes_twice(steps: list[tuple[str, int]]) -> None:
    async def walk() -> None:
        queue = RequestQueue(bounds(rows_max=6, weight_max=12), 20)
        inside: list[Request] = []
        taken: list[Request] = []
        for step, number in steps:
            if step == "put" and len(inside) < 20:
                one = request(rows=number, width=1 + number % 2, weight=3 * number)
                queue.put(one)
                inside.append(one)
            elif step == "take":
                taken = queue.take()
                assert len(taken) <= 1 or sum(one.rows for one in taken) <= 6
                assert len(taken) <= 1 or sum(one.weight for one in taken) <= 12
                assert len({one.kind for one in taken}) <= 1
                assert set(taken) <= set(inside)
                inside = [one for one in inside if one not in taken]
            elif step in {"back", "alone"} and not set(taken) & set(inside):
                queue.put_back(taken, alone=step == "alone")
                inside += taken
            elif step == "discard" and inside:
                queue.discard(inside.pop(number % len(inside)))
            assert len(queue) == len(inside)
        assert set(queue.drain()) == set(inside)
        assert len(queue) == 0

    asyncio.run(walk())


# What may be put together at all, and what fits


def loaded(first: str | None, *, output: str | None = "same", size: int = -1) -> Loaded:
    names = (first, None)
    ports = [Port("x", "FP32", (size, WIDTH), names)]
    answers = [Port("y", "FP32", (-1, WIDTH), names if output == "same" else (output, None))]
    return Loaded(ports, answers, ["CPUExecutionProvider"], "onnxruntime 1", warm=True)


@pytest.mark.parametrize(
    ("found", "serving", "rows"),
    [
        (loaded("batch"), {}, 32),
        (loaded("batch_size"), {}, 32),
        (loaded("N"), {}, 32),
        (loaded("height"), {}, 1),  # two pictures one above the other are another picture
        (loaded(None), {}, 1),
        (loaded("height"), {"batch_rows_max": 8}, 8),
        (loaded("batch"), {"batch_rows_max": 1}, 1),
        (loaded("batch"), {"batch_rows_max": 1_000}, 32),
        (loaded("batch", output="other"), {}, 1),
        (loaded("batch", size=1), {"batch_rows_max": 8}, 1),
    ],
)
async def test_rows_are_put_together_only_where_they_know_nothing_of_each_other(
    found: Loaded, serving: dict[str, Any], rows: int
) -> None:
    assert bounds_of(found, serving_of({"serving": serving}), rows_max=32, size_bytes_max=MANY).rows_max == rows


@pytest.mark.parametrize(
    "serving",
    [
        {"batch_rows_max": 0},
        {"batch_rows_max": "many"},
        {"wait_ms_max": -1},
        {"wait_ms_max": 10**9},
        {"weight": {"input": "x", "axes": [0], "max": 0}},
        {"weight": 1},
        {"warm_up": {"x": "large"}},
        [],
    ],
)
async def test_a_manifest_that_makes_no_sense_is_refused(serving: Any) -> None:
    if serving == []:
        assert serving_of({"serving": serving}) == Serving()
        return
    with pytest.raises(ModelUnusable):
        serving_of({"serving": serving})


async def test_a_request_that_does_not_fit_is_refused_before_it_waits() -> None:
    bound = bounds(rows_max=4, size_bytes_max=100, weight_max=9)
    good = tensor("x", np.zeros((2, WIDTH), np.float32))
    assert request_of(loaded("batch"), bound, [good], ("y",)).weight == 6
    for inputs, outputs in (
        ([], ()),
        ([good, good], ()),
        ([good], ("z",)),
        ([tensor("z", np.zeros((2, WIDTH), np.float32))], ()),
        ([tensor("x", np.zeros((2, WIDTH), np.float64))], ()),
        ([tensor("x", np.zeros((2, WIDTH + 1), np.float32))], ()),
        ([tensor("x", np.zeros(WIDTH, np.float32))], ()),
        ([tensor("x", np.zeros((5, WIDTH), np.float32))], ()),  # too many rows
        ([tensor("x", np.zeros((4, WIDTH), np.float32))], ()),  # too heavy
    ):
        with pytest.raises(TensorRefused):
            request_of(loaded("batch"), bound, inputs, outputs)
    with pytest.raises(TensorRefused):
        request_of(loaded("batch"), bounds(size_bytes_max=20), [good], ())
