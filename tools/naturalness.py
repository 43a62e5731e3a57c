"""Measure whether fused images look natural: dark stays dark, targets stay hot, the background keeps its brightness.

    python tools/naturalness.py --fused RPFNet=Fused Other=DIR --ir DIR --vis DIR       images of any method
    python tools/naturalness.py --checkpoint checkpoints/rpfnet.pth --ir DIR --vis DIR --flicker      a network

The usual metrics (EN, SF, SD, CC, SCD, VIF) do not see absolute brightness. They reward a night scene that became
gray fog, because its noise has entropy and contrast. The measures here compare gray levels with those of the sources.
The average and the maximum of the sources are always measured as well, for comparison.

All images are 8-bit luma, (H, W); the network fuses the luma too. A measure is nan where an image does not define it,
and the means leave nan out.
"""
from __future__ import annotations

import argparse
import csv
import math
import sys
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import NamedTuple

import cv2
import numpy as np
import torch
from tqdm import tqdm

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from dataset import Pair, load_pair, positive
from images import DataError, luma
from loss import above_deviation, adaptive_weight
from metrics import (
    BASELINES,
    Running,
    Task,
    add_image_options,
    baseline,
    collect_methods,
    collect_pairs,
    match_fused,
    read_tasks,
)
from net import RPFNet

MEASURES = {
    "dark": "mean of F where both sources are below 25, gray levels",
    "lift": "dark minus the brighter source's mean there, gray levels; natural: near 0",
    "noise": "fine noise of F there over that of the noisier source; natural: at most near 1",
    "hot": "mean of F over mean of IR on infrared targets; natural: near 1",
    "day": "mean of F over mean of VIS on the background, images by day; natural: near 1",
    "night": "the same, images by night",
    "black": "mean of F where both sources are at most 2, gray levels; natural: near 0",
}
FLICKER_MEASURES = {
    "flicker": "RMS change of the static background while a hot target passes, gray levels; natural: 0",
    "jump": "largest change of that background's mean from one frame to the next, gray levels; natural: 0",
}

DARK = 25           # gray levels; a pixel below is dark
BLACK = 2           # gray levels; a pixel up to here is black: the surroundings of a head in medical images
DAY = 60.0          # gray levels; a visible image with at least this mean is by day
MIN_SHARE = 0.01    # of an image's pixels that must be dark, or black, for a mean over them
MIN_HOT = 0.001     # the same for hot pixels: a distant person covers no more
NOISE_SIGMA = 1.5   # pixels, of the blur that noise is the residual of
NOISE_WINDOW = 9    # pixels, side of the windows that each give one noise level
MIN_NOISE = 0.1     # gray levels; sources with less have no noise (rounding alone gives 0.3), and a ratio means nothing

TARGET_WIDTH = 1 / 12   # of the image's width: the generated target at half its height
TARGET_IR = 240         # gray level of its centre in the infrared image
TARGET_VIS = 6          # gray levels that it adds to the visible image
TARGET_MARGIN = 24      # pixels between the target's outer edge and what counts as background

Fuse = Callable[[np.ndarray, np.ndarray], np.ndarray]

# ---------------------------------------------------------------------------------------------
# Single images


def naturalness(fused: np.ndarray, ir: np.ndarray, vis: np.ndarray, day: float = DAY) -> dict[str, float]:
    """All measures of one fused image.

    Infrared targets are the hot pixels T of Eq. 7 (IR > mean + standard deviation) where the infrared is brighter than
    the visible image. Elsewhere a hot pixel is a sunlit surface, and the visible image may set its brightness. The
    background is where w of Eq. 9, with 1 + S, is 0 (`loss.adaptive_weight`).

    Args:
        fused, ir, vis: uint8 (H, W), one size.
        day: from this mean of the visible image on, in gray levels, it is by day.
    Returns:
        {name: value} for the names in `MEASURES`. nan where fewer than 1 % of the pixels are dark or black, fewer
        than 0.1 % are targets, the sources have no noise, or the visible background is entirely 0.
    Raises:
        ValueError: not uint8 (H, W), or different sizes.
    """
    _check_images(fused=fused, ir=ir, vis=vis)
    dark, black = (np.maximum(ir, vis) < DARK), (np.maximum(ir, vis) <= BLACK)
    hot, background = _regions(ir, vis)
    dark_level = _mean(fused, dark)
    background_ratio = _ratio(_mean(fused, background), _mean(vis, background))
    by_day = vis.mean() >= day
    return {
        "dark": dark_level,
        "lift": dark_level - max(_mean(ir, dark), _mean(vis, dark)),
        "noise": _noise_ratio(fused, ir, vis, dark),
        "hot": _ratio(_mean(fused, hot, MIN_HOT), _mean(ir, hot, MIN_HOT)),
        "day": background_ratio if by_day else math.nan,
        "night": math.nan if by_day else background_ratio,
        "black": _mean(fused, black),
    }


def _check_images(**images: np.ndarray) -> None:
    size = images["ir"].shape
    for name, image in images.items():
        if image.dtype != np.uint8 or image.ndim != 2 or image.shape != size:
            raise ValueError(f"{name} is {image.dtype} {image.shape}; expected uint8 (H, W) of ir's size, {size}")


def _regions(ir: np.ndarray, vis: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Infrared targets and background, both bool (H, W)."""
    ir_tensor, vis_tensor = (torch.from_numpy(np.float32(x) / 255)[None, None] for x in (ir, vis))
    hot = above_deviation(ir_tensor)[0, 0].numpy() > 0
    weight = adaptive_weight(ir_tensor, vis_tensor)[0, 0].numpy()
    return hot & (ir > vis), weight == 0


def _mean(image: np.ndarray, where: np.ndarray, share: float = MIN_SHARE) -> float:
    """Mean of the pixels `where`; nan if they are a smaller share of the image."""
    return float(image[where].mean()) if where.mean() >= share else math.nan


def _ratio(value: float, reference: float) -> float:
    return value / reference if reference > 0 else math.nan


def _noise_ratio(fused: np.ndarray, ir: np.ndarray, vis: np.ndarray, where: np.ndarray) -> float:
    if where.mean() < MIN_SHARE:
        return math.nan
    reference = max(_noise(ir, where), _noise(vis, where))
    return _noise(fused, where) / reference if reference >= MIN_NOISE else math.nan


def _noise(image: np.ndarray, where: np.ndarray) -> float:
    """Standard deviation of the fine detail in the pixels `where`, gray levels, as the median of local ones.

    The detail is the residual of a Gaussian blur. That of a 3 x 3 median is exactly 0 in most pixels of a dark 8-bit
    image. One standard deviation over all pixels would measure lamps and edges, where the residual is large. The median
    absolute deviation is wrong on whole gray levels: for noise of deviation 1 and 2 it finds a ratio of 0.64.
    """
    image, inside = image.astype(np.float32), where.astype(np.float32)
    residual = image - cv2.GaussianBlur(image, (0, 0), NOISE_SIGMA)
    squares, pixels = (cv2.blur(x, (NOISE_WINDOW, NOISE_WINDOW)) for x in (residual**2 * inside, inside))
    return math.sqrt(np.median(squares[where] / pixels[where]))


# ---------------------------------------------------------------------------------------------
# A generated sequence


def entering_target(ir: np.ndarray, vis: np.ndarray, frames: int) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """A still scene through which a hot target moves, frame by frame: (ir, vis) each, uint8, as the arguments.

    Frame 0 is the scene itself, with the target just outside the left border. Then it moves evenly along the middle
    row, and in the last frame its centre is at the right border. The target is a disc with a Gaussian edge, 1/12 of the
    image's width at half its height. In the infrared it covers the scene with gray level 240. In the visible it adds 6
    gray levels. All other pixels keep their values exactly (see `static_background`).

    Args:
        ir: uint8 (H, W).
        vis: uint8 (H, W) or (H, W, 3).
        frames: number of frames, at least 2.
    Raises:
        ValueError: fewer than 2 frames.
    """
    profile = _target_profile(ir.shape[1])
    for distance in _target_distances(ir.shape, frames):
        alpha = profile.opacity(distance)
        hot = np.rint(ir + alpha * (TARGET_IR - ir.astype(np.float32)))
        added = np.rint(TARGET_VIS * alpha).reshape(*ir.shape, *[1] * (vis.ndim - 2))
        yield hot.astype(np.uint8), np.minimum(vis + added, 255).astype(np.uint8)


def static_background(shape: tuple[int, int], frames: int) -> np.ndarray:
    """Pixels that stay far from the target in all frames of `entering_target`: more than 24 pixels from its edge.

    Args:
        shape: (H, W) of the images.
        frames: as for `entering_target`.
    Returns:
        bool (H, W).
    """
    limit = _target_profile(shape[1]).radius + TARGET_MARGIN
    return np.logical_and.reduce([distance > limit for distance in _target_distances(shape, frames)])


def _target_distances(shape: tuple[int, int], frames: int) -> Iterator[np.ndarray]:
    """Each pixel's distance to the target's centre, (H, W), frame by frame."""
    if frames < 2:
        raise ValueError(f"frames={frames}; a sequence has at least 2")
    height, width = shape
    y, x = np.ogrid[:height, :width]
    for centre in np.linspace(-_target_profile(width).radius - 1, width - 1, frames):
        yield np.hypot(x - centre, y - (height - 1) / 2)


class _Profile(NamedTuple):
    """Opacity of the target over the distance to its centre, pixels: 1 in the core, then a Gaussian edge."""
    core: float
    sigma: float

    @property
    def radius(self) -> float:
        """Where the edge is cut: further out it changes a pixel by less than half a gray level."""
        return self.core + 3.6 * self.sigma

    def opacity(self, distance: np.ndarray) -> np.ndarray:
        beyond = np.maximum(distance - self.core, 0)
        return np.exp(-(beyond / self.sigma)**2 / 2) * (distance < self.radius)


def _target_profile(width: int) -> _Profile:
    """That of the target in an image of this width, in pixels."""
    half = width * TARGET_WIDTH / 2
    sigma = half / 4
    return _Profile(half - sigma * math.sqrt(2 * math.log(2)), sigma)       # the edge falls to 0.5 at `half`


def flicker(method: Fuse | RPFNet, ir: np.ndarray, vis: np.ndarray, frames: int = 20) -> float:
    """RMS change of the static background while a hot target passes, see `flicker_measures`."""
    return flicker_measures(method, ir, vis, frames)["flicker"]


def flicker_measures(method: Fuse | RPFNet, ir: np.ndarray, vis: np.ndarray, frames: int = 20) -> dict[str, float]:
    """How much the static background of `entering_target` changes, where the sources do not change at all.

    Args:
        method: a function `fuse(ir, vis) -> uint8`, or an object with such a method, as RPFNet.
        ir, vis, frames: as for `entering_target`.
    Returns:
        "flicker": RMS of F_t - F_0 over all background pixels and the frames t = 1, 2, ..., gray levels.
        "jump": the largest |mean(F_t) - mean(F_{t-1})| over the background, gray levels.
    Raises:
        ValueError: fewer than 2 frames, or no background is left because the image is too low or too small.
    """
    fuse = getattr(method, "fuse", method)
    background = static_background(ir.shape, frames)
    if not background.any():
        raise ValueError(f"{ir.shape[1]}x{ir.shape[0]}: no pixel stays {TARGET_MARGIN} pixels away from the target; "
                         "use larger images for the flicker")
    change = Change(background)
    for frame in entering_target(ir, vis, frames):
        change.add(luma(fuse(*frame)))
    return {"flicker": change.rms, "jump": change.jump}


class Change:
    """RMS change of the background since frame 0, and the largest change of its mean from frame to frame; gray levels.

    Args:
        background: bool (H, W), as the images that are added.
    """

    def __init__(self, background: np.ndarray):
        self._background = background
        self._first: np.ndarray | None = None
        self._squares: list[float] = []
        self._means: list[float] = []

    def add(self, image: np.ndarray) -> None:
        level = image[self._background].astype(np.float64)
        if self._first is None:
            self._first = level
        else:
            self._squares.append(float(np.mean((level - self._first)**2)))
        self._means.append(level.mean())

    @property
    def rms(self) -> float:
        return math.sqrt(np.mean(self._squares))

    @property
    def jump(self) -> float:
        return float(np.abs(np.diff(self._means)).max())


# ---------------------------------------------------------------------------------------------
# python tools/naturalness.py


def build_parser() -> argparse.ArgumentParser:
    width = max(map(len, MEASURES | FLICKER_MEASURES))
    parser = argparse.ArgumentParser(
        formatter_class=argparse.RawDescriptionHelpFormatter, description=__doc__,
        epilog="measures (F is the fused image):\n" + "\n".join(
            f"  {name:{width}}  {text}" for name, text in (MEASURES | FLICKER_MEASURES).items()))
    images = add_image_options(parser)
    images.add_argument("--day", type=float, default=DAY, metavar="LEVEL", help="an image is by day if its visible "
                        "mean is at least this gray level (default: %(default)g)")

    network = parser.add_argument_group("network")
    network.add_argument("--checkpoint", type=Path, metavar="FILE", help="fuse the pairs with these weights, "
                         "and measure the results; the row has the file's name")
    network.add_argument("--as-published", action="store_true", help="fuse as the published pictures were made, "
                         "with the statistics of the one image")
    network.add_argument("--flicker", nargs="?", type=positive, const=5, metavar="PAIRS", help="also measure "
                         "flicker, on sequences generated from the first pairs (default: %(const)s of them)")
    network.add_argument("--frames", type=positive, default=20, help="frames of each sequence (default: %(default)s)")
    network.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu",
                         help="cuda, cuda:1, cpu (default: cuda where there is one)")

    output = parser.add_argument_group("output")
    output.add_argument("--each", action="store_true", help="one row for each image, before the means")
    output.add_argument("--csv", type=Path, metavar="FILE", help="write the same rows, unrounded, and the number "
                        "of images behind each mean")
    return parser


def check_options(args: argparse.Namespace) -> None:
    """Raises ValueError for options that do not go together, before any work is done."""
    if not args.fused and not args.checkpoint:
        raise ValueError("nothing to measure: give --fused [NAME=]DIR or --checkpoint FILE")
    if (args.as_published or args.flicker) and not args.checkpoint:
        raise ValueError("--as-published and --flicker need a network: give --checkpoint FILE")
    if args.frames < 2:
        raise ValueError("--frames: a sequence has at least 2")
    if args.csv and not args.csv.absolute().parent.is_dir():
        raise ValueError(f"--csv {args.csv}: no such folder")


def load_network(args: argparse.Namespace, taken: Sequence[str]) -> dict[str, Fuse]:
    """{name: fuse} of --checkpoint; empty without."""
    if not args.checkpoint:
        return {}
    name = args.checkpoint.stem + (" as published" if args.as_published else "")
    if name in taken:
        raise ValueError(f"--checkpoint {args.checkpoint}: the name {name} is taken; rename the one in --fused")
    model = RPFNet.from_pretrained(args.checkpoint, args.device)
    return {name: partial(model.fuse, as_published=True) if args.as_published else model.fuse}


class Survey:
    """Measures of many images: `values` by (image, method), `problems` a line for each that failed."""

    def __init__(self, network: dict[str, Fuse], day: float, problems: list[str]):
        self.network, self.day, self.problems = network, day, problems
        self.values: dict[tuple[str, str], dict[str, float]] = {}

    def measure(self, task: Task) -> None:
        """All methods' images of one pair. A pair that could not be read has none."""
        if not task.fused:
            return
        makers = {method: partial(np.asarray, image) for method, image in task.fused.items()}
        makers |= {method: partial(fuse, task.ir, task.vis) for method, fuse in self.network.items()}
        for method, make in makers.items():
            try:
                self.values[task.name, method] = naturalness(make(), task.ir, task.vis, self.day)
            except (ValueError, RuntimeError) as error:
                self.problems.append(f"{method}, {task.name}: {error}")

    def measure_flicker(self, pair: Pair, frames: int) -> None:
        """Of the network and of the baselines, which have none."""
        ir, vis = load_pair(pair)
        for method, fuse in (self.network | {name: partial(baseline, name) for name in BASELINES}).items():
            if (pair.name, method) in self.values:
                try:
                    self.values[pair.name, method] |= flicker_measures(fuse, ir, luma(vis), frames)
                except (ValueError, RuntimeError) as error:
                    self.problems.append(f"{method}, {pair.name}, flicker: {error}")

    def images(self) -> list[str]:
        return list(dict.fromkeys(image for image, _ in self.values))

    def means(self, methods: Sequence[str], names: Sequence[str]) -> dict[str, list[Running]]:
        """{method: the mean of each measure}, over the images that define it."""
        result = {method: [Running() for _ in names] for method in methods}
        for (_, method), values in self.values.items():
            for name, running in zip(names, result[method]):
                running.add(values.get(name, math.nan))
        return result


Rows = list[tuple[str, str, list[float]]]     # image, method, values


def table(rows: Rows, names: Sequence[str], counts: Sequence[int]) -> str:
    """An aligned table. The header has the number of images behind each mean."""
    cells = [["image", "method", *(f"{name} ({count})" for name, count in zip(names, counts))]]
    cells += [[image, method, *(f"{value:.3f}" for value in values)] for image, method, values in rows]
    widths = [max(map(len, column)) for column in zip(*cells)]
    return "\n".join("  ".join(cell.ljust(width) if i < 2 else cell.rjust(width)
                               for i, (cell, width) in enumerate(zip(line, widths))) for line in cells)


def report(args: argparse.Namespace, survey: Survey, methods: Sequence[str]) -> None:
    """Print the table and write the CSV file. Raises OSError."""
    names = list(MEASURES | FLICKER_MEASURES if args.flicker else MEASURES)
    means = survey.means(methods, names)
    rows: Rows = []
    if args.each:
        rows += [(image, method, [survey.values[image, method].get(name, math.nan) for name in names])
                 for image in survey.images() for method in methods if (image, method) in survey.values]
    rows += [("mean", method, [running.mean for running in row]) for method, row in means.items()]
    print(table(rows, names, [running.count for running in means[BASELINES[0]]]))
    if args.csv:
        rows += [("images", method, [running.count for running in row]) for method, row in means.items()]
        with args.csv.open("w", newline="", encoding="utf-8") as file:
            csv.writer(file).writerows([["image", "method", *names], *([i, m, *values] for i, m, values in rows)])


def main(argv: Sequence[str] | None = None) -> int:
    args = build_parser().parse_args(argv)
    interrupted = False
    try:
        check_options(args)
        pairs, problems = collect_pairs(args)
        fused = {}
        for name, folder in collect_methods(args.fused).items():
            fused[name], unpaired = match_fused(pairs, folder)
            problems += unpaired
        network = load_network(args, [*fused, *BASELINES])
    except (DataError, ValueError, OSError) as error:
        print(f"naturalness.py: {error}", file=sys.stderr)
        return 1
    survey = Survey(network, args.day, problems)
    try:
        tasks = read_tasks(pairs, fused, BASELINES, problems)
        for task in tqdm(tasks, total=len(pairs), unit="pair", desc="measuring", disable=None):
            survey.measure(task)
        measured = set(survey.images())
        readable = [pair for pair in pairs if pair.name in measured][:args.flicker or 0]
        for pair in tqdm(readable, unit="sequence", desc="flicker", disable=None if args.flicker else True):
            survey.measure_flicker(pair, args.frames)
    except KeyboardInterrupt:
        interrupted = True
    try:
        report(args, survey, [*fused, *network, *BASELINES])
    except OSError as error:
        problems.append(f"--csv: {error}")
    for problem in problems:
        print(f"skipped: {problem}", file=sys.stderr)
    if interrupted:
        print("naturalness.py: interrupted; the rows above hold what was done", file=sys.stderr)
    return 130 if interrupted else 1 if problems else 0


if __name__ == "__main__":
    sys.exit(main())
