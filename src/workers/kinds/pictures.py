"""Pictures as arrays: any file that Pillow reads, as upright 8-bit RGB of bounded size; and back into PNG."""

import warnings
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps, UnidentifiedImageError

from . import KindFailed

Pixels = NDArray[np.uint8]  # height × width × channels, or height × width

# Three of zlib's nine levels: photographs gain almost nothing above it, and pay twice the time.
PNG_COMPRESSION = 3
UINT16_MAX = 65535


def read_rgb(path: Path, size_px_max: int) -> tuple[Pixels, tuple[int, int]]:
    """The first frame as a viewer shows it, and its width and height before it was shrunk.

    EXIF orientation is applied, transparency laid over white, deep greys brought to 8 bits. The longer side is at
    most `size_px_max`; a smaller picture is left as it is.

    Raises:
        KindFailed: `image_undecodable`, `image_too_many_pixels`.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            with Image.open(path) as image:
                upright = ImageOps.exif_transpose(image)
                upright.load()
    except (Image.DecompressionBombWarning, Image.DecompressionBombError) as error:
        raise KindFailed("image_too_many_pixels", str(error)) from error
    except UnidentifiedImageError as error:
        raise KindFailed("image_undecodable", "no picture that we can read") from error
    except (OSError, SyntaxError, ValueError, EOFError) as error:
        raise KindFailed("image_undecodable", f"the picture cannot be decoded: {str(error)[:200]}") from error
    original = upright.size
    return np.asarray(_shrunk(_rgb(upright), size_px_max)), original


def write_png(path: Path, pixels: Pixels) -> None:
    """Grey, RGB or RGBA by the number of channels; the same pixels give the same bytes."""
    Image.fromarray(pixels).save(path, "PNG", compress_level=PNG_COMPRESSION)


def _rgb(image: Image.Image) -> Image.Image:
    if image.mode.startswith("I") or image.mode == "F":
        return Image.fromarray(_eight_bit(image)).convert("RGB")
    if not image.has_transparency_data:
        return image.convert("RGB")
    over = image.convert("RGBA")
    white = Image.new("RGBA", over.size, "white")
    return Image.alpha_composite(white, over).convert("RGB")


def _eight_bit(image: Image.Image) -> Pixels:
    """Greys of 16 bits over their whole range; of 32 bits and floats, whose range is anybody's, over the one used."""
    values = np.nan_to_num(np.asarray(image).astype(np.float64), posinf=0.0, neginf=0.0)
    low, high = 0.0, float(UINT16_MAX)
    if image.mode == "F" or values.min() < low or values.max() > high:
        low, high = float(values.min()), float(values.max())
    scaled = (values - low) / max(high - low, np.finfo(np.float64).tiny)
    return np.rint(scaled * 255).astype(np.uint8)


def _shrunk(image: Image.Image, size_px_max: int) -> Image.Image:
    longer = max(image.size)
    if longer <= size_px_max:
        return image
    width, height = (max(1, round(side * size_px_max / longer)) for side in image.size)
    return image.resize((width, height), Image.Resampling.LANCZOS)
