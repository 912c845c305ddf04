"""Personal data as everything below the vault sees it: a box that only the person's key opens."""

from uuid import UUID

from msgspec import Struct


class Sealed(Struct, frozen=True):
    """One text about one person.

    Attributes:
        subject: the random id of the person's key; None: the text was stored before there was sealing.
        box: base64url without padding; the plain text where there is no subject.
    """

    subject: UUID | None
    box: str

    def __repr__(self) -> str:
        # A text from before sealing must not get into a log by way of a state's repr.
        return f"Sealed({self.subject}, …)"
