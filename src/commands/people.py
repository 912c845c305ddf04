"""Erasing people: not a change to the log but the end of a key, so no stream is loaded and nothing is said there."""

from collections.abc import Iterator
from datetime import datetime
from itertools import islice
from uuid import UUID

import structlog
from msgspec import Struct

from ..adapters.erasures import Erasure, Erasures
from ..adapters.vault import Vault

REPLAYED_AT_ONCE = 1_000

log = structlog.get_logger(__name__)


class Replayed(Struct, frozen=True):
    """Attributes:
    listed: erasures on the list.
    erased: of those, the ones whose key was there again.
    """

    listed: int
    erased: int


async def erase_person(vault: Vault, erasures: Erasures, person: str, *, now: datetime) -> UUID | None:
    """Erase whoever was sealed as `person`; None where nothing is sealed for such a person.

    Cut off anywhere, it is done by asking again, or by replay_erasures().

    Returns:
        The subject, which is all that is left of it.

    Raises:
        OSError: the list could not be written; nothing was erased.
        VaultLocked: the sealing key is not here, without which nobody can be found.
    """
    subject = await vault.subject_of(person)
    if subject is None:
        return None
    erasures.add(Erasure(now, subject))  # First: a key must not be gone that a restored backup would bring back.
    await vault.erase([subject])
    log.info("person_erased", subject=str(subject))
    return subject


async def replay_erasures(vault: Vault, erasures: Erasures) -> Replayed:
    """Erase again, after a restore, whoever is on the list; twice is once.

    Raises:
        ErasuresDamaged: a line cannot be read; those before it were erased.
    """
    listed = erased = 0
    entries: Iterator[Erasure] = iter(erasures)
    while page := list(islice(entries, REPLAYED_AT_ONCE)):
        listed += len(page)
        erased += len(await vault.erase([one.subject for one in page]))
    log.info("erasures_replayed", listed=listed, erased=erased)
    return Replayed(listed, erased)
