"""YOLO data sets of several methods' images, with the same boxes and the same split. The command is tools/detection.py.

    OUT/train.txt, val.txt, test.txt    names of the images of each part
    OUT/METHOD/data.yaml                the file that YOLO trainers read
    OUT/METHOD/images/PART/NAME.png     a link to the method's image
    OUT/METHOD/labels/PART/NAME.txt     a line for each box: class, centre x, centre y, width, height (shares of the image)
"""
from __future__ import annotations

import json
import os
import random
import shutil
import xml.etree.ElementTree as ElementTree
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from tqdm import tqdm

from dataset import load_pair
from images import DataError, decode, luma, split_colour, to_image, write_image
from metrics import baseline
from support.console import listed
from support.outputs import refuse_overwriting, write_atomically
from support.pairing import find_pairs, list_images, natural_key

M3FD_CLASSES = ("People", "Car", "Bus", "Motorcycle", "Lamp", "Truck")
SHARES = {"train": 0.6, "val": 0.2, "test": 0.2}


class Box(NamedTuple):
    """One object; centre and size are shares of the image's width and height."""
    label: int      # index of its class
    x: float
    y: float
    width: float
    height: float


# ---------------------------------------------------------------------------------------------
# Boxes


def find_labels(folder: Path) -> dict[str, Path]:
    """Label files of a folder by stem, in natural order. Raises DataError where there are none, or two kinds."""
    if not folder.is_dir():
        raise DataError(f"{folder}: no such folder")
    # classes.txt: what labelling programs write beside YOLO text files.
    paths = sorted((path for path in folder.iterdir() if path.suffix.lower() in READERS and path.name != "classes.txt"),
                   key=lambda path: natural_key(path.stem))
    kinds = {path.suffix.lower() for path in paths}
    if not kinds:
        raise DataError(f"{folder}: no labels; expected NAME.xml (VOC) or NAME.txt (YOLO)")
    if len(kinds) > 1:
        raise DataError(f"{folder}: holds both .xml and .txt; move one kind to another folder")
    return {path.stem: path for path in paths}


def read_voc(path: Path, classes: Sequence[str]) -> list[Box]:
    """Boxes of a VOC XML file, cut at the image's borders. Raises DataError."""
    try:
        root = ElementTree.parse(path).getroot()
        size = [float(root.findtext(f"size/{side}", "")) for side in ("width", "height")]
        objects = [(item.findtext("name", "").strip(), [float(item.findtext(f"bndbox/{corner}", ""))
                    for corner in ("xmin", "ymin", "xmax", "ymax")]) for item in root.iter("object")]
    except (OSError, ElementTree.ParseError, ValueError) as error:
        raise DataError(f"{path}: not a VOC file with sizes and boxes ({error}); copy it again") from None
    if min(size) <= 0:
        raise DataError(f"{path}: <size> of the image is not positive; correct it")
    return [_voc_box(path, name, corners, size, classes) for name, corners in objects]


def _voc_box(path: Path, name: str, corners: Sequence[float], size: Sequence[float], classes: Sequence[str]) -> Box:
    if name not in classes:
        raise DataError(f"{path}: class {name!r} is none of {' '.join(classes)}; name all with --classes")
    left, top, right, bottom = np.clip(np.divide(corners, [*size, *size]), 0, 1).tolist()
    return checked(path, Box(classes.index(name), (left + right) / 2, (top + bottom) / 2, right - left, bottom - top))


def read_yolo(path: Path, classes: Sequence[str]) -> list[Box]:
    """Boxes of a YOLO text file; an empty file is an image without objects. Raises DataError."""
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{path}: cannot be read ({error}); copy it again") from None
    return [_yolo_box(path, number, line, classes) for number, line in enumerate(lines, 1) if line.strip()]


def _yolo_box(path: Path, number: int, line: str, classes: Sequence[str]) -> Box:
    try:
        label, x, y, width, height = map(float, line.split())
    except ValueError:
        raise DataError(f"{path}: line {number}: expected class, x, y, width, height; correct it") from None
    if label not in range(len(classes)):
        raise DataError(f"{path}: line {number}: class {label:g} is none of 0 to {len(classes) - 1}; name all with --classes")
    return checked(path, Box(int(label), x, y, width, height))


def checked(path: Path, box: Box) -> Box:
    """The box. Raises DataError where it has no area, or lies outside the image."""
    if not (0 <= box.x <= 1 and 0 <= box.y <= 1 and 0 < box.width <= 1 and 0 < box.height <= 1):
        raise DataError(f"{path}: a box has no area or leaves the image "
                        f"({', '.join(f'{share:.3g}' for share in box[1:])} of it); correct it")
    return box


READERS = {".xml": read_voc, ".txt": read_yolo}


def as_yolo(boxes: Sequence[Box]) -> bytes:
    return "".join(f"{box.label} {' '.join(f'{share:.6f}' for share in box[1:])}\n" for box in boxes).encode()


# ---------------------------------------------------------------------------------------------
# prepare


class Prepared(NamedTuple):
    """What `prepare` made."""
    parts: dict[str, list[str]]     # names of the images
    counts: dict[str, int]          # of boxes, by class
    problems: list[str]             # a line for each thing that was left out


def prepare(images: Mapping[str, Path], labels: Path, classes: Sequence[str] | None, out: Path, seed: int) -> Prepared:
    """A YOLO data set of each method. Only images that every method has, readable, are used: all train on the same.

    Args:
        images: {method: folder}; files have the stems of the label files.
        labels: folder of VOC .xml or YOLO .txt files.
        classes: names in the order of their numbers; None for those of M3FD, with VOC files alone.
        out: folder of the data sets. Methods that are added later need the split that is there.
        seed: of the split.
    Raises:
        DataError: folders without files, nothing in common, another split in `out`.
        OutputError: `out` holds the images.
        OSError: `out` cannot be written.
    """
    found = find_labels(labels)
    if classes is None and next(iter(found.values())).suffix.lower() == ".txt":
        raise DataError(f"{labels}: YOLO files hold numbers; name the classes in their order, as in "
                        "--classes person bicycle car")
    classes = classes or M3FD_CLASSES
    methods = {method: list_images(folder) for method, folder in images.items()}
    refuse_overwriting([out / method / kind / part for method in methods for kind in ("images", "labels") for part in SHARES],
                       None, [path for files in (found, *methods.values()) for path in files.values()])
    names, problems = in_common(found, methods)
    boxes = readable(names, found, methods, classes, problems)
    parts = split(list(boxes), seed)
    write_split(out, parts)
    for method, files in methods.items():
        write_method(out / method, files, boxes, parts, classes)
    present = [box.label for some in boxes.values() for box in some]
    return Prepared(parts, {name: present.count(label) for label, name in enumerate(classes)}, problems)


def in_common(labels: Mapping[str, Path], methods: Mapping[str, Mapping[str, Path]]) -> tuple[list[str], list[str]]:
    """The names that have a label and an image of every method, and a line for each kind of partner that is missing."""
    problems = []
    for method, files in methods.items():
        for what, some, others in (("without an image", labels, files), ("without a label", files, labels)):
            unpaired = [name for name in some if name not in others]
            if unpaired:
                problems.append(f"{method}: {len(unpaired)} {what}: {listed(unpaired, 10)}")
    names = [name for name in labels if all(name in files for files in methods.values())]
    if not names:
        raise DataError("no label has an image of the same name in every folder: " + "; ".join(problems))
    return names, problems


def readable(names: Sequence[str], labels: Mapping[str, Path], methods: Mapping[str, Mapping[str, Path]],
             classes: Sequence[str], problems: list[str]) -> dict[str, list[Box]]:
    """{name: boxes} of the names whose label and images can be used; the others are added to `problems`."""
    boxes = {}
    for name in tqdm(names, desc="checking", unit="image", leave=False, disable=None):
        try:
            some = READERS[labels[name].suffix.lower()](labels[name], classes)
            check_images([files[name] for files in methods.values()])
            boxes[name] = some
        except DataError as error:
            problems.append(str(error))
    if len(boxes) < len(SHARES):
        raise DataError(f"{len(boxes)} usable image(s); a split needs more: " + "; ".join(problems[:3]))
    return boxes


def check_images(paths: Sequence[Path]) -> None:
    """One scene's images. Raises DataError for what cannot be read, or not as here, and for images of several sizes."""
    sizes = []
    for path in paths:
        image = decode(path)
        sizes.append(image.shape[1::-1])
        if image.dtype != np.uint8:
            raise DataError(f"{path}: 16 bits, which the detector would cut; convert it to 8 bits")
        if sizes[-1] != sizes[0]:       # a cropped image would need other boxes
            raise DataError("{}: is {}x{} and {} {}x{}; fuse it at that size".format(path, *sizes[-1], paths[0], *sizes[0]))


def split(names: Sequence[str], seed: int) -> dict[str, list[str]]:
    """The names in three parts, 60 / 20 / 20, each in natural order. It depends on the names and the seed alone."""
    shuffled = sorted(names)
    random.Random(seed).shuffle(shuffled)
    first = min(round(SHARES["train"] * len(names)), len(names) - 2)
    second = first + max(1, round(SHARES["val"] * len(names)))
    parts = {"train": shuffled[:first], "val": shuffled[first:second], "test": shuffled[second:]}
    return {part: sorted(some, key=natural_key) for part, some in parts.items()}


def write_split(out: Path, parts: Mapping[str, Sequence[str]]) -> None:
    """The lists. Raises DataError where there are others, because methods of two splits cannot be compared."""
    out.mkdir(parents=True, exist_ok=True)
    texts = {out / f"{part}.txt": "".join(f"{name}\n" for name in some) for part, some in parts.items()}
    for path, text in texts.items():
        if path.exists() and path.read_text(encoding="utf-8") != text:
            raise DataError(f"{path}: the split there is another one (other images or --seed); choose another --out, or "
                            "remove the folder and prepare all methods at once")
    for path, text in texts.items():
        write_atomically(path, text.encode())


def write_method(folder: Path, files: Mapping[str, Path], boxes: Mapping[str, Sequence[Box]],
                 parts: Mapping[str, Sequence[str]], classes: Sequence[str]) -> None:
    """One method's data set. Raises DataError where its folders hold other files."""
    for part, names in parts.items():
        images, labels = folder / "images" / part, folder / "labels" / part
        targets = {images / files[name].name: files[name] for name in names}
        texts = {labels / f"{name}.txt": as_yolo(boxes[name]) for name in names}
        for place, expected in ((images, targets), (labels, texts)):
            place.mkdir(parents=True, exist_ok=True)
            others = [path.name for path in place.iterdir() if path not in expected]
            if others:
                raise DataError(f"{place}: holds files of another data set ({listed(sorted(others), 3)}); remove {folder}")
        for target, source in tqdm(targets.items(), desc=f"{folder.name} {part}", leave=False, disable=None):
            link(source, target)
        for path, text in texts.items():
            write_atomically(path, text, sync=False)
    places = "".join(f"{part}: images/{part}\n" for part in parts)
    write_atomically(folder / "data.yaml", f"{places}names: {json.dumps(list(classes))}\n".encode())   # JSON is YAML


def link(source: Path, target: Path) -> None:
    """`target` leads to the pixels of `source`: a symbolic link, a hard link or a copy, the first that works."""
    source = source.resolve()
    target.unlink(missing_ok=True)
    for make in (os.symlink, os.link):
        try:
            make(source, target)
            return
        except OSError:     # Windows without the right to, file systems without links, two disks
            pass
    shutil.copyfile(source, target)


# ---------------------------------------------------------------------------------------------
# average


def write_averages(ir: Path, vis: Path, out: Path) -> tuple[int, list[str]]:
    """The average of each pair, in the visible image's colours, as NAME.png: the trivial fusion to compare with.

    Returns:
        The number of images, and a line for each that is missing.
    Raises:
        DataError: the folders hold no pairs.
        OutputError, OSError: `out` cannot be written.
    """
    pairs, problems = find_pairs(ir, vis)
    refuse_overwriting([out], None, [path for pair in pairs for path in (pair.ir, pair.vis)])
    out.mkdir(parents=True, exist_ok=True)
    written = 0
    for pair in tqdm(pairs, desc="average", unit="pair", leave=False, disable=None):
        try:
            infrared, visible = load_pair(pair)
        except DataError as error:
            problems.append(str(error))
            continue
        luminance = baseline("average", infrared, luma(visible)).astype(np.float32) / 255
        write_image(out / f"{pair.name}.png", to_image(luminance, split_colour(visible)[1]))
        written += 1
    return written, problems
