"""Make YOLO data sets of the images of several methods, with equal boxes and splits. The command is tools/detection.py.

    OUT/train.txt, val.txt, test.txt    names of the images of each part
    OUT/boxes.txt                       the classes, and a hash of the boxes
    OUT/METHOD/data.yaml                the file that YOLO trainers read
    OUT/METHOD/images/PART/NAME.png     a link to the method's image
    OUT/METHOD/labels/PART/NAME.txt     one line for each box: class, centre x, centre y, width, height, as fractions of
                                        the image's width and height
"""
from __future__ import annotations

if __name__ == "__main__":
    raise SystemExit("detection_data.py is a module; the command is tools/detection.py")

import hashlib
import json
import os
import random
import shutil
import xml.etree.ElementTree as ElementTree
from collections.abc import Container, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from tqdm import tqdm

from dataset import Reader
from images import DataError, decode, luma, split_colour, to_image, write_image
from metrics import baseline
from support.console import listed, note
from support.outputs import is_stray, refuse_overwriting, write_atomically
from support.pairing import add_named, composed, find_pairs, list_images, natural_key
from support.records import short_hash

M3FD_CLASSES = ("People", "Car", "Bus", "Motorcycle", "Lamp", "Truck")
SHARES = {"train": 0.6, "val": 0.2, "test": 0.2}
BOXES = "boxes.txt"


class Box(NamedTuple):
    """Box of one object. Centre and size are fractions of the image's width and height."""
    label: int      # index of the class
    x: float
    y: float
    width: float
    height: float


# ---------------------------------------------------------------------------------------------
# Boxes


def find_labels(folder: Path) -> dict[str, Path]:
    """{name: path} of the label files in a folder, in natural order. Names have composed accents.

    Raises DataError if there are none, or files of two kinds, or two of one name.
    """
    if not folder.is_dir():
        raise DataError(f"{folder}: no such folder")
    # Labelling programs write classes.txt beside YOLO text files, and macOS writes ._NAME.xml beside NAME.xml.
    paths = sorted((path for path in folder.iterdir() if path.suffix.lower() in READERS and path.name != "classes.txt"
                    and not path.name.startswith(".")), key=lambda path: (natural_key(path.stem), path.suffix))
    kinds = {path.suffix.lower() for path in paths}
    if not kinds:
        raise DataError(f"{folder}: no labels; expected NAME.xml (VOC) or NAME.txt (YOLO)")
    if len(kinds) > 1:
        raise DataError(f"{folder}: holds both .xml and .txt; move one kind to another folder")
    found: dict[str, Path] = {}
    for path in paths:
        add_named(found, composed(path.stem), path)
    return found


def read_voc(path: Path, classes: Sequence[str], image: tuple[int, int] | None = None) -> list[Box]:
    """Read the boxes of a VOC XML file. They are clipped to the image.

    Args:
        path: the file.
        classes: class names in the order of their numbers.
        image: width and height of the images; None is not compared with <size>.
    Raises:
        DataError: no valid file, or a file of images of another size.
    """
    try:
        root = ElementTree.parse(path).getroot()
        size = [float(root.findtext(f"size/{side}", "")) for side in ("width", "height")]
        objects = [(item.findtext("name", "").strip(), [float(item.findtext(f"bndbox/{corner}", ""))
                    for corner in ("xmin", "ymin", "xmax", "ymax")]) for item in root.iter("object")]
    except (OSError, ElementTree.ParseError, ValueError) as error:
        raise DataError(f"{path}: not a VOC file with sizes and boxes ({error}); copy it again") from None
    if min(size) <= 0:
        raise DataError(f"{path}: <size> of the image is not positive; correct it")
    if image and size != [*image]:
        raise DataError("{}: <size> is {:g}x{:g} and the images are {}x{}; use images of that size".format(path, *size, *image))
    return [_voc_box(path, name, corners, size, classes) for name, corners in objects]


def _voc_box(path: Path, name: str, corners: Sequence[float], size: Sequence[float], classes: Sequence[str]) -> Box:
    if name not in classes:
        raise DataError(f"{path}: class {name!r} is none of {' '.join(classes)}; name all with --classes")
    return checked(path, clipped(classes.index(name), np.divide(corners, [*size, *size])))


def read_yolo(path: Path, classes: Sequence[str], image: tuple[int, int] | None = None) -> list[Box]:
    """As `read_voc`, for a YOLO text file. It holds no size of images. An empty file: no objects."""
    try:
        lines = path.read_text(encoding="utf-8-sig").splitlines()       # -sig: Windows programs begin a file with a mark
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
    box = checked(path, Box(int(label), x, y, width, height))
    corners = np.array([x - width / 2, y - height / 2, x + width / 2, y + height / 2])
    return box if (corners >= 0).all() and (corners <= 1).all() else clipped(box.label, corners)


def clipped(label: int, corners: np.ndarray) -> Box:
    """The part of a box that is inside the image. corners: left, top, right, bottom, as fractions of the image."""
    left, top, right, bottom = np.clip(corners, 0, 1).tolist()
    return Box(label, (left + right) / 2, (top + bottom) / 2, right - left, bottom - top)


def checked(path: Path, box: Box) -> Box:
    """Return the box. Raises DataError if it has no area, is larger than the image, or has its centre outside."""
    if not (0 <= box.x <= 1 and 0 <= box.y <= 1 and 0 < box.width <= 1 and 0 < box.height <= 1):
        raise DataError(f"{path}: a box has no area or leaves the image "
                        f"({', '.join(f'{share:.3g}' for share in box[1:])} of it); correct it")
    return box


READERS = {".xml": read_voc, ".txt": read_yolo}


def as_yolo(boxes: Sequence[Box]) -> bytes:
    """Content of a YOLO text file."""
    return "".join(f"{box.label} {' '.join(f'{share:.6f}' for share in box[1:])}\n" for box in boxes).encode()


# ---------------------------------------------------------------------------------------------
# prepare


class Prepared(NamedTuple):
    """Result of `prepare`."""
    parts: dict[str, list[str]]     # {part: names of its images}
    counts: dict[str, int]          # {class: number of boxes}
    problems: list[str]             # one line for each thing that was left out


def prepare(images: Mapping[str, Path], labels: Path, classes: Sequence[str] | None, out: Path, seed: int) -> Prepared:
    """Make a YOLO data set for each method. Only images that all methods have and that can be read are used.

    Args:
        images: {method: folder}. File stems are those of the label files.
        labels: folder of VOC .xml or YOLO .txt files.
        classes: class names in the order of their numbers. None means the classes of M3FD, for VOC files only.
        out: folder of the data sets. Methods that are added later must have the same split, boxes, classes and image sizes.
        seed: seed of the split.
    Raises:
        DataError: folders without files, no common images, or another split, other boxes or other image sizes in `out`.
        OutputError: `out` holds the images.
        OSError: `out` cannot be written.
    """
    found = find_labels(labels)
    if classes is None and next(iter(found.values())).suffix.lower() == ".txt":
        raise DataError(f"{labels}: YOLO files hold numbers; name the classes in their order, as in "
                        "--classes person bicycle car")
    classes = classes or M3FD_CLASSES
    methods = {method: {composed(name): path for name, path in list_images(folder).items()}
               for method, folder in images.items()}
    refuse_overwriting([out / method / kind / part for method in methods for kind in ("images", "labels") for part in SHARES],
                       None, [path for files in (found, *methods.values()) for path in files.values()])
    names, problems = in_common(found, methods)
    boxes = readable(names, found, methods, classes, present_images(out, methods), problems)
    parts = split(list(boxes), seed)
    write_split(out, parts, boxes, classes)
    for method, files in methods.items():
        write_method(out / method, files, boxes, parts, classes)
    present = [box.label for some in boxes.values() for box in some]
    return Prepared(parts, {name: present.count(label) for label, name in enumerate(classes)}, problems)


def in_common(labels: Mapping[str, Path], methods: Mapping[str, Mapping[str, Path]]) -> tuple[list[str], list[str]]:
    """Names that have a label file and an image of every method, and one line for each kind of missing file.

    Raises DataError if there are no common names.
    """
    problems = []
    for method, files in methods.items():
        for what, some, others in (("without an image", labels, files), ("without a label", files, labels)):
            unpaired = [name for name in some if name not in others]
            if unpaired:
                problems.append(f"{method}: {len(unpaired)} {what}: {listed(unpaired, 10)}")
    names = [name for name in labels if all(name in files for files in methods.values())]
    if not names:
        raise DataError("no label has an image of the same name in every folder: " + "; ".join(problems))
    for name in names:
        try:
            name.encode()       # the lists of the split are UTF-8
        except UnicodeEncodeError:
            raise DataError(f"{labels[name]}: its name has undecodable bytes; rename it and its images") from None
    return names, problems


def present_images(out: Path, methods: Container[str]) -> dict[str, Path]:
    """{name: image} of a method that `out` holds already, and that is none of `methods`. Broken links are left out."""
    folders = [path.parent for path in sorted(out.glob("*/data.yaml")) if path.parent.name not in methods]
    return {composed(path.stem): path for folder in folders for path in sorted(folder.glob("images/*/*")) if path.is_file()}


def readable(names: Sequence[str], labels: Mapping[str, Path], methods: Mapping[str, Mapping[str, Path]],
             classes: Sequence[str], present: Mapping[str, Path], problems: list[str]) -> dict[str, list[Box]]:
    """{name: boxes} of the names whose label and images can be used. Others are left out, with a line in `problems`.

    Raises DataError if too few remain for a split, or if a name that cannot be used is present in the data set.
    """
    boxes, unusable = {}, []
    for name in tqdm(names, desc="checking", unit="image", leave=False, disable=None):
        try:
            size = check_images([files[name] for files in (present, *methods.values()) if name in files])
            boxes[name] = READERS[labels[name].suffix.lower()](labels[name], classes, size)
        except DataError as error:
            if name in present:     # without this image, the method would have another split
                raise
            unusable.append(str(error))
    problems[:0] = unusable         # before the missing files, which are often intended
    if len(boxes) < len(SHARES):
        raise DataError(f"{len(boxes)} usable image(s); a split needs more: " + "; ".join(problems[:3]))
    return boxes


def check_images(paths: Sequence[Path]) -> tuple[int, int]:
    """Check the images of one scene, and return their width and height.

    Raises DataError for files that cannot be read, for 16 bits and for several sizes. The detector reads the files
    itself, and it reads only 8-bit images without loss.
    """
    sizes = []
    for path in paths:
        image = decode(path)
        sizes.append(image.shape[1::-1])
        if image.dtype != np.uint8:
            raise DataError(f"{path}: 16 bits; the detector reads 8-bit images, so convert it")
        _check_end(path)
        if sizes[-1] != sizes[0]:       # the boxes would not fit a cropped image
            raise DataError("{}: is {}x{} and {} {}x{}; fuse it at that size".format(path, *sizes[-1], paths[0], *sizes[0]))
    return sizes[0]


def _check_end(path: Path) -> None:
    """Raises DataError for a JPEG file with data after its end. The detector would write it again, through links, too."""
    with path.open("rb") as file:       # not the whole file, which `decode` has read
        begin = file.read(2)
        file.seek(-2, os.SEEK_END)
        end = file.read(2)
    if begin == b"\xff\xd8" and end != b"\xff\xd9":
        raise DataError(f"{path}: has data after the end of the JPEG image, and the detector would replace it; convert it to "
                        ".png")


def split(names: Sequence[str], seed: int) -> dict[str, list[str]]:
    """Split names into train, val and test, 60 / 20 / 20, each in natural order. Depends only on names and seed."""
    shuffled = sorted(names)
    random.Random(seed).shuffle(shuffled)
    first = min(round(SHARES["train"] * len(names)), len(names) - 2)
    second = first + max(1, round(SHARES["val"] * len(names)))
    parts = {"train": shuffled[:first], "val": shuffled[first:second], "test": shuffled[second:]}
    return {part: sorted(some, key=natural_key) for part, some in parts.items()}


def write_split(out: Path, parts: Mapping[str, Sequence[str]], boxes: Mapping[str, Sequence[Box]],
                classes: Sequence[str]) -> None:
    """Write the lists of a split and a hash of its boxes.

    Raises DataError if `out` has another split, other boxes or other classes: methods could not be compared.
    """
    out.mkdir(parents=True, exist_ok=True)
    texts = {out / f"{part}.txt": "".join(f"{name}\n" for name in some) for part, some in parts.items()}
    content = hashlib.sha256(b"".join(name.encode() + b"\n" + as_yolo(boxes[name]) for name in sorted(boxes)))
    texts[out / BOXES] = f"{json.dumps(list(classes))}\n{content.hexdigest()}\n"
    for path, text in texts.items():
        if path.exists() and path.read_text(encoding="utf-8") != text:
            what = ("the boxes or classes there are others (--labels, --classes)" if path.name == BOXES else
                    "the split there is another one (other images or --seed)")
            raise DataError(f"{path}: {what}; choose another --out, or remove the folder and prepare all methods at once")
    for path, text in texts.items():
        write_atomically(path, text.encode())


def write_method(folder: Path, files: Mapping[str, Path], boxes: Mapping[str, Sequence[Box]],
                 parts: Mapping[str, Sequence[str]], classes: Sequence[str]) -> None:
    """Write the data set of one method. Raises DataError if its folders hold other files."""
    linked = True
    for part, names in parts.items():
        images, labels = folder / "images" / part, folder / "labels" / part
        # The name of the label: the detector looks for labels by the names of the images, letter by letter.
        targets = {images / f"{name}{files[name].suffix}": files[name] for name in names}
        texts = {labels / f"{name}.txt": as_yolo(boxes[name]) for name in names}
        for place, expected in ((images, targets), (labels, texts)):
            place.mkdir(parents=True, exist_ok=True)
            others = [path.name for path in place.iterdir() if path not in expected and not is_stray(path)]
            if others:
                raise DataError(f"{place}: holds files of another data set ({listed(sorted(others), 3)}); remove {folder}")
        for target, source in tqdm(targets.items(), desc=f"{folder.name} {part}", leave=False, disable=None):
            linked &= link(source, target)
        for path, text in texts.items():
            write_atomically(path, text, sync=False)
    if not linked:      # a hard link, too, keeps the old image when a program replaces the file
        note("no symbolic links here: run prepare again after images change", folder.name)
    places = "".join(f"{part}: images/{part}\n" for part in parts)
    write_atomically(folder / "data.yaml", f"{places}names: {json.dumps(list(classes))}\n".encode())   # JSON is YAML


def image_hash(folder: Path) -> str:
    """Hash of a method's images, in the order of their parts and names.

    Args:
        folder: OUT/METHOD, the data set of the method.
    Raises:
        DataError: an image or a folder of a part is missing.
    """
    paths = [path for part in SHARES for path in list_images(folder / "images" / part).values()]
    try:
        return short_hash(*(hashlib.sha256(path.read_bytes()).digest() for path in paths))
    except OSError as error:
        raise DataError(f"{error.filename}: {error.strerror}; prepare the method again") from None


def link(source: Path, target: Path) -> bool:
    """Make `target` a symbolic link, a hard link or a copy of `source`, whichever works first.

    Returns whether it is a symbolic link.
    """
    source = source.resolve()
    target.unlink(missing_ok=True)
    for make in (os.symlink, os.link):
        try:
            make(source, target)
            return make is os.symlink
        except OSError:     # missing rights on Windows, a file system without links, or two different disks
            pass
    shutil.copyfile(source, target)
    return False


# ---------------------------------------------------------------------------------------------
# average


def write_averages(ir: Path, vis: Path, out: Path, read: Reader) -> tuple[int, list[str]]:
    """Write the average of each pair, with the colour of the visible image, as NAME.png. It is a trivial baseline.

    Args:
        ir, vis: folders of the sources.
        out: output folder.
        read: function that reads a pair.
    Returns:
        The number of images, and one line for each pair or image that was left out.
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
            infrared, visible = read(pair)
        except DataError as error:
            problems.append(str(error))
            continue
        luminance = baseline("average", infrared, luma(visible)).astype(np.float32) / 255
        write_image(out / f"{pair.name}.png", to_image(luminance, split_colour(visible)[1]))
        written += 1
    return written, problems
