"""One attempt at one job: fetch what it reads, run it, store what it wrote, say how it ended.

Every word is fenced by the attempt's number. If it is over meanwhile (cancelled, given to another, expired) the child
is stopped, what was stored is removed, and the refusal is in the log.
"""

import asyncio
import random
import tempfile
import time
from contextlib import ExitStack, suppress
from pathlib import Path
from uuid import UUID

import msgspec
import psycopg
import structlog

from ..adapters import builtin, metrics
from ..adapters.event_store.codec import NotStorable
from ..adapters.event_store.writer import CommandRefused, StoreBusy
from ..adapters.models import ModelUnavailable
from ..adapters.objects.port import ObjectMissing, ObjectStoreError
from ..commands import attempts as commands
from ..commands import groups
from ..commands.transact import C, Handler, Receipt
from ..domain import assets, attempts, jobs, retries
from ..domain.jobs import Artifact, Job, Provenance
from ..domain.kernel import Caller, Invalid, Rejection, derived_id
from ..domain.kinds import KINDS
from .kinds import InputFile, JobInput, KindFailed, ModelFile
from .leases import Lease
from .lifecycle import Services, caller
from .runner_client import Runner, RunnerCancelled
from .runner_messages import Output, RunnerAnswer

PROGRESS_S = 0.25  # at most one JobProgressed per this time
STOP_GRACE_S = 4.0  # how long a job may go on after its worker was told to stop
BUSY_TRIES_MAX = 60
BUSY_PAUSE_S = 1.0

log = structlog.get_logger(__name__)


class Attempt:
    """From JobStarted to whatever ends it."""

    def __init__(
        self,
        services: Services,
        job_id: UUID,
        job: Job,
        *,
        started_position: int,
        correlation_id: str,
        epoch: UUID | None,
    ) -> None:
        assert job.worker is not None, "somebody holds it"
        self._services = services
        self._worker = job.worker
        self.job_id = job_id
        self._number = job.attempt
        self.submitted = jobs.require_present(job)
        self._started_position = started_position
        self._correlation_id = correlation_id
        self._input_sha256: tuple[str, ...] = ()
        self._over: str | None = None  # why the child was stopped, if it was
        self._progress: tuple[int, str] | None = None
        self._epoch = epoch

    async def run(self, runner: Runner, stopping: asyncio.Event, lease: Lease) -> None:
        """Alone, and watched. Never raises for what the job did.

        Raises:
            psycopg.Error, StoreUnavailable: the log could not be reached for so long that how the attempt ended is
                not told, or may not be.
            EpochChanged: the log was restored meanwhile, and knows nothing of this attempt, or of another like it.
        """
        watch = asyncio.create_task(self._watch(runner, stopping, lease))
        try:
            with (
                metrics.JOB_SECONDS.labels(kind=self.submitted.kind).time(),
                ExitStack() as until_settled,
            ):
                await self.settle(await self._outcome(runner, until_settled))
        finally:
            watch.cancel()
            await asyncio.wait({watch})

    async def _outcome(self, runner: Runner, until_settled: ExitStack) -> RunnerAnswer | Exception:
        try:
            directory = until_settled.enter_context(tempfile.TemporaryDirectory(prefix="sightline-job-"))
            question = await self.question(directory)
            if self._over is not None:
                return RunnerCancelled()
            return await runner.run(question, self.submitted.timeout_s, self._note_progress)
        except Exception as error:  # noqa: BLE001  # settle() says what it means
            return error

    async def settle(self, outcome: RunnerAnswer | groups.Completion | Exception) -> None:
        """Bring the result (its files may be stored already), or say how the attempt failed. Whatever goes wrong with
        this one job is this job's failure, never its worker's; raises as run().
        """
        try:
            if isinstance(outcome, Exception):
                raise outcome
            ended = await self._brought(outcome)
        except KindFailed as failed:
            ended = await self._failed(failed)
        except (ObjectMissing, ModelUnavailable) as error:
            ended = await self._failed(KindFailed("input_unavailable", str(error)))
        except (Invalid, NotStorable, CommandRefused) as error:
            ended = await self._failed(KindFailed("result_refused", str(error)))
        except Exception as error:
            # A full disk, a database or a store that is away, a bug of ours. If the result was taken after all, and
            # only its acknowledgement was lost, the failure below comes too late and says nothing.
            log.exception("attempt_failed", job_id=str(self.job_id), attempt=self._number)
            message = f"the worker failed ({type(error).__name__})"
            ended = await self._failed(KindFailed("worker_failed", message, retryable=True))
        self._tell(ended)

    def _tell(self, ended: Job) -> None:
        log.info(
            "attempt_ended",
            job_id=str(self.job_id),
            kind=self.submitted.kind,
            attempt=self._number,
            status=ended.status,
            over=self._over,
            error_code=ended.error_code,
        )

    def stop(self, reason: str) -> None:
        """Its child is about to be stopped, because of this."""
        self._over = self._over or reason

    async def _brought(self, outcome: RunnerAnswer | groups.Completion) -> Job:
        completion = await self.completion(outcome) if isinstance(outcome, RunnerAnswer) else outcome
        receipt = await self._say("complete", commands.complete_job, completion.result)
        await self._remove_if_refused(receipt.state)
        return receipt.state

    async def completion(self, answer: RunnerAnswer) -> groups.Completion:
        """The result, its files stored."""
        outputs = [await self._store(output) for output in answer.outputs]
        result = commands.CompleteJob(
            job_id=self.job_id,
            attempt=self._number,
            worker=self._worker,
            outputs=tuple(outputs),
            manifest=answer.manifest,
            timings={name.removesuffix("_ms"): value / 1000 for name, value in answer.timings.items()},
            receipt=self._provenance(answer),
        )
        return groups.Completion(
            result=result, correlation_id=self._correlation_id, causation_id=f"event:{self._started_position}"
        )

    async def conclude(self, job: Job) -> bool:
        """The result was brought with others, and this is what the job came to; whether it was taken."""
        await self._remove_if_refused(job)
        if self._over is not None:
            self._tell(job)
        return self._over is None

    async def question(self, directory: str) -> JobInput:
        """What the runner is asked, its files in `directory`.

        Raises:
            KindFailed, ObjectMissing, ModelUnavailable: what it reads cannot be had.
        """
        inputs, outputs = _made(directory) if KINDS[self.submitted.kind].writes else ("", "")
        files: list[InputFile] = []
        for number, asset_id in enumerate(self.submitted.inputs):
            asset = await self._asset(asset_id)
            self._input_sha256 += (asset.sha256 or "",)
            path = f"{inputs}/{number}"
            await self._services.objects.download(asset.object_key, Path(path))
            files.append(InputFile(path, asset.content_type))
        model = None
        if (sha256 := self.submitted.model_sha256) is not None:
            file = await asyncio.to_thread(self._services.models.ensure, sha256)
            model = ModelFile(str(file), sha256, _manifest(sha256))
        return JobInput(
            job_id=str(self.job_id),
            kind=self.submitted.kind,
            params=self.submitted.params,
            inputs=files,
            model=model,
            output_dir=outputs,
        )

    async def _asset(self, asset_id: UUID) -> assets.Asset:
        asset, _, _ = await self._services.commands.state(assets.AGGREGATE, asset_id, read_tail=True)
        try:
            assets.require_clean(asset)
        except Rejection as rejection:
            raise KindFailed("input_unavailable", f"input {asset_id}: {rejection.detail}") from rejection
        return asset

    async def _store(self, output: Output) -> Artifact:
        key = f"{self._prefix}{output.name}"
        # Not if_absent: an attempt writes under its own number, and a resent put is the same bytes.
        info = await self._services.objects.put_file(
            key, Path(output.path), content_type=output.content_type, if_absent=False
        )
        if info.sha256 != output.sha256:
            raise KindFailed("output_damaged", f"{output.name} changed on its way to the store", retryable=True)
        return Artifact(
            name=output.name,
            object_key=key,
            sha256=output.sha256,
            size_bytes=output.size_bytes,
            content_type=output.content_type,
        )

    def _provenance(self, answer: RunnerAnswer) -> Provenance:
        ran = answer.receipt
        return Provenance(
            input_sha256=self._input_sha256,
            model_version_id=self.submitted.model_version_id,
            model_sha256=self.submitted.model_sha256,
            provider=ran.execution_provider if ran else None,
            runtime=f"{ran.runtime} {ran.runtime_version}" if ran else None,
            batch_size=ran.batch_size if ran else 1,
        )

    async def _failed(self, failed: KindFailed) -> Job:
        """The attempt's end, unless it was over before: then only its objects are left to remove."""
        if isinstance(failed, RunnerCancelled) and self._over == "cancel_requested":
            cancel = commands.ConfirmCancel(job_id=self.job_id, attempt=self._number, worker=self._worker)
            receipt = await self._say("confirm-cancel", commands.confirm_cancel, cancel)
        else:
            retryable = failed.retryable
            code, message = failed.code, failed.message
            if isinstance(failed, RunnerCancelled):
                retryable, code, message = True, self._over or failed.code, "the worker stopped before it was done"
            delay_s = retries.retry_delay_s(
                code,
                self._number,
                base_s=self._services.settings.job_retry_base_s,
                jitter=random.uniform(0.5, 1.0),  # noqa: S311  # spreads retries, guards nothing
            )
            fail = commands.FailJob(
                job_id=self.job_id,
                attempt=self._number,
                worker=self._worker,
                code=code,
                message=message,
                retryable=retryable,
                retry_delay_s=delay_s,
            )
            receipt = await self._say("fail", commands.fail_job, fail)
        with suppress(ObjectStoreError):  # The janitor removes what could not be removed now.
            await self._services.objects.delete_prefix(self._prefix)
        return receipt.state

    async def _remove_if_refused(self, job: Job) -> None:
        reason = attempts.refusal(job, attempt=self._number, worker=self._worker)
        if reason is None:
            return
        self._over = reason
        log.warning("late_result_rejected", job_id=str(self.job_id), attempt=self._number, reason=reason)
        with suppress(ObjectStoreError):
            await self._services.objects.delete_prefix(self._prefix)
        if reason == "cancel_requested":
            cancel = commands.ConfirmCancel(job_id=self.job_id, attempt=self._number, worker=self._worker)
            await self._say("confirm-cancel", commands.confirm_cancel, cancel)

    def _note_progress(self, percent: int, message: str) -> None:
        self._progress = (percent, message)

    async def _watch(self, runner: Runner, stopping: asyncio.Event, lease: Lease) -> None:
        """Tell the log how far it is, and stop the child once nobody wants its result."""
        told: tuple[int, str] | None = None
        grace = Grace(stopping, lease)
        while self._over is None:
            await asyncio.sleep(PROGRESS_S)
            try:
                if self._progress is not None and self._progress != told:
                    told = self._progress
                    await self._report(*told)
                self._over = grace.why_over() or await self._why_over()
            except Exception as error:  # noqa: BLE001  # whatever it was: unwatched, the job could not be stopped
                log.warning("attempt_unwatched", job_id=str(self.job_id), error=repr(error))
        await keep_cancelling(runner)

    async def _why_over(self) -> str | None:
        job = await self._services.commands.today(jobs.AGGREGATE, self.job_id)
        return attempts.refusal(job, attempt=self._number, worker=self._worker)

    async def _report(self, percent: int, message: str) -> None:
        progress = commands.ReportProgress(
            job_id=self.job_id, attempt=self._number, worker=self._worker, percent=percent, message=message
        )
        with suppress(attempts.AttemptIsOver):  # why_over() finds out and says why
            await self._say(f"progress-{percent}-{message}", commands.report_progress, progress)

    async def _say(self, step: str, handler: Handler[C, Job], command: C) -> Receipt[Job]:
        by = caller(
            self._worker,
            derived_id(step, self.job_id, self._number, self._worker),
            correlation_id=self._correlation_id,
            cause=self._started_position,
        )
        return await say(self._services, handler, command, by, self._epoch)

    @property
    def _prefix(self) -> str:
        return objects_prefix(self.job_id, self._number)


class Grace:
    """Why whatever a slot runs is to be stopped, of the reasons that lie in the worker: it lost its lease, or was told
    to stop, and waited STOP_GRACE_S from when that was first seen.
    """

    def __init__(self, stopping: asyncio.Event, lease: Lease) -> None:
        self._stopping = stopping
        self._lease = lease
        self._stop_by: float | None = None

    def why_over(self) -> str | None:
        if self._stopping.is_set() and self._stop_by is None:
            self._stop_by = time.monotonic() + STOP_GRACE_S
        if self._lease.lost:
            return "lease_lost"
        if self._stop_by is not None and time.monotonic() >= self._stop_by:
            return "worker_stopped"
        return None


async def keep_cancelling(runner: Runner) -> None:
    """Until the caller is cancelled: a child that is just being started does not hear it the first time."""
    while True:
        runner.cancel()
        await asyncio.sleep(PROGRESS_S)


async def say(services: Services, handler: Handler[C, Job], command: C, by: Caller, epoch: UUID | None) -> Receipt[Job]:
    """Execute; while the database is away the same command is offered again, for BUSY_TRIES_MAX seconds or so."""
    for _ in range(BUSY_TRIES_MAX):
        try:
            return await services.commands.execute(handler, command, by, epoch=epoch)
        except (StoreBusy, psycopg.OperationalError) as error:
            log.warning("attempt_waits_for_the_log", command=type(command).__name__, error=repr(error))
            await asyncio.sleep(BUSY_PAUSE_S)
    return await services.commands.execute(handler, command, by, epoch=epoch)


def _made(directory: str) -> tuple[str, str]:
    """Where an attempt's files lie, those read and those written."""
    inputs, outputs = f"{directory}/in", f"{directory}/out"
    Path(inputs).mkdir(parents=True)
    Path(outputs).mkdir()
    return inputs, outputs


def objects_prefix(job_id: UUID, attempt: int) -> str:
    """Where an attempt's objects lie; no other attempt writes or removes there."""
    return f"artifacts/{job_id}/{attempt}/"


def _manifest(sha256: str) -> dict[str, object]:
    for manifest in builtin.manifests().values():
        if manifest.sha256 == sha256:
            return msgspec.to_builtins(manifest)  # type: ignore[no-any-return]  # a struct becomes a dict
    return {}
