"""What the notary costs those who append: P1's load of 32 writers with and without `sightline notarize` beside it.

The two are taken one after the other, in an order that turns about, and compared pair by pair: what changes slowly on
the machine changes for both. How long an event stays unsigned is read from the log itself.
"""

import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path

import psycopg
from msgspec import Struct
from rich.progress import track

from sightline.adapters import postgres
from sightline.adapters.embedded.postgres import PostgresServer

from . import measure
from .measure import Cell
from .p1_append import Load, in_processes

LOAD = Load(32)
LOSS_PERCENT_MAX = 2.0
EXPOSURE_S_MAX = 1.0
CAUGHT_UP_S = 60.0

SIGNED = "SELECT coalesce(max(tree_size), 0), (SELECT coalesce(max(position), 0) FROM events) FROM notary_checkpoints"
# The first event that a checkpoint is the first to cover has waited longest for it.
EXPOSURE = """
SELECT extract(epoch FROM max(signed_at - recorded_at))::float, count(*) FROM (
    SELECT signed_at, lag(tree_size) OVER (ORDER BY tree_size) AS before FROM notary_checkpoints
) AS checkpoint JOIN events ON position = before + 1 WHERE recorded_at >= %s
"""


class Taking(Struct, frozen=True):
    """Attributes:
    share: of one core that the notary's process took; the server's part of its work is not in it.
    exposure_s: the longest that an event waited for its signature.
    """

    rate: float
    share: float = 0.0
    exposure_s: float = 0.0


@contextmanager
def notary(dsn: str, directory: Path) -> Iterator[int]:
    """A notary that has caught up; its process id."""
    environ = {"SIGHTLINE_DATABASE_URL": dsn, "SIGHTLINE_DATA_DIR": str(directory), "SIGHTLINE_REDIS_URL": "redis://-"}
    with (directory / "notary.log").open("ab") as log:
        process = subprocess.Popen(
            [sys.executable, "-m", "sightline", "notarize"], env=os.environ | environ, stdout=log, stderr=log
        )
    try:
        deadline = time.monotonic() + CAUGHT_UP_S
        with psycopg.connect(dsn, autocommit=True) as connection:
            while len(set(connection.execute(SIGNED).fetchone() or ())) > 1:
                if time.monotonic() > deadline or process.poll() is not None:
                    raise RuntimeError(f"the notary does not catch up; see {directory}/notary.log")
                time.sleep(0.05)
        yield process.pid
    finally:
        process.terminate()
        process.wait(10)


def taken(dsn: str, directory: Path, seconds: float, *, with_notary: bool) -> Taking:
    if not with_notary:
        return Taking(in_processes("ours", dsn, LOAD, seconds)[0])
    with notary(dsn, directory) as pid:
        began, cpu_s = time.monotonic(), _cpu_s(pid)
        since = datetime.now(UTC)
        rate = in_processes("ours", dsn, LOAD, seconds)[0]
        share = (_cpu_s(pid) - cpu_s) / (time.monotonic() - began)
        with psycopg.connect(dsn) as connection:
            row = connection.execute(EXPOSURE, (since,)).fetchone()
    if row is None or not row[1]:
        raise RuntimeError("the notary signed nothing meanwhile")
    return Taking(rate, share, row[0])


def _cpu_s(pid: int) -> float:
    fields = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def run(*, rounds: int, seconds: float) -> None:
    """Measure, print, and keep table and figures."""
    pairs: list[tuple[Taking, Taking]] = []
    with tempfile.TemporaryDirectory(prefix="sightline-bench-") as name, PostgresServer(Path(name)) as server:
        postgres.migrate(server.dsn)
        taken(server.dsn, Path(name), seconds, with_notary=False)  # the first one finds nothing warm
        for number in track(range(rounds), "notary"):
            order = (False, True) if number % 2 else (True, False)
            both = {one: taken(server.dsn, Path(name), seconds, with_notary=one) for one in order}
            pairs.append((both[False], both[True]))
    report(pairs, seconds=seconds)


def report(pairs: list[tuple[Taking, Taking]], *, seconds: float) -> None:
    losses = sorted(100 * (1 - beside.rate / alone.rate) for alone, beside in pairs)
    loss = statistics.median(losses)
    cells = {
        "alone": {LOAD: _cell([alone.rate for alone, _ in pairs])},
        "beside a notary": {LOAD: _cell([beside.rate for _, beside in pairs])},
    }
    exposure_s = max(beside.exposure_s for _, beside in pairs)
    share = statistics.median(beside.share for _, beside in pairs)
    measure.keep("notary", cells)
    measure.show(
        "What the notary costs 32 writers",
        ("figure", "here", "goal"),
        [
            ("appends/s alone", cells["alone"][LOAD].text, ""),
            ("appends/s beside a notary", cells["beside a notary"][LOAD].text, ""),
            (
                "lost, median of the pairs",
                f"{loss:.1f} %  ({losses[0]:.1f}–{losses[-1]:.1f})",
                f"≤ {LOSS_PERCENT_MAX} %",
            ),
            ("longest without a signature", f"{exposure_s:.2f} s", f"≤ {EXPOSURE_S_MAX} s"),
            ("the notary's share of a core", f"{share:.1%}", ""),
        ],
        "notary",
        (f"Medians (and extremes) of {len(pairs)} pairs of {seconds:g} s each, fsync and synchronous_commit on.",),
    )


def _cell(rates: list[float]) -> Cell:
    return Cell(statistics.median(rates), min(rates), max(rates))
