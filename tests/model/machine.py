"""The state machine: the real commands and the reference side by side, alone and at once, and what must agree.

A step is one command, executed by both. Commands that may meet on a stream and run at once are explained if *some*
order of them makes the reference say what the service said to each: that is what one log promises, and no more.
"""

import asyncio
import itertools
import sys
from collections import Counter
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import UUID

import msgspec
from hypothesis import note
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule
from msgspec import Struct
from tests.model import reference
from tests.model.programs import CREATES, KEYED, Author, Step, steps
from tests.model.real import COMMANDS, READ_MODELS, Real, of_reference, of_row, of_state, stream_id
from tests.model.reference import Row, World

from sightline.adapters.ids import uuid7
from sightline.commands.transact import Receipt
from sightline.domain import kinds
from sightline.domain.kernel import Caller, Rejection

NOON = datetime(2026, 3, 1, 12, tzinfo=UTC)
AT_ONCE_MAX = 3  # commands of which every order is tried
TRACE_MAX = 12
RULES_BETWEEN = 8  # comparisons: each costs as much as ten commands
ISSUED_KEPT = 24  # commands that may be sent again

_numbers = itertools.count(1)


class Tally(Struct):
    """What was done, for whoever asks whether it was enough."""

    steps: int = 0
    met: int = 0  # steps that ran at once with another that they could meet
    repeats: int = 0
    comparisons: int = 0
    failure: str = ""  # the first one as it was seen, should it not come again when Hypothesis tries
    done: Counter[str] = msgspec.field(default_factory=Counter)
    refused: Counter[str] = msgspec.field(default_factory=Counter)


class Issued(Struct, frozen=True, kw_only=True):
    """One command as it is given to both sides."""

    verb: str
    fields: Row
    actor: str
    now: datetime
    command_id: UUID
    digest: str
    versions: frozenset[int] | None
    side: int

    def touches(self, world: World) -> set[Any]:
        """What the decision may rest on: whoever shares none of it cannot be met."""
        found: set[Any] = {self.command_id}
        for value in self.fields.values():
            found |= {one for one in (value if isinstance(value, tuple) else (value,)) if isinstance(one, UUID)}
        slot = self.verb in {"activate_model", "roll_back_model", "archive_model"}
        if slot or world["kinds"].get(self.fields.get("kind"), (0, None))[1] is not None:
            found.add("slot")
            for row in world["slot"].values():
                found |= {row["active"], *row["previous"][-1:]}
        return found


class Machine(RuleBasedStateMachine):
    """One example: kinds, a task and ids of its own, so that one database serves them all."""

    def __init__(self, real: Real, tally: Tally) -> None:
        super().__init__()
        number = next(_numbers)
        task = f"task-{number}"
        takes = {
            f"plain-{number}": (0, None),
            f"seeing-{number}": (1, task),
            f"elsewhere-{number}": (1, f"{task}-other"),
        }
        for name, (inputs, needs) in takes.items():
            kinds.KINDS[name] = kinds.Kind(name, kinds.Noop, inputs=inputs, task=needs)
        self.real, self.tally = real, tally
        self.world = reference.new_world(takes)
        self.author = Author(self.world, task)
        self.now = NOON
        self.began = self.head = real.run(real.head())
        self.rules_since = 0  # the last comparison
        self.issued: list[Issued] = []
        self.first: dict[UUID, int] = {}  # command id → the position that its first outcome told
        self.trace: list[str] = []

    # Rules

    @initialize()
    def begin(self) -> None:
        """Something to begin with, so that examples need not be long to get somewhere."""
        verbs = ["create_session", "register_asset", "register_model", "start_sync", "complete_sync", "activate_model"]
        for verb in (*verbs, *verbs[2:], "submit_job", "submit_job"):
            self.execute([self.issue(Step(verb, 0, 0, 0, 0))])

    @rule(program=steps(8))
    def one_after_another(self, program: list[Step]) -> None:
        for step in program:
            self.execute([self.issue(step)])

    @rule(program=steps(40, least=8))
    def at_once(self, program: list[Step]) -> None:
        self.execute([self.issue(step) for step in program])

    @rule(program=steps(AT_ONCE_MAX, least=2))
    def about_the_same(self, program: list[Step]) -> None:
        """Of one noun and one thing where that can be, from both sides."""
        which = program[0].which
        self.execute([self.issue(step._replace(which=which, who=step.who + n)) for n, step in enumerate(program)])

    @rule(picks=st.binary(min_size=1, max_size=6))
    def again(self, picks: bytes) -> None:
        """Commands that were sent before, with their own ids: at once, from both sides, and some of them twice."""
        known = [self.issued[-1 - pick // 2 % len(self.issued)] for pick in picks if self.issued]
        self.execute([msgspec.structs.replace(one, side=n % 2, now=self.now) for n, one in enumerate(known)])

    @rule(pick=st.integers(0, ISSUED_KEPT), program=steps(2))
    def another_body_under_the_key(self, pick: int, program: list[Step]) -> None:
        keyed = [one for one in self.issued if one.digest and one.command_id in self.world["receipts"]]
        if keyed:
            first = keyed[-1 - pick % len(keyed)]
            for step in program:
                other = self.issue(step)
                if other.digest and self.reaches_its_stream(other):
                    self.execute([msgspec.structs.replace(other, command_id=first.command_id)])

    @rule(seconds=st.sampled_from([1, 5, 61, 3000, -30]))
    def the_clock_moves(self, seconds: int) -> None:
        self.now += timedelta(seconds=seconds)

    @rule(side=st.integers(0, 1))
    def caches_are_forgotten(self, side: int) -> None:
        self.real.forget(side)

    @invariant()
    def count_rules(self) -> None:
        self.rules_since += 1

    @precondition(lambda self: self.rules_since > RULES_BETWEEN)
    @rule()
    def compare(self) -> None:
        self.rules_since = 0
        self.real.run(self.compare_everything())

    def teardown(self) -> None:
        try:
            failure = sys.exc_info()[1]
            if failure is None:
                try:
                    self.real.run(self.compare_everything())
                except Exception as found:
                    self.note(found)
                    raise
            elif isinstance(failure, Exception):
                self.note(failure)
        finally:
            for kind in self.world["kinds"]:
                del kinds.KINDS[kind]

    def note(self, failure: Exception) -> None:
        """Keep the first failure as it was seen, and let the next example begin where this one broke off."""
        self.tally.failure = self.tally.failure or f"{type(failure).__name__}: {failure}"
        self.real.run(self.real.pass_over())

    # Steps

    def issue(self, step: Step) -> Issued:
        self.author.now = self.now
        fields = self.author.fields(step)
        keyed = step.verb in KEYED
        noun = COMMANDS[step.verb].noun
        versions = None
        if step.if_match % 16 in {14, 15} and step.verb not in CREATES:
            subject = fields["model_id" if noun == "slot" else f"{noun}_id"]
            subject = self.author.task if noun == "slot" else subject
            version = self.world[noun].get(subject, {"version": 0})["version"]
            versions = frozenset({version - step.if_match % 16 % 2})
        worker = fields.get("worker")
        one = Issued(
            verb=step.verb,
            fields=fields,
            actor=worker or ("clock" if not keyed else ["ada", "bob"][step.who % 2]),
            now=self.now,
            command_id=uuid7(),
            digest=f"digest-{next(_numbers)}" if keyed else "",
            versions=versions,
            side=step.who % 2,
        )
        self.issued = [*self.issued, one][-ISSUED_KEPT:]
        return one

    def reaches_its_stream(self, one: Issued) -> bool:
        """A body that is refused before any stream is looked at is refused as that, whatever its key was used for."""
        if one.verb == "submit_job":
            kind = self.world["kinds"].get(one.fields["kind"])
            return kind is not None and len(one.fields["inputs"]) == kind[0]
        return COMMANDS[one.verb].noun != "slot" or one.fields["model_id"] in self.world["model"]

    def execute(self, wanted: Sequence[Issued]) -> None:
        """All of them at once, as far as every order of those that may meet can be tried; the others afterwards."""
        for one in wanted:
            note(one)
        while wanted:
            groups, wanted = self.grouped(wanted)
            self.real.run(self.wave(groups))

    def grouped(self, wanted: Sequence[Issued]) -> tuple[list[list[Issued]], list[Issued]]:
        """Groups that cannot meet, of commands that may; and those that have to wait."""
        tight = any(one.fields.get("pending_max", 10_000) < 10_000 for one in wanted)
        groups: list[tuple[set[Any], list[Issued]]] = []
        waiting: list[Issued] = []
        for one in wanted:
            touches = one.touches(self.world)
            if tight and COMMANDS[one.verb].noun == "job":
                touches.add("pending")  # whether it is admitted depends on every other job that comes or goes
            met = [group for group in groups if not touches.isdisjoint(group[0])]
            others = [each for group in met for each in group[1]]
            if len(others) >= AT_ONCE_MAX or any(not touches.isdisjoint(each.touches(self.world)) for each in waiting):
                waiting.append(one)
                continue
            groups = [group for group in groups if group not in met]
            groups.append((touches.union(*(group[0] for group in met)), [*others, one]))
        return [group for _, group in groups], waiting

    async def wave(self, groups: list[list[Issued]]) -> None:
        together = [one for group in groups for one in group]
        answers = await asyncio.gather(*map(self.ask, together))
        told = dict(zip(map(id, together), answers, strict=True))
        for group in groups:
            self.explain(group, [told[id(one)] for one in group])
        self.check_positions(together, answers)

    async def ask(self, one: Issued) -> Receipt[Any] | str:
        """What the real side says: a receipt, or the code of its refusal."""
        known = COMMANDS[one.verb]
        caller = Caller(
            actor=one.actor,
            now=one.now,
            command_id=one.command_id,
            correlation_id="conformance",
            causation_id="conformance",
            request_digest=one.digest,
        )
        command = msgspec.convert(one.fields, known.fields)
        try:
            return await self.real.sides[one.side].execute(known.handler, command, caller, versions=one.versions)
        except Rejection as rejection:
            return rejection.code

    def explain(self, group: list[Issued], answers: list[Receipt[Any] | str]) -> None:
        """Find the order in which the reference gives these answers, and go on from where it leads.

        Raises:
            AssertionError: there is none.
        """
        expected: list[str] = []
        for order in itertools.permutations(range(len(group))):
            world = reference.fork(self.world)
            said = [self.differs(world, group[n], answers[n]) for n in order]
            if not any(said):
                self.count(group, answers)
                self.world.update(world)
                return
            expected += [f"in the order {order}: {one}" for one in said if one]
        asked = "\n".join(f"{one.verb} {one.fields} versions={one.versions}" for one in group)
        answered = "\n".join(map(str, answers))
        before = "\n".join(self.trace[-TRACE_MAX:])
        raise AssertionError(f"before:\n{before}\nasked:\n{asked}\nanswered:\n{answered}\n" + "\n".join(expected))

    def differs(self, world: World, one: Issued, answer: Receipt[Any] | str) -> str | None:
        """Where the reference, from `world` on, says something else."""
        noun = COMMANDS[one.verb].noun
        who: Row = {"actor": one.actor, "now": one.now, "command_id": one.command_id}
        if isinstance(answer, str) and self.is_remade(world, one):
            return None
        before = {key: row["version"] for key, row in world[noun].items()}
        try:
            noun, key, repeat = reference.execute(
                world, noun, one.verb, one.fields, **who, digest=one.digest, versions=one.versions
            )
        except reference.Refused as refusal:
            return None if refusal.code == answer else f"{one.verb} is refused: {refusal.code}"
        row = world[noun][key]
        if isinstance(answer, str):
            return f"{one.verb} is granted: {row}"
        events = 0 if repeat else row["version"] - before.get(key, 0)
        told = (answer.stream_id, answer.version, answer.repeat, len(answer.events))
        if told != (stream_id(noun, key), row["version"], repeat, events):
            return f"version {row['version']}, {events} events, repeat {repeat}: {row}"
        return unlike(of_state(noun, answer.state), row)

    def is_remade(self, world: World, one: Issued) -> bool:
        """Making again, under a new command id, what is there: nothing happens, whether that is said with the first
        outcome or, since its absence is taken for granted before the log is asked, with what it would be refused for.
        """
        noun = CREATES.get(one.verb)
        key = one.fields.get(f"{noun}_id")
        if noun is None or one.command_id in world["receipts"] or key not in world[noun]:
            return False
        absent = reference.fork(world)
        del absent[noun][key]
        try:
            reference.execute(
                absent, noun, one.verb, one.fields, actor=one.actor, now=one.now, command_id=one.command_id
            )
        except reference.Refused:
            return True
        return False

    def count(self, group: list[Issued], answers: list[Receipt[Any] | str]) -> None:
        self.tally.steps += len(group)
        self.tally.met += len(group) if len(group) > 1 else 0
        for one, answer in zip(group, answers, strict=True):
            self.trace.append(f"{one.verb} {one.fields}: {answer if isinstance(answer, str) else answer.version}")
            if isinstance(answer, str):
                self.tally.refused[answer] += 1
            elif answer.repeat:
                self.tally.repeats += 1
            else:
                self.tally.done[one.verb] += 1
        del self.trace[:-TRACE_MAX]

    def check_positions(self, together: list[Issued], answers: list[Receipt[Any] | str]) -> None:
        """What was appended lies side by side from where the log ended; a repeat is told where it was at first."""
        receipts = [(one, answer) for one, answer in zip(together, answers, strict=True) if not isinstance(answer, str)]
        said = sorted((answer.position, len(answer.events)) for _, answer in receipts if answer.events)
        before = self.head
        for position, events in said:
            assert position == self.head + events, f"position {position} after {self.head}, of {events} events"
            self.head = position
        for one, answer in receipts:
            if not answer.repeat:
                assert before <= answer.position <= self.head
                self.first[one.command_id] = answer.position
        for one, answer in receipts:
            assert answer.position == self.first[one.command_id], f"{one.verb}: its first outcome was elsewhere"

    # What must agree, whatever was done

    async def compare_everything(self) -> None:
        self.tally.comparisons += 1
        events = await self.real.events(self.began)
        assert self.began + len(events) == self.head, "the log holds what nobody was told"
        streams = self.real.fold(events)
        there = {(noun, stream_id(noun, key)): row for noun in reference.NOUNS for key, row in self.world[noun].items()}
        assert streams.keys() == there.keys(), f"streams in one place only: {streams.keys() ^ there.keys()}"
        for key, (state, version) in streams.items():
            assert version == there[key]["version"], key
            assert not (found := unlike(of_state(key[0], state), there[key])), f"the log says of {key}: {found}"
        pending, wanted = await self.real.pending(self.world["kinds"]), self.world["pending"]
        assert pending == wanted, f"the counters say {pending}, {wanted} wait"
        kept = await self.real.receipts([*self.first, *(one.command_id for one in self.issued)])
        assert kept == self.first.keys(), "a receipt without a promise, or the other way round"
        await self.real.project()
        for noun in READ_MODELS:
            ids = [stream_id(noun, key) for key in self.world[noun]]
            rows = await self.real.rows(noun, ids)
            assert rows.keys() == set(ids), f"{noun}: not the rows that there should be"
            for one, row in rows.items():
                assert not (found := unlike(of_row(noun, row), there[noun, one])), f"the row of {noun} {one}: {found}"


def unlike(found: Row, row: Row) -> str | None:
    """The names under which they differ."""
    wanted = of_reference(row)
    differing = {name: (value, wanted.get(name)) for name, value in found.items() if value != wanted.get(name)}
    return f"found and wanted: {differing}" if differing else None
