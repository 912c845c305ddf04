"""Every style of `layer-painterly` on one page, docs/pictures/presets.png: run it again when a style has changed.

    python -m tools.build_presets_sheet

The photograph is the demo's. Each tile is the composite of four painted layers, at the default strength and seed.
"""

import tempfile
from pathlib import Path
from typing import get_args

import click
import msgspec
from PIL import Image
from tools.demo import sample_photo, tiled

from sightline.adapters import builtin
from sightline.domain.kinds import LayerPainterly, PaintingStyle
from sightline.workers.kinds import InputFile, JobInput, ModelFile, layer_painterly

TILE_PX = 252
COLUMNS = 5
COLORS = 160  # of the page's palette: grain makes full colour three times as heavy


@click.command()
@click.option("--output", type=click.Path(path_type=Path), default=Path("docs/pictures/presets.png"), show_default=True)
def main(output: Path) -> None:
    """Paint the demo's photograph in every style."""
    photo = sample_photo()
    with Image.open(photo) as image:
        tiles = [("the photo", image.convert("RGB"))]
    for style in get_args(PaintingStyle):
        tiles.append((style, painting(photo, style)))
        click.echo(f"painted: {style}")
    sheet = tiled(tiles, columns=COLUMNS, tile_px=TILE_PX)
    sheet.quantize(COLORS, dither=Image.Dither.NONE).save(output, optimize=True)
    click.echo(f"{output}: {output.stat().st_size // 1024} KiB")


def painting(photo: Path, style: PaintingStyle) -> Image.Image:
    """What the kind itself makes of it."""
    manifest = builtin.manifests()["depth-heuristic"]
    model = ModelFile(str(builtin.model_path(manifest)), manifest.sha256, msgspec.to_builtins(manifest))
    params = msgspec.to_builtins(LayerPainterly(style=style, export_layers=False))
    with tempfile.TemporaryDirectory() as directory:
        inputs = [InputFile(str(photo), "image/jpeg")]
        layer_painterly.run(JobInput("presets", "layer-painterly", params, inputs, model, directory), lambda *_: None)
        with Image.open(Path(directory) / "composite.png") as composite:
            return composite.convert("RGB")


if __name__ == "__main__":
    main()
