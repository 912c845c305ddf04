"""Commands on webhooks: what is sealed, what is counted, and what a repeat is."""

import asyncio

import pytest
from tests.conftest_service import Service, by

from sightline.adapters.egress_rules import Rules, UrlRefused
from sightline.adapters.ids import uuid7
from sightline.adapters.standard_webhooks import new_secret
from sightline.commands import webhooks as commands
from sightline.domain.kernel import Invalid, NotFound, Rejection
from sightline.domain.webhooks import AGGREGATE, PER_OWNER_MAX


def wanted(url: str = "https://hooks.example/") -> commands.RegisterWebhook:
    return commands.RegisterWebhook(
        webhook_id=uuid7(), url=url, types=("job.completed",), kinds=None, secret=new_secret(), rules=Rules()
    )


async def test_the_secret_is_sealed_under_the_webhook_itself(bare_service: Service) -> None:
    command = wanted()
    receipt = await bare_service.run(commands.register_webhook, command)
    vault = bare_service.commands.vault
    assert vault is not None
    assert receipt.state.secret is not None
    assert await vault.open_one(commands.SECRET, receipt.state.secret) == command.secret
    assert receipt.state.secret.subject == await vault.subject_of(commands.person_of(receipt.stream_id))
    assert command.secret not in repr(command)
    [recorded] = await bare_service.events(receipt.stream_id)
    assert command.secret.removeprefix("whsec_").encode() not in recorded.state


async def test_a_repeat_is_one_webhook_with_one_secret(bare_service: Service) -> None:
    command, caller = wanted(), by()
    first = await bare_service.run(commands.register_webhook, command, caller)
    second = await bare_service.run(commands.register_webhook, command, caller)
    assert second.repeat
    assert second.state == first.state


async def test_one_may_have_so_many_and_at_once_no_more(bare_service: Service) -> None:
    """The counter moves with the append: however many come together."""

    async def register() -> bool:
        try:
            await bare_service.run(commands.register_webhook, wanted())
        except Invalid:
            return False
        return True

    taken = await asyncio.gather(*(register() for _ in range(PER_OWNER_MAX + 10)))
    assert sum(taken) == PER_OWNER_MAX
    other = await bare_service.run(commands.register_webhook, wanted(), by("bob"))
    delete = commands.DeleteWebhook(webhook_id=other.stream_id)
    await bare_service.run(commands.delete_webhook, delete, by("bob"))
    with pytest.raises(Invalid):
        await bare_service.run(commands.register_webhook, wanted())


async def test_a_deleted_one_makes_room_once(bare_service: Service) -> None:
    made = [await bare_service.run(commands.register_webhook, wanted()) for _ in range(PER_OWNER_MAX)]
    for _ in range(2):
        await bare_service.run(commands.delete_webhook, commands.DeleteWebhook(webhook_id=made[0].stream_id))
    await bare_service.run(commands.register_webhook, wanted())
    with pytest.raises(Invalid):
        await bare_service.run(commands.register_webhook, wanted())


async def test_a_url_is_judged_before_anything_is_said(bare_service: Service) -> None:
    command = wanted("https://127.0.0.1/")
    with pytest.raises(UrlRefused):
        await bare_service.run(commands.register_webhook, command)
    assert await bare_service.events(command.webhook_id) == []
    made = await bare_service.run(commands.register_webhook, wanted())
    change = commands.ChangeWebhook(
        webhook_id=made.stream_id, url="http://hooks.example/", types=("job.failed",), kinds=None, rules=Rules()
    )
    with pytest.raises(UrlRefused):
        await bare_service.run(commands.change_webhook, change)


async def test_a_secret_that_rotates_leaves_the_one_before_and_needs_a_webhook(bare_service: Service) -> None:
    made = await bare_service.run(commands.register_webhook, wanted())
    rotate = commands.RotateSecret(webhook_id=made.stream_id, secret=new_secret())
    rotated = await bare_service.run(commands.rotate_secret, rotate)
    assert rotated.state.previous == made.state.secret != rotated.state.secret
    nobody = uuid7()
    with pytest.raises(NotFound):
        await bare_service.run(commands.rotate_secret, commands.RotateSecret(webhook_id=nobody, secret=new_secret()))
    vault = bare_service.commands.vault
    assert vault is not None
    assert await vault.subject_of(commands.person_of(nobody)) is None, "nothing was sealed for it"


async def test_every_request_for_a_delivery_is_its_own(bare_service: Service) -> None:
    made = await bare_service.run(commands.register_webhook, wanted())
    test = commands.TestWebhook(webhook_id=made.stream_id)
    again = commands.Redeliver(webhook_id=made.stream_id, delivery_id=uuid7())
    for _ in range(2):
        await bare_service.run(commands.test_webhook, test)
        await bare_service.run(commands.redeliver, again)
    assert await bare_service.topics(made.stream_id) == ["registered", *["tested", "redelivery_requested"] * 2]
    disable = commands.DisableWebhook(webhook_id=made.stream_id)
    await bare_service.run(commands.disable_webhook, disable)
    with pytest.raises(Rejection, match="disabled"):
        await bare_service.run(commands.test_webhook, test)
    await bare_service.run(commands.enable_webhook, commands.EnableWebhook(webhook_id=made.stream_id))
    assert (await bare_service.commands.today(AGGREGATE, made.stream_id)).status == "active"
