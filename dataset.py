"""Image pairs: reading them, finding them in published layouts, and cutting training crops.

    python dataset.py roadscene data/RoadScene      check a tree and print what it holds

Infrared (or MRI) is the gray source, visible (or PET, SPECT) the one whose colour is kept.
"""
from __future__ import annotations

import argparse
import atexit
import os
import re
import sys
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import zip_longest
from pathlib import Path
from typing import NamedTuple

import cv2
import numpy as np
import torch
from torch import distributed
from torch.utils.data import Dataset
from tqdm import tqdm

SUFFIXES = {".png", ".jpg", ".jpeg", ".bmp", ".tif", ".tiff", ".webp"}
SPLIT_LISTS = Path(__file__).resolve().parent / "splits"


class DataError(Exception):
    """Something is wrong with the user's images; the message names the files and the remedy."""


class Pair(NamedTuple):
    """One aligned pair on disk."""
    name: str
    ir: Path
    vis: Path


# ---------------------------------------------------------------------------------------------
# Reading


def _decode(path: str | Path) -> np.ndarray:
    """Pixels as stored: (H, W) or (H, W, 3) RGB, uint8 or uint16. Alpha is dropped."""
    path = Path(path)
    if not path.is_file():
        raise DataError(f"{path}: no such file")
    # imdecode of the bytes, because imread cannot open every non-ASCII path on every system.
    try:
        data = np.fromfile(path, np.uint8)
        image = cv2.imdecode(data, cv2.IMREAD_UNCHANGED) if data.size else None
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror})") from None
    except cv2.error:       # a header that promises more pixels than OpenCV takes
        image = None
    if image is None:
        raise DataError(f"{path}: not an image that OpenCV can read (damaged, or another format)")
    if image.dtype not in (np.uint8, np.uint16):
        raise DataError(f"{path}: {image.dtype} pixels; convert the image to 8 or 16 bits")
    if image.ndim == 2:
        return image
    channels = image.shape[2]
    if channels in (1, 2):
        return np.ascontiguousarray(image[..., 0])
    if channels not in (3, 4):
        raise DataError(f"{path}: {channels} channels; gray, RGB or RGBA are understood")
    return cv2.cvtColor(image[..., :3], cv2.COLOR_BGR2RGB)


def luma(image: np.ndarray) -> np.ndarray:
    """BT.601 luma, (H, W), of a gray or RGB image, same dtype."""
    return image if image.ndim == 2 else cv2.cvtColor(image, cv2.COLOR_RGB2GRAY)


def read_vis(path: str | Path) -> np.ndarray:
    """Visible image: uint8, (H, W) or (H, W, 3) RGB. 16-bit files are divided by 257.

    A colour file with three equal planes (gray images are often saved so) is returned as gray.
    """
    image = _decode(path)
    if image.dtype == np.uint16:
        image = ((image.astype(np.uint32) + 128) // 257).astype(np.uint8)
    if image.ndim == 3 and (image == image[..., :1]).all():
        image = np.ascontiguousarray(image[..., 0])
    return image


def read_ir(path: str | Path) -> np.ndarray:
    """Infrared image: uint8 (H, W). 16-bit files are scaled by their own range, with a warning.

    Sensors fill only a part of 16 bits, so a division by 257 would give an almost black image.
    """
    image = luma(_decode(path))
    if image.dtype == np.uint8:
        return image
    low, high = int(image.min()), int(image.max())
    # One text for all files: Python shows it once a run.
    warnings.warn("16-bit infrared is scaled to 8 bits, each image from its own darkest and brightest pixel", stacklevel=2)
    scaled = (image.astype(np.float64) - low) * (255.0 / max(high - low, 1))
    return np.round(scaled).astype(np.uint8)


def read_gray(path: str | Path) -> np.ndarray:
    """Any image as 8-bit gray, (H, W): colour becomes BT.601 luma."""
    return luma(read_vis(path))


def write_image(path: str | Path, image: np.ndarray) -> None:
    """Write uint8 (H, W) or (H, W, 3) RGB in the format of the suffix.

    The file appears whole or not at all. Raises OSError (a full disk, a missing folder) or DataError (an unknown suffix).
    """
    path = Path(path)
    bgr = image if image.ndim == 2 else cv2.cvtColor(image, cv2.COLOR_RGB2BGR)
    try:
        ok, data = cv2.imencode(path.suffix, bgr)
    except cv2.error:
        ok = False
    if not ok:
        raise DataError(f"{path}: cannot encode {path.suffix or 'a file without suffix'}; use .png")
    write_atomically(path, data.tobytes())


def write_atomically(path: Path, data: bytes) -> None:
    """Write a file whole or not at all: under another name first. Raises OSError."""
    part = path.with_name(path.name + ".part")
    try:
        part.write_bytes(data)
        part.replace(path)
    finally:
        part.unlink(missing_ok=True)


# ---------------------------------------------------------------------------------------------
# Finding pairs


def list_images(folder: str | Path) -> dict[str, Path]:
    """Images of one folder by file stem, in natural order (2 before 10)."""
    folder = Path(folder)
    if not folder.is_dir():
        raise DataError(f"{folder}: no such folder")
    paths = [p for p in folder.iterdir() if p.suffix.lower() in SUFFIXES and not p.name.startswith(".")]
    found: dict[str, Path] = {}
    for path in sorted(paths, key=lambda p: natural_key(p.name)):
        if path.stem in found:
            raise DataError(f"{folder}: {found[path.stem].name} and {path.name} share a name; keep one of them")
        found[path.stem] = path
    return found


def natural_key(text: str) -> list:
    """Sort key that orders numbers inside names by value."""
    return [(0, int(part), "") if part.isdigit() else (1, 0, part.lower()) for part in re.split(r"(\d+)", text) if part]


def _prefixed(folder: Path) -> tuple[dict[str, Path], dict[str, Path]]:
    """IR{n} and VIS{n} (or VI{n}) files of one folder, each by {n}."""
    sides: tuple[dict, dict] = {}, {}
    for stem, path in list_images(folder).items():
        match = re.fullmatch(r"(ir|vis|vi)[-_]?(.+)", stem, re.IGNORECASE)
        if match:
            side = sides[0 if match[1].lower() == "ir" else 1]
            if match[2] in side:
                raise DataError(f"{folder}: {side[match[2]].name} and {path.name} share a name; keep one of them")
            side[match[2]] = path
    if not sides[0] and not sides[1]:
        raise DataError(f"{folder}: no IR*/VIS* files; give two folders instead (infrared and visible)")
    return sides


def find_pairs(ir_dir: str | Path, vis_dir: str | Path) -> tuple[list[Pair], list[str]]:
    """Pairs of two folders matched by file stem, or of one folder with IR{n}/VIS{n} files.

    Returns the pairs in natural order, and one line for each file without a partner.
    Raises DataError when a folder is missing or holds no images.
    """
    ir_dir, vis_dir = Path(ir_dir), Path(vis_dir)
    same = ir_dir.resolve() == vis_dir.resolve()
    ir, vis = _prefixed(ir_dir) if same else (list_images(ir_dir), list_images(vis_dir))
    for folder, images in ((ir_dir, ir), (vis_dir, vis)):
        if not images:
            raise DataError(f"{folder}: no images ({', '.join(sorted(SUFFIXES))})")
    lonely = [f"{path}: no visible partner in {vis_dir}" for name, path in ir.items() if name not in vis]
    lonely += [f"{path}: no infrared partner in {ir_dir}" for name, path in vis.items() if name not in ir]
    return [Pair(name, ir[name], vis[name]) for name in ir if name in vis], lonely


def match_pairs(ir_dir: str | Path, vis_dir: str | Path) -> list[Pair]:
    """`find_pairs`, for uses that need every file: raises DataError that lists all those without a partner."""
    return _all_paired(*find_pairs(ir_dir, vis_dir))


def _all_paired(pairs: list[Pair], lonely: list[str]) -> list[Pair]:
    if lonely:
        raise DataError(_listing(f"{len(lonely)} image(s) without a partner of the same name", lonely))
    return pairs


def _listing(title: str, lines: Sequence[str]) -> str:
    return title + ":\n" + "\n".join(f"  {line}" for line in lines)


# ---------------------------------------------------------------------------------------------
# Published data sets


@dataclass(frozen=True)
class Layout:
    """Where one published data set keeps its two sides. `{split}` stands for the split's folder."""
    ir: tuple[str, ...]
    vis: tuple[str, ...]
    splits: tuple[str, ...]     # the first is what test.py and metrics.py use
    source: str
    listed: bool = False        # the split is a list of stems in splits/, not a folder
    expected: tuple[tuple[str, int], ...] = ()


DATASETS = {
    "roadscene": Layout(("cropinfrared",), ("crop_LR_visible",), ("val", "train", "all"),
                        "git clone https://github.com/hanna-xu/RoadScene data/RoadScene", listed=True,
                        expected=(("train", 180), ("val", 40), ("all", 221))),
    "tno": Layout((".",), (".",), ("all",),
                  "https://github.com/Zhaozixiang1228/IVIF-AUIF-Net, folder Datasets/Test_data_TNO",
                  expected=(("all", 40),)),
    "msrs": Layout(("{split}/ir", "ir"), ("{split}/vi", "vi"), ("test", "train"),
                   "git clone https://github.com/Linfeng-Tang/MSRS data/MSRS",
                   expected=(("train", 1083), ("test", 361))),
    "m3fd": Layout(("M3FD_{split}/Ir", "{split}/Ir", "Ir", "ir"), ("M3FD_{split}/Vis", "{split}/Vis", "Vis", "vis"),
                   ("Fusion", "Detection"), "https://github.com/JinyuanLiu-CV/TarDAL (links to M3FD_Fusion and "
                   "M3FD_Detection)", expected=(("Fusion", 300), ("Detection", 4200))),
    "mri-pet": Layout(("{split}/MRI", "PET-MRI/{split}/MRI"), ("{split}/PET", "PET-MRI/{split}/PET"),
                      ("test", "train"), "https://github.com/xianming-gu/Havard-Medical-Image-Fusion-Datasets, "
                      "folder MyDatasets/PET-MRI", expected=(("train", 245), ("test", 24))),
    "mri-spect": Layout(("{split}/MRI", "SPECT-MRI/{split}/MRI"), ("{split}/SPECT", "SPECT-MRI/{split}/SPECT"),
                        ("test", "train"), "https://github.com/xianming-gu/Havard-Medical-Image-Fusion-Datasets, "
                        "folder MyDatasets/SPECT-MRI", expected=(("train", 333), ("test", 24))),
}


def find_named(name: str, root: str | Path, split: str | None = None) -> tuple[list[Pair], list[str]]:
    """Pairs of a published data set, and one line for each file without a partner.

    Args:
        name: a key of `DATASETS`, in any case.
        root: the folder that the data set was unpacked to.
        split: one of the data set's splits; by default the one that is evaluated.
    Raises:
        DataError: unknown name or split, missing folders (with the place to fetch them), missing pairs of a listed split.
    """
    layout = DATASETS.get(name.lower())
    if layout is None:
        raise DataError(f"unknown data set '{name}'; known: {', '.join(DATASETS)}")
    split = split or layout.splits[0]
    if split not in layout.splits:
        raise DataError(f"{name} has no split '{split}'; it has: {', '.join(layout.splits)}")
    pairs, lonely = find_pairs(*_folders(name, layout, Path(root), split))
    if layout.listed and split != "all":
        return _listed(name.lower(), pairs, split), []      # what else lies there is not of this split
    return pairs, lonely


def named_pairs(name: str, root: str | Path, split: str | None = None) -> list[Pair]:
    """`find_named`, for uses that need every file: raises DataError that lists all those without a partner."""
    return _all_paired(*find_named(name, root, split))


def find_chosen(name: str | None, root: Path | None, split: str | None, ir: Path | None,
                vis: Path | None) -> tuple[list[Pair], list[str]] | None:
    """`find_named` for a command's --dataset, --data and --split; None where --ir and --vis are meant instead."""
    if name or root:
        if not (name and root) or ir or vis:
            raise DataError("--dataset NAME and --data FOLDER go together, without --ir and --vis")
        return find_named(name, root, split)
    if split:
        raise DataError("--split goes with --dataset")
    return None


def _folders(name: str, layout: Layout, root: Path, split: str) -> tuple[Path, Path]:
    """The first of the layout's places that is there, infrared and visible."""
    for ir, vis in zip(layout.ir, layout.vis):
        if "{split}" not in ir and split != layout.splits[0] and not layout.listed:
            continue        # a bare pair of folders holds what is evaluated, not a training set
        ir, vis = root / ir.format(split=split), root / vis.format(split=split)
        if ir.is_dir() and vis.is_dir():
            return ir, vis
    raise DataError(f"{root / layout.ir[0].format(split=split)} or {root / layout.vis[0].format(split=split)}: "
                    f"no such folder. To fetch {name}: {layout.source}")


def _listed(name: str, pairs: list[Pair], split: str) -> list[Pair]:
    stems = (SPLIT_LISTS / f"{name}_{split}.txt").read_text().split()
    by_name = {pair.name: pair for pair in pairs}
    missing = [stem for stem in stems if stem not in by_name]
    if missing:
        raise DataError(_listing(f"{name}: {len(missing)} pair(s) of the '{split}' split are missing", missing))
    return [by_name[stem] for stem in stems]


# ---------------------------------------------------------------------------------------------
# Data sets for PyTorch


def load_pair(pair: Pair) -> tuple[np.ndarray, np.ndarray]:
    """Both images of a pair: infrared (H, W) and visible (H, W) or (H, W, 3), uint8, of one size."""
    ir, vis = read_ir(pair.ir), read_vis(pair.vis)
    if ir.shape != vis.shape[:2]:
        raise DataError(f"{pair.name}: infrared is {ir.shape[1]}x{ir.shape[0]} and visible "
                        f"{vis.shape[1]}x{vis.shape[0]}; register them to one size first ({pair.ir}, {pair.vis})")
    return ir, vis


class PairDataset(Dataset):
    """Whole gray pairs, decoded once and kept in memory as uint8.

    Item: (ir, vis_y), each a uint8 tensor (1, H, W); `names[i]` is its name.

    Args:
        pairs: what `match_pairs` or `named_pairs` returned.
    Raises:
        DataError: lists all the unreadable files and all size mismatches at once.
    """

    def __init__(self, pairs: Sequence[Pair], progress: bool = False):
        problems = []
        self.names, self.items = [], []
        for pair in tqdm(pairs, desc="reading pairs", unit="pair", leave=False, disable=not progress):
            try:
                ir, vis = load_pair(pair)
            except DataError as error:
                problems.append(str(error))
                continue
            self.names.append(pair.name)
            self.items.append(tuple(torch.from_numpy(np.ascontiguousarray(x))[None] for x in (ir, luma(vis))))
        if problems:
            raise DataError(_listing(f"{len(problems)} of {len(pairs)} pairs cannot be used", problems))

    def __len__(self) -> int:
        return len(self.items)

    def __getitem__(self, index: int) -> tuple[torch.Tensor, torch.Tensor]:
        return self.items[index]


class CropDataset(Dataset):
    """Random crops for training (paper, section 4.1.1: 3,383 crops of 128 x 128 a pass).

    Item `number` is a pure function of (seed, number): a random pair, place and, with `flips`, mirroring. So
    the crops are the same whatever the number of workers, and a resumed run continues the stream.
    Images smaller than a crop are mirrored at their lower and right edges; DataError below half of it.

    Item: (ir, vis_y), each a uint8 tensor (1, size, size).
    """

    def __init__(self, pairs: PairDataset, size: int = 128, seed: int = 0, flips: bool = False):
        small = [f"{name}: {ir.shape[2]}x{ir.shape[1]}" for name, (ir, _) in zip(pairs.names, pairs.items)
                 if 2 * min(ir.shape[1:]) < size]
        if small:
            raise DataError(_listing(f"smaller than half of the {size}x{size} training crop", small))
        self.items = [tuple(_mirrored(image, size) for image in pair) for pair in pairs.items]
        self.size, self.seed, self.flips = size, seed, flips

    def __len__(self) -> int:
        raise TypeError("the stream of crops has no end; see crop_batches")

    def __getitem__(self, number: int) -> tuple[torch.Tensor, torch.Tensor]:
        rng = np.random.default_rng((self.seed, number))
        ir, vis = self.items[int(rng.integers(len(self.items)))]
        top = int(rng.integers(ir.shape[1] - self.size + 1))
        left = int(rng.integers(ir.shape[2] - self.size + 1))
        flips = [dim for dim in (1, 2) if self.flips and rng.random() < 0.5]
        window = (slice(None), slice(top, top + self.size), slice(left, left + self.size))
        return ir[window].flip(flips), vis[window].flip(flips)


def _mirrored(image: torch.Tensor, size: int) -> torch.Tensor:
    """(1, H, W) -> at least (1, size, size)."""
    height, width = (max(size - length, 0) for length in image.shape[1:])
    return torch.from_numpy(np.pad(image.numpy(), ((0, 0), (0, height), (0, width)), "symmetric")) if height or width else image


def crop_batches(epoch: int, length: int, batch: int, start: int = 0, fixed_seed: int | None = None) -> Iterator[list[int]]:
    """Crop numbers of one epoch, in batches, from batch `start`; the last batch may be smaller.

    Each epoch has crops of its own; with `fixed_seed`, all have the same `length` crops, in an order of its own.
    """
    if fixed_seed is None:
        numbers = np.arange(epoch * length, (epoch + 1) * length)
    else:
        numbers = np.random.default_rng((fixed_seed, epoch, 1)).permutation(length)
    for begin in range(start * batch, length, batch):
        yield numbers[begin:begin + batch].tolist()


# ---------------------------------------------------------------------------------------------
# Options of the commands


def positive(text: str) -> int:
    """A whole number from 1, for argparse."""
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"{text} is not a positive whole number")
    return value


# ---------------------------------------------------------------------------------------------
# Several processes


class Team:
    """The processes that torchrun started, who share the items among them; without torchrun, this one alone."""

    rank, world = 0, 1      # which one this is, and of how many

    def join(self) -> None:
        """Meet the others, and take a GPU of one's own ("cuda" then means that one). Without torchrun: nothing."""
        launched = distributed.is_available() and distributed.is_torchelastic_launched()
        if not launched or distributed.is_initialized():
            return
        if torch.cuda.is_available():
            # Modulo: each process may have been given one GPU to see, or all may run on CPUs.
            torch.cuda.set_device(int(os.environ["LOCAL_RANK"]) % torch.cuda.device_count())
        # Both on a GPU: what the processes agree on between two steps must not wait for it.
        distributed.init_process_group("cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo")
        atexit.register(distributed.destroy_process_group)
        self.rank, self.world = distributed.get_rank(), distributed.get_world_size()

    def share(self, items: Sequence) -> Sequence:
        """Those of this process: every world-th."""
        return items[self.rank::self.world]

    def gathered(self, items: list) -> list:
        """What all made of their shares, for everybody, in the order before `share`. No item may be None."""
        if self.world == 1:
            return items
        parts: list = [None] * self.world
        distributed.all_gather_object(parts, items)
        return [item for row in zip_longest(*parts) for item in row if item is not None]


    def sum(self, x: torch.Tensor) -> torch.Tensor:
        """x, added up over all processes."""
        if self.world > 1:
            distributed.all_reduce(x)
        return x


team = Team()


# ---------------------------------------------------------------------------------------------
# python dataset.py NAME ROOT


def describe(pairs: Sequence[Pair]) -> str:
    """One line on what the pairs hold. Raises DataError for those that cannot be used."""
    sizes, colour, problems = [], 0, []
    for pair in tqdm(pairs, desc="checking", unit="pair", leave=False):
        try:
            ir, vis = load_pair(pair)
        except DataError as error:
            problems.append(str(error))
            continue
        sizes.append(ir.shape[::-1])
        colour += vis.ndim == 3
    if problems:
        raise DataError(_listing(f"{len(problems)} of {len(pairs)} pairs cannot be used", problems))
    low, high = min(sizes), max(sizes)
    span = "{}x{}".format(*low) + ("" if low == high else " to {}x{}".format(*high))
    return f"{len(pairs)} pairs, {span}, visible in colour: {colour}"


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description="Check a data set's folder and print what it holds.")
    parser.add_argument("name", choices=DATASETS, type=str.lower, help="data set")
    parser.add_argument("root", type=Path, help="the folder it was unpacked to, e.g. data/RoadScene")
    args = parser.parse_args(argv)
    layout, failed = DATASETS[args.name], 0
    for split in layout.splits:
        try:
            pairs = named_pairs(args.name, args.root, split)
            expected = dict(layout.expected).get(split)
            note = "" if expected in (None, len(pairs)) else f" (the published set has {expected})"
            print(f"{args.name} {split}: {describe(pairs)}{note}")
        except DataError as error:
            failed += 1
            print(f"{args.name} {split}: {error}", file=sys.stderr)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
