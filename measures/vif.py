"""Visual information fidelity (VIF) and its variant for fusion (VIFF)."""
from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import cv2
import numpy as np

from measures.images import Image, Trio, Undefined, bands, need_side, valid_filter
from measures.registry import metric

VIF_MIN_SIDE = 41       # smallest side for which the fourth scale has a 3 x 3 window

_KERNELS = [cv2.getGaussianKernel(size, size / 5) for size in (17, 9, 5, 3)]
_EPS = 1e-10
_VIFF_WEIGHTS = (1 / 2.15, 0, 0.15 / 2.15, 1 / 2.15)
_VIFF_NOISE = 0.005 * 255**2


@metric(variants=("toolbox",))
def VIF(trio: Trio, arithmetic: str) -> float:
    """Pixel-domain visual information fidelity (vifp), summed over both sources. Range [0, inf), higher is better.

    2 means that nothing is lost. Added contrast raises it further. Four scales, sigma_n^2 = 2. The logarithms are summed
    over the scales, then one ratio is taken. "toolbox": at scale 1, squares and products saturate at 255. nan with a
    warning below 41 x 41 pixels, and if a source is constant.
    Source: Sheikh and Bovik, IEEE Trans. Image Process. 15(2), 2006, the authors' vifp_mscale.
    """
    need_side(trio.fused, VIF_MIN_SIDE)
    _need_detail(trio.sources)
    sums = [trio.shared(_sums, scale) for scale in range(4)]
    if arithmetic == "toolbox":
        sums[0] = _sums(trio, 0, saturate=True)
    total = 0.0
    for i in range(len(trio.sources)):
        kept, there = (sum(scale.vif[i][k] for scale in sums) for k in (0, 1))
        total += kept / there
    return total


@metric(variants=("toolbox",))
def VIFF(trio: Trio, arithmetic: str) -> float:
    """Visual information fidelity for fusion. Range [0, inf), higher is better.

    1 means that nothing is lost. Added contrast raises it further. It uses the four scales of vifp. At each
    position, the source with the smaller gain is used. There is one ratio for each scale, with the weights (1, 0,
    0.15, 1) / 2.15. sigma_n^2 = 0.005 * 255^2. "toolbox": images in [0, 1] with the noise variance unchanged,
    because the toolbox calls im2double. Tables print this variant. nan with a warning below 41 x 41 pixels, and if
    a source is constant: it would have the smaller gain, 0, at all positions, and any image the value 1.
    Source: Han et al., Information Fusion 14(2), 2013.
    """
    need_side(trio.fused, VIF_MIN_SIDE)
    _need_detail(trio.sources)
    sums = [trio.shared(_sums, scale).viff[arithmetic] for scale in range(4)]
    return sum(weight * kept / there for weight, (kept, there) in zip(_VIFF_WEIGHTS, sums))


def _need_detail(sources: Sequence[Image]) -> None:
    """Raises Undefined for a constant source, which holds no information."""
    for source in sources:
        if source.is_flat:
            raise Undefined(f"{source.role} constant")


class _Sums(NamedTuple):
    """Sums over the positions of one scale: information in the fused image and in the source, in nats."""
    vif: list[list[float]]              # [in the fused image, in the source] for each source
    viff: dict[str, list[float]]        # {arithmetic: the same for the source with the smaller gain at each position}


def _pyramid(image: Image) -> list[np.ndarray]:
    """The four scales of vifp. Before scales 2 to 4, the image is filtered, then every second sample is taken."""
    scales = [image.pixels]
    for kernel in _KERNELS[1:]:
        scales.append(np.ascontiguousarray(valid_filter(scales[-1], kernel)[::2, ::2]))
    return scales


def _sums(trio: Trio, scale: int, saturate: bool = False) -> _Sums:
    """One pass over a scale. `saturate`: products saturate at 255, as uint8 * uint8 does in MATLAB (VIF only)."""
    kernel = _KERNELS[scale]
    images = [image.shared(_pyramid)[scale] for image in (trio.fused, trio.ir, trio.vis)]
    vif, viff = np.zeros((2, 2)), {"definition": np.zeros(2), "toolbox": np.zeros(2)}
    for rows in bands(images[0].shape, halo=len(kernel) - 1):
        fused_var, variances, covariances = _window_statistics(*(x[rows] for x in images), kernel, saturate)
        models = [_gain(var, fused_var, cov, _EPS) for var, cov in zip(variances, covariances)]
        vif += [_information(var, *model, 2) for var, model in zip(variances, models)]
        if saturate or _VIFF_WEIGHTS[scale] == 0:
            continue
        viff["definition"] += _least_information(variances, models, _VIFF_NOISE)
        # Images in [0, 1] have variances divided by 255^2. Multiplying the constants by 255^2 is equivalent.
        models = [_gain(var, fused_var, cov, _EPS * 255**2) for var, cov in zip(variances, covariances)]
        viff["toolbox"] += _least_information(variances, models, _VIFF_NOISE * 255**2)
    places = (images[0].shape[0] - len(kernel) + 1) * (images[0].shape[1] - len(kernel) + 1)
    floor = 1e-7 * math.log(10) * places        # VIFF adds 1e-7 at each position, and its logarithms have base 10
    return _Sums(vif.tolist(), {key: (both + floor).tolist() for key, both in viff.items()})


def _window_statistics(fused: np.ndarray, ir: np.ndarray, vis: np.ndarray, kernel: np.ndarray,
                       saturate: bool) -> tuple[np.ndarray, list[np.ndarray], list[np.ndarray]]:
    """Windowed variance of the fused image; variances of the sources; their covariances with the fused image."""
    def second_moment(x: np.ndarray, y: np.ndarray) -> np.ndarray:
        return valid_filter(cv2.multiply(x, y) if saturate else np.multiply(x, y, dtype=np.float64), kernel)

    def variance(x: np.ndarray, mean: np.ndarray) -> np.ndarray:
        return np.maximum(second_moment(x, x) - mean * mean, 0)

    mean, *means = (valid_filter(x, kernel) for x in (fused, ir, vis))
    return (variance(fused, mean), [variance(x, m) for x, m in zip((ir, vis), means)],
            [second_moment(x, fused) - m * mean for x, m in zip((ir, vis), means)])


def _gain(ref_var: np.ndarray, fused_var: np.ndarray, cov: np.ndarray, eps: float) -> tuple[np.ndarray, np.ndarray]:
    """Model F = gain * source + noise in each window. Returns the gain and the variance of the noise.

    The gain is 0 (no information) for windows that are constant in either image and for negative gains.
    """
    gain = cov / (ref_var + eps)
    gain *= (cov > 0) & (ref_var >= eps) & (fused_var >= eps)
    return gain, np.maximum(fused_var - gain * cov, eps)


def _information(ref_var: np.ndarray, gain: np.ndarray, noise: np.ndarray, noise_var: float) -> tuple[float, float]:
    """Information in the fused image and in the source, summed over all windows, in nats."""
    kept = 1 + gain * gain * ref_var / (noise + noise_var)
    return float(np.log(kept).sum()), float(np.log(1 + ref_var / noise_var).sum())


def _least_information(variances: list[np.ndarray], models: list[tuple[np.ndarray, np.ndarray]],
                       noise_var: float) -> tuple[float, float]:
    """`_information` of the source with the smaller gain at each position."""
    of_ir = models[0][0] < models[1][0]
    gain, noise = (np.where(of_ir, *both) for both in zip(*models))
    return _information(np.where(of_ir, *variances), gain, noise, noise_var)
