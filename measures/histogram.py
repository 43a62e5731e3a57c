"""Metrics of gray level histograms: entropy and mutual information."""
from __future__ import annotations

import math

import numpy as np

from measures.images import Image, Trio
from measures.registry import metric


@metric(fused_only=True)
def EN(fused: Image) -> float:
    """Entropy of the 256-bin histogram, in bits. Range [0, 8], higher is better.

    Source: Roberts et al., J. Appl. Remote Sens. 2, 2008.
    """
    return _entropy(fused.histogram)


@metric(variants=("toolbox", "cddfuse"))
def MI(trio: Trio, arithmetic: str) -> float:
    """Mutual information of the fused image with both sources, summed, in bits. Range [0, 16], higher is better.

    "toolbox": the joint histogram counts min(v + 1, 255), because the toolbox's index saturates. So 254 and 255 share a
    bin, and the marginal entropies keep 256 bins. "cddfuse": in nats.
    Source: Qu et al., Electronics Letters 38(7), 2002.
    """
    total = 0.0
    for source, joint in zip(trio.sources, trio.joint):
        counts = _merge_last_bins(joint) if arithmetic == "toolbox" else joint
        total += _entropy(source.histogram) + _entropy(trio.fused.histogram) - _entropy(counts)
    return total * math.log(2) if arithmetic == "cddfuse" else total


def _entropy(counts: np.ndarray) -> float:
    p = counts[counts > 0] / counts.sum()
    return float(-(p * np.log2(p)).sum()) + 0.0     # + 0.0 changes the -0.0 of a constant image to 0.0


def _merge_last_bins(joint: np.ndarray) -> np.ndarray:
    merged = joint[:255, :255].copy()
    merged[254] += joint[255, :255]
    merged[:, 254] += joint[:255, 255]
    merged[254, 254] += joint[255, 255]
    return merged
