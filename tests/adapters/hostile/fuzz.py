"""Valid files, changed at random and from a seed: whatever comes of them is a verdict, and the child's end is none."""

from collections.abc import Sequence
from random import Random

from tests.adapters.hostile.models import BUILTIN
from tests.adapters.hostile.pictures import TYPES, WHOLE, encoded, noise

EDITS_MAX = 8
SIGNATURE_KEPT_BYTES = 12  # or most of it would never get past the first look
INTERESTING = (b"\0", b"\xff", b"\x7f\xff\xff\xff", b"\xff\xff\xff\xff", b"\x80\0\0\0", b"\0\0\0\x01", b"\x01\0\0\0")

Edit = tuple[float, int, bytes]  # where, as a share of the file; how many bytes go; what comes in their place


def seeds() -> list[tuple[str, bytes]]:
    """Each type in its commonest forms, and one of several frames."""
    frames = [noise(16, 16, seed=seed) for seed in range(3)]
    found = [(TYPES[kind], content) for kind, content in WHOLE.items()]
    found += [
        (TYPES[kind], encoded(frames[0], kind, save_all=True, append_images=frames[1:]))
        for kind in ("GIF", "WEBP", "TIFF", "PNG")
    ]
    found += [("image/tiff", encoded(noise(), "TIFF", compression=name)) for name in ("tiff_lzw", "jpeg", "packbits")]
    found.append(("image/jpeg", encoded(noise(), "JPEG", progressive=True)))
    found.append(("image/png", encoded(noise(mode="P"), "PNG")))
    return found


def mutated(content: bytes, edits: Sequence[Edit]) -> bytes:
    for share, gone, come in edits:
        at = SIGNATURE_KEPT_BYTES + int(share * max(0, len(content) - SIGNATURE_KEPT_BYTES))
        content = content[:at] + come + content[at + gone :]
    return content


def edits_of(random: Random) -> list[Edit]:
    """Few, most of them where headers are."""
    found = []
    for _ in range(random.randint(1, EDITS_MAX)):
        share = random.random() ** random.choice((1, 4))
        come = random.choice((*INTERESTING, random.randbytes(random.randint(0, 8))))
        found.append((share, random.choice((len(come), 0, random.randint(0, 64))), come))
    return found


def mutated_model(random: Random) -> bytes:
    """One or two numbers or letters changed: lengths are everywhere, and with one of them wrong it is no model."""
    data = bytearray(BUILTIN)
    for _ in range(random.randint(1, 2)):
        data[random.randrange(len(data))] = random.choice((0, 1, 0x7F, 0xFF, random.randrange(256)))
    return bytes(data)
