"""Checking a bundle far from here: its file, the public key, and a checkpoint that somebody kept outside, if any.

The log is hashed in one process and replayed in another, so that two cores take half of the time.
"""

import gc
import multiprocessing
from contextlib import suppress
from multiprocessing.connection import Connection
from pathlib import Path
from typing import IO

from msgspec import Struct

from . import chain, content
from .chain import Chain, Progress
from .content import Content
from .format import BundleReader, BundleRefused, Manifest

ALONE_EVENTS_MAX = 20_000  # below it a second process costs more than it saves


class Report(Struct, frozen=True):
    """What was found good; what was not is a BundleRefused instead.

    Attributes:
        witnessed: whether an outside checkpoint was compared as well.
    """

    manifest: Manifest
    chain: Chain
    content: Content
    witnessed: bool

    @property
    def unsigned(self) -> int:
        """Events past the last checkpoint: nobody has signed for them yet."""
        return self.manifest.last - self.chain.signed

    def lines(self) -> list[str]:
        """For people."""
        manifest, log, found = self.manifest, self.chain, self.content
        events = manifest.last - manifest.first + 1
        told = [
            f"log          {manifest.origin}, epoch {manifest.epoch}",
            f"events       {events:,}: positions {manifest.first} to {manifest.last}, {log.streams:,} streams, no gap",
            f"checkpoints  {log.checkpoints:,}, signed and right, up to position {log.signed}",
        ]
        if self.unsigned:
            told.append(f"             positions {log.signed + 1} to {manifest.last} are not signed yet")
        told.append(f"witness      {'agrees' if self.witnessed else 'none: a log rewritten with the key would pass'}")
        if found.rows is None:
            told.append(f"read models  not included: {manifest.read_models_absent}")
            return [*told, "The bundle is right."]
        rows = ", ".join(f"{name} {count:,}" for name, count in found.rows.items())
        told.append(f"read models  as of {manifest.read_models_position}, equal to the replay: {rows}")
        if found.quarantined:
            told.append(f"             {found.quarantined:,} streams are quarantined: their rows stop where they broke")
        included = f"{found.hashed:,} included, their digests right" if manifest.with_blobs else "bytes not included"
        told.append(f"objects      {found.blobs:,} named, {found.deleted:,} deleted; {included}")
        if found.deleted_later:
            told.append(f"             {found.deleted_later:,} are said to be deleted past the end of this bundle")
        return [*told, "The bundle is right."]


def verify(
    bundle: Path | IO[bytes],
    public_key: str,
    witness: str | None = None,
    *,
    progress: Progress = lambda *_: None,
    alone: bool | None = None,
) -> Report:
    """Check everything.

    Args:
        bundle: the file.
        public_key: of the notary, as a C2SP verifier key.
        witness: a signed checkpoint kept elsewhere, its text.
        progress: told what is done, how many of it, and of how many.
        alone: do it in this process; by default a bundle of more than ALONE_EVENTS_MAX events gets a second one.

    Raises:
        BundleRefused: something is wrong; it says what, and at which position if there is one.
        OSError: the file cannot be read.
    """
    with BundleReader(bundle) as reader:
        manifest = reader.manifest
        if alone is None:
            alone = manifest.last - manifest.first < ALONE_EVENTS_MAX or manifest.read_models_position is None
        if alone or not isinstance(bundle, Path):
            chained = chain.check(reader, public_key, witness, progress)
            found = content.check(reader, progress)
        else:
            chained, found = _in_two(reader, bundle, public_key, witness, progress)
        return Report(manifest, chained, found, witness is not None)


def _in_two(
    reader: BundleReader, path: Path, public_key: str, witness: str | None, progress: Progress
) -> tuple[Chain, Content]:
    # Not a fork: whoever calls may have threads, and a progress bar is one.
    ours, theirs = multiprocessing.get_context("spawn").Pipe(duplex=False)
    child = multiprocessing.get_context("spawn").Process(target=_replay, args=(path, theirs), daemon=True)
    child.start()
    theirs.close()
    try:
        with ours:
            chained = chain.check(reader, public_key, witness, progress)
            return chained, _received(ours, progress)
    finally:
        child.kill()
        child.join()
        child.close()


def _received(pipe: Connection, progress: Progress) -> Content:
    try:
        while True:
            match pipe.recv():
                case Content() as found:
                    return found
                case BundleRefused() as refused:
                    raise refused
                case OSError() as error:
                    raise error
                case (str(what), int(done), int(of)):
                    progress(what, done, of)
    except EOFError as error:
        raise OSError("the process that replays the log died; is there memory enough?") from error


def _replay(path: Path, pipe: Connection) -> None:
    """The second process."""
    gc.disable()  # Millions of rows and no cycle: the collector would walk all of them again and again.
    with suppress(BrokenPipeError), pipe:
        try:
            with BundleReader(path) as reader:
                pipe.send(content.check(reader, lambda *said: pipe.send(said)))
        except (BundleRefused, OSError) as error:
            pipe.send(error)
