"""Times in queries: with a zone, and within what can be stored."""

from datetime import UTC, datetime

import pytest

from sightline.http.moments import moment_of
from sightline.http.problems import FieldsRefused


@pytest.mark.parametrize(
    ("text", "hour"),
    [
        ("2026-01-01T12:00:00Z", 12),
        ("2026-01-01T12:00:00+02:00", 10),
        ("2026-01-01T12:00:00 02:00", 10),  # the plus that nobody escaped
        ("2026-01-01T12:00:00-03:30", 15),
        ("2026-01-02T08:03:00+20:03", 12),  # PostgreSQL takes no such zone, but we do
    ],
)
def test_a_time_is_taken_and_told_in_utc(text: str, hour: int) -> None:
    moment = moment_of("at", text)
    assert moment.tzinfo is UTC
    assert moment.replace(minute=0) == datetime(2026, 1, 1, hour, tzinfo=UTC)


@pytest.mark.parametrize(
    "text",
    [
        *("", "yesterday", "0.5", "1767225600", "2026-01-01", "2026-01-01T12:00:00", "2026-13-01T00:00:00Z"),
        *("0001-01-01T00:00:00+01:00", "9999-12-31T23:59:59-01:00"),
    ],
)
def test_what_is_no_time_is_refused(text: str) -> None:
    with pytest.raises(FieldsRefused):
        moment_of("at", text)
