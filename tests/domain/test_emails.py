"""The claim on an email: one holder, and one form of every spelling."""

from datetime import UTC, datetime
from uuid import UUID

import pytest
from hypothesis import given as drawn
from hypothesis import strategies as st
from tests.spec import given

from sightline.domain import emails
from sightline.domain.emails import AGGREGATE, EmailClaimed, EmailReleased, EmailTaken
from sightline.domain.kernel import Invalid

NOON = datetime(2026, 3, 1, 12, tzinfo=UTC)
ADA, BOB = UUID(int=1), UUID(int=2)
CLAIMED = EmailClaimed(at=NOON, user_id=ADA)


def test_an_email_is_claimed_once() -> None:
    given(AGGREGATE).when(emails.claim, holder=ADA, now=NOON).then(CLAIMED)
    given(AGGREGATE, CLAIMED).when(emails.claim, holder=ADA, now=NOON).then()
    refusal = given(AGGREGATE, CLAIMED).when(emails.claim, holder=BOB, now=NOON).refused(EmailTaken)
    assert refusal.code == "email_taken"


def test_what_is_released_may_be_claimed_by_another() -> None:
    given(AGGREGATE, CLAIMED).when(emails.release, now=NOON).then(EmailReleased(at=NOON))
    given(AGGREGATE).when(emails.release, now=NOON).then()
    released = given(AGGREGATE, CLAIMED, EmailReleased(at=NOON))
    released.when(emails.claim, holder=BOB, now=NOON).then(EmailClaimed(at=NOON, user_id=BOB))


@pytest.mark.parametrize(
    ("typed", "normal"),
    [
        ("ada@example.org", "ada@example.org"),
        (" Ada@EXAMPLE.org\n", "ada@example.org"),
        ("ａｄａ＠example．org", "ada@example.org"),
        ("STRASSE@x.de", "strasse@x.de"),
        ("Straße@x.de", "strasse@x.de"),
        ("ﬁ@x.org", "fi@x.org"),
        ("a@" + "b" * 252, "a@" + "b" * 252),
    ],
)
def test_spellings_that_people_take_for_the_same_are(typed: str, normal: str) -> None:
    assert emails.normalised(typed) == normal


NO_EMAILS = ["", "@", "a@", "@b", "ada", "a@b@c", "a b@c", "a\0@c", "a@c\r\nBcc: d@e", "a\u200b@c", "a\u202e@c"]
TOO_MUCH = ["\udc00@c", "a@" + "b" * 253, "a" * 5000 + "@c", "ﷺ" * 200 + "@c"]


@pytest.mark.parametrize("typed", [*NO_EMAILS, *TOO_MUCH], ids=range(15))
def test_what_is_no_email_is_refused(typed: str) -> None:
    with pytest.raises(Invalid):
        emails.normalised(typed)


@drawn(st.text(max_size=300) | st.builds("{}@{}".format, st.text(min_size=1), st.text(min_size=1)))
def test_a_form_is_its_own_form(typed: str) -> None:
    try:
        normal = emails.normalised(typed)
    except Invalid:
        return
    assert emails.normalised(normal) == normal
    assert len(normal) <= emails.EMAIL_CHARS_MAX
