"""The claim on one email: whose it is, so that nobody registers it twice. Written together with the user.

free → claimed → free. The stream's id follows from the random subject under which the person is sealed: who guesses an
email cannot find it without the vault, and once the person is erased nobody can; the next to come begins a new one.
"""

import unicodedata
from datetime import datetime
from uuid import UUID

from msgspec import Struct

from .kernel import Aggregate, Invalid, Rejection, derived_id

EMAIL_CHARS_MAX = 254  # RFC 5321 §4.5.3.1.3, without the brackets

# Controls, halves of surrogate pairs, every kind of blank, and what nobody sees (zero-width characters).
_REFUSED = frozenset({"Cc", "Cf", "Cs", "Zs", "Zl", "Zp"})


# Events. A tag is stored for ever: rename the class if you must, never the tag; new fields get a default.


class EmailClaimed(Struct, frozen=True, kw_only=True, tag="email.claimed"):
    at: datetime
    user_id: UUID


class EmailReleased(Struct, frozen=True, kw_only=True, tag="email.released"):
    at: datetime


Event = EmailClaimed | EmailReleased


# State


class Email(Struct, frozen=True):
    """Attributes:
    user_id: whose it is; None: nobody's.
    """

    user_id: UUID | None = None


# Rejections


class EmailTaken(Rejection):
    code = "email_taken"


def evolve(email: Email, event: Event) -> Email:  # noqa: ARG001  # each event says all there is
    match event:
        case EmailClaimed(user_id=user_id):
            return Email(user_id)
        case EmailReleased():
            return Email()


AGGREGATE = Aggregate("email", Email(), evolve)


# Decisions


def claim(email: Email, *, holder: UUID, now: datetime) -> list[Event]:
    if email.user_id == holder:
        return []
    if email.user_id is not None:
        raise EmailTaken("somebody has registered this email")
    return [EmailClaimed(at=now, user_id=holder)]


def release(email: Email, *, now: datetime) -> list[Event]:
    if email.user_id is None:
        return []
    return [EmailReleased(at=now)]


# Questions


def claim_id(subject: UUID) -> UUID:
    """The stream of the claim on the email of the person who is sealed as `subject`."""
    return derived_id("email", subject)


def normalised(text: str) -> str:
    """The one form of all spellings of an email that mean the same to people: NFKC, casefolded, no blanks around it.

    Raises:
        Invalid: it is none. Whether anybody reads it there only a letter can tell.
    """
    email = unicodedata.normalize("NFKC", unicodedata.normalize("NFKC", text[: 4 * EMAIL_CHARS_MAX]).casefold()).strip()
    if len(email) > EMAIL_CHARS_MAX or len(text) > 4 * EMAIL_CHARS_MAX:
        raise Invalid(f"an email has at most {EMAIL_CHARS_MAX} characters")
    local, _, domain = email.partition("@")
    if not local or not domain or "@" in domain:
        raise Invalid("an email is a name, one @, and a domain")
    if any(unicodedata.category(character) in _REFUSED for character in email):
        raise Invalid("an email holds no blanks and no control characters")
    return email
