"""Headers of image files: information that OpenCV ignores (orientation, min-is-white of TIFF, damaged data)."""
from __future__ import annotations

import io
import re
import struct
import zlib
from collections.abc import Iterator

import numpy as np

SUFFIXES = {".png", ".jpg", ".jpeg", ".bmp", ".tif", ".tiff", ".webp"}      # image files that are read
ORIENTATION, PHOTOMETRIC = 274, 262     # tags of TIFF 6.0, also used by Exif
MIN_IS_WHITE = 0                        # value of PHOTOMETRIC

# The end of entropy-coded JPEG data: a byte FF that is not escaped (00), not a restart marker and not a fill byte.
_NEXT_MARKER = re.compile(rb"\xff[^\x00\xd0-\xd7\xff]")
# Markers that can follow a scan.
_AFTER_SCAN = {0xC4, 0xD9, 0xDA, 0xDB, 0xDC, 0xDD, 0xFE, *range(0xE0, 0xF0)}


class DataError(Exception):
    """An error in the user's images. The message names the files and, if possible, the remedy."""


def orientation(data: bytes) -> int:
    """Exif orientation of a JPEG, PNG or WebP file, 1 (upright) to 8. 1 for TIFF, because OpenCV rotates it itself."""
    value = _first_directory(_exif(data)).get(ORIENTATION, 1)
    return value if 1 <= value <= 8 else 1


def turned(image: np.ndarray, orientation: int) -> np.ndarray:
    """Rotate and flip an image so that it is upright (Exif 2.32, table 6).

    Args:
        image: (H, W) or (H, W, 3).
        orientation: Exif orientation, 1 to 8.
    """
    if orientation >= 5:
        image = image.swapaxes(0, 1)
    vertical, horizontal = orientation in (3, 4, 7, 8), orientation in (2, 3, 6, 7)
    return np.ascontiguousarray(image[::-1 if vertical else 1, ::-1 if horizontal else 1])


def min_is_white(data: bytes) -> bool:
    """Whether the file is a TIFF in which 0 means white."""
    return _first_directory(data).get(PHOTOMETRIC) == MIN_IS_WHITE


def damage(data: bytes) -> str:
    """Describe damage in a JPEG or 8-bit TIFF file; "" if none is found.

    OpenCV decodes a part of such files and reports no error. JPEG and most TIFFs have no checksums, so changed bytes
    that can still be decoded are not detected.
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
    """Yield (marker, content) of each segment (ITU T.81, annex B). Ends with (None, b"") if a segment is not valid."""
    at, scanned = 2, False
    while at + 4 <= len(data) or data[at:at + 2] == b"\xff\xd9":
        marker = data[at + 1]
        if data[at] != 0xFF or scanned and marker not in _AFTER_SCAN | {0xFF}:
            yield None, b""
            return
        if marker == 0xFF or marker == 0x01:        # a fill byte, or a marker without content
            at += 1 if marker == 0xFF else 2
            continue
        if marker == 0xD9:
            yield marker, b""
            return
        end = at + 2 + int.from_bytes(data[at + 2:at + 4], "big")
        yield marker, data[at + 4:end]
        if marker == 0xDA:      # start of scan: the pixels follow
            scanned = True
            found = _NEXT_MARKER.search(data, end)
            if not found:
                return
            end = found.start()
        at = end


def _tiff_damage(data: bytes) -> str:
    # Pillow reports the errors of libtiff. OpenCV ignores them for 8-bit files.
    from PIL import Image, UnidentifiedImageError  # imported here, because most folders hold no TIFF

    try:
        with Image.open(io.BytesIO(data)) as image:
            image.load()
            found = getattr(image, "tag_v2", {})
            if found.get(259) in (8, 32946):        # Deflate has a checksum, which libtiff does not verify
                tags = [found.get(strips, found.get(tiles, ())) for strips, tiles in ((273, 324), (279, 325))]
                for start, length in zip(*tags):
                    zlib.decompress(data[start:start + length])
    except (UnidentifiedImageError, Image.DecompressionBombError):
        return ""       # cannot be checked
    except (OSError, SyntaxError, ValueError, zlib.error) as error:
        return f"its data are damaged ({error})"
    return ""


def _exif(data: bytes) -> bytes:
    """The Exif block of a file, which has the structure of a TIFF file without pixels; b"" if there is none."""
    if data[:2] == b"\xff\xd8":
        for marker, content in _jpeg_segments(data):
            if marker == 0xE1 and content[:6] == b"Exif\0\0":
                return content[6:]
            if marker == 0xDA:      # start of scan: no Exif after it
                return b""
    if data[:8] == b"\x89PNG\r\n\x1a\n" and b"eXIf" in data:    # a search is faster than a loop over many chunks
        return _chunk(data, 8, b"eXIf", ">")
    if data[:4] == b"RIFF" and data[8:12] == b"WEBP" and b"EXIF" in data:
        block = _chunk(data, 12, b"EXIF", "<")
        return block[6:] if block[:6] == b"Exif\0\0" else block     # some programs add the prefix of JPEG files
    return b""


def _chunk(data: bytes, at: int, name: bytes, order: str) -> bytes:
    """Content of the first chunk `name` from offset `at`; b"" if there is none.

    PNG (order ">"): length, name, content, checksum. RIFF (order "<"): name, length, content, padded to an even length.
    """
    while at + 8 <= len(data):
        (length,) = struct.unpack_from(order + "I", data, at + (4 if order == "<" else 0))
        if data[at + (0 if order == "<" else 4):][:4] == name:
            return data[at + 8:at + 8 + length]
        at += 8 + length + (length % 2 if order == "<" else 4)
    return b""


def _first_directory(data: bytes) -> dict[int, int]:
    """{tag: value} from the first directory of a TIFF or Exif block. Only tags with one 16-bit number are read."""
    order = {b"II*\0": "<", b"MM\0*": ">"}.get(data[:4])
    if not order or len(data) < 8:
        return {}
    (at,) = struct.unpack_from(order + "I", data, 4)
    entries = data[at + 2:at + 2 + 12 * int.from_bytes(data[at:at + 2], "little" if order == "<" else "big")]
    fields = (struct.unpack_from(order + "HHIH", entries, start) for start in range(0, len(entries) - 11, 12))
    return {tag: value for tag, kind, count, value in fields if kind == 3 and count == 1}
