"""The short run: a whole service under load and kills, then every check. The long one is `make crash`."""

from pathlib import Path

import pytest
from tests.crash import harness
from tests.crash.plan import SHORT, plan

SEED = 1
PROMISES = ["R1", "R2", "R3", "R4", "R5", "R7", "R8", "R9"]


async def test_nothing_breaks_while_everything_is_killed(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    report = await harness.run(plan(SEED, SHORT), tmp_path)
    with capsys.disabled():
        print(f"\nseed {report.seed}, {report.seconds} s, killed {report.kills}")
        for row in report.rows:
            print(f"{row.promise} {row.broken} {row.what}: {row.figure}")
    assert [row.promise for row in report.rows] == PROMISES
    assert report.broken == []
    assert sum(report.kills.values()) == SHORT.kills


def test_the_same_seed_is_the_same_plan() -> None:
    assert plan(7, SHORT) == plan(7, SHORT)
    assert plan(7, SHORT).rounds != plan(8, SHORT).rounds
    assert {one.victim for one in plan(7, SHORT).rounds} == {
        "postgres", "postmaster", "api", "worker", "appender", "projector", "clock", "valkey",
    }  # fmt: skip
