"""Users on the command line: what an operator can do something about is one line and exit 1."""

import asyncio
import json
from pathlib import Path
from typing import Any

import bcrypt
import psycopg
import pytest
from click.testing import CliRunner, Result
from tests.conftest_log import LogDatabase
from tests.projections.test_quarantine import project_log

from sightline.cli import main

PASSWORD = "correct horse battery staple"


class Operator:
    """Somebody at a terminal."""

    def __init__(self, dsn: str, data_dir: Path) -> None:
        self.dsn = dsn
        self.data_dir = data_dir
        self.environ = {"SIGHTLINE_DATABASE_URL": dsn, "SIGHTLINE_REDIS_URL": "redis://127.0.0.1:1"}

    def says(self, *words: str, stdin: str = f"{PASSWORD}\n", group: str = "users") -> Result:
        given = [group, *words[:1], "--data-dir", str(self.data_dir), *words[1:]]
        return CliRunner().invoke(main, given, input=stdin, env=self.environ)

    def creates(self, email: str, *more: str, stdin: str = f"{PASSWORD}\n") -> Result:
        way = () if any(one.startswith("--password") for one in more) else ("--password-stdin",)
        return self.says("create", "--email", email, "--full-name", "Ada", *way, *more, stdin=stdin)

    def events(self) -> list[tuple[str, str, dict[str, Any]]]:
        with psycopg.connect(self.dsn) as connection:
            return connection.execute(
                "SELECT topic, metadata ->> 'actor', data FROM events ORDER BY position"
            ).fetchall()


@pytest.fixture
def operator(log_database: LogDatabase, tmp_path: Path) -> Operator:
    return Operator(log_database.dsn, tmp_path)


def is_refused(result: Result, words: str) -> bool:
    lines = result.stderr.strip().splitlines()
    return result.exit_code == 1 and len(lines) == 1 and words in lines[0] and isinstance(result.exception, SystemExit)


def test_the_first_administrator_is_made(operator: Operator) -> None:
    made = operator.creates("Ada@Example.org", "--role", "ADMIN")
    assert made.exit_code == 0, made.stderr
    assert "ADMIN" in made.stdout
    assert [(topic, actor) for topic, actor, _ in operator.events()] == [
        ("user.registered", "operator"),
        ("email.claimed", "operator"),
        ("administrators.entered", "operator"),
    ]
    stored = json.dumps(operator.events(), default=str)
    for secret in (PASSWORD, "$argon2", "example.org"):
        assert secret not in stored
        assert secret not in made.stdout
    assert is_refused(operator.creates("ada@example.org"), "registered this email")


def test_a_hash_from_elsewhere_is_taken(operator: Operator) -> None:
    known = bcrypt.hashpw(PASSWORD.encode(), bcrypt.gensalt(4)).decode()
    assert operator.creates("ada@example.org", "--password-hash-stdin", stdin=f"{known}\n").exit_code == 0
    assert is_refused(operator.creates("bob@example.org", "--password-hash-stdin", stdin="5f4dcc3b\n"), "hash")


def test_users_are_helped_and_sent_away(operator: Operator) -> None:
    operator.creates("ada@example.org", "--role", "ADMIN")
    operator.creates("bob@example.org")
    helped = operator.says("set-password", "--email", "BOB@example.org", "--password-stdin", stdin="another long one\n")
    assert helped.exit_code == 0, helped.stderr
    assert is_refused(operator.says("deactivate", "--email", "ada@example.org"), "last administrator")
    assert "deactivated" in operator.says("deactivate", "--email", "bob@example.org").stdout
    late = operator.says("set-password", "--email", "bob@example.org", "--password-stdin")
    assert is_refused(late, "deactivated")
    topics = [topic for topic, _, _ in operator.events() if topic.startswith("user.")]
    assert topics == ["user.registered"] * 2 + ["user.password_set", "user.deactivated"]


def test_an_erased_user_may_be_made_anew(operator: Operator) -> None:
    operator.creates("ada@example.org", "--role", "ADMIN")
    refused = operator.says("erase", "ada@example.org", group="people")
    assert is_refused(refused, "last administrator")
    operator.creates("bob@example.org", "--role", "ADMIN")
    assert "Erased" in operator.says("erase", "ADA@example.org", group="people").stdout
    assert operator.creates("ada@example.org").exit_code == 0
    topics = [topic for topic, _, _ in operator.events()]
    assert topics.count("email.claimed") == 3
    assert topics.count("email.released") == 1


def test_users_are_listed(operator: Operator) -> None:
    assert operator.says("list").stdout == ""
    operator.creates("ada@example.org", "--role", "ADMIN")
    asyncio.run(project_log(operator.dsn))
    [line] = operator.says("list").stdout.splitlines()
    shown = json.loads(line)
    assert (shown["email"], shown["full_name"], shown["role"]) == ("ada@example.org", "Ada", "ADMIN")
    assert shown["last_login_at"] is None


def test_what_is_wrong_is_one_line(operator: Operator) -> None:
    for stdin, words in (("short\n", "12 to 1024"), ("\n", "empty"), ("ada.lovelace@example.org\n", "email")):
        assert is_refused(operator.creates("ada.lovelace@example.org", stdin=stdin), words)
    assert is_refused(operator.creates("nobody"), "one @")
    assert is_refused(operator.says("deactivate", "--email", "nobody@example.org"), "no user")
    for options in (("--password-stdin", "--password-hash-stdin"), ("--role", "ROOT")):
        assert operator.creates("ada@example.org", *options).exit_code == 2
    assert operator.says("create", "--email", "ada@example.org", "--full-name", "Ada").exit_code == 2
    assert operator.events() == []


def test_a_database_without_a_schema_is_told(empty_database: LogDatabase, tmp_path: Path) -> None:
    operator = Operator(empty_database.dsn, tmp_path)
    assert is_refused(operator.creates("ada@example.org"), "sightline migrate")
    assert is_refused(operator.says("list"), "sightline migrate")
