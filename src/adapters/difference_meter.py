"""The meter's child: `python -m sightline.adapters.difference_meter`. Decodes two files and says how far they differ.

Numbers are JSON or an array of NumPy's own format, whichever the file is. Peak signal-to-noise ratio: 10·log10(255² /
the mean of all squared channel differences), over all channels that the two have, transparency too.
"""

import math
import warnings
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
from numpy.typing import NDArray
from PIL import Image, UnidentifiedImageError

from ..domain.comparisons import CHANNEL_MAX, distance
from .confinement import CpuTime, enter
from .differences import FILE_BYTES_MAX, JSON_BYTES_MAX, OUT_OF_MEMORY, PIXELS_MAX, Measured, Question
from .image_decoder import PLUGINS

ARRAY_MAGIC = b"\x93NUMPY"
NUMBERS_PER_BLOCK = 1 << 20
ROWS_PER_BLOCK = 256
DEEP_MODES = ("I", "F")  # 16 bits and more: Pillow would cut them off


class NotComparable(Exception):
    """Why there is no distance, in words for a person."""


def measured(question: Question) -> Measured:
    """The answer to one question. MemoryError is one of them."""
    first, second = Path(question.first), Path(question.second)
    try:
        if max(path.stat().st_size for path in (first, second)) > FILE_BYTES_MAX:
            raise NotComparable(f"larger than {FILE_BYTES_MAX} bytes")
        if question.measure == "picture":
            return pictures(first, second)
        return numbers(first, second, question.unsaid)
    except NotComparable as error:
        return Measured(reason=str(error))
    except MemoryError:
        return Measured(reason=OUT_OF_MEMORY)
    except RecursionError:
        return Measured(reason="nested too deeply")


def numbers(first: Path, second: Path, unsaid: list[str]) -> Measured:
    are_arrays = [_begins_with(path, ARRAY_MAGIC) for path in (first, second)]
    if all(are_arrays):
        return Measured(distance_max=_arrays_apart(_array(first), _array(second)))
    if any(are_arrays):
        raise NotComparable("one is an array, the other is not")
    apart, reason = distance(_json(first, unsaid), _json(second, unsaid))
    return Measured(distance_max=apart, reason=reason)


def pictures(first: Path, second: Path) -> Measured:
    one, other = _pixels(first), _pixels(second)
    if one.shape != other.shape:
        raise NotComparable(f"{_size(one)} and {_size(other)} pixels")
    most, squares = 0, 0
    for row in range(0, len(one), ROWS_PER_BLOCK):
        rows = slice(row, row + ROWS_PER_BLOCK)
        apart = np.abs(one[rows].astype(np.int16) - other[rows].astype(np.int16))
        most = max(most, int(apart.max()))
        squares += int(np.square(apart.astype(np.int64)).sum())
    mean = squares / one.size
    return Measured(distance_max=float(most), psnr_db=10 * math.log10(CHANNEL_MAX**2 / mean) if mean else None)


def _arrays_apart(one: NDArray[Any], other: NDArray[Any]) -> float:
    if one.shape != other.shape:
        raise NotComparable(f"shapes {list(one.shape)} and {list(other.shape)}")
    flat, other_flat = one.reshape(-1), other.reshape(-1)
    most = 0.0
    for start in range(0, flat.size, NUMBERS_PER_BLOCK):
        block = slice(start, start + NUMBERS_PER_BLOCK)
        a, b = flat[block].astype(np.float64), other_flat[block].astype(np.float64)
        same = (a == b) | (np.isnan(a) & np.isnan(b))
        apart = np.abs(a[~same] - b[~same])
        if not np.isfinite(apart).all():
            raise NotComparable("where one is a number, the other is none, or infinite")
        most = max(most, float(apart.max(initial=0.0)))
    return most


def _array(path: Path) -> NDArray[Any]:
    """Mapped, not read. Never one of objects: to load those runs what the file says."""
    try:
        found = np.load(path, mmap_mode="r", allow_pickle=False)
    except (ValueError, OSError, EOFError, SyntaxError) as error:
        raise NotComparable("no array that we can read") from error
    if not isinstance(found, np.ndarray) or found.dtype.kind not in "fiub":
        raise NotComparable("the array holds no numbers")
    return found


def _json(path: Path, unsaid: list[str]) -> Any:
    if path.stat().st_size > JSON_BYTES_MAX:
        raise NotComparable(f"JSON of more than {JSON_BYTES_MAX} bytes")
    try:
        found = msgspec.json.decode(path.read_bytes())
    except (msgspec.MsgspecError, UnicodeDecodeError) as error:
        raise NotComparable("no JSON that we can read") from error
    return {name: value for name, value in found.items() if name not in unsaid} if isinstance(found, dict) else found


def _pixels(path: Path) -> NDArray[np.uint8]:
    """Height × width × 4: red, green, blue, opacity."""
    Image.MAX_IMAGE_PIXELS = PIXELS_MAX
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            with Image.open(path, formats=list(PLUGINS.values())) as image:
                if image.mode.startswith(DEEP_MODES):
                    raise NotComparable(f"pixels of mode {image.mode} are not compared")
                return np.asarray(image.convert("RGBA"))
    except (Image.DecompressionBombWarning, Image.DecompressionBombError) as error:
        raise NotComparable(f"more than {PIXELS_MAX} pixels") from error
    except (UnidentifiedImageError, OSError, SyntaxError, ValueError, EOFError) as error:
        raise NotComparable("no picture that we can read") from error


def _size(pixels: NDArray[np.uint8]) -> str:
    return f"{pixels.shape[1]} × {pixels.shape[0]}"


def _begins_with(path: Path, magic: bytes) -> bool:
    with path.open("rb") as file:
        return file.read(len(magic)) == magic


def main() -> None:
    """Answer until the parent closes its end, or dies."""
    Image.init()  # the plugins, before the first file waits for them
    channel = enter()
    cpu_time = CpuTime()
    for frame in channel:
        question = msgspec.msgpack.decode(frame, type=Question)
        cpu_time.allow(question.cpu_s_max)
        channel.send(msgspec.msgpack.encode(measured(question)))


if __name__ == "__main__":
    main()
