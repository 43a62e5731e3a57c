"""Compare small networks with the network that taught them: pictures, the six columns, and time.

    python tools/students.py --data data                        RoadScene validation, TNO and MSRS test; an hour on two cores
    python tools/students.py --data data --datasets TNO         one data set; the recorded rows of the others stay
    python tools/students.py --print --format markdown          print results/students.csv again

Each pair is fused by the teacher (checkpoint contrast) and by each student in turn, in eval mode and plain range, float32,
with BatchNorm folded. The columns are means over the pairs by the metrics' definitions. A student's second line is its
difference from the teacher in percent.

PSNR is that of the student's fused luminance against the teacher's, in dB, mean over the pairs. It is infinite if both
pictures of one pair are equal. "time" is the median over the pairs of the student's CPU time divided by the teacher's for
the same pair. All networks run on the CPU, because "time" is CPU time.
"""
from __future__ import annotations

import argparse
import statistics
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import torch
from tqdm import tqdm

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

import metrics
from dataset import Pair
from images import DataError
from measures.tables import Runnings, add_format
from net import RPFNet
from pipeline import PAIR_ERRORS
from support.console import Added, complain, failed, finished, first_line, given, noted, refuse_unused
from support.console import run as run_command
from support.outputs import check_place
from support.records import command_line, commit, device_name
from support.runtime import keep_freed_memory
from tools.export import psnr
from tools.table_rows import (
    PROTOCOLS,
    RESULTS,
    TableError,
    digits,
    gray_pair,
    pairs_of,
    provenance,
    read_rows,
    record,
    weights_name,
)
from tools.tables import show

TEACHER, STUDENTS = "contrast", ("small", "tiny")
DATASETS = ("FLIR-val", "TNO", "MSRS")
SCORES = PROTOCOLS["definition"].names
COLUMNS = ("dataset", "network", *SCORES, "PSNR", "time", "images", "command", "commit", "machine")
OPTIONS = {"print": set(), "measure": {"data", "datasets", "students"}}     # options of each mode


def compare(networks: dict[str, RPFNet], pairs: Sequence[Pair], label: str) -> dict[str, dict[str, float]]:
    """Means over the pairs, {network: {column: mean}}. The first network is the teacher, and has neither PSNR nor time."""
    first, *students = networks
    means = {name: Runnings((*SCORES, "PSNR") if name in students else SCORES) for name in networks}
    seconds: dict[str, list[float]] = {name: [] for name in networks}
    for pair in tqdm(pairs, desc=label, unit="pair"):
        ir, vis = gray_pair(pair)
        fused = {}
        for name, network in networks.items():
            start = time.process_time()
            fused[name] = network.fuse(ir, vis)
            seconds[name].append(time.process_time() - start)
        units = {name: torch.from_numpy(image) / 255 for name, image in fused.items()}
        for name, image in fused.items():
            values = metrics.evaluate(image, ir, vis, names=SCORES)
            if name in students:
                values["PSNR"] = psnr(units[name], units[first])
            means[name].add(values)
    rows = {name: running.means for name, running in means.items()}
    for name in students:
        rows[name]["time"] = statistics.median(own / its for own, its in zip(seconds[name], seconds[first]))
    return rows


def measure(args: argparse.Namespace, problems: list[str]) -> None:
    """Measure and record the rows of each data set. One line in `problems` for each data set that cannot be measured.

    Raises OSError, ValueError: a checkpoint cannot be read, or a student is the teacher.
    """
    if TEACHER in args.students:
        raise ValueError(f"--students {TEACHER}: is the teacher")
    networks = {weights_name(name): RPFNet.from_pretrained(name).optimize() for name in (TEACHER, *args.students)}
    for dataset in args.datasets:
        try:
            pairs = pairs_of(dataset, args.data, args.csv.absolute().parent)
            measured = compare(networks, pairs, dataset)
        except PAIR_ERRORS as error:
            problems.append(f"{dataset}: {first_line(error)}")
            continue
        about = {"dataset": dataset, "images": str(len(pairs))} | provenance(
            args, device_name(torch.device("cpu")))     # also where there is a GPU
        rows = [dict.fromkeys(COLUMNS, "") | about | {"network": name} | digits(means)
                for name, means in measured.items()]
        record(args.csv, COLUMNS, rows, lambda row: (row["dataset"], row["network"]))


def print_rows(path: Path, style: str) -> None:
    """A table of all recorded rows, a student's difference from the teacher under each."""
    rows = read_rows(path, COLUMNS, SCORES)
    if not rows:
        raise TableError(f"{path}: holds no rows; run this command without --print first")
    cells = [["data set", "network", *SCORES, "PSNR", "time"]]
    teachers = {row["dataset"]: row for row in rows if not row["PSNR"]}
    for row in rows:
        if row["dataset"] not in teachers:
            raise TableError(f"{path}: has no row of {TEACHER} for {row['dataset']}; measure it again")
    previous, order = None, list(teachers)
    for row in sorted(rows, key=lambda row: order.index(row["dataset"])):
        own = [f"{float(row[name]):.3f}" for name in SCORES]
        more = [f"{float(row['PSNR']):.1f}", f"{float(row['time']):.2f}"] if row["PSNR"] else ["", ""]
        cells.append(["" if row["dataset"] == previous else row["dataset"], row["network"], *own, *more])
        if row["PSNR"]:
            teacher = teachers[row["dataset"]]
            cells.append(["", "difference, %", *(f"{100 * (float(row[name]) / float(teacher[name]) - 1):+.1f}"
                                                for name in SCORES), "", ""])
        previous = row["dataset"]
    images = ", ".join(f"{row['dataset']} {row['images']}" for row in teachers.values())
    show(f"Students of {TEACHER}; protocol definition", cells, [f"pairs: {images}"], style)


def build_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter,
                                     usage="python tools/students.py [options]")
    parser.add_argument("--data", type=Path, default=Path("data"), metavar="DIR",
                        help="folder that holds RoadScene/, TNO/, MSRS/ (default: data)")
    parser.add_argument("--datasets", nargs="+", action=Added, choices=DATASETS, default=DATASETS, help="only these")
    parser.add_argument("--students", nargs="+", action=Added, type=given, default=STUDENTS, metavar="NAME|FILE",
                        help=f"checkpoints; in the rows, the name of a file has a hash (default: {' '.join(STUDENTS)})")
    parser.add_argument("--csv", type=Path, default=RESULTS / "students.csv", metavar="FILE",
                        help="file of the rows (default: results/students.csv)")
    parser.add_argument("--print", action="store_true", help="measure nothing; print the recorded rows")
    add_format(parser)
    return parser


@noted()
def main(argv: Sequence[str] | None = None) -> int:
    parser = build_parser()
    args = parser.parse_args(argv)
    args.command, args.commit = command_line("tools/students.py", argv), commit()
    problems: list[str] = []
    try:
        refuse_unused(args, parser, OPTIONS, "print" if args.print else "measure", "--print")
        if not args.print:
            check_place("--csv", args.csv)
            read_rows(args.csv, COLUMNS)        # before the measurement, so that a wrong file is found early
            keep_freed_memory()
            measure(args, problems)
        if args.print or len(problems) < len(args.datasets):
            print_rows(args.csv, args.format)
    except (TableError, DataError, OSError, ValueError) as error:
        return failed("students.py", error)
    except KeyboardInterrupt:
        complain("students.py: interrupted; complete data sets are recorded, --datasets measures the others")
        return finished(problems, interrupted=True, label="not measured")
    return finished(problems, label="not measured")


if __name__ == "__main__":
    sys.exit(run_command(main))
