"""Types by signature and by declaration, without opening anything."""

import subprocess
import sys

import pytest

from sightline.adapters.images import normalised, sniff


@pytest.mark.parametrize(
    ("head", "found"),
    [
        (b"\0\0\0\x18ftypmp42", "video/mp4"),
        (b"\0\0\0\x14ftypqt  ", "video/quicktime"),
        (b"\0\0\0\x08wide\0\0\0\0mdat", "video/quicktime"),
        (b"\x1aE\xdf\xa3\x93B\x82\x88matroska", "video/x-matroska"),
        (b"\x1aE\xdf\xa3\x93B\x82\x84webm", "video/webm"),
        (b"\0\0\0\x1cftypavif", "image/avif"),
        (b"BM: a memo", ""),
        (b"RIFF\0\0\0\0WAVE", ""),
        (b"", ""),
    ],
)
def test_other_signatures(head: bytes, found: str) -> None:
    assert sniff(head) == found


def test_declared_types_are_read_as_people_write_them() -> None:
    assert normalised("image/JPG ; q=1") == "image/jpeg"


def test_the_callers_side_never_loads_a_decoder() -> None:
    code = "import sys; import sightline.adapters.images; sys.exit('PIL' in sys.modules)"
    subprocess.run([sys.executable, "-P", "-c", code], check=True)
