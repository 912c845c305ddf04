"""What a classifier sees in a picture: `inspection.json`, its labels by score.

Any ONNX classifier will do whose manifest says how it wants the picture, see Manifest; one that only judges sharpness
and exposure, by rules and not by learning, ships with Sightline. The answer says which of the two it was.
"""

from pathlib import Path
from typing import Annotated, Any, Literal

import msgspec
import numpy as np
from msgspec import Meta, Struct
from numpy.typing import NDArray
from PIL import Image

from ...adapters import onnx
from ...domain.kernel import storable
from ...domain.kinds import Inspect
from . import JobInput, JobOutput, KindFailed, OutputFile, Progress, params_of, pictures
from .pictures import Pixels
from .running import Stopwatch, manifest_of, receipt_of, session_for

READ_PX_MAX = 2048
LABEL_CHARS_MAX = 200
CLASSES_MAX = 100_000

Side = Annotated[int, Meta(ge=1, le=READ_PX_MAX)]
PerChannel = Annotated[tuple[float, ...], Meta(min_length=3, max_length=3)]
Scores = NDArray[np.float64]


class Preprocessing(Struct, frozen=True):
    """How the model wants a picture; the rest of its `preprocessing` is not looked at.

    Attributes:
        size: height and width; without it the picture comes as it is, its longer side at most `size_max`.
        fit: to a `size` of another shape: cut off what is too much, or stretch.
        crop_share: of what a cut could keep, so much is kept, around the middle (224 of 256 is 0.875).
        scale, mean, std: (pixel of 0 to 255 × scale − mean) ÷ std, for each channel in the order of `color`.
    """

    color: Literal["RGB", "BGR"] = "RGB"
    layout: Literal["NCHW", "NHWC"] = "NCHW"
    size: tuple[Side, Side] | None = None
    size_max: Side = 1024
    fit: Literal["crop", "stretch"] = "crop"
    crop_share: Annotated[float, Meta(gt=0, le=1)] = 1.0
    scale: float = 1 / 255
    mean: PerChannel = (0.0, 0.0, 0.0)
    std: PerChannel = (1.0, 1.0, 1.0)


class Postprocessing(Struct, frozen=True):
    """From what the model answers to scores of 0 to 1."""

    activation: Literal["softmax", "sigmoid", "none"] = "softmax"


class Manifest(Struct, frozen=True):
    """What a classifier's manifest must say; each part has a default.

    Attributes:
        labels: of the classes, in the order of the answer; without them a class is its number.
        label_source: `learned`, if the model was trained; else its labels are told as a heuristic's.
    """

    name: str = ""
    labels: Annotated[list[str], Meta(max_length=CLASSES_MAX)] = []
    label_source: str = ""
    preprocessing: Preprocessing = Preprocessing()
    postprocessing: Postprocessing = Postprocessing()


def run(job: JobInput, progress: Progress) -> JobOutput:
    """Read, classify, write.

    Raises:
        KindFailed: `rule_violated`, `image_undecodable`, `image_too_many_pixels`, `model_failed`, or why the model was
            refused.
    """
    params = params_of(job, Inspect)
    if len(job.inputs) != 1 or job.model is None:
        raise KindFailed("rule_violated", "one picture and one classifier are needed")
    watch = Stopwatch()
    progress(0, "loading")
    session = session_for(job.model, job.intra_op_threads)
    manifest = _manifest(manifest_of(job.model, session))
    watch.lap("model_ms")
    progress(10, "decoding")
    size_px_max = READ_PX_MAX if manifest.preprocessing.size else manifest.preprocessing.size_max
    picture, original_size = pictures.read_rgb(Path(job.inputs[0].path), size_px_max)
    watch.lap("decode_ms")
    progress(50, "classifying")
    fitted = fit(picture, manifest.preprocessing)
    scores = classify(session, fitted, manifest)
    watch.lap("infer_ms")

    found = {
        "kind": job.kind,
        "labels": ranked(scores, manifest.labels, params),
        "heuristic": manifest.label_source != "learned",
        "image": {"width_px": fitted.shape[1], "height_px": fitted.shape[0]},
        "original": {"width_px": original_size[0], "height_px": original_size[1]},
        "model": {"name": storable(manifest.name, LABEL_CHARS_MAX), "sha256": job.model.sha256},
    }
    path = Path(job.output_dir) / "inspection.json"
    path.write_bytes(msgspec.json.format(msgspec.json.encode(found), indent=2) + b"\n")
    progress(100, "done")
    return JobOutput([OutputFile(path.name, "application/json")], found, watch.laps_ms, receipt_of(session))


def fit(picture: Pixels, wanted: Preprocessing) -> Pixels:
    """The picture in the size that the model takes."""
    if wanted.size is None:
        return picture
    height, width = picture.shape[:2]
    to_height, to_width = wanted.size
    box = (0.0, 0.0, float(width), float(height))
    if wanted.fit == "crop":
        scale = min(width / to_width, height / to_height) * wanted.crop_share
        left, top = (width - to_width * scale) / 2, (height - to_height * scale) / 2
        box = (left, top, width - left, height - top)
    resized = Image.fromarray(picture).resize((to_width, to_height), Image.Resampling.BILINEAR, box=box)
    return np.asarray(resized)


def classify(session: onnx.Session, picture: Pixels, manifest: Manifest) -> Scores:
    """A score of 0 to 1 for each class.

    Raises:
        KindFailed: `model_failed`.
    """
    wanted = manifest.preprocessing
    channels = picture[..., ::-1] if wanted.color == "BGR" else picture
    mean, std = np.array(wanted.mean, np.float32), np.array(wanted.std, np.float32)
    with np.errstate(all="ignore"):  # a manifest may say 0; what is no number afterwards is refused
        values = (channels.astype(np.float32) * np.float32(wanted.scale) - mean) / std
    feed = values[None] if wanted.layout == "NHWC" else values.transpose(2, 0, 1)[None]
    try:
        answers = session.run(dict.fromkeys(session.input_names[:1], np.ascontiguousarray(feed)))
    except RuntimeError as error:
        raise KindFailed("model_failed", "the classifier failed on this picture") from error
    # A stranger's model may answer with lists, texts, dictionaries, or several things at once.
    answer = next(iter(answers.values())) if len(answers) == 1 else None
    if not isinstance(answer, np.ndarray) or answer.dtype.kind != "f" or not 0 < answer.size <= CLASSES_MAX:
        raise KindFailed("model_failed", "the classifier did not answer with one array of numbers")
    if manifest.labels and answer.size != len(manifest.labels):
        raise KindFailed("model_failed", f"{answer.size} answers of the classifier, and {len(manifest.labels)} labels")
    scores = activated(answer.ravel().astype(np.float64), manifest.postprocessing.activation)
    if not np.isfinite(scores).all() or scores.min() < 0 or scores.max() > 1:
        raise KindFailed("model_failed", "the classifier's scores are not between 0 and 1")
    return scores


def activated(answer: Scores, activation: str) -> Scores:
    with np.errstate(all="ignore"):  # as above
        if activation == "none":
            return answer
        if activation == "sigmoid":
            return np.asarray(0.5 * (1 + np.tanh(answer / 2)))
        powers = np.exp(answer - answer.max())
        return np.asarray(powers / powers.sum())


def ranked(scores: Scores, labels: list[str], params: Inspect) -> list[dict[str, Any]]:
    """The likeliest first; of the same score, in the model's order."""
    order = np.argsort(-scores, kind="stable")[: params.top_k]
    return [
        {
            "label": storable(labels[n], LABEL_CHARS_MAX) if labels else str(n),
            "score": round(float(scores[n]), 6),
        }
        for n in order
        if scores[n] >= params.score_min
    ]


def _manifest(described: dict[str, Any]) -> Manifest:
    try:
        return msgspec.convert(described, Manifest)
    except msgspec.ValidationError as error:
        raise KindFailed("model_malformed", f"the model's manifest cannot be used: {error}") from error
