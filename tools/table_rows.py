"""Measure the rows of the paper's tables: train, fuse, score, and record in CSV files. The command is tools/tables.py.

tables.csv has one row for each table, data set, method, use and protocol. For networks that are trained for a table,
it has one row for each budget and seed. The columns `seed` to `minutes` describe the training of the weights. `command`
is a command of train.py for trained tables, which makes the weights, and a command of tools/tables.py for existing
weights, which measures the row. `commit` and `machine` are those of this command.
parts.csv has one row for each data set, method and part.
"""
from __future__ import annotations

if __name__ == "__main__":
    raise SystemExit("table_rows.py is a module; the command is tools/tables.py")

import argparse
import copy
import csv
import math
import re
import shlex
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from tqdm import tqdm

import metrics
from dataset import DATASETS, Pair, load_pair, named_pairs
from images import DataError, luma
from inference import fuse_pair
from measures.tables import Runnings
from net import RPFNet
from pipeline import PAIR_ERRORS
from recipe import RECIPE, TrainingError, completed, is_current, parse, read_state
from support.console import first_line, handling
from support.outputs import as_csv, write_atomically
from support.records import command_line, device_name, hashed_name, processor
from support.runtime import default_device
from tools.released import ReleasedNet, load_released
from weights import CHECKPOINTS, find, read_json

ROOT = Path(__file__).resolve().parent.parent
RESULTS = ROOT / "results"


class TableError(Exception):
    """A table or row cannot be made. The message is one line."""


# ---------------------------------------------------------------------------------------------
# Content of the tables


class Protocol(NamedTuple):
    """The six columns of a table."""
    names: tuple[str, ...]          # columns of tables.csv
    headings: tuple[str, ...]       # the columns as they are printed, and the names for `metrics.evaluate`
    title: str


DEFINED = ("EN", "SF", "SD", "CC", "SCD", "VIF")
PROTOCOLS = {       # {protocol of `metrics.evaluate`: columns}
    "paper": Protocol(tuple(name for name, _ in metrics.PAPER_COLUMNS.values()), tuple(metrics.PAPER_COLUMNS),
                      "protocol paper: SF holds the average gradient, SD and VIFF are those of toolbox"),
    "definition": Protocol(DEFINED, DEFINED, "protocol definition"),
}
METRICS = tuple(dict.fromkeys(name for protocol in PROTOCOLS.values() for name in protocol.names))

IDENTITY = ("table", "dataset", "method", "use", "range", "protocol")
BUDGET = ("seed", "steps", "crops")
COLUMNS = (*IDENTITY, *METRICS, "images", *BUDGET, "minutes", "source", "command", "commit", "machine")
PARTS_IDENTITY = ("dataset", "method", "part")
PARTS_METRICS = ("change", "EN", "SF", "VIFF", "all hot")
PARTS_COLUMNS = (*PARTS_IDENTITY, *PARTS_METRICS, "images", "source", "command", "commit", "machine")


class Use(NamedTuple):
    """A way to use a network."""
    use: str
    range: str


USES = (Use("eval", "plain"), Use("as published", "studio"))


class Configuration(NamedTuple):
    """A network that is trained for the tables of TRAINED."""
    name: str                   # beginning of the name of its folders
    options: tuple[str, ...]    # options of train.py
    methods: dict[str, str]     # {table: name in the paper}
    seeds: int = 1              # how many seeds, from 0, results/tables.csv has


FULL = Configuration("full", (), {"1": "N=3", "2": "lambda2=5", "3": "RPFNet", "contrast": "recipe paper"}, seeds=6)
# From the recipe paper to the recipe contrast. Each change is added to those before it.
CHANGES = (
    ("means", "+ means in Eq. 6 and 7", ("--saliency-form", "mean")),
    ("clip_and_weight", "+ clipping, w with 1 + S", ("--clip", "1", "--weight", "plus")),
    ("weighted", "+ weighted windows of 7", ("--ssim-weighted", "--ssim-window", "7")),
    ("whole", "+ L_s over the whole crop", ("--ssim-whole",)),
    ("luminance", "+ luminance term", ("--lambda-3", "2")),
    ("large_crops", "+ fewer, larger crops", ("--batch", "1", "--crop", "180")),     # as many pixels as 2 of 128
)
CONFIGURATIONS = (
    FULL,
    *(Configuration(f"stages_{n}", ("--stages", n), {"1": f"N={n}"}) for n in "1579"),
    *(Configuration(f"lambda2_{value}", ("--lambda-2", value), {"2": f"lambda2={value}"})
      for value in ("4", "4.8", "5.2", "6")),
    Configuration("no_structure_loss", ("--lambda-2", "0"), {"3": "w/o L_s"}),
    Configuration("no_negatives", ("--no-negatives",), {"3": "L_c => freq. l1-norm"}, seeds=3),
    Configuration("spatial_contrast", ("--contrast-domain", "spatial"), {"3": "w/o freq. domain L_c"}, seeds=3),
    Configuration("no_saliency_loss", ("--no-saliency",), {"3": "w/o L_SS"}, seeds=3),
    Configuration("no_weight", ("--weight", "none"), {"3": "w/o w and 1-w"}, seeds=3),
    Configuration("transformer", ("--global-branch", "transformer"), {"3": "FDFM => Trans.block"}),
    Configuration("no_cpm", ("--no-cpm",), {"3": "w/o CPM"}, seeds=3),
    Configuration("no_prior", ("--no-prior",), {"3": "w/o res prior"}, seeds=3),
    *(Configuration(name, sum((options for *_, options in CHANGES[:i + 1]), ()), {"contrast": method})
      for i, (name, method, _) in enumerate(CHANGES)),
)
TRAINED = ("1", "2", "3", "contrast")       # tables of CONFIGURATIONS
RENAMED = {"--no-contrast": "--no-negatives", "adaptive": "plus"}      # in the commands of older rows


# {name in the tables: name in dataset.DATASETS}
DATA_SETS = {"FLIR-val": "roadscene", "TNO": "tno", "MSRS": "msrs", "M3FD": "m3fd", "MRI-PET": "mri-pet",
             "MRI-SPECT": "mri-spect", "MRI-CT": "mri-ct"}
TABLES = {      # {table: its data sets}
    **dict.fromkeys((*TRAINED, "main"), ("FLIR-val",)),
    "4": ("TNO", "MSRS", "M3FD"), "6": ("MRI-PET", "MRI-SPECT", "MRI-CT"), "parts": ("FLIR-val", "MRI-PET", "MRI-SPECT"),
}
FUSED = ("4", "6", "main")                  # tables of existing weights, which take images of other methods
SHIPPED = {"ours, recipe paper": ROOT / "checkpoints" / "rpfnet_paper.pth",
           "ours, recipe contrast": ROOT / "checkpoints" / "rpfnet.pth"}
STUDENTS = {f"ours, {name}": ROOT / "checkpoints" / f"rpfnet_{name}.pth" for name in ("small", "tiny")}
MEDICAL = {"ours, recipe medical": ROOT / "checkpoints" / "rpfnet_medical.pth"}
BASELINES = {"average": "average", "maximum": "max"}        # {name in the tables: name for metrics.baseline}
RELEASED = "authors' release"
RELEASED_USES = (Use("as published", "plain"), Use("as published", "studio"))


def papers_name(method: str) -> str:
    """Name of the row of the paper that a method is compared with."""
    return "RPFNet" if method in (*SHIPPED, *MEDICAL, RELEASED) else method


def known_methods(table: str, others: Sequence[str]) -> list[str]:
    """Methods that --run can measure for a table."""
    if table in TRAINED:
        return [one.methods[table] for one in CONFIGURATIONS if table in one.methods]
    if table == "parts":
        return [*SHIPPED, *STUDENTS, *MEDICAL]
    return [*(MEDICAL if table == "6" else SHIPPED), *BASELINES, *others]


def is_wanted(method: str, args: argparse.Namespace) -> bool:
    """Whether --rows names the method, or is not given."""
    return not args.rows or method in args.rows


# ---------------------------------------------------------------------------------------------
# Files of rows


def read_rows(path: Path, needed: Sequence[str] = (), numbers: Sequence[str] = ()) -> list[dict[str, str]]:
    """Rows of a CSV file; [] if the file does not exist.

    Raises TableError, also if a needed column is missing, or if a cell of the columns `numbers` holds no number.
    """
    try:
        with path.open(newline="", encoding="utf-8-sig") as file:      # Excel writes a byte order mark
            rows = list(csv.DictReader(file))
    except FileNotFoundError:
        return []
    except (OSError, ValueError, csv.Error) as error:
        raise TableError(f"{path}: cannot be read as CSV ({error})") from None
    for number, row in enumerate(rows, 1):
        if None in row or None in row.values():     # csv's mark of too many or too few cells
            raise TableError(f"{path}: row {number} has another number of cells than the header; quote cells with commas")
    missing = [name for name in needed if rows and name not in rows[0]]
    if missing:
        raise TableError(f"{path}: has no column {missing[0]}, so it holds another table; name another file")
    for number, row in enumerate(rows, 1):
        for name in numbers:
            try:
                float(row[name])
            except ValueError:
                raise TableError(f"{path}: row {number} has {row[name]!r} in column {name}, where a number is expected") from None
    return rows


def identity(row: dict[str, str]) -> tuple[str, ...]:
    """Key of a row: a newer row with the same key replaces an older one. Rows of different trainings are all kept."""
    key = tuple(row[name] for name in IDENTITY)
    return key if row["table"] not in TRAINED else (*key, *(row[name] for name in BUDGET), further_options(row))


def further_options(row: dict[str, str]) -> str:
    """The options of train.py in a row's command that no other column holds, such as "--crops 200 --clip 1"."""
    configured = {method: configuration.options for configuration in CONFIGURATIONS
                  for table, method in configuration.methods.items() if table == row["table"]}
    words = [RENAMED.get(word, word) for word in shlex.split(row.get("command", ""))[2:]]       # without "python train.py"
    for option in ("--data", "--steps", "--batch", "--val-every", "--seed", "--out"):
        if option in words:
            place = words.index(option)
            del words[place:place + 2]
    for word in ("--amp", *configured.get(row["method"], ())):
        if word in words:
            words.remove(word)
    return " ".join(words)


def record(path: Path, columns: Sequence[str], rows: Sequence[dict], key: Callable[[dict], tuple]) -> None:
    """Add rows to a file, in place of rows with the same key. The file is written atomically.

    Further columns of the file, such as remarks that were added by hand, are kept at its end.
    """
    earlier = read_rows(path)
    kept = {key(row): row for row in [*earlier, *rows]}
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(path, as_csv(list(dict.fromkeys([*columns, *(earlier[0] if earlier else ())])), kept.values()))


# ---------------------------------------------------------------------------------------------
# Fusing and scoring

Fuse = Callable[[Pair, np.ndarray, np.ndarray], np.ndarray]     # pair, ir, vis_y -> fused; images uint8 (H, W)


def of_network(model: RPFNet | ReleasedNet, use: Use) -> Fuse:
    """Fuse with a network. The authors' network always uses the statistics of the image."""
    studio = use.range == "studio"
    if isinstance(model, ReleasedNet):
        return lambda pair, ir, vis: fuse_pair(model, ir, vis, studio)
    return lambda pair, ir, vis: model.fuse(ir, vis, studio, as_published=use.use == "as published")


def of_baseline(name: str) -> Fuse:
    """Fuse with a baseline of metrics.py."""
    return lambda pair, ir, vis: metrics.baseline(name, ir, vis)


def of_files(files: dict[str, Path]) -> Fuse:
    """Read fused images of another method. The function raises DataError, also for an image of another size."""
    return lambda pair, ir, vis: luma(metrics.read_fused(files[pair.name], ir.shape))


def gray_pair(pair: Pair) -> tuple[np.ndarray, np.ndarray]:
    ir, vis = load_pair(pair)
    return ir, luma(vis)


def score(pairs: Sequence[Pair], fuse: Fuse, label: str) -> dict[str, dict[str, float]]:
    """Means over the pairs, {protocol: {metric: mean}}. Raises PAIR_ERRORS if one of them cannot be scored."""
    means = {key: Runnings(protocol.names) for key, protocol in PROTOCOLS.items()}
    for pair in tqdm(pairs, desc=label, unit="pair", leave=False):
        ir, vis = gray_pair(pair)
        fused = fuse(pair, ir, vis)
        for key, protocol in PROTOCOLS.items():
            values = metrics.evaluate(fused, ir, vis, key, protocol.headings)
            means[key].add({name: values[heading] for name, heading in zip(protocol.names, protocol.headings)})
    return {key: running.means for key, running in means.items()}


def rows_of(table: str, dataset: str, method: str, use: Use, scores: dict[str, dict[str, float]],
            about: dict[str, str]) -> list[dict[str, str]]:
    """Rows of tables.csv, one for each protocol. about: the cells that are not scores."""
    common = dict.fromkeys(COLUMNS, "") | about | use._asdict() | {"table": table, "dataset": dataset, "method": method}
    return [common | {"protocol": protocol} | digits(means) for protocol, means in scores.items()]


def digits(means: dict[str, float]) -> dict[str, str]:
    """Values as recorded in the CSV files, with six decimals: tables round once more, to three."""
    return {name: f"{value:.6f}" for name, value in means.items()}


def weights_name(checkpoint: str) -> str:
    """Name of the weights in the rows; that of a file has a hash. Raises OSError, ValueError."""
    return checkpoint if checkpoint in CHECKPOINTS else hashed_name(find(checkpoint))


def machine(name: str | None = None) -> str:
    """Name of a device as in train.py, with the processor's name in place of "cpu"; by default the device in use."""
    name = name or device_name(torch.device(default_device()))
    return re.sub(r"^cpu\b", processor(), name)


# ---------------------------------------------------------------------------------------------
# --run: Tables 1 to 3 and contrast


class Run(NamedTuple):
    """A training: a configuration with one seed."""
    configuration: Configuration
    seed: int
    folder: Path
    options: tuple[str, ...]        # options of train.py

    @property
    def command(self) -> str:
        return command_line("train.py", self.options)

    def __str__(self) -> str:
        return f"{' = '.join(dict.fromkeys(self.configuration.methods.values()))}, seed {self.seed}"


def planned_runs(args: argparse.Namespace) -> list[Run]:
    """The trainings of a table, with the seeds of --seeds, by default those of the recorded rows."""
    runs = []
    for configuration in CONFIGURATIONS:
        method = configuration.methods.get(args.table)
        if method is None or not is_wanted(method, args):
            continue
        for seed in args.seeds or range(configuration.seeds):
            folder = args.out / f"{configuration.name}_seed{seed}"
            options = ("--data", str(args.data / DATASETS["roadscene"].folder), "--amp", "--steps", str(args.steps),
                       "--batch", str(args.batch), "--crops", str(args.crops), "--val-every", "0", "--seed", str(seed),
                       *configuration.options, *args.train_options, "--out", str(folder))
            runs.append(Run(configuration, seed, folder, options))
    return runs


def run_trained(args: argparse.Namespace, problems: list[str]) -> None:
    """Train, fuse and score the rows of a table of TRAINED. One line in `problems` for each row that failed."""
    pairs, runs = pairs_of("FLIR-val", args.data, args.results), planned_runs(args)
    for number, run in enumerate(runs, 1):
        print(f"[{number}/{len(runs)}] {run}", flush=True)
        try:
            train_run(run)
            score_run(run, pairs, args)
        except (TableError, TrainingError, *PAIR_ERRORS) as error:
            problems.append(f"{run}: {first_line(error)}")


def train_run(run: Run) -> None:
    """Start, resume or skip a training. Raises TableError if it fails, KeyboardInterrupt if it is stopped."""
    wanted = wanted_recipe(run)
    state = stored_state(run, wanted)
    if state and is_finished(state, wanted):
        print(f"    trained already: {run.folder}", flush=True)
        return
    print(f"    {'resuming' if state else 'training'} in {run.folder}", flush=True)
    code = call_train([*run.options, "--resume"] if state else run.options)
    if code in (130, 143):      # stopped by a signal
        raise KeyboardInterrupt
    if code:
        raise TableError(f"train.py ended with code {code}; its messages are above")


def call_train(options: Sequence[str]) -> int:
    """Run train.py in another process and return its exit code. If this process is stopped, train.py saves first."""
    process: subprocess.Popen | None = None
    stopped = []

    def stop(number: int, _: object) -> None:
        stopped.append(number)
        if process:
            process.terminate()
    with handling(stop, "SIGTERM"):
        process = subprocess.Popen([sys.executable, str(ROOT / "train.py"), *options])
        if stopped:         # before there was a process to pass it on to
            process.terminate()
        try:
            return process.wait()
        except KeyboardInterrupt:
            process.wait()  # the terminal has sent Ctrl-C to both processes
            raise


def stored_state(run: Run, wanted: argparse.Namespace) -> dict | None:
    """Content of last.pth of a run; None if there is none. Raises TableError if it was trained with other options."""
    path = run.folder / "last.pth"
    if not path.exists():
        return None
    try:
        state = read_state(path)
        if not is_current(state["version"]):
            raise TrainingError(f"{path}: trained with another version of train.py")
        stored = completed(state["recipe"], str(path))
    except TrainingError as error:
        raise TableError(f"{error}; move it away, or name another --out") from None
    changed = [f"{key} {stored[key]} -> {getattr(wanted, key)}" for key in RECIPE
               if stored[key] != getattr(wanted, key)]
    if changed:
        raise TableError(f"{path}: trained with another recipe ({'; '.join(changed)}); remove it, or name another --out")
    return state


def wanted_recipe(run: Run) -> argparse.Namespace:
    """All options of a run, as train.py parses them. Raises TableError."""
    try:
        return parse(run.options)
    except TrainingError as error:
        raise TableError(str(error)) from None


def is_finished(state: dict, wanted: argparse.Namespace) -> bool:
    """Whether the last step was made and the end of its epoch was processed (statistics, log, checkpoint)."""
    total = wanted.steps or wanted.epochs * math.ceil(wanted.crops / wanted.batch)
    return state["step"] >= total and bool(state["history"]) and state["history"][-1]["step"] == state["step"]


def score_run(run: Run, pairs: Sequence[Pair], args: argparse.Namespace) -> None:
    """Fuse and score with the last state of a run, and record the result in each table that has a row for it.

    Raises TableError, TrainingError, PAIR_ERRORS.
    """
    state = read_state(run.folder / "last.pth")
    about = training_of(run.folder / "best.json") | {       # of the best state, which can be an earlier one
        "steps": str(state["step"]), "minutes": f"{state['seconds'] / 60:.1f}",
        "source": (run.folder / "last.pth").as_posix(), "command": run.command, "images": str(len(pairs))}
    path = args.results / "tables.csv"
    if not args.again and is_recorded(run, read_rows(path), about):
        print("    measured already; --again measures it anew", flush=True)
        return
    model = RPFNet.from_pretrained(run.folder / "last.pth", default_device())
    rows = []
    for use in USES:
        scores = score(pairs, of_network(model, use), f"{run}, {use.use}")
        for table, method in run.configuration.methods.items():
            rows += rows_of(table, "FLIR-val", method, use, scores, about)
    record(path, COLUMNS, rows, identity)


def is_recorded(run: Run, rows: Sequence[dict], about: dict[str, str]) -> bool:
    """Whether all rows of this training exist, for all its tables, uses and protocols."""
    own = [row for row in rows if all(row.get(key) == value for key, value in about.items())]
    return len(own) == len(run.configuration.methods) * len(USES) * len(PROTOCOLS)


def training_of(path: Path) -> dict[str, str]:
    """Seed, steps, crops, minutes, commit and machine of a training, from the JSON file. Raises TableError.

    The file does not name the processor of a training on a CPU. The machine then has the name of the processor here.
    Of several trainings, each from the weights of the one before, "total_steps" has the steps. Their time is not known.
    """
    try:
        about = read_json(path)
        recipe, total = about["recipe"], about.get("total_steps")
        return {"seed": str(recipe["seed"]), "steps": str(total or about["steps"]),
                "minutes": "" if total else str(about["minutes"]),
                "crops": f"{recipe['batch']} of {recipe['crop']}", "commit": about["commit"],
                "machine": machine(about["device"])}
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise TableError(f"{path}: does not say how its weights were trained "
                         f"({type(error).__name__}: {error})") from None


# ---------------------------------------------------------------------------------------------
# --run: Tables 4, 6, main and parts


def pairs_of(dataset: str, data: Path, results: Path) -> list[Pair]:
    """The pairs of a data set's split for evaluation.

    Args:
        dataset: a key of DATA_SETS.
        data: the folder that holds the data sets.
        results: the folder of the rows.
    Raises:
        DataError: missing pairs, also if rows of an incomplete set would replace those of the repository.
    """
    name = DATA_SETS[dataset]
    layout = DATASETS[name]
    folder = data / layout.folder
    pairs = named_pairs(name, folder)
    published = dict(layout.expected).get(layout.splits[0], len(pairs))
    if len(pairs) != published and results.resolve() == RESULTS:
        raise DataError(f"{folder} has {len(pairs)} pairs, the published set {published}; record such rows "
                        "elsewhere (tables.py: --results, students.py: --csv)")
    return pairs


def found_pairs(datasets: Sequence[str], args: argparse.Namespace,
                problems: list[str]) -> Iterator[tuple[str, list[Pair]]]:
    """Yield each data set that has pairs, and its pairs. One line in `problems` for each other data set."""
    for dataset in datasets:
        try:
            pairs = pairs_of(dataset, args.data, args.results)
        except DataError as error:
            problems.append(f"{dataset}: {first_line(error)}")
            continue
        yield dataset, pairs


def run_shipped(args: argparse.Namespace, problems: list[str]) -> None:
    """Fuse and score with the shipped weights; also score baselines and images of other methods.

    One line in `problems` for each data set or method that cannot be measured.
    """
    shipped = load_shipped(MEDICAL if args.table == "6" else SHIPPED, args, problems)
    for dataset, pairs in found_pairs(args.datasets or TABLES[args.table], args, problems):
        for method, use, fuse, about in ways(shipped, dataset, pairs, args, problems):
            label = ", ".join(filter(None, (dataset, method, use.use)))
            print(label, flush=True)
            about = {"images": str(len(pairs))} | about | provenance(args)
            try:
                rows = rows_of(args.table, dataset, method, use, score(pairs, fuse, label), about)
            except PAIR_ERRORS as error:
                problems.append(f"{label}: {first_line(error)}")
                continue
            record(args.results / "tables.csv", COLUMNS, rows, identity)


class Shipped(NamedTuple):
    """A network with published weights, the cells of its rows that describe its training, and its uses."""
    model: RPFNet | ReleasedNet
    about: dict[str, str]
    uses: tuple[Use, ...] = USES


def load_checkpoint(path: Path) -> Shipped:
    """A checkpoint of this repository. Raises OSError, ValueError, TableError."""
    model = RPFNet.from_pretrained(path, default_device())
    return Shipped(model, training_of(path.with_suffix(".json")) | {"source": f"checkpoints/{path.name}"})


def load_model_of_authors(path: Path) -> Shipped:
    """The file of --released. Raises OSError, ValueError."""
    model = load_released(path).to(default_device())
    return Shipped(model, {"source": f"{hashed_name(path)} of the authors' repository"}, RELEASED_USES)


def load_shipped(checkpoints: dict[str, Path], args: argparse.Namespace, problems: list[str]) -> dict[str, Shipped]:
    """{method: network} for --released and the checkpoints. One line in `problems` for each that cannot be loaded."""
    found = {}
    files = [(RELEASED, args.released, load_model_of_authors)] if args.released else []
    files += [(method, path, load_checkpoint) for method, path in checkpoints.items()]
    for method, path, load in files:
        if not is_wanted(method, args):
            continue
        try:
            found[method] = load(path)
        except (OSError, ValueError, TableError) as error:
            problems.append(f"{method}: {first_line(error)}")
    return found


def ways(shipped: dict[str, Shipped], dataset: str, pairs: Sequence[Pair], args: argparse.Namespace,
         problems: list[str]) -> Iterator[tuple[str, Use, Fuse, dict[str, str]]]:
    """Yield the methods of a data set: name, use, fuse function, and the cells about its weights."""
    for method, (model, about, uses) in shipped.items():
        for use in uses:
            yield method, use, of_network(model, use), about
    plain = Use("", "plain")
    for method, name in BASELINES.items():
        if is_wanted(method, args):
            yield method, plain, of_baseline(name), {"source": "computed from the sources"}
    for method, folder in args.fused.items():
        if not is_wanted(method, args):
            continue
        place = Path(str(folder).replace("{dataset}", dataset))
        try:
            files, missing, _ = metrics.match_fused(pairs, place)
        except DataError as error:
            problems.append(f"{method}: {first_line(error)}")
            continue
        if len(files) < len(pairs):
            problems.append(f"{method}: {place} has {len(files)} of {len(pairs)} images of {dataset}; {missing[0]}")
            continue
        yield method, plain, of_files(files), {"source": "fused images that were given"}


def provenance(args: argparse.Namespace, device: str | None = None) -> dict[str, str]:
    """The cells command, commit and machine for rows of existing weights. device: as for `machine`."""
    return {"command": args.command, "commit": args.commit, "machine": machine(device)}


def without_spectrum(model: RPFNet) -> RPFNet:
    """A copy in which the FDFM is only its 3 x 3 block, because its spectrum is replaced by zeros."""
    model = copy.deepcopy(model)
    for stage in model.stages:
        stage.fdfm.spectral.register_forward_hook(lambda module, inputs, spectrum: torch.zeros_like(spectrum))
    return model


def without_cpm(model: RPFNet) -> RPFNet:
    """A copy without the CPM, so that the features do not change there."""
    model = copy.deepcopy(model)
    for stage in model.stages:
        stage.cpm = None
    return model


def run_parts(args: argparse.Namespace, problems: list[str]) -> None:
    """Measure what each part of the network contributes to the results of the shipped weights.

    One line in `problems` for each data set without pairs, each checkpoint that cannot be loaded, and each data set and
    checkpoint that cannot be measured.
    """
    wanted, measured = args.datasets or TABLES["parts"], False
    for checkpoints, datasets in ((SHIPPED | STUDENTS, TABLES["main"]), (MEDICAL, TABLES["6"])):
        chosen = [dataset for dataset in wanted if dataset in datasets]
        shipped = load_shipped(checkpoints, args, problems) if chosen else {}
        measured |= bool(shipped)
        # If --rows names none of these networks, their pairs are not needed.
        for dataset, pairs in found_pairs(chosen if shipped else [], args, problems):
            for method, (model, training, _) in shipped.items():
                about = {"images": str(len(pairs)), "source": training["source"]} | provenance(args)
                try:
                    parts = score_parts(model, pairs, f"{dataset}, {method}")
                except PAIR_ERRORS as error:
                    problems.append(f"{dataset}, {method}: {first_line(error)}")
                    continue
                rows = [{"dataset": dataset, "method": method, "part": part} | digits(means) | about
                        for part, means in parts.items()]
                record(args.results / "parts.csv", PARTS_COLUMNS, rows, lambda row: tuple(row[key] for key in PARTS_IDENTITY))
    if not measured and not problems:
        problems.append("parts: --rows names no network that is measured on these --datasets")


def score_parts(model: RPFNet, pairs: Sequence[Pair], label: str) -> dict[str, dict[str, float]]:
    """{part: {metric of PARTS_METRICS: mean over the pairs}}, in eval mode and plain range."""
    parts = {"whole": model.fuse, "spectrum off": without_spectrum(model).fuse, "CPM off": without_cpm(model).fuse,
             "sources exchanged": lambda ir, vis: model.fuse(vis, ir)}
    means = {part: Runnings(PARTS_METRICS) for part in parts}
    for pair in tqdm(pairs, desc=label, unit="pair"):
        ir, vis = gray_pair(pair)
        hot = ir > ir.mean() + ir.std()
        pictures = {part: fuse(ir, vis) for part, fuse in parts.items()}
        for part, fused in pictures.items():
            values = metrics.evaluate(fused, ir, vis, names=("EN", "SF", "VIFF"))
            values["change"] = float(np.abs(fused.astype(float) - pictures["whole"]).mean())
            values["all hot"] = float(fused[hot].mean() / ir[hot].mean()) if hot.any() else math.nan
            means[part].add(values)
    return {part: running.means for part, running in means.items()}
