"""Shared by the metrics: input checks, intermediate results, filters, iteration over bands of rows.

Intermediate results are computed on first use. Only sums and small pyramids are kept. Passes over the pixels work on
bands of rows, so that their buffers fit into the CPU cache for any image size.
"""
from __future__ import annotations

from collections.abc import Callable, Hashable, Iterator
from functools import cached_property
from typing import Any, TypeVar

import cv2
import numpy as np

Result = TypeVar("Result")

BAND_PIXELS = 1 << 16       # approximate number of pixels in a band


def bands(shape: tuple[int, ...], halo: int) -> Iterator[slice]:
    """Slices of rows for windows of 1 + halo rows. Each window position of the image lies in exactly one slice."""
    height, width = shape
    rows = max(8, BAND_PIXELS // width)
    for top in range(0, height - halo, rows):
        yield slice(top, min(top + rows + halo, height))


class Undefined(Exception):
    """A metric is not defined for these images. The message says why."""


class Shared:
    """Base class that caches results computed from its instance."""

    def __init__(self) -> None:
        self._results: dict[tuple[Hashable, ...], Any] = {}

    def shared(self, compute: Callable[..., Result], *args: Hashable) -> Result:
        """Result of compute(self, *args). It is computed once and cached."""
        key = (compute, *args)
        if key not in self._results:
            self._results[key] = compute(self, *args)
        return self._results[key]


class Image(Shared):
    """One 8-bit gray image, (H, W), and cached results that depend only on it.

    Args:
        pixels: the image; errors as for `check`.
        role: "fused", "ir" or "vis", for messages.
    """

    def __init__(self, pixels: np.ndarray, role: str):
        super().__init__()
        check(pixels, role)
        self.pixels, self.role = np.ascontiguousarray(pixels), role      # also for views and subclasses

    @cached_property
    def histogram(self) -> np.ndarray:
        """Counts of the 256 gray levels."""
        return np.bincount(self.pixels.ravel(), minlength=256)

    @property
    def is_flat(self) -> bool:
        """Whether all pixels are equal."""
        return np.count_nonzero(self.histogram) == 1

    @property
    def size(self) -> str:
        """WIDTHxHEIGHT, for messages."""
        return f"{self.pixels.shape[1]}x{self.pixels.shape[0]}"


class Trio(Shared):
    """A fused image and both sources, and cached results of them. Raises ValueError for different sizes."""

    def __init__(self, fused: Image, ir: Image, vis: Image):
        super().__init__()
        for source in (ir, vis):
            if source.pixels.shape != fused.pixels.shape:
                raise ValueError(f"fused is {fused.size} and {source.role} {source.size} (width x height); "
                                 f"metrics compare images of one size: write the fused image at the source's size")
        self.fused, self.ir, self.vis = fused, ir, vis
        self.sources = (ir, vis)

    @classmethod
    def of(cls, fused: np.ndarray, ir: np.ndarray, vis: np.ndarray) -> Trio:
        """Check three arrays, uint8 (H, W), and make a trio. Raises ValueError."""
        return cls(Image(fused, "fused"), Image(ir, "ir"), Image(vis, "vis"))

    @cached_property
    def joint(self) -> list[np.ndarray]:
        """Joint histograms (256, 256) of fused x infrared and fused x visible."""
        return [joint_histogram(self.fused, source) for source in self.sources]

    @cached_property
    def moments(self) -> Moments:
        return Moments(self)


class Moments:
    """Sums over pixels as exact integers, so that the variance of a constant image or difference is exactly 0."""

    def __init__(self, trio: Trio):
        level = np.arange(256)
        fused, ir, vis = trio.fused, trio.ir, trio.vis
        self.n = fused.pixels.size
        sums = {x.role: int(x.histogram @ level) for x in (fused, ir, vis)}
        products = {(x.role, x.role): int(x.histogram @ level**2) for x in (fused, ir, vis)}
        joints = [(ir, trio.joint[0]), (vis, trio.joint[1])]
        products |= {("fused", x.role): int(level @ joint @ level) for x, joint in joints}
        products["ir", "vis"] = int(level @ joint_histogram(ir, vis) @ level)
        self._sums, self._products = sums, products

    def covariance(self, x: str, y: str) -> int:
        """n^2 times the covariance of two images."""
        product = self._products[(x, y) if (x, y) in self._products else (y, x)]
        return self.n * product - self._sums[x] * self._sums[y]

    def squared_error(self, source: str) -> float:
        """Mean squared difference of the fused image and a source, in squared gray levels."""
        total = (self._products["fused", "fused"] + self._products[source, source]
                 - 2 * self._products["fused", source])
        return total / self.n


def check(pixels: np.ndarray, role: str) -> None:
    """Raises ValueError unless `pixels` is an unmasked uint8 array (H, W) of at least 3 x 3."""
    if not isinstance(pixels, np.ndarray) or pixels.ndim != 2:
        got = f"shape {pixels.shape}" if isinstance(pixels, np.ndarray) else type(pixels).__name__
        raise ValueError(f"{role}: expected a gray numpy array (H, W), got {got}; "
                         f"turn colour to luma with cv2.cvtColor(x, cv2.COLOR_RGB2GRAY)")
    if np.ma.isMaskedArray(pixels):
        raise ValueError(f"{role}: masked array; the metrics know no mask: pass {role}.filled(level), or crop the images")
    if pixels.dtype != np.uint8:
        finite = pixels.dtype.kind != "f" or bool(np.isfinite(pixels).all())
        got = f"{pixels.dtype}" if finite else f"{pixels.dtype} with NaN or infinity"
        remedy = {"f": "convert an image x in [0, 1] with np.rint(np.clip(x, 0, 1) * 255).astype(np.uint8)",
                  "b": "convert a mask x with 255 * x.astype(np.uint8)"}.get(
            pixels.dtype.kind, "levels from 0 to 255: x.astype(np.uint8); 16-bit files: images.read_ir")
        raise ValueError(f"{role}: expected 8-bit pixels (uint8), got {got}; {remedy}")
    if min(pixels.shape) < 3:
        raise ValueError(f"{role}: {pixels.shape[1]}x{pixels.shape[0]} pixels; the metrics need at least 3x3")


def saturate(x: np.ndarray) -> np.ndarray:
    """Conversion to uint8 as in MATLAB: round half up, clip to [0, 255]. The dtype does not change."""
    return np.clip(np.floor(x + 0.5), 0, 255)


def valid_filter(x: np.ndarray, kernel: np.ndarray) -> np.ndarray:
    """Separable filter, float64. The result covers only positions where the whole window lies inside the image."""
    radius = len(kernel) // 2
    return cv2.sepFilter2D(x, cv2.CV_64F, kernel, kernel)[radius:-radius, radius:-radius]


def joint_histogram(x: Image, y: Image) -> np.ndarray:
    """Joint histogram, (256, 256) counts. The first index is the level of x."""
    both = (x.pixels.astype(np.uint16) << 8) | y.pixels
    return np.bincount(both.ravel(), minlength=1 << 16).reshape(256, 256)


def need_side(image: Image, side: int) -> None:
    """Raises Undefined if the height or width of the image is below `side`."""
    if min(image.pixels.shape) < side:
        raise Undefined(f"{image.size} is below {side}x{side}")
