"""The how-to's kind, as it stands on the page: its parameters, its runner and its own test."""

import re
import sys
import textwrap
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from sightline.domain import kinds as domain
from sightline.workers import kinds

PAGE = Path(__file__).parents[2] / "docs" / "how-to" / "add-a-kind.md"
FENCES = re.compile(r"^ *```python\n(.*?)^ *```$", re.MULTILINE | re.DOTALL)
CODE_LINES_MAX = 60


def code() -> list[str]:
    return [textwrap.dedent(fence) for fence in FENCES.findall(PAGE.read_text())]


def executed(name: str, source: str, package: str) -> ModuleType:
    module = ModuleType(name)
    module.__package__ = package
    sys.modules[name] = module
    exec(compile(source, str(PAGE), "exec"), vars(module))  # our own page
    return module


@pytest.fixture
def its_test(monkeypatch: pytest.MonkeyPatch) -> Callable[[Path], None]:
    """Put the kind in its place, as the page says, for the time of one test."""
    parameters, runner, test = code()
    names = {"parameters": "invert_parameters", "runner": f"{kinds.__name__}.invert", "test": "test_kinds_invert"}
    for name in names.values():
        monkeypatch.setitem(sys.modules, name, ModuleType(name))
    struct: Any = vars(executed(names["parameters"], parameters, ""))["Invert"]
    monkeypatch.setattr(domain, "Invert", struct, raising=False)
    monkeypatch.setitem(domain.KINDS, "invert", domain.Kind("invert", struct, inputs=1))
    monkeypatch.setitem(kinds.MODULES, "invert", ".invert")
    executed(names["runner"], runner, kinds.__name__)
    found: Callable[[Path], None] = vars(executed(names["test"], test, ""))["test_black_becomes_white"]
    return found


def test_the_kind_of_the_page_works(its_test: Callable[[Path], None], tmp_path: Path) -> None:
    its_test(tmp_path)
    assert kinds.module_of("invert").run.__module__ == f"{kinds.__name__}.invert"
    kind, params = domain.parse("invert", {"max_size": 300})
    assert (kind.inputs, params) == (1, kind.params(max_size=300))
    with pytest.raises(domain.InvalidParameters):
        domain.parse("invert", {"max_size": 1})


def test_the_test_of_the_page_would_notice(
    its_test: Callable[[Path], None], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(kinds.pictures, "write_png", _as_it_was(kinds.pictures.write_png))  # type: ignore[attr-defined]  # a submodule
    with pytest.raises(AssertionError):
        its_test(tmp_path)


def _as_it_was(write: Callable[[Path, Any], None]) -> Callable[[Path, Any], None]:
    return lambda path, pixels: write(path, 255 - pixels)


def test_it_is_short() -> None:
    lines = [line for fence in code() for line in fence.splitlines() if line.strip()]
    assert len(lines) < CODE_LINES_MAX
