"""Means over images, ranks, and tables in plain text, Markdown and LaTeX."""
from __future__ import annotations

import argparse
import csv
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType

from measures.protocols import LOWER_IS_BETTER, PAPER_COLUMNS
from support.console import printable

PAPER_TABLES = Path(__file__).resolve().parents[1] / "results" / "paper_tables.csv"
# {name in dataset.DATASETS: name in the paper}, where they differ.
PAPER_NAMES = {"roadscene": "FLIR-val", "mri-pet": "Harvard", "mri-spect": "Harvard", "mri": "Harvard"}


# ---------------------------------------------------------------------------------------------
# Names of files and methods, which can contain any characters


def csv_cell(text: str) -> str:
    """A name as a CSV cell. An apostrophe before =, +, - and @ prevents that spreadsheets read it as a formula."""
    return ("'" if text.startswith(("=", "+", "-", "@")) else "") + printable(text)


_ESCAPES = {
    "markdown": str.maketrans({char: "\\" + char for char in "\\|*_`[]~"} | {"<": "&lt;", "&": "&amp;"}),
    "latex": str.maketrans({char: "\\" + char for char in "_&%#${}"} | {
        "\\": r"\textbackslash{}", "^": r"\textasciicircum{}", "~": r"\textasciitilde{}", "<": r"\textless{}",
        ">": r"\textgreater{}", "|": r"\textbar{}", "[": "{[}", "*": "{*}"}),   # \\ at a row's end would take [ or *
}


def escape(text: str, style: str) -> str:
    """Escape a name for a table in one of `STYLES`."""
    return printable(text).translate(_ESCAPES.get(style, {}))


# ---------------------------------------------------------------------------------------------
# Means and ranks


class Running:
    """Running mean and sample standard deviation (Welford). nan values are left out."""

    def __init__(self):
        self.count, self.mean, self._squares = 0, math.nan, 0.0

    def add(self, value: float) -> None:
        """Add a value; nan is ignored."""
        if math.isnan(value):
            return
        self.count += 1
        if self.count == 1:
            self.mean = value
            return
        before = value - self.mean
        # An infinite value (PSNR of equal images) makes the mean infinite.
        self.mean += before / self.count if math.isfinite(before) else value
        self._squares += before * (value - self.mean)

    @property
    def std(self) -> float:
        """Sample standard deviation; nan for fewer than two values."""
        return math.sqrt(self._squares / (self.count - 1)) if self.count > 1 else math.nan


class Runnings(dict[str, Running]):
    """A running mean for each metric: {metric: Running}."""

    def __init__(self, names: Iterable[str]):
        super().__init__((name, Running()) for name in names)

    def add(self, values: Mapping[str, float]) -> None:
        """Add a value for each metric. Further values are ignored."""
        for name, running in self.items():
            running.add(values[name])

    @property
    def means(self) -> dict[str, float]:
        """{metric: mean}, as in `Running.mean`."""
        return {name: running.mean for name, running in self.items()}


@dataclass
class Row:
    """One line of a table: a measured method, or a published one with its values as printed."""
    label: str
    means: dict[str, float]
    images: int | None = None                                       # number of images; None for published rows
    stds: dict[str, float] = field(default_factory=dict)
    printed: dict[str, str] = field(default_factory=dict)           # digits as published
    counts: dict[str, int] = field(default_factory=dict)            # {metric: number of images with a value}
    ranked: dict[str, float] | None = None      # means for RoR; None: use `means`; {}: RoR is not possible


def common_means(scores: dict[str, dict[str, dict[str, float]]],
                 names: Sequence[str]) -> tuple[int, dict[str, dict[str, float]]]:
    """Means over the images that all methods have, so that no method is ranked on easier images.

    Args:
        scores: {method: {image: {metric: value}}}.
        names: the metrics.
    Returns:
        (number of these images, {method: {metric: mean}}). If a metric is nan for one method, the image is left out for
        all methods, for this metric. If no image would remain, all common images are used.
    """
    first = next(iter(scores.values()))
    shared = [image for image in first if all(image in images for images in scores.values())]
    means: dict[str, dict[str, float]] = {method: {} for method in scores}
    for name in names:
        whole = [image for image in shared if not any(math.isnan(images[image][name]) for images in scores.values())]
        for method, images in scores.items():
            running = Running()
            for image in whole or shared:
                running.add(images[image][name])
            means[method][name] = running.mean
    return len(shared), means


def ranks(values: Sequence[float], lower_is_better: bool = False) -> list[int]:
    """Ranks of values: 1 for the best. Equal values share the better rank. nan comes last."""
    keys = [math.inf if math.isnan(v) else v if lower_is_better else -v for v in values]
    return [1 + sum(other < key for other in keys) for key in keys]


def rank_of_ranks(rows: Sequence[dict[str, float]]) -> list[int]:
    """RoR of the paper: rank the methods under each metric, average the ranks, rank the averages. 1 is best.

    Args:
        rows: {metric: mean} of each method, with the same metrics in all.
    """
    totals = [0] * len(rows)
    for name in rows[0]:
        for i, rank in enumerate(ranks([row[name] for row in rows], name in LOWER_IS_BETTER)):
            totals[i] += rank
    return ranks(totals, lower_is_better=True)


def published_rows(table: str, dataset: str | None = None) -> tuple[str, list[Row]]:
    """Read rows of `results/paper_tables.csv`.

    Args:
        table: number of the table, with the data set if the table has several: "1", "4:TNO".
        dataset: a name in `dataset.DATASETS`, another way to choose the data set.
    Returns:
        (name of the data set in the paper, rows).
    Raises:
        ValueError: no such table, or the data set is missing or unknown.
    """
    with open(PAPER_TABLES, newline="", encoding="utf-8") as file:
        lines = list(csv.DictReader(file))
    number, colon, wanted = table.partition(":")
    held = list(dict.fromkeys(line["dataset"] for line in lines if line["table"] == number))
    if not held:
        raise ValueError(f"--paper {table}: no table {number}; {PAPER_TABLES.name} holds "
                         f"{', '.join(dict.fromkeys(line['table'] for line in lines))}")
    own = PAPER_NAMES.get(dataset, dataset) if dataset else None
    if own and own.lower() not in {name.lower() for name in ([wanted] if wanted else held)}:
        raise ValueError(f"--paper {table}: not of --dataset {dataset}")
    wanted = wanted or own or ("" if colon or len(held) > 1 else held[0])
    chosen = [name for name in held if name.lower() == wanted.lower()]
    if not chosen:
        choices = ", ".join(f"{number}:{name}" for name in held)
        raise ValueError(f"--paper {table}: say which data set, one of {choices}")
    rows = []
    for line in lines:
        if line["table"] == number and line["dataset"] == chosen[0]:
            printed = {name: line[name.partition(" ")[0]] for name in PAPER_COLUMNS}
            rows.append(Row(f"{line['method']} (paper)", {k: float(v) for k, v in printed.items()}, printed=printed))
    return chosen[0], rows


# ---------------------------------------------------------------------------------------------
# Tables

SYMBOLS = {     # higher is better, lower is better, plus-minus
    "unicode": (" \u2191", " \u2193", " \u00b1 "),
    "ascii": (" ^", " v", " +- "),
    "latex": (r" $\uparrow$", r" $\downarrow$", r" $\pm$ "),
}
STYLES = {      # best, second best
    "terminal": ("\033[1m{}\033[0m", "\033[4m{}\033[0m"),
    "plain": ("{}", "{}"),
    "markdown": ("**{}**", "<u>{}</u>"),
    "latex": (r"\textbf{{{}}}", r"\underline{{{}}}"),
}


def add_format(options: argparse._ActionsContainer) -> None:
    """Add --format, whose values are styles for `escape` and `aligned`."""
    options.add_argument("--format", choices=("terminal", "markdown", "latex"), default="terminal",
                         help="style of the table (default: terminal)")


def table(rows: Sequence[Row], names: Sequence[str], style: str = "plain", std: bool = False,
          ascii_only: bool = False) -> str:
    """Format a table of means. The best and second best values are marked. RoR is added if there are several rows.

    Only means over the largest number of images are marked. RoR compares the means over common images.

    Args:
        rows: the lines of the table.
        names: the metrics, in the order of the columns.
        style: a key of `STYLES`.
        std: add standard deviations.
        ascii_only: use ^, v and +- in place of arrows and the plus-minus sign.
    """
    up, down, plus_minus = SYMBOLS["latex" if style == "latex" else "ascii" if ascii_only else "unicode"]
    counts = {row.images for row in rows if row.images is not None}
    show_images, show_ror = len(counts) > 1, len(rows) > 1

    cells = [["method"] + [name + (down if name in LOWER_IS_BETTER else up) for name in names]]
    cells[0] += ["images"] * show_images + ["RoR" + down] * show_ror
    for row in rows:
        line = [escape(row.label, style)]
        for name in names:
            small = all(not abs(other.means[name]) >= 0.1 for other in rows)
            text = row.printed.get(name) or f"{row.means[name]:.{3 + small}f}"
            if std and name in row.stds:
                text += f"{plus_minus}{row.stds[name]:.{3 + small}f}"
            line.append(text)
        cells.append(line + ["-" if row.images is None else str(row.images)] * show_images)
    if show_ror:
        for line, rank in zip(cells[1:], _ror(rows, names)):
            line.append(rank)
    marks = _marks(rows, names) if len(rows) > 1 else {}
    return aligned(cells, style, marks={(i + 1, j + 1): STYLES[style][place] for (i, j), place in marks.items()})


def _ror(rows: Sequence[Row], names: Sequence[str]) -> list[str]:
    counted = [row.means if row.ranked is None else row.ranked for row in rows]
    if not all(counted):
        return ["-"] * len(rows)
    return [str(rank) for rank in rank_of_ranks([{name: means[name] for name in names} for means in counted])]


def _marks(rows: Sequence[Row], names: Sequence[str]) -> dict[tuple[int, int], int]:
    """{(row, column): 0 for the best, 1 for the second best}, among the means over the largest number of images."""
    found: dict[tuple[int, int], int] = {}
    for column, name in enumerate(names):
        counts = [row.counts.get(name, row.images) for row in rows]         # None for published rows
        most = max((count for count in counts if count is not None), default=None)
        values = {i: row.means[name] for i, row in enumerate(rows)
                  if counts[i] in (None, most) and not math.isnan(row.means[name])}
        for place, value in enumerate(sorted(set(values.values()), reverse=name not in LOWER_IS_BETTER)[:2]):
            found |= {(i, column): place for i, v in values.items() if v == value}
    return found


def aligned(cells: Sequence[Sequence[str]], style: str = "plain", text_columns: int = 1,
            marks: Mapping[tuple[int, int], str] = MappingProxyType({})) -> str:
    """Format a table with aligned columns; other arguments as for `framed`, whose cells are padded.

    marks: {(line, column): format of the cell, such as "**{}**"}.
    """
    widths = [max(map(len, column)) for column in zip(*cells)]

    def padded(line: int, column: int, text: str) -> str:
        # Marks have no visible width, so padding is computed without them.
        marked, padding = marks.get((line, column), "{}").format(text), " " * (widths[column] - len(text))
        return marked + padding if column < text_columns else padding + marked

    lines = [[padded(i, j, text) for j, text in enumerate(line)] for i, line in enumerate(cells)]
    return framed(lines, widths, style, text_columns)


def framed(cells: Sequence[Sequence[str]], widths: Sequence[int], style: str, text_columns: int = 1) -> str:
    """Format padded cells as a table.

    Args:
        cells: lines of cells; the first line is the header.
        widths: width of each column.
        style: "latex" (booktabs), "markdown", or any other word for a terminal.
        text_columns: number of text columns at the left; the other columns are numbers.
    """
    numbers = len(widths) - text_columns
    if style == "latex":
        head, *body = (" & ".join(line) + r" \\" for line in cells)
        return "\n".join([rf"\begin{{tabular}}{{{'l' * text_columns + 'r' * numbers}}}", r"\toprule", head, r"\midrule",
                          *body, r"\bottomrule", r"\end{tabular}"])
    if style == "markdown":
        head, *body = ("| " + " | ".join(line) + " |" for line in cells)
        return "\n".join([head, "|" + "---|" * text_columns + "---:|" * numbers, *body])
    head, *body = ("  ".join(line).rstrip() for line in cells)
    return "\n".join([head, "  ".join("-" * width for width in widths), *body])
