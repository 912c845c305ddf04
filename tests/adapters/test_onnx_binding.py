"""What runs on CUDA alone, as far as it can be tried without: the same buffers and bindings on the CPU."""

from pathlib import Path

import numpy as np
import onnxruntime  # type: ignore[import-untyped]  # it ships no types
import pytest
from tests.adapters.inference.graphs import looked_up, scaled

from sightline.adapters import onnx_cuda_graphs
from sightline.adapters.onnx import Session, load
from sightline.adapters.onnx_cuda_graphs import CapturedShapes


def session_of(tmp_path: Path) -> Session:
    file = scaled(tmp_path, 2.0)
    return load(Path(file.path), file.sha256)


def test_bound_feeds_give_what_plain_ones_give(tmp_path: Path) -> None:
    session = session_of(tmp_path)
    for rows in (1, 5, 1):
        array = np.random.default_rng(rows).random((rows, 3), np.float32)
        [bound] = session._run_bound({"x": array}, ["y"], "cpu")
        assert np.array_equal(bound, session.run({"x": array})["y"])
        [strided] = session._run_bound({"x": np.asfortranarray(array)}, ["y"], "cpu")
        assert np.array_equal(strided, bound)


def test_buffers_that_stay_give_each_run_its_own_answer(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(onnx_cuda_graphs, "SHAPES_MAX", 2)
    file = scaled(tmp_path, 2.0)
    runtime = onnxruntime.InferenceSession(Path(file.path).read_bytes(), providers=["CPUExecutionProvider"])
    captured = CapturedShapes(runtime, "cpu")
    found = []
    for number, rows in enumerate([1, 2, 1, 3, 2, 1, 1]):
        array = np.full((rows, 3), number, np.float32)
        found.append((array, captured.run({"x": array}, ["y"])[0]))
        assert len(captured._kept) <= 2
    assert all(np.array_equal(answer, 2 * array) for array, answer in found)  # none was written over by a later run


def test_outputs_can_be_chosen_and_a_warm_up_may_fail(tmp_path: Path) -> None:
    session = session_of(tmp_path)
    assert list(session.run({"x": np.ones((1, 3), np.float32)}, ["y"])) == ["y"]
    session.warm_up()
    session.warm_up({"x": [7, 3]})
    with pytest.raises(RuntimeError):
        session.warm_up({"x": [7, 4]})
    file = looked_up(tmp_path)
    load(Path(file.path), file.sha256).warm_up()  # whole numbers too
