"""`evaluate`: the columns of a protocol, with shared intermediate results."""
from __future__ import annotations

from collections.abc import Iterable

import numpy as np

from measures import differences, edges, fmi, histogram, ssim, vif  # noqa: F401  (they register their metrics)
from measures.images import Trio
from measures.registry import ALIASES, METRICS

PROTOCOLS = ("definition", "toolbox", "paper", "cddfuse")
NAMES = ("EN", "MI", "SF", "SD", "AG", "MSE", "PSNR", "CC", "SCD", "VIF", "VIFF", "Qabf", "SSIM",
         "MS-SSIM", "FMI", "Nabf")
LOWER_IS_BETTER = frozenset(name for name, metric in METRICS.items() if metric.lower_is_better)

# The paper's columns and what they hold: (metric, arithmetic). The column that it heads SF is the average gradient.
PAPER_COLUMNS = {"EN": ("EN", "definition"), "SF (AG)": ("AG", "definition"), "SD": ("SD", "toolbox"),
                 "CC": ("CC", "definition"), "SCD": ("SCD", "definition"), "VIFF": ("VIFF", "toolbox")}

# The columns of CDDFuse's family of tables, and four that its evaluator has besides.
CDDFUSE_COLUMNS = ("EN", "SD", "SF", "MI", "SCD", "VIF", "Qabf", "SSIM")
CDDFUSE_EXTRAS = ("AG", "PSNR", "CC", "MSE")


def canonical(protocol: str) -> str:
    """The protocol's name today: "float" and "uint8" are the former names of "definition" and "toolbox"."""
    name = ALIASES.get(protocol, protocol)
    if name not in PROTOCOLS:
        raise ValueError(f"protocol '{protocol}': one of {', '.join(PROTOCOLS)}")
    return name


def columns(protocol: str) -> tuple[str, ...]:
    """Names of the metrics that `evaluate` gives under a protocol."""
    special = {"paper": tuple(PAPER_COLUMNS), "cddfuse": CDDFUSE_COLUMNS + CDDFUSE_EXTRAS}
    return special.get(canonical(protocol), NAMES)


def column(name: str, protocol: str) -> str:
    """The column of a protocol that a name means; "SF" under "paper" is "SF (AG)"."""
    known = columns(protocol)
    meant = "SF (AG)" if canonical(protocol) == "paper" and name == "SF" else name
    if meant not in known:
        raise ValueError(f"no metric '{name}' under protocol '{protocol}'; it has {', '.join(known)}")
    return meant


def table_columns(protocol: str) -> tuple[str, ...]:
    """Those of `columns` that the published tables of the protocol print."""
    return CDDFUSE_COLUMNS if canonical(protocol) == "cddfuse" else columns(protocol)


def evaluate(fused: np.ndarray, ir: np.ndarray, vis: np.ndarray, protocol: str = "definition",
             names: Iterable[str] | None = None) -> dict[str, float]:
    """Metrics of one fused image, with shared intermediate results.

    Args:
        fused, ir, vis: uint8 (H, W), one size, at least 3 x 3.
        protocol: one of
            "definition": the definitions, in real numbers;
            "toolbox": MATLAB's saturating uint8 arithmetic in MI, SF, SD, VIF; VIFF of images in [0, 1];
            "paper": the RPFNet paper's EN, "SF (AG)", SD (toolbox), CC, SCD, VIFF (toolbox), where the column
                that the paper heads SF holds the average gradient;
            "cddfuse": CDDFuse's EN, SD, SF, MI (nats), SCD, VIF, Qabf (0-255), SSIM (sum, data range 2), and
                its AG (mean over H x W), PSNR, CC, MSE (gray levels).
            "float" and "uint8", the former names of the first two, are accepted in this release.
        names: some of `columns(protocol)` (under "paper" SF stands for SF (AG)); all of them by default. Only
            these are computed.
    Returns:
        {name: value} in the order of `names`. nan, with a warning, where a metric is undefined: below 176 x 176
        pixels MS-SSIM, 41 x 41 VIF and VIFF, 11 x 11 SSIM; correlations of a constant image.
    Raises:
        ValueError: not uint8 (H, W), masked, different sizes, below 3 x 3, unknown name or protocol.
    """
    return evaluate_trio(Trio.of(fused, ir, vis), protocol, names)


def evaluate_trio(trio: Trio, protocol: str, names: Iterable[str] | None = None) -> dict[str, float]:
    """`evaluate` of images that may already hold results."""
    protocol = canonical(protocol)
    names = columns(protocol) if names is None else [column(name, protocol) for name in names]
    held = PAPER_COLUMNS if protocol == "paper" else {name: (name, protocol) for name in names}
    return {name: METRICS[held[name][0]].of(trio, held[name][1]) for name in names}
