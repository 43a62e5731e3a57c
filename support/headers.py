"""Headers of image files: information that OpenCV ignores (orientation, min-is-white of TIFF, damaged data)."""
from __future__ import annotations

import io
import re
import zlib

import numpy as np
from PIL.ExifTags import Base as Tag  # of Exif and of TIFF 6.0; it loads no decoder

SUFFIXES = {".png", ".jpg", ".jpeg", ".bmp", ".tif", ".tiff", ".webp"}      # image files that are read
EXIF = (b"Exif", b"eXIf", b"EXIF")      # names of the block in JPEG, PNG and WebP files
MIN_IS_WHITE = 0                        # value of PhotometricInterpretation
REDUCED = 1                             # bit of NewSubfileType: a thumbnail or another reduced copy
DEFLATE = (8, 32946)                    # values of Compression

# The end of entropy-coded JPEG data: a byte FF that is not escaped (00), not a restart marker and not a fill byte.
_NEXT_MARKER = re.compile(rb"\xff[^\x00\xd0-\xd7\xff]")
# Markers that can follow a scan.
_AFTER_SCAN = {0xC4, 0xD9, 0xDA, 0xDB, 0xDC, 0xDD, 0xFE, *range(0xE0, 0xF0)}


class DataError(Exception):
    """An error in the user's images. The message names the files and, if possible, the remedy."""


def orientation(data: bytes) -> int:
    """Exif orientation of a JPEG, PNG or WebP file, 1 (upright) to 8. 1 for TIFF, because OpenCV rotates it itself."""
    if _is_tiff(data) or not any(name in data for name in EXIF):     # a search takes less time than Pillow
        return 1
    value = _tags(data).get(Tag.Orientation)
    return value if isinstance(value, int) and 1 <= value <= 8 else 1


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
    return _is_tiff(data) and _tags(data).get(Tag.PhotometricInterpretation) == MIN_IS_WHITE


def pages(data: bytes) -> int:
    """Number of images in a TIFF file, without reduced copies of an image; 1 for other files and damaged headers."""
    if not _is_tiff(data):
        return 1
    from PIL import Image  # imported here, because most folders hold no TIFF

    number = 0
    try:
        with Image.open(io.BytesIO(data)) as image:
            for index in range(getattr(image, "n_frames", 1)):
                image.seek(index)
                number += not getattr(image, "tag_v2", {}).get(Tag.NewSubfileType, 0) & REDUCED
    except Exception:       # noqa: BLE001  as in _tags
        pass
    return max(number, 1)


def _is_tiff(data: bytes) -> bool:
    return data[:4] in (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")        # the last two: BigTIFF


def _tags(data: bytes) -> dict[int, object]:
    """Tags of the first directory of a TIFF file, or of the Exif block of another file; {} if there are none."""
    from PIL import Image  # imported here, because most files need none of it

    try:
        with Image.open(io.BytesIO(data)) as image:
            if _is_tiff(data):
                return dict(getattr(image, "tag_v2", {}))
            if "exif" not in image.info:
                image.load()            # the block can follow the pixels
            exif = Image.Exif()
            exif.load(image.info.get("exif", b""))
            return dict(exif)
    except Exception:       # noqa: BLE001  Pillow raises many types for headers that are not valid
        return {}


def damage(data: bytes) -> str:
    """Describe damage in a JPEG or 8-bit TIFF file; "" if none is found.

    OpenCV decodes a part of such files and reports no error. JPEG and most TIFFs have no checksums, so changed bytes
    that can still be decoded are not detected.
    """
    if data[:2] == b"\xff\xd8":
        return _jpeg_damage(data)
    return _tiff_damage(data) if _is_tiff(data) else ""


def _jpeg_damage(data: bytes) -> str:
    """Walk through the segments (ITU T.81, annex B), up to the end of the image."""
    at, scanned = 2, False
    while at + 4 <= len(data) or data[at:at + 2] == b"\xff\xd9":
        marker = data[at + 1]
        if data[at] != 0xFF or scanned and marker not in _AFTER_SCAN | {0xFF}:
            return "its data are damaged"
        if marker == 0xD9:      # end of the image
            return ""
        if marker == 0xFF:      # a fill byte
            at += 1
        elif marker == 0x01:    # without content
            at += 2
        else:
            at += 2 + int.from_bytes(data[at + 2:at + 4], "big")
        if marker == 0xDA:      # start of scan: the pixels follow
            scanned = True
            found = _NEXT_MARKER.search(data, at)
            at = found.start() if found else len(data)
    return "it ends in the middle"


def _tiff_damage(data: bytes) -> str:
    # Pillow reports the errors of libtiff. OpenCV ignores them for 8-bit files.
    from PIL import Image, UnidentifiedImageError  # imported here, because most folders hold no TIFF

    try:
        with Image.open(io.BytesIO(data)) as image:
            image.load()
            found = getattr(image, "tag_v2", {})
            if found.get(Tag.Compression) in DEFLATE:       # it has a checksum, which libtiff does not verify
                starts = found.get(Tag.StripOffsets, found.get(Tag.TileOffsets, ()))
                lengths = found.get(Tag.StripByteCounts, found.get(Tag.TileByteCounts, ()))
                for start, length in zip(starts, lengths):
                    zlib.decompress(data[start:start + length])
    except (UnidentifiedImageError, Image.DecompressionBombError):
        return ""       # cannot be checked
    except (OSError, SyntaxError, ValueError, zlib.error) as error:
        return f"its data are damaged ({error})"
    return ""
