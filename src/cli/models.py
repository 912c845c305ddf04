"""Models on the command line: those that are built here, from weights that a package carries."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import click

from ..adapters.models import ModelCache
from ..adapters.settings import Settings
from ..commands import models as commands_
from ..commands.model_slots import ActivateModel, activate_model
from ..domain.kernel import Rejection, derived_id
from .shared import data_dir_option, open_commands, operator, parts, run_async

WITHOUT_EXTRA = "{name} is not installed, which models for texts need: run `make embed`"


@click.group()
def models() -> None:
    """Build models that do not ship with Sightline."""


@models.command("build-minilm")
@data_dir_option
def build_minilm(data_dir: Path | None) -> None:
    """Build all-MiniLM-L6-v2 from its weights, and make it the model that `embed` jobs run on.

    Its file goes into the model cache of this data directory, under the same SHA-256 each time. Doing it twice is
    doing it once.
    """
    model = _built()
    with _clear_refusals(), parts(data_dir=data_dir) as ready:
        run_async(_install(ready, model))


def _built() -> bytes:
    try:
        from ..adapters import minilm  # noqa: PLC0415  # not everybody has what it needs
    except ModuleNotFoundError as error:
        raise click.ClickException(WITHOUT_EXTRA.format(name=error.name)) from error
    try:
        return minilm.model_bytes()
    except minilm.WeightsMissing as error:
        raise click.ClickException(f"{error}: run `make embed`") from error


async def _install(ready: Settings, model: bytes) -> None:
    """Into the cache, into the log, and into use."""
    from ..adapters.minilm import NAME, REPO, SHA256, TASK  # noqa: PLC0415  # as above

    cache = ModelCache(ready.data_dir)
    cache.put_local(NAME, model)
    cache.sync(hf_repo=REPO, uri=None)  # though the log may say that it is synced: that was another machine's cache
    async with open_commands(ready) as commands:
        caller = operator()
        register = commands_.RegisterModel(
            model_id=derived_id("built-model", NAME, SHA256),
            name=NAME,
            framework="onnx",
            task=TASK,
            hf_repo=REPO,
        )
        registered = await commands.execute(commands_.register_model, register, caller)
        await commands_.sync_model(commands, cache, registered.stream_id, commands_.then(caller, "sync"))
        activate = ActivateModel(model_id=registered.stream_id)
        await commands.execute(activate_model, activate, commands_.then(caller, "activate"))
    click.echo(f"{NAME} ({SHA256}) is active for {TASK!r}: {len(model)} bytes")


@contextmanager
def _clear_refusals() -> Iterator[None]:
    try:
        yield
    except Rejection as rejection:
        raise click.ClickException(rejection.detail) from rejection
