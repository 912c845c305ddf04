"""People on the command line: what an operator can do something about is one line and exit 1."""

import asyncio
from pathlib import Path

import pytest
from click.testing import CliRunner, Result
from tests.conftest_log import LogDatabase

from sightline.adapters import postgres
from sightline.adapters.settings import Settings
from sightline.adapters.vault import Vault
from sightline.cli import main
from sightline.domain.sealed import Sealed

FIELD = "session.user_id"


class Operator:
    """Somebody at a terminal, and the vault beside."""

    def __init__(self, dsn: str, redis_url: str, data_dir: Path) -> None:
        self.environ = {"SIGHTLINE_DATABASE_URL": dsn, "SIGHTLINE_REDIS_URL": redis_url}
        self.settings = Settings(data_dir=data_dir, database_url=dsn)

    def says(self, *words: str, stdin: str = "", **environ: str) -> Result:
        given = ["people", *words[:1], "--data-dir", str(self.settings.data_dir), *words[1:]]
        return CliRunner().invoke(main, given, input=stdin, env=self.environ | environ)

    def seal(self, text: str) -> Sealed:
        async def seal() -> Sealed:
            async with postgres.pool(self.settings.database_url) as pool:
                return await Vault.of(pool, self.settings).seal(FIELD, person=text, text=text)

        return asyncio.run(seal())

    def opens(self, sealed: Sealed) -> str | None:
        async def opened() -> str | None:
            async with postgres.pool(self.settings.database_url) as pool:
                return await Vault.of(pool, self.settings).open_one(FIELD, sealed)

        return asyncio.run(opened())


@pytest.fixture
def operator(log_database: LogDatabase, tmp_path: Path) -> Operator:
    return Operator(log_database.dsn, "redis://127.0.0.1:1", tmp_path)


def is_refused(result: Result, words: str) -> bool:
    lines = result.stderr.strip().splitlines()
    return result.exit_code == 1 and len(lines) == 1 and words in lines[0] and isinstance(result.exception, SystemExit)


def test_a_person_is_erased_by_argument_or_by_standard_input(operator: Operator) -> None:
    sealed = [operator.seal(name) for name in ("ada", "-bob", "carol c")]
    assert operator.says("erase", "ada").exit_code == 0
    said = operator.says("erase", "-", stdin="-bob\n")
    assert str(sealed[1].subject) in said.stdout
    assert "bob" not in said.stdout
    assert [operator.opens(one) for one in sealed] == [None, None, "carol c"]
    assert operator.says("erase", "ada").stdout == "Nothing is sealed for this person.\n"


def test_a_key_is_rotated_and_nothing_is_lost(operator: Operator) -> None:
    sealed = operator.seal("ada")
    assert operator.says("rotate-key").stdout == "1 keys are wrapped by the new sealing key.\n"
    assert operator.opens(sealed) == "ada"


def test_what_is_wrong_is_one_line(operator: Operator, tmp_path: Path) -> None:
    operator.seal("ada")
    keys = tmp_path / "keys"
    assert is_refused(operator.says("erase", "a\udcffb"), "surrogate")
    for given, words in (("?", "not base64"), ("AAAA", "3 bytes"), ("A" * 43 + "=", "another key")):
        assert is_refused(operator.says("erase", "ada", SIGHTLINE_SEALING_KEY=given), words)
    (keys / "erasures.jsonl").write_bytes(b"?\n")
    assert is_refused(operator.says("replay-erasures"), "line 1")
    (keys / "erasures.jsonl").unlink()
    (keys / "erasures.jsonl").mkdir()
    assert is_refused(operator.says("erase", "ada"), "erasures.jsonl")
    (keys / "sealing.key").rename(tmp_path / "lost")
    assert is_refused(operator.says("rotate-key"), "another key")


def test_a_database_without_a_vault_is_told(empty_database: LogDatabase, tmp_path: Path) -> None:
    operator = Operator(empty_database.dsn, "redis://127.0.0.1:1", tmp_path)
    assert is_refused(operator.says("erase", "ada"), "sightline migrate")


def test_the_key_is_not_in_the_log_line_of_the_settings() -> None:
    assert Settings(sealing_key="c2VjcmV0").redacted()["sealing_key"] == "…"
