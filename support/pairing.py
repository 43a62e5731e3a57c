"""Match the files of two folders to pairs: by equal names, by the usual prefixes and suffixes, or by patterns."""
from __future__ import annotations

import re
import unicodedata
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import NamedTuple, TypeVar

from support.console import listed, note
from support.headers import SUFFIXES, DataError

# Usual prefixes and suffixes of file names, in upper or lower case: a_ir and a_vis, IR1 and VIS1, x-thermal and x-rgb.
INFRARED = ("infrared", "thermal", "lwir", "mwir", "tir", "inf", "ir", "mri")
VISIBLE = ("visible", "vis", "vi", "rgb", "colour", "color", "optical", "tv", "pet", "spect", "ct")

Item = TypeVar("Item")


class Pair(NamedTuple):
    """The files of one aligned pair, and its name."""
    name: str
    ir: Path
    vis: Path


class PatternError(DataError):
    """No image of a folder has a name that fits the pattern."""


def list_images(folder: str | Path, pattern: str | None = None, option: str = "") -> dict[str, Path]:
    """{file stem: path} of the images in a folder, in natural order (2 before 10). Warns about other files.

    With a pattern, only the images that match it, and in place of the stem what its * stands for. option: the option
    that names the pattern, for errors.

    Raises DataError if there is no such folder or if two images have the same name, PatternError if no image matches the
    pattern.
    """
    if pattern:
        return _matching(_image_files(Path(folder)), pattern, option)
    found: dict[str, Path] = {}
    for path in _image_files(Path(folder)):
        add_named(found, path.stem, path)
    return found


def _image_files(folder: Path) -> list[Path]:
    """The images in a folder, in natural order. Warns about other files. Raises DataError if there is no such folder."""
    if not folder.is_dir():
        raise DataError(f"{folder}: {'is a file; give its folder' if folder.exists() else 'no such folder'}")
    paths = [p for p in folder.iterdir() if not p.name.startswith(".")]
    others = [p.name for p in paths if p.suffix.lower() not in SUFFIXES and not p.is_dir()]
    if others:
        note(f"not read, because only {', '.join(sorted(SUFFIXES))} are", f"{folder}/ ({listed(sorted(others), 5)})")
    return sorted((p for p in paths if p.suffix.lower() in SUFFIXES), key=lambda p: natural_key(p.name))


def add_named(found: dict[str, Path], name: str, path: Path) -> None:
    """Add a file to {name: path}. Raises DataError if another one has its name."""
    if name in found:
        raise DataError(f"{path.parent}: {found[name].name} and {path.name} share a name; keep one of them")
    found[name] = path


def natural_key(text: str) -> tuple:
    """Sort key that orders numbers in names by value. Only 0 to 9 count as digits, not other Unicode digits."""
    return [(0, len(part.lstrip("0")), part.lstrip("0")) if part[0] in "0123456789" else (1, 0, part.lower())
            for part in re.split("([0-9]+)", text) if part], text       # the text itself gives 01 and 1 a fixed order


# ---------------------------------------------------------------------------------------------
# Different names of one scene


def without_affix(stem: str, affixes: tuple[str, ...]) -> str:
    """Remove a prefix or suffix: ir_001, 001-ir -> 001, IR1 -> 1. Returns the stem unchanged if it has none."""
    words = "|".join(affixes)
    for pattern in (rf"(?:{words})(?:[-_. ]+|(?=[0-9]))(?P<name>.+)",
                    rf"(?P<name>.+?)(?:[-_. ]+|(?<=[0-9]))(?:{words})"):
        match = re.fullmatch(pattern, stem, re.IGNORECASE)
        if match:
            return match["name"]
    return stem


def shared_name(ir: Path, vis: Path) -> str:
    """Name of a pair of files: what their names share without prefix and suffix, or else the visible file's stem."""
    name = without_affix(vis.stem, VISIBLE)
    return name if _equal_letters(without_affix(ir.stem, INFRARED)) == _equal_letters(name) else vis.stem


def composed(name: str) -> str:
    """The name with each accent as a part of its letter. macOS can write it as a character of its own."""
    return unicodedata.normalize("NFC", name)


def _equal_letters(name: str) -> str:
    return composed(name).casefold()


def _equal_numbers(name: str) -> str:
    return re.sub("[0-9]+", lambda match: str(int(match[0])), _equal_letters(name))


def _only_number(name: str) -> str:
    numbers = re.findall("[0-9]+", name)
    return str(int(numbers[0])) if len(numbers) == 1 else ""


# From strict to loose. A comparison is used only if it pairs all files one to one.
_COMPARISONS: tuple[tuple[str, Callable[[str], str]], ...] = (
    ("equal names, upper and lower case alike", _equal_letters), ("equal names, numbers by value", _equal_numbers),
    ("equal numbers", _only_number))


def _guess(ir: dict[str, Path], vis: dict[str, Path]) -> list[Pair]:
    """Pair all files by the first comparison of names that works, with a warning; [] if none does."""
    for how, key in _COMPARISONS:
        sides = []
        for images, affixes in ((ir, INFRARED), (vis, VISIBLE)):
            names = {stem: without_affix(stem, affixes) for stem in images}
            sides.append({key(name): (name, images[stem]) for stem, name in names.items()})
        one_to_one = len(ir) == len(sides[0]) == len(sides[1]) == len(vis) and sides[0].keys() == sides[1].keys()
        if one_to_one and "" not in sides[0]:
            pairs = [Pair(sides[1][key][0], path, sides[1][key][1]) for key, (_, path) in sides[0].items()]
            other = [pair for pair in pairs if pair.ir.stem != pair.vis.stem]
            note(f"file names differ; matched by {how}, without prefixes and suffixes such as ir and vis",
                 f"{other[0].ir.name} with {other[0].vis.name}, and so on, {len(other)} of {len(pairs)} pairs")
            return pairs
    return []


def _matching(images: Sequence[Path], pattern: str, option: str) -> dict[str, Path]:
    """{text that * matches: path} of the images that match a pattern.

    A pattern with a suffix (*_ir.png) is compared with the whole file name, any other pattern with the stem. Raises
    PatternError if nothing matches, DataError for a wrong pattern or two images with one name.
    """
    before, star, after = pattern.partition("*")
    if not star or "*" in after:
        raise DataError(f"{option} {pattern}: write one *, for what the two names of a pair have in common")
    found: dict[str, Path] = {}
    for path in images:
        text = path.name if Path(pattern).suffix.lower() in SUFFIXES else path.stem
        match = re.fullmatch(re.escape(before) + "(.+)" + re.escape(after), text)
        if match:
            add_named(found, match[1], path)
    if images and not found:
        raise PatternError(f"{option} {pattern}: no such file among {_examples(images)}")
    return found


def _examples(images: Iterable[Path]) -> str:
    return listed([path.name for path in images], 3)


# ---------------------------------------------------------------------------------------------
# Pairs of folders


def find_pairs(ir_dir: str | Path, vis_dir: str | Path, ir_pattern: str | None = None,
               vis_pattern: str | None = None) -> tuple[list[Pair], list[str]]:
    """Match the images of two folders by file name, or the images of one folder that are named IR1, VIS1, ...

    Files with equal stems are a pair. If not all stems are equal, names are compared without the usual prefixes and
    suffixes, and then by their numbers. This is used only if it pairs all files one to one. A warning then says what
    was matched.

    Args:
        ir_dir, vis_dir: the folders, or the same folder twice.
        ir_pattern, vis_pattern: file names with one *, which stands for the name of the pair. Files that do not match
            are left out.
    Returns:
        The pairs in natural order, and one line for each file without a partner.
    Raises:
        DataError: a folder is missing or has no images, or no names match.
    """
    ir_dir, vis_dir = Path(ir_dir), Path(vis_dir)
    if ir_pattern or vis_pattern:
        ir = list_images(ir_dir, ir_pattern or "*", "--ir-pattern")
        vis = list_images(vis_dir, vis_pattern or "*", "--vis-pattern")
    elif ir_dir.resolve() == vis_dir.resolve():
        ir, vis = _sides(ir_dir)
    else:
        ir, vis = list_images(ir_dir), list_images(vis_dir)
    for folder, images in ((ir_dir, ir), (vis_dir, vis)):
        if not images:
            raise DataError(without_images(folder))
    if ir.keys() != vis.keys():
        pairs = _guess(ir, vis)
        if pairs:
            return pairs, []
    pairs = [Pair(name, ir[name], vis[name]) for name in ir if name in vis]
    if not pairs:
        remedy = (f"these patterns give the names {listed([*ir], 3)} and {listed([*vis], 3)}" if ir_pattern or vis_pattern else
                  "say what is common, as in --ir-pattern '*_ir' --vis-pattern '*_vis'")
        raise DataError(f"no file of {ir_dir} has the name of one of {vis_dir}: {_examples(ir.values())} against "
                        f"{_examples(vis.values())}; {remedy}")
    unpaired = [f"{path}: no visible partner in {vis_dir}" for name, path in ir.items() if name not in vis]
    unpaired += [f"{path}: no infrared partner in {ir_dir}" for name, path in vis.items() if name not in ir]
    return pairs, unpaired


def _sides(folder: Path) -> tuple[dict[str, Path], dict[str, Path]]:
    """Infrared and visible images of one folder, each as {name without prefix or suffix: path}. Raises DataError.

    Warns about images of neither side.
    """
    sides: tuple[dict, dict] = {}, {}
    others = []
    for stem, path in list_images(folder).items():
        for side, affixes in zip(sides, (INFRARED, VISIBLE)):
            name = without_affix(stem, affixes)
            if name != stem:
                add_named(side, name, path)
                break
        else:
            others.append(path.name)
    if not sides[0] or not sides[1]:
        raise DataError(f"{folder}: needs both IR* and VIS* files; or give two folders (infrared and visible)")
    if others:
        note("left out, because the name has no prefix or suffix such as IR or VIS", f"{folder}/ ({listed(others, 5)})")
    return sides


def match_pairs(ir_dir: str | Path, vis_dir: str | Path, ir_pattern: str | None = None,
                vis_pattern: str | None = None) -> list[Pair]:
    """As `find_pairs`, but files without a partner are an error: DataError lists all of them."""
    return all_paired(*find_pairs(ir_dir, vis_dir, ir_pattern, vis_pattern))


def all_paired(pairs: list[Pair], unpaired: list[str]) -> list[Pair]:
    """The pairs. Raises DataError that lists `unpaired`, unless it is empty."""
    if unpaired:
        raise DataError(listing(f"{len(unpaired)} image(s) without a partner of the same name", unpaired))
    return pairs


def spread(items: Sequence[Item], count: int) -> list[Item]:
    """At most `count` of the items, at equal distances over the whole list."""
    return [items[i * len(items) // count] for i in range(count)] if count < len(items) else list(items)


def without_images(folder: Path) -> str:
    """A message about a folder without images. It names its subfolders, which are not read."""
    inner = sorted(path.name for path in folder.iterdir() if path.is_dir())
    remedy = f"; subfolders are not read ({listed(inner, 5)}), so name one of them" if inner else ""
    return f"{folder}: no images ({', '.join(sorted(SUFFIXES))}){remedy}"


def listing(title: str, lines: list[str]) -> str:
    """A message of several lines: the title, then the lines, indented."""
    return title + ":\n" + "\n".join(f"  {line}" for line in lines)
