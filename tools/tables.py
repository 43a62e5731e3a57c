"""Print the tables of the paper with the rows that were measured here, and measure these rows.

    python tools/tables.py --table 1                                print the recorded rows
    python tools/tables.py --table main --format markdown           the first table of README
    python tools/tables.py --table 3 --run --data data              train, fuse, score and record, then print
    python tools/tables.py --table 1 --run --steps 0 --batch 16 --crops 3383 -- --no-amp    ... with the paper's budget

Tables:
  1 iterations N, 2 lambda_2, 3 ablations     40 validation pairs of RoadScene, networks trained with one small budget
  contrast                                    the same; from the recipe paper to the recipe contrast, change by change
  4 TNO, MSRS, M3FD    6 brain images         with the shipped weights
  main                                        the shipped weights on RoadScene
  parts                                       what the parts contribute, for each network in checkpoints/
Table 5, detection, is printed by tools/detection.py.

A network is used in two ways: "eval" with the running statistics of training, "as published" with the statistics of
each image and the studio-range stretch. Options after -- are passed on to train.py. After Ctrl-C, the same command
continues the trainings of Tables 1 to 3 and contrast. The other tables also keep their complete rows, but the same command
measures them again. Name what is missing with --datasets and --rows.

Files in results/: tables.csv and parts.csv hold the rows measured here (columns: tools/table_rows.py). paper_tables.csv
holds the rows of the paper.
"""
from __future__ import annotations

import argparse
import csv
import io
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from scipy.stats import ttest_ind_from_stats

import metrics
from images import DataError
from measures.tables import PAPER_NAMES, Runnings, add_format, aligned, escape
from recipe import whole
from support.console import complain, failed, finished, given_path, positive
from support.console import run as run_command
from support.outputs import OutputError, as_csv, check_csv_name, check_place, refuse_input, write_atomically
from support.records import command_line, commit
from support.runtime import keep_freed_memory
from tools.table_rows import (
    COLUMNS,
    DATA_SETS,
    FULL,
    FUSED,
    IDENTITY,
    PARTS_COLUMNS,
    PARTS_METRICS,
    PROTOCOLS,
    RELEASED,
    RESULTS,
    TABLES,
    TRAINED,
    Protocol,
    TableError,
    digits,
    further_options,
    known_methods,
    papers_name,
    read_rows,
    run_parts,
    run_shipped,
    run_trained,
)

# ---------------------------------------------------------------------------------------------
# Printing


PRINTED = "printed"         # kind of the lines that the paper prints


@dataclass
class Line:
    """One line of a printed table. Several seeds are combined to one line."""
    method: str
    kind: str                   # PRINTED, "eval, plain", ...
    means: dict[str, float]
    printed: dict[str, str]     # digits as in the source; {} for values that are printed with three decimals
    stds: dict[str, float] = field(default_factory=dict)            # over seeds; {} for one seed
    differences: dict[str, float] = field(default_factory=dict)     # to the row of the paper; {} if it has none
    seeds: int = 1
    p_values: dict[str, float] = field(default_factory=dict)        # against the full model; see `add_p_values`
    rank: int | None = None     # RoR
    budget: str = ""            # text for the notes


def collect_lines(table: str, dataset: str, protocol: str, results: Path) -> list[Line]:
    """The lines of the paper and the measured lines of one data set, in the order of the paper."""
    names = PROTOCOLS[protocol].names
    printed = paper_lines(table, PAPER_NAMES.get(DATA_SETS[dataset], dataset))
    lines = printed.copy() if protocol == "paper" else []
    published = {line.method: line.means for line in lines}
    lines += measured_lines(table, dataset, protocol, names, results)
    for line in lines:
        if line.kind != PRINTED and papers_name(line.method) in published:
            paper = published[papers_name(line.method)]
            line.differences = {name: line.means[name] - paper[name] for name in names}
    if table in TRAINED:
        for kind in {line.kind for line in lines}:
            compared = [line for line in lines if line.kind == kind]
            add_p_values(compared, FULL.methods[table], names)
            if len(compared) > 1:
                for line, rank in zip(compared, metrics.rank_of_ranks([line.means for line in compared])):
                    line.rank = rank
    trained = known_methods(table, ()) if table in TRAINED else ()
    order = list(dict.fromkeys(papers_name(method) for method in (
        *(line.method for line in printed), *trained, *(line.method for line in lines))))
    return sorted(lines, key=lambda line: order.index(papers_name(line.method)))


def add_p_values(lines: Sequence[Line], full: str, names: Sequence[str]) -> None:
    """Two-sided p-values of the difference between each line and the line `full`, if that has several seeds.

    Welch's t-test over the seeds. A line with one seed is compared by Student's t-test, with the variance of `full`.
    """
    reference = next((line for line in lines if line.method == full and line.stds), None)
    for line in lines if reference else ():
        if line is not reference:
            line.p_values = {name: float(ttest_ind_from_stats(
                line.means[name], line.stds.get(name, 0), line.seeds,
                reference.means[name], reference.stds[name], reference.seeds, equal_var=not line.stds).pvalue) for name in names}


def paper_lines(table: str, dataset: str) -> list[Line]:
    """The lines that the paper prints. Its SF is the average gradient AG."""
    rows = read_rows(RESULTS / "paper_tables.csv")
    if table == "main":         # the row of RPFNet, which is the same in Tables 1 to 3 of the paper
        rows = [row | {"table": table} for row in rows if row["table"] == "3" and row["method"] == "RPFNet"]
    rows = [row for row in rows if row["table"] == table and row["dataset"] == dataset]
    columns = {name: heading.partition(" ")[0] for name, heading in zip(*PROTOCOLS["paper"][:2])}
    return [Line(row["method"], PRINTED, {name: float(row[column]) for name, column in columns.items()},
                 {name: row[column] for name, column in columns.items()}) for row in rows]


def measured_lines(table: str, dataset: str, protocol: str, names: Sequence[str], results: Path) -> list[Line]:
    """The measured lines: rows that differ only in the seed are combined."""
    rows = [row for row in read_rows(results / "tables.csv", COLUMNS)
            if (row["table"], row["dataset"], row["protocol"]) == (table, dataset, protocol)]
    rows.sort(key=lambda row: row["method"] != RELEASED)        # the release first, the others as they were recorded
    groups: dict[tuple, list[dict]] = {}
    for row in rows:
        key = (*(row.get(name, "") for name in (*IDENTITY, "steps", "crops")),
               further_options(row) if table in TRAINED else "")
        groups.setdefault(key, []).append(row)
    several = len({key[-3:] for key in groups}) > 1
    return [measured_line(group, names, several and table in TRAINED) for group in groups.values()]


def measured_line(group: Sequence[dict], names: Sequence[str], name_budget: bool) -> Line:
    """Combine the rows of all seeds to one line. `name_budget`: add the budget, if the table has several budgets."""
    seeds = Runnings(names)
    for row in group:
        seeds.add({name: float(row[name]) for name in names})
    first = group[0]
    steps = f"{first['steps']} steps, crops {first['crops']} {further_options(first)}".rstrip() if name_budget else ""
    short = {name: first[name] for name in names if len(first[name].partition(".")[2]) < 3}
    return Line(first["method"], ", ".join(filter(None, (first["use"], first["range"], steps))),
                seeds.means, short if len(group) == 1 else {},
                {name: seed.std for name, seed in seeds.items()} if len(group) > 1 else {}, budget=budget(group),
                seeds=len(group))


def budget(group: Sequence[dict]) -> str:
    """Training budget, seeds and images of the rows of one line, for the notes under a table.

    The minutes of the trainings of TRAINED are left out, so that rows with one budget share a note.
    """
    first = group[0]
    parts = [first["source"]] if not first.get("steps") else [f"{first['steps']} steps, crops {first['crops']}"]
    if first.get("seed"):
        parts.append(f"seed {first['seed']}" if len(group) == 1 else
                     f"seeds {', '.join(row['seed'] for row in group)} (mean ± standard deviation)")
    if first.get("minutes") and first["table"] not in TRAINED:
        parts.append(f"{float(first['minutes']):.0f} minutes of training")
    if first["images"]:
        parts.append(f"{first['images']} images")
    return "; ".join(filter(None, parts))


def cells_of(lines: Sequence[Line], protocol: Protocol) -> list[list[str]]:
    """Header and cells of the lines. Differences and p-values follow their line. The name of a method is printed once."""
    ranked = any(line.rank for line in lines)
    cells = [["method", "rows", *protocol.headings] + ["RoR"] * ranked]
    previous = None
    for line in lines:
        texts = [line.printed.get(name) or f"{line.means[name]:.3f}" +
                 (f" ± {line.stds[name]:.3f}" if line.stds else "") for name in protocol.names]
        cells.append(["" if line.method == previous else line.method, line.kind, *texts]
                     + [str(line.rank or "")] * ranked)
        if line.differences:
            cells.append(["", "difference", *(f"{line.differences[name]:+.3f}" for name in protocol.names)] + [""] * ranked)
        if line.p_values:
            cells.append(["", "p", *(p_value(line.p_values[name]) for name in protocol.names)] + [""] * ranked)
        previous = line.method
    return cells


def p_value(value: float) -> str:
    """A p-value with three decimals."""
    return "<0.001" if value < 0.001 else f"{value:.3f}"


def notes_of(lines: Sequence[Line]) -> list[str]:
    """One note for each budget, with the names of its methods."""
    methods: dict[str, list[str]] = {}
    for line in lines:
        if line.budget and line.method not in methods.setdefault(line.budget, []):
            methods[line.budget].append(line.method)
    notes = [f"{', '.join(names)}: {text}" for text, names in methods.items()]
    if any(line.rank for line in lines):
        notes.append("RoR: rank of ranks among the rows of one kind")
    if any(line.p_values for line in lines):
        notes.append("p: t-test over seeds against the full model, two-sided, not corrected for the number of tests")
    return notes


def layout(cells: Sequence[Sequence[str]], style: str, text_columns: int = 2) -> str:
    """Format an aligned table. The first `text_columns` columns are text, the others are numbers."""
    cells = [[escape(text, style) for text in line] for line in cells]
    if style == "latex":
        cells = [[_symbols(text) for text in line] for line in cells]
    return aligned(cells, style, text_columns)


def _symbols(text: str) -> str:
    """Symbols of LaTeX in place of the characters that stand for them in names and cells; `text` is escaped."""
    return text.replace(r"=\textgreater{}", r"$\Rightarrow$").replace("±", r"$\pm$").replace("lambda2", r"$\lambda_2$")


def show(title: str, cells: Sequence[Sequence[str]], notes: Sequence[str], style: str, text_columns: int = 2) -> None:
    """Print a table with its title and notes."""
    comment = "% " if style == "latex" else ""
    print(f"{comment}{title}\n" + ("" if style == "latex" else "\n") + layout(cells, style, text_columns), end="\n\n")
    for note in notes:
        print(f"{comment}{note}" + ("  " if style == "markdown" else ""))     # two spaces are a line break in Markdown
    print()


def print_comparison(args: argparse.Namespace) -> None:
    """Print Tables 1 to 4, 6 and main."""
    chosen = PROTOCOLS[args.protocol]
    tables = [(dataset, collect_lines(args.table, dataset, args.protocol, args.results))
              for dataset in args.datasets or TABLES[args.table]]
    if args.csv:        # first: the reader of the output may end early
        write_lines(args.csv, args.table, args.protocol, [(dataset, line) for dataset, lines in tables for line in lines])
    for dataset, lines in tables:
        notes = notes_of(lines)
        if args.protocol != "paper":
            notes.append("The paper's rows are of protocol paper and cannot be compared with these.")
        if all(line.kind == PRINTED or line.method == RELEASED for line in lines):
            notes.append("No rows have been measured here yet: add --run.")
        if lines:
            show(f"Table {args.table}, {dataset}; {chosen.title}", cells_of(lines, chosen), notes, args.format)
        else:
            print(f"Table {args.table}, {dataset}: {notes[-1]}\n")


def write_lines(path: Path, table: str, protocol: str, lines: Sequence[tuple[str, Line]]) -> None:
    """Write the printed lines as CSV, with the printed headings: means, standard deviations over seeds, differences, p-values.

    Raises OSError.
    """
    columns = {"": "means", " std": "stds", " difference": "differences", " p": "p_values"}
    chosen = PROTOCOLS[protocol]
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["table", "dataset", "protocol", "method", "rows",
                     *(name + end for end in columns for name in chosen.headings), "RoR"])
    for dataset, line in lines:
        values = [digits(getattr(line, attribute)) for attribute in columns.values()]
        writer.writerow([table, dataset, protocol, line.method, line.kind,
                         *(value.get(name, "") for value in values for name in chosen.names), line.rank or ""])
    write_atomically(path, text.getvalue().encode())


def print_parts(args: argparse.Namespace) -> None:
    rows = [row for row in read_rows(args.results / "parts.csv", PARTS_COLUMNS)
            if row["dataset"] in (args.datasets or TABLES["parts"])]
    if args.csv:
        write_atomically(args.csv, as_csv([*rows[0]] if rows else PARTS_COLUMNS, rows))
    if not rows:
        print("No rows have been measured here yet: add --run.")
        return
    for dataset in dict.fromkeys(row["dataset"] for row in rows):
        cells, previous = [["method", "part", *PARTS_METRICS]], None
        chosen = [row for row in rows if row["dataset"] == dataset]
        for row in chosen:
            cells.append(["" if row["method"] == previous else row["method"], row["part"],
                          *(f"{float(row[name]):.3f}" for name in PARTS_METRICS)])
            previous = row["method"]
        notes = ["change: mean absolute difference from the result of the whole network, gray levels",
                 "all hot: mean on all hot pixels (IR > mean + standard deviation) over the infrared's",
                 f"eval, plain; EN, SF, VIFF by definition; {', '.join(sorted({row['images'] for row in chosen}))} images"]
        show(f"What the parts contribute, {dataset}", cells, notes, args.format)


# ---------------------------------------------------------------------------------------------
# python tools/tables.py


def build_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter,
                                     usage="python tools/tables.py --table TABLE [options] [-- OPTIONS OF TRAIN.PY]")
    parser.add_argument("--table", required=True, choices=sorted(TABLES), help="which table")
    parser.add_argument("--results", type=Path, default=RESULTS, metavar="DIR",
                        help="folder of the measured rows (default: results/ of the repository)")

    output = parser.add_argument_group("printing")
    add_format(output)
    output.add_argument("--protocol", choices=tuple(PROTOCOLS), default="paper", help="paper: columns as computed in "
                        "the paper; definition: columns by the metrics' definitions, without the rows of the paper")
    output.add_argument("--csv", type=Path, metavar="FILE", help="also write the printed lines to a file, which is replaced")
    output.add_argument("--datasets", nargs="+", action="extend", metavar="NAME",
                        help="only these data sets; table 4: TNO MSRS M3FD, table 6: MRI-PET MRI-SPECT MRI-CT, "
                        "parts: FLIR-val MRI-PET MRI-SPECT")

    run = parser.add_argument_group("measuring")
    run.add_argument("--run", action="store_true",
                     help="measure the rows first; this takes hours on a CPU for Tables 1 to 3 and contrast")
    run.add_argument("--rows", nargs="+", action="extend", default=[], metavar="METHOD",
                     help='measure only these rows, e.g. "N=5" or average')
    run.add_argument("--data", type=Path, default=Path("data"), metavar="DIR",
                     help="folder that holds RoadScene/, TNO/, MSRS/, M3FD/, Harvard/ (default: data)")
    run.add_argument("--released", type=given_path, metavar="MODEL.PTH", help="also measure the authors' published network "
                     "(Trained/Model.pth of their repository) for Tables 4, 6 and main")
    run.add_argument("--fused", nargs="+", action="extend", default=[], metavar="NAME=DIR",
                     help="images of other methods for Tables "
                     "4, 6 and main; {dataset} in DIR is replaced by TNO, MSRS, ...")

    training = parser.add_argument_group("training of Tables 1 to 3 and contrast (without validation)")
    training.add_argument("--steps", type=whole, default=300,
                          help="training steps of each network (default: 300); 0: the epochs of the recipe")
    training.add_argument("--batch", type=positive, default=2, help="crops in a step (default: 2)")
    training.add_argument("--crops", type=positive, default=200, help="crops in an epoch (default: 200)")
    training.add_argument("--seeds", type=int, nargs="+", action="extend",
                          help="seeds of each network (default: those of results/tables.csv, which are 0 to 5 for the full "
                          "model, 0 to 2 for six rows of table 3, 0 for the others)")
    training.add_argument("--out", type=Path, default=Path("runs/tables"), metavar="DIR",
                          help="folder of the trainings (default: runs/tables)")
    training.add_argument("--again", action="store_true",
                          help="fuse and score networks again that have been trained and measured")
    return parser


TRAINING = ("steps", "batch", "crops", "seeds", "out", "again")


def check_options(args: argparse.Namespace, parser: argparse.ArgumentParser) -> None:
    """End the program with exit code 2 if an option has no effect. --data alone is no error: it only names a place."""
    for used, names, place in (
            (args.run, ("rows", "fused", "released", *TRAINING), "without --run"),
            (args.table in TRAINED, TRAINING, f"on table {args.table}, whose networks are not trained here"),
            (args.table in FUSED, ("fused", "released"), f"on table {args.table}; it goes with {', '.join(FUSED)}"),
            (args.table != "parts", ("protocol",), "on table parts")):
        for name in names:
            if not used and getattr(args, name) != parser.get_default(name):
                parser.error(f"--{name} has no effect {place}")


def parse(argv: Sequence[str]) -> argparse.Namespace:
    """The options. Ends the program with exit code 2 if they are wrong."""
    own, train_options = list(argv), []
    if "--" in own:
        split = own.index("--")
        own, train_options = own[:split], own[split + 1:]
    parser = build_parser()
    args = parser.parse_args(own)
    args.train_options = train_options
    args.command = command_line("tools/tables.py", argv)
    args.commit = commit()
    check_options(args, parser)
    if train_options and not (args.run and args.table in TRAINED):
        parser.error("options of train.py, after --, go with --run and Tables 1 to 3 or contrast")
    unknown = [name for name in args.datasets or () if name not in TABLES[args.table]]
    if unknown:
        parser.error(f"--datasets {unknown[0]}: table {args.table} has {', '.join(TABLES[args.table]) or 'none'}")
    bad = [spec for spec in args.fused if "=" not in spec]
    if bad:
        parser.error(f"--fused {bad[0]}: write NAME=DIR")
    try:
        args.fused = metrics.collect_methods(args.fused, taken=known_methods(args.table, [RELEASED]))
    except ValueError as error:
        parser.error(str(error))
    known = known_methods(args.table, [*([RELEASED] if args.released else []), *args.fused])
    unknown = [name for name in args.rows if name not in known]
    if unknown:
        parser.error(f"--rows {unknown[0]!r}: table {args.table} has {', '.join(known)}")
    return args


def check_csv(args: argparse.Namespace) -> None:
    """Raises ValueError or OutputError if --csv cannot be written, or if it names a file of rows, which would be lost."""
    if args.csv:
        check_place("--csv", args.csv)
        check_csv_name(args.csv)
        refuse_input(args.csv, [*RESULTS.glob("*.csv"), *(args.results / name for name in ("tables.csv", "parts.csv"))])


def main(argv: Sequence[str] | None = None) -> int:
    args = parse(sys.argv[1:] if argv is None else argv)
    problems: list[str] = []
    try:
        check_csv(args)     # before the measurement
        if args.run:
            file, columns = ("parts.csv", PARTS_COLUMNS) if args.table == "parts" else ("tables.csv", COLUMNS)
            read_rows(args.results / file, columns)     # before the measurement, so that a wrong file is found early
            keep_freed_memory()
            run = run_trained if args.table in TRAINED else run_parts if args.table == "parts" else run_shipped
            run(args, problems)
        (print_parts if args.table == "parts" else print_comparison)(args)
    except (TableError, DataError, OutputError, OSError, ValueError) as error:
        return failed("tables.py", error)
    except KeyboardInterrupt:
        complain("", "tables.py: interrupted; the same command goes on from here" if args.table in TRAINED else
                 "tables.py: interrupted; complete rows are recorded, --datasets and --rows measure the others")
        return finished(problems, interrupted=True, label="not measured")
    return finished(problems, label="not measured")


if __name__ == "__main__":
    sys.exit(run_command(main))
