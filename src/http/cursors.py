"""Places in the log as clients keep them: a number, and the epoch in which it means something."""

from uuid import UUID

from ..commands.transact import EpochChanged

EPOCH_CHARS = 8  # of its hexadecimal form; enough to tell the logs of one installation apart


def marked(position: int, epoch: UUID) -> str:
    """A position, or a version, as a cursor: good for as long as the log has this epoch."""
    return f"{position}@{epoch.hex[:EPOCH_CHARS]}"


def unmarked(cursor: str, epoch: UUID) -> int:
    """The number of a cursor, or a plain one, which is taken for one of any epoch.

    Raises:
        EpochChanged: it was given out before the log was restored.
    """
    number, _, mark = cursor.partition("@")
    if mark and mark != epoch.hex[:EPOCH_CHARS]:
        raise EpochChanged(f"the cursor is of epoch {mark}, and the log has epoch {epoch.hex[:EPOCH_CHARS]} now")
    return int(number)
