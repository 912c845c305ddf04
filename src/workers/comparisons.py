"""The comparer: follows jobs that were run again, says how their outputs lie to those of before, and judges shadows.

It runs beside the clock. Of its work nothing is kept between two steps: what is due is asked of the read models, and
every command has an id that follows from what it is about, so that a kill between a job's end and its verdict costs a
repeat and never a second verdict. What is kept is patience: a comparison that cannot be made now is left alone for a
while, the others have their turn, and after TRIES_MAX tries that is its verdict.
"""

import asyncio
import hashlib
import math
import tempfile
from collections.abc import Sequence
from pathlib import Path
from uuid import UUID

import msgspec
import psycopg
import structlog

from ..adapters.differences import FILE_BYTES_MAX, Meter
from ..adapters.event_store.writer import StoreBusy, StoreUnavailable
from ..adapters.objects.port import ObjectDamaged, ObjectMissing
from ..commands import comparisons as commands
from ..commands import shadows as shadow_commands
from ..commands.transact import C, Handler, S
from ..domain import comparisons, jobs, shadows
from ..domain.comparisons import MANIFEST, REASON_CHARS_MAX, ComparisonStarted, Difference, Ran
from ..domain.jobs import Artifact, Job, JobCompleted
from ..domain.kernel import Caller, Rejection, derived_id, storable
from ..domain.shadows import Result
from ..projections import comparisons as projection
from ..projections import shadows as shadow_projection
from ..projections.comparisons import ComparisonRow, Due
from ..projections.shadows import ShadowRow
from .lifecycle import Services, caller, pause, say_due
from .patience import Patience

ACTOR = "comparer"
PAUSE_S = 1.0
PER_STEP_MAX = 20
REST_S = (1.0, 4.0, 16.0, 64.0, 256.0, 1_024.0, 3_600.0, 3_600.0, 3_600.0)  # an object store may be away for hours
TRIES_MAX = len(REST_S) + 1
SHADOWS_MAX = 10  # followed at once; the others wait for these
IN_FLIGHT_MAX = 8  # jobs of one shadow that wait or run: a queue of their own behind everybody else's
MEASURES: dict[str, comparisons.Measure] = {"image/png": "picture", "application/json": "numbers"}
ARRAY_SUFFIX = ".npy"
MODEL = "model"  # where a manifest says which model it was: of two versions, that is no difference between results
# What may be otherwise in a while; any other refusal is what the comparison comes to.
FOR_NOW = frozenset({"queue_full", "conflict", "epoch_changed", "store_unavailable", "precondition_failed"})

log = structlog.get_logger(__name__)


async def run(services: Services, stopping: asyncio.Event) -> None:
    """Compare until `stopping`. A step that fails is logged, and the next one does its work."""
    comparer = Comparer(services)
    while not stopping.is_set():
        try:
            if await comparer.step():
                continue
        except (psycopg.Error, StoreBusy, StoreUnavailable) as error:
            log.warning("comparing_failed", error=repr(error))
        except Exception:  # the clock beside it would end as well
            log.exception("comparing_broke")
        await pause(stopping, PAUSE_S)


class Unmade(Exception):
    """There is nothing to compare, for good; the text says why."""


class Comparer:
    """What is due, and the commands that say what it came to."""

    def __init__(self, services: Services) -> None:
        self._services = services
        self._patience = Patience(REST_S)

    async def step(self) -> int:
        """Judge what is due, submit what shadows still want; how many comparisons were judged.

        Raises:
            StoreBusy, StoreUnavailable, psycopg.Error: nothing can be asked or said now, whatever it is about.
        """
        judged = 0
        reads, resting = self._services.reads, self._patience.resting()
        async with Meter() as meter:
            for due in await projection.due(reads, resting=resting, limit=PER_STEP_MAX):
                judged += await self._tried(due, meter)
        for shadow in await shadow_projection.running(reads, resting=resting, limit=SHADOWS_MAX):
            try:
                await self._advance(shadow)
            except (psycopg.Error, StoreBusy, StoreUnavailable):
                raise
            except Exception as error:  # noqa: BLE001  # whatever it is, the other shadows go on
                tries = self._patience.failed(shadow.shadow_id)
                log.warning("shadow_not_advanced", shadow_id=str(shadow.shadow_id), tries=tries, error=repr(error))
            else:
                self._patience.forget(shadow.shadow_id)
        return judged

    async def _tried(self, due: Due, meter: Meter) -> bool:
        """_judge(); what hinders it is this comparison's alone, and is its verdict in the end."""
        comparison_id = due.comparison_id
        try:
            judged = await self._judge(due, meter)
        except (psycopg.Error, StoreBusy, StoreUnavailable):
            raise
        except Exception as error:  # noqa: BLE001  # whatever it is, the other comparisons go on
            tries = self._patience.failed(comparison_id)
            log.warning("not_compared_now", comparison_id=str(comparison_id), tries=tries, error=repr(error))
            if tries >= TRIES_MAX:
                # Its code or its class alone: what it says may name our own parts, and a verdict is for anybody.
                why = getattr(error, "code", type(error).__name__)
                give_up = commands.GiveUpComparison(
                    comparison_id=comparison_id, reason=f"not compared in {tries} tries: {why}"
                )
                by = self._caller(commands.give_up_comparison, comparison_id, due.position)
                await say_due(self._services, commands.give_up_comparison, give_up, by)
            return False
        self._patience.forget(comparison_id)
        return judged

    async def _judge(self, row: Due, meter: Meter) -> bool:
        """Whether there was anything left to say: read models may be behind."""
        comparison, _, _ = await self._services.commands.state(comparisons.AGGREGATE, row.comparison_id, read_tail=True)
        if comparison.judged is not None or comparison.started is None:
            return False
        try:
            judged = await self._compared(row, comparison.started, meter)
        except Unmade as unmade:
            give_up = commands.GiveUpComparison(comparison_id=row.comparison_id, reason=str(unmade))
            await self._say(commands.give_up_comparison, give_up, row.comparison_id, row.position)
        else:
            await self._say(commands.judge_comparison, judged, row.comparison_id, row.position)
        return True

    async def _compared(self, row: Due, started: ComparisonStarted, meter: Meter) -> commands.JudgeComparison:
        """
        Raises:
            Unmade: one of the two has no outputs, or not any more.
        """
        assert started.rerun_job is not None, "what was refused is judged"
        first = _result(await self._job(started.of_job), "the job")
        second = _result(await self._job(started.rerun_job), "its second run")
        same_model = first.receipt.model_sha256 == second.receipt.model_sha256
        unsaid = () if same_model else (MODEL,)
        differences = [manifests_apart(first, second, unsaid)]
        pairs = {output.name: [output, None] for output in first.outputs}
        for output in second.outputs:
            pairs.setdefault(output.name, [None, None])[1] = output
        for name, (one, other) in pairs.items():
            differences.append(await self._difference(name, one, other, meter, unsaid))
        return commands.JudgeComparison(
            comparison_id=row.comparison_id,
            differences=tuple(differences),
            first=_ran(first),
            second=_ran(second),
        )

    async def _difference(
        self, name: str, one: Artifact | None, other: Artifact | None, meter: Meter, unsaid: tuple[str, ...]
    ) -> Difference:
        """Digests first: equal ones are all there is to know, and nothing is read."""
        found = Difference(name=name, sha256=one.sha256 if one else None, second_sha256=other.sha256 if other else None)
        if one is None or other is None:
            return msgspec.structs.replace(found, reason="only one of the two runs wrote it")
        if one.sha256 == other.sha256:
            return found
        measure = "numbers" if name.endswith(ARRAY_SUFFIX) else MEASURES.get(one.content_type, "bytes")
        if one.content_type != other.content_type or measure == "bytes":
            return msgspec.structs.replace(found, reason="nothing but their bytes can be compared")
        if max(one.size_bytes, other.size_bytes) > FILE_BYTES_MAX:
            return msgspec.structs.replace(found, reason=f"larger than {FILE_BYTES_MAX} bytes")
        with tempfile.TemporaryDirectory(prefix="sightline-compare-") as directory:
            paths = [Path(directory) / which for which in ("first", "second")]
            for artifact, path in zip((one, other), paths, strict=True):
                await self._download(artifact, path)
            measured = await meter.measure(paths[0], paths[1], measure, unsaid=unsaid)
        return msgspec.structs.replace(
            found,
            measure=measure,
            distance_max=_finite(measured.distance_max),
            psnr_db=_finite(measured.psnr_db),
            reason=storable(measured.reason, REASON_CHARS_MAX),
        )

    async def _download(self, artifact: Artifact, path: Path) -> None:
        try:
            await self._services.objects.download(artifact.object_key, path)
        except (ObjectMissing, ObjectDamaged) as error:
            raise Unmade(f"{artifact.name}: {error.code}") from error

    async def _job(self, job_id: UUID) -> Job:
        job, _, _ = await self._services.commands.state(jobs.AGGREGATE, job_id, read_tail=True)
        return job

    async def _advance(self, shadow: ShadowRow) -> None:
        """Submit more of its jobs, as far as it may have them; judge it once all of them were."""
        candidate = shadow.model_version_id
        wanted = {comparisons.shadow_comparison_id(candidate, of_job): of_job for of_job in shadow.sample}
        known = await projection.states(self._services.reads, list(wanted))
        if len(known) == len(wanted) and all(status == "judged" for status in known.values()):
            rows = {row.comparison_id: row for row in await projection.of_ids(self._services.reads, list(wanted))}
            results = tuple(_of(rows[one], shadow.tolerance) for one in wanted)
            judge = shadow_commands.JudgeShadow(shadow_id=shadow.shadow_id, results=results)
            await self._say(shadow_commands.judge_shadow, judge, shadow.shadow_id, shadow.position)
            return
        room = IN_FLIGHT_MAX - sum(status == "running" for status in known.values())
        missing = [(one, of_job) for one, of_job in wanted.items() if one not in known]
        for comparison_id, of_job in missing[: max(room, 0)]:
            if not await self._submit(shadow, comparison_id, of_job):
                break

    async def _submit(self, shadow: ShadowRow, comparison_id: UUID, of_job: UUID) -> bool:
        """Whether the next one may be tried as well."""
        candidate = shadow.model_version_id
        start = commands.StartComparison(
            comparison_id=comparison_id,
            of_job=of_job,
            candidate=candidate,
            tolerance=shadow.tolerance,
            priority=jobs.PRIORITY_MAX,
            pending_max=self._services.settings.jobs_pending_max,
        )
        actor = shadows.owner(candidate)
        try:
            await self._say(commands.start_comparison, start, comparison_id, shadow.position, actor=actor)
        except Rejection as rejection:
            if rejection.code in FOR_NOW:
                log.info("shadow_waits", shadow_id=str(shadow.shadow_id), code=rejection.code)
                return False
            refuse = commands.RefuseComparison(
                comparison_id=comparison_id,
                of_job=of_job,
                candidate=candidate,
                tolerance=shadow.tolerance,
                reason=f"{rejection.code}: {rejection.detail}",
            )
            await self._say(commands.refuse_comparison, refuse, comparison_id, shadow.position, actor=actor)
        return True

    async def _say(
        self, handler: Handler[C, S], command: C, subject: UUID, position: int, *, actor: str = ACTOR
    ) -> None:
        await self._services.commands.execute(handler, command, self._caller(handler, subject, position, actor=actor))

    def _caller(self, handler: Handler[C, S], subject: UUID, position: int, *, actor: str = ACTOR) -> Caller:
        command_id = derived_id(ACTOR, handler.__name__, subject)
        return caller(actor, command_id, correlation_id=str(subject), cause=position)


def manifests_apart(first: JobCompleted, second: JobCompleted, unsaid: Sequence[str]) -> Difference:
    """What the two runs say of their outputs."""
    said = [{name: value for name, value in one.manifest.items() if name not in unsaid} for one in (first, second)]
    digests = [hashlib.sha256(msgspec.json.encode(one, order="deterministic")).hexdigest() for one in said]
    found = Difference(name=MANIFEST, sha256=digests[0], second_sha256=digests[1])
    if digests[0] == digests[1]:
        return found
    apart, reason = comparisons.distance(*said)
    return msgspec.structs.replace(found, measure="numbers", distance_max=apart, reason=reason)


def _result(job: Job, what: str) -> JobCompleted:
    """
    Raises:
        Unmade: it is not completed, or deleted since.
    """
    if job.status != "completed" or job.result is None:
        said = f" ({job.error_code}: {job.error_message})" if job.error_code else ""
        raise Unmade(f"{what} is {job.status}{said}")
    return job.result


def _ran(result: JobCompleted) -> Ran:
    receipt = result.receipt
    return Ran(
        model_version_id=receipt.model_version_id,
        model_sha256=receipt.model_sha256,
        provider=receipt.provider,
        runtime=receipt.runtime,
        run_s=result.timings.get("run"),
    )


def _finite(value: float | None) -> float | None:
    """What a child says is a stranger's word; the log keeps no infinity."""
    return value if value is not None and math.isfinite(value) else None


def _of(row: ComparisonRow, tolerance: comparisons.Tolerance) -> Result:
    """By the shadow's own tolerance: an earlier one, with another, may have had the job run."""
    differences = tuple(row.differences)
    failed = row.verdict == "failed"
    excess = None if failed else comparisons.excess(differences, tolerance)
    return Result(
        comparison_id=row.comparison_id,
        of_job=row.of_job,
        verdict="failed" if failed else comparisons.verdict_of(differences, tolerance),
        reason=row.reason,
        excess=_finite(excess),
        first_s=row.first.run_s if row.first else None,
        second_s=row.second.run_s if row.second else None,
    )
