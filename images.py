"""Image files, colour conversion, and a check of the alignment of a pair.

All images are numpy arrays, gray (H, W) or RGB (H, W, 3).
"""
from __future__ import annotations

from collections.abc import Callable
from functools import wraps
from pathlib import Path

import cv2
import numpy as np

from support import headers
from support.console import note
from support.headers import DataError
from support.outputs import write_atomically

COLOURFUL = 8.0     # gray levels; larger mean differences between the colour planes mean an infrared image in colour
FLOAT_REMEDY = "; convert values in [0, 1] by np.rint(255 * x).astype(np.uint8), those in [0, 255] without the 255"


# ---------------------------------------------------------------------------------------------
# Files


def within_memory(read: Callable[..., np.ndarray]) -> Callable[..., np.ndarray]:
    """Decorate a reader whose first argument is a path: an image that exceeds the memory is a DataError.

    So each command that skips damaged images also skips these.
    """
    @wraps(read)
    def reading(path: str | Path, *args: object, **options: object) -> np.ndarray:
        try:
            return read(path, *args, **options)
        except (MemoryError, cv2.error) as error:
            if isinstance(error, cv2.error) and error.code != cv2.Error.StsNoMem:
                raise
            raise DataError(f"{path}: too large for the memory of this machine") from None
    return reading


@within_memory
def decode(path: str | Path) -> np.ndarray:
    """Decode an image file: uint8 or uint16, (H, W) or (H, W, 3) RGB, upright. Alpha is dropped.

    Exif orientation and the TIFF tag "min is white" are applied.

    Raises:
        DataError: no such file, a damaged file, a format or a kind of TIFF that is not supported, or too large for the
            memory.
    """
    path = Path(path)
    # imread cannot open every non-ASCII path on every system, so the bytes are read here and decoded by imdecode.
    # UNCHANGED: OpenCV versions differ in which kinds of files they rotate by Exif, so headers.py does it for all.
    try:
        if not path.is_file():
            raise DataError(f"{path}: no such file")
        data = path.read_bytes()
        image = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_UNCHANGED) if data else None
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror})") from None
    except cv2.error as error:
        if error.code == cv2.Error.StsNoMem:
            raise
        image = None        # for example, the header names more pixels than OpenCV accepts
    if image is None:
        raise DataError(f"{path}: not an image that OpenCV can read (damaged, or another format)")
    if image.dtype not in (np.uint8, np.uint16):
        raise DataError(f"{path}: {image.dtype} pixels; convert the image to 8 or 16 bits")
    if misread := headers.misread(data, image):
        raise DataError(f"{path}: is {misread}")
    channels = image.shape[2] if image.ndim == 3 else 1
    if channels > 4:
        raise DataError(f"{path}: {channels} channels; gray, RGB or RGBA are understood")
    if channels >= 3:
        image = cv2.cvtColor(image[..., :3], cv2.COLOR_BGR2RGB)
    elif image.ndim == 3:
        image = np.ascontiguousarray(image[..., 0])
    return _as_its_header_says(path, data, image)


def _as_its_header_says(path: Path, data: bytes, image: np.ndarray) -> np.ndarray:
    """Apply orientation and "min is white". Raises DataError if only a part of the file was decoded."""
    if headers.pages(data) > 1:
        note("the file has several pages or frames, and only the first is read; split it into one file for each", path.name)
    damage = headers.damage(data) if image.dtype == np.uint8 else ""       # OpenCV itself rejects damaged 16-bit files
    if damage:
        raise DataError(f"{path}: {damage}; copy or export the image again")
    if image.dtype == np.uint16 and headers.min_is_white(data):            # OpenCV inverts only 8-bit files
        image = 65535 - image
    orientation = headers.orientation(data)
    return image if orientation == 1 else headers.turned(image, orientation)


@within_memory
def read_vis(path: str | Path, bits: int | None = None) -> np.ndarray:
    """Read a visible image: uint8, (H, W) or (H, W, 3) RGB. Errors as for `decode`; DataError for wrong `bits`.

    16-bit files are scaled so that 2**bits - 1 becomes 255, which keeps the exposure. Without `bits`, it is the lowest
    of 12, 14 and 16 that holds all levels of the file, with a warning below 16. 12-bit cameras write 16-bit files,
    which would otherwise be almost black.
    A colour file with three equal planes is returned as gray, because gray images are often saved as RGB.
    """
    image = decode(path)
    if image.dtype == np.uint16:
        image = _to_8_bits(path, image, bits)
    elif bits not in (None, 8):
        raise DataError(f"{path}: 8-bit visible; a depth (--vis-bits) is only for 16-bit images")
    return gray_if_equal(image)


@within_memory
def read_result(path: str | Path) -> np.ndarray:
    """Read a fused image, as `read_vis`. A 16-bit file is divided by 257, with a note if 14 bits hold its levels."""
    image = decode(path)
    if image.dtype == np.uint16:
        bits = _needed_bits(image)
        if bits < 16:
            note(f"16-bit fused images without a level above {2**bits - 1} are divided by 257, as all 16-bit ones; results of "
                 f"{bits} bits are then too dark, so convert them to 8 or 16 bits", Path(path).name)
        image = _to_8_bits(path, image, 16)
    return gray_if_equal(image)


def gray_if_equal(image: np.ndarray) -> np.ndarray:
    """(H, W) if the three planes of an image are equal; otherwise the image."""
    return np.ascontiguousarray(image[..., 0]) if image.ndim == 3 and (image == image[..., :1]).all() else image


def _to_8_bits(path: str | Path, image: np.ndarray, bits: int | None) -> np.ndarray:
    if bits is None:
        bits = _needed_bits(image)
        note_depth(bits, Path(path).name)
    elif image.max() >= 2**bits:
        raise DataError(f"{path}: has levels above {2**bits - 1} ({bits} bits); --vis-bits names the depth of all visible "
                        "images")
    top = 2**bits - 1
    return ((image.astype(np.uint32) * 255 + top // 2) // top).astype(np.uint8)


def visible_bits(path: str | Path) -> int:
    """Depth of a visible image: 8, or for a 16-bit file the lowest of 12, 14 and 16 bits that holds it. Raises DataError."""
    image = decode(path)
    return 8 if image.dtype == np.uint8 else _needed_bits(image)


def _needed_bits(image: np.ndarray) -> int:
    brightest = image.max()
    return next(bits for bits in (12, 14, 16) if brightest < 2**bits)


def note_depth(bits: int, name: str) -> None:
    """Tell that a depth of 12 or 14 bits is a guess."""
    if bits in (12, 14):
        note(f"16-bit visible images without levels above {2**bits - 1} are read as {bits} bits; --vis-bits sets one depth "
             "for all", name)


@within_memory
def read_ir(path: str | Path, span: tuple[int, int] | None = None) -> np.ndarray:
    """Read an infrared image: uint8 (H, W). Errors as for `decode`; DataError for `span` with an 8-bit file.

    16-bit files are scaled: `span` = (LOW, HIGH) is mapped to 0 to 255, and values outside are clipped. Without a span,
    each image is scaled from its own minimum and maximum, with a warning. A division by 257 would give an almost black
    image, because sensors use only a part of the 16 bits.
    Colour is converted to BT.601 luma, with a warning if the planes differ: the colours of a colour map are no
    temperature.
    """
    image = infrared_luma(decode(path), Path(path).name)
    if image.dtype == np.uint8:
        if span:
            raise DataError(f"{path}: 8-bit infrared; a range (--ir-range) is only for 16-bit images")
        return image
    if span is None:
        note("16-bit infrared is scaled to 8 bits by the minimum and maximum of each image; --ir-range sets one scale "
             "for all", Path(path).name)
        span = int(image.min()), int(image.max())
    low, high = span
    scaled = (image.astype(np.float64) - low) * (255.0 / max(high - low, 1))
    return np.round(np.clip(scaled, 0, 255)).astype(np.uint8)


def infrared_luma(pixels: np.ndarray, name: str) -> np.ndarray:
    """Infrared pixels, gray or RGB, as gray (H, W), same dtype. Warns about `name` if the colour planes differ."""
    if pixels.ndim == 3 and _colourful(pixels):
        note("infrared in colour is converted to luma; if the visible images are gray, --ir and --vis are swapped; in place of a "
             "colour map, use the original gray image", name)
    return luma(pixels)


def infrared_span(path: str | Path) -> tuple[int, int] | None:
    """(minimum, maximum) of a 16-bit infrared image; None for an 8-bit image. Raises DataError."""
    image = luma(decode(path))
    return (int(image.min()), int(image.max())) if image.dtype == np.uint16 else None


def _colourful(image: np.ndarray) -> bool:
    """Whether the planes of an (H, W, 3) image differ by more than JPEG compression changes a gray image."""
    if (image == image[..., :1]).all():
        return False
    small = np.float32(image[::4, ::4]) * (255 / np.iinfo(image.dtype).max)
    return float(np.ptp(small, axis=2).mean()) > COLOURFUL


@within_memory
def read_gray(path: str | Path) -> np.ndarray:
    """Read any image as uint8 gray, (H, W). Colour is converted to BT.601 luma. Errors as for `decode`."""
    return luma(read_vis(path))


def write_image(path: str | Path, image: np.ndarray) -> None:
    """Write uint8 (H, W) or (H, W, 3) RGB in the format that the suffix names. The file is written atomically.

    Raises:
        OSError: for example a full disk or a missing folder.
        DataError: an unknown suffix, or a size that the format cannot store.
        TypeError: another kind or shape of image.
    """
    path = Path(path)
    if image.dtype != np.uint8 or image.ndim not in (2, 3) or image.ndim == 3 and image.shape[2] != 3:
        raise TypeError(f"{path}: expected an image of uint8, (H, W) or (H, W, 3), got {image.dtype} {image.shape}"
                        f"{FLOAT_REMEDY if image.dtype.kind == 'f' else ''}")
    bgr = image if image.ndim == 2 else cv2.cvtColor(image, cv2.COLOR_RGB2BGR)
    try:
        ok, data = cv2.imencode(path.suffix, bgr)
    except cv2.error:
        ok = False
    if not ok:
        raise DataError(f"{path}: cannot encode {image.shape[1]}x{image.shape[0]} as "
                        f"{path.suffix or 'a file without suffix'}; use .png")
    write_atomically(path, data.tobytes(), sync=False)      # no fsync: a lost image can be computed again


# ---------------------------------------------------------------------------------------------
# Colour


def luma(image: np.ndarray) -> np.ndarray:
    """BT.601 luma of a gray or RGB image: (H, W), same dtype."""
    return image if image.ndim == 2 else cv2.cvtColor(image, cv2.COLOR_RGB2GRAY)


def split_colour(vis: np.ndarray) -> tuple[np.ndarray, np.ndarray | None]:
    """Split a uint8 image, gray (H, W) or RGB (H, W, 3), into luminance and chrominance.

    The conversion is full-range BT.601 (YCrCb of OpenCV), here and in `to_image`.

    Returns:
        Luminance, float32 (H, W) in [0, 1]; Cr and Cb, float32 (H, W, 2) in [0, 1], or None for a gray image.
    """
    unit = vis.astype(np.float32) / 255
    if unit.ndim == 2:
        return unit, None
    ycc = cv2.cvtColor(unit, cv2.COLOR_RGB2YCrCb)
    return np.ascontiguousarray(ycc[..., 0]), ycc[..., 1:]


def to_image(luminance: np.ndarray, chrominance: np.ndarray | None = None, studio_range: bool = False) -> np.ndarray:
    """Combine luminance (H, W) in [0, 1] and chrominance of `split_colour` to uint8, (H, W) or RGB (H, W, 3).

    studio_range: convert full-range Y with the studio-range formula 1.164 (Y - 16), as in the published images. This
    mixes two colour ranges. It raises the contrast by 16 % and clips. It is off by default.
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

ALIGNMENT_SIDE = 256    # pixels; larger images are resized to this longer side for the comparison
ALIGNMENT_LEAST = 96    # pixels; images with a shorter side are not checked, because their edges agree by chance
COMPARED_LEAST = 16     # pixels; the same for the shorter side after resizing, for very long images
LEAST_PEAK = 0.12       # threshold for the peak of the phase correlation, which is 1 for identical images
ALIGNED = 4.0           # pixels of the original image; smaller shifts are not reported


def apparent_shift(ir: np.ndarray, vis: np.ndarray) -> float | None:
    """Estimate the shift between the two images of a pair, in pixels. None if the estimate is not reliable.

    The method is phase correlation (Kuglin and Hines 1975) of log gradient magnitudes at a reduced size. The two
    modalities share few edges. Therefore a low peak is ignored, and the gradients must correlate better with the shift
    than without it. results/facts.csv has how many shifted and unchanged pairs it reports.

    Args:
        ir, vis: uint8 of one size, (H, W) or (H, W, 3).
    """
    shorter, longer = sorted(ir.shape[:2])
    scale = min(1.0, ALIGNMENT_SIDE / longer)
    if shorter < ALIGNMENT_LEAST or shorter * scale < COMPARED_LEAST:
        return None
    first, second = (_edges(luma(image), scale) for image in (ir, vis))
    window = cv2.createHanningWindow(first.shape[::-1], cv2.CV_32F)
    (right, down), peak = cv2.phaseCorrelate(first - first.mean(), second - second.mean(), window)
    # "not >" and not "<=": the peak is NaN for constant images.
    if not peak > LEAST_PEAK or max(abs(right), abs(down)) >= min(first.shape) / 4:
        return None
    first, second = (cv2.blur(edges, (3, 3)) for edges in (first, second))
    there, here = (_correlation(first, second, *place) for place in ((round(right), round(down)), (0, 0)))
    return float(np.hypot(right, down)) / scale if there > max(here + 0.05, 0.15) else None


def note_shift(name: str, ir: np.ndarray, vis: np.ndarray) -> None:
    """Warn about the pair `name` if its images seem to be shifted by more than ALIGNED pixels."""
    shift = apparent_shift(ir, vis)
    if shift and shift > ALIGNED:
        note("the sources seem to be shifted against each other (--no-alignment-check silences this)",
             f"{name} by about {shift:.0f} pixels")


def _edges(image: np.ndarray, scale: float) -> np.ndarray:
    if scale < 1:
        image = cv2.resize(image, None, fx=scale, fy=scale, interpolation=cv2.INTER_AREA)
    return np.log1p(cv2.magnitude(*(cv2.Sobel(image, cv2.CV_32F, *order) for order in ((1, 0), (0, 1)))))


def _correlation(first: np.ndarray, second: np.ndarray, right: int, down: int) -> float:
    """Pearson correlation of the overlap, where the second image is shifted to the right and down. (H, W) each."""
    height, width = first.shape
    first = first[max(0, -down):height - max(0, down), max(0, -right):width - max(0, right)]
    second = second[max(0, down):height + min(0, down), max(0, right):width + min(0, right)]
    first, second = first - first.mean(), second - second.mean()
    return float((first * second).sum() / max(np.sqrt((first**2).sum() * (second**2).sum()), 1e-9))
