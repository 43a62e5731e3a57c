"""Measure whether fused images look natural: dark stays dark, targets stay hot, the background keeps its brightness.

    python tools/naturalness.py --fused RPFNet=Fused Other=DIR --ir DIR --vis DIR       images of any method
    python tools/naturalness.py --checkpoint checkpoints/rpfnet.pth --ir DIR --vis DIR --flicker      a network

The usual metrics (EN, SF, SD, CC, SCD, VIF) ignore absolute brightness. They reward a night scene that became gray fog,
because its noise has entropy and contrast. The measures here compare gray levels with those of the sources. The average
and the maximum of the sources are always measured as baselines.

All images are 8-bit luma, (H, W). With --checkpoint, the network also fuses the luma. A measure is nan if an image does
not define it. Means leave out nan.
"""
from __future__ import annotations

import argparse
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

from dataset import Pair, Reader, reader
from images import DataError, luma
from loss import above_deviation, adaptive_weight
from measures.tables import Runnings, add_format, aligned, csv_cell, escape
from metrics import (
    BASELINES,
    Task,
    add_image_options,
    baseline,
    check_csv,
    collect_methods,
    collect_pairs,
    match_methods,
    read_tasks,
)
from net import RPFNet
from support.console import complain, failed, finished, first_line, given_path, noted, number, positive
from support.console import run as run_command
from support.outputs import OutputError, as_csv, check_place, write_atomically
from support.runtime import default_device

MEASURES = {
    "dark": "mean of F on dark pixels (both sources below 25), gray levels",
    "lift": "dark minus the mean of the brighter source on dark pixels, gray levels; natural: near 0",
    "noise": "fine noise of F / fine noise of the noisier source, on dark pixels; natural: at most near 1",
    "hot": "mean of F / mean of IR on infrared targets; natural: near 1",
    "bright": "the same on bright targets (IR at least 150)",
    "day": "mean of F / mean of VIS on the background, daytime images; natural: near 1",
    "night": "mean of F / mean of VIS on the background, night images",
    "black": "mean of F on black pixels (both sources at most 2), gray levels; natural: near 0",
}
FLICKER_MEASURES = {
    "flicker": "RMS change of the static background while a hot target passes, gray levels; natural: 0",
    "jump": "largest change of the mean of this background from one frame to the next, gray levels; natural: 0",
}

DARK = 25           # gray levels; pixels below this are dark
BRIGHT = 150        # gray levels; targets from this level are bright, such as persons and engines
BLACK = 2           # gray levels; pixels up to this are black, such as the surroundings of a head in medical images
DAY = 60.0          # gray levels; a visible image with at least this mean is a daytime image
MIN_SHARE = 0.01    # smallest share of dark (or black) pixels in an image for which their mean is computed
MIN_HOT = 0.001     # smallest share of hot pixels, because a distant person covers only a few pixels
NOISE_SIGMA = 1.5   # pixels, standard deviation of the blur; noise is the residual of this blur
NOISE_WINDOW = 9    # pixels, side of the windows; each gives one local noise level
MIN_NOISE = 0.1     # gray levels; sources with less are free of noise (rounding alone gives 0.3), and no ratio is given

TARGET_WIDTH = 1 / 12   # width of the generated target at half its height, as a share of the image's width
TARGET_IR = 240         # gray level of its centre in the infrared image
TARGET_VIS = 6          # gray levels that it adds to the visible image
TARGET_MARGIN = 24      # pixels between the target's outer edge and the background

FAILURES = (ValueError, RuntimeError, MemoryError, cv2.error)   # of a single image; the others are measured

Fuse = Callable[[np.ndarray, np.ndarray], np.ndarray]

# ---------------------------------------------------------------------------------------------
# Single images


def naturalness(fused: np.ndarray, ir: np.ndarray, vis: np.ndarray, day: float = DAY) -> dict[str, float]:
    """Compute all measures of one fused image.

    Infrared targets are the hot pixels T of Eq. 7 (IR > mean + standard deviation) where the infrared is brighter than
    the visible image. Other hot pixels are sunlit surfaces, whose brightness may come from the visible image. The
    background is the region with w = 0, w of Eq. 9 with 1 + S (`loss.adaptive_weight`).

    Args:
        fused, ir, vis: uint8 (H, W), one size.
        day: a visible image with at least this mean, in gray levels, is a daytime image.
    Returns:
        {name: value} for the names in `MEASURES`. nan if fewer than 1 % of the pixels are dark or black, fewer than
        0.1 % are (bright) targets, the sources have no noise, or the visible background is entirely 0.
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
        "hot": _level_ratio(fused, ir, hot),
        "bright": _level_ratio(fused, ir, hot & (ir >= BRIGHT)),
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
    weight = adaptive_weight(ir_tensor, vis_tensor, plus=True)[0, 0].numpy()
    return hot & (ir > vis), weight == 0


def _mean(image: np.ndarray, where: np.ndarray, share: float = MIN_SHARE) -> float:
    """Mean of the pixels `where`; nan if their share of the image is below `share`."""
    return float(image[where].mean()) if where.mean() >= share else math.nan


def _ratio(value: float, reference: float) -> float:
    return value / reference if reference > 0 else math.nan


def _level_ratio(fused: np.ndarray, ir: np.ndarray, targets: np.ndarray) -> float:
    return _ratio(_mean(fused, targets, MIN_HOT), _mean(ir, targets, MIN_HOT))


def _noise_ratio(fused: np.ndarray, ir: np.ndarray, vis: np.ndarray, where: np.ndarray) -> float:
    if where.mean() < MIN_SHARE:
        return math.nan
    reference = max(_noise(ir, where), _noise(vis, where))
    return _noise(fused, where) / reference if reference >= MIN_NOISE else math.nan


def _noise(image: np.ndarray, where: np.ndarray) -> float:
    """Noise level of the pixels `where`, gray levels: the median of the local standard deviations of the fine detail.

    The detail is the residual of a Gaussian blur. Other choices fail. The residual of a 3 x 3 median is exactly 0 in
    most pixels of a dark 8-bit image. One standard deviation over all pixels would measure lamps and edges, where the
    residual is large. The median absolute deviation is wrong for integer gray levels: for noise with standard
    deviations 1 and 2 it gives a ratio of 0.64.
    """
    image, inside = image.astype(np.float32), where.astype(np.float32)
    residual = image - cv2.GaussianBlur(image, (0, 0), NOISE_SIGMA)
    squares, pixels = (cv2.blur(x, (NOISE_WINDOW, NOISE_WINDOW)) for x in (residual**2 * inside, inside))
    return math.sqrt(np.median(squares[where] / pixels[where]))


# ---------------------------------------------------------------------------------------------
# A generated sequence


def entering_target(ir: np.ndarray, vis: np.ndarray, frames: int) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Yield the frames of a static scene through which a hot target moves: (ir, vis), uint8, with the given shapes.

    Frame 0 is the scene itself, with the target just outside the left border. The target moves evenly along the middle
    row. In the last frame its centre is at the right border. The target is a disc with a Gaussian edge. Its width at
    half height is 1/12 of the image's width. In the infrared image it covers the scene with gray level 240. In the
    visible image it adds 6 gray levels. All other pixels keep their values exactly (see `static_background`).

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
    """Pixels that are more than 24 pixels away from the target's edge in all frames of `entering_target`.

    Args:
        shape: (H, W) of the images.
        frames: as for `entering_target`.
    Returns:
        bool (H, W).
    """
    limit = _target_profile(shape[1]).radius + TARGET_MARGIN
    return np.logical_and.reduce([distance > limit for distance in _target_distances(shape, frames)])


def _target_distances(shape: tuple[int, int], frames: int) -> Iterator[np.ndarray]:
    """Yield for each frame the distance of each pixel to the target's centre, (H, W)."""
    if frames < 2:
        raise ValueError(f"frames={frames}; a sequence has at least 2")
    height, width = shape
    y, x = np.ogrid[:height, :width]
    for centre in np.linspace(-_target_profile(width).radius - 1, width - 1, frames):
        yield np.hypot(x - centre, y - (height - 1) / 2)


class _Profile(NamedTuple):
    """Opacity of the target as a function of the distance to its centre: 1 in the core, then a Gaussian edge."""
    core: float     # pixels
    sigma: float    # pixels

    @property
    def radius(self) -> float:
        """Radius where the edge is cut off. Beyond it, a pixel would change by less than half a gray level."""
        return self.core + 3.6 * self.sigma

    def opacity(self, distance: np.ndarray) -> np.ndarray:
        beyond = np.maximum(distance - self.core, 0)
        return np.exp(-(beyond / self.sigma)**2 / 2) * (distance < self.radius)


def _target_profile(width: int) -> _Profile:
    """Profile of the target in an image of this width, in pixels."""
    half = width * TARGET_WIDTH / 2
    sigma = half / 4
    return _Profile(half - sigma * math.sqrt(2 * math.log(2)), sigma)       # the edge falls to 0.5 at `half`


def flicker_measures(method: Fuse | RPFNet, ir: np.ndarray, vis: np.ndarray, frames: int = 20) -> dict[str, float]:
    """Measure the change of the static background of `entering_target`, where the sources do not change at all.

    Args:
        method: a function `fuse(ir, vis) -> uint8`, or an object with such a method `fuse`, such as RPFNet.
        ir, vis, frames: as for `entering_target`.
    Returns:
        "flicker": RMS of F_t - F_0 over all background pixels and the frames t = 1, 2, ..., gray levels.
        "jump": the largest |mean(F_t) - mean(F_{t-1})| over the background, gray levels.
    Raises:
        ValueError: fewer than 2 frames, or an image so small that it has no background.
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
    """Measures the RMS change of the background since frame 0, and the largest change of its mean between frames.

    Both are in gray levels. `add` each frame, then read `rms` and `jump`.

    Args:
        background: the pixels to measure, bool (H, W).
    """

    def __init__(self, background: np.ndarray):
        self._background = background
        self._first: np.ndarray | None = None
        self._squares: list[float] = []
        self._means: list[float] = []

    def add(self, image: np.ndarray) -> None:
        """Add the next frame, uint8 (H, W)."""
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
        usage="python tools/naturalness.py [options]",
        epilog="measures (F is the fused image):\n" + "\n".join(
            f"  {name:{width}}  {text}" for name, text in (MEASURES | FLICKER_MEASURES).items()))
    images = add_image_options(parser)
    images.add_argument("--day", type=number(0, 255), default=DAY, metavar="LEVEL", help="visible images with at least this "
                        "mean gray level are daytime images (default: %(default)g)")

    network = parser.add_argument_group("network")
    network.add_argument("--checkpoint", type=given_path, metavar="NAME|FILE", help="fuse the pairs with these weights, "
                         "and measure the results; the row has the name of the weights or of the file")
    network.add_argument("--as-published", action="store_true", help="normalise each image by its own statistics, as "
                         "for the published images")
    network.add_argument("--flicker", nargs="?", type=positive, const=5, metavar="PAIRS", help="also measure "
                         "flicker, on sequences generated from the first PAIRS pairs (default: %(const)s)")
    network.add_argument("--frames", type=positive, help="frames of each sequence of --flicker (default: 20)")
    network.add_argument("--device", help="cuda, cuda:1 or cpu (default: cuda if available)")

    output = parser.add_argument_group("output")
    add_format(output)
    output.add_argument("--each", action="store_true", help="print one row for each image before the means")
    output.add_argument("--csv", type=Path, metavar="FILE", help="also write these rows without rounding, and the "
                        "number of images of each mean; the file is replaced")
    return parser


def check_options(args: argparse.Namespace) -> None:
    """Raises ValueError for options that do not fit together, before any work is done."""
    if not args.fused and not args.checkpoint:
        raise ValueError("nothing to measure: give --fused [NAME=]DIR or --checkpoint NAME|FILE")
    if (args.as_published or args.flicker or args.device) and not args.checkpoint:
        raise ValueError("--as-published, --flicker and --device need a network: give --checkpoint NAME|FILE")
    if args.fused_pattern and not args.fused:
        raise ValueError("--fused-pattern goes with --fused")
    if args.frames and not args.flicker:
        raise ValueError("--frames goes with --flicker")
    args.frames = args.frames or 20
    if args.frames < 2:
        raise ValueError("--frames: a sequence has at least 2")
    if args.csv:
        check_place("--csv", args.csv)


def load_network(args: argparse.Namespace, taken: Sequence[str]) -> dict[str, Fuse]:
    """{name: fuse function} of --checkpoint; {} without it. Raises ValueError, OSError."""
    if not args.checkpoint:
        return {}
    name = args.checkpoint.stem + (" as published" if args.as_published else "")
    if name in taken:
        raise ValueError(f"--checkpoint {args.checkpoint}: the name {name} is taken; rename the one in --fused")
    model = RPFNet.from_pretrained(args.checkpoint, args.device or default_device())
    return {name: partial(model.fuse, as_published=True) if args.as_published else model.fuse}


class Survey:
    """Measures of many images.

    Args:
        network: {name: fuse function}, measured as a method.
        day: as for `naturalness`.
        problems: one line is added for each measurement that failed.
        read: reads a pair, see `dataset.reader`.

    Attributes:
        values: {(image, method): {measure: value}}.
    """

    def __init__(self, network: dict[str, Fuse], day: float, problems: list[str], read: Reader):
        self.network, self.day, self.problems, self.read = network, day, problems, read
        self.values: dict[tuple[str, str], dict[str, float]] = {}

    def measure(self, task: Task) -> None:
        """Measure the images of all methods for one pair. Nothing is measured for a pair that could not be read."""
        if not task.fused:
            return
        makers = {method: partial(np.asarray, image) for method, image in task.fused.items()}
        makers |= {method: partial(fuse, task.ir, task.vis) for method, fuse in self.network.items()}
        for method, make in makers.items():
            try:
                self.values[task.name, method] = naturalness(make(), task.ir, task.vis, self.day)
            except FAILURES as error:
                self.problems.append(f"{method}, {task.name}: {first_line(error)}")

    def measure_flicker(self, pair: Pair, frames: int) -> None:
        """Measure flicker of the network and of the baselines, whose flicker is 0."""
        ir, vis = self.read(pair)
        for method, fuse in (self.network | {name: partial(baseline, name) for name in BASELINES}).items():
            if (pair.name, method) in self.values:
                try:
                    self.values[pair.name, method] |= flicker_measures(fuse, ir, luma(vis), frames)
                except FAILURES as error:
                    self.problems.append(f"{method}, {pair.name}, flicker: {first_line(error)}")

    def images(self) -> list[str]:
        """Names of the measured images, in order."""
        return list(dict.fromkeys(image for image, _ in self.values))

    def means(self, methods: Sequence[str], names: Sequence[str]) -> dict[str, Runnings]:
        """{method: running means}, over the images that define a measure."""
        result = {method: Runnings(names) for method in methods}
        for (_, method), values in self.values.items():
            result[method].add(dict.fromkeys(names, math.nan) | values)
        return result


Rows = list[tuple[str, str, Sequence[float | int]]]     # image, method, values


def table(rows: Rows, names: Sequence[str], style: str) -> str:
    """Format an aligned table. Numbers of images are shown as whole numbers."""
    cells = [["image", "method", *names]]
    cells += [[*(escape(label, style) for label in labels),
               *(f"{value:.3f}" if isinstance(value, float) else str(value) for value in values)] for *labels, values in rows]
    return aligned(cells, style, text_columns=2)


def rows_of(survey: Survey, methods: Sequence[str], names: Sequence[str], each: bool) -> Rows:
    """Means and numbers of images; with `each`, the rows of all images before them."""
    means = survey.means(methods, names)
    rows: Rows = []
    if each:
        rows += [(image, method, [survey.values[image, method].get(name, math.nan) for name in names])
                 for image in survey.images() for method in methods if (image, method) in survey.values]
    rows += [("mean", method, [*row.means.values()]) for method, row in means.items()]
    return rows + [("images", method, [running.count for running in row.values()]) for method, row in means.items()]


def write_rows(path: Path, rows: Rows, names: Sequence[str]) -> None:
    """Write the rows as CSV. Raises OSError."""
    columns = ["image", "method", *names]
    write_atomically(path, as_csv(columns, [dict(zip(columns, (csv_cell(i), csv_cell(m), *values))) for i, m, values in rows]))


@noted()
def main(argv: Sequence[str] | None = None) -> int:
    args = build_parser().parse_args(argv)
    interrupted = False
    try:
        check_options(args)
        pairs, problems = collect_pairs(args)
        fused, unpaired = match_methods(pairs, collect_methods(args.fused), args.fused_pattern)
        problems += unpaired
        if args.csv:
            check_csv(args.csv, pairs, fused)
        network = load_network(args, [*fused, *BASELINES])
    except (DataError, OutputError, ValueError, OSError) as error:
        return failed("naturalness.py", error)
    survey = Survey(network, args.day, problems, reader(args))
    try:
        tasks = read_tasks(pairs, fused, BASELINES, problems, survey.read)
        for task in tqdm(tasks, total=len(pairs), unit="pair", desc="measuring", disable=None):
            survey.measure(task)
        measured = set(survey.images())
        readable = [pair for pair in pairs if pair.name in measured][:args.flicker or 0]
        for pair in tqdm(readable, unit="sequence", desc="flicker", disable=None if args.flicker else True):
            survey.measure_flicker(pair, args.frames)
    except KeyboardInterrupt:
        interrupted = True
    names = list(MEASURES | FLICKER_MEASURES if args.flicker else MEASURES)
    rows = rows_of(survey, [*fused, *network, *BASELINES], names, args.each)
    if args.csv:
        try:
            write_rows(args.csv, rows, names)
        except OSError as error:
            problems.append(f"--csv: {error}")
    print(table(rows, names, args.format))      # after the file is written: standard output can be a closed pipe (| head)
    if interrupted:
        complain("naturalness.py: interrupted; the rows above hold what was done")
    return finished(problems, interrupted)


if __name__ == "__main__":
    sys.exit(run_command(main))
