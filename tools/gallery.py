"""Make a folder with a web page that shows fused images with their sources and scores.

    python test.py && python tools/gallery.py                                           the samples, with ./Fused
    python tools/gallery.py --fused RPFNet=Fused Mine=DIR --ir DIR --vis DIR --out report
    python tools/gallery.py --fused Mine=DIR --dataset msrs --data data/MSRS --baselines --protocol cddfuse

Without --ir, --vis and --dataset, the rendered samples are shown. Without --fused, the images in ./Fused.

Open index.html in the folder with a browser: a viewer with a slider, zoom and blinking, and sortable tables. It needs no
server and loads nothing from the network, so the folder can also be published on any web site. index.html#NAME opens the
pair of that name, index.html#NAME?right=METHOD with the image of that method.

The images in the folder are 8-bit PNG files. They look the same in all browsers, which differ in how they show 16-bit
files, transparency or rotation flags. The scores are those of metrics.py, computed from the luma of these images.
"""
from __future__ import annotations

import argparse
import json
import math
import re
import sys
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

import cv2
import numpy as np

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from dataset import Pair, Reader, reader, sources_or_samples
from images import DataError, luma, write_image
from metrics import (
    BASELINES,
    LOWER_IS_BETTER,
    PROTOCOLS,
    TITLES,
    Report,
    Task,
    add_baselines,
    add_image_options,
    baseline,
    chosen_names,
    collect_methods,
    cores,
    match_methods,
    rank_of_ranks,
    read_methods,
)
from support.console import complain, failed, finished, noted, positive, printable
from support.console import run as run_command
from support.outputs import is_stray, write_atomically

TEMPLATES = Path(__file__).resolve().parent / "gallery"
PAGE = ("index.html", "gallery.css", "gallery.js")
SOURCES = ("Infrared", "Visible")
THUMBNAIL = 160     # pixels, longer side; high-density screens show it at half this size
DEVICES = r"con|prn|aux|nul|(com|lpt)[0-9]"        # no names of files on Windows, also before a suffix
# The data are a script, because browsers do not allow a page on the disk to fetch JSON.
DATA_HEAD, DATA_END = "// Made by tools/gallery.py\nconst REPORT = ", ";\n"


def build_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter,
                                     usage="python tools/gallery.py [options]")
    add_baselines(add_image_options(parser))

    what = parser.add_argument_group("scores")
    what.add_argument("--protocol", default="definition", choices=PROTOCOLS,
                      help="the arithmetic of the scores, see metrics.py --help (default: %(default)s)")
    what.add_argument("--metrics", nargs="+", action="extend", metavar="NAME",
                      help="only these metrics (default: all of the protocol); "
                      "a few fast ones (EN SD AG) save most of the time of a large gallery")
    what.add_argument("--workers", type=positive, default=cores(),
                      help="number of processes (default: all cores, %(default)s)")

    output = parser.add_argument_group("output")
    output.add_argument("--out", type=Path, default=Path("report"), metavar="DIR",
                        help="output folder: new, empty, or an earlier gallery, which is replaced (default: "
                        "%(default)s)")
    return parser


def matched_methods(pairs: Sequence[Pair], folders: dict[str, Path],
                    pattern: str | None = None) -> tuple[dict[str, dict[str, Path]], list[str]]:
    """As `match_methods`. Raises DataError for a method without any image, because it is probably the wrong folder."""
    there = {method: folder for method, folder in folders.items() if folder.is_dir()}
    methods, problems = match_methods(pairs, there, pattern)
    for method, folder in folders.items():
        if not methods.get(method):
            raise DataError(f"{folder}: no fused image here has the name of a pair, such as {pairs[0].name}; "
                            f"give the right folder with --fused {method}=DIR or the pattern with --fused-pattern, "
                            f"or make it with test.py --out {folder}")
    return methods, problems


# ---------------------------------------------------------------------------------------------
# The folder


def file_names(names: Iterable[str]) -> list[str]:
    """A file name without suffix for each name. It is valid on all systems and in URLs, and unique in lower case."""
    taken: set[str] = set()
    result = []
    for name in names:
        stem = re.sub(r"[^A-Za-z0-9._-]+", "_", name).strip(".") or "_"
        if re.fullmatch(DEVICES, stem.partition(".")[0], re.IGNORECASE):
            stem = "_" + stem
        while stem.lower() in taken:
            stem += "_"
        taken.add(stem.lower())
        result.append(stem)
    return result


def files_of(data: dict) -> set[str]:
    """Relative paths of all files that a gallery with these data can contain."""
    stems = data.get("files") or [pair["file"] for pair in data["pairs"]]       # older galleries have no "files"
    return {*PAGE, "data.js", *(f"thumbs/{stem}.jpg" for stem in stems),
            *(f"images/{source['folder']}/{stem}.png" for source in data["sources"] for stem in stems)}


def read_data(out: Path) -> dict:
    """Read data.js of a gallery. Raises OSError, or ValueError if it is another file."""
    text = (out / "data.js").read_text(encoding="utf-8")
    if not text.startswith(DATA_HEAD):
        raise ValueError(f"{out / 'data.js'}: not of a gallery")
    return json.loads(text.removeprefix(DATA_HEAD).removesuffix(DATA_END))


def clear(out: Path, inputs: Iterable[Path]) -> None:
    """Remove the earlier gallery in `out`. If the folder holds other files, raises ValueError and removes nothing."""
    if out.exists() and not out.is_dir():
        raise ValueError(f"--out {out}: is a file; give a folder")
    inside = next((path for path in inputs if out.resolve() in path.resolve().parents), None)
    if inside:
        raise ValueError(f"--out {out}: {inside}, which is to be shown, lies in it; choose another folder")
    try:
        known = files_of(read_data(out))
    except (OSError, ValueError, KeyError, TypeError):
        known = set()
    found = []
    for path in out.rglob("*"):     # ends at the first other file, so that a large folder is not read completely
        if path.is_symlink() or not path.is_dir():
            found.append(path)
            if path.relative_to(out).as_posix() not in known and not is_stray(path):
                raise ValueError(f"--out {out}: holds {path.relative_to(out)}, which is not of a gallery; "
                                 "choose another folder, or move the file away")
    folders = {path.parent for path in found if path.parent != out}
    for path in found:
        path.unlink()
    for folder in sorted(folders, reverse=True):        # subfolders first
        if not any(folder.iterdir()):
            folder.rmdir()


class Gallery:
    """Writes the images of each pair while the pairs are scored, and then the page.

    Args:
        out: the output folder.
        pairs: the pairs to show.
        methods: {method: {name of the pair: fused image}}.
        baselines: names in `metrics.BASELINES`, shown as methods.
        problems: one line is added for each image that cannot be shown.
        read: reads a pair, see `dataset.reader`.
    """

    def __init__(self, out: Path, pairs: Sequence[Pair], methods: dict[str, dict[str, Path]], baselines: Sequence[str],
                 problems: list[str], read: Reader):
        self.out, self.pairs, self.methods, self.baselines, self.problems = out, pairs, methods, baselines, problems
        self.read = read
        self.labels = [*SOURCES, *methods, *baselines]
        self.folders = file_names(label.lower() if label in SOURCES else label for label in self.labels)
        self.stems = dict(zip([pair.name for pair in pairs], file_names(pair.name for pair in pairs)))
        self.shown: dict[str, dict] = {}        # the pairs that could be read, by name

    def begin(self) -> None:
        """Make the folders and write a list of all files, then the page. After a kill, `clear` then recognises them."""
        for folder in ("thumbs", *(f"images/{folder}" for folder in self.folders)):
            (self.out / folder).mkdir(parents=True, exist_ok=True)
        self._write_data([{"name": printable(name), "file": stem} for name, stem in self.stems.items()])
        for name in PAGE:
            write_atomically(self.out / name, (TEMPLATES / name).read_bytes())

    def tasks(self) -> Iterator[Task]:
        """Read and write the images pair by pair, and yield them for scoring. Raises OSError."""
        for pair in self.pairs:
            pictures = self._read(pair)
            if pictures:
                self._write(pair.name, pictures)
            gray = {label: luma(image) for label, image in pictures.items()}
            ir, vis = (gray.pop(label, np.empty(0)) for label in SOURCES)
            # A pair that cannot be read has no methods. It is yielded for the progress bar.
            yield Task(pair.name, ir, vis, gray)

    def finish(self, report: Report, protocol: str) -> None:
        """Write the scores of the pairs that were shown. Raises OSError."""
        self._write_data(
            [pair | {"scores": self._scores(report, protocol, name)} for name, pair in self.shown.items()],
            title=TITLES[protocol], means=self._means(report, protocol),
            metrics=[{"name": name, "lower": name in LOWER_IS_BETTER} for name in report.names])

    def _read(self, pair: Pair) -> dict[str, np.ndarray]:
        """{label: image}, uint8 (H, W) or (H, W, 3); empty if the pair cannot be read."""
        try:
            ir, vis = self.read(pair)
        except DataError as error:
            self.problems.append(str(error))
            return {}
        pictures = dict(zip(SOURCES, (ir, vis))) | read_methods(pair, self.methods, ir.shape, self.problems)
        return pictures | {name: baseline(name, ir, luma(vis)) for name in self.baselines}

    def _write(self, name: str, pictures: dict[str, np.ndarray]) -> None:
        stem = self.stems[name]
        for label, folder in zip(self.labels, self.folders):
            if label in pictures:
                write_image(self.out / "images" / folder / f"{stem}.png", pictures[label])
        fused = next((label for label in self.labels[len(SOURCES):] if label in pictures), "Visible")
        write_image(self.out / "thumbs" / f"{stem}.jpg", thumbnail(pictures[fused]))
        height, width = pictures["Infrared"].shape
        self.shown[name] = {"name": printable(name), "file": stem, "width": width, "height": height,
                            "shown": [i for i, label in enumerate(self.labels) if label in pictures]}

    def _scores(self, report: Report, protocol: str, name: str) -> list[list[float] | None]:
        """One list of values for each method; None if there is no score."""
        scores = report.scores.get(protocol, {})
        found = (scores.get(method, {}).get(name) for method in self.labels[len(SOURCES):])
        return [short(values[metric] for metric in report.names) if values else None for values in found]

    def _means(self, report: Report, protocol: str) -> list[dict]:
        """The rows that metrics.py prints: means over the images of each method, and RoR over the common images."""
        rows, shared = report.rows(protocol, self.labels[len(SOURCES):])
        ranks = rank_of_ranks([row.ranked or {} for row in rows]) if shared and len(rows) > 1 else [None] * len(rows)
        return [{"source": self.labels.index(row.label), "images": row.images, "rank": rank,
                 "counts": [row.counts[metric] for metric in report.names],
                 "values": short(row.means[metric] for metric in report.names)} for row, rank in zip(rows, ranks)]

    def _write_data(self, pairs: list[dict], **rest: object) -> None:
        sources = [{"label": printable(label), "folder": folder} for label, folder in zip(self.labels, self.folders)]
        # "files" has also the pairs that are not shown: after Ctrl-C or a full disk, some images of a pair may be there.
        data = json.dumps({"sources": sources, **rest, "pairs": pairs, "files": [*self.stems.values()]})
        write_atomically(self.out / "data.js", (DATA_HEAD + data + DATA_END).encode())


def thumbnail(image: np.ndarray) -> np.ndarray:
    """Reduce an image to at most THUMBNAIL pixels in width and height."""
    factor = min(THUMBNAIL / max(image.shape[:2]), 1)
    height, width = (max(round(length * factor), 1) for length in image.shape[:2])
    return cv2.resize(image, (width, height), interpolation=cv2.INTER_AREA)


def short(values: Iterable[float]) -> list[float]:
    """Round to six significant digits, which halves the size of data.js. nan and inf are kept; JavaScript has both."""
    return [float(f"{value:.6g}") if math.isfinite(value) else value for value in values]


# ---------------------------------------------------------------------------------------------
# python tools/gallery.py


@noted()
def main(argv: Sequence[str] | None = None) -> int:
    args = build_parser().parse_args(argv)
    problems: list[str] = []
    interrupted = False
    try:
        names = chosen_names(args.metrics, args.protocol)
        baselines = BASELINES if args.baselines else ()
        folders = collect_methods(args.fused or ["RPFNet=Fused"], taken=(*SOURCES, *baselines))
        pairs, problems = sources_or_samples(args)
        methods, unpaired = matched_methods(pairs, folders, args.fused_pattern)
        problems += unpaired
        clear(args.out, [*(path for pair in pairs for path in (pair.ir, pair.vis)),
                         *(path for paths in methods.values() for path in paths.values())])
        gallery = Gallery(args.out, pairs, methods, baselines, problems, reader(args))
        gallery.begin()
    except (DataError, ValueError, OSError) as error:
        return failed("gallery.py", error)
    report = Report(names, None)
    try:
        interrupted = report.collect(gallery.tasks(), [args.protocol], args.workers, len(pairs), "gallery", problems)
    except OSError as error:
        problems.append(f"the rest: {error}")
    try:
        gallery.finish(report, args.protocol)
    except OSError as error:
        problems.append(f"the tables: {error}")
    report.complain_of_notes()
    if interrupted:
        complain("gallery.py: interrupted; the gallery holds what was done")
    print(f"{len(gallery.shown)} pairs, {len(gallery.labels)} images of each: open {args.out / 'index.html'}")
    return finished(problems, interrupted)


if __name__ == "__main__":
    sys.exit(run_command(main))
