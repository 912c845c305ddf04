"""Jobs against the real log: what a submission rests on, and how many may wait."""

import asyncio
from datetime import timedelta
from uuid import uuid4

import pytest
from tests.conftest_service import Service, by

from sightline.adapters.ids import uuid7
from sightline.commands import assets, attempts, jobs, model_slots, models, sessions
from sightline.domain.assets import NotClean
from sightline.domain.jobs import Provenance
from sightline.domain.kernel import Invalid, InvalidState, NotFound, QueueFull
from sightline.domain.kinds import InvalidParameters, UnknownKind
from sightline.domain.model_slots import ModelNotSynced
from sightline.domain.sessions import SessionIsExpired
from sightline.workers import lifecycle

SUBMISSIONS, LIMIT = 200, 50


async def start(service: Service, job_id: object, worker: str = "w1") -> int:
    lease_until = lifecycle.now() + timedelta(seconds=10)
    command = attempts.StartJob(job_id=job_id, worker=worker, lease_until=lease_until)  # type: ignore[arg-type]  # a UUID
    return (await service.run(attempts.start_job, command)).state.attempt


def waiting(service: Service) -> int:
    import psycopg

    with psycopg.connect(service.settings.database_url) as connection:
        row = connection.execute(
            "SELECT value FROM guards WHERE key = %s ORDER BY move DESC LIMIT 1", [jobs.pending_key("noop")]
        ).fetchone()
    return row[0] if row else 0


async def test_of_200_submissions_at_once_exactly_50_fit_a_limit_of_50(bare_service: Service) -> None:
    outcomes = await asyncio.gather(
        *(bare_service.submit(pending_max=LIMIT) for _ in range(SUBMISSIONS)), return_exceptions=True
    )
    refused = [one for one in outcomes if isinstance(one, BaseException)]
    assert len(refused) == SUBMISSIONS - LIMIT
    assert {type(one) for one in refused} == {QueueFull}
    assert waiting(bare_service) == LIMIT
    assert (await bare_service.services.store.reader.head()).position == LIMIT


async def test_every_way_out_of_waiting_makes_room(bare_service: Service) -> None:
    started, cancelled, deleted = [await bare_service.submit(pending_max=3) for _ in range(3)]
    with pytest.raises(QueueFull):
        await bare_service.submit(pending_max=3)
    await start(bare_service, started)
    await bare_service.run(jobs.cancel_job, jobs.CancelJob(job_id=cancelled))
    await bare_service.run(jobs.delete_job, jobs.DeleteJob(job_id=deleted))
    assert waiting(bare_service) == 0
    fail = attempts.FailJob(
        job_id=started, attempt=1, worker="w1", code="x", message="", retryable=True, retry_delay_s=0
    )
    await bare_service.run(attempts.fail_job, fail)
    assert waiting(bare_service) == 1, "a retry waits again, beyond the limit if need be"
    await bare_service.submit(pending_max=2)
    with pytest.raises(QueueFull):
        await bare_service.submit(pending_max=2)


async def test_a_repeated_submission_is_one_job(bare_service: Service) -> None:
    caller, job_id = by(), uuid7()
    command = jobs.SubmitJob(job_id=job_id, kind="noop", pending_max=1)
    first = await bare_service.run(jobs.submit_job, command, caller)
    again = await bare_service.run(jobs.submit_job, command, caller)
    assert (again.stream_id, again.position, again.repeat) == (first.stream_id, first.position, True)
    assert waiting(bare_service) == 1


@pytest.mark.parametrize("code", ["infected", None])
async def test_an_input_must_be_clean(bare_service: Service, code: str | None) -> None:
    await bare_service.install_models()
    asset_id = uuid7()
    if code:
        await bare_service.asset(asset_id, code=code)
    else:
        request = assets.RequestUpload(
            asset_id=asset_id, filename="a.png", content_type="image/png", size_bytes=1, purpose="image"
        )
        await bare_service.run(assets.request_upload, request)
    with pytest.raises(NotClean):
        await bare_service.submit("layer-photo-realistic", inputs=(asset_id,))


async def test_an_input_that_is_deleted_meanwhile_is_refused(bare_service: Service) -> None:
    """The decision starts from a cached state; the append's expectation finds out."""
    await bare_service.install_models()
    asset_id = await bare_service.asset(uuid7())
    await bare_service.submit("layer-photo-realistic", inputs=(asset_id,))
    async with lifecycle.open_services(bare_service.settings) as elsewhere:
        await elsewhere.commands.execute(assets.delete_asset, assets.DeleteAsset(asset_id=asset_id), by())
    with pytest.raises(NotFound):
        await bare_service.submit("layer-photo-realistic", inputs=(asset_id,))


async def test_what_is_not_there_or_does_not_fit_is_refused(bare_service: Service) -> None:
    await bare_service.install_models()
    asset_id = await bare_service.asset(uuid7())
    for refused, kind, given in (
        (UnknownKind, "nothing", {}),
        (InvalidParameters, "noop", {"params": {"speed": 1}}),
        (InvalidParameters, "noop", {"inputs": (asset_id,)}),
        (InvalidParameters, "layer-photo-realistic", {}),
        (InvalidParameters, "layer-photo-realistic", {"inputs": (asset_id,), "params": {"num_layers": 6}}),
        (NotFound, "layer-photo-realistic", {"inputs": (uuid4(),)}),
        (NotFound, "noop", {"session_id": uuid4()}),
        (NotFound, "layer-photo-realistic", {"inputs": (asset_id,), "model_version_id": uuid4()}),
        (Invalid, "noop", {"priority": 10}),
    ):
        with pytest.raises(refused):
            await bare_service.submit(kind, **given)


async def test_a_session_that_is_over_takes_no_jobs(bare_service: Service) -> None:
    """Whether or not the clock has said so: what counts is the time at which the caller asks."""
    session_id = await bare_service.session(duration_s=60)
    command = jobs.SubmitJob(job_id=uuid7(), kind="noop", session_id=session_id, pending_max=9)
    late = by(now=lifecycle.now() + timedelta(seconds=61))
    with pytest.raises(SessionIsExpired):
        await bare_service.run(jobs.submit_job, command, late)
    await bare_service.run(jobs.submit_job, command)
    await bare_service.run(sessions.close_session, sessions.CloseSession(session_id=session_id))
    with pytest.raises(InvalidState):
        await bare_service.submit(session_id=session_id)


async def test_a_pinned_model_stays_when_another_is_activated(bare_service: Service) -> None:
    await bare_service.install_models()
    asset_id = await bare_service.asset(uuid7())
    first = await bare_service.job(await bare_service.submit("layer-photo-realistic", inputs=(asset_id,)))
    assert first.submitted is not None
    pinned = first.submitted.model_version_id

    other = uuid7()
    register = models.RegisterModel(model_id=other, name="other", framework="onnx", task="depth", hf_repo="local/demo")
    await bare_service.run(models.register_model, register)
    with pytest.raises(ModelNotSynced):
        await bare_service.run(model_slots.activate_model, model_slots.ActivateModel(model_id=other))
    await models.sync_model(bare_service.commands, bare_service.services.models, other, by())
    await bare_service.run(model_slots.activate_model, model_slots.ActivateModel(model_id=other))

    fresh = await bare_service.submit("layer-photo-realistic", inputs=(asset_id,))
    chosen = await bare_service.submit("layer-photo-realistic", inputs=(asset_id,), model_version_id=pinned)
    for wanted, job_id in ((other, fresh), (pinned, chosen)):
        submitted = (await bare_service.job(job_id)).submitted
        assert submitted is not None
        assert submitted.model_version_id == wanted


async def test_without_the_attempt_check_a_job_completes_twice(
    bare_service: Service, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The negative control of fencing: with the question switched off, the log shows what it is there for."""
    outcomes = []
    for fenced in (True, False):
        if not fenced:
            monkeypatch.setattr("sightline.domain.attempts.refusal", lambda *_, **__: None)
            monkeypatch.setattr("sightline.domain.attempts.require_present", lambda job: job.submitted)
        job_id = await bare_service.submit()
        await start(bare_service, job_id, "w1")
        lost = attempts.LoseLease(job_id=job_id, attempt=1, worker="w1", retry_delay_s=0)
        await bare_service.run(attempts.lose_lease, lost)
        await start(bare_service, job_id, "w2")
        for attempt, worker in ((1, "w1"), (2, "w2")):
            complete = attempts.CompleteJob(
                job_id=job_id, attempt=attempt, worker=worker, outputs=(), manifest={}, timings={}, receipt=Provenance()
            )
            await bare_service.run(attempts.complete_job, complete)
        outcomes.append(await bare_service.topics(job_id))
    assert outcomes[0].count("completed") == 1
    assert outcomes[0].count("late_result_rejected") == 1
    assert "late_result_rejected" not in outcomes[1], "the stale result was taken"
