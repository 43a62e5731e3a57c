"""Headers of image files: what OpenCV ignores or reads wrongly (orientation, kinds of TIFF, damaged data).

Pillow's classes for each format are used in place of `Image.open`, which refuses images above 179 megapixels. OpenCV
reads up to 1,074.
"""
from __future__ import annotations

import io
import re
import zlib
from collections.abc import Iterator
from typing import Any

import numpy as np
from PIL.ExifTags import Base as Tag  # of Exif and of TIFF 6.0; it loads no decoder

SUFFIXES = {".png", ".jpg", ".jpeg", ".bmp", ".tif", ".tiff", ".webp"}      # image files that are read
EXIF = (b"Exif", b"eXIf", b"EXIF")      # names of the block in JPEG, PNG and WebP files
MIN_IS_WHITE = 0                        # value of PhotometricInterpretation
REDUCED = 1                             # bit of NewSubfileType: a thumbnail or another reduced copy
DEFLATE = (8, 32946)                    # values of Compression
SEPARATE = 2                            # value of PlanarConfiguration: one plane after the other
UNASSOCIATED = 2                        # value of ExtraSamples: alpha by which the colours are not multiplied
FLIPPED = (2, 3, 6, 7)                  # orientations that exchange left and right

# The end of entropy-coded JPEG data: a byte FF that is not escaped (00), not a restart marker and not a fill byte.
_NEXT_MARKER = re.compile(rb"\xff[^\x00\xd0-\xd7\xff]")
# Markers that can follow a scan.
_AFTER_SCAN = {0xC4, 0xCC, 0xD9, 0xDA, 0xDB, 0xDC, 0xDD, 0xFE, *range(0xE0, 0xF0)}


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
    vertical, horizontal = orientation in (3, 4, 7, 8), orientation in FLIPPED
    return np.ascontiguousarray(image[::-1 if vertical else 1, ::-1 if horizontal else 1])


def min_is_white(data: bytes) -> bool:
    """Whether the file is a TIFF in which 0 means white."""
    return _is_tiff(data) and _tags(data).get(Tag.PhotometricInterpretation) == MIN_IS_WHITE


def pages(data: bytes) -> int:
    """Number of images in a TIFF, GIF or WebP file, without reduced copies; 1 for other files and damaged headers."""
    number = 0
    try:
        if data.startswith(b"RIFF"):
            number = sum(name == b"ANMF" for name, _ in _webp_chunks(data))
        elif data.startswith(b"GIF8"):
            number = _gif_frames(data)
        elif _is_tiff(data):
            for tags in _directories(data):     # those before a damaged one count
                number += not tags.get(Tag.NewSubfileType, 0) & REDUCED
    except Exception:       # noqa: BLE001  as in _tags
        pass
    return max(number, 1)


def _gif_frames(data: bytes) -> int:
    from PIL.GifImagePlugin import GifImageFile  # imported here, because most folders hold no GIF

    return GifImageFile(io.BytesIO(data)).n_frames


def misread(data: bytes, image: np.ndarray) -> str:
    """Describe a kind of TIFF that OpenCV decodes to wrong pixels without an error; "" for all other files.

    Args:
        data: the file.
        image: its pixels as decoded by OpenCV, with alpha.
    """
    if not _is_tiff(data):
        return ""
    tags = _tags(data)
    bits, extra = (np.atleast_1d(tags.get(tag, 0)) for tag in (Tag.BitsPerSample, Tag.ExtraSamples))
    if image.dtype == np.uint16:
        separate = tags.get(Tag.PlanarConfiguration) == SEPARATE and tags.get(Tag.SamplesPerPixel, 1) > 1
        return "a 16-bit TIFF with separate planes; save it with interleaved channels" if separate else ""
    if bits.max() > 8:
        return f"a TIFF of {bits.max()} bits, of which OpenCV reads only 8; save it without alpha"
    if Tag.TileWidth in tags and tags.get(Tag.Orientation) in FLIPPED:
        return f"a TIFF with tiles and orientation {tags[Tag.Orientation]}; save it upright, or without tiles"
    if UNASSOCIATED in extra and image.ndim == 3 and image.shape[2] == 4 and image[..., 3].min() < 255:
        return "a TIFF with transparent pixels, whose colours OpenCV darkens; save it without alpha"
    return ""


def _is_tiff(data: bytes) -> bool:
    return data[:4] in (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")        # the last two: BigTIFF


def _tags(data: bytes) -> dict[int, Any]:
    """Tags of the first directory of a TIFF file, or of the Exif block of another file; {} if there are none."""
    try:
        return next(_directories(data)) if _is_tiff(data) else _exif(data)
    except Exception:       # noqa: BLE001  Pillow raises many types for headers that are not valid
        return {}


def _directories(data: bytes) -> Iterator[dict[int, Any]]:
    """The tags of each image in a TIFF file."""
    from PIL.TiffImagePlugin import ImageFileDirectory_v2  # imported here, because most folders hold no TIFF

    file, directory = io.BytesIO(data), ImageFileDirectory_v2(data[:16] if 43 in data[2:4] else data[:8])     # 43: BigTIFF
    read = set()
    while directory.next and directory.next not in read:        # a damaged file can point back
        read.add(directory.next)
        file.seek(directory.next)
        directory.load(file)
        yield dict(directory)


def _exif(data: bytes) -> dict[int, Any]:
    """The tags of the Exif block of a JPEG, PNG or WebP file."""
    from PIL import Image, JpegImagePlugin, PngImagePlugin  # imported here, because most files have no such block

    exif = Image.Exif()
    if data.startswith(b"RIFF"):
        exif.load(next((content for name, content in _webp_chunks(data) if name == b"EXIF"), b""))
    else:
        kind = PngImagePlugin.PngImageFile if data.startswith(b"\x89PNG") else JpegImagePlugin.JpegImageFile
        with kind(io.BytesIO(data)) as image:
            if "exif" not in image.info:
                image.load()            # the block can follow the pixels
            exif.load(image.info.get("exif", b""))
    return dict(exif)


def _webp_chunks(data: bytes) -> Iterator[tuple[bytes, bytes]]:
    """Name and content of each chunk of a WebP file. Pillow's class for WebP has the limit, too."""
    at = 12
    while at + 8 <= len(data):
        size = int.from_bytes(data[at + 4:at + 8], "little")
        yield data[at:at + 4], data[at + 8:at + 8 + size]
        at += 8 + size + size % 2       # chunks have an even number of bytes


def damage(data: bytes) -> str:
    """Describe damage in a JPEG or 8-bit TIFF file; "" if none is found.

    OpenCV decodes a part of such files and reports no error. JPEG and most TIFFs have no checksums, so changed bytes
    that can still be decoded are not detected. TIFFs above 179 megapixels are not checked.
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
    from PIL.Image import DecompressionBombError  # imported here, because most folders hold no TIFF
    from PIL.TiffImagePlugin import TiffImageFile

    try:
        with TiffImageFile(io.BytesIO(data)) as image:
            image.load()
            found = image.tag_v2
            if found.get(Tag.Compression) in DEFLATE:       # it has a checksum, which libtiff does not verify
                starts = found.get(Tag.StripOffsets, found.get(Tag.TileOffsets, ()))
                lengths = found.get(Tag.StripByteCounts, found.get(Tag.TileByteCounts, ()))
                for start, length in zip(starts, lengths):
                    zlib.decompress(data[start:start + length])
    except (SyntaxError, DecompressionBombError):
        return ""       # a kind or a size that Pillow does not read, so it cannot be checked
    except (OSError, ValueError, zlib.error) as error:
        return f"its data are damaged ({error})"
    return ""
