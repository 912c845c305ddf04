"""The kinds of job: what each takes is on the page, and every kind has a runner."""

import re
from pathlib import Path
from typing import Any

import msgspec
import pytest
from msgspec.structs import fields

from sightline.domain.kinds import KINDS, InvalidParameters, UnknownKind, parse
from sightline.workers.kinds import MODULES

PAGE = (Path(__file__).parents[2] / "docs" / "reference" / "kinds.md").read_text()
NEEDED: dict[str, dict[str, Any]] = {"embed": {"texts": ["a"]}}  # where not everything has a default


def told(text: str) -> dict[str, tuple[str, str]]:
    """Inputs and task of each kind, by the first table."""
    rows = re.findall(r"^\| `([a-z-]+)` \| (\d) \| (?:`([a-z-]+)` )?\|", text, re.MULTILINE)
    return {kind: (inputs, task) for kind, inputs, task in rows}


def told_parameters(text: str) -> set[tuple[str, str]]:
    rows = re.findall(r"^\| `([a-z-]+)` \| ((?:`[a-z_]+`(?:, )?)+) \|", text, re.MULTILINE)
    return {(kind, name) for kind, names in rows for name in re.findall(r"`([a-z_]+)`", names)}


def test_the_page_tells_every_kind_and_parameter() -> None:
    assert told(PAGE) == {name: (str(kind.inputs), kind.task or "") for name, kind in KINDS.items()}
    wanted = {(name, field.name) for name, kind in KINDS.items() for field in fields(kind.params)}
    assert wanted - told_parameters(PAGE) == set()
    without = PAGE.replace("| `embed` | `format` |", "| `embed` | |")
    assert wanted - told_parameters(without) == {("embed", "format")}


def test_every_kind_has_a_runner() -> None:
    assert set(MODULES) == set(KINDS)


@pytest.mark.parametrize("name", KINDS)
def test_defaults_fit_their_own_limits_and_may_be_stored(name: str) -> None:
    kind, params = parse(name, NEEDED.get(name, {}))
    stored = msgspec.to_builtins(params)
    assert parse(name, stored) == (kind, params)
    assert kind.weight(stored) >= 1


@pytest.mark.parametrize("name", KINDS)
def test_what_is_unknown_is_refused(name: str) -> None:
    with pytest.raises(InvalidParameters):
        parse(name, NEEDED.get(name, {}) | {"colour": "red"})
    with pytest.raises(UnknownKind):
        parse(f"{name}s", {})
