"""A history made with the real commands: whatever they allow, in any order."""

import random
from datetime import timedelta
from typing import Any
from uuid import UUID

from tests.conftest_service import Service, by

from sightline.adapters.egress_rules import Rules
from sightline.adapters.ids import uuid7
from sightline.adapters.standard_webhooks import new_secret
from sightline.commands import (
    api_keys,
    assets,
    attempts,
    batches,
    comparisons,
    jobs,
    model_slots,
    models,
    queues,
    quotas,
    sessions,
    shadows,
    users,
    webhooks,
)
from sightline.domain.access import Rights, Role
from sightline.domain.api_keys import key_id
from sightline.domain.batches import Counts, job_id
from sightline.domain.comparisons import Difference, Ran, Tolerance
from sightline.domain.jobs import AGGREGATE as JOB
from sightline.domain.jobs import Artifact, Provenance
from sightline.domain.kernel import Rejection
from sightline.domain.quotas import Limits
from sightline.domain.shadows import Result
from sightline.workers import lifecycle

WORKERS = ("w1", "w2")


class History:
    """Random steps on a few streams of each kind, most of them refused; every kind of row comes about."""

    def __init__(self, service: Service, seed: int) -> None:
        self._service = service
        self._random = random.Random(seed)
        self._now = lifecycle.now()
        self._ids: dict[str, list[UUID]] = {
            kind: [] for kind in ("job", "session", "asset", "model", "user", "api_key", "comparison", "webhook")
        }

    async def run(self, steps: int) -> None:
        acts = [self.submit] * 3 + [self.attempt] * 8 + [self.ask] * 2 + [self.session, self.asset, self.model] * 2
        acts += [self.user, self.api_key] * 2 + [self.queue, self.quota, self.comparison, self.shadow]
        acts += [self.batch, self.webhook, self.webhook]
        for _ in range(steps):
            self._now += timedelta(seconds=self._random.uniform(0, 20))
            try:
                await self._random.choice(acts)()
            except Rejection:
                continue  # Most of what can be asked makes no sense at that time; the log holds what did.
        await self._ends()

    async def _ends(self) -> None:
        """A job in every state that one can be in, whatever chance brought."""
        await self.queue()
        for kind in ("noop", "layer-photo-realistic"):
            await self._run(queues.resume_queue, queues.ResumeQueue(kind=kind))
        limits = queues.SetQueueLimits(kind="noop", running_max=None, starts_per_minute_max=None)
        await self._run(queues.set_queue_limits, limits)
        for end in ("pending", "processing", "completed", "failed", "cancelled", "deleted"):
            job_id = uuid7()
            await self._run(jobs.submit_job, jobs.SubmitJob(job_id=job_id, kind="noop", pending_max=1_000))
            held: dict[str, Any] = {"job_id": job_id, "attempt": 1, "worker": "w1"}
            if end in {"processing", "completed", "failed"}:
                start = attempts.StartJob(job_id=job_id, worker="w1", lease_until=self._now)
                await self._run(attempts.start_job, start)
            if end == "completed":
                await self._run(attempts.complete_job, attempts.CompleteJob(**held, **self._result(job_id)))
            elif end == "failed":
                fail = attempts.FailJob(**held, code="x", message="why", retryable=False, retry_delay_s=0)
                await self._run(attempts.fail_job, fail)
            elif end == "cancelled":
                await self._run(jobs.cancel_job, jobs.CancelJob(job_id=job_id))
            elif end == "deleted":
                await self._run(jobs.delete_job, jobs.DeleteJob(job_id=job_id))

    async def _run(self, handler: Any, command: Any) -> None:
        await self._service.run(handler, command, by(self._random.choice("ab"), now=self._now))

    def _any(self, kind: str) -> UUID:
        return self._random.choice(self._ids[kind] or [uuid7()])

    def _new(self, kind: str) -> UUID:
        self._ids[kind].append(uuid7())
        return self._ids[kind][-1]

    async def submit(self) -> None:
        layers = self._random.random() < 0.5
        params: dict[str, Any] = {"num_layers": 3} if layers else {"sleep_s": self._random.random()}
        submit = jobs.SubmitJob(
            job_id=self._new("job"),
            kind="layer-photo-realistic" if layers else "noop",
            inputs=(self._any("asset"),) if layers else (),
            params=params,
            session_id=self._random.choice([None, self._any("session")]),
            priority=self._random.randint(0, 9),
            unique_key=self._random.choice([None] * 5 + ["é"]),
            not_before=self._random.choice([None] * 5 + [self._now + timedelta(seconds=5)]),
            attempts_max=self._random.randint(1, 3),
            pending_max=50,
        )
        await self._run(jobs.submit_job, submit)

    async def batch(self) -> None:
        """A few jobs, which the other steps take up with the rest; cancelled at times."""
        members = [batches.JobOfBatch(ref=f"r{number}") for number in range(self._random.randint(1, 3))]
        batch_id = uuid7()
        submit = batches.SubmitBatch(batch_id=batch_id, kind="noop", members=members, pending_max=50)
        await self._run(batches.submit_batch, submit)
        self._ids["job"] += [job_id(batch_id, number) for number in range(1, len(members) + 1)]
        if self._random.random() < 0.5:
            await self._run(batches.cancel_batch, batches.CancelBatch(batch_id=batch_id))
            counts = Counts(cancelled=len(members))
            await self._run(batches.complete_batch, batches.CompleteBatch(batch_id=batch_id, counts=counts))

    async def attempt(self) -> None:
        job_id = self._random.choice(self._ids["job"][-5:] or [uuid7()])
        state, _, _ = await self._service.commands.state(JOB, job_id, read_tail=False)
        worker = self._random.choice((state.worker, state.worker, *WORKERS)) or "w1"
        number = max(1, state.attempt - (self._random.random() < 0.1))
        step = self._random.choice(["start", "start", "progress", "complete", "fail", "confirm", "lose"])
        held: dict[str, Any] = {"job_id": job_id, "attempt": number, "worker": worker}
        match step:
            case "start":
                start = attempts.StartJob(job_id=job_id, worker=worker, lease_until=self._now)
                await self._run(attempts.start_job, start)
            case "progress":
                percent = self._random.randint(0, 100)
                progress = attempts.ReportProgress(**held, percent=percent, message="é\t" * percent)
                await self._run(attempts.report_progress, progress)
            case "complete":
                await self._run(attempts.complete_job, attempts.CompleteJob(**held, **self._result(job_id)))
            case "fail":
                retryable = self._random.random() < 0.6
                fail = attempts.FailJob(**held, code="x", message="why", retryable=retryable, retry_delay_s=3.5)
                await self._run(attempts.fail_job, fail)
            case "confirm":
                await self._run(attempts.confirm_cancel, attempts.ConfirmCancel(**held))
            case "lose":
                await self._run(attempts.lose_lease, attempts.LoseLease(**held, retry_delay_s=0.1))

    def _result(self, job_id: UUID) -> dict[str, Any]:
        """Numbers and texts that survive a table only if nothing rounds or rewrites them."""
        made = Artifact(name="a.png", object_key=f"k/{job_id}", sha256="a" * 64, size_bytes=1, content_type="image/png")
        return {
            "outputs": (made,) if self._random.random() < 0.7 else (),
            "manifest": {"é": [1, 2.5, None, {"deep": 1e300}], "third": 1 / 3, "whole": 1.0},
            "timings": {"run": self._random.random()},
            "receipt": Provenance(input_sha256=("b" * 64,)),
        }

    async def ask(self) -> None:
        job_id = self._any("job")
        handler, command = self._random.choice(
            [
                (jobs.cancel_job, jobs.CancelJob(job_id=job_id)),
                (jobs.delete_job, jobs.DeleteJob(job_id=job_id)),
                (jobs.requeue_job, jobs.RequeueJob(job_id=job_id)),
                (jobs.expire_job, jobs.ExpireJob(job_id=job_id)),
            ]
        )
        await self._run(handler, command)

    async def session(self) -> None:
        create = sessions.CreateSession(session_id=self._new("session"), user_id=None, duration_s=600)
        session_id = self._any("session")
        handler, command = self._random.choice(
            [
                (sessions.create_session, create),
                (sessions.attach_asset, sessions.AttachAsset(session_id=session_id, asset_id=self._any("asset"))),
                (sessions.expire_session, sessions.ExpireSession(session_id=session_id)),
                (sessions.close_session, sessions.CloseSession(session_id=session_id)),
            ]
        )
        await self._run(handler, command)

    async def asset(self) -> None:
        code = "infected" if self._random.random() < 0.2 else None
        if self._random.random() < 0.1:
            await self._run(assets.delete_asset, assets.DeleteAsset(asset_id=self._any("asset")))
        elif self._random.random() < 0.2:
            request = assets.RequestUpload(
                asset_id=self._new("asset"), filename="ü.png", content_type="image/png", size_bytes=1, purpose="image"
            )
            await self._run(assets.request_upload, request)
        else:
            await self._service.asset(self._new("asset"), code=code)

    async def model(self) -> None:
        model_id = self._any("model")
        synced = models.CompleteSync(model_id=model_id, sha256="c" * 64, path="p", size_bytes=1, origin="cache")
        register = models.RegisterModel(
            model_id=self._new("model"), name="m", framework="onnx", task="depth", hf_repo="local/demo"
        )
        handler, command = self._random.choice(
            [
                (models.register_model, register),
                (models.start_sync, models.StartSync(model_id=model_id)),
                (models.complete_sync, synced),
                (models.fail_sync, models.FailSync(model_id=model_id, error="no")),
                (models.archive_model, models.ArchiveModel(model_id=model_id)),
                (model_slots.activate_model, model_slots.ActivateModel(model_id=model_id)),
                (model_slots.roll_back_model, model_slots.RollBackModel(model_id=model_id)),
            ]
        )
        await self._run(handler, command)

    async def user(self) -> None:
        user_id = self._any("user")
        role = self._random.choice(list(Role))
        register = users.RegisterUser(
            user_id=self._new("user"),
            email=f"{len(self._ids['user'])}@é.example",
            full_name="Ådå",
            role=role,
            password_hash="$argon2id$",
        )
        handler, command = self._random.choice(
            [
                (users.register_user, register),
                (users.register_user, register),
                (users.change_role, users.ChangeRole(user_id=user_id, role=role)),
                (users.set_password, users.SetPassword(user_id=user_id, password_hash="$argon2id$2")),
                (users.revoke_tokens, users.RevokeTokens(user_id=user_id)),
                (users.deactivate_user, users.DeactivateUser(user_id=user_id)),
            ]
        )
        await self._run(handler, command)

    async def api_key(self) -> None:
        prefix = f"{self._random.getrandbits(64):016x}"
        issue = api_keys.IssueApiKey(
            name='line "3"',
            owner_id=self._any("user"),
            issuer=Rights(Role.ADMIN),
            role=Role.VIEWER,
            scopes=self._random.choice([None, frozenset({"jobs:read"})]),
            expires_at=self._now + timedelta(days=1),
            prefix=prefix,
            secret_sha256="d" * 64,
        )
        handler, command = self._random.choice(
            [
                (api_keys.issue_api_key, issue),
                (api_keys.issue_api_key, issue),
                (api_keys.revoke_api_key, api_keys.RevokeApiKey(key_id=self._any("api_key"))),
            ]
        )
        self._ids["api_key"].append(key_id(prefix))
        await self._run(handler, command)

    async def webhook(self) -> None:
        is_new = self._random.random() < 0.5
        webhook_id = self._new("webhook") if is_new else self._any("webhook")
        wish: dict[str, Any] = {
            "webhook_id": webhook_id,
            "url": 'https://hooks.example/"é"' if self._random.random() < 0.1 else "https://hooks.example/%22",
            "types": ("job.completed", "job.failed"),
            "kinds": self._random.choice([None, ("noop",)]),
            "rules": Rules(),
        }
        register = webhooks.RegisterWebhook(secret=new_secret(), **wish)
        if is_new:
            await self._run(webhooks.register_webhook, register)
            return
        handler, command = self._random.choice(
            [
                (webhooks.register_webhook, register),
                (webhooks.change_webhook, webhooks.ChangeWebhook(**wish)),
                (webhooks.rotate_secret, webhooks.RotateSecret(webhook_id=webhook_id, secret=new_secret())),
                (webhooks.disable_webhook, webhooks.DisableWebhook(webhook_id=webhook_id)),
                (webhooks.enable_webhook, webhooks.EnableWebhook(webhook_id=webhook_id)),
                (webhooks.delete_webhook, webhooks.DeleteWebhook(webhook_id=webhook_id)),
            ]
        )
        await self._run(handler, command)

    async def queue(self) -> None:
        """Paused for a moment only: the other steps want to start jobs."""
        kind = self._random.choice(["noop", "layer-photo-realistic"])
        running, starts = self._random.choice([None, 1_000]), self._random.choice([None, 60])
        limits = queues.SetQueueLimits(kind=kind, running_max=running, starts_per_minute_max=starts)
        await self._run(queues.set_queue_limits, limits)
        await self._run(queues.pause_queue, queues.PauseQueue(kind=kind, reason="é"))
        if self._random.random() < 0.95:
            await self._run(queues.resume_queue, queues.ResumeQueue(kind=kind))

    async def quota(self) -> None:
        limits = Limits(self._random.choice([None, 1_000]), self._random.choice([None, 10_000_000]))
        await self._run(
            quotas.set_quota_limit, quotas.SetQuotaLimit(principal=self._random.choice("ab"), limits=limits)
        )

    async def comparison(self) -> None:
        tolerance = Tolerance(number_max=1 / 3)
        found = Difference(name="é.json", sha256="a" * 64, second_sha256=None, distance_max=1e-300, reason='a "b"')
        ran = Ran(runtime="é", run_s=self._random.random())
        comparison_id, of_job = self._any("comparison"), self._any("job")
        refuse = comparisons.RefuseComparison(
            comparison_id=self._new("comparison"), of_job=of_job, candidate=uuid7(), tolerance=tolerance, reason="é"
        )
        start = comparisons.StartComparison(
            comparison_id=self._new("comparison"), of_job=of_job, tolerance=tolerance, pending_max=50
        )
        judge = comparisons.JudgeComparison(comparison_id=comparison_id, differences=(found,), first=ran, second=ran)
        give_up = comparisons.GiveUpComparison(comparison_id=comparison_id, reason="gone")
        handler, command = self._random.choice(
            [
                (comparisons.refuse_comparison, refuse),
                (comparisons.start_comparison, start),
                (comparisons.judge_comparison, judge),
                (comparisons.give_up_comparison, give_up),
            ]
        )
        await self._run(handler, command)

    async def shadow(self) -> None:
        """Of a version that is synced whatever else happens: most others are archived soon."""
        model_id, shadow_id = uuid7(), uuid7()
        register = models.RegisterModel(
            model_id=model_id, name="m", framework="onnx", task="depth", hf_repo="local/demo"
        )
        await self._run(models.register_model, register)
        await self._run(models.start_sync, models.StartSync(model_id=model_id))
        synced = models.CompleteSync(model_id=model_id, sha256="c" * 64, path="p", size_bytes=1, origin="cache")
        await self._run(models.complete_sync, synced)
        start = shadows.StartShadow(
            shadow_id=shadow_id,
            model_id=model_id,
            kinds=("layer-photo-realistic",),
            since=self._now - timedelta(days=1),
            until=self._now,
            sample=(uuid7(),),
            tolerance=Tolerance(),
        )
        await self._run(shadows.start_shadow, start)
        if self._random.random() < 0.7:
            result = Result(comparison_id=uuid7(), of_job=start.sample[0], verdict="different", excess=1 / 3)
            await self._run(shadows.judge_shadow, shadows.JudgeShadow(shadow_id=shadow_id, results=(result,)))
