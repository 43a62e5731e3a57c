"""Image fusion metrics that reproduce published tables, and the command that prints such tables.

    python metrics.py --fused Fused --dataset tno --data data/TNO --baselines

Published tables disagree. Most of them come from MATLAB toolboxes that read images as uint8 and compute some metrics in
uint8. There a negative difference becomes 0, and a square above 255 becomes 255. A protocol names the arithmetic:
"definition", "toolbox", "paper" or "cddfuse". `PROTOCOLS` describes them.

`evaluate` computes all metrics of one image and shares intermediate results. Each metric is also a function:
`SCD(fused, ir, vis)`, `SD(fused, protocol="toolbox")`. The metrics are implemented in the package `measures`.

All images are 8-bit gray numpy arrays of one shape (H, W). Colour is converted to BT.601 luma first
(`images.read_gray`). "Both sources" means the infrared and the visible image.
"""
from __future__ import annotations

if __name__ == "__main__":
    from support import console

    console.before_imports()

import argparse
import csv
import multiprocessing
import os
import signal
import sys
import warnings
from collections import Counter, deque
from collections.abc import Collection, Iterable, Iterator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from itertools import combinations
from pathlib import Path
from typing import NamedTuple

import cv2
import numpy as np
from tqdm import tqdm

from dataset import Pair, Reader, add_reading_options, add_source_options, find_sources, list_images, reader
from images import DataError, luma, read_result
from measures import (
    AG,
    CC,
    EN,
    FMI,
    LOWER_IS_BETTER,
    METRICS,
    MI,
    MS_SSIM,
    MSE,
    NAMES,
    PROTOCOLS,
    PSNR,
    SCD,
    SD,
    SF,
    SSIM,
    VIF,
    VIFF,
    Nabf,
    Qabf,
    columns,
    evaluate,
)
from measures.images import Image, Trio
from measures.protocols import PAPER_COLUMNS, canonical, column, evaluate_trio, table_columns
from measures.registry import ALIASES, UndefinedWarning
from measures.tables import (
    Row,
    Running,
    Runnings,
    add_format,
    common_means,
    csv_cell,
    published_rows,
    rank_of_ranks,
    ranks,
    table,
)
from support.console import (
    INTERRUPTED,
    can_show,
    collected,
    complain,
    end_with_parent,
    explain,
    failed,
    finished,
    first_line,
    given,
    listed,
    note,
    positive,
    run,
)
from support.outputs import OutputError, check_csv_name, refuse_input
from support.pairing import PatternError, composed, without_images

__all__ = [
    "AG", "CC", "EN", "FMI", "LOWER_IS_BETTER", "METRICS", "MI", "MSE", "MS_SSIM", "NAMES", "PAPER_COLUMNS", "PROTOCOLS",
    "PSNR", "SCD", "SD", "SF", "SSIM", "VIF", "VIFF", "Nabf", "Qabf", "Row", "Running", "Scored", "Task", "baseline",
    "columns", "evaluate", "published_rows", "rank_of_ranks", "ranks", "score", "score_all", "table",
]

# ---------------------------------------------------------------------------------------------
# Scoring many images

BASELINES = ("average", "max")


class Task(NamedTuple):
    """One pair and the fused images of all methods, as arrays. Worker processes open no files."""
    name: str
    ir: np.ndarray                  # uint8 (H, W)
    vis: np.ndarray                 # uint8 (H, W)
    fused: dict[str, np.ndarray]    # {method: uint8 (H, W)}


class Scored(NamedTuple):
    """Scores of one pair."""
    name: str
    values: dict[tuple[str, str], dict[str, float]]     # {(method, protocol): {metric: value}}
    problems: list[str]                                 # one line for each method that failed
    notes: list[str]                                    # texts of UndefinedWarning


def baseline(name: str, ir: np.ndarray, vis: np.ndarray) -> np.ndarray:
    """Trivial fusion of the sources: "average" (rounded half up) or "max". All images are uint8 (H, W).

    Raises ValueError for another name or other images.
    """
    if name not in BASELINES:
        raise ValueError(f"no baseline {name!r}; there are {', '.join(BASELINES)}")
    if not ir.dtype == vis.dtype == np.uint8:
        raise ValueError(f"expected uint8 images, got {ir.dtype} and {vis.dtype}")
    if name == "max":
        return np.maximum(ir, vis)
    return ((ir.astype(np.uint16) + vis + 1) // 2).astype(np.uint8)


_SHOWN: dict = {}       # registry of warnings, so that each is shown once and not for each image


def score(task: Task, protocols: Sequence[str], names: Sequence[str] | None) -> Scored:
    """Score all methods of one pair. Intermediate results of the sources are shared. Errors are returned as text."""
    values: dict[tuple[str, str], dict[str, float]] = {}
    problems, notes, sources = [], [], None
    for method, fused in task.fused.items():
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            try:
                sources = sources or (Image(task.ir, "ir"), Image(task.vis, "vis"))
                trio = Trio(Image(fused, "fused"), *sources)
                values |= {(method, protocol): evaluate_trio(trio, protocol, names) for protocol in protocols}
            except (ValueError, MemoryError, cv2.error) as error:
                problems.append(f"{method}, {task.name}: {first_line(error)}")
        notes += sorted({str(warning.message) for warning in caught if warning.category is UndefinedWarning})
        for warning in caught:
            if warning.category is not UndefinedWarning:        # for example of numpy; it says nothing about the means
                warnings.warn_explicit(warning.message, warning.category, warning.filename, warning.lineno, registry=_SHOWN)
    return Scored(task.name, values, problems, notes)


def score_all(tasks: Iterable[Task], protocols: Sequence[str], names: Sequence[str] | None,
              workers: int) -> Iterator[Scored]:
    """Yield the scores in the order of the tasks, from `workers` processes. Only a few tasks are read in advance."""
    if sys.platform == "win32":
        workers = min(workers, 61)      # ProcessPoolExecutor raises ValueError for more, because of a limit of Windows
    if workers <= 1:
        yield from (score(task, protocols, names) for task in tasks)
        return
    # One thread in each process: more threads of OpenCV or BLAS would compete for the cores. Processes are started by
    # "spawn", so that they read these variables and inherit no locks.
    variables = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS")
    before = {name: os.environ[name] for name in variables if name in os.environ}
    os.environ.update(dict.fromkeys(variables, "1"))
    pool = ProcessPoolExecutor(workers, multiprocessing.get_context("spawn"), _start_worker)
    waiting: deque[Future] = deque()
    try:
        for task in tasks:
            waiting.append(pool.submit(score, task, protocols, names))
            if len(waiting) >= 2 * workers:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()
    finally:
        pool.shutdown(cancel_futures=True)
        for name in variables:
            os.environ.pop(name, None)
        os.environ.update(before)


def _start_worker() -> None:
    end_with_parent()
    signal.signal(signal.SIGINT, signal.SIG_IGN)    # the parent handles Ctrl-C and keeps the scores so far
    cv2.setNumThreads(1)


# ---------------------------------------------------------------------------------------------
# python metrics.py

TITLES = {name: f"protocol {name}: {description}" for name, description in PROTOCOLS.items()}


def build_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        formatter_class=argparse.RawDescriptionHelpFormatter, usage="python metrics.py --fused [NAME=]DIR [options]",
        description="Score fused images against their sources, in the arithmetic of published tables.",
        epilog="RoR, the last column, is the rank of ranks: the methods are ranked under each metric, the ranks of a method\n"
               "are averaged, and the averages are ranked. 1 is the best.\n\n"
               "examples:\n"
               "  python metrics.py --fused Fused --ir data/ir --vis data/vis\n"
               "  python metrics.py --fused RPFNet=Fused LRRNet=other/LRRNet --dataset tno --data data/TNO \\\n"
               "      --baselines --protocol paper --paper 4")
    add_baselines(add_image_options(parser))

    what = parser.add_argument_group("what to compute")
    what.add_argument("--protocol", metavar="NAME", choices=(*PROTOCOLS, "both", *ALIASES),
                      help=f"{'. '.join(f'{name}: {text}' for name, text in PROTOCOLS.items())}. both: definition and "
                      "toolbox (default: definition; with --paper: paper). float and uint8, the former names of "
                      "definition and toolbox, are accepted in version 0.4")
    what.add_argument("--metrics", nargs="+", action="extend", metavar="NAME", help="only these (default: the columns of "
                      f"the published tables of the protocol; all for definition and toolbox): {' '.join(NAMES)}; paper has "
                      f"{', '.join(columns('paper'))}; cddfuse has {', '.join(columns('cddfuse'))}")
    what.add_argument("--paper", metavar="TABLE", help="also print the published rows of this table of the paper: 1, "
                      "2, 3, 4:TNO, 4:MSRS, 4:M3FD, 6 (with --dataset, 4 is enough)")

    output = parser.add_argument_group("output")
    output.add_argument("--std", action="store_true", help="also print standard deviations over the images")
    add_format(output)
    output.add_argument("--csv", type=Path, metavar="FILE", help="write one row for each method, image and protocol; "
                        "FILE is replaced")
    output.add_argument("--workers", type=positive, default=cores(),
                        help="number of processes (default: all cores, %(default)s)")
    return parser


def add_image_options(parser: argparse.ArgumentParser) -> argparse._ArgumentGroup:
    """Add the options that `collect_methods`, `collect_pairs` and `reader` use. Returns their group, for further options."""
    images = parser.add_argument_group("images")
    images.add_argument("--fused", nargs="+", action="extend", default=[], metavar="[NAME=]DIR",
                        help="folders of fused images, one for each method; file names are the names of the pairs (for "
                        "IR{n}/VIS{n}: {n}); colour is converted to luma")
    images.add_argument("--fused-pattern", type=given, metavar="'*_fused'", help="pattern of the file names in the folders of "
                        "--fused; * is the name of the pair. A folder without such names is matched by plain names")
    add_source_options(images)
    add_reading_options(images)
    return images


def add_baselines(images: argparse._ArgumentGroup) -> None:
    images.add_argument("--baselines", action="store_true",
                        help="also score the average and the maximum of the sources")


def cores() -> int:
    """Number of CPU cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def collect_pairs(args: argparse.Namespace) -> tuple[list[Pair], list[str]]:
    """The pairs to score, and one line for each source image without a partner. Raises DataError."""
    chosen = find_sources(args)
    if chosen is None:
        raise DataError("say where the sources are: --ir DIR --vis DIR, or --dataset NAME --data FOLDER")
    return chosen


def collect_methods(specs: Sequence[str], taken: Collection[str] = BASELINES) -> dict[str, Path]:
    """{name: folder} from "NAME=DIR" or "DIR". Without NAME, it is the name of the folder.

    Raises ValueError if a name or folder is empty, or if a name stands twice or is in `taken`.
    """
    methods: dict[str, Path] = {}
    for spec in specs:
        name, equals, folder = spec.partition("=")
        if not equals or Path(spec).is_dir():
            name, folder = Path(os.path.abspath(spec)).name, spec      # a link keeps its own name
        if not name.strip() or not folder.strip():
            raise ValueError(f"--fused {spec}: write NAME=DIR")
        if name in methods or name in taken:
            raise ValueError(f"--fused {spec}: the name {name} is taken; write OTHER={folder}")
        methods[name] = Path(folder)
    return methods


def match_methods(pairs: Sequence[Pair], folders: dict[str, Path],
                  pattern: str | None = None) -> tuple[dict[str, dict[str, Path]], list[str]]:
    """Match the fused images of each method to the pairs; errors as for `match_fused`.

    Args:
        pairs: the pairs.
        folders: {method: folder}, see `collect_methods`.
        pattern: see `match_fused`.
    Returns:
        {method: {name of the pair: fused image}}, and one line for each method that lacks images or has no match. A note
        names the other images of its folder.
    """
    methods, problems = {}, []
    for method, folder in folders.items():
        methods[method], missing, others = match_fused(pairs, folder, pattern)
        if methods[method]:
            problems += missing
            if others:
                note("no pair has the name of these images, which are left out", f"{folder}/ ({listed(others, 5)})")
        elif others:
            problems.append(f"{folder}: none of its {len(others)} images ({listed(others, 2)}) has the name of a pair, such as "
                            f"{pairs[0].name}; give the right folder, or {pattern_of(others, pairs)}")
        else:
            problems.append(without_images(folder))
    return methods, problems


def pattern_of(files: Sequence[str], pairs: Sequence[Pair]) -> str:
    """A proposal for --fused-pattern: that which most of the files fit with the name of a pair, or else an example.

    Of patterns that as many files fit, the shortest is proposed: it has the longest name in the place of the star.
    """
    names, patterns = {composed(pair.name) for pair in pairs}, Counter[str]()
    for stem in (composed(Path(file).stem) for file in files):
        parts = ((stem[:start], stem[start:end], stem[end:]) for start, end in combinations(range(len(stem) + 1), 2))
        patterns.update({f"{before}*{after}" for before, name, after in parts if name in names})
    pattern, count = max(patterns.items(), key=lambda item: (item[1], -len(item[0]), item[0]), default=("", 0))
    if count <= len(files) / 2:
        return "the pattern of these names, as in --fused-pattern '*_fused'"
    return f"--fused-pattern '{pattern}'"


def match_fused(pairs: Sequence[Pair], folder: Path,
                pattern: str | None = None) -> tuple[dict[str, Path], list[str], list[str]]:
    """Match fused images to pairs by file stem, or by a pattern, whose * is the name of the pair.

    A folder in which no name fits the pattern is matched by file stem, because methods name their images differently.
    If the names are numbers, 01 and 1 match, unless the folder holds both or the image has the exact name of another pair.
    An image with the name of the infrared image matches, too, if it is not the infrared image itself.

    Returns:
        {name of the pair: fused image}, a line that names the pairs without an image, if any, and the names of the images
        without a pair.
    Raises:
        DataError: there is no such folder, or no image matches the pattern or has the plain name of a pair.
    """
    unmatched = None
    try:
        found = list_images(folder, pattern, "--fused-pattern")
    except PatternError as error:
        found, unmatched = list_images(folder), error
    names = {pair.name for pair in pairs}
    by_letters = {composed(stem): stem for stem in found}
    numbers = Counter(int(stem) for stem in found if stem.isdecimal())
    by_number = {int(stem): stem for stem in found if stem.isdecimal() and numbers[int(stem)] == 1 and stem not in names}
    matched, missing = {}, []
    for pair in pairs:
        stem = pair.name if pair.name in found else by_letters.get(composed(pair.name), pair.name)
        if stem not in found and stem.isdecimal():
            stem = by_number.get(int(stem), stem)
        if stem not in found and pair.ir.stem not in names:
            other = by_letters.get(composed(pair.ir.stem), stem)        # some methods keep the name of the infrared image
            stem = other if other in found and found[other].resolve() != pair.ir.resolve() else stem
        if stem in found:
            matched[pair.name] = found.pop(stem)
        else:
            missing.append(pair.name)
    if unmatched and not matched:
        raise unmatched
    problems = [f"{folder}: no fused image for {listed(missing, 5)}"] if missing else []
    return matched, problems, [path.name for path in found.values()]


def read_fused(path: Path, size: tuple[int, int]) -> np.ndarray:
    """Read a fused image: uint8, (H, W) or (H, W, 3) RGB.

    Raises DataError that names the file, also if its size is not `size`, the (H, W) of its sources.
    """
    image = read_result(path)
    if image.shape[:2] != size:
        raise DataError(f"{path}: is {image.shape[1]}x{image.shape[0]} and its sources are {size[1]}x{size[0]}; "
                        "fuse them again at that size")
    return image


def read_methods(pair: Pair, methods: dict[str, dict[str, Path]], size: tuple[int, int],
                 problems: list[str]) -> dict[str, np.ndarray]:
    """{method: fused image} of a pair, as `read_fused` gives them. One line in `problems` for each that cannot be read."""
    images = {}
    for method, paths in methods.items():
        if pair.name in paths:
            try:
                images[method] = read_fused(paths[pair.name], size)
            except DataError as error:
                problems.append(str(error))
    return images


def read_tasks(pairs: Sequence[Pair], methods: dict[str, dict[str, Path]], baselines: Sequence[str],
               problems: list[str], read: Reader) -> Iterator[Task]:
    """Read the images pair by pair. Images that cannot be read are left out, with a line in `problems`."""
    for pair in pairs:
        try:
            ir, vis = read(pair)
        except DataError as error:
            problems.append(str(error))
            yield Task(pair.name, np.empty(0), np.empty(0), {})     # an empty task keeps the progress bar correct
            continue
        vis = luma(vis)
        fused = {name: baseline(name, ir, vis) for name in baselines}
        fused |= {name: luma(image) for name, image in read_methods(pair, methods, ir.shape, problems).items()}
        yield Task(pair.name, ir, vis, fused)


def check_csv(path: Path, pairs: Sequence[Pair], methods: dict[str, dict[str, Path]]) -> None:
    """Raises ValueError or OutputError if --csv would replace an image or another file that is no CSV file."""
    check_csv_name(path)
    refuse_input(path, [*(image for pair in pairs for image in (pair.ir, pair.vis)),
                        *(image for paths in methods.values() for image in paths.values())])


class CsvFile:
    """CSV file with one row for each method, image and protocol. It is complete after every image.

    If a write fails, for example because the disk is full, no more rows are written and `problem` holds the error. The
    scoring continues.
    """

    def __init__(self, path: Path, names: Sequence[str]):
        self.path, self.problem = path, ""
        try:
            self._file = path.open("w", newline="", encoding="utf-8")
        except OSError as error:
            raise ValueError(f"--csv {path}: {error.strerror}") from error
        self._writer = csv.writer(self._file)
        self.write([["method", "image", "protocol", *names]])

    def write(self, rows: Iterable[list]) -> None:
        if self.problem:
            return
        try:
            self._writer.writerows(rows)
            self._file.flush()
        except OSError as error:
            self._fail(error)

    def close(self) -> None:
        try:
            self._file.close()
        except OSError as error:
            self._fail(error)

    def _fail(self, error: OSError) -> None:
        self.problem = self.problem or f"--csv {self.path}: {error.strerror}; its last rows are missing"


class Report:
    """Collects the scores and computes the rows of the tables.

    Attributes:
        scores: {protocol: {method: {image: {metric: value}}}}.
        notes: {text of an UndefinedWarning: {image: None}}.
    """

    def __init__(self, names: Sequence[str], csv_file: CsvFile | None):
        self.names, self.csv_file = names, csv_file
        self.notes: dict[str, dict[str, None]] = {}
        self.scores: dict[str, dict[str, dict[str, dict[str, float]]]] = {}

    def add(self, scored: Scored) -> None:
        """Add the scores of one pair, and write them to the CSV file."""
        for text in scored.notes:
            self.notes.setdefault(text, {})[scored.name] = None
        for (method, protocol), values in scored.values.items():
            self.scores.setdefault(protocol, {}).setdefault(method, {})[scored.name] = values
        if self.csv_file:
            self.csv_file.write([csv_cell(method), csv_cell(scored.name), protocol, *(values[n] for n in self.names)]
                                for (method, protocol), values in scored.values.items())

    def collect(self, tasks: Iterable[Task], protocols: Sequence[str], workers: int, total: int, title: str,
                problems: list[str]) -> bool:
        """Score `total` tasks. Errors are added to `problems`. Returns True after Ctrl-C; scores so far are kept.

        Raises OSError of a file that `tasks` writes.
        """
        failures: list[str] = []
        try:
            for scored in tqdm(score_all(tasks, protocols, self.names, min(workers, total)), total=total, unit="pair",
                               desc=title, disable=None):
                failures += scored.problems
                self.add(scored)
        except KeyboardInterrupt:
            return True
        except BrokenProcessPool:
            failures.append("the rest: a worker process was killed (out of memory?); try fewer --workers")
        except OSError as error:
            if error.filename:          # of a file that `tasks` writes
                raise
            failures.append(f"the rest: no worker process could be started ({error.strerror}); try fewer --workers")
        finally:
            problems += failures        # after those of `tasks`, which are read in advance
        return False

    def complain_of_notes(self) -> None:
        """Print the notes of all pairs, each once with the names of its images."""
        for text, images in self.notes.items():
            complain(f"note: {text.removesuffix('; returning nan')}, and left out of the mean: {listed([*images], 5)}")

    def rows(self, protocol: str, order: Sequence[str]) -> tuple[list[Row], int]:
        """Rows of a table in the order of `order`, and the number of images that all methods have."""
        scores = self.scores.get(protocol)
        if not scores:
            return [], 0
        shared, ranked = common_means(scores, self.names)
        rows = []
        for method in order:
            if method in scores:
                stats = Runnings(self.names)
                for values in scores[method].values():
                    stats.add(values)
                rows.append(Row(method, stats.means, len(scores[method]),
                                {name: running.std for name, running in stats.items()},
                                counts={name: running.count for name, running in stats.items()},
                                ranked=ranked[method] if shared else {}))
        return rows, shared


def print_report(args: argparse.Namespace, report: Report, protocols: Sequence[str], order: Sequence[str],
                 published: tuple[str, list[Row]] | None) -> None:
    style = (args.format if args.format != "terminal" else
             "terminal" if sys.stdout and sys.stdout.isatty() else "plain")
    start = "% " if style == "latex" else ""
    for protocol in protocols:
        rows, shared = report.rows(protocol, order)
        if not rows:
            continue
        most = max(row.images or 0 for row in rows)
        title = f"{start}{TITLES[protocol]}; means over {most} images"
        if shared < most:
            title += f"; RoR over the {shared} that all methods have" if shared else "; no RoR: no image is common to all"
        print(title)
        if published:
            print(f"{start}(paper): published rows of table {args.paper.partition(':')[0]}, {published[0]}; RoR compares "
                  "their means with those over the images here")
            rows = published[1] + rows
        if style == "markdown":
            print()
        print(table(rows, report.names, style, args.std, ascii_only=not can_show("\u2191\u2193\u00b1")) + "\n")


def main(argv: Sequence[str] | None = None) -> int:
    args = build_parser().parse_args(argv)
    protocol = args.protocol or ("paper" if args.paper else "definition")
    protocols = ("definition", "toolbox") if protocol == "both" else (canonical(protocol),)
    problems: list[str] = []
    notes: list[tuple[str, ...]] = []
    try:
        names = chosen_names(args.metrics, protocols[0])
        if args.paper and protocols != ("paper",):
            raise ValueError("--paper: its rows hold the columns of --protocol paper")
        folders = collect_methods(args.fused, taken=BASELINES if args.baselines else ())
        if not folders and not args.baselines:
            raise ValueError("nothing to score: give --fused [NAME=]DIR or --baselines")
        if args.fused_pattern and not folders:
            raise ValueError("--fused-pattern goes with --fused")
        published = published_rows(args.paper, args.dataset) if args.paper else None
        with collected(notes):
            pairs, problems = collect_pairs(args)
            methods, unpaired = match_methods(pairs, folders, args.fused_pattern)
            problems += unpaired
        baselines = BASELINES if args.baselines else ()
        if args.csv:
            check_csv(args.csv, pairs, methods)
        scorable = baselines or any(methods.values())       # otherwise an earlier file is not replaced
        report = Report(names, CsvFile(args.csv, names) if args.csv and scorable else None)
    except (DataError, OutputError, ValueError, OSError) as error:
        return failed("metrics.py", error)
    tasks = read_tasks(pairs, methods, baselines, problems, reader(args))
    with collected(notes):
        interrupted = report.collect(tasks, protocols, args.workers, len(pairs), "scoring", problems)
    print_report(args, report, protocols, [*methods, *baselines], published)
    explain(notes)
    report.complain_of_notes()
    code = finished(problems, interrupted)
    if report.csv_file:
        report.csv_file.close()
        if report.csv_file.problem:
            code = failed("metrics.py", report.csv_file.problem)
    if interrupted:
        done = {image for methods in report.scores.values() for images in methods.values() for image in images}
        places = "the rows above" + (f" and {args.csv}" if report.csv_file and not report.csv_file.problem else "")
        complain(f"metrics.py: interrupted after {len(done)} of {len(pairs)} images; {places} hold only these")
    return INTERRUPTED if interrupted else code


def chosen_names(chosen: Sequence[str] | None, protocol: str) -> list[str]:
    """Columns of a protocol for the names in --metrics, which may be in upper or lower case.

    Without names, the columns of the protocol's published tables. Raises ValueError for an unknown name.
    """
    if not chosen:
        return list(table_columns(protocol))
    written = {name.lower(): name for name in (*NAMES, *columns(protocol))}
    try:
        return [column(written.get(name.lower(), name), protocol) for name in chosen]
    except ValueError as error:
        raise ValueError(f"--metrics: {error}") from error


if __name__ == "__main__":
    sys.exit(run(main))
