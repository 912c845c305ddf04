"""Keys of the service itself that are changed by a command; docs/how-to/rotate-keys.md has them all."""

import time
from contextlib import suppress
from pathlib import Path

import click

from ..adapters.objects.signing import PREVIOUS_KEY_FILE, rotate_secret
from ..adapters.settings import Settings
from ..adapters.standard_webhooks import rotate_callback_key
from .shared import clear_errors, data_dir_option, given_settings


@click.group()
def keys() -> None:
    """Change a key of the service."""


@keys.group()
def rotate() -> None:
    """Make a new key; the one until now goes on verifying."""


@rotate.command()
@data_dir_option
def objects(data_dir: Path | None) -> None:
    """Sign URLs of the directory store with a new key. API processes take it up when they start again."""
    given = given_settings(data_dir=data_dir)
    with clear_errors():
        _require_over(given)
        rotate_secret(given.data_dir / "keys")
    click.echo("There is a new key. Start the API again: it signs with the new one, and takes both.")


@rotate.command()
@data_dir_option
def callbacks(data_dir: Path | None) -> None:
    """Sign calls to callback URLs with a new key, and with the one until now beside it until the next rotation."""
    given = given_settings(data_dir=data_dir)
    with clear_errors():
        try:
            rotate_callback_key(given.data_dir / "keys")
        except ValueError as error:
            raise click.ClickException(f"{given.data_dir / 'keys'}: {error}") from error
    click.echo("There is a new key. Start the deliverer again: it signs with both; /v1/webhooks/key names both.")


def _require_over(given: Settings) -> None:
    """The key before the last one is gone after this: no URL that it signed may still be good."""
    with suppress(FileNotFoundError):
        since = (given.data_dir / "keys" / PREVIOUS_KEY_FILE).stat().st_mtime
        left_s = since + given.upload_url_expires_s - time.time()
        if left_s > 0:
            raise click.ClickException(
                f"rotated less than {given.upload_url_expires_s} s ago: URLs that the key before signed are still in"
                f" use; again in {left_s:.0f} s"
            )
