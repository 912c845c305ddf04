"""Erasing people: the end of a key, which no stream is told of. Whoever is a user is deactivated before, and the email
is given up, so that somebody new may register it.
"""

from collections.abc import Iterator
from contextlib import suppress
from datetime import UTC, datetime
from itertools import islice
from uuid import UUID, uuid4

import structlog
from msgspec import Struct

from ..adapters.erasures import Erasure, Erasures
from ..adapters.vault import Vault
from ..domain import emails
from ..domain.administrators import LastAdministrator
from ..domain.kernel import Caller, Invalid
from .transact import Commands
from .users import DeactivateUser, deactivate_user

REPLAYED_AT_ONCE = 1_000

log = structlog.get_logger(__name__)


class Replayed(Struct, frozen=True):
    """Attributes:
    listed: erasures on the list.
    erased: of those, the ones whose key was there again.
    kept: users of those who stay administrators, for there is no other; nobody can log in as them.
    """

    listed: int
    erased: int
    kept: int = 0


async def erase_person(
    commands: Commands, vault: Vault, erasures: Erasures, person: str, *, now: datetime
) -> list[UUID]:
    """Erase whoever was sealed as `person`, or as that email in its one form; nobody where nothing is sealed so.

    Cut off anywhere, it is done by asking again, or by replay_erasures().

    Returns:
        The subjects, which are all that is left.

    Raises:
        LastAdministrator: make another one first; nothing was erased.
        OSError: the list could not be written; nothing was erased.
        VaultLocked: the sealing key is not here, without which nobody can be found.
    """
    found = [await vault.subject_of(name) for name in _names(person)]
    subjects = [subject for subject in found if subject is not None]
    for subject in subjects:
        await _deactivate(commands, subject, now)
    for subject in subjects:
        erasures.add(Erasure(now, subject))  # First: a key must not be gone that a restored backup would bring back.
        await vault.erase([subject])
        log.info("person_erased", subject=str(subject))
    return subjects


async def replay_erasures(commands: Commands, vault: Vault, erasures: Erasures) -> Replayed:
    """Erase again, after a restore, whoever is on the list; twice is once.

    Raises:
        ErasuresDamaged: a line cannot be read; those before it were erased.
    """
    listed = erased = kept = 0
    entries: Iterator[Erasure] = iter(erasures)
    while page := list(islice(entries, REPLAYED_AT_ONCE)):
        listed += len(page)
        erased += len(await vault.erase([one.subject for one in page]))
        for one in page:
            try:
                await _deactivate(commands, one.subject, datetime.now(UTC))
            except LastAdministrator:
                kept += 1
                log.warning("erased_administrator_kept", subject=str(one.subject))
    log.info("erasures_replayed", listed=listed, erased=erased, kept=kept)
    return Replayed(listed, erased, kept)


async def _deactivate(commands: Commands, subject: UUID, now: datetime) -> None:
    """The user who is sealed as `subject`, if one is."""
    claim, _, _ = await commands.state(emails.AGGREGATE, emails.claim_id(subject), read_tail=True)
    if claim.user_id is None:
        return
    caller = Caller.of_itself("system", now=now, command_id=uuid4(), correlation_id=f"erasure:{subject}")
    await commands.execute(deactivate_user, DeactivateUser(user_id=claim.user_id, release=True), caller)


def _names(person: str) -> dict[str, None]:
    """As it was given, and as users have it."""
    names = dict.fromkeys([person])
    with suppress(Invalid):
        names[emails.normalised(person)] = None
    return names
