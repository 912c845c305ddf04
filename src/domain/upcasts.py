"""Events of earlier generations, and how each becomes one of the next: the log is never rewritten, it is read anew.

A tag is a name, and from the second generation on also a number: `session.created`, `session.created.2`. Adding a
field with a default needs nothing of this. Any other change is a new generation: the class gets the next tag, and the
one that it had is put here with a function from the stored payload to the next generation's.
"""

from collections.abc import Callable, Mapping
from typing import Any

from msgspec import Struct

Payload = dict[str, Any]


class Upcast(Struct, frozen=True):
    """The way from one generation to the next.

    Attributes:
        tag: of the next generation.
        change: pure, from the payload as JSON's own types; it is given a payload of its own and may change it.
    """

    tag: str
    change: Callable[[Payload], Payload]


def _sealed_user_id(payload: Payload) -> Payload:
    """What was stored before sealing stays readable, and says that it was never sealed."""
    if payload["user_id"] is not None:
        payload["user_id"] = {"subject": None, "box": payload["user_id"]}
    return payload


UPCASTS: Mapping[str, Upcast] = {
    "session.created": Upcast("session.created.2", _sealed_user_id),
}


def name_of(tag: str) -> str:
    """The tag without its generation: what an event is called, whenever it was stored."""
    name, _, generation = tag.rpartition(".")
    return name if generation.isdecimal() else tag


def generation_of(tag: str) -> int:
    """From 1."""
    generation = tag.rpartition(".")[2]
    return int(generation) if generation.isdecimal() else 1


def generations(tag: str) -> list[str]:
    """Every tag that a reader means who says `tag`: itself, and where it is a bare name, its later generations."""
    return [tag, *(step.tag for step in UPCASTS.values() if name_of(step.tag) == tag)]


def upcast(tag: str, payload: Payload, upcasts: Mapping[str, Upcast] = UPCASTS) -> tuple[str, Payload]:
    """The last generation's tag, and the payload as it would be stored under that.

    Raises:
        KeyError, TypeError, AttributeError: the payload is not of the generation that its tag says.
    """
    for _ in upcasts:  # No chain is longer than all of them together.
        step = upcasts.get(tag)
        if step is None:
            break
        tag, payload = step.tag, step.change(payload)
    return tag, payload | {"type": tag}
