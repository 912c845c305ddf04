"""What somebody who wants another history would do to a bundle: each takes one apart, and a place at or below which
everything was witnessed.
"""

import random
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import UUID

import msgspec
from msgspec import Raw
from msgspec.structs import replace
from tests.projections.bundle.unpacked import Unpacked

from sightline.adapters.notes import Signer
from sightline.domain import sessions
from sightline.domain.events import EVENTS, tag_of
from sightline.projections.bundle.format import CheckpointLine, EventLine, exact

Forgery = Callable[[Unpacked, random.Random, int], None]


def _edited(unpacked: Unpacked, index: int, **changed: Any) -> None:
    line = unpacked.events[index]
    unpacked.events[index] = replace(line, **changed)
    assert unpacked.events[index] != line


def edit_data(unpacked: Unpacked, dice: random.Random, index: int) -> None:
    _edited(unpacked, index, data=_other_json(unpacked.events[index].data, dice))


def edit_metadata(unpacked: Unpacked, dice: random.Random, index: int) -> None:
    _edited(unpacked, index, metadata=_other_json(unpacked.events[index].metadata, dice))


def _other_json(value: Raw, dice: random.Random) -> Raw:
    """Another text: another value under a key, or only another order, or a space where none was."""
    text = exact(value)
    match dice.choice(("value", "value", "space", "order")):
        case "value":
            fields = msgspec.json.decode(text)
            name = dice.choice([name for name in fields if name != "type"])
            fields[name] = f"forged {dice.getrandbits(32)}"
            return Raw(msgspec.json.encode(fields))
        case "space":
            return Raw(text.replace(b":", b": ", 1))
        case _:
            first, *others = msgspec.json.decode(text).items()
            return Raw(msgspec.json.encode(dict([*others, first])) if others else text.replace(b"{", b"{ ", 1))


def edit_topic(unpacked: Unpacked, dice: random.Random, index: int) -> None:
    _edited(unpacked, index, topic=dice.choice([tag for tag in EVENTS if tag != unpacked.events[index].topic]))


def edit_recorded_at(unpacked: Unpacked, dice: random.Random, index: int) -> None:
    _edited(unpacked, index, recorded_at_us=unpacked.events[index].recorded_at_us + dice.choice((-1, 1, 10**9)))


def edit_version(unpacked: Unpacked, dice: random.Random, index: int) -> None:
    _edited(unpacked, index, version=unpacked.events[index].version + dice.choice((-1, 1, 7)))


def edit_stream(unpacked: Unpacked, dice: random.Random, index: int) -> None:
    others = {line.stream_id for line in unpacked.events} - {unpacked.events[index].stream_id}
    _edited(unpacked, index, stream_id=dice.choice([UUID(int=dice.getrandbits(128)), *sorted(others)]))
    if dice.random() < 0.5:
        unpacked.renumbered()


def delete(unpacked: Unpacked, dice: random.Random, index: int) -> None:
    del unpacked.events[index : index + dice.randint(1, 3)]
    if dice.random() < 0.8:
        unpacked.renumbered()


def insert(unpacked: Unpacked, dice: random.Random, index: int) -> None:
    made = dice.choice([_session(dice), dice.choice(unpacked.events)])
    unpacked.events.insert(index, replace(made, position=index + 1))
    if dice.random() < 0.8:
        unpacked.renumbered()


def reorder(unpacked: Unpacked, dice: random.Random, index: int) -> None:
    events = unpacked.events
    other = dice.choice([n for n in range(len(events)) if n != index])
    events[index], events[other] = events[other], events[index]
    if dice.random() < 0.8:
        unpacked.renumbered()


def truncate(unpacked: Unpacked, dice: random.Random, index: int) -> None:
    """The rest never was: neither events nor checkpoints."""
    del unpacked.events[index:]
    unpacked.checkpoints = [one for one in unpacked.checkpoints if one.tree_size <= index]


def rewrite(unpacked: Unpacked, dice: random.Random, index: int) -> None:
    """The tail dropped, and another one written; whoever does it signs again, see `signed_again`."""
    length = len(unpacked.events) - index + dice.randint(-5, 5)
    unpacked.events[index:] = [_session(dice) for _ in range(max(1, length))]
    unpacked.renumbered()


def _session(dice: random.Random) -> EventLine:
    """An event that the domain itself would say."""
    now = datetime(2026, 1, 1, tzinfo=UTC) + timedelta(seconds=dice.randint(0, 10**6))
    (event,) = sessions.create(sessions.Session(), owner="mallory", now=now)
    return EventLine(
        0,
        UUID(int=dice.getrandbits(128)),
        1,
        tag_of(event),
        dice.randint(1_700_000_000_000_000, 1_800_000_000_000_000),
        Raw(b'{"actor":"mallory","correlation_id":"c","causation_id":"c","command_id":"c"}'),
        Raw(msgspec.json.encode(event)),
    )


def signed_again(unpacked: Unpacked, signer: Signer) -> None:
    """All checkpoints as the notary would have signed them over these events, and one over all of them."""
    sizes = {one.tree_size for one in unpacked.checkpoints if one.tree_size <= len(unpacked.events)}
    roots = unpacked.roots()
    epoch = f"epoch {unpacked.manifest.epoch}"
    unpacked.checkpoints = [
        CheckpointLine(size, signer.sign_checkpoint(unpacked.manifest.origin, size, roots[size], [epoch]))
        for size in sorted(sizes | {len(unpacked.events)})
    ]


FORGERIES: dict[str, Forgery] = {
    one.__name__: one
    for one in (
        edit_data,
        edit_metadata,
        edit_topic,
        edit_recorded_at,
        edit_version,
        edit_stream,
        delete,
        insert,
        reorder,
        truncate,
        rewrite,
    )
}
