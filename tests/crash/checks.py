"""What must hold after a run, each as a row with its figure; a row is red if anything broke it.

The checks ask the log, the tables and the object store, and compare with what the ledgers say was acknowledged. They
know nothing of how the run went, so that a control needs nothing but a broken part.
"""

import hashlib
from collections import Counter
from collections.abc import AsyncIterator, Iterable, Iterator, Mapping, Sequence
from datetime import timedelta
from itertools import groupby
from typing import Any
from uuid import UUID

import msgspec
import psycopg
from msgspec import Struct
from psycopg import sql
from tests.crash.ledger import APPENDED, REFUSED, REPEAT, Answer, Ledger
from tests.crash.observer import Chain, Tokens
from tests.crash.plan import EVENTS_PER_COMMAND

from sightline.adapters import postgres
from sightline.adapters.event_store.codec import EventMapper, Recorded
from sightline.adapters.ids import uuid7
from sightline.adapters.objects.port import ObjectMissing, ObjectStore
from sightline.commands import assets
from sightline.domain import jobs
from sightline.domain.assets import AssetDeleted, AssetUploaded, UploadRequested
from sightline.domain.events import EVENTS
from sightline.domain.jobs import Job, JobCompleted, JobSubmitted
from sightline.projections import catalogue, replay
from sightline.projections.folding import Fold
from sightline.projections.projection import EdgeModel, ReadModel
from sightline.workers import lifecycle
from sightline.workers.attempt import objects_prefix
from sightline.workers.janitor import Janitor

COLUMNS = "stream_id, version, topic, data, position, metadata, recorded_at"
PAGE_ROWS = 5_000
MAPPER = EventMapper(EVENTS)
EVERYTHING = sql.SQL("")


class Row(Struct, frozen=True):
    """
    Attributes:
        broken: how often the promise was broken; 0 is green.
        figure: what was looked at.
    """

    promise: str
    what: str
    broken: int
    figure: str


def connect(dsn: str) -> "psycopg.Connection[Any]":
    connection = psycopg.connect(dsn, autocommit=True)
    postgres.adapt(connection)
    return connection


def load(connection: "psycopg.Connection[Any]", ledgers: Sequence[Ledger]) -> None:
    """The ledgers as a temporary table, for all checks on this connection."""
    connection.execute(
        "CREATE TEMP TABLE acknowledged"
        " (command_id uuid, stream_id uuid, version bigint, position bigint, outcome integer)"
    )
    with connection.cursor().copy("COPY acknowledged FROM STDIN") as copy:
        for ledger in ledgers:
            for one in ledger:
                copy.write_row((one.command_id, one.stream_id, one.version, one.position, one.outcome))
    connection.execute("ANALYZE acknowledged")


def nothing_lost(connection: "psycopg.Connection[Any]", answers: Sequence[Answer]) -> Row:
    """R1. Every command that was acknowledged has its receipt and its last event just where its answer said."""
    commands = _scalar(connection, f"SELECT count(*) FROM acknowledged WHERE outcome < {REFUSED}")
    lost = _scalar(
        connection,
        "SELECT count(*) FROM acknowledged AS a LEFT JOIN receipts AS r USING (command_id)"
        " LEFT JOIN events AS e ON e.position = a.position"
        f" WHERE a.outcome < {REFUSED} AND (r.position IS DISTINCT FROM a.position"
        " OR e.stream_id IS DISTINCT FROM a.stream_id OR e.version IS DISTINCT FROM a.version)",
    )
    told = [one for one in answers if one.what == "job"]
    at = dict(
        connection.execute(
            "SELECT position, stream_id FROM events WHERE position = ANY (%s)", [[one.position for one in told]]
        ).fetchall()
    )
    lost += sum(str(at.get(one.position)) != one.id for one in told)
    uploads = {UUID(one.id) for one in answers if one.what == "asset"}
    lost += len(uploads) - _scalar(
        connection,
        "SELECT count(DISTINCT stream_id) FROM events WHERE stream_id = ANY (%s) AND topic = 'asset.scanned'",
        [list(uploads)],
    )
    events = _scalar(connection, "SELECT count(*) FROM events")
    figure = f"{commands:,} commands, {len(told):,} jobs and {len(uploads):,} uploads acknowledged, {events:,} events"
    return Row("R1", "nothing acknowledged is lost", lost, figure)


def no_false_conflict(connection: "psycopg.Connection[Any]", answers: Sequence[Answer], dropped: int) -> Row:
    """R2. A command whose answer was lost is recognised when it is sent again, and appended once."""
    outcomes = Counter(dict(connection.execute("SELECT outcome, count(*) FROM acknowledged GROUP BY 1").fetchall()))
    refused = outcomes[REFUSED] + sum(one.what == "refused" for one in answers)
    events = _scalar(connection, "SELECT count(*) FROM events WHERE stream_id IN (SELECT stream_id FROM acknowledged)")
    surplus = abs(events - (outcomes[APPENDED] + outcomes[REPEAT]) * EVENTS_PER_COMMAND)
    figure = (
        f"{dropped:,} answers to commits dropped, {outcomes[REPEAT]:,} commands recognised as repeats,"
        f" {refused} refused, {surplus} events too many or too few"
    )
    unshown = int(dropped > 0 and not outcomes[REPEAT])
    return Row("R2", "no false conflict, nothing twice", refused + surplus + unshown, figure)


def whole_and_in_order(connection: "psycopg.Connection[Any]", seen: Chain, holes: int) -> Row:
    """R3. Positions follow one another, and a reader at the log's end saw exactly the table, in order."""
    stored, gaps = Chain(), 0
    for number, (position, stream_id, version) in enumerate(_events(connection, "position, stream_id, version"), 1):
        stored.add(position, stream_id, version)
        gaps += position != number
    skipped = abs(stored.events - seen.events)
    differs = int(stored.hex() != seen.hex())
    figure = f"{stored.events:,} events, {gaps} out of place; read along: {seen.events:,}, {holes} holes met"
    return Row("R3", "no reader skips an event", gaps + holes + skipped + differs, figure)


def same_as_a_cold_replay(connection: "psycopg.Connection[Any]") -> Row:
    """R4. Every row of every read model, byte for byte, and of those that keep a history every row that ever was."""
    fold = Fold(MAPPER, catalogue.READ_MODELS, catalogue.EDGE_MODELS)
    histories = {model.name: replay.Digest() for model in catalogue.READ_MODELS if model.history}
    for row in _events(connection, COLUMNS):
        for model, made in fold.take(Recorded(*row)):
            if model.history:
                histories[model.name].add(made)
    rows, differing = 0, Counter[str]()
    models: tuple[ReadModel[Any] | EdgeModel[Any], ...] = (*catalogue.READ_MODELS, *catalogue.EDGE_MODELS)
    for one in models:
        folded: Mapping[Any, Any] = (fold.rows | fold.edges)[one.name]
        expected = {key: replay.canonical_row(row) for key, row in folded.items()}
        found = {_key(one, row): replay.canonical_row(row) for row in _rows(connection, one.name, one.row)}
        rows += len(expected)
        differing[one.name] = sum(expected.get(key) != found.get(key) for key in expected.keys() | found.keys())
    for model in catalogue.READ_MODELS:
        if model.history:
            kept = replay.Digest()
            for row in _rows(connection, f"{model.name}_history", model.row, history=True):
                kept.add(row)
            rows += kept.rows
            differs = kept.hex() != histories[model.name].hex()
            differing[f"{model.name}_history"] = differs * max(1, abs(kept.rows - histories[model.name].rows))
    wrong = ", ".join(f"{name}: {count}" for name, count in differing.items() if count)
    figure = f"{rows:,} rows of {len(differing)} read models and histories" + (f"; differing: {wrong}" if wrong else "")
    return Row("R4", "read models equal a cold replay", differing.total(), figure)


def _key(model: ReadModel[Any] | EdgeModel[Any], row: Struct) -> Any:
    if isinstance(model, ReadModel):
        return getattr(row, model.columns[0])
    return tuple(getattr(row, name) for name in model.key)


def _rows(connection: "psycopg.Connection[Any]", view: str, kind: type[Any], *, history: bool = False) -> Iterator[Any]:
    """What a view holds; of a history in the order of positions."""
    query = sql.SQL("SELECT row FROM {} ORDER BY position" if history else "SELECT to_json(t) FROM {} AS t")
    decode = msgspec.json.Decoder(kind).decode
    with connection.transaction(), connection.cursor(name="rows") as cursor:
        cursor.itersize = PAGE_ROWS
        cursor.execute(query.format(sql.Identifier(view)))
        for (text,) in cursor:
            yield decode(text)


def one_winner(connection: "psycopg.Connection[Any]", tokens: Tokens, stops: int) -> Row:
    """R5. At most one JobCompleted a job, and only by whoever held the attempt at that moment."""
    done = twice = stale = late = 0
    for before, event in _job_steps(connection):
        late += isinstance(event, jobs.LateResultRejected)
        if isinstance(event, JobCompleted):
            done += 1
            twice += before.result is not None
            stale += before.status != "processing" or (event.attempt, event.worker) != (before.attempt, before.worker)
    accepted = tokens.tried - tokens.refused
    figure = (
        f"{done:,} jobs completed, {twice} twice; {stops} workers stopped for longer than their lease during a job;"
        f" {tokens.tried:,} stale tokens tried, {tokens.refused:,} refused; {late:,} late results recorded"
    )
    unshown = int(stops > 0 and not tokens.tried)
    return Row("R5", "one winner per job", twice + stale + accepted + unshown, figure)


def no_job_stuck(connection: "psycopg.Connection[Any]", answers: Sequence[Answer], flushes: int, kills: int) -> Row:
    """R7. Whatever became of Valkey, every job that was acknowledged came to its end."""
    states = _jobs(connection)
    ended = {stream for stream, state in states.items() if jobs.is_terminal(state)}
    wanted = {UUID(one.id) for one in answers if one.what == "job"} | states.keys()
    completed = sum(state.status == "completed" for state in states.values())
    figure = f"{len(wanted):,} jobs, {completed:,} completed; Valkey flushed {flushes} and killed {kills} times"
    return Row("R7", "no job is lost or stuck", len(wanted - ended), figure)


def one_job_per_key(connection: "psycopg.Connection[Any]", answers: Sequence[Answer], duplicates: int) -> Row:
    """R9. All sendings of a request under one key were told of one job, and the log has no other."""
    told: dict[str, set[str]] = {}
    for one in answers:
        if one.what == "job":
            told.setdefault(one.key, set()).add(one.id)
    several = sum(len(ids) - 1 for ids in told.values())
    submitted = _scalar(connection, "SELECT count(*) FROM events WHERE topic = 'job.submitted'")
    figure = f"{len(told):,} keys, each sent up to {duplicates} times at once: {submitted:,} jobs"
    return Row("R9", "one job per idempotency key", several + abs(submitted - len(told)), figure)


async def leave_orphans(connection: "psycopg.Connection[Any]", services: lifecycle.Services) -> None:
    """What processes leave behind that die between the bytes and the event: kills alone make such by chance only."""
    job_id = next(iter(_jobs(connection)), uuid7())
    for key in (assets.object_key(uuid7()), objects_prefix(job_id, 99) + "a.png", objects_prefix(uuid7(), 1) + "a.png"):
        await services.objects.put(key, _nothing(), content_type="image/png", size_bytes_max=0)


async def _nothing() -> AsyncIterator[bytes]:
    yield b""


async def objects_named(
    connection: "psycopg.Connection[Any]", services: lifecycle.Services, cuts: int, janitor: Janitor | None = None
) -> Row:
    """R8. What an event names is there, byte for byte, after the janitor was told that a day has passed; and nothing
    else is.
    """
    named, sha256 = _named(connection)
    store = services.objects
    before = await _keys(store) - named
    sweeper = janitor or Janitor(services)
    moment = lifecycle.now() + timedelta(seconds=services.settings.objects_orphaned_after_s, hours=1)
    await sweeper.remove_orphans(moment)
    while not sweeper.resting:
        await sweeper.remove_orphans(moment)
    orphans = await _keys(store) - named
    wrong = [key for key, digest in sha256.items() if await _sha256(store, key) != digest]
    figure = (
        f"{len(sha256):,} objects named, {len(wrong)} absent or wrong; {cuts} uploads cut midway;"
        f" {len(before)} orphans before the janitor, {len(orphans)} after"
    )
    return Row("R8", "objects are what events say", len(orphans) + len(wrong), figure)


def _named(connection: "psycopg.Connection[Any]") -> tuple[set[str], dict[str, str]]:
    """Keys that may be there, and those that must be, with their digests."""
    requested: dict[UUID, str] = {}
    sha256: dict[UUID, dict[str, str]] = {}
    deleted: set[UUID] = set()
    for recorded in _of(connection, ("asset.%", "job.completed", "job.deleted")):
        match event := MAPPER.event(recorded):
            case UploadRequested():
                requested[recorded.stream_id] = event.object_key
            case AssetUploaded():
                sha256[recorded.stream_id] = {requested[recorded.stream_id]: event.sha256}
            case JobCompleted():
                sha256[recorded.stream_id] = {one.object_key: one.sha256 for one in event.outputs}
            case AssetDeleted() | jobs.JobDeleted():
                deleted.add(recorded.stream_id)
    must = {key: one for stream, keys in sha256.items() if stream not in deleted for key, one in keys.items()}
    may = {key for stream, key in requested.items() if stream not in deleted}
    return may | must.keys(), must


async def _keys(store: ObjectStore) -> set[str]:
    found: set[str] = set()
    after = ""
    while page := await store.list_page(after=after):
        found |= {entry.key for entry in page}
        after = page[-1].key
    return found


async def _sha256(store: ObjectStore, key: str) -> str | None:
    hashed = hashlib.sha256()
    try:
        async with store.open(key) as chunks:
            async for chunk in chunks:
                hashed.update(chunk)
    except ObjectMissing:
        return None
    return hashed.hexdigest()


def _jobs(connection: "psycopg.Connection[Any]") -> dict[UUID, Job]:
    events = list(_of(connection, ("job.%",)))
    events.sort(key=lambda one: (one.stream_id, one.originator_version))
    streams = groupby(events, lambda one: one.stream_id)
    return {stream: jobs.AGGREGATE.fold(Job(), map(MAPPER.event, own)) for stream, own in streams}


def _job_steps(connection: "psycopg.Connection[Any]") -> Iterator[tuple[Job, Any]]:
    """Every event of every job, with the state before it."""
    states: dict[UUID, Job] = {}
    for recorded in _of(connection, ("job.%",)):
        event = MAPPER.event(recorded)
        if isinstance(event, JobSubmitted):
            states[recorded.stream_id] = Job()
        before = states[recorded.stream_id]
        yield before, event
        states[recorded.stream_id] = jobs.evolve(before, event)


def _of(connection: "psycopg.Connection[Any]", topics: Sequence[str]) -> Iterable[Recorded]:
    like = sql.SQL("WHERE topic LIKE ANY ({})").format(sql.Literal(list(topics)))
    return (Recorded(*row) for row in _events(connection, COLUMNS, like))


def _events(
    connection: "psycopg.Connection[Any]", columns: str, where: sql.Composable = EVERYTHING
) -> Iterator[tuple[Any, ...]]:
    """The log, in the order of positions."""
    with connection.transaction(), connection.cursor(name="log") as cursor:
        cursor.itersize = PAGE_ROWS
        cursor.execute(sql.SQL("SELECT {} FROM events {} ORDER BY position").format(sql.SQL(columns), where))
        yield from cursor


def _scalar(connection: "psycopg.Connection[Any]", query: str, values: Sequence[Any] = ()) -> int:
    row = connection.execute(query.encode(), values).fetchone()
    assert row is not None
    return int(row[0])
