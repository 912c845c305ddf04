"""One photograph cut into layers by depth, which laid over each other give it back.

Written into the output directory, all of one size:

- `Layer_1_background.png` (opaque, filled where others cover it), then one PNG with transparency for each nearer band.
  Two layers are background and foreground; three are background, midground and foreground, as the seed names them;
  the fourth and fifth lie before those and are called near_foreground and closeup.
- `composite.png`: the layers laid over each other in order, from what was really written.
- `depth_map.png`: 8-bit grey, black far, white near.
- `layer_manifest.json`: the layers with their depth ranges, coverage and files, the sizes, the parameters, the model.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
from msgspec.structs import asdict

from ...adapters import onnx
from ...domain.kinds import LayerPainterly, LayerPhotoRealistic
from . import JobInput, JobOutput, KindFailed, ModelFile, OutputFile, Progress, layers, params_of, pictures
from .layers import Bands, Depth, Mask
from .pictures import Pixels
from .running import Stopwatch, receipt_of, session_for

LAYER_NAMES = {
    2: ("background", "foreground"),
    3: ("background", "midground", "foreground"),
    4: ("background", "midground", "foreground", "near_foreground"),
    5: ("background", "midground", "foreground", "near_foreground", "closeup"),
}
DESCRIPTIONS = {
    "background": "What is farthest, opaque, continued behind everything in front of it",
    "midground": "What stands between, continued behind what is nearer",
    "foreground": "What stands before the background",
    "near_foreground": "What stands before the foreground",
    "closeup": "What is nearest",
}
UNLABELLED_SOURCE = "heuristic"  # until a model says that it was trained

# A layer's colours, where it can be seen, and its band: what is to be seen instead.
Paint = Callable[[Pixels, Mask, int], Pixels]


def run(job: JobInput, progress: Progress) -> JobOutput:
    """Read, measure, cut, fill, write.

    Raises:
        KindFailed: as layered().
    """
    return layered(job, params_of(job, LayerPhotoRealistic), progress)


def layered(
    job: JobInput,
    params: LayerPhotoRealistic | LayerPainterly,
    progress: Progress,
    paint: Paint | None = None,
    told: dict[str, Any] | None = None,
) -> JobOutput:
    """All of the above, each layer painted if it is to be; `told` is what the manifest says besides.

    Raises:
        KindFailed: `rule_violated`, `image_undecodable`, `image_too_many_pixels`, or why the model was refused.
    """
    if len(job.inputs) != 1 or job.model is None:
        raise KindFailed("rule_violated", "one picture and one depth model are needed")
    watch = Stopwatch()
    progress(0, "decoding")
    picture, original_size = pictures.read_rgb(Path(job.inputs[0].path), params.max_size)
    watch.lap("decode_ms")

    progress(10, "estimating depth")
    session = session_for(job.model, job.intra_op_threads)
    watch.lap("model_ms")
    depth = estimate(session, picture)
    watch.lap("depth_ms")

    progress(30, "cutting layers")
    bands, edges = layers.split(depth, params.num_layers)
    watch.lap("bands_ms")
    directory = Path(job.output_dir)
    outputs = write_layers(directory, picture, bands, params, progress, paint)
    pictures.write_png(directory / "depth_map.png", np.rint(depth * layers.FULL).astype(np.uint8))
    watch.lap("layers_ms")

    manifest = described(
        job, job.model, params=params, picture=picture, original_size=original_size, bands=bands, edges=edges
    ) | (told or {})
    (directory / "layer_manifest.json").write_bytes(
        msgspec.json.format(msgspec.json.encode(manifest), indent=2) + b"\n"
    )
    outputs += [
        OutputFile("depth_map.png", "image/png"),
        OutputFile("layer_manifest.json", "application/json"),
    ]
    progress(100, "done")
    return JobOutput(outputs, manifest, watch.laps_ms, receipt_of(session))


def estimate(session: onnx.Session, picture: Pixels) -> Depth:
    """Depth of each pixel, 0 far to 1 near; a model that answers beyond that is cut off there."""
    planes = np.ascontiguousarray(picture.transpose(2, 0, 1)[None]).astype(np.float32) / np.float32(layers.FULL)
    try:
        answers = session.run(dict.fromkeys(session.input_names[:1], planes))
    except RuntimeError as error:
        raise KindFailed("model_failed", "the depth model failed on this picture") from error
    # A stranger's model may answer with lists, texts, dictionaries, or several things at once.
    answer = next(iter(answers.values())) if len(answers) == 1 else None
    if not isinstance(answer, np.ndarray) or answer.dtype.kind not in "fiub":
        raise KindFailed("model_failed", "the depth model did not answer with one array of numbers")
    if answer.shape != (1, 1, *picture.shape[:2]) or not np.isfinite(answer).all():
        raise KindFailed("model_failed", f"the depth model answered {answer.shape}, not one number for each pixel")
    depth: Depth = np.clip(answer[0, 0], 0, 1).astype(np.float32)
    return depth


def write_layers(
    directory: Path,
    picture: Pixels,
    bands: Bands,
    params: LayerPhotoRealistic | LayerPainterly,
    progress: Progress,
    paint: Paint | None,
) -> list[OutputFile]:
    """Write the layers, unless they are not wanted, and their composite."""
    names = file_names(params.num_layers)
    written = []
    composite = picture
    for band, name in enumerate(names):
        progress(30 + 65 * band // len(names), f"layer {band + 1} of {len(names)}")
        alpha = layers.feathered(bands >= band, params.feather_radius)
        colors = layers.continued(picture, bands, band)
        if paint is not None:
            colors = paint(colors, alpha > 0, band)
        pixels = layers.cut(colors, alpha) if band else colors
        composite = layers.over(composite, pixels) if band else colors
        if params.export_layers:
            pictures.write_png(directory / name, pixels)
            written.append(OutputFile(name, "image/png"))
    pictures.write_png(directory / "composite.png", composite)
    return [*written, OutputFile("composite.png", "image/png")]


def file_names(num_layers: int) -> list[str]:
    return [f"Layer_{order}_{name}.png" for order, name in enumerate(LAYER_NAMES[num_layers], start=1)]


def described(
    job: JobInput,
    model: ModelFile,
    *,
    params: LayerPhotoRealistic | LayerPainterly,
    picture: Pixels,
    original_size: tuple[int, int],
    bands: Bands,
    edges: list[float],
) -> dict[str, Any]:
    """The manifest. Coverage is each band's share before feathering: over all layers it sums to 100."""
    counts = np.bincount(bands.ravel(), minlength=params.num_layers)
    listed = [
        {
            "name": name,
            "file": file if params.export_layers else None,
            "order": band + 1,
            "depth_range": [round(edges[band], 6), round(edges[band + 1], 6)],
            "description": DESCRIPTIONS[name],
            "coverage_percent": round(100 * int(counts[band]) / bands.size, 3),
            "is_opaque": band == 0,
        }
        for band, (name, file) in enumerate(
            zip(LAYER_NAMES[params.num_layers], file_names(params.num_layers), strict=True)
        )
    ]
    return {
        "kind": job.kind,
        "num_layers": params.num_layers,
        "layers": listed,
        "composite": "composite.png",
        "depth_map": "depth_map.png",
        "image": {"width_px": picture.shape[1], "height_px": picture.shape[0]},
        "original": {"width_px": original_size[0], "height_px": original_size[1]},
        "params": asdict(params),
        "depth_source": model.manifest.get("depth_source") or UNLABELLED_SOURCE,
        "model": {"name": model.manifest.get("name", ""), "sha256": model.sha256},
    }
