"""Image files: which are read, and what OpenCV passes over in them: orientation, TIFF's min-is-white, damage."""
from __future__ import annotations

import io
import re
import struct
import zlib
from collections.abc import Iterator

import numpy as np

SUFFIXES = {".png", ".jpg", ".jpeg", ".bmp", ".tif", ".tiff", ".webp"}
ORIENTATION, PHOTOMETRIC = 274, 262     # tags of TIFF 6.0, and so of Exif
MIN_IS_WHITE = 0

# After entropy-coded data: an FF that is neither escaped (00), nor a restart, nor fill.
_NEXT_MARKER = re.compile(rb"\xff[^\x00\xd0-\xd7\xff]")
_AFTER_SCAN = {0xC4, 0xD9, 0xDA, 0xDB, 0xDC, 0xDD, 0xFE, *range(0xE0, 0xF0)}


class DataError(Exception):
    """Something is wrong with the user's images; the message names the files and the remedy."""


def orientation(data: bytes) -> int:
    """Exif orientation of a JPEG, PNG or WebP file, 1 (upright) to 8. OpenCV turns TIFFs itself."""
    value = _first_directory(_exif(data)).get(ORIENTATION, 1)
    return value if 1 <= value <= 8 else 1


def turned(image: np.ndarray, orientation: int) -> np.ndarray:
    """The image as it is to be seen (Exif 2.32, table 6)."""
    if orientation >= 5:
        image = image.swapaxes(0, 1)
    vertical, horizontal = orientation in (3, 4, 7, 8), orientation in (2, 3, 6, 7)
    return np.ascontiguousarray(image[::-1 if vertical else 1, ::-1 if horizontal else 1])


def min_is_white(data: bytes) -> bool:
    """Whether the file is a TIFF whose zero is white."""
    return _first_directory(data).get(PHOTOMETRIC) == MIN_IS_WHITE


def damage(data: bytes) -> str:
    """What is wrong with a JPEG or 8-bit TIFF that OpenCV decodes in part, without an error; "" if nothing is found.

    JPEG and most TIFFs have no checksums: bytes that are changed and still decode are not noticed.
    """
    if data[:2] == b"\xff\xd8":
        return _jpeg_damage(data)
    return _tiff_damage(data) if data[:2] in (b"II", b"MM") else ""


def _jpeg_damage(data: bytes) -> str:
    for marker, _ in _jpeg_segments(data):
        if marker == 0xD9:
            return ""
        if marker is None:
            return "its data are damaged"
    return "it ends in the middle"


def _jpeg_segments(data: bytes) -> Iterator[tuple[int | None, bytes]]:
    """(marker, content) of each segment (ITU T.81, annex B); (None, b"") where none begins, which is the end."""
    at, scanned = 2, False
    while at + 4 <= len(data) or data[at:at + 2] == b"\xff\xd9":
        marker = data[at + 1]
        if data[at] != 0xFF or scanned and marker not in _AFTER_SCAN | {0xFF}:
            yield None, b""
            return
        if marker == 0xFF or marker == 0x01:        # fill; a marker without content
            at += 1 if marker == 0xFF else 2
            continue
        if marker == 0xD9:
            yield marker, b""
            return
        end = at + 2 + int.from_bytes(data[at + 2:at + 4], "big")
        yield marker, data[at + 4:end]
        if marker == 0xDA:      # the pixels follow
            scanned = True
            found = _NEXT_MARKER.search(data, end)
            if not found:
                return
            end = found.start()
        at = end


def _tiff_damage(data: bytes) -> str:
    # Pillow reports what libtiff says; OpenCV does not for 8 bits.
    from PIL import Image, UnidentifiedImageError  # only here: most folders hold no TIFF

    try:
        with Image.open(io.BytesIO(data)) as image:
            image.load()
            found = getattr(image, "tag_v2", {})
            if found.get(259) in (8, 32946):        # Deflate has a checksum, at which libtiff does not look
                tags = [found.get(strips, found.get(tiles, ())) for strips, tiles in ((273, 324), (279, 325))]
                for start, length in zip(*tags):
                    zlib.decompress(data[start:start + length])
    except (UnidentifiedImageError, Image.DecompressionBombError):
        return ""       # nothing is known
    except (OSError, SyntaxError, ValueError, zlib.error) as error:
        return f"its data are damaged ({error})"
    return ""


def _exif(data: bytes) -> bytes:
    """The file's Exif block, which is a TIFF without pixels; b"" if there is none."""
    if data[:2] == b"\xff\xd8":
        for marker, content in _jpeg_segments(data):
            if marker == 0xE1 and content[:6] == b"Exif\0\0":
                return content[6:]
            if marker == 0xDA:      # the pixels
                return b""
    if data[:8] == b"\x89PNG\r\n\x1a\n" and b"eXIf" in data:    # a search is faster than a walk over many chunks
        return _chunk(data, 8, b"eXIf", ">")
    if data[:4] == b"RIFF" and data[8:12] == b"WEBP" and b"EXIF" in data:
        block = _chunk(data, 12, b"EXIF", "<")
        return block[6:] if block[:6] == b"Exif\0\0" else block     # some writers put JPEG's prefix before it
    return b""


def _chunk(data: bytes, at: int, name: bytes, order: str) -> bytes:
    """A chunk's content: in PNG after length and name, then a checksum; in RIFF after name and length, even."""
    while at + 8 <= len(data):
        (length,) = struct.unpack_from(order + "I", data, at + (4 if order == "<" else 0))
        if data[at + (0 if order == "<" else 4):][:4] == name:
            return data[at + 8:at + 8 + length]
        at += 8 + length + (length % 2 if order == "<" else 4)
    return b""


def _first_directory(data: bytes) -> dict[int, int]:
    """{tag: value} of the tags that are one 16-bit number, in the first directory of a TIFF or Exif block."""
    order = {b"II*\0": "<", b"MM\0*": ">"}.get(data[:4])
    if not order or len(data) < 8:
        return {}
    (at,) = struct.unpack_from(order + "I", data, 4)
    entries = data[at + 2:at + 2 + 12 * int.from_bytes(data[at:at + 2], "little" if order == "<" else "big")]
    fields = (struct.unpack_from(order + "HHIH", entries, start) for start in range(0, len(entries) - 11, 12))
    return {tag: value for tag, kind, count, value in fields if kind == 3 and count == 1}
