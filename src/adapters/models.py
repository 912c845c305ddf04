"""The model cache: a model's bytes under their own digest, verified on the way in.

What can be fetched without a network: models that ship with Sightline (`builtin:<name>`), and files that somebody
laid under `<data_dir>/models/local/` (`hf_repo` `local/<name>`; `local/demo` is the built-in depth model).
"""

import hashlib
import os
import shutil
import tempfile
from pathlib import Path

from msgspec import Struct

from . import builtin

MODEL_BYTES_MAX = 8 * 1024**3
DEMO = "demo"
DEMO_BUILTIN = "depth-heuristic"


class ModelUnavailable(Exception):
    """The bytes cannot be had; the message says why, for the model's `last_sync_error`."""


class SyncedModel(Struct, frozen=True):
    """A model in the cache; `path` is below the cache's directory."""

    sha256: str
    path: str
    size_bytes: int
    origin: str


class ModelCache:
    """Files by digest under `<data_dir>/models/sha256/`."""

    def __init__(self, data_dir: Path) -> None:
        self._root = data_dir / "models"

    @property
    def directory(self) -> Path:
        """That holds all of it."""
        return self._root

    def path(self, sha256: str) -> Path:
        return self._root / "sha256" / f"{sha256}.onnx"

    def sync(self, *, hf_repo: str | None, uri: str | None) -> SyncedModel:
        """Bring the bytes into the cache and measure them there.

        Raises:
            ModelUnavailable: the source is unknown, missing, too large, or not what its manifest says.
        """
        source, origin, expected = self._source(hf_repo, uri)
        if not source.is_file():
            raise ModelUnavailable(f"there is no file for {hf_repo or uri}")
        if source.stat().st_size > MODEL_BYTES_MAX:
            raise ModelUnavailable(f"the file is larger than {MODEL_BYTES_MAX} bytes")
        target_dir = self._root / "sha256"
        target_dir.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile(dir=target_dir, delete=False) as copy:
            try:
                with source.open("rb") as opened:
                    shutil.copyfileobj(opened, copy)
                copy.flush()
                os.fsync(copy.fileno())
                sha256 = sha256_of(Path(copy.name))
                if expected is not None and sha256 != expected:
                    raise ModelUnavailable(f"the bytes are {sha256}, the manifest says {expected}")
                Path(copy.name).replace(self.path(sha256))
            except BaseException:
                Path(copy.name).unlink(missing_ok=True)
                raise
        path = self.path(sha256)
        return SyncedModel(sha256, str(path.relative_to(self._root)), path.stat().st_size, origin)

    def put_local(self, name: str, model: bytes) -> None:
        """Lay a model where `local/<name>` looks for it, whole or not at all."""
        directory = self._root / "local"
        directory.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile(dir=directory, delete=False) as written:
            try:
                written.write(model)
                written.flush()
                os.fsync(written.fileno())
                Path(written.name).replace(directory / f"{name}.onnx")
            except BaseException:
                Path(written.name).unlink(missing_ok=True)
                raise

    def ensure(self, sha256: str) -> Path:
        """The verified file of a synced model, on this machine.

        Raises:
            ModelUnavailable: it is not in this cache, nor built in.
        """
        path = self.path(sha256)
        if path.is_file():
            return path
        for manifest in builtin.manifests().values():
            if manifest.sha256 == sha256:
                self.sync(hf_repo=None, uri=f"builtin:{manifest.name}")
                return path
        raise ModelUnavailable(f"model {sha256} is not in this worker's cache; sync it again")

    def _source(self, hf_repo: str | None, uri: str | None) -> tuple[Path, str, str | None]:
        if uri is not None and uri.startswith("builtin:"):
            return (*_builtin(uri.removeprefix("builtin:")),)
        if hf_repo is not None and hf_repo.startswith("local/"):
            name = hf_repo.removeprefix("local/")
            local = self._root / "local" / f"{name}.onnx"
            if name == DEMO and not local.exists():
                return (*_builtin(DEMO_BUILTIN),)
            return local, "cache", None
        raise ModelUnavailable(f"{hf_repo or uri} is not here, and no hub can be reached from this service")


def _builtin(name: str) -> tuple[Path, str, str]:
    manifest = builtin.manifests().get(name)
    if manifest is None:
        raise ModelUnavailable(f"no built-in model is called {name!r}")
    return builtin.model_path(manifest), "builtin", manifest.sha256


def sha256_of(path: Path) -> str:
    """The file's SHA-256, hexadecimal."""
    with path.open("rb") as opened:
        return hashlib.file_digest(opened, "sha256").hexdigest()
