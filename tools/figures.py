"""Make figures for papers, for the images of any method: sheets, features, spectra, trade-offs, the phase experiment.

    python tools/figures.py sheet --ir DIR --vis DIR --fused RPFNet=Fused Mine=DIR --names 5 18 --box auto
    python tools/figures.py features --checkpoint contrast --ir DIR --vis DIR --names 18
    python tools/figures.py spectrum --ir DIR --vis DIR --fused RPFNet=Fused Mine=DIR --csv spectrum.csv
    python tools/figures.py tradeoff --points points.csv
    python tools/figures.py phase --image a.png --box 40,40,24,24

Each kind writes OUT.png and OUT.pdf (--out, by default figures/KIND). If --out has a suffix, such as .jpg, it writes
only that file. Without --ir and --vis, the rendered samples are used. It needs matplotlib:
python -m pip install -r requirements-figures.txt
"""
from __future__ import annotations

import argparse
import csv
import io
import math
import sys
from collections.abc import Callable, Collection, Iterator, Sequence
from itertools import permutations
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

try:
    import matplotlib
    matplotlib.use("Agg")
    matplotlib.rcParams["svg.hashsalt"] = "rpfnet"      # ids, so that the same figure gives the same file
    from matplotlib import pyplot as plt
    from matplotlib.figure import Figure
    from matplotlib.image import AxesImage
    from matplotlib.patches import Rectangle
    from matplotlib.ticker import LogFormatter
except ModuleNotFoundError:
    sys.exit("figures.py: matplotlib is missing; python -m pip install -r requirements-figures.txt")

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from dataset import Pair, Reader, reader, sources_or_samples
from images import DataError, luma, read_gray
from loss import adaptive_weight
from measures.tables import Runnings
from metrics import BASELINES, add_image_options, baseline, collect_methods, match_fused, read_methods
from net import AuxiliaryDecoder, RPFNet
from pipeline import PAIR_ERRORS
from recipe import NO_TEACHER, TrainingError, completed
from support.console import Added, failed, finished, given, noted, positive, printable, refuse_unused
from support.console import run as run_command
from support.headers import SUFFIXES
from support.outputs import OutputError, as_csv, check_csv_name, check_place, refuse_input, write_atomically
from support.pairing import composed
from weights import check_weights, find, load, read_json

Box = tuple[int, int, int, int]     # x, y, width, height in pixels
Corner = tuple[int, int]            # right, top: 0 or 1 each
INSET = 0.36                        # side of a magnified crop as a share of the panel
PANEL = 2.4                         # width of a panel, inches
MOST_ROWS = 50                      # of a sheet; all its images are in memory
COLOUR_MAP = "turbo"                # colour map of feature maps and spectra
GRAY: dict[str, Any] = {"cmap": "gray", "vmin": 0, "vmax": 1}
SHARE: dict[str, Any] = {"cmap": COLOUR_MAP, "vmin": 0, "vmax": 1}
SIGNED: dict[str, Any] = {"cmap": "RdBu_r", "vmin": -1, "vmax": 1}
W_TITLES = {"printed": "w (Eq. 9 as printed)", "plus": "w (Eq. 9 with 1 + S)"}      # by --weight of train.py
FORMATS = (".png", ".jpg", ".jpeg", ".pdf", ".svg")

# ---------------------------------------------------------------------------------------------
# Sources


def chosen_pairs(args: argparse.Namespace, problems: list[str]) -> list[Pair]:
    """The pairs in --names, in this order, or the first --count pairs. Raises DataError for an unknown name.

    A name may have the suffix of an image file.
    """
    pairs, unpaired = sources_or_samples(args)
    problems += unpaired
    refuse_inputs(args, [path for pair in pairs for path in (pair.ir, pair.vis)])
    if not args.names:
        return pairs[:args.count] if args.count else pairs
    by_name = {composed(pair.name): pair for pair in pairs}
    stems = {name: Path(name).stem if Path(name).suffix.lower() in SUFFIXES else name for name in args.names}
    chosen = {name: by_name.get(composed(name)) or by_name.get(composed(stem)) for name, stem in stems.items()}
    missing = [name for name, pair in chosen.items() if not pair]
    if missing:
        raise DataError(f"--names {' '.join(missing)}: no such pair; there are {', '.join(list(by_name)[:5])} ...")
    return [chosen[name] for name in args.names]


def plain(name: str) -> str:
    """A name as text for Matplotlib, which takes what stands between two $ as mathematics."""
    return printable(name).replace("$", r"\$")


def readable(pairs: Sequence[Pair], problems: list[str], read: Reader) -> Iterator[tuple[Pair, np.ndarray, np.ndarray]]:
    """Each pair with its infrared and visible image. Pairs that cannot be read are left out, with a line in `problems`.

    Raises DataError at the end if no pair can be read.
    """
    found = False
    for pair in tqdm(pairs, desc="pairs", unit="pair", leave=False, disable=None):
        try:
            images = read(pair)
        except DataError as error:
            problems.append(str(error))
            continue
        found = True
        yield pair, *images
    if not found:
        raise DataError("no pair can be drawn: " + "; ".join(problems[:3]))


def fused_images(args: argparse.Namespace, pairs: Sequence[Pair], problems: list[str]) -> dict[str, dict[str, Path]]:
    """{method: {name of the pair: file}} for --fused. Missing images are added to `problems`."""
    methods = {}
    taken = ("infrared", "visible", *(BASELINES if args.kind == "spectrum" else ()))      # drawn beside the methods
    for name, folder in collect_methods(args.fused, taken).items():
        # --names leaves out pairs, so others are no problem.
        methods[name], missing, _ = match_fused(pairs, folder, args.fused_pattern)
        problems += missing
        refuse_inputs(args, methods[name].values())
    return methods


def refuse_inputs(args: argparse.Namespace, inputs: Collection[Path]) -> None:
    """Raises OutputError if a result would overwrite one of these files."""
    for path in [*files_of(args.out), *([args.csv] if args.csv else [])]:
        refuse_input(path, inputs)


# ---------------------------------------------------------------------------------------------
# sheet: Figures 1, 4, 5 and 8


def auto_boxes(ir: np.ndarray, vis: np.ndarray) -> list[Box]:
    """Two boxes: a hot target of the infrared image, and a textured region of the visible image beside it."""
    height, width = ir.shape
    side = max(8, min(height, width) // 5)

    def best(score: np.ndarray) -> Box:
        sums = cv2.boxFilter(score.astype(np.float32), -1, (side, side), anchor=(0, 0), borderType=cv2.BORDER_CONSTANT)
        inside = sums[:height - side + 1, :width - side + 1]
        y, x = np.unravel_index(np.argmax(inside), inside.shape)
        return int(x), int(y), side, side

    # Squared, so that a small bright target counts more than a large warm facade.
    heat = (ir > ir.mean() + ir.std()) * (ir.astype(np.float32) - vis).clip(0) ** 2
    hot = centred(best(heat), heat)
    texture = cv2.magnitude(cv2.Sobel(vis, cv2.CV_32F, 1, 0), cv2.Sobel(vis, cv2.CV_32F, 0, 1))
    texture[hot[1]:hot[1] + side, hot[0]:hot[0] + side] = -texture.max() * side
    return [hot, best(texture)]


def centred(box: Box, score: np.ndarray) -> Box:
    """The box moved to the centroid of the score in it, inside the image."""
    x, y, width, height = box
    sums = cv2.moments(score[y:y + height, x:x + width])
    if not sums["m00"]:
        return box
    middle = round(x + sums["m10"] / sums["m00"]), round(y + sums["m01"] / sums["m00"])
    x, y = (min(max(at - length // 2, 0), most - length)
            for at, length, most in zip(middle, (width, height), score.shape[::-1]))
    return x, y, width, height


def chosen_boxes(texts: Sequence[str], ir: np.ndarray, vis: np.ndarray) -> list[Box]:
    """What --box asks for on a sheet."""
    if list(texts) == ["none"]:
        return []
    return auto_boxes(ir, vis) if list(texts) == ["auto"] else given_boxes(texts, ir.shape)


def given_boxes(texts: Sequence[str], size: tuple[int, int], most: int = 2) -> list[Box]:
    """The boxes of --box, at most `most`, for an image of size (H, W). Raises DataError."""
    if len(texts) > most:
        raise DataError(f"--box {' '.join(texts)}: at most {most}")
    boxes = []
    for text in texts:
        try:
            x, y, width, height = map(int, text.split(","))
        except ValueError:
            raise DataError(f"--box {text}: write X,Y,W,H in pixels, or auto") from None
        if min(x, y) < 0 or min(width, height) < 1 or x + width > size[1] or y + height > size[0]:
            raise DataError(f"--box {text}: outside the image of {size[1]}x{size[0]} pixels")
        boxes.append((x, y, width, height))
    return boxes


def draw_sheet(args: argparse.Namespace, problems: list[str]) -> Figure:
    """One row for each pair and one column for each source and method, with magnified boxes."""
    chosen = chosen_pairs(args, problems)
    if len(chosen) > MOST_ROWS:
        raise DataError(f"{len(chosen)} pairs are too many for one sheet, which has at most {MOST_ROWS}; give --count or --names")
    pairs = list(readable(chosen, problems, reader(args)))
    methods = fused_images(args, [pair for pair, *_ in pairs], problems)
    titles = ["infrared", "visible", *methods]
    heights = [ir.shape[0] / ir.shape[1] for _, ir, _ in pairs]
    figure, axes = plt.subplots(len(pairs), len(titles), squeeze=False, layout="constrained",
                                figsize=(PANEL * len(titles), PANEL * sum(heights)), height_ratios=heights)
    for row, (pair, ir, vis) in zip(axes, tqdm(pairs, desc="drawing", unit="row", leave=False, disable=None)):
        boxes = chosen_boxes(args.box, ir, luma(vis))
        corners = inset_corners(boxes, ir.shape)
        fused = read_methods(pair, methods, ir.shape, problems)
        images = [ir, vis, *map(fused.get, methods)]
        for axis, title, image in zip(row, titles, images):
            draw_panel(axis, image, boxes, corners)
            if pair is pairs[0][0]:
                axis.set_title(plain(title), fontsize=9)
        row[0].set_ylabel(plain(pair.name), fontsize=8)
    return figure


def inset_corners(boxes: Sequence[Box], size: tuple[int, int]) -> tuple[Corner, ...]:
    """A corner for the magnified crop of each box, such that the crops cover as little as possible of all boxes.

    They cover nothing if the sides of the boxes are below a quarter of those of the image, (H, W) = size. Lower corners
    go first.
    """
    def covered(corners: tuple[Corner, ...]) -> float:
        insets = [inset_place(box, corner, size) for box, corner in zip(boxes, corners)]
        return sum(overlap(inset, box) for inset in insets for box in boxes)

    return min(permutations([(0, 0), (1, 0), (0, 1), (1, 1)], len(boxes)), key=covered)


def inset_place(box: Box, corner: Corner, size: tuple[int, int]) -> tuple[float, ...]:
    """x, y, width, height of a magnified crop in pixels of the image (H, W) = size."""
    scale = INSET * min(size[1] / box[2], size[0] / box[3])
    width, height = scale * box[2], scale * box[3]
    return corner[0] * (size[1] - width), (1 - corner[1]) * (size[0] - height), width, height


def overlap(a: Sequence[float], b: Sequence[float]) -> float:
    """Area that two rectangles x, y, width, height share."""
    sides = (min(a[i] + a[i + 2], b[i] + b[i + 2]) - max(a[i], b[i]) for i in (0, 1))
    return math.prod(max(0, side) for side in sides)


def draw_panel(axis: plt.Axes, image: np.ndarray | None, boxes: Sequence[Box], corners: Sequence[Corner]) -> None:
    """Draw an image with its boxes, and each box magnified in its corner."""
    axis.set(xticks=[], yticks=[])
    if image is None:
        axis.text(0.5, 0.5, "missing", ha="center", va="center", transform=axis.transAxes)
        return
    axis.imshow(image, cmap="gray", vmin=0, vmax=255)
    for (x, y, width, height), (right, top) in zip(boxes, corners):
        axis.add_patch(Rectangle((x, y), width, height, fill=False, edgecolor="red", linewidth=0.8))
        inset = axis.inset_axes((right * (1 - INSET), top * (1 - INSET), INSET, INSET))
        # Any other filter would blur the details that the reader is to judge.
        inset.imshow(image[y:y + height, x:x + width], cmap="gray", vmin=0, vmax=255, interpolation="nearest")
        inset.set(xticks=[], yticks=[], anchor=("S", "N")[top] + ("W", "E")[right])
        for spine in inset.spines.values():
            spine.set(edgecolor="red", linewidth=0.8)


# ---------------------------------------------------------------------------------------------
# features: Figure 3


@torch.inference_mode()
def draw_features(args: argparse.Namespace, problems: list[str]) -> Figure:
    """Sources, M, the result, w and M' if the weights were trained with them, and the mean features of each stage."""
    model, path = RPFNet.from_pretrained(args.checkpoint), find(args.checkpoint)
    about, described = description(path)
    recipe = completed(about["recipe"], str(described)) if "recipe" in about else {}
    args.count = 1      # without --names; --count is refused by check_options
    pair, *images = next(readable(chosen_pairs(args, problems), problems, reader(args)))
    ir, vis = (torch.from_numpy(luma(x))[None, None].float() / 255 for x in images)
    fused, features = model(ir, vis, return_features=True)
    residuals = [f.residual for f in features if f.residual is not None]
    first = {"infrared": (ir, GRAY), "visible": (vis, GRAY), "M": (ir - vis, SIGNED), "fused": (fused, GRAY)}
    if recipe.get("teacher") == NO_TEACHER:         # with a teacher, the loss has neither w nor M'
        if recipe["weight"] in W_TITLES:
            first[W_TITLES[recipe["weight"]]] = adaptive_weight(ir, vis, recipe["weight"] == "plus"), SHARE
        if recipe["saliency"] and residuals and "decoder" in about:
            first["M'"] = auxiliary_decoder(path, about["decoder"], model)(residuals[-1]), SHARE
    rows = [{title: (values[0, 0].numpy(), style) for title, (values, style) in first.items()},
            on_one_scale("F_F", [f.fusion for f in features])]
    if residuals:
        rows.append(on_one_scale("F_R", residuals))
    columns = max(map(len, rows))
    figure, axes = plt.subplots(len(rows), columns, squeeze=False, layout="constrained",
                                figsize=(PANEL * columns, PANEL * len(rows) * ir.shape[2] / ir.shape[3]))
    for line, row in zip(axes, rows):
        for axis in line:
            axis.axis("off")
        for axis, (title, (values, style)) in zip(line, row.items()):
            drawn = axis.imshow(values, **style)
            axis.set_title(title, fontsize=9)
            if style is not GRAY:
                figure.colorbar(drawn, ax=axis).ax.tick_params(labelsize=6)
    figure.suptitle(f"{plain(pair.name)}. F_F and F_R: means over the channels", fontsize=9)
    return figure


def on_one_scale(name: str, features: Sequence[Tensor]) -> dict[str, tuple[np.ndarray, dict]]:
    """{title: (mean over the channels, style)} for the features of each stage, each (1, C, H, W), on a common scale."""
    means = [values[0].mean(0).numpy() for values in features]
    low, high = np.quantile(means, (0.005, 0.995))      # of all stages; one lamp would otherwise set the scale
    style = {"cmap": COLOUR_MAP, "vmin": low, "vmax": high}
    return {f"{name}, stage {number}": (mean, style) for number, mean in enumerate(means)}


def description(path: Path) -> tuple[dict, Path]:
    """Content of a last.pth, or of the JSON file beside weights, and this file. Raises OSError, ValueError."""
    state, beside = load(path), path.with_suffix(".json")
    return (state, path) if isinstance(state, dict) and "config" in state else (read_json(beside), beside)


def auxiliary_decoder(path: Path, weights: dict, model: RPFNet) -> AuxiliaryDecoder:
    """The auxiliary decoder of a last.pth. Raises ValueError if the weights do not fit."""
    decoder = AuxiliaryDecoder(model.config["channels"]).eval()
    check_weights(path, weights, decoder)
    decoder.load_state_dict(weights)
    return decoder


# ---------------------------------------------------------------------------------------------
# spectrum: Figure 6. The paper does not define its three numbers. The definitions here are ours.


def log_psd(image: np.ndarray) -> np.ndarray:
    """Logarithm of the power spectral density of a uint8 image (H, W) with levels scaled to [0, 1].

    The result is (H, W) with frequency 0 in the middle. A Hann window suppresses the jump between opposite borders.
    """
    window = np.outer(np.hanning(image.shape[0]), np.hanning(image.shape[1]))
    values = image.astype(np.float64) / 255
    return np.log(np.abs(np.fft.fftshift(np.fft.fft2((values - values.mean()) * window))) ** 2 + 1e-8)


def spectral_numbers(fused: np.ndarray, ir: np.ndarray, vis: np.ndarray) -> dict[str, float]:
    """Infrared and visible fidelity (correlations of log PSDs), and spectral entropy (PSD of the fused image, bits).

    A fidelity is nan if one of its images is constant. All three are nan for a constant fused image: most probably the
    fusion failed, and its entropy would be the maximum.
    """
    spectra = [log_psd(x) for x in (fused, ir, vis)]
    constant = [np.ptp(x) == 0 for x in (fused, ir, vis)]       # the spectrum of such an image is rounding noise
    power = np.exp(spectra[0]) / np.exp(spectra[0]).sum()

    def fidelity(source: int) -> float:
        undefined = constant[0] or constant[source]
        return math.nan if undefined else float(np.corrcoef(spectra[0].ravel(), spectra[source].ravel())[0, 1])

    return {"infrared fidelity": fidelity(1), "visible fidelity": fidelity(2),
            "spectral entropy": math.nan if constant[0] else float(-(power * np.log2(power)).sum())}


def draw_spectrum(args: argparse.Namespace, problems: list[str]) -> Figure:
    """Spectra of the first pair, and means of `spectral_numbers` over all pairs. Writes --csv."""
    pairs = chosen_pairs(args, problems)
    methods = fused_images(args, pairs, problems)
    rows: list[dict] = []
    first: dict[str, np.ndarray] = {}
    for pair, ir, colour in readable(pairs, problems, reader(args)):
        vis = luma(colour)
        images = {name: baseline(name, ir, vis) for name in BASELINES}
        images |= {name: luma(image) for name, image in read_methods(pair, methods, ir.shape, problems).items()}
        rows += [{"image": pair.name, "method": name} | spectral_numbers(image, ir, vis)
                 for name, image in images.items()]
        first = first or {"infrared": ir, "visible": vis, **images}     # no other pair is kept in memory
    if args.csv:
        write_atomically(args.csv, as_csv(list(rows[0]), rows))
    return spectra_and_bars(first, rows)


def spectra_and_bars(first: dict[str, np.ndarray], rows: Sequence[dict]) -> Figure:
    """Figure with the spectra of one pair above and the means over all pairs below. Also prints the means.

    A mean leaves out nan. The number of images stands beside it if methods have different numbers.
    """
    numbers = [key for key in rows[0] if key not in ("image", "method")]
    figure = plt.figure(figsize=(PANEL * len(first), 2.1 * PANEL), layout="constrained")
    upper, lower = figure.subfigures(2, 1)
    spectra = {name: log_psd(image) for name, image in first.items()}
    low, high = min(map(np.min, spectra.values())), max(map(np.max, spectra.values()))
    axes = upper.subplots(1, len(spectra))
    for axis, (name, spectrum) in zip(axes, spectra.items()):
        drawn = axis.imshow(spectrum, cmap=COLOUR_MAP, vmin=low, vmax=high)
        axis.set(xticks=[], yticks=[])
        axis.set_title(plain(name), fontsize=9)
    upper.colorbar(drawn, ax=axes).ax.tick_params(labelsize=6)
    upper.suptitle(f"{plain(rows[0]['image'])}: log power spectral density", fontsize=9)
    methods = list(dict.fromkeys(row["method"] for row in rows))
    runnings = {method: Runnings(numbers) for method in methods}
    for row in rows:
        runnings[row["method"]].add(row)
    for axis, number in zip(lower.subplots(1, len(numbers)), numbers):
        means = [running[number].mean for running in runnings.values()]
        counts = [running[number].count for running in runnings.values()]
        names = methods if len({*counts}) == 1 else [f"{name} ({count} images)" for name, count in zip(methods, counts)]
        bars = axis.barh([*map(plain, names)], means, color=["0.7" if method in BASELINES else "C0" for method in methods])
        axis.bar_label(bars, fmt="%.3f", fontsize=7)
        axis.set_title(f"{number} (our definition)", fontsize=9)
        axis.tick_params(labelsize=7)
        axis.invert_yaxis()
        axis.margins(x=0.2)         # room for the numbers
        print(f"{number} (our definition): " + ", ".join(f"{method} {mean:.3f}" for method, mean in zip(names, means)))
    return figure


# ---------------------------------------------------------------------------------------------
# tradeoff: Figure 1b; phase: Figure 1c


def read_points(path: Path) -> list[tuple[str, float, float, float]]:
    """Method, quality, GFLOP and number of parameters of each row. Raises DataError."""
    try:
        with path.open(newline="", encoding="utf-8-sig") as file:       # -sig: Excel begins the file with a mark
            rows = list(csv.DictReader(file))
        if any(None in row for row in rows):
            raise ValueError("a row with more cells than the header; quote cells with commas")
        points = [(row["method"], *(float(row[key]) for key in ("quality", "gflop", "parameters"))) for row in rows]
        if not points:
            raise ValueError("no rows")
        for name, quality, gflop, parameters in points:
            if not (math.isfinite(quality) and 0 < gflop < math.inf and 0 <= parameters < math.inf):       # a logarithmic axis
                raise ValueError(f"{name}: finite numbers are needed, gflop above 0 and parameters from 0")
        if not max(point[3] for point in points) > 0:
            raise ValueError("parameters must be above 0 in one row")
    except OSError as error:
        raise DataError(f"--points {path}: {error.strerror}") from None
    except (KeyError, TypeError, ValueError) as error:
        raise DataError(f"--points {path}: expected a CSV with method, quality, gflop, parameters "
                        f"({type(error).__name__}: {error})") from None
    return points


def draw_tradeoff(args: argparse.Namespace, problems: list[str]) -> Figure:
    """Quality against GFLOP. The area of a point shows the number of parameters. Raises DataError."""
    refuse_inputs(args, [args.points])
    points = read_points(args.points)
    largest = max(point[3] for point in points)
    figure, axis = plt.subplots(figsize=(5, 3.6), layout="constrained")
    for name, quality, gflop, parameters in points:
        area = 20 + 800 * parameters / largest
        axis.scatter(gflop, quality, s=area, alpha=0.6)
        axis.annotate(f"{plain(name)}, {parameters / 1e6:.2f} M", (gflop, quality), fontsize=7, ha="center",
                      xytext=(0, math.sqrt(area) / 2 + 2), textcoords="offset points")      # above the point
    axis.set(xscale="log", xlabel="GFLOP", ylabel=args.quality)
    for set_formatter in (axis.xaxis.set_major_formatter, axis.xaxis.set_minor_formatter):
        set_formatter(LogFormatter())       # 20 in place of 2 x 10^1
    axis.margins(0.16)                      # room for the labels of the outermost points
    axis.grid(alpha=0.3)
    return figure


def turn_phase(image: np.ndarray, box: Box) -> np.ndarray:
    """Add pi/2 to the phase of the frequencies in a box of the centred spectrum. No magnitude changes.

    The spectrum of a real image is conjugate symmetric. So the mirror image of the box turns by -pi/2.

    Args:
        image: real (H, W).
        box: inside the image's size. Frequency 0 is at x = W // 2, y = H // 2.
    Returns:
        The changed image, float64 (H, W).
    Raises:
        DataError: the box overlaps its mirror image, as around frequency 0.
    """
    x, y, width, height = box
    inside = np.zeros(image.shape, bool)
    inside[y:y + height, x:x + width] = True
    inside = np.fft.ifftshift(inside)
    mirrored = np.roll(inside[::-1, ::-1], 1, axis=(0, 1))      # frequency k is now at -k
    if (inside & mirrored).any():
        raise DataError(f"--box {x},{y},{width},{height}: holds frequencies together with their negatives; "
                        f"choose a box with X from {image.shape[1] // 2 + 1}")
    angles = np.pi / 2 * (inside.astype(int) - mirrored)
    return np.fft.ifft2(np.fft.fft2(image) * np.exp(1j * angles)).real


def draw_phase(args: argparse.Namespace, problems: list[str]) -> Figure:
    """Turn the phase of the spectrum in one box, and show where the image changes."""
    refuse_inputs(args, [args.image])
    image = read_gray(args.image).astype(np.float64) / 255
    centre = (image.shape[1] // 2 + image.shape[1] // 16, image.shape[0] // 2 + image.shape[0] // 16)
    automatic = f"{centre[0]},{centre[1]},{image.shape[1] // 16},{image.shape[0] // 16}"
    texts = [automatic] if args.box == ["auto"] else args.box
    box, = given_boxes(texts, image.shape, most=1)
    changed = turn_phase(image, box)
    magnitude = np.abs(np.fft.fftshift(np.fft.fft2(image)))
    panels = {"image": image, "log magnitude; boxes of changed phase": np.log(magnitude + 1e-3),
              "after the inverse FFT": changed, "difference": np.abs(changed - image)}
    figure, axes = plt.subplots(1, 4, layout="constrained",
                                figsize=(PANEL * 4, PANEL * image.shape[0] / image.shape[1] + 0.3))
    for axis, (title, values) in zip(axes, panels.items()):
        style = GRAY if title in ("image", "after the inverse FFT") else {"cmap": COLOUR_MAP}
        axis.imshow(values, **style)
        axis.set(xticks=[], yticks=[])
        axis.set_title(title, fontsize=8)
    mirrored = [2 * (length // 2) - start - side + 1 for start, side, length in zip(box, box[2:], image.shape[::-1])]
    for corner, line in ((box[:2], "-"), (mirrored, "--")):
        axes[1].add_patch(Rectangle(corner, *box[2:], fill=False, edgecolor="red", linestyle=line))
    print(f"pixels that change by more than one level: {(np.abs(changed - image) > 1 / 255).mean():.1%}")
    return figure


# ---------------------------------------------------------------------------------------------
# The command

KINDS: dict[str, Callable[[argparse.Namespace, list[str]], Figure]] = {
    "sheet": draw_sheet, "features": draw_features, "spectrum": draw_spectrum, "tradeoff": draw_tradeoff,
    "phase": draw_phase}


def build_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter,
                                     usage="python tools/figures.py KIND [options]")
    parser.add_argument("kind", choices=KINDS, help="kind of figure")
    parser.add_argument("--out", type=Path, help="file to write: .png, .jpg, .pdf or .svg; without suffix, a .png and "
                        "a .pdf file; in a folder that exists, KIND.png and KIND.pdf (default: figures/KIND)")
    parser.add_argument("--dpi", type=positive, default=200, help="resolution of raster images (default: 200)")
    pairs = add_image_options(parser)       # for sheet, features and spectrum
    pairs.add_argument("--names", nargs="+", action="extend", help="only these pairs (default: all; features: the first)")
    pairs.add_argument("--count", type=positive, help="only the first COUNT pairs")
    other = parser.add_argument_group("options of one kind")
    other.add_argument("--box", nargs="+", action=Added, default=["auto"], metavar="X,Y,W,H", help="sheet: one or two boxes to "
                       "magnify, auto (a hot target and a textured region) or none; phase: box in the centred spectrum")
    other.add_argument("--checkpoint", type=given, default="contrast", metavar="NAME|FILE", help="features: the network; a "
                       "last.pth of train.py also gives M', the output of the auxiliary decoder, if L_SS trained it")
    other.add_argument("--csv", type=Path, help="spectrum: also write the numbers of each image to this file, which is "
                       "replaced")
    other.add_argument("--points", type=Path, help="tradeoff: CSV file with method, quality, gflop, parameters")
    other.add_argument("--quality", default="quality", help="tradeoff: name of the quality, for the axis (default: "
                       "%(default)s)")
    other.add_argument("--image", type=Path, default=ROOT / "samples" / "ir" / "smoke.png", help="phase: the image")
    return parser


COMMON = {"ir", "vis", "dataset", "data", "split", "names", "ir_pattern", "vis_pattern", "resize", "ir_range", "vis_bits"}
FUSED = {"fused", "fused_pattern"}
OPTIONS = {"sheet": {*COMMON, *FUSED, "count", "box"}, "features": {*COMMON, "checkpoint"},
           "spectrum": {*COMMON, *FUSED, "count", "csv"}, "tradeoff": {"points", "quality"}, "phase": {"image", "box"}}


def check_options(args: argparse.Namespace, parser: argparse.ArgumentParser) -> None:
    """Raises ValueError for options that do not fit the kind, before any work is done."""
    refuse_unused(args, parser, OPTIONS, args.kind, args.kind)
    if args.kind == "tradeoff" and not args.points:
        raise ValueError("tradeoff needs --points FILE")
    if args.names and args.count:
        raise ValueError("--count goes without --names")
    if args.kind == "features" and len(args.names or ()) > 1:
        raise ValueError("features draws one pair: give one name with --names")
    if args.out.suffix.lower() in {*SUFFIXES, ".eps", ".ps", ".gif"} - {*FORMATS}:
        raise ValueError(f"--out {args.out}: choose {', '.join(FORMATS)}, or a name without suffix")
    if args.csv:
        check_place("--csv", args.csv)
        check_csv_name(args.csv)
        if args.csv.resolve() in {path.resolve() for path in files_of(args.out)}:
            raise ValueError(f"--csv {args.csv}: is also the file of --out; choose another name")


def files_of(out: Path) -> list[Path]:
    """The files to write: `out` itself if it has a suffix, otherwise a PNG and a PDF file."""
    return [out] if out.suffix.lower() in FORMATS else [out.with_name(out.name + suffix) for suffix in (".png", ".pdf")]


def save(figure: Figure, out: Path, dpi: int) -> None:
    """Write the files of `out`, each atomically. Raises OSError."""
    out.parent.mkdir(parents=True, exist_ok=True)
    for path in tqdm(files_of(out), desc="writing", unit="file", leave=False, disable=None):
        if path.suffix.lower() in (".pdf", ".svg"):
            for image in figure.findobj(AxesImage):
                image.set_interpolation("none")     # the file holds the original pixels
        data = io.BytesIO()
        # No creation date, so that the same figure gives the same file.
        dated = {".pdf": {"CreationDate": None}, ".svg": {"Date": None}}.get(path.suffix.lower())
        figure.savefig(data, format=path.suffix[1:].lower(), dpi=dpi, metadata=dated)
        write_atomically(path, data.getvalue())
    plt.close(figure)


@noted()
def main(argv: Sequence[str] | None = None) -> int:
    parser = build_parser()
    args = parser.parse_args(argv)
    args.out = args.out or Path("figures") / args.kind
    if args.out.is_dir():
        args.out /= args.kind
    problems: list[str] = []
    try:
        check_options(args, parser)
        save(KINDS[args.kind](args, problems), args.out, args.dpi)
    except (OutputError, TrainingError, *PAIR_ERRORS) as error:
        return failed("figures.py", error)
    print(", ".join(map(str, files_of(args.out))))
    return finished(problems)


if __name__ == "__main__":
    sys.exit(run_command(main))
