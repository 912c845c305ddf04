"""Models that are built for the tests, once for the run."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from sightline.adapters import minilm


@pytest.fixture(scope="session")
def minilm_path(parts_dir: Path) -> Iterator[Path]:
    """MiniLM, built from its package; its SHA-256 is `minilm.SHA256`."""
    path = parts_dir / "minilm.onnx"
    path.write_bytes(minilm.model_bytes())
    yield path
    path.unlink()
