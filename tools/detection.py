"""Object detection on fused images, as in Table 5 of the paper: average precision of YOLOv5 at IoU 0.5 for each method.

    python tools/detection.py average --ir DIR --vis DIR --out data/average
    python tools/detection.py prepare --images infrared=DIR visible=DIR RPFNet=Fused --labels DIR --out data/detection/M3FD
    python tools/detection.py train --data data/detection/M3FD --epochs 100 --seeds 0 1 2
    python tools/detection.py table

prepare  makes a YOLO data set for each method from its images and the boxes, all with the same split
average  writes the average of each pair, with the colour of the visible image, as a trivial baseline
train    trains a detector for each method and seed, evaluates it on the test part, and records a row
score    evaluates trained detectors again, without training
table    prints the recorded rows and those of the paper

A method and seed that already has a row is not trained again. After Ctrl-C, the same `train` command skips finished
trainings and repeats the one that was interrupted. score and train --again start over with the first method. If a
method's images have changed since its training, that is an error, and --again trains on the new images. All methods
have the same scenes, split, seeds and schedule. The detector is trained from scratch, unless --weights names a file.

train and score need the ultralytics package: python -m pip install -r requirements-detection.txt
Its licence is AGPL-3.0, which differs from the licence of this project. Consider it if you distribute or offer software
that uses the package. It runs without network access here: no downloads, no analytics, no installations.
"""
from __future__ import annotations

import argparse
import shlex
import sys
from collections.abc import Sequence
from datetime import date
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

import torch

from dataset import add_reading_options, reader
from images import DataError
from measures.tables import Running, add_format
from support.console import Added, complain, failed, finished, given_path, noted, positive
from support.console import run as run_command
from support.outputs import OutputError, check_place, write_atomically
from support.records import command_line, commit, device_name, hashed_name, short_hash
from support.runtime import check_device, default_device
from tools import detector
from tools.detection_data import BOXES, SHARES, image_hash, prepare, write_averages
from tools.detector import DetectorError, Schedule
from tools.table_rows import RESULTS, TableError, digits, machine, read_rows, record
from tools.tables import show

MEAN = "mAP@.5"
COMPARABLE = ("dataset", "split", "model", "epochs", "size", "batch")    # equal in all rows of one table
IDENTITY = ("method", "seed", *COMPARABLE)
IMAGE_HASH = "image_hash"       # of the images of the training; empty in rows of older versions
ABOUT = ("images", IMAGE_HASH, "minutes", "package", "command", "commit", "machine", "date")
NO_CLASSES = (*IDENTITY, *ABOUT, MEAN, "table")      # the columns that are not a class
MODELS = ("yolov5n", "yolov5s", "yolov5m", "yolov5l", "yolov5x")


# ---------------------------------------------------------------------------------------------
# prepare, average


def run_prepare(args: argparse.Namespace) -> list[str]:
    names = [name for name, _ in args.images]
    for option, given in (("--images", names), ("--classes", args.classes or [])):
        if len(given) > len({*given}):
            raise DataError(f"{option}: the name {max(given, key=given.count)} stands twice")
    taken = [name for name in args.classes or () if name in NO_CLASSES]
    if taken:
        raise DataError(f"--classes {taken[0]}: the name of a column of the results; rename the class")
    made = prepare(dict(args.images), args.labels, args.classes, args.out, args.seed)
    print(f"{len(names)} methods, " + ", ".join(f"{len(some)} {part}" for part, some in made.parts.items()) + " images; "
          "boxes: " + ", ".join(f"{count} {name}" for name, count in made.counts.items()))
    print(f"python tools/detection.py train --data {shlex.quote(str(args.out))}")
    return made.problems


def run_average(args: argparse.Namespace) -> list[str]:
    written, problems = write_averages(args.ir, args.vis, args.out, reader(args))
    print(f"{written} images in {args.out}")
    return problems


# ---------------------------------------------------------------------------------------------
# train, score


class Run(NamedTuple):
    """A detector of one method with one seed."""
    method: str
    seed: int
    folder: Path            # folder of the weights
    data: Path              # data.yaml
    row: dict[str, str]     # values of IDENTITY

    @property
    def weights(self) -> Path:
        """Weights of the best epoch. The file gets this name after the last epoch, so the training is complete."""
        return self.folder / "detector.pt"

    @property
    def hash_file(self) -> Path:
        """Hash of the images that the weights were trained on. Detectors of older versions have none."""
        return self.folder / "images.txt"

    def __str__(self) -> str:
        return f"{self.method}, seed {self.seed}"


def planned_runs(args: argparse.Namespace) -> list[Run]:
    """All methods with the first seed, then with the next, so that each seed gives a whole table. Raises DataError."""
    found = {path.parent.name: path for path in sorted(args.data.glob("*/data.yaml"))}
    if not found:
        raise DataError(f"{args.data}: no METHOD/data.yaml; make it with tools/detection.py prepare")
    unknown = [name for name in args.methods or () if name not in found]
    if unknown:
        raise DataError(f"{args.data / unknown[0]}: no data.yaml; there are {', '.join(found)}")
    dataset = args.data.resolve().name
    common = {"dataset": dataset, "split": split_code(args.data), "model": model_name(args),
              "epochs": str(args.epochs), "size": str(args.size), "batch": str(args.batch)}
    place = f"{common['model']}_{args.size}px_{args.epochs}epochs_batch{args.batch}_{common['split']}"
    return [Run(method, seed, args.out / dataset / place / f"{method}_seed{seed}", found[method],
                common | {"method": method, "seed": str(seed)})
            for seed in args.seeds for method in args.methods or found]


def split_code(data: Path) -> str:
    """Hash of a split with its boxes and classes. Raises DataError."""
    try:
        return short_hash(*((data / name).read_bytes() for name in (*(f"{part}.txt" for part in SHARES), BOXES)))
    except OSError as error:
        raise DataError(f"{error.filename}: {error.strerror}; make it with tools/detection.py prepare") from None


def model_name(args: argparse.Namespace) -> str:
    """Name of the detector: that of --model, or of the file --weights with a hash, because names of files repeat.

    Raises DataError if there is no such file.
    """
    if not args.weights:
        return args.model
    if not args.weights.is_file():
        raise DataError(f"{args.weights}: no such file of weights")
    return hashed_name(args.weights)


def run_all(args: argparse.Namespace) -> list[str]:
    """Actions train and score, for each method and seed without a row. Returns one line for each run that failed."""
    check_place("--csv", args.csv)
    runs, problems = planned_runs(args), []
    check_device(args.device)
    made_by = commit()          # read now, because new commits can be made during the runs
    detector.package()          # if the package is missing, report it once and not for each run
    for number, run in enumerate(runs, 1):
        done = next((row for row in recorded_rows(args.csv) if identity(row) == identity(run.row)), None)
        try:
            if done and args.action == "train" and not args.again:
                check_unchanged(run, done.get(IMAGE_HASH, ""))
                print(f"[{number}/{len(runs)}] {run}: measured on {done['date']}, {MEAN} {done[MEAN]}; "
                      "--again does it again", flush=True)
                continue
            print(f"[{number}/{len(runs)}] {run}", flush=True)
            row = measured_row(run, args, done or {}) | {"commit": made_by}
            record_row(args.csv, row)
            print(f"    {MEAN} {float(row[MEAN]):.4f}", flush=True)
        except (DetectorError, DataError) as error:
            problems.append(f"{run}: {error}")
            print(f"[{number}/{len(runs)}] {problems[-1]}", flush=True)      # now, because other runs can take hours
    return problems


def measured_row(run: Run, args: argparse.Namespace, done: dict[str, str]) -> dict[str, str]:
    """The row of a run, without the commit. The action train trains the detector first.

    Raises DetectorError, and DataError if the images are not those of the training.
    """
    schedule = Schedule(args.weights or f"{args.model}.yaml", args.epochs, args.size, args.batch, args.device, args.workers)
    minutes = done.get("minutes", "")       # of the training, if it is not repeated
    if args.action == "train" and (args.again or not run.weights.exists()):
        images = image_hash(run.data.parent)
        minutes = f"{detector.train(run.data, run.folder, schedule, run.seed):.1f}"
        run.weights.unlink(missing_ok=True)     # after a kill between these lines, no weights have a hash of other images
        write_atomically(run.hash_file, images.encode())
        (run.folder / "weights" / "best.pt").replace(run.weights)
    trained_on = run.hash_file.read_text(encoding="utf-8") if run.hash_file.exists() else done.get(IMAGE_HASH, "")
    check_unchanged(run, trained_on)
    values = detector.score(run.weights, run.data, run.folder, schedule)
    tested = len((args.data / "test.txt").read_text(encoding="utf-8").splitlines())
    return run.row | digits(values) | {
        "images": str(tested), IMAGE_HASH: trained_on, "minutes": minutes, "package": detector.version(),
        "command": args.command, "machine": machine(device_name(torch.device(args.device))),
        "date": date.today().isoformat()}


def check_unchanged(run: Run, trained_on: str) -> None:
    """Raise DataError if a method's images have another hash than those of the training. "" is an unknown hash."""
    if trained_on and trained_on != (now := image_hash(run.data.parent)):
        raise DataError(f"its images have changed since the training ({IMAGE_HASH} {trained_on}, now {now}); "
                        "repeat it with train --again, or prepare the new images under another name")


def identity(row: dict[str, str]) -> tuple[str, ...]:
    """Key of a row. A newer row with the same key replaces an older one."""
    return tuple(row[key] for key in IDENTITY)


def classes_of(rows: Sequence[dict[str, str]]) -> list[str]:
    """The classes for which rows have values. Each data set has its own classes."""
    return [name for name in dict.fromkeys(name for row in rows for name, value in row.items() if value)
            if name not in NO_CLASSES]


def recorded_rows(path: Path) -> list[dict[str, str]]:
    """The rows of a file. Raises TableError, also if a column is neither known nor holds the precision of a class."""
    rows = read_rows(path, (*IDENTITY, MEAN))
    for number, row in enumerate(rows, 1):
        for name in (*classes_of(rows), MEAN):
            try:
                float(row.get(name) or 0)
            except ValueError:
                raise TableError(f"{path}: row {number} has {row[name]!r} in column {name}, and columns of classes hold "
                                 "numbers; remove the column") from None
    return rows


def record_row(path: Path, row: dict[str, str]) -> None:
    columns = ("dataset", "method", "seed", *classes_of([*read_rows(path), row]), MEAN, *COMPARABLE[1:], *ABOUT)
    record(path, columns, [row], identity)


# ---------------------------------------------------------------------------------------------
# table


def run_table(args: argparse.Namespace) -> list[str]:
    paper = read_rows(RESULTS / "paper_detection.csv")
    groups: dict[tuple[str, ...], list[dict[str, str]]] = {}
    for row in recorded_rows(args.csv):
        groups.setdefault(tuple(row[key] for key in COMPARABLE), []).append(row)
    for rows in groups.values():
        show_group(rows, args.format)
    if not groups:
        print(f"{args.csv}: no measured rows yet\n")
    names = ["method", *classes_of(paper), MEAN]
    cells = [names, *([row[name] for name in names] for row in paper)]
    show("Table 5 of the paper, M3FD; average precision at IoU 0.5", cells,
         ["Trained otherwise than here, and on other images. Compare methods within one table only."], args.format,
         text_columns=1)
    return []


def show_group(rows: Sequence[dict[str, str]], style: str) -> None:
    """Print one table of rows that can be compared."""
    first = rows[0]
    start = "from random weights" if first["model"] in MODELS else "from the weights of this file"
    seeds = sorted({row["seed"] for row in rows}, key=int)
    notes = [f"{first['model']} ({start}), {first['epochs']} epochs, {first['size']} pixels, batches of {first['batch']}; "
             f"split {first['split']}, {first['images']} test images",
             f"Seeds {', '.join(seeds)}; mean ± standard deviation of the seeds where a method has several"]
    versions = sorted({row.get("package") or "unknown" for row in rows})
    if len(versions) > 1:       # no part of the identity, because results of versions are close
        notes.append(f"Trained or scored with several versions of the package: {', '.join(versions)}")
    lines = lines_of(rows)
    if len(lines) > len({row["method"] for row in rows}):
        notes.append("A method has a line for each state of its images; train --again repeats the seeds of older images")
    names = [*classes_of(rows), MEAN]
    cells = [["method", "seeds", *names],
             *([label, str(len(own)), *(mean_of(own, name) for name in names)] for label, own in lines.items())]
    show(f"{first['dataset']}, measured here; average precision at IoU 0.5", cells, notes, style)


def lines_of(rows: Sequence[dict[str, str]]) -> dict[str, list[dict[str, str]]]:
    """{label: rows of one method and the same images}. The label names the images if the method has others too."""
    lines: dict[str, list[dict[str, str]]] = {}
    methods = [row["method"] for row in rows]
    for row in sorted(rows, key=lambda row: methods.index(row["method"])):      # stable: the lines of a method adjoin
        several = len({other.get(IMAGE_HASH, "") for other in rows if other["method"] == row["method"]}) > 1
        label = f"{row['method']} (images {row.get(IMAGE_HASH) or 'unknown'})" if several else row["method"]
        lines.setdefault(label, []).append(row)
    return lines


def mean_of(rows: Sequence[dict[str, str]], name: str) -> str:
    """Mean and standard deviation, such as "0.812 ± 0.010"; only the mean for one value, "-" for none."""
    values = Running()
    for row in rows:
        if row[name]:
            values.add(float(row[name]))
    spread = f" ± {values.std:.3f}" if values.count > 1 else ""
    return f"{values.mean:.3f}{spread}" if values.count else "-"


# ---------------------------------------------------------------------------------------------
# python tools/detection.py


def named_folder(text: str) -> tuple[str, Path]:
    """Type of --images for argparse: NAME=DIR. A folder gets this name."""
    name, equals, folder = text.partition("=")
    if not (equals and folder) or not name.strip() or name.startswith(".") or "/" in name or "\\" in name:
        raise argparse.ArgumentTypeError(f"{text!r}: write NAME=DIR, the name without slashes")
    return name, Path(folder)


def build_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    actions = parser.add_subparsers(dest="action", required=True, metavar="prepare|average|train|score|table")

    average = actions.add_parser("average", help="write the average of each pair")
    average.add_argument("--ir", type=given_path, required=True, metavar="DIR", help="infrared folder")
    average.add_argument("--vis", type=given_path, required=True, metavar="DIR", help="visible folder")
    average.add_argument("--out", type=given_path, required=True, metavar="DIR", help="where NAME.png is written")
    add_reading_options(average)

    preparing = actions.add_parser("prepare", help="make a YOLO data set of each method's images")
    preparing.add_argument("--images", type=named_folder, nargs="+", action="extend", required=True, metavar="NAME=DIR",
                           help="name of each method and folder of its 8-bit images, named as the label files")
    preparing.add_argument("--labels", type=given_path, required=True, metavar="DIR",
                           help="folder of the boxes, NAME.xml (VOC) or NAME.txt (YOLO)")
    preparing.add_argument("--classes", nargs="+", action="extend", metavar="NAME",
                           help="class names in the order of their numbers "
                           "(default, for VOC only: People Car Bus Motorcycle Lamp Truck, as in M3FD)")
    preparing.add_argument("--out", type=given_path, required=True, metavar="DIR",
                           help="folder of the data sets; its name is the name of the data set in the results")
    preparing.add_argument("--seed", type=int, default=0, help="seed of the 60/20/20 split (default: 0)")

    for name, text in (("train", "train, evaluate and record"), ("score", "evaluate trained detectors again")):
        add_training_options(actions.add_parser(name, help=text, description=f"{text.capitalize()}. The schedule and "
                                                "the model identify a run: give score the same options as train."))

    table = actions.add_parser("table", help="print the recorded rows and those of the paper")
    add_format(table)
    for action in (actions.choices[name] for name in ("train", "score", "table")):
        action.add_argument("--csv", type=given_path, default=RESULTS / "detection.csv", metavar="FILE",
                            help="file of the recorded rows (default: results/detection.csv of the repository)")
    return parser


def add_training_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--data", type=given_path, required=True, metavar="DIR", help="the folder --out of prepare")
    parser.add_argument("--methods", nargs="+", action="extend", metavar="NAME",
                        help="only these methods (default: all in --data)")
    parser.add_argument("--seeds", type=int, nargs="+", action=Added, default=[0], metavar="SEED",
                        help="seeds of the trainings (default: 0)")
    parser.add_argument("--epochs", type=positive, default=100, help="number of epochs (default: 100)")
    parser.add_argument("--size", type=positive, default=320, help="longer side of the images, pixels (default: 320)")
    parser.add_argument("--batch", type=positive, default=16, help="images in a step (default: 16)")
    beginning = parser.add_mutually_exclusive_group()
    beginning.add_argument("--model", choices=MODELS, default="yolov5n", help="size of the detector, YOLOv5 of "
                           "ultralytics with an anchor-free head, from random weights (default: yolov5n)")
    beginning.add_argument("--weights", type=given_path, metavar="FILE", help="initial weights, a .pt file; loading it "
                           "can execute code, so use only files that you trust")
    parser.add_argument("--device", choices=("cpu", "cuda"), default=default_device(), help="(default: cuda if available). "
                        "Of several GPUs, the first is used; CUDA_VISIBLE_DEVICES=1 before the command chooses another")
    parser.add_argument("--workers", type=int, default=0, help="number of processes that read images (default: 0: read in "
                        "the main process, best on a CPU)")
    parser.add_argument("--again", action="store_true", help="train: repeat runs that have a row; the row is replaced "
                        "(score always replaces it)")
    parser.add_argument("--out", type=given_path, default=Path("runs/detection"), metavar="DIR",
                        help="folder of the detectors (default: runs/detection)")


ACTIONS = {"prepare": run_prepare, "average": run_average, "train": run_all, "score": run_all, "table": run_table}


@noted()
def main(argv: Sequence[str] | None = None) -> int:
    args = build_parser().parse_args(argv)
    args.command = command_line("tools/detection.py", argv)
    try:
        problems = ACTIONS[args.action](args)
    except (DataError, OutputError, DetectorError, TableError, ValueError, OSError) as error:
        return failed("detection.py", error)
    except KeyboardInterrupt:
        continues = args.action == "train" and not args.again
        complain("detection.py: interrupted" + "; the same command goes on with this detector, from its first epoch" * continues)
        raise
    return finished(problems)


if __name__ == "__main__":
    sys.exit(run_command(main))
