"""What one run does, all of it from its seed: rounds of load, each with the faults that hit it."""

import random
from pathlib import Path

from msgspec import Struct

from sightline.workers.clock import TICK_S

EVENTS_PER_COMMAND = 4
COMMANDS_PER_STREAM = 2
DUPLICATES = 5  # of each request under an idempotency key
LEASE_S = 1.5

# Who is killed how often, in parts of all kills; PostgreSQL with its children, or its main process alone.
VICTIMS = {
    "postgres": 5,
    "postmaster": 2,
    "api": 5,
    "worker": 4,
    "appender": 3,
    "projector": 3,
    "clock": 2,
    "valkey": 4,
}


class Size(Struct, frozen=True, kw_only=True):
    """How much there is of everything.

    Attributes:
        events: of the bulk appenders, in all; jobs and uploads come on top.
        keys_per_round: idempotency keys, each sent DUPLICATES times at once, and as many jobs.
        long_jobs_per_round: of those, the ones that run for about as long as a lease: a stopped worker shall hold one.
        stops_per_round: how many workers are stopped, one of these numbers each round.
        drops_per_round: answers to commits that the proxies lose.
    """

    kills: int
    events: int
    workers: int
    appenders: int
    keys_per_round: int
    long_jobs_per_round: int
    uploads_per_round: int
    stops_per_round: tuple[int, ...]
    drops_per_round: int
    pause_s_max: float


LONG = Size(
    kills=200,
    events=1_000_000,
    workers=8,
    appenders=2,
    keys_per_round=50,
    long_jobs_per_round=10,
    uploads_per_round=3,
    stops_per_round=(1, 2, 2),
    drops_per_round=6,
    pause_s_max=1.0,
)
SHORT = Size(
    kills=12,
    events=12_000,
    workers=3,
    appenders=2,
    keys_per_round=5,
    long_jobs_per_round=3,
    uploads_per_round=2,
    stops_per_round=(1,),
    drops_per_round=6,
    pause_s_max=0.1,
)


class Round(Struct, frozen=True, kw_only=True):
    """
    Attributes:
        victim: who is killed, once `after` of the round's events are acknowledged.
        number: which of several processes of that name.
        stopped: workers that are stopped for `stop_s`, longer than their leases, each once it is not any more, and
            than the clock takes to see it.
        flush: whether Valkey loses everything.
        quota: events that the appenders may have brought by the end of this round, all rounds before it included.
    """

    victim: str
    number: int
    after: float
    stopped: tuple[int, ...]
    stop_s: float
    flush: bool
    pause_s: float
    quota: int


class Plan(Struct, frozen=True):
    seed: int
    size: Size
    rounds: tuple[Round, ...]

    @property
    def lines(self) -> list[str]:
        """For people: one line a round."""
        return [
            f"{number:4} kill {one.victim} {one.number} after {one.after:.0%} of the events up to {one.quota}"
            + (f", stop workers {list(one.stopped)} for {one.stop_s:.1f} s" if one.stopped else "")
            + (", flush Valkey" if one.flush else "")
            for number, one in enumerate(self.rounds, 1)
        ]


def plan(seed: int, size: Size) -> Plan:
    """Every victim comes at least once where there are enough rounds, the rest as the dice fall."""
    dice = random.Random(seed)
    drawn = dice.choices(list(VICTIMS), list(VICTIMS.values()), k=max(0, size.kills - len(VICTIMS)))
    victims = [*VICTIMS, *drawn][: size.kills] if size.kills >= len(VICTIMS) else dice.sample([*VICTIMS], size.kills)
    dice.shuffle(victims)
    rounds = []
    for done, victim in enumerate(victims, 1):
        stopped = dice.sample(range(size.workers), k=dice.choice(size.stops_per_round))
        rounds.append(
            Round(
                victim=victim,
                number=dice.randrange({"worker": size.workers, "appender": size.appenders}.get(victim, 1)),
                after=dice.uniform(0.1, 0.9),
                stopped=tuple(sorted(stopped)),
                stop_s=LEASE_S * dice.uniform(1.2, 1.5) + TICK_S,
                flush=done % 3 == 1,
                pause_s=dice.uniform(0, size.pause_s_max),
                quota=size.events * done // size.kills,
            )
        )
    return Plan(seed, size, tuple(rounds))


class Gate:
    """How many rounds have begun: a file that the harness writes and the loads look at, so that either may be killed.

    Zero before the first round.
    """

    def __init__(self, directory: Path) -> None:
        self._path = directory / "round"

    def set(self, begun: int) -> None:
        fresh = self._path.with_suffix(".new")
        fresh.write_text(str(begun), encoding="ascii")
        fresh.replace(self._path)

    def get(self) -> int:
        return int(self._path.read_text(encoding="ascii"))
