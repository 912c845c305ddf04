"""The running service against its own OpenAPI document, with every check; and services that break their word, which are
found. `make fuzz` sends ten times as many requests, among them every bound that the document names.
"""

from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.conftest_log import LogDatabase
from tests.fuzz.broken import Flaw, served
from tests.fuzz.excused import EXCUSES
from tests.fuzz.run import fuzz
from tests.fuzz.service import Running, running

from sightline.adapters.embedded.valkey import ValkeyServer

CASES = 1_000  # `make fuzz` sends ten thousand
SEED = 20_261
NEVER_SUCCEED_MAX = 0.4  # the share of operations; what needs a thing of one's own is seldom met in so few
CHECKS = {
    "allow_header_conformance",
    "content_type_conformance",
    "ensure_resource_availability",
    "ignored_auth",
    "missing_required_header",
    "negative_data_rejection",
    "not_a_server_error",
    "object_level_authorization",
    "positive_data_acceptance",
    "response_headers_conformance",
    "response_schema_conformance",
    "status_code_conformance",
    "unsupported_method",
    "use_after_free",
}


@pytest.fixture
def service(log_database: LogDatabase, valkey_server: ValkeyServer, tmp_path: Path) -> Iterator[Running]:
    with running(log_database.dsn, valkey_server.url, tmp_path) as started:
        yield started


def test_the_service_does_what_its_document_says(service: Running) -> None:
    tally = fuzz(service.url, cases=CASES, seed=SEED, api_key=service.api_key, spared=service.spared, bounds=False)
    assert tally.errors == []
    assert list(tally.failures.values()) == []
    assert service.trouble() == []
    # Requests that nobody looked at, or that were all refused at the door, would prove nothing.
    assert tally.cases >= CASES
    assert set(tally.checks) == CHECKS
    assert len(tally.never_succeeded) <= NEVER_SUCCEED_MAX * len(tally.statuses)


@pytest.mark.parametrize(
    ("flaw", "checks"),
    [
        ("none", set()),
        ("raises", {"not_a_server_error", "status_code_conformance"}),
        ("lies", {"response_schema_conformance"}),
        ("takes what is forbidden", {"negative_data_rejection"}),
    ],
)
def test_a_service_that_breaks_its_word_is_found(flaw: Flaw, checks: set[str]) -> None:
    with served(flaw) as url:
        tally = fuzz(url, cases=100, seed=SEED)
    assert {check for _, check in tally.failed} >= checks
    assert bool(tally.failed) == bool(checks)
    assert tally.errors == []


def test_a_service_that_refuses_everything_is_not_taken_for_a_good_one() -> None:
    with served("refuses everything") as url:
        tally = fuzz(url, cases=100, seed=SEED)
    assert not tally.failures
    assert tally.never_succeeded == set(tally.statuses)


def test_no_excuse_is_for_a_whole_check() -> None:
    """One for all operations names refusals alone: no success, and no error of ours."""
    for excuse in EXCUSES:
        assert excuse.reason
        assert excuse.codes
        assert "internal_error" not in excuse.codes
