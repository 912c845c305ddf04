"""Texts into vectors by the kind: what is written, several jobs at once, and texts that nobody would write."""

import json
import subprocess
import sys
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from sightline.adapters import builtin, minilm
from sightline.domain.kinds import KINDS, TEXT_CHARS_MAX, TEXTS_MAX, InvalidParameters, parse
from sightline.workers import kinds
from sightline.workers.kinds import JobInput, JobOutput, KindFailed, ModelFile, module_of
from sightline.workers.kinds.embed import run, run_many
from sightline.workers.runner_client import Runner
from sightline.workers.runner_messages import RunnerAnswer

DEPTH = builtin.manifests()["depth-heuristic"]
HOSTILE = [
    "nul\0inside",
    "\u202eright to left\u202c",
    "a\u0301" * 4000,
    "🏳️‍🌈" * 1000,
    "\ufffd\uffff\U0010ffff",
    "[CLS] [SEP] [MASK] [PAD]",
    "##" * 4000,
    " " * TEXT_CHARS_MAX,
    "x" * TEXT_CHARS_MAX,
    "{}[]<>&;'\"\\`$(reboot)",
]


@pytest.fixture
def model(minilm_path: Path) -> ModelFile:
    return ModelFile(str(minilm_path), minilm.SHA256)


@pytest.fixture
async def runner() -> AsyncIterator[Runner]:
    made = Runner(memory_bytes_max=4096 * 1024 * 1024)
    yield made
    await made.close()


def quiet(percent: int, message: str) -> None:
    """Nobody listens."""


def job(model: ModelFile | None, directory: Path, *texts: str, **more: Any) -> JobInput:
    directory.mkdir(exist_ok=True)
    return JobInput(directory.name, "embed", {"texts": list(texts), **more}, [], model, str(directory))


def vectors(directory: Path) -> NDArray[np.float32]:
    found: NDArray[np.float32] = np.load(directory / "embeddings.npy")
    return found


def test_what_is_written(model: ModelFile, tmp_path: Path) -> None:
    heard: list[int] = []
    output = run(job(model, tmp_path, "a cat", "word " * 400, "a cat"), lambda percent, _: heard.append(percent))
    assert [(one.name, one.content_type) for one in output.outputs] == [("embeddings.npy", "application/octet-stream")]
    found = vectors(tmp_path)
    assert (found.shape, found.dtype) == ((3, 384), np.dtype(np.float32))
    assert np.abs(np.linalg.norm(found, axis=1) - 1).max() < 1e-6
    assert found[0] @ found[2] == pytest.approx(1, abs=1e-6)
    assert output.manifest == {
        "kind": "embed",
        "count": 3,
        "dimensions": 384,
        "tokens": 4 + 256 + 4,
        "truncated": [1],
        "model": {"name": "all-minilm-l6-v2", "sha256": minilm.SHA256},
    }
    assert output.receipt is not None
    assert (output.receipt.model_sha256, output.receipt.batch_size) == (minilm.SHA256, 3)
    assert set(output.timings) == {"model_ms", "tokenise_ms", "infer_ms"}
    assert heard == sorted(heard)
    assert (heard[0], heard[-1]) == (0, 100)


def test_json_holds_the_same_numbers(model: ModelFile, tmp_path: Path) -> None:
    texts = ("one", "two two")
    run(job(model, tmp_path / "npy", *texts), quiet)
    output = run(job(model, tmp_path / "json", *texts, format="json"), quiet)
    told = json.loads((tmp_path / "json" / "embeddings.json").read_text())
    assert np.array_equal(np.array(told.pop("embeddings"), np.float32), vectors(tmp_path / "npy"))
    assert told == output.manifest


def test_the_same_job_gives_the_same_bytes(model: ModelFile, tmp_path: Path) -> None:
    texts = ("one", "two two", "three " * 50)
    for name in ("a", "b"):
        run(job(model, tmp_path / name, *texts), quiet)
    run(job(model, tmp_path / "c", *texts, "other"), quiet)
    first, second, other = ((tmp_path / name / "embeddings.npy").read_bytes() for name in "abc")
    assert first == second != other


def test_many_jobs_share_runs_and_each_gets_its_own(model: ModelFile, tmp_path: Path) -> None:
    texts = [[f"text {n} of {size}" + " and more" * n for n in range(size)] for size in (3, 1, 7)]
    jobs = [job(model, tmp_path / f"j{n}", *own) for n, own in enumerate(texts)]
    together = run_many(jobs, quiet)
    for own, one, output in zip(texts, jobs, together, strict=True):
        assert isinstance(output, JobOutput)
        assert output.manifest["count"] == len(own)
        assert output.receipt is not None
        assert output.receipt.batch_size == 11
        found = vectors(Path(one.output_dir))
        alone = run(one, quiet)
        assert np.abs(found - vectors(Path(one.output_dir))).max() < 1e-6
        assert alone.manifest == output.manifest


def test_many_jobs_of_different_models_are_answered_in_their_places(
    model: ModelFile, minilm_path: Path, tmp_path: Path
) -> None:
    """The same bytes under another name load once more, as another model would."""
    jobs = [job(model, tmp_path / f"j{n}", f"text {n}") for n in range(4)]
    jobs[1:3] = [JobInput(**{**_fields(one), "intra_op_threads": 2}) for one in jobs[1:3]]
    found = run_many(jobs, quiet)
    assert [one.receipt.intra_op_threads for one in found if isinstance(one, JobOutput) and one.receipt] == [1, 2, 2, 1]
    for n, one in enumerate(jobs):
        expected = run(job(model, tmp_path / "alone", f"text {n}"), quiet)
        assert np.abs(vectors(Path(one.output_dir)) - vectors(tmp_path / "alone")).max() < 1e-6
        assert expected.manifest["count"] == 1


def _fields(one: JobInput) -> dict[str, Any]:
    return {name: getattr(one, name) for name in one.__struct_fields__}


def test_one_that_fails_leaves_it_to_each_alone(model: ModelFile, tmp_path: Path) -> None:
    """What the contract says: it raises, and who asked runs them one by one."""
    jobs = [job(model, tmp_path / "good", "a"), job(model, tmp_path / "bad")]
    with pytest.raises(KindFailed) as failed:
        run_many(jobs, quiet)
    assert failed.value.code == "rule_violated"
    assert run(jobs[0], quiet).manifest["count"] == 1


@pytest.mark.parametrize("text", HOSTILE, ids=range(len(HOSTILE)))
def test_any_text_has_a_vector(model: ModelFile, tmp_path: Path, text: str) -> None:
    run(job(model, tmp_path, text), quiet)
    found = vectors(tmp_path)
    assert np.isfinite(found).all()
    assert np.linalg.norm(found) == pytest.approx(1, abs=1e-6)


@pytest.mark.parametrize(
    "params",
    [
        {},
        {"texts": []},
        {"texts": [""]},
        {"texts": "a text"},
        {"texts": ["x" * (TEXT_CHARS_MAX + 1)]},
        {"texts": ["x" * 10_000_000]},
        {"texts": ["x"] * (TEXTS_MAX + 1)},
        {"texts": [1]},
        {"texts": ["x"], "format": "pickle"},
        {"texts": ["x"], "more": 1},
    ],
)
def test_what_the_domain_refuses_and_the_kind_too(model: ModelFile, tmp_path: Path, params: dict[str, Any]) -> None:
    with pytest.raises(InvalidParameters) as refused:
        parse("embed", params)
    assert len(refused.value.detail) < 200
    with pytest.raises(KindFailed) as failed:
        run(JobInput("j", "embed", params, [], model, str(tmp_path)), quiet)
    assert failed.value.code == "rule_violated"
    assert list(tmp_path.iterdir()) == []


def test_a_text_weighs_by_its_length() -> None:
    kind = KINDS["embed"]
    assert kind.weight({"texts": ["short"] * 3}) == 3
    assert kind.weight({"texts": ["x" * TEXT_CHARS_MAX]}) == 33
    assert kind.weight({"texts": ["x"] * TEXTS_MAX}) == kind.weight_max


@pytest.mark.parametrize(
    ("change", "code"),
    [
        (None, "rule_violated"),
        (ModelFile(str(builtin.model_path(DEPTH)), DEPTH.sha256), "model_without_tokenizer"),
        (ModelFile(str(builtin.model_path(DEPTH)), "0" * 64), "model_digest_mismatch"),
        (ModelFile("/absent.onnx", "1" * 64), "model_missing"),
    ],
)
def test_models_that_it_refuses(tmp_path: Path, change: ModelFile | None, code: str) -> None:
    with pytest.raises(KindFailed) as failed:
        run(job(change, tmp_path, "a"), quiet)
    assert failed.value.code == code
    assert list(tmp_path.iterdir()) == []


def test_a_worker_without_the_extra_says_which_package_it_lacks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(kinds.MODULES, "embed", ".no_such_module")
    with pytest.raises(KindFailed, match="no_such_module") as failed:
        module_of("embed")
    assert (failed.value.code, failed.value.retryable) == ("kind_unavailable", True)


def test_embedding_needs_nothing_that_only_building_does() -> None:
    code = (
        "import sys; import sightline.workers.kinds.embed; sys.exit(bool({'onnx', 'safetensors'} & set(sys.modules)))"
    )
    subprocess.run([sys.executable, "-P", "-c", code], check=True)


async def test_through_the_confined_child(runner: Runner, model: ModelFile, tmp_path: Path) -> None:
    """It reads the model and its tokeniser there, alone and together; a text with NUL comes as it was sent."""
    alone = await runner.run(job(model, tmp_path / "alone", "nul\0inside", "b"), 60)
    assert isinstance(alone, RunnerAnswer)
    assert alone.manifest["count"] == 2
    jobs = [job(model, tmp_path / f"j{n}", "nul\0inside", "b") for n in range(3)]
    together = await runner.run_many(jobs, 60.0, together=True)
    for one, answer in zip(jobs, together, strict=True):
        assert isinstance(answer, RunnerAnswer)
        assert answer.receipt is not None
        assert answer.receipt.batch_size == 6
        assert np.abs(vectors(Path(one.output_dir)) - vectors(tmp_path / "alone")).max() < 1e-6
