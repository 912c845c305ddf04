"""Show cases to the real children, and keep what came of each."""

import asyncio
import hashlib
import time
from collections.abc import Sequence
from pathlib import Path

from msgspec import Struct
from PIL import Image
from tests.adapters.hostile.case import Case
from tests.adapters.hostile.models import TIME
from tests.adapters.hostile.watch import memory_bytes

from sightline.adapters.images import MEBIBYTE_BYTES, ImageScanner
from sightline.workers.kinds import InputFile, JobInput, KindFailed, ModelFile
from sightline.workers.runner_client import Runner

PIXELS_MAX = 64_000_000
PICTURE_MEMORY_BYTES_MAX = 768 * MEBIBYTE_BYTES
MODEL_MEMORY_BYTES_MAX = 1024 * MEBIBYTE_BYTES
ENDLESS_S_MAX = 1.0  # for a model that is known to go on for ever
MODEL_S_MAX = 20.0
CHILDREN = 2


class Told(Struct, frozen=True):
    """What one case was told.

    Attributes:
        peak_bytes: the child's address space so far, as the kernel counts it; 0 when the child is gone.
    """

    case: Case
    code: str
    detail: str
    seconds: float
    peak_bytes: int

    @property
    def is_right(self) -> bool:
        return self.code in self.case.codes


async def scanned(scanner: ImageScanner, case: Case, directory: Path) -> Told:
    path = directory / "upload"
    path.write_bytes(case.content)
    began = time.perf_counter()
    verdict = await scanner.scan(path, case.declared)
    seconds = time.perf_counter() - began
    peak = max((memory_bytes(pid, "VmPeak") for pid in scanner.pids), default=0)
    return Told(case, verdict.code, verdict.detail, seconds, peak)


def picture_in(directory: Path) -> Path:
    path = directory / "picture.png"
    Image.linear_gradient("L").resize((32, 24)).convert("RGB").save(path)
    return path


async def loaded(runner: Runner, case: Case, directory: Path, timeout_s: float | None = None) -> Told:
    """One job of the real kind, with this model."""
    path, outputs = directory / "model.onnx", directory / "outputs"
    path.write_bytes(case.content)
    outputs.mkdir(exist_ok=True)
    job = JobInput(
        case.name,
        "layer-photo-realistic",
        {"max_size": 256},
        [InputFile(str(picture_in(directory)), "image/png")],
        ModelFile(str(path), hashlib.sha256(case.content).hexdigest()),
        str(outputs),
    )
    code = detail = ""
    began = time.perf_counter()
    try:
        await runner.run(job, timeout_s or (ENDLESS_S_MAX if TIME in case.codes else MODEL_S_MAX))
    except KindFailed as failed:
        code, detail = failed.code, failed.message
    seconds = time.perf_counter() - began
    peak = memory_bytes(runner.pid, "VmPeak") if runner.pid else 0
    return Told(case, code, detail, seconds, peak)


async def all_loaded(runners: Sequence[Runner], cases: Sequence[Case], directories: Sequence[Path]) -> list[Told]:
    """Shared out among the runners; each goes on to the next case whatever became of the one before."""
    waiting = list(reversed(cases))

    async def work(runner: Runner, directory: Path) -> list[Told]:
        found = []
        while waiting:
            found.append(await loaded(runner, waiting.pop(), directory))
        return found

    shares = await asyncio.gather(*(work(*pair) for pair in zip(runners, directories, strict=True)))
    return [one for share in shares for one in share]
