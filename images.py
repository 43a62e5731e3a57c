"""Pixels in and out: reading and writing image files, luma, colour conversion.

All images are numpy arrays, gray (H, W) or RGB (H, W, 3).
"""
from __future__ import annotations

import warnings
from pathlib import Path

import cv2
import numpy as np

SUFFIXES = {".png", ".jpg", ".jpeg", ".bmp", ".tif", ".tiff", ".webp"}


class DataError(Exception):
    """Something is wrong with the user's images; the message names the files and the remedy."""


# ---------------------------------------------------------------------------------------------
# Files


def _decode(path: str | Path) -> np.ndarray:
    """Pixels as stored: (H, W) or (H, W, 3) RGB, uint8 or uint16. Alpha is dropped."""
    path = Path(path)
    if not path.is_file():
        raise DataError(f"{path}: no such file")
    # imdecode of the bytes, because imread cannot open every non-ASCII path on every system.
    try:
        data = np.fromfile(path, np.uint8)
        image = cv2.imdecode(data, cv2.IMREAD_UNCHANGED) if data.size else None
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror})") from None
    except cv2.error:       # a header that promises more pixels than OpenCV takes
        image = None
    if image is None:
        raise DataError(f"{path}: not an image that OpenCV can read (damaged, or another format)")
    if image.dtype not in (np.uint8, np.uint16):
        raise DataError(f"{path}: {image.dtype} pixels; convert the image to 8 or 16 bits")
    if image.ndim == 2:
        return image
    channels = image.shape[2]
    if channels in (1, 2):
        return np.ascontiguousarray(image[..., 0])
    if channels not in (3, 4):
        raise DataError(f"{path}: {channels} channels; gray, RGB or RGBA are understood")
    return cv2.cvtColor(image[..., :3], cv2.COLOR_BGR2RGB)


def read_vis(path: str | Path) -> np.ndarray:
    """Visible image: uint8, (H, W) or (H, W, 3) RGB. 16-bit files are divided by 257.

    A colour file with three equal planes (gray images are often saved so) is returned as gray.
    """
    image = _decode(path)
    if image.dtype == np.uint16:
        image = ((image.astype(np.uint32) + 128) // 257).astype(np.uint8)
    if image.ndim == 3 and (image == image[..., :1]).all():
        image = np.ascontiguousarray(image[..., 0])
    return image


def read_ir(path: str | Path) -> np.ndarray:
    """Infrared image: uint8 (H, W). 16-bit files are scaled by their own range, with a warning.

    Sensors fill only a part of 16 bits, so a division by 257 would give an almost black image.
    """
    image = luma(_decode(path))
    if image.dtype == np.uint8:
        return image
    low, high = int(image.min()), int(image.max())
    # One text for all files: Python shows it once a run.
    warnings.warn("16-bit infrared is scaled to 8 bits, each image from its own darkest and brightest pixel", stacklevel=2)
    scaled = (image.astype(np.float64) - low) * (255.0 / max(high - low, 1))
    return np.round(scaled).astype(np.uint8)


def read_gray(path: str | Path) -> np.ndarray:
    """Any image as 8-bit gray, (H, W): colour becomes BT.601 luma."""
    return luma(read_vis(path))


def write_image(path: str | Path, image: np.ndarray) -> None:
    """Write uint8 (H, W) or (H, W, 3) RGB in the format of the suffix.

    The file appears whole or not at all. Raises OSError (a full disk, a missing folder) or DataError (an unknown suffix).
    """
    path = Path(path)
    bgr = image if image.ndim == 2 else cv2.cvtColor(image, cv2.COLOR_RGB2BGR)
    try:
        ok, data = cv2.imencode(path.suffix, bgr)
    except cv2.error:
        ok = False
    if not ok:
        raise DataError(f"{path}: cannot encode {path.suffix or 'a file without suffix'}; use .png")
    write_atomically(path, data.tobytes())


def write_atomically(path: Path, data: bytes) -> None:
    """Write a file whole or not at all: under another name first. Raises OSError."""
    part = path.with_name(path.name + ".part")
    try:
        part.write_bytes(data)
        part.replace(path)
    finally:
        part.unlink(missing_ok=True)


# ---------------------------------------------------------------------------------------------
# Colour


def luma(image: np.ndarray) -> np.ndarray:
    """BT.601 luma, (H, W), of a gray or RGB image, same dtype."""
    return image if image.ndim == 2 else cv2.cvtColor(image, cv2.COLOR_RGB2GRAY)


def split_colour(vis: np.ndarray) -> tuple[np.ndarray, np.ndarray | None]:
    """uint8 gray or RGB -> luminance (H, W) float32 in [0, 1], and Cr, Cb (H, W, 2) or None for gray.

    Full-range BT.601 both ways (OpenCV's YCrCb), here and in `to_image`.
    """
    unit = vis.astype(np.float32) / 255
    if unit.ndim == 2:
        return unit, None
    ycc = cv2.cvtColor(unit, cv2.COLOR_RGB2YCrCb)
    return np.ascontiguousarray(ycc[..., 0]), ycc[..., 1:]


def to_image(luminance: np.ndarray, chrominance: np.ndarray | None = None, studio_range: bool = False) -> np.ndarray:
    """Luminance (H, W) in [0, 1] and Cr, Cb (or None) -> uint8 (H, W) or (H, W, 3) RGB.

    studio_range converts full-range Y by the studio-range formula, 1.164 (Y - 16), as the paper's
    published pictures do: 16 % more contrast, with clipping. Off by default, because it is a mix-up.
    """
    if studio_range:
        luminance = (luminance - 16 / 255) * 1.164
    if chrominance is None:
        image = luminance
    elif studio_range:
        cr, cb = chrominance[..., 0] - 0.5, chrominance[..., 1] - 0.5
        image = np.stack([luminance + 1.596 * cr, luminance - 0.813 * cr - 0.392 * cb, luminance + 2.017 * cb], -1)
    else:
        image = cv2.cvtColor(np.dstack([luminance, chrominance]), cv2.COLOR_YCrCb2RGB)
    return np.round(np.clip(image, 0, 1) * 255).astype(np.uint8)
