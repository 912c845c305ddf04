"""P6: items that the inference server answers per second, beside what the bare runtime does with batches of that size.

Served: callers in this process, through the queue, the pipes and the confined child; each asks with a whole batch, or
with one item, which is put together with others' and taken apart again. Raw: `session.run` in this process on batches
that are there already. The threads are the same. The first answer of each taking is held against the raw one.
"""

import asyncio
import hashlib
import os
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import click
import numpy as np
from msgspec import Struct
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from sightline.adapters import minilm, onnx
from sightline.adapters.inference.messages import NAMES, Tensor
from sightline.adapters.inference.model import ModelFile, Serving
from sightline.adapters.inference.server import Capacity, InferenceServer

from . import measure
from .measure import Cell

BATCH_ROWS = 32
LOADS = (1, 8, 32)  # rows of a batch
BATCHES_AT_ONCE = 3  # what callers together ask for: one that runs, one in the pipe, one that gathers
BATCHES_PER_TAKING_MIN = 20  # or the first and the last, which are not full, would weigh too much
GOALS = {"tiny": 0.7, "compute-bound": 0.95, "MiniLM": 0.95}
TOKENS = 16
OPSET = 18
Array = NDArray[Any]


class Subject(Struct, frozen=True):
    """A model, and one item for it.

    Attributes:
        size: of its kind, for the table.
    """

    name: str
    size: str
    model: bytes
    feeds: dict[str, Array]


def tiny() -> Subject:
    """A classifier over the 384 numbers of a text's vector: so little that whatever is around it shows."""
    sizes = (384, 256, 8)
    return Subject("tiny", "384 → 256 → 8", _perceptron(sizes), {"x": _noise(1, sizes[0])})


def compute_bound() -> Subject:
    """Convolutions over a picture of 32 × 32: far more work than moving it."""
    random = np.random.default_rng(6)
    nodes, weights, before, channels = [], [], "x", 3
    for number, wide in enumerate((32, 32, 64, 64)):
        kernel = random.standard_normal((wide, channels, 3, 3), np.float32) / (3 * channels**0.5)
        weights.append(numpy_helper.from_array(kernel, f"w{number}"))
        nodes.append(helper.make_node("Conv", [before, f"w{number}"], [f"c{number}"], pads=[1, 1, 1, 1]))
        nodes.append(helper.make_node("Relu", [f"c{number}"], [f"r{number}"]))
        before, channels = f"r{number}", wide
    nodes.append(helper.make_node("GlobalAveragePool", [before], ["y"]))
    model = _model(nodes, ("batch", 3, 32, 32), ("batch", channels, 1, 1), weights)
    return Subject("compute-bound", "4 convolutions, 3 × 32 × 32", model, {"x": _noise(1, 3, 32, 32)})


def sentences() -> Subject:
    """all-MiniLM-L6-v2 on sentences of so many tokens; needs its weights, as the kind `embed` does."""
    ids = np.random.default_rng(6).integers(1000, 30_000, (1, TOKENS))
    feeds = {"input_ids": ids, "attention_mask": np.ones_like(ids)}
    return Subject("MiniLM", f"6 layers, {TOKENS} tokens", minilm.model_bytes(), feeds)


def _perceptron(sizes: Sequence[int]) -> bytes:
    random = np.random.default_rng(6)
    nodes, weights, before = [], [], "x"
    for number, (wide, next_wide) in enumerate(pairwise(sizes)):
        matrix = random.standard_normal((wide, next_wide), np.float32) / wide**0.5
        weights.append(numpy_helper.from_array(matrix, f"w{number}"))
        nodes.append(helper.make_node("MatMul", [before, f"w{number}"], [f"m{number}"]))
        nodes.append(helper.make_node("Relu", [f"m{number}"], [f"r{number}"]))
        before = f"r{number}"
    nodes.append(helper.make_node("Identity", [before], ["y"]))
    return _model(nodes, ("batch", sizes[0]), ("batch", sizes[-1]), weights)


def _model(nodes: list[Any], takes: Sequence[int | str], gives: Sequence[int | str], weights: list[Any]) -> bytes:
    ports = [helper.make_tensor_value_info(n, TensorProto.FLOAT, s) for n, s in (("x", takes), ("y", gives))]
    graph = helper.make_graph(nodes, "g", ports[:1], ports[1:], weights)
    model = helper.make_model(graph, ir_version=9, opset_imports=[helper.make_opsetid("", OPSET)])
    return bytes(model.SerializeToString())


def _noise(*shape: int) -> Array:
    return np.random.default_rng(7).standard_normal(shape, np.float32)


def raw(model: "Laid", rows: int, *, seconds: float, threads: int) -> float:
    """Items per second of the runtime alone."""
    session = onnx.load(model.path, model.sha256, intra_op_threads=threads)
    feeds = {name: np.repeat(item, rows, axis=0) for name, item in model.subject.feeds.items()}
    session.run(feeds)
    runs, began = 0, time.perf_counter()
    while runs < BATCHES_PER_TAKING_MIN or time.perf_counter() - began < seconds:
        session.run(feeds)
        runs += 1
    return runs * rows / (time.perf_counter() - began)


class Laid(Struct, frozen=True):
    """A subject as a file."""

    subject: Subject
    path: Path
    sha256: str


class Taking(Struct, frozen=True):
    """Attributes:
    rows: of a run, on the average.
    own_us, child_us: of the processor, for each run: of the process that asks and serves, and of the one that runs.
    """

    rate: float
    rows: float
    own_us: float
    child_us: float


async def served(model: Laid, rows: int, rows_asked: int, *, seconds: float, threads: int) -> Taking:
    """Items answered per second: batches of at most `rows`, asked for `rows_asked` at a time.

    Raises:
        RuntimeError: an answer is not the runtime's own.
    """
    subject = model.subject
    capacity = Capacity(threads=threads, batch_rows_max=rows, requests_max=rows * BATCHES_AT_ONCE)
    server = InferenceServer(capacity, readable=[model.path.parent])
    file = ModelFile(model.sha256, str(model.path), len(subject.model), subject.name, Serving())
    feeds = {name: np.repeat(item, rows_asked, axis=0) for name, item in subject.feeds.items()}
    tensors = [
        Tensor(name, NAMES[item.dtype.name], item.shape, memoryview(item.tobytes())) for name, item in feeds.items()
    ]
    run_rows: list[int] = []
    try:
        first = await server.infer(file, tensors, timeout_s=60)
        _require_same(first.outputs, onnx.load(model.path, model.sha256).run(feeds))
        own_s, child_s = time.process_time(), _used_s(server.pids)
        began = time.perf_counter()

        async def call() -> None:
            while time.perf_counter() - began < seconds or len(run_rows) * rows_asked < BATCHES_PER_TAKING_MIN * rows:
                run_rows.append((await server.infer(file, tensors, timeout_s=60)).batch_rows)

        await asyncio.gather(*(call() for _ in range(rows * BATCHES_AT_ONCE // rows_asked)))
        rate = len(run_rows) * rows_asked / (time.perf_counter() - began)
        runs = sum(rows_asked / each for each in run_rows)
        own_us = (time.process_time() - own_s) / runs * 1e6
        child_us = (_used_s(server.pids) - child_s) / runs * 1e6
    finally:
        await server.close()
    return Taking(rate, statistics.mean(run_rows), own_us, child_us)


def _used_s(pids: Sequence[int]) -> float:
    """Of the processor, by these processes."""
    fields = [Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split() for pid in pids]
    return sum(int(each[11]) + int(each[12]) for each in fields) / os.sysconf("SC_CLK_TCK")


def _require_same(found: Sequence[Tensor], wanted: dict[str, Array]) -> None:
    for one in found:
        if not np.allclose(np.frombuffer(one.data, np.float32).reshape(one.shape), wanted[one.name], atol=1e-5):
            raise RuntimeError(f"{one.name} is not what the runtime itself gives")


def channel(sizes: Sequence[int] = (1_000, 100_000, 1_000_000, 4_000_000)) -> Iterator[tuple[int, float]]:
    """Tensor bytes one way, and the seconds that a request of so many takes where the graph does nothing."""
    takes = helper.make_tensor_value_info("x", TensorProto.UINT8, ["batch", "n"])
    gives = helper.make_tensor_value_info("y", TensorProto.UINT8, ["batch", 1])
    graph = helper.make_graph([helper.make_node("ReduceMax", ["x"], ["y"], axes=[1])], "g", [takes], [gives])
    model = helper.make_model(graph, ir_version=8, opset_imports=[helper.make_opsetid("", 17)])
    data = bytes(model.SerializeToString())
    with tempfile.TemporaryDirectory(prefix="sightline-bench-") as name:
        path, sha256 = _laid(Path(name), data)
        for size in sizes:
            yield size, asyncio.run(_one_way_s(path, sha256, size))


async def _one_way_s(path: Path, sha256: str, size: int) -> float:
    server = InferenceServer(Capacity(), readable=[path.parent])
    file = ModelFile(sha256, str(path), 1, "channel", Serving())
    tensors = [Tensor("x", "UINT8", (1, size), memoryview(bytes(size)))]
    took = []
    try:
        for _ in range(50):
            began = time.perf_counter()
            found = await server.infer(file, tensors, timeout_s=60)
            took.append(time.perf_counter() - began - found.infer_s)
    finally:
        await server.close()
    return statistics.median(took)


def _laid(directory: Path, model: bytes) -> tuple[Path, str]:
    sha256 = hashlib.sha256(model).hexdigest()
    path = directory / f"{sha256}.onnx"
    path.write_bytes(model)
    return path, sha256


def run(*, rounds: int, seconds: float, loads: Sequence[int] = LOADS, threads: int = 1) -> None:
    """Measure, print, and keep table and figures."""
    rows: list[Sequence[str]] = []
    words: list[str] = []
    cells: dict[str, dict[Any, Cell]] = {}
    for subject in (tiny(), compute_bound(), sentences()):
        with tempfile.TemporaryDirectory(prefix="sightline-bench-") as name:
            model = Laid(subject, *_laid(Path(name), subject.model))
            costs: list[Taking] = []
            found, filled = _measured(model, costs, rounds=rounds, seconds=seconds, loads=loads, threads=threads)
        words.append(_cost_words(subject, max(loads), found["raw"][max(loads)].median, costs))
        cells |= {f"{subject.name}, {who}": by_load for who, by_load in found.items()}
        rows += [_row(subject, load, found, filled[load]) for load in loads]
    measure.show(
        "P6: items per second, served and raw",
        ("model", "rows", "raw", "batches asked", "ratio", "items asked", "ratio", "rows run", "goal"),
        rows,
        "p6",
        (
            (
                f"Median of {rounds} rounds of {seconds:g} s or {BATCHES_PER_TAKING_MIN} batches (lowest–highest), in"
                f" turn; {threads} thread(s) each, CPU. Batches asked: each request is a whole batch. Items asked: each"
                f" is one row, and the server makes the batches (rows run: how many a run had). {BATCHES_AT_ONCE}"
                " batches' worth of callers."
            ),
            "The goal is for the largest batch, asked as batches. Of the processor, such a batch costs "
            + "; ".join(words)
            + ".",
            "The channel, one request at a time, without the graph: " + _channel_words(),
        ),
    )
    measure.keep("p6", cells)
    plot(cells, loads)


def plot(cells: Mapping[str, Mapping[Any, Cell]], loads: Sequence[int]) -> None:
    """Served ÷ raw."""
    with measure.picture("p6") as axes:
        for name in GOALS:
            for who, style in (("batches", "o-"), ("items", "^:")):
                bare, shares = cells[f"{name}, raw"], cells[f"{name}, {who}"]
                ratios = [shares[load].median / bare[load].median for load in loads]
                axes.plot(loads, ratios, style, label=f"{name}, {who} asked")
        axes.axhline(1.0, color="black", linewidth=0.8)
        axes.set_xscale("log", base=2)
        axes.set_xticks(loads, [str(load) for load in loads])
        axes.set_ylim(bottom=0)
        axes.set_xlabel("rows of a batch")
        axes.set_ylabel("items answered per second ÷ raw runtime")
        axes.grid(alpha=0.3)
        axes.legend()


def _measured(
    model: Laid, costs: list[Taking], *, rounds: int, seconds: float, loads: Sequence[int], threads: int
) -> tuple[dict[str, dict[Any, Cell]], dict[int, list[float]]]:
    filled: dict[int, list[float]] = {load: [] for load in loads}

    def take(load: int, rows_asked: int) -> float:
        taking = asyncio.run(served(model, load, rows_asked, seconds=seconds, threads=threads))
        if rows_asked == 1:
            filled[load].append(taking.rows)
        elif load == max(loads):
            costs.append(taking)
        return taking.rate

    subjects: dict[str, Callable[[Any], float]] = {
        "raw": lambda load: raw(model, load, seconds=seconds, threads=threads),
        "batches": lambda load: take(load, load),
        "items": lambda load: take(load, 1),
    }
    return measure.in_turn(subjects, loads, rounds=rounds, title=f"P6 {model.subject.name}"), filled


def _row(subject: Subject, load: int, found: dict[str, dict[Any, Cell]], filled: Sequence[float]) -> Sequence[str]:
    bare, batches, items = (found[name][load] for name in ("raw", "batches", "items"))
    return (
        f"{subject.name} ({subject.size})",
        str(load),
        bare.text,
        batches.text,
        f"{batches.median / bare.median:.2f}",
        items.text,
        f"{items.median / bare.median:.2f}",
        f"{statistics.mean(filled):.1f}",
        f"{GOALS[subject.name]:g}" if load == BATCH_ROWS else "",
    )


def _cost_words(subject: Subject, rows: int, raw_rate: float, costs: Sequence[Taking]) -> str:
    own_us, child_us = (statistics.median(each) for each in ([c.own_us for c in costs], [c.child_us for c in costs]))
    return (
        f"{subject.name}: the child {child_us:,.0f} µs, of which the graph is {rows / raw_rate * 1e6:,.0f}, and beside"
        f" it the process that asks and serves {own_us:,.0f}"
    )


def _channel_words() -> str:
    return ", ".join(f"{size:,} bytes {1000 * took_s:.2f} ms" for size, took_s in channel()) + "."


@click.command()
@click.option("--rounds", default=5, show_default=True)
@click.option("--seconds", default=2.0, show_default=True)
def main(rounds: int, seconds: float) -> None:
    run(rounds=rounds, seconds=seconds)


if __name__ == "__main__":
    main()
