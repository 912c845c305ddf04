"""Bundles on the command line: nothing running, one file, one line where something is wrong."""

import asyncio
from pathlib import Path

import pytest
from click.testing import CliRunner, Result
from tests.conftest_log import LogDatabase
from tests.conftest_service import open_service
from tests.projections.bundle.conftest import sign

from sightline.adapters.notes import KEY_FILE, Signer
from sightline.adapters.settings import Settings
from sightline.cli import main


class Auditor:
    """Somebody at a terminal."""

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self.environ = {"SIGHTLINE_DATABASE_URL": settings.database_url, "SIGHTLINE_REDIS_URL": settings.redis_url}
        self.key = settings.data_dir / "keys" / "notary.pub"

    def says(self, *words: str | Path, **environ: str) -> Result:
        return CliRunner().invoke(main, ["audit", *map(str, words)], env=self.environ | environ)

    def export(self, out: Path, *words: str) -> Result:
        return self.says("export", "--data-dir", self.settings.data_dir, "--out", out, *words)


@pytest.fixture
def auditor(service_settings: Settings) -> Auditor:
    """Of a log that the notary signed for once, which has grown since, and beside which nothing runs now."""

    async def grow() -> None:
        async with open_service(service_settings) as service:
            await service.session()
            await sign(service_settings)
            for _ in range(5):
                await service.session()
            await service.caught_up()

    asyncio.run(grow())
    return Auditor(service_settings)


def refusal(result: Result) -> str:
    """The one line."""
    assert isinstance(result.exception, SystemExit)
    assert result.exit_code == 1
    line = result.stderr.strip().splitlines()[-1]  # those before it are the log's
    assert line.startswith("Error: ")
    return line


def test_a_log_beside_which_nothing_runs_is_signed_exported_and_found_right(auditor: Auditor, tmp_path: Path) -> None:
    out = tmp_path / "log.zip"
    exported = auditor.export(out)
    assert exported.exit_code == 0, exported.output
    assert f"Positions 1 to 6, {out.stat().st_size:,} bytes." in exported.stdout
    kept = auditor.settings.data_dir / "notary" / "last-checkpoint.note"
    for key in (auditor.key, auditor.key.read_text().strip()):
        found = auditor.says("verify", out, "--public-key", key)
        assert found.exit_code == 0, found.output
        assert "6: positions 1 to 6, 6 streams, no gap" in found.stdout
        assert "witness      none" in found.stdout
        assert "sessions 6" in found.stdout
    assert "witness      agrees" in auditor.says("verify", out, "--public-key", auditor.key, "--witness", kept).stdout
    assert list(tmp_path.glob(".*.part")) == []


def test_what_is_wrong_is_one_line(auditor: Auditor, tmp_path: Path) -> None:
    out = tmp_path / "log.zip"
    assert "are not in the log, which ends at 6" in refusal(auditor.export(out, "--to", "7"))
    assert not out.exists()
    assert auditor.export(out).exit_code == 0
    other = Signer.load(tmp_path / "keys").public_key
    assert "none of the given keys" in refusal(auditor.says("verify", out, "--public-key", other))
    assert "is too long" in refusal(auditor.says("verify", out, "--public-key", _file(tmp_path, bytes(70_000))))
    assert "is not text" in refusal(auditor.says("verify", out, "--public-key", _file(tmp_path, b"\xff")))
    assert "No such file" in refusal(auditor.says("verify", out, "--public-key", tmp_path / "absent"))
    witness = ("--witness", _file(tmp_path, b"nothing"))
    assert "the witness" in refusal(auditor.says("verify", out, "--public-key", auditor.key, *witness))
    no_bundle = _file(tmp_path, b"nothing")
    assert "not a bundle" in refusal(auditor.says("verify", no_bundle, "--public-key", auditor.key))
    cut = _file(tmp_path, out.read_bytes()[:-10])
    assert "not a bundle" in refusal(auditor.says("verify", cut, "--public-key", auditor.key))


def _file(directory: Path, content: bytes) -> Path:
    path = directory / f"given-{len(list(directory.iterdir()))}"
    path.write_bytes(content)
    return path


def test_a_log_that_was_changed_is_exported_and_the_place_is_named(
    auditor: Auditor, log_database: LogDatabase, tmp_path: Path
) -> None:
    out = tmp_path / "log.zip"
    assert auditor.export(out).exit_code == 0
    with log_database.connect(superuser=True) as connection:
        connection.execute("ALTER TABLE events DISABLE TRIGGER ALL")
        connection.execute("UPDATE events SET recorded_at = recorded_at - interval '1 day' WHERE position = 4")
    changed = auditor.export(out)
    assert changed.exit_code == 0
    assert "Nothing is signed any more" in changed.stderr
    said = refusal(auditor.says("verify", out, "--public-key", auditor.key))
    assert "position 2: the checkpoint of 6 signs another log: something from here to 6 is not as it was" in said


def test_a_data_directory_without_the_key_signs_nothing(auditor: Auditor, tmp_path: Path) -> None:
    """A key made there would be another notary, and the log's own would refuse to go on."""
    result = auditor.says("export", "--data-dir", tmp_path / "elsewhere", "--out", tmp_path / "log.zip", "--to", "1")
    assert result.exit_code == 0, result.output
    assert not (tmp_path / "elsewhere" / "keys" / KEY_FILE).exists()


def test_a_database_without_a_schema(empty_database: LogDatabase, tmp_path: Path) -> None:
    settings = Settings(data_dir=tmp_path, database_url=empty_database.dsn, redis_url="redis://127.0.0.1:1")
    assert "sightline migrate" in refusal(Auditor(settings).export(tmp_path / "log.zip"))
