"""One photo becomes layers, and every step is an event: the main job, from outside, over HTTP.

Starts a whole service on a fresh data directory, uploads a photograph, submits the job, follows it, prints what the log
says about it, writes layers, manifest, composite and a contact sheet into demo-output/, and stops the service.
"""

import io
import mimetypes
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import click
import httpx
import numpy as np
from PIL import Image, ImageDraw, ImageFont
from rich.console import Console
from rich.progress import BarColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn
from rich.table import Table

READY_MAX_S = 60.0
JOB_MAX_S = 300.0
STOP_MAX_S = 15.0
POLL_S = 0.1
PSNR_IDENTICAL_DB = 99.0
TILE_PX = 360
CAPTION_PX = 26
CHECKER_PX = 12
OUTPUT = Path("demo-output")

console = Console()


@click.command()
@click.option(
    "--input", "photo", type=click.Path(path_type=Path, exists=True, dir_okay=False), help="A photo of yours."
)
@click.option("--layers", default=4, show_default=True, type=click.IntRange(2, 5), help="How many layers.")
def main(photo: Path | None, layers: int) -> None:
    """One photo becomes layers."""
    photo = photo or sample_photo()
    shutil.rmtree(OUTPUT, ignore_errors=True)
    OUTPUT.mkdir()
    with tempfile.TemporaryDirectory(prefix="sightline-demo-") as data_dir, service(Path(data_dir)) as client:
        asset = upload(client, photo)
        job = run_job(client, asset, layers)
        show_events(client, job)
        files = fetch(client, job)
    sheet = contact_sheet(photo, files, job)
    show_result(photo, files, job, sheet)


def sample_photo() -> Path:
    """The photograph in matplotlib's sample data: Grace Hopper, by the United States Navy, public domain."""
    import matplotlib as mpl  # noqa: PLC0415  # only the default needs it

    return Path(mpl.get_data_path()) / "sample_data" / "grace_hopper.jpg"


@contextmanager
def service(data_dir: Path) -> Iterator[httpx.Client]:
    """A whole Sightline on `data_dir` and a free port; stopped at the end, and its exit status checked."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    log_path = OUTPUT / "sightline.log"
    command = [sys.executable, "-m", "sightline", "up", "--data-dir", str(data_dir), "--port", str(port)]
    own = {name: value for name, value in os.environ.items() if not name.startswith("SIGHTLINE_")}
    with log_path.open("wb") as log:
        process = subprocess.Popen(command, stdout=log, stderr=subprocess.STDOUT, env=own)
    try:
        with httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=30) as client:
            wait_until_ready(client, process, log_path)
            yield client
    finally:
        process.send_signal(signal.SIGTERM)
        status = process.wait(STOP_MAX_S)
    if status != 0:
        raise click.ClickException(f"the service ended with {status}; see {log_path}")
    console.print("[green]✓[/] service stopped, exit status 0")


def wait_until_ready(client: httpx.Client, process: "subprocess.Popen[bytes]", log_path: Path) -> None:
    began = time.monotonic()
    with console.status("starting PostgreSQL, Valkey, API, projector, clock and a worker …"):
        while time.monotonic() - began < READY_MAX_S:
            if process.poll() is not None:
                raise click.ClickException(f"the service did not start; see {log_path}")
            try:
                if client.get("/readyz").status_code == httpx.codes.OK:
                    break
            except httpx.TransportError:
                pass
            time.sleep(POLL_S)
        else:
            raise click.ClickException(f"not ready after {READY_MAX_S} s; see {log_path}")
    console.print(f"[green]✓[/] service ready in {time.monotonic() - began:.1f} s at {client.base_url}")


def checked(answer: httpx.Response) -> Any:
    """The JSON of a good answer; of another, the problem it states."""
    if answer.is_error:
        problem = answer.json() if "json" in answer.headers.get("content-type", "") else {}
        raise click.ClickException(problem.get("detail") or f"{answer.request.url}: {answer.status_code}")
    return answer.json()


def upload(client: httpx.Client, photo: Path) -> dict[str, Any]:
    """Announce, send, complete; the service looks into the bytes before it calls them clean."""
    body = photo.read_bytes()
    content_type = mimetypes.guess_type(photo.name)[0] or "application/octet-stream"
    announced = {"filename": photo.name, "content_type": content_type, "size_bytes": len(body), "purpose": "image"}
    asset: dict[str, Any] = checked(client.post("/v1/assets", json=announced))
    signed = asset["upload"]
    sent = client.request(signed["method"], signed["url"], headers=signed["headers"], content=body)
    if sent.is_error:
        raise click.ClickException(f"the upload was refused: {sent.text}")
    clean: dict[str, Any] = checked(client.post(f"/v1/assets/{asset['id']}/complete"))
    console.print(f"[green]✓[/] {photo.name} uploaded, scanned: {clean['status']}, {clean['sha256'][:12]}…")
    return clean


def run_job(client: httpx.Client, asset: dict[str, Any], layers: int) -> dict[str, Any]:
    """Submit and follow it to its end."""
    wanted = {"kind": "layer-photo-realistic", "inputs": [asset["id"]], "params": {"num_layers": layers}}
    submitted = client.post("/v1/jobs", json=wanted)
    job: dict[str, Any] = checked(submitted)
    position = submitted.headers["Event-Position"]
    columns = (SpinnerColumn(), TextColumn("{task.description}"), BarColumn(), TimeElapsedColumn())
    with Progress(*columns, console=console) as progress:
        task = progress.add_task("job", total=100)
        ends = time.monotonic() + JOB_MAX_S
        while time.monotonic() < ends:
            # What was just said must be in the answer: wait for its position, not for some time.
            headers = {"Min-Position": position, "Prefer": "wait=5"}
            job = checked(client.get(f"/v1/jobs/{job['id']}", headers=headers))
            progress.update(task, completed=job["progress"], description=f"{job['status']}: {job['message'] or '…'}")
            if job["status"] not in {"pending", "processing"}:
                break
            time.sleep(POLL_S)
    if job["status"] != "completed":
        raise click.ClickException(f"the job is {job['status']}: {job.get('error_message')}")
    return job


def show_events(client: httpx.Client, job: dict[str, Any]) -> None:
    """The job's stream as the log has it: where, what, who, and because of what."""
    history = checked(client.get(f"/v1/jobs/{job['id']}/history"))
    table = Table(title=f"job {job['id']}: its events")
    for column in ("position", "version", "event", "actor", "caused by"):
        table.add_column(column, justify="right" if column in {"position", "version"} else "left")
    for event in history["items"]:
        row = (str(event["position"]), str(event["version"]), event["type"])
        table.add_row(*row, event["actor"][:26], event["causation_id"][:34])
    console.print(table)


def fetch(client: httpx.Client, job: dict[str, Any]) -> dict[str, Path]:
    """Every output, by name."""
    files: dict[str, Path] = {}
    for artifact in checked(client.get(f"/v1/jobs/{job['id']}/artifacts"))["items"]:
        answer = client.get(artifact["url"], follow_redirects=True)
        answer.raise_for_status()
        files[artifact["name"]] = OUTPUT / artifact["name"]
        files[artifact["name"]].write_bytes(answer.content)
    return files


def layer_files(files: dict[str, Path]) -> list[Path]:
    return [files[name] for name in sorted(files) if name.startswith("Layer_")]


def recomposed(layers: list[Path]) -> Image.Image:
    """The layers laid over one another, as any picture editor would."""
    canvas = Image.open(layers[0]).convert("RGBA")
    for layer in layers[1:]:
        canvas = Image.alpha_composite(canvas, Image.open(layer).convert("RGBA"))
    return canvas.convert("RGB")


def psnr_db(one: Image.Image, other: Image.Image) -> float:
    """Peak signal to noise of two pictures of one size, 8 bits a channel."""
    difference = np.asarray(one, np.float64) - np.asarray(other, np.float64)
    mean_square = float(np.mean(difference**2))
    return PSNR_IDENTICAL_DB if mean_square == 0 else float(10 * np.log10(255**2 / mean_square))


def original_at(photo: Path, size: tuple[int, int]) -> Image.Image:
    from PIL import ImageOps  # noqa: PLC0415  # for this alone

    upright = ImageOps.exif_transpose(Image.open(io.BytesIO(photo.read_bytes())))
    assert upright is not None
    return upright.convert("RGB").resize(size, Image.Resampling.LANCZOS)


def contact_sheet(photo: Path, files: dict[str, Path], job: dict[str, Any]) -> Path:
    """Everything on one page: the photo, its depth, each layer over a checkerboard, and all of them together."""
    layers = layer_files(files)
    described = {one["file"]: one for one in job["manifest"]["layers"]}
    tiles = [("the photo", original_at(photo, Image.open(layers[0]).size))]
    tiles.append(("depth: near is bright", Image.open(files["depth_map.png"]).convert("RGB")))
    for layer in layers:
        info = described[layer.name]
        tiles.append((f"{info['order']}  {info['name']}  {info['coverage_percent']:.1f} %", Image.open(layer)))
    tiles.append(("all layers again", Image.open(files["composite.png"]).convert("RGB")))
    path = OUTPUT / "contact_sheet.png"
    tiled(tiles, columns=min(len(tiles), 4)).save(path, optimize=True)
    return path


def tiled(tiles: list[tuple[str, Image.Image]], *, columns: int, tile_px: int = TILE_PX) -> Image.Image:
    """Pictures with their captions, side by side."""
    rows = -(-len(tiles) // columns)
    sheet = Image.new("RGB", (columns * tile_px, rows * (tile_px + CAPTION_PX)), "white")
    draw, font = ImageDraw.Draw(sheet), ImageFont.load_default(size=15)
    for number, (caption, picture) in enumerate(tiles):
        x, y = number % columns * tile_px, number // columns * (tile_px + CAPTION_PX)
        shown = on_checkerboard(picture)
        shown.thumbnail((tile_px - 12, tile_px - 12))
        sheet.paste(shown, (x + (tile_px - shown.width) // 2, y + (tile_px - shown.height) // 2))
        draw.text((x + 8, y + tile_px), caption, fill="black", font=font)
    return sheet


def on_checkerboard(picture: Image.Image) -> Image.Image:
    """Transparency made visible."""
    if picture.mode != "RGBA":
        return picture.convert("RGB")
    rows, columns = np.indices((picture.height, picture.width)) // CHECKER_PX
    board = np.where((rows + columns) % 2 == 0, 235, 205).astype(np.uint8)
    below = Image.fromarray(board).convert("RGBA")
    return Image.alpha_composite(below, picture).convert("RGB")


def show_result(photo: Path, files: dict[str, Path], job: dict[str, Any], sheet: Path) -> None:
    layers = layer_files(files)
    together = recomposed(layers)
    original = original_at(photo, together.size)
    background = Image.open(layers[0]).convert("RGB")
    table = Table(title="layers, back to front")
    for column in ("file", "depth", "coverage"):
        table.add_column(column, justify="left" if column == "file" else "right")
    for layer in job["manifest"]["layers"]:
        low, high = layer["depth_range"]
        table.add_row(layer["file"], f"{low:.2f}–{high:.2f}", f"{layer['coverage_percent']:.1f} %")
    console.print(table)
    covered = sum(layer["coverage_percent"] for layer in job["manifest"]["layers"])
    console.print(
        f"Recomposed, the layers give the photo back at {psnr_db(original, together):.1f} dB PSNR; the background alone"
        f" at {psnr_db(original, background):.1f} dB. Coverage sums to {covered:.1f} %."
    )
    console.print(f"[bold]{len(files) + 1} files in {OUTPUT}/[/]; look at [bold]{sheet}[/] first.")


if __name__ == "__main__":
    main()
