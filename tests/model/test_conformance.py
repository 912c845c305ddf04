"""The service and the reference, command by command; and three ways to break the service that it must find."""

import ast
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from tests.conftest_log import database
from tests.model import reference
from tests.model.machine import Tally
from tests.model.programs import VERBS
from tests.model.real import COMMANDS, Real, open_real
from tests.model.run import conform

from sightline.adapters.embedded.postgres import PostgresServer
from sightline.adapters.embedded.valkey import ValkeyServer
from sightline.commands.transaction import Transaction
from sightline.domain import attempts, sessions

STEPS = 3_000  # `make conform` takes half a million
FOUND_WITHIN_STEPS = 2_000
REFERENCE_LINES_MAX = 300
# What the reference can refuse with, and what each of its commands comes to, in so few steps.
SELDOM = {"roll_back_model", "queue_full", "empty_file", "payload_too_large", "unsupported_media_type"}


@pytest.fixture(scope="module")
def real(
    postgres_server: PostgresServer, log_template: str, valkey_server: ValkeyServer, tmp_path_factory: Any
) -> Iterator[Real]:
    """One database for all examples: each has ids, kinds and a task of its own."""
    with (
        database(postgres_server, "conformance", log_template) as log,
        open_real(log.dsn, valkey_server.url, tmp_path_factory.mktemp("conformance")) as opened,
    ):
        yield opened


def test_the_service_does_what_the_reference_says(real: Real) -> None:
    tally = conform(real, steps=STEPS)
    assert tally.failure == ""
    # Steps that never got anywhere would prove nothing.
    assert set(COMMANDS) - SELDOM <= set(tally.done)
    assert codes_of_the_reference() - SELDOM <= set(tally.refused)
    assert tally.met > STEPS / 5
    assert tally.repeats > STEPS / 100
    assert tally.comparisons > STEPS / 100


def test_no_command_is_left_out() -> None:
    assert set(VERBS) == set(COMMANDS)


def test_the_reference_can_be_read_in_one_sitting() -> None:
    assert len(source().splitlines()) <= REFERENCE_LINES_MAX
    assert "sightline" not in source().lower().replace("what sightline promises", "")  # not a line of the service's


# The controls: each switches one protection off, on the real side alone.


def without_fencing(patch: pytest.MonkeyPatch) -> None:
    """Whoever speaks about a job that runs is believed."""
    patch.setattr(attempts, "refusal", lambda job, **_: None)
    patch.setattr(attempts, "_holds", lambda job, *_: job.status == "processing")


def without_giving_back(patch: pytest.MonkeyPatch) -> None:
    """A job that waits no longer is still counted."""
    guard = Transaction.guard

    def only_up(tx: Transaction, key: str, delta: int, *more: Any) -> None:
        if delta > 0:
            guard(tx, key, delta, *more)

    patch.setattr(Transaction, "guard", only_up)


def without_the_version_check(patch: pytest.MonkeyPatch) -> None:
    """What a decision rests on, and does not write, may be as old as the cache."""
    append = Transaction.append

    def trusting(tx: Transaction, answer: Any) -> Any:
        whole = append(tx, answer)
        return type(whole)(
            command_id=whole.command_id,
            expectations=[one for one in whole.expectations if one.writes],
            events=whole.events,
            metadata=whole.metadata,
            guards=whole.guards,
            result=whole.result,
        )

    patch.setattr(Transaction, "append", trusting)


def without_an_end(patch: pytest.MonkeyPatch) -> None:
    """A session takes writes after its time, until somebody has said that it is over."""
    status_at = sessions.status_at
    patch.setattr(sessions, "status_at", lambda session, now: status_at(session, session.created_at or now))


@pytest.mark.parametrize(
    "breaking",
    [without_fencing, without_giving_back, without_the_version_check, without_an_end],
    ids=lambda one: one.__name__,
)
def test_a_service_that_breaks_its_word_is_found(
    real: Real, monkeypatch: pytest.MonkeyPatch, breaking: Callable[[pytest.MonkeyPatch], None]
) -> None:
    breaking(monkeypatch)
    tally = Tally()
    with pytest.raises(Exception) as raised:  # Hypothesis wraps it if racing commands do not race again
        conform(real, steps=FOUND_WITHIN_STEPS, shrink=False, tally=tally)
    assert tally.failure.startswith("AssertionError"), raised.value
    assert tally.steps < FOUND_WITHIN_STEPS


def source() -> str:
    return Path(reference.__file__).read_text()


def codes_of_the_reference() -> set[str]:
    """Every code that it refuses with: what `require` is called with last."""
    calls = [node for node in ast.walk(ast.parse(source())) if isinstance(node, ast.Call)]
    required = [call.args[-1] for call in calls if isinstance(call.func, ast.Name) and call.func.id == "require"]
    return {str(one.value) for one in required if isinstance(one, ast.Constant)}
