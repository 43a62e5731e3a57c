"""Measure the flicker of fused video: the change of the static background, compared with the change of the sources.

    python tools/flicker.py                                     sequences generated from samples/
    python tools/flicker.py --ir DIR --vis DIR --pairs 4        from pairs of images
    python tools/flicker.py --clip ir.mp4 vis.mp4               a clip of a static camera
    python tools/flicker.py --cuts --clip ... --clip ...        changes between frames, inside clips and between clips
    python tools/flicker.py --print                             the recorded rows, without measuring

A generated sequence is a static scene through which a hot target moves (naturalness.entering_target). Its background
is the set of pixels that stay far from the target. There the sources do not change at all. In a clip, the background is
the half of the pixels whose sources change least. Each sequence is fused twice: each frame as a single image
(steady 0), and with the averages of video.Steady.

Columns, in gray levels of the luma over the background: "ir", "vis" and "fused" are the RMS change since frame 0.
"limit" is the upper bound for "fused": 1.2 times the mean of "ir" and "vis", plus 1. "jump" is the largest change of
the fused mean from one frame to the next. "ms" is the median CPU time of a frame.
"""
from __future__ import annotations

import argparse
import statistics
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from functools import partial
from itertools import islice, permutations
from pathlib import Path
from typing import NamedTuple

import cv2
import numpy as np
from tqdm import tqdm

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from dataset import Pair, load_pair
from images import DataError, luma
from net import RPFNet
from pipeline import PAIR_ERRORS
from support.console import INTERRUPTED, complain, failed, given, noted, positive, refuse_unused
from support.console import run as run_command
from support.outputs import check_place
from support.pairing import match_pairs, spread
from support.records import command_line, commit, processor
from tools.naturalness import Change, entering_target, static_background
from tools.table_rows import TableError, read_rows, record, weights_name
from tools.tables import layout
from video import weight_of_past
from video.clips import Capture
from video.steady import KEEP, Cuts, Steady

NUMBERS = ("ir", "vis", "fused", "limit", "jump", "ms")
ORIGIN = ("weights", "command", "commit", "machine")
COLUMNS = ("sequence", "frames", "size", "steady", *NUMBERS, *ORIGIN)
CUT_COLUMNS = ("from", "to", "change", "ratio", "command", "commit")

RECORDED = ROOT / "results" / "flicker.csv"
WIDTH = 320         # pixels, default width of the frames

Images = tuple[np.ndarray, np.ndarray]


class Clip(NamedTuple):
    """A sequence that can be read several times.

    name: name of the sequence.
    frames: function that yields (ir, vis) of each frame, uint8 (H, W).
    background: the static pixels, bool (H, W).
    """
    name: str
    frames: Callable[[], Iterator[Images]]
    background: np.ndarray


# ---------------------------------------------------------------------------------------------
# Sequences


def narrowed(image: np.ndarray, width: int) -> np.ndarray:
    """Resize an image to at most this width, with its aspect ratio."""
    height = round(image.shape[0] * width / image.shape[1])
    return image if image.shape[1] <= width else cv2.resize(image, (width, height), interpolation=cv2.INTER_AREA)


def generated(pair: Pair, width: int, frames: int) -> Clip:
    """Sequence generated from a pair. Raises DataError, or ValueError if no pixel stays far from the target."""
    ir, vis = (narrowed(luma(x), width) for x in load_pair(pair))
    background = static_background(ir.shape, frames)
    if not background.any():
        raise ValueError(f"{pair.name}, {ir.shape[1]}x{ir.shape[0]}: no pixel stays far from the target; give a larger --size")
    return Clip(pair.name, partial(entering_target, ir, vis, frames), background)


def read_frames(files: Sequence[str], width: int) -> Iterator[Images]:
    """Yield the frames of two video files, (ir, vis). Raises DataError, also if their sizes differ."""
    sources = [Capture(Path(file)) for file in files]
    while True:
        ir, vis = (source.read() for source in sources)
        if ir is None and vis is None:
            return
        if ir is None or vis is None:
            raise DataError(f"{files[ir is not None]}: has fewer frames than {files[ir is None]}; cut both to one length")
        if ir.shape[:2] != vis.shape[:2]:
            raise DataError("{}: {}x{}, but {}: {}x{}".format(files[0], *ir.shape[1::-1], files[1], *vis.shape[1::-1]))
        yield narrowed(luma(ir), width), narrowed(luma(vis), width)


def clip_of_files(files: Sequence[str], width: int, frames: int) -> Clip:
    """Sequence of the first `frames` frames of two video files. Raises DataError."""
    stacks = (np.float32(images) for images in islice(read_frames(files, width), frames))
    first, change = next(stacks, None), None
    for stack in stacks:
        squares = np.square(stack - first).sum(0)
        change = squares if change is None else change + squares
    if change is None:
        raise DataError(f"{files[1]}: fewer than 2 frames could be read")
    return Clip(Path(files[1]).stem, lambda: islice(read_frames(files, width), frames), change <= np.median(change))


# ---------------------------------------------------------------------------------------------
# Measures


class Method:
    """A network with one weight of the past. It records times and the changes of its results."""

    def __init__(self, steady: Steady, clip: Clip):
        self.steady, self.seconds, self.fused = steady, [], Change(clip.background)

    def fuse(self, ir: np.ndarray, vis: np.ndarray) -> None:
        start = time.process_time()
        result = self.steady.fuse(ir, vis)
        self.seconds.append(time.process_time() - start)
        self.fused.add(result)


def measured(clip: Clip, networks: Sequence[RPFNet], keeps: Sequence[float], progress: tqdm) -> Iterator[dict]:
    """Yield one row for each weight of the past. Each weight has its own network."""
    ir, vis = Change(clip.background), Change(clip.background)
    with ExitStack() as stack:
        methods = [Method(stack.enter_context(Steady(network, keep)), clip) for network, keep in zip(networks, keeps)]
        for images in clip.frames():
            for change, image in zip((ir, vis), images):
                change.add(image)
            for method in methods:      # in turns, so that other load on the machine slows down all of them
                method.fuse(*images)
            progress.update()
    height, width = clip.background.shape
    for method in methods:
        yield {"sequence": clip.name, "frames": len(method.seconds), "size": f"{width}x{height}", "steady": method.steady.keep,
               "ir": ir.rms, "vis": vis.rms, "fused": method.fused.rms, "limit": 1.2 * (ir.rms + vis.rms) / 2 + 1,
               "jump": method.fused.jump, "ms": 1000 * statistics.median(method.seconds)}


def cut_rows(clips: Sequence[Sequence[str]]) -> Iterator[dict]:
    """Rows of --cuts.

    For each clip: the largest change inside it, and its ratio to the usual change. For each ordered pair of clips: the
    change from the last frame of one to the first frame of the other.
    """
    ends: dict[str, list[Images]] = {}
    for files in tqdm(clips, unit="clip"):
        name, cuts, largest = Path(files[1]).stem, Cuts(), (0.0, 0.0)
        for images in read_frames(files, WIDTH):
            cuts.is_cut(*images)
            largest = max(largest, (cuts.change, cuts.change / cuts.usual if cuts.usual else 0.0))
            ends[name] = [ends.get(name, [images])[0], images]
        yield dict(zip(CUT_COLUMNS, (name, name, *largest)))
    for (first, (_, last)), (second, (start, _)) in permutations(ends.items(), 2):
        cuts = Cuts()
        for images in (last, start):
            cuts.is_cut(*images)
        yield dict(zip(CUT_COLUMNS, (first, second, cuts.change)))


# ---------------------------------------------------------------------------------------------
# The command


def build_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter,
                                     usage="python tools/flicker.py [options]")
    parser.add_argument("--ir", type=Path, default=ROOT / "samples" / "ir", help="infrared folder (default: samples/)")
    parser.add_argument("--vis", type=Path, default=ROOT / "samples" / "vis", help="visible folder")
    parser.add_argument("--pairs", type=positive, default=4,
                        help="number of pairs, spread over the list of files (default: %(default)s)")
    parser.add_argument("--clip", nargs=2, action="append", metavar=("IR", "VIS"),
                        help="two video files; can be repeated")
    parser.add_argument("--size", type=positive, default=WIDTH, metavar="WIDTH",
                        help="wider frames are resized to this width (default: %(default)s)")
    parser.add_argument("--frames", type=positive, default=20,
                        help="frames of each sequence, at least 2 (default: %(default)s)")
    parser.add_argument("--checkpoint", type=given, default="contrast", metavar="NAME|FILE",
                        help="weights, as for test.py (default: %(default)s)")
    parser.add_argument("--steady", type=weight_of_past, default=KEEP, help="weight of the past (default: %(default)s)")
    parser.add_argument("--cuts", action="store_true",
                        help="without a network: measure the changes by which scene cuts are detected")
    parser.add_argument("--print", action="store_true",
                        help=f"print the rows of --csv (default: {RECORDED.relative_to(ROOT)}) that have these weights")
    parser.add_argument("--csv", type=Path, help="add the rows to this file; they replace rows of the same sequence, "
                        "frames, size, weights and steady")
    return parser


# The options of each mode. --csv names the file in all of them.
OPTIONS = {"pairs": {"ir", "vis", "pairs", "size", "frames", "steady", "checkpoint", "csv"},
           "clip": {"clip", "size", "frames", "steady", "checkpoint", "csv"},
           "cuts": {"cuts", "clip", "csv"}, "print": {"print", "checkpoint", "csv"}}


def check_options(args: argparse.Namespace, parser: argparse.ArgumentParser) -> None:
    """Raises ValueError for options that do not fit together, before any work is done."""
    mode = "print" if args.print else "cuts" if args.cuts else "clip" if args.clip else "pairs"
    refuse_unused(args, parser, OPTIONS, mode, f"--{mode}")
    if args.frames < 2:
        raise ValueError("--frames: at least 2")
    if args.cuts and not args.clip:
        raise ValueError("--cuts needs --clip IR VIS")
    names = [Path(visible).stem for _, visible in args.clip or ()]
    if len(names) > len({*names}):      # a row has only this name
        raise ValueError(f"--clip: two visible files are named {max(names, key=names.count)}; rename one")


def show(rows: Sequence[dict], columns: Sequence[str], text_columns: int) -> None:
    cells = [list(columns), *([f"{value:.2f}" if isinstance(value, float) else str(value)
                               for value in (row.get(column, "") for column in columns)] for row in rows)]
    print(layout(cells, "markdown", text_columns))


def recorded_rows(path: Path, weights: str) -> list[dict]:
    """The rows of a file that were measured with these weights. Raises TableError, also if there are none."""
    rows = [row for row in read_rows(path, COLUMNS, ("steady", *NUMBERS)) if row["weights"] == weights]
    if not rows:
        raise TableError(f"{path}: no rows with the weights {weights}; measure them with --csv {path}")
    first = [row["sequence"] for row in rows]
    # The rows of a sequence together.
    rows.sort(key=lambda row: (first.index(row["sequence"]), int(row["frames"]), row["size"], float(row["steady"])))
    return [row | {name: float(row[name]) for name in ("steady", *NUMBERS)} for row in rows]


def flicker_rows(args: argparse.Namespace) -> Iterator[list[dict]]:
    """Measure all sequences, and yield the rows of each. Raises DataError, OSError, ValueError."""
    if args.clip:
        clips = [clip_of_files(files, args.size, args.frames) for files in args.clip]
    else:
        pairs = match_pairs(args.ir, args.vis)
        clips = [generated(pair, args.size, args.frames) for pair in spread(pairs, args.pairs)]
    keeps = list(dict.fromkeys((0.0, args.steady)))
    networks = [RPFNet.from_pretrained(args.checkpoint).optimize() for _ in keeps]      # as in test.py
    with tqdm(total=len(clips) * args.frames, unit="frame", desc="measuring") as progress:
        for clip in clips:
            yield [*measured(clip, networks, keeps, progress)]


def as_cell(value: object, in_key: bool) -> str:
    """A value as the text of a cell. Numbers have six decimals, because tables round once more.

    The weight of the past is a part of the key. It has three decimals if they hold it, and otherwise all.
    """
    if not isinstance(value, float):
        return str(value)
    if in_key:
        short = f"{value:.3f}"
        return short if float(short) == value else repr(value)
    return f"{value:.6f}"


def add_rows(path: Path, rows: Sequence[dict], origin: dict[str, str], columns: Sequence[str], key: Sequence[str]) -> None:
    """Add measured rows to a file. Raises OSError, TableError."""
    texts = [{name: as_cell(x, name in key) for name, x in row.items()} for row in rows]
    record(path, columns, [row | {name: origin[name] for name in origin if name in columns} for row in texts],
           lambda row: tuple(row[name] for name in key))


@noted()
def main(argv: Sequence[str] | None = None) -> int:
    parser = build_parser()
    args = parser.parse_args(argv)
    command = command_line("tools/flicker.py", argv)
    origin = {"command": command, "commit": commit(), "machine": processor()}
    columns, key = (CUT_COLUMNS, CUT_COLUMNS[:2]) if args.cuts else (COLUMNS, (*COLUMNS[:4], "weights"))
    rows: list[dict] = []
    try:
        check_options(args, parser)
        if not args.cuts:
            origin["weights"] = weights_name(args.checkpoint)
        if args.print:
            rows = recorded_rows(args.csv or RECORDED, origin["weights"])
            return 0
        if args.csv:
            check_place("--csv", args.csv)
            read_rows(args.csv, columns)        # before the measurement, so that a wrong file is found early
        for group in ([row] for row in cut_rows(args.clip)) if args.cuts else flicker_rows(args):
            rows += group
            if args.csv:
                add_rows(args.csv, group, origin, columns, key)
    except (TableError, *PAIR_ERRORS) as error:
        return failed("flicker.py", error)
    except KeyboardInterrupt:
        complain("flicker.py: interrupted; finished sequences are " + ("recorded" if args.csv else "printed"))
        return INTERRUPTED
    finally:
        if rows:        # also those before Ctrl-C or an error
            show(rows, columns[:4] if args.cuts else columns[:10], 2 if args.cuts else 1)
    return 0


if __name__ == "__main__":
    sys.exit(run_command(main))
