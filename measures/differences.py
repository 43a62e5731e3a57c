"""Metrics of contrast, errors and correlations: SF, SD, AG, MSE, PSNR, CC, SCD."""
from __future__ import annotations

import math

import cv2
import numpy as np

from measures.images import Image, Trio, Undefined, saturate
from measures.registry import METRICS, metric


@metric(fused_only=True, variants=("toolbox",))
def SF(fused: Image, arithmetic: str) -> float:
    """Spatial frequency, in gray levels. Range [0, 361], higher is better.

    sqrt(mean(row difference^2) + mean(column difference^2)). Each mean is over its own valid differences. Some tables
    print SF / 255. "toolbox": negative differences become 0, and squares saturate at 255.
    Source: Eskicioglu and Fisher, IEEE Trans. Commun. 43(12), 1995.
    """
    x = fused.pixels
    neighbours = ((x[1:], x[:-1]), (x[:, 1:], x[:, :-1]))
    if arithmetic == "definition":
        return math.sqrt(sum(cv2.norm(a, b, cv2.NORM_L2SQR) / a.size for a, b in neighbours))
    differences = [cv2.subtract(a, b) for a, b in neighbours]               # OpenCV saturates as MATLAB does
    return math.sqrt(sum(cv2.multiply(d, d).mean() for d in differences))


@metric(fused_only=True, variants=("toolbox",))
def SD(fused: Image, arithmetic: str) -> float:
    """Population standard deviation of the gray levels. Range [0, 127.5], higher is better.

    "toolbox": F - mean saturates at 0, and its square saturates at 255. The values are then at most 16, and near 10 for
    images whose standard deviation is near 40. Most tables print this variant.
    Source: Rao, Meas. Sci. Technol. 8(4), 1997.
    """
    n, level = fused.pixels.size, np.arange(256)
    total = int(fused.histogram @ level)
    if arithmetic == "toolbox":
        squares = saturate(saturate(level - total / n) ** 2)
        return math.sqrt(fused.histogram @ squares / n)
    return math.sqrt(n * int(fused.histogram @ level**2) - total**2) / n


@metric(fused_only=True, variants=("cddfuse",))
def AG(fused: Image, arithmetic: str) -> float:
    """Average gradient, in gray levels. Range [0, 255], tiny images can exceed it; higher is better.

    sum(sqrt((gx^2 + gy^2) / 2)) / ((H - 1)(W - 1)), with gx and gy of `numpy.gradient`. The RPFNet paper prints AG in
    its column "SF". "cddfuse": the mean over all H x W pixels.
    Source: Cui et al., Optics Communications 341, 2015.
    """
    gy, gx = np.gradient(fused.pixels.astype(np.float32))
    height, width = fused.pixels.shape
    count = height * width if arithmetic == "cddfuse" else (height - 1) * (width - 1)
    return float(np.sqrt((gx * gx + gy * gy) / 2).sum(dtype=np.float64)) / count


@metric(lower_is_better=True, variants=("cddfuse",))
def MSE(trio: Trio, arithmetic: str) -> float:
    """Mean of the mean squared errors to both sources, for images in [0, 1]. Range [0, 1], lower is better.

    "cddfuse": in squared gray levels, range [0, 65025].
    """
    unit = 1 if arithmetic == "cddfuse" else 255**2
    return (trio.moments.squared_error("ir") / unit + trio.moments.squared_error("vis") / unit) / 2


@metric(variants=("cddfuse",))
def PSNR(trio: Trio, arithmetic: str) -> float:
    """Peak signal-to-noise ratio, as fusion tables print it, in dB. Range [48.1, inf], higher is better.

    20 log10(255 / sqrt(MSE)) with the MSE of images in [0, 1]. The peak and the error have different units, so each
    value is 48.13 dB above the textbook definition. inf for equal images. "cddfuse": 10 log10(P^2 / MSE) in gray
    levels, where P is the brightest pixel of the fused image; range [-inf, inf], -inf for a black fused image.
    """
    mse = METRICS["MSE"].of(trio, arithmetic)
    if mse == 0:
        return math.inf
    if arithmetic == "definition":
        return 20 * math.log10(255 / math.sqrt(mse))
    peak = int(trio.fused.pixels.max())
    return 20 * math.log10(peak) - 10 * math.log10(mse) if peak else -math.inf


@metric()
def CC(trio: Trio) -> float:
    """Mean of the Pearson correlations with both sources. Range [-1, 1], higher is better.

    nan with a warning if an image is constant.
    Source: Deshmukh and Bhosale, Int. J. Image Process. 4(5), 2010.
    """
    moments = trio.moments
    variance = {role: moments.covariance(role, role) for role in ("fused", "ir", "vis")}
    flat = [role for role, value in variance.items() if value == 0]
    if flat:
        raise Undefined(f"{' and '.join(flat)} constant")
    return sum(moments.covariance("fused", source) / math.sqrt(variance["fused"] * variance[source])
               for source in ("ir", "vis")) / 2


@metric()
def SCD(trio: Trio) -> float:
    """Sum of the correlations of differences, corr(F - VIS, IR) + corr(F - IR, VIS). Range [-2, 2], higher is better.

    If a difference is constant (the fused image is a copy of one source), it holds nothing of the other source, and its
    correlation counts as 0. nan with a warning if a source is constant.
    Source: Aslantas and Bendes, AEU Int. J. Electron. Commun. 69(12), 2015.
    """
    cov, total = trio.moments.covariance, 0.0
    for source, other in (("ir", "vis"), ("vis", "ir")):
        # The covariance is bilinear, so F - other needs no pass over the pixels.
        shared = cov("fused", source) - cov(other, source)
        variance = cov("fused", "fused") + cov(other, other) - 2 * cov("fused", other)
        if cov(source, source) == 0:
            raise Undefined(f"{source} constant")
        total += shared / math.sqrt(variance * cov(source, source)) if variance else 0.0
    return total
