"""Pixels in and out: reading and writing image files, luma, colour conversion.

All images are numpy arrays, gray (H, W) or RGB (H, W, 3).
"""
from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np

from support import headers
from support.console import note
from support.headers import DataError
from support.outputs import write_atomically

COLOURFUL = 8.0     # mean difference of an infrared image's planes, in levels


# ---------------------------------------------------------------------------------------------
# Files


def decode(path: str | Path) -> np.ndarray:
    """Pixels as they are to be seen: (H, W) or (H, W, 3) RGB, uint8 or uint16. Alpha is dropped."""
    path = Path(path)
    if not path.is_file():
        raise DataError(f"{path}: no such file")
    # imdecode of the bytes, because imread cannot open every non-ASCII path on every system.
    try:
        data = path.read_bytes()
        image = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_UNCHANGED) if data else None
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror})") from None
    except cv2.error as error:
        if error.code == cv2.Error.StsNoMem:
            raise MemoryError(f"{path}: too large for the memory") from None
        image = None        # a header that promises more pixels than OpenCV takes
    if image is None:
        raise DataError(f"{path}: not an image that OpenCV can read (damaged, or another format)")
    if image.dtype not in (np.uint8, np.uint16):
        raise DataError(f"{path}: {image.dtype} pixels; convert the image to 8 or 16 bits")
    channels = image.shape[2] if image.ndim == 3 else 1
    if channels > 4:
        raise DataError(f"{path}: {channels} channels; gray, RGB or RGBA are understood")
    if channels >= 3:
        image = cv2.cvtColor(image[..., :3], cv2.COLOR_BGR2RGB)
    elif image.ndim == 3:
        image = np.ascontiguousarray(image[..., 0])
    return _as_its_header_says(path, data, image)


def _as_its_header_says(path: Path, data: bytes, image: np.ndarray) -> np.ndarray:
    """Upright, and not a negative. Raises DataError for a file of which only a part was decoded."""
    damage = headers.damage(data) if image.dtype == np.uint8 else ""       # of 16 bits, OpenCV itself refuses it
    if damage:
        raise DataError(f"{path}: {damage}; copy or export the image again")
    if image.dtype == np.uint16 and headers.min_is_white(data):            # OpenCV inverts those of 8 bits alone
        image = 65535 - image
    orientation = headers.orientation(data)
    return image if orientation == 1 else headers.turned(image, orientation)


def read_vis(path: str | Path) -> np.ndarray:
    """Visible image: uint8, (H, W) or (H, W, 3) RGB.

    16-bit files keep their exposure: they are divided by 257. Those with no pixel above 12 or 14 bits are taken as
    such, with a warning: cameras of 12 bits write 16-bit files, which would come out almost black.
    A colour file with three equal planes (gray images are often saved so) is returned as gray.
    """
    image = decode(path)
    if image.dtype == np.uint16:
        image = _to_8_bits(path, image)
    if image.ndim == 3 and (image == image[..., :1]).all():
        image = np.ascontiguousarray(image[..., 0])
    return image


def _to_8_bits(path: str | Path, image: np.ndarray) -> np.ndarray:
    bits = next(bits for bits in (12, 14, 16) if image.max() < 2**bits)
    if bits < 16:
        note(f"16-bit visible image without a pixel above {2**bits - 1}, taken as one of {bits} bits", Path(path).name)
    top = 2**bits - 1
    return ((image.astype(np.uint32) * 255 + top // 2) // top).astype(np.uint8)


def read_ir(path: str | Path, span: tuple[int, int] | None = None) -> np.ndarray:
    """Infrared image: uint8 (H, W).

    16-bit files are scaled: `span` (LOW, HIGH) becomes 0 to 255, and what is outside is clipped. Without a span each
    image is scaled by its own range, with a warning, because a division by 257 would give an almost black image:
    sensors fill only a part of 16 bits.
    Colour becomes BT.601 luma, with a warning where the planes differ: a colour map is no temperature.
    """
    image = infrared_luma(decode(path), Path(path).name)
    if image.dtype == np.uint8:
        if span:
            raise DataError(f"{path}: 8-bit infrared; a range (--ir-range) is for 16 bits")
        return image
    if span is None:
        note("16-bit infrared is scaled to 8 bits, each image from its own darkest and brightest pixel; --ir-range "
             "keeps one scale", Path(path).name)
        span = int(image.min()), int(image.max())
    low, high = span
    scaled = (image.astype(np.float64) - low) * (255.0 / max(high - low, 1))
    return np.round(np.clip(scaled, 0, 255)).astype(np.uint8)


def infrared_luma(pixels: np.ndarray, name: str) -> np.ndarray:
    """Infrared pixels, gray or RGB, as gray (H, W). Warns of `name` where the planes differ."""
    if pixels.ndim == 3 and _colourful(pixels):
        note("infrared in colour, taken as its luma; a colour map needs the original gray image", name)
    return luma(pixels)


def infrared_span(path: str | Path) -> tuple[int, int] | None:
    """Darkest and brightest pixel of a 16-bit infrared image; None for one of 8 bits. Raises DataError."""
    image = luma(decode(path))
    return (int(image.min()), int(image.max())) if image.dtype == np.uint16 else None


def _colourful(image: np.ndarray) -> bool:
    """Whether the planes of an (H, W, 3) image differ, by more than what JPEG does to gray."""
    if (image == image[..., :1]).all():
        return False
    small = np.float32(image[::4, ::4]) * (255 / np.iinfo(image.dtype).max)
    return float(np.ptp(small, axis=2).mean()) > COLOURFUL


def read_gray(path: str | Path) -> np.ndarray:
    """Any image as 8-bit gray, (H, W): colour becomes BT.601 luma."""
    return luma(read_vis(path))


def write_image(path: str | Path, image: np.ndarray) -> None:
    """Write uint8 (H, W) or (H, W, 3) RGB in the format of the suffix.

    The file appears whole or not at all. Raises OSError (a full disk, a missing folder) or DataError (an unknown
    suffix, a size that the format does not hold).
    """
    path = Path(path)
    bgr = image if image.ndim == 2 else cv2.cvtColor(image, cv2.COLOR_RGB2BGR)
    try:
        ok, data = cv2.imencode(path.suffix, bgr)
    except cv2.error:
        ok = False
    if not ok:
        raise DataError(f"{path}: cannot encode {image.shape[1]}x{image.shape[0]} as "
                        f"{path.suffix or 'a file without suffix'}; use .png")
    write_atomically(path, data.tobytes(), sync=False)      # it can be made again


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


# ---------------------------------------------------------------------------------------------
# Alignment

ALIGNMENT_SIDE = 256    # pixels; the longer side of what is compared
ALIGNMENT_LEAST = 96    # pixels of the shorter side; below, edges agree by chance
LEAST_PEAK = 0.12       # of the phase correlation; 1 for identical images
ALIGNED = 4.0           # pixels of the image; a smaller shift is not reported


def apparent_shift(ir: np.ndarray, vis: np.ndarray) -> float | None:
    """How far the two images of a pair seem to be shifted, in pixels; None where nothing can be said.

    Phase correlation (Kuglin and Hines 1975) of the logarithm of gradient magnitudes, at a reduced size. Sources of two
    kinds share few edges, so a low peak says nothing, and the gradients must correlate better there than without a
    shift. Over 4 pixels this finds 59 of 74 RoadScene pairs shifted by 6 to 20 pixels, and of all 932 pairs of
    RoadScene, TNO, MSRS and Harvard as they are one: 24 of TNO, which is not registered.
    """
    if min(ir.shape) < ALIGNMENT_LEAST:
        return None
    scale = min(1.0, ALIGNMENT_SIDE / max(ir.shape))
    first, second = (_edges(luma(image), scale) for image in (ir, vis))
    window = cv2.createHanningWindow(first.shape[::-1], cv2.CV_32F)
    (right, down), peak = cv2.phaseCorrelate(first - first.mean(), second - second.mean(), window)
    if not peak > LEAST_PEAK or max(abs(right), abs(down)) >= min(first.shape) / 4:     # "not": NaN of flat images
        return None
    first, second = (cv2.blur(edges, (3, 3)) for edges in (first, second))
    there, here = (_correlation(first, second, *place) for place in ((round(right), round(down)), (0, 0)))
    return float(np.hypot(right, down)) / scale if there > max(here + 0.05, 0.15) else None


def note_shift(name: str, ir: np.ndarray, vis: np.ndarray) -> None:
    """Warn of the pair `name` if its images seem to be shifted by more than ALIGNED pixels."""
    shift = apparent_shift(ir, vis)
    if shift and shift > ALIGNED:
        note("the sources seem to be shifted against each other (--no-alignment-check silences this)",
             f"{name} by about {shift:.0f} pixels")


def _edges(image: np.ndarray, scale: float) -> np.ndarray:
    if scale < 1:
        image = cv2.resize(image, None, fx=scale, fy=scale, interpolation=cv2.INTER_AREA)
    return np.log1p(cv2.magnitude(*(cv2.Sobel(image, cv2.CV_32F, *order) for order in ((1, 0), (0, 1)))))


def _correlation(first: np.ndarray, second: np.ndarray, right: int, down: int) -> float:
    """Pearson's, of what overlaps when the second image is `right` and `down` of the first."""
    height, width = first.shape
    first = first[max(0, -down):height - max(0, down), max(0, -right):width - max(0, right)]
    second = second[max(0, down):height + min(0, down), max(0, right):width + min(0, right)]
    first, second = first - first.mean(), second - second.mean()
    return float((first * second).sum() / max(np.sqrt((first**2).sum() * (second**2).sum()), 1e-9))
