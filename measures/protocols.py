"""Protocols: which metrics and arithmetic a table has. `evaluate` computes all of them for one image."""
from __future__ import annotations

from collections.abc import Iterable

import numpy as np

from measures import differences, edges, fmi, histogram, ssim, vif  # noqa: F401  (importing registers the metrics)
from measures.images import Trio
from measures.registry import ALIASES, METRICS

PROTOCOLS = {       # name: description in one line
    "definition": "the published formulas, in real numbers",
    "toolbox": "MATLAB's saturating uint8 arithmetic in MI, SF, SD, VIF; VIFF of images in [0, 1]; the rest as defined",
    "paper": "the column that the paper calls SF is the average gradient (AG), SD and VIFF are those of toolbox",
    "cddfuse": "gray levels in real numbers; MI in nats; Qabf of 0-255 images; SSIM summed, 7 x 7 windows, data range 2",
}
NAMES = ("EN", "MI", "SF", "SD", "AG", "MSE", "PSNR", "CC", "SCD", "VIF", "VIFF", "Qabf", "SSIM",
         "MS-SSIM", "FMI", "Nabf")
LOWER_IS_BETTER = frozenset(name for name, metric in METRICS.items() if metric.lower_is_better)

# {column of the paper: (metric, arithmetic)}. The paper's column SF holds the average gradient.
PAPER_COLUMNS = {"EN": ("EN", "definition"), "SF (AG)": ("AG", "definition"), "SD": ("SD", "toolbox"),
                 "CC": ("CC", "definition"), "SCD": ("SCD", "definition"), "VIFF": ("VIFF", "toolbox")}

# The columns of the tables that follow CDDFuse, and four more metrics of its evaluator.
CDDFUSE_COLUMNS = ("EN", "SD", "SF", "MI", "SCD", "VIF", "Qabf", "SSIM")
CDDFUSE_EXTRAS = ("AG", "PSNR", "CC", "MSE")


def canonical(protocol: str) -> str:
    """Current name of a protocol. "float" and "uint8" are the former names of "definition" and "toolbox".

    Raises ValueError for an unknown name.
    """
    name = ALIASES.get(protocol, protocol)
    if name not in PROTOCOLS:
        raise ValueError(f"protocol '{protocol}': one of {', '.join(PROTOCOLS)}")
    return name


def columns(protocol: str) -> tuple[str, ...]:
    """Names of the metrics that `evaluate` computes under a protocol."""
    special = {"paper": tuple(PAPER_COLUMNS), "cddfuse": CDDFUSE_COLUMNS + CDDFUSE_EXTRAS}
    return special.get(canonical(protocol), NAMES)


def column(name: str, protocol: str) -> str:
    """The column of a protocol with this name. Under "paper", "SF" means "SF (AG)". Raises ValueError."""
    known = columns(protocol)
    meant = "SF (AG)" if canonical(protocol) == "paper" and name == "SF" else name
    if meant not in known:
        raise ValueError(f"no metric '{name}' under protocol '{protocol}'; it has {', '.join(known)}")
    return meant


def table_columns(protocol: str) -> tuple[str, ...]:
    """The columns that the published tables of the protocol print; a part of `columns`."""
    return CDDFUSE_COLUMNS if canonical(protocol) == "cddfuse" else columns(protocol)


def evaluate(fused: np.ndarray, ir: np.ndarray, vis: np.ndarray, protocol: str = "definition",
             names: Iterable[str] | None = None) -> dict[str, float]:
    """Compute metrics of one fused image. Intermediate results are shared.

    Args:
        fused, ir, vis: uint8 (H, W), one size, at least 3 x 3.
        protocol: a key of `PROTOCOLS`. "float" and "uint8", the former names of "definition" and "toolbox", are
            accepted in version 0.4.
        names: the metrics to compute, or one of them, a part of `columns(protocol)`; by default all. Under "paper", SF
            means SF (AG).
    Returns:
        {name: value} in the order of `names`. An undefined metric is nan, with a warning: MS-SSIM below 176 x 176
        pixels, VIF and VIFF below 41 x 41, SSIM below 11 x 11 ("cddfuse": 7 x 7), CC with a constant image, SCD, VIF
        and VIFF with a constant source, Qabf of two black sources.
    Raises:
        ValueError: images that are not uint8 (H, W), masked, of different sizes or below 3 x 3; unknown names.
    """
    return evaluate_trio(Trio.of(fused, ir, vis), protocol, names)


def evaluate_trio(trio: Trio, protocol: str, names: Iterable[str] | None = None) -> dict[str, float]:
    """`evaluate` for checked images, which may already hold cached results."""
    protocol = canonical(protocol)
    names = [names] if isinstance(names, str) else names
    names = columns(protocol) if names is None else [column(name, protocol) for name in names]
    held = PAPER_COLUMNS if protocol == "paper" else {name: (name, protocol) for name in names}
    return {name: METRICS[held[name][0]].of(trio, held[name][1]) for name in names}
