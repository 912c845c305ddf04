"""One photograph cut into layers by depth, each of them painted: oil, watercolour, pencil and so on.

Written are the same files as for `layer-photo-realistic`. The manifest says besides how it was painted: by rules and a
seeded source of chance (see `painterly_styles.py`), not by a generative model.

**The same seed gives the same bytes.** Chance comes from PCG64 streams made of the seed and the layer's number alone;
nothing depends on threads, on the time or on how wide the processor's registers are; one fixed encoder writes the PNGs.
That holds for one version of NumPy, Pillow and ONNX Runtime; the manifest and the receipt tell which those were.
"""

import numpy as np
import PIL

from ...domain.kinds import LayerPainterly
from . import JobInput, JobOutput, Progress, params_of
from .layer_photo_realistic import layered
from .layers import Mask
from .painterly_styles import painted
from .pictures import Pixels

METHOD = "rules on the picture's own light and edges, with a seeded source of chance; no generative model"


def run(job: JobInput, progress: Progress) -> JobOutput:
    """Read, measure, cut, fill, paint, write.

    Raises:
        KindFailed: as layered().
    """
    params = params_of(job, LayerPainterly)

    def paint(colors: Pixels, visible: Mask, band: int) -> Pixels:
        return painted(colors, visible, style=params.style, strength=params.strength, seed=params.seed, band=band)

    painting = {
        "style": params.style,
        "strength": params.strength,
        "seed": params.seed,
        "method": METHOD,
        "versions": {"numpy": np.__version__, "pillow": PIL.__version__},
    }
    return layered(job, params, progress, paint, told={"painting": painting})
