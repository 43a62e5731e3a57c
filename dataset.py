"""Image pairs: published data sets, reading of pairs, training crops.

    python dataset.py roadscene data/RoadScene      check a folder and print what it holds

"Infrared" is the gray source: infrared or MRI. "Visible" is the source whose colour is kept: visible, PET, SPECT or CT.
"""
from __future__ import annotations

import argparse
import math
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import cv2
import numpy as np
from tqdm import tqdm

from images import DataError, luma, read_ir, read_vis
from support.console import failed, given, given_path, noted
from support.console import run as run_command
from support.pairing import Pair, all_paired, find_pairs, list_images, listing, match_pairs

__all__ = ["DATASETS", "CropDataset", "DataError", "Pair", "PairDataset", "Reader", "add_pattern_options",
           "add_reading_options", "add_source_options", "crop_batches", "find_named", "find_pairs", "find_sources",
           "list_images", "load_pair", "match_pairs", "named_pairs", "reader", "sources_or_samples"]

SMALLEST_FACTOR, LARGEST_POWER, LAMPS_QUANTILE = 0.1, 4, 0.995      # of random darkening; see `darkened`
SPLIT_LISTS = Path(__file__).resolve().parent / "splits"
SAMPLES = Path(__file__).resolve().parent / "samples"


# ---------------------------------------------------------------------------------------------
# Published data sets


@dataclass(frozen=True)
class Layout:
    """Folders and splits of one published data set. `{split}` in a path is replaced by the name of the split."""
    ir: tuple[str, ...]             # possible infrared folders; the first that exists is used
    vis: tuple[str, ...]            # the visible folder for each of them
    splits: tuple[str, ...]         # the first is the default of test.py and metrics.py
    source: str                     # where to fetch the data set
    folder: str                     # its folder in data/
    listed: bool = False            # splits are lists of file stems in splits/, not folders
    expected: tuple[tuple[str, int], ...] = ()      # (split, number of pairs in the published set)
    joins: tuple[str, ...] = ()     # names of the data sets that this one joins; ir and vis are then empty


DATASETS = {
    "roadscene": Layout(("cropinfrared",), ("crop_LR_visible",), ("val", "train", "all"),
                        "git clone https://github.com/hanna-xu/RoadScene data/RoadScene", "RoadScene", listed=True,
                        expected=(("train", 180), ("val", 40), ("all", 221))),
    "tno": Layout((".",), (".",), ("all",),
                  "https://github.com/Zhaozixiang1228/IVIF-AUIF-Net, folder Datasets/Test_data_TNO",
                  "TNO", expected=(("all", 40),)),
    "msrs": Layout(("{split}/ir", "ir"), ("{split}/vi", "vi"), ("test", "train"),
                   "git clone https://github.com/Linfeng-Tang/MSRS data/MSRS",
                   "MSRS", expected=(("train", 1083), ("test", 361))),
    "m3fd": Layout(("M3FD_{split}/Ir", "{split}/Ir", "Ir", "ir"), ("M3FD_{split}/Vis", "{split}/Vis", "Vis", "vis"),
                   ("Fusion", "Detection"), "https://github.com/JinyuanLiu-CV/TarDAL (links to M3FD_Fusion and "
                   "M3FD_Detection)", "M3FD", expected=(("Fusion", 300), ("Detection", 4200))),
    "mri-pet": Layout(("{split}/MRI", "PET-MRI/{split}/MRI"), ("{split}/PET", "PET-MRI/{split}/PET"),
                      ("test", "train"), "https://github.com/xianming-gu/Havard-Medical-Image-Fusion-Datasets, "
                      "folder MyDatasets/PET-MRI", "Harvard", expected=(("train", 245), ("test", 24))),
    "mri-spect": Layout(("{split}/MRI", "SPECT-MRI/{split}/MRI"), ("{split}/SPECT", "SPECT-MRI/{split}/SPECT"),
                        ("test", "train"), "https://github.com/xianming-gu/Havard-Medical-Image-Fusion-Datasets, "
                        "folder MyDatasets/SPECT-MRI", "Harvard", expected=(("train", 333), ("test", 24))),
    # One network for PET and SPECT: our reading, because the paper prints one table for both.
    "mri": Layout((), (), ("test", "train"), "see mri-pet and mri-spect", "Harvard",
                  expected=(("train", 578), ("test", 48)), joins=("mri-pet", "mri-spect")),
    "mri-ct": Layout(("{split}/MRI", "CT-MRI/{split}/MRI"), ("{split}/CT", "CT-MRI/{split}/CT"), ("test",),
                     "https://github.com/xianming-gu/Havard-Medical-Image-Fusion-Datasets, folder MyDatasets/CT-MRI",
                     "Harvard", expected=(("test", 21),)),
}


def find_named(name: str, root: str | Path, split: str | None = None) -> tuple[list[Pair], list[str]]:
    """Find the pairs of a published data set.

    Args:
        name: a key of `DATASETS`, in upper or lower case.
        root: folder of the unpacked data set.
        split: one of the splits of the data set; by default the first, which is for evaluation.
    Returns:
        The pairs, and one line for each file without a partner.
    Raises:
        DataError: unknown name or split, missing folders (the message says where to fetch them), or missing pairs of
            a listed split.
    """
    layout = DATASETS.get(name.lower())
    if layout is None:
        raise DataError(f"unknown data set '{name}'; known: {', '.join(DATASETS)}")
    split = split or layout.splits[0]
    if split not in layout.splits:
        raise DataError(f"{name} has no split '{split}'; it has: {', '.join(layout.splits)}")
    if layout.joins:
        return _joined(layout.joins, root, split)
    pairs, unpaired = find_pairs(*_folders(name, layout, Path(root), split))
    if layout.listed and split != "all":
        return _listed(name.lower(), pairs, split), []      # other files in the folder belong to other splits
    return pairs, unpaired


def named_pairs(name: str, root: str | Path, split: str | None = None) -> list[Pair]:
    """As `find_named`, but files without a partner are an error: DataError lists all of them."""
    return all_paired(*find_named(name, root, split))


def _folders(name: str, layout: Layout, root: Path, split: str) -> tuple[Path, Path]:
    """Infrared and visible folder: the first pair of the layout that exists. Raises DataError if there is none."""
    for ir, vis in zip(layout.ir, layout.vis):
        if "{split}" not in ir and split != layout.splits[0] and not layout.listed:
            continue        # a path without {split} holds only the first split
        ir, vis = root / ir.format(split=split), root / vis.format(split=split)
        if ir.is_dir() and vis.is_dir():
            return ir, vis
    other = "; if it is another data set, name it with --dataset; own pairs need --ir and --vis" if root.is_dir() else ""
    places = dict.fromkeys(str(root / place.format(split=split)) for place in (layout.ir[0], layout.vis[0]))
    raise DataError(f"{' or '.join(places)}: no such folder{other}. To fetch {name}: {layout.source}")


def _joined(names: Sequence[str], root: str | Path, split: str) -> tuple[list[Pair], list[str]]:
    """`find_named` for several data sets. They use the same numbers, so the data set's name is put before each name."""
    pairs, unpaired = [], []
    for name in names:
        found, problems = find_named(name, root, split)
        pairs += [pair._replace(name=f"{name}-{pair.name}") for pair in found]
        unpaired += problems
    return pairs, unpaired


def _listed(name: str, pairs: list[Pair], split: str) -> list[Pair]:
    """The pairs of a split that is a list in splits/. Raises DataError if some are missing."""
    stems = (SPLIT_LISTS / f"{name}_{split}.txt").read_text().split()
    by_name = {pair.name: pair for pair in pairs}
    missing = [stem for stem in stems if stem not in by_name]
    if missing:
        raise DataError(listing(f"{name}: {len(missing)} pair(s) of the '{split}' split are missing", missing))
    return [by_name[stem] for stem in stems]


# ---------------------------------------------------------------------------------------------
# Reading pairs, training crops


def load_pair(pair: Pair, resize: str | None = None,
              span: tuple[int, int] | None = None, bits: int | None = None) -> tuple[np.ndarray, np.ndarray]:
    """Read both images of a pair: uint8 of one size, infrared (H, W) and visible (H, W) or RGB (H, W, 3).

    Args:
        pair: the files.
        resize: "ir" or "vis": resize this image to the size of the other. This is no registration: both must show the
            same field of view. Aspect ratios that differ by more than 2 % are an error.
        span: range of 16-bit infrared, see `read_ir`.
        bits: depth of 16-bit visible images, see `read_vis`.
    Raises:
        DataError: a file cannot be read, or the sizes differ and `resize` is not given, or the aspect ratios differ.
    """
    return of_one_size(pair, read_ir(pair.ir, span), read_vis(pair.vis, bits), resize)


Reader = Callable[[Pair], tuple[np.ndarray, np.ndarray]]       # load_pair, or a function such as it


def of_one_size(pair: Pair, ir: np.ndarray, vis: np.ndarray, resize: str | None) -> tuple[np.ndarray, np.ndarray]:
    """Bring two images to one size by `resize`, if necessary; arguments, result and errors as for `load_pair`."""
    if ir.shape == vis.shape[:2]:
        return ir, vis
    sizes = f"infrared is {ir.shape[1]}x{ir.shape[0]} and visible {vis.shape[1]}x{vis.shape[0]} ({pair.ir}, {pair.vis})"
    proportion = ir.shape[1] * vis.shape[0] / (ir.shape[0] * vis.shape[1])
    if not 0.98 <= proportion <= 1.02:
        raise DataError(f"{sizes}, which is not the same field of view; register them to one size first")
    if not resize:
        raise DataError(f"{sizes}; register them to one size first, or give --resize ir or --resize vis to test.py, "
                        "train.py or metrics.py")
    return (resized(ir, vis.shape), vis) if resize == "ir" else (ir, resized(vis, ir.shape))


def resized(image: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    """Resize an image to the height and width of `shape`, by area averages to shrink and bilinearly to enlarge."""
    shrinks = shape[0] < image.shape[0]
    return cv2.resize(image, (shape[1], shape[0]), interpolation=cv2.INTER_AREA if shrinks else cv2.INTER_LINEAR)


def _read_all(pairs: Iterable[Pair], read: Reader) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Yield the images of all pairs. At the end, a DataError lists all pairs that could not be read."""
    problems, count = [], 0
    for pair in pairs:
        count += 1
        try:
            yield read(pair)
        except DataError as error:
            problems.append(str(error))
    if problems:
        raise DataError(listing(f"{len(problems)} of {count} pairs cannot be used", problems))


class PairDataset:
    """Full-size gray pairs. They are decoded once and kept in memory as uint8. It works with PyTorch's DataLoader.

    Item: (ir, vis_y), each a uint8 array (1, H, W). `names[i]` is the name of item i.

    Args:
        pairs: result of `match_pairs` or `named_pairs`.
        progress: show a progress bar.
        read: reads a pair, see `reader`.
    Raises:
        DataError: lists all files that cannot be read and all pairs whose sizes differ.
    """

    def __init__(self, pairs: Sequence[Pair], progress: bool = False, read: Reader = load_pair):
        self.names, self.items = [pair.name for pair in pairs], []
        for ir, vis in _read_all(tqdm(pairs, desc="reading pairs", unit="pair", leave=False, disable=not progress), read):
            self.items.append(tuple(np.ascontiguousarray(x)[None] for x in (ir, luma(vis))))

    @property
    def described(self) -> list[str]:
        """Name and size of each pair, which determine the positions of the crops."""
        return [f"{name} {ir.shape[1]} x {ir.shape[2]}" for name, (ir, _) in zip(self.names, self.items)]

    def __len__(self) -> int:
        return len(self.items)

    def __getitem__(self, index: int) -> tuple[np.ndarray, np.ndarray]:
        return self.items[index]


class CropDataset:
    """Random crops for training (paper, section 4.1.1: 3,383 crops of 128 x 128 in each epoch).

    Item: (ir, vis_y), each a uint8 array (1, size, size). Items have no end: `crop_batches` gives the numbers. For the
    same pairs and options, the seed and n determine item number n: its pair, position, flips and darkening. So the
    crops do not depend on the number of workers, and a resumed run continues with the same crops. Images smaller than a
    crop are padded with their mirror image at the lower and right edges.

    Args:
        pairs: the full-size pairs.
        size: side of a crop, pixels.
        seed: seed of the crops.
        flips: flip crops at random, horizontally and vertically.
        dim: probability that a source of a crop is darkened, in [0, 1], drawn for each source on its own. Most of
            RoadScene is daylight, but the network should also see night. See `darkened`.
        lamps: share of the darkened sources that keep white lamps, in [0, 1]. See `darkened`.
    Raises:
        DataError: images with a side below half of `size`.
    """

    def __init__(self, pairs: PairDataset, size: int = 128, seed: int = 0, flips: bool = False,
                 dim: float = 0.0, lamps: float = 0.0):
        small = [f"{name}: {ir.shape[2]}x{ir.shape[1]}" for name, (ir, _) in zip(pairs.names, pairs.items)
                 if 2 * min(ir.shape[1:]) < size]
        if small:
            raise DataError(listing(f"smaller than half of the {size}x{size} training crop (lower --crop, or leave these "
                                    "pairs out)", small))
        self.items = [tuple(_mirrored(image, size) for image in pair) for pair in pairs.items]
        self.size, self.seed, self.flips, self.dim, self.lamps = size, seed, flips, dim, lamps

    def __getitem__(self, number: int) -> tuple[np.ndarray, np.ndarray]:
        rng = np.random.default_rng((self.seed, number))
        ir, vis = self.items[int(rng.integers(len(self.items)))]
        top = int(rng.integers(ir.shape[1] - self.size + 1))
        left = int(rng.integers(ir.shape[2] - self.size + 1))
        flips = [dim for dim in (1, 2) if self.flips and rng.random() < 0.5]
        window = (slice(None), slice(top, top + self.size), slice(left, left + self.size))
        crops = (np.ascontiguousarray(np.flip(image[window], flips)) for image in (ir, vis))
        return tuple(darkened(crop, rng, self.lamps) if rng.random() < self.dim else crop for crop in crops)


def darkened(image: np.ndarray, rng: np.random.Generator, lamps: float = 0.0) -> np.ndarray:
    """A random night-like version of an image, uint8 in and out: factor * x**power for levels x in [0, 1].

    The factor is log-uniform from 0.1 to 1, as for a shorter exposure. The power is log-uniform from 1 to 4. It keeps
    bright places and darkens the others, as at night, when lamps and warm bodies stay bright. With probability `lamps`,
    the factor is 1 and x is 1 from the quantile 0.995 of the image on: a camera exposes for the night, and lamps are
    white in a dark scene. An image without white places can then become brighter; in an almost black one, noise becomes
    white.
    """
    factor, power = SMALLEST_FACTOR ** rng.random(), LARGEST_POWER ** rng.random()
    white = 255.0
    if lamps and rng.random() < lamps:
        factor, white = 1, max(float(np.quantile(image, LAMPS_QUANTILE)), 1)
    levels = np.rint(255 * factor * (np.arange(256) / white).clip(max=1) ** power).astype(np.uint8)
    return levels[image]


def _mirrored(image: np.ndarray, size: int) -> np.ndarray:
    """Pad with the mirror image: (1, H, W) -> at least (1, size, size)."""
    height, width = (max(size - length, 0) for length in image.shape[1:])
    if not (height or width):
        return image            # np.pad would copy it, and the whole training set would be held twice
    return np.pad(image, ((0, 0), (0, height), (0, width)), "symmetric")


def crop_batches(epoch: int, length: int, batch: int, start: int = 0,
                 fixed_seed: int | None = None) -> Iterator[list[int]]:
    """Yield the crop numbers of one epoch in batches. The last batch may be smaller.

    Args:
        epoch: number of the epoch, from 0.
        length: crops in an epoch.
        batch: crops in a batch.
        start: number of the first batch to yield.
        fixed_seed: None: each epoch has new crops. Otherwise all epochs have the same crops, and this seed and the
            epoch determine their order.
    """
    if fixed_seed is None:
        numbers = np.arange(epoch * length, (epoch + 1) * length)
    else:
        numbers = np.random.default_rng((fixed_seed, epoch, 1)).permutation(length)
    for begin in range(start * batch, length, batch):
        yield numbers[begin:begin + batch].tolist()


# ---------------------------------------------------------------------------------------------
# Options of the commands


def add_source_options(group: argparse._ArgumentGroup, kind: str = "folder") -> None:
    """Add the options that name pairs, for `find_sources`. kind: what --ir and --vis name, for --help."""
    group.add_argument("--ir", type=given_path, help=f"infrared {kind} (if one folder holds IR* and VIS*, give it to "
                       "--ir and --vis)")
    group.add_argument("--vis", type=given_path, help=f"visible {kind}")
    add_pattern_options(group)
    group.add_argument("--dataset", type=str.lower, choices=DATASETS, metavar="NAME", help="published data set, in "
                       f"place of --ir and --vis: {', '.join(DATASETS)}")
    group.add_argument("--data", type=given_path, help="folder of the data set")
    group.add_argument("--split", type=given,
                       help="split of the data set (default: the one for evaluation; roadscene: the 40 pairs of val)")


def add_pattern_options(group: argparse._ArgumentGroup) -> None:
    """Add the options that match file names in --ir and --vis."""
    group.add_argument("--ir-pattern", type=given, metavar="'*_ir'", help="pattern of the infrared file names; * is "
                       "the part that both names of a pair share (default: equal names, or the usual affixes)")
    group.add_argument("--vis-pattern", type=given, metavar="'*_vis'", help="pattern of the visible file names")


class _Range(argparse.Action):
    """Stores the two numbers of --ir-range if they are a range of 16-bit values."""

    def __call__(self, parser, namespace, values, option_string=None):
        low, high = values
        if not 0 <= low < high <= 65535:
            parser.error(f"--ir-range {low} {high}: LOW must be below HIGH, both from 0 to 65535")
        setattr(namespace, self.dest, values)


def add_reading_options(group: argparse._ArgumentGroup) -> None:
    """Add the options that say how images are read, for `reader`."""
    group.add_argument("--resize", choices=("ir", "vis"), help="if the sizes differ, resize this image to the size of "
                       "the other; this is no registration: both must show the same field of view")
    group.add_argument("--ir-range", type=int, nargs=2, action=_Range, metavar=("LOW", "HIGH"), help="one scale for "
                       "all 16-bit infrared images: LOW is black, HIGH is white (default: minimum and maximum of each "
                       "image)")
    group.add_argument("--vis-bits", type=int, choices=range(8, 17), metavar="N", help="bits of all visible images that "
                       "are stored with 16 bits: 2**N - 1 is white (default: 12, 14 or 16, by the brightest pixel of "
                       "each image)")


def find_sources(args: argparse.Namespace) -> tuple[list[Pair], list[str]] | None:
    """The pairs that the options of `add_source_options` name, as `find_pairs` returns them; None without options.

    Raises DataError, also if the options contradict each other.
    """
    patterns = args.ir_pattern, args.vis_pattern
    if args.dataset or args.data:
        if not (args.dataset and args.data) or args.ir or args.vis or any(patterns):
            raise DataError("--dataset NAME and --data FOLDER go together, without --ir, --vis and their patterns")
        return find_named(args.dataset, args.data, args.split)
    if args.split:
        raise DataError("--split goes with --dataset")
    if not (args.ir or args.vis or any(patterns)):
        return None
    if not (args.ir and args.vis):
        raise DataError("--ir and --vis go together")
    return find_pairs(args.ir, args.vis, *patterns)


def sources_or_samples(args: argparse.Namespace) -> tuple[list[Pair], list[str]]:
    """`find_sources`, or the rendered pairs in samples/ if no sources are named. Raises DataError."""
    return find_sources(args) or find_pairs(SAMPLES / "ir", SAMPLES / "vis")


def reader(args: argparse.Namespace) -> Reader:
    """`load_pair` with the options of `add_reading_options`."""
    return partial(load_pair, resize=args.resize, span=args.ir_range, bits=args.vis_bits)


# ---------------------------------------------------------------------------------------------
# python dataset.py NAME ROOT


def describe(pairs: Sequence[Pair]) -> str:
    """Describe the pairs in one line: number, sizes, colour. Raises DataError that lists the pairs with errors."""
    sizes, colour = [], 0
    for ir, vis in _read_all(tqdm(pairs, desc="checking", unit="pair", leave=False), load_pair):
        sizes.append(ir.shape[::-1])
        colour += vis.ndim == 3
    low, high = (pick(sizes, key=lambda size: (math.prod(size), size)) for pick in (min, max))
    span = "{}x{}".format(*low) + ("" if low == high else " to {}x{}".format(*high))
    return f"{len(pairs)} pairs, {span}, visible in colour: {colour}"


@noted()
def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description="Check a data set's folder and print what it holds.")
    parser.add_argument("name", choices=DATASETS, type=str.lower, help="name of the data set")
    parser.add_argument("root", type=Path, help="folder of the unpacked data set, e.g. data/RoadScene")
    args = parser.parse_args(argv)
    layout, code = DATASETS[args.name], 0
    for split in layout.splits:
        try:
            pairs = named_pairs(args.name, args.root, split)
            expected = dict(layout.expected).get(split)
            note = "" if expected in (None, len(pairs)) else f" (the published set has {expected})"
            print(f"{args.name} {split}: {describe(pairs)}{note}")
        except DataError as error:
            code = failed(f"{args.name} {split}", error)
    return code


if __name__ == "__main__":
    sys.exit(run_command(main))
