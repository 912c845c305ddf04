"""Histories as they were once stored, each with the digest of what it comes to. None is edited; new ones are added.

One file per kind in `golden/`, and in `shapes.json` the fields of every event of today, with their types.
"""

import hashlib
import json
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any
from uuid import UUID

import msgspec
import msgspec.inspect
from msgspec import NODEFAULT, Struct
from msgspec.structs import fields

from sightline.adapters.event_store.codec import EventMapper, Recorded
from sightline.domain.events import AGGREGATES, EVENTS
from sightline.domain.upcasts import UPCASTS, Upcast

GOLDEN = Path(__file__).with_name("golden")
STREAM_ID = UUID(int=1)
RECORDED_AT = datetime(2026, 3, 1, 12, 0, 1, tzinfo=UTC)


class History(Struct, frozen=True, forbid_unknown_fields=True):
    """A stream.

    Attributes:
        state: digest of the aggregate's state after it.
        row: digest of its row in the read model of its kind; None where there is none.
        events: payloads; `type` is also the tag that they are stored under.
    """

    history: str
    state: str
    row: str | None
    events: list[dict[str, Any]]

    def recorded(self) -> list[Recorded]:
        """As the log returns them."""
        return [
            Recorded(STREAM_ID, number, body["type"], msgspec.json.encode(body), number, b"{}", RECORDED_AT)
            for number, body in enumerate(self.events, 1)
        ]


HISTORIES: dict[str, list[History]] = {
    kind: msgspec.json.decode((GOLDEN / f"{kind}.json").read_bytes(), type=list[History]) for kind in AGGREGATES
}
ALL = [(kind, history) for kind, histories in HISTORIES.items() for history in histories]
NAMES = [f"{kind}: {history.history}" for kind, history in ALL]
SHAPES: dict[str, Any] = json.loads((GOLDEN / "shapes.json").read_text())


def bodies() -> dict[str, list[dict[str, Any]]]:
    """All payloads by tag."""
    found: dict[str, list[dict[str, Any]]] = {}
    for _, history in ALL:
        for body in history.events:
            found.setdefault(body["type"], []).append(body)
    return found


def state_of(kind: str, history: History, upcasts: Mapping[str, Upcast] = UPCASTS) -> Any:
    aggregate = AGGREGATES[kind]
    return aggregate.fold(aggregate.initial, map(EventMapper(EVENTS, upcasts).event, history.recorded()))


def digest(value: Any) -> str:
    """Of what a value says. A field with its default says nothing: adding one changes no digest."""
    return hashlib.sha256(msgspec.json.encode(_said(value), order="deterministic")).hexdigest()


def _said(value: Any) -> Any:
    if isinstance(value, Struct):
        return {
            spec.name: _said(getattr(value, spec.name))
            for spec in fields(value)
            if getattr(value, spec.name) not in (None, _default(spec))
        }
    if isinstance(value, dict):
        return {name: _said(one) for name, one in value.items()}
    if isinstance(value, list | tuple | frozenset):
        return [_said(one) for one in (sorted(value) if isinstance(value, frozenset) else value)]
    return value


def _as_json(value: Any) -> Any:
    return msgspec.json.decode(msgspec.json.encode(value))


def _default(spec: Any) -> Any:
    if spec.default_factory is not NODEFAULT:
        return spec.default_factory()
    return None if spec.default is NODEFAULT else spec.default


def shape_of(event: type[Struct]) -> Any:
    """What is stored of an event: names, types and which of them must be there, of it and of the structs in it.

    Not msgspec's JSON schema: to that, a time without a rule about its zone is any text.
    """
    return _shape(msgspec.inspect.type_info(event))


def _shape(info: Any) -> Any:
    kind = type(info).__name__.removesuffix("Type").lower()
    match info:
        case msgspec.inspect.StructType(fields=inside):
            defaults = {one.encode_name: _as_json(_default(one)) for one in inside if not one.required}
            return {
                "fields": {one.encode_name: _shape(one.type) for one in inside},
                "required": [one.encode_name for one in inside if one.required],
                **({"defaults": defaults} if defaults else {}),
            }
        case msgspec.inspect.LiteralType(values=values):
            return {"enum": list(values)}
        case msgspec.inspect.EnumType(cls=words):
            return {"enum": [word.value for word in words]}
        case msgspec.inspect.UnionType(types=types):
            return [_shape(one) for one in types]
        case _:
            # Types inside (of a list, of a dictionary) and bounds, where there are any.
            more = {spec.name: getattr(info, spec.name) for spec in fields(info)}
            said = {name: value for name, value in more.items() if value is not None}
            inner = {
                name: _shape(value) if isinstance(value, msgspec.inspect.Type) else value
                for name, value in said.items()
            }
            return {kind: inner} if inner else kind


def broken(before: Any, now: Any, path: str = "") -> list[str]:
    """What of a shape changed that is not an added field with a default (or a word added to those that it may be)."""
    if not (isinstance(before, dict) and isinstance(now, dict)):
        return [] if before == now else [f"{path}: {before} is {now} now"]
    found = [f"{path}.{name} is gone" for name in before if name not in now]
    for name in before.keys() & now.keys():
        if name == "required":
            found += [f"{path}.{field} must be there" for field in now[name] if field not in before[name]]
        elif name == "enum":
            found += [f"{path}: {word} is no longer allowed" for word in before[name] if word not in now[name]]
        else:
            found += broken(before[name], now[name], f"{path}.{name}")
    return found


def missing(have: Mapping[str, Any], events: Mapping[str, Any], upcasts: Mapping[str, Any]) -> set[str]:
    """Tags that were ever written and of which no example is kept."""
    return {*events, *upcasts} - have.keys()
