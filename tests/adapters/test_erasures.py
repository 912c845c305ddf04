"""The list of erasures: whole lines, in order, from several processes, and nothing skipped in silence."""

import multiprocessing
import stat
from datetime import UTC, datetime
from pathlib import Path
from uuid import UUID, uuid4

import pytest

from sightline.adapters.erasures import Erasure, Erasures, ErasuresDamaged
from sightline.adapters.settings import Settings

NOON = datetime(2026, 3, 1, 12, tzinfo=UTC)
PROCESSES, EACH = 4, 25


def entry(number: int) -> Erasure:
    return Erasure(NOON, UUID(int=number))


@pytest.fixture
def erasures(tmp_path: Path) -> Erasures:
    return Erasures(tmp_path / "keys" / "erasures.jsonl")


def test_what_is_added_is_listed(erasures: Erasures) -> None:
    assert list(erasures) == []
    for number in (1, 2):
        erasures.add(entry(number))
    assert list(erasures) == [entry(1), entry(2)]
    assert stat.S_IMODE(erasures.path.stat().st_mode) == 0o600
    assert erasures.path.read_text().splitlines()[0] == (
        '{"at":"2026-03-01T12:00:00Z","subject":"00000000-0000-0000-0000-000000000001"}'
    )


def test_it_lies_where_the_settings_say(tmp_path: Path) -> None:
    assert Erasures.of(Settings(data_dir=tmp_path)).path == tmp_path / "keys" / "erasures.jsonl"
    assert Erasures.of(Settings(erasures_path="/elsewhere/list")).path == Path("/elsewhere/list")


@pytest.mark.parametrize("cut", [1, 40, 78])
def test_a_half_line_is_of_an_erasure_that_was_cut_off(erasures: Erasures, cut: int) -> None:
    for number in (1, 2):
        erasures.add(entry(number))
    line_bytes = erasures.path.stat().st_size // 2
    with erasures.path.open("r+b") as file:
        file.truncate(2 * line_bytes - cut)
    assert list(erasures) == [entry(1)]
    erasures.add(entry(3))
    assert list(erasures) == [entry(1), entry(3)]


@pytest.mark.parametrize("line", [b"nonsense\n", b"{}\n", b"\n", b'{"at":"2026-03-01T12:00:00Z","subject":"?"}\n'])
def test_a_line_that_cannot_be_read_is_told_with_its_number(erasures: Erasures, line: bytes) -> None:
    erasures.add(entry(1))
    with erasures.path.open("ab") as file:
        file.write(line)
    erasures.add(entry(2))
    with pytest.raises(ErasuresDamaged, match="line 2"):
        list(erasures)


def add_many(path: Path) -> None:
    for _ in range(EACH):
        Erasures(path).add(Erasure(NOON, uuid4()))


def test_several_processes_add_whole_lines(erasures: Erasures) -> None:
    context = multiprocessing.get_context("spawn")
    adding = [context.Process(target=add_many, args=(erasures.path,)) for _ in range(PROCESSES)]
    for process in adding:
        process.start()
    for process in adding:
        process.join(30)
    assert [process.exitcode for process in adding] == [0] * PROCESSES
    assert len({one.subject for one in erasures}) == PROCESSES * EACH
