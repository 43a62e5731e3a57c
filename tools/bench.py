"""Compare time and memory of RPFNet with the authors' released graph.

    python tools/bench.py --device cpu --sizes 480x640 --json FILE      inference
    python tools/bench.py --tasks training                              a training step

rows      released: tools/released.py as its users run it. Ratios are relative to its time in float32
          released, memory kept: freed memory is kept for the next tensor, as in test.py and train.py (CPU on Linux)
          RPFNet, optimize(): BatchNorm folded into the convolutions; with bfloat16 this is `test.py --fast`
          RPFNet, compiled: optimize(bfloat16=True, compiled=True), with --compile. Compilation takes long
          TF32 (CUDA): convolutions of float32 tensors rounded to ten bits, PyTorch's default, also in rows of bfloat16.
          float32 and training do not round, as in train.py
          Training is a step of train.py with recipes/paper.json. RPFNet's rows keep freed memory
          Weights are random, except those of --checkpoint.
          small, tiny, ...: the networks of --checkpoint, optimize()
ms        Median of the timed passes. Spread is their interquartile range. After a warm-up, rows are timed in turns.
peak MB   Memory beyond libraries, weights and inputs: of the process of the row (CPU, Linux), of PyTorch's allocator
          (CUDA).
gflop     Convolutions and matrix products by PyTorch's counter, without FFTs. A multiply-add counts as 2.
"""
from __future__ import annotations

import argparse
import importlib
import json
import os
import re
import signal
import statistics
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import BrokenExecutor, ProcessPoolExecutor, as_completed
from contextlib import suppress
from functools import partial
from multiprocessing import get_context
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode
from tqdm import tqdm

# At position 0, because another folder on the path may have a net.py, too.
sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from inference import MIN_SIZE
from measures.tables import aligned
from net import RPFNet
from recipe import parse
from support.console import INTERRUPTED, Added, complain, end_with_parent, failed, first_line, one_line, positive
from support.console import run as run_command
from support.outputs import check_place, write_atomically
from support.records import command_line, commit, processor
from support.runtime import check_device, default_device, exact_convolutions, keep_freed_memory
from tools.released import ReleasedNet
from trainer import Trainer
from weights import CHECKPOINTS, read_json

OURS = ("RPFNet", *CHECKPOINTS)                 # models that are networks of net.py
KEPT, COMPILED = "memory kept", "compiled"      # values of Case.variant
COLUMNS = "task size batch model variant precision median_ms spread_ms repeats peak_mb gflop ratio".split()


class Case(NamedTuple):
    """Model, variant, precision, task and input size of one row."""
    model: str          # "released", "RPFNet", name of a checkpoint or path of a peer's file
    variant: str        # "", "optimize()", KEPT or COMPILED
    precision: str      # "float32", "TF32" or "bfloat16"
    task: str           # "inference" or "training"
    size: str           # such as "480x640"
    batch: int


def prepare(case: Case, device: str) -> Callable[[Tensor, Tensor], object]:
    """The function to time: a step of train.py, or a network in inference mode. Arguments: ir, vis_y, (B, 1, H, W)."""
    half = case.precision == "bfloat16"
    layout = torch.channels_last if half else torch.contiguous_format
    if case.precision == "float32" or case.task == "training":      # as in train.py; test.py keeps PyTorch's default
        exact_convolutions()
    if case.task == "training":
        options = ["--device", device, "--batch", str(case.batch), "--amp" if half else "--no-amp", "--out", os.devnull]
        trainer = Trainer(parse(options))
        trainer.bfloat16 = half         # also where train.py would not use it, because it is slower
        if case.model == "released":
            trainer.model = ReleasedNet().to(device, memory_format=layout)
            trainer.optimisers[0] = torch.optim.Adam(trainer.model.parameters(), trainer.args.lr)
        return trainer.train_step
    build = {"released": ReleasedNet, "RPFNet": RPFNet}.get(case.model) or (
        partial(RPFNet.from_pretrained, case.model) if case.model in CHECKPOINTS else load_peer(case.model))
    network = build().to(device, memory_format=layout).eval()
    if case.model in OURS:
        network.optimize(half, compiled=case.variant == COMPILED)
    return torch.inference_mode()(torch.autocast(device, torch.bfloat16, enabled=half)(network.__call__))


def load_peer(path: str) -> Callable[[], nn.Module]:
    """The function `build` of a Python file. The file can import from its own folder, also a net.py of its own."""
    ours = {entry.stem for entry in Path(__file__).resolve().parent.parent.iterdir()}
    for name in [name for name in sys.modules if name.partition(".")[0] in {*ours, Path(path).stem}]:
        del sys.modules[name]
    sys.path.insert(0, str(Path(path).resolve().parent))
    return importlib.import_module(Path(path).stem).build


def passes(case: Case, device: str, threads: int) -> Iterator[dict]:
    """Yield the GFLOP of a row after its warm-up, then milliseconds and peak memory of one more pass each time."""
    torch.set_num_threads(threads)
    if case.model in OURS or case.variant == KEPT:
        keep_freed_memory()
    torch.manual_seed(0)
    inputs = [torch.rand(case.batch, 1, *map(int, case.size.split("x"))).to(device) for _ in range(2)]
    run = prepare(case, device)

    def once() -> None:
        run(*inputs)
        if device == "cuda":
            torch.cuda.synchronize()

    with torch.compiler.set_stance("force_eager"):      # the counter does not see operators in compiled code
        run(*(x[:1, :, :32, :32] for x in inputs))      # loads libraries
        idle = None if case.variant == COMPILED else peak_memory(device)    # compilers and CUDA graphs add their own
        with FlopCounterMode(display=False) as counter:
            once()
    for _ in range(3 if device == "cuda" else case.variant == COMPILED):    # a GPU raises its clock
        once()
    yield {"gflop": round(counter.get_total_flops() / 1e9, 3)}
    while True:
        if device == "cuda":
            once()      # memory that was given back is allocated again
        start = time.perf_counter()
        once()
        timed = {"ms": 1000 * (time.perf_counter() - start), "peak_mb": idle and round(peak_memory(device) - idle, 1)}
        if device == "cuda":
            torch.cuda.empty_cache()        # for the other rows, whose processes share the GPU
        yield timed


def peak_memory(device: str) -> float | None:
    """Peak memory so far, MB: of PyTorch's allocator on CUDA, else resident memory. None on systems except Linux."""
    if device == "cuda":
        return torch.cuda.max_memory_allocated() / 1e6
    if sys.platform != "linux":
        return None
    (kilobytes,) = re.findall(r"VmHWM:\s*(\d+) kB", Path("/proc/self/status").read_text())
    return int(kilobytes) * 1024 / 1e6


def serve(*row: object) -> None:
    """Initialise the process of a row. It ends when its parent ends, also if the parent is killed."""
    end_with_parent()
    global results
    signal.signal(signal.SIGINT, signal.SIG_IGN)        # the parent handles Ctrl-C
    results = passes(*row)


def answer() -> dict:
    """In the process of a row: its next result. All errors become RuntimeError, because others may not be picklable."""
    try:
        return next(results)
    except (Exception, SystemExit) as error:    # noqa: BLE001  out of memory, errors of a compiler or of a peer
        raise RuntimeError(f"{type(error).__name__}: {first_line(error)}") from None


def measure(cases: Sequence[Case], device: str, threads: int, repeats: int) -> tuple[list[dict], dict[str, str]]:
    """Measure the rows of one task and size, the baseline first. Returns the rows, and {row: error} of failed rows."""
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")     # spinning threads would slow down the next row
    pools = {case: ProcessPoolExecutor(1, get_context("spawn"), serve, (case, device, threads)) for case in cases}
    answers, errors = {case: [] for case in cases}, {}
    processes: list[int] = []
    try:
        starts = [pool.submit(os.getpid) for pool in pools.values()]
        for start in tqdm(as_completed(starts), total=len(starts), desc="starting processes", unit="row"):
            if not start.exception():       # all processes have started before anything is timed
                processes.append(start.result())
        for case in tqdm(list(cases) * (1 + repeats), desc=f"{cases[0].task} {cases[0].size}", unit="pass"):     # in turns
            if case not in errors:
                try:
                    answers[case].append(pools[case].submit(answer).result())
                except BrokenExecutor:
                    errors[case] = "its process was ended, most likely for lack of memory"
                except RuntimeError as error:
                    errors[case] = str(error)
    except KeyboardInterrupt:
        for process in processes:       # Python waits for its processes at its end, and a pass can be long
            with suppress(ProcessLookupError):
                os.kill(process, signal.SIGTERM)
        raise
    finally:
        for pool in pools.values():
            pool.shutdown(wait=False)
    rows = [row(case, *answers[case]) for case in cases if case not in errors]
    for r in rows:
        r["ratio"] = None if cases[0] in errors else round(r["median_ms"] / rows[0]["median_ms"], 3)
    return rows, {" ".join(filter(None, map(str, case))): error for case, error in errors.items()}


def five_digits(value: float) -> float:
    """Rounded to five digits: on a GPU, a pass can take less than a millisecond."""
    return float(f"{value:.5g}")


def row(case: Case, known: dict, *timed: dict) -> dict:
    """A row of the JSON file, without the ratio."""
    times = [one["ms"] for one in timed]
    low, _, high = statistics.quantiles(times, n=4, method="inclusive") if len(times) > 1 else times * 3
    return case._asdict() | {"median_ms": five_digits(statistics.median(times)), "spread_ms": five_digits(high - low),
                             "repeats": len(times), "peak_mb": timed[0]["peak_mb"]} | known


def build_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter,
                                     usage="python tools/bench.py [options]")
    add, best = parser.add_argument, default_device()
    add("--device", choices=("cpu", "cuda"), default=best, help="device (default: cuda if available)")
    add("--tasks", nargs="+", action=Added, choices=("inference", "training"), default=["inference"], help="(default: inference)")
    add("--sizes", type=size, nargs="+", action=Added, default=["480x640"], metavar="HxW",
        help="for inference (default: 480x640)")
    add("--batch", type=positive, default=1, help="batch size for inference (default: 1)")
    add("--compile", action="store_true", help="for inference: also measure the compiled RPFNet")
    add("--checkpoint", action="append", default=[], choices=CHECKPOINTS, help="for inference: also time these "
        "shipped weights; can be repeated")
    add("--peer", action="append", default=[], metavar="FILE", help="for inference: also measure another network, "
        "in float32: a Python file whose build() returns a module, which is called as network(ir, vis_y); can be repeated")
    add("--repeats", type=positive, help="timed passes of each row (default: 2 on a CPU, 30 on a GPU)")
    add("--threads", type=positive, default=torch.get_num_threads(), help="CPU threads (default: "
        "those of PyTorch, here %(default)s)")
    add("--json", type=Path, metavar="FILE", help="also write rows and machine to this file, which is replaced")
    add("--print", type=Path, metavar="FILE", help="measure nothing; print the table of a file written by --json")
    return parser


def size(text: str) -> str:
    """Type of an option for argparse: HEIGHTxWIDTH."""
    if not re.fullmatch(r"\d{1,5}x\d{1,5}", text) or min(map(int, text.split("x"))) < MIN_SIZE:
        raise argparse.ArgumentTypeError(f"{text!r}: expected HEIGHTxWIDTH, each at least {MIN_SIZE}, such as 480x640")
    return "x".join(str(int(side)) for side in text.split("x"))


def plan(args: argparse.Namespace) -> list[list[Case]]:
    """The rows of each task and size, the baseline first."""
    kept = [("released", KEPT, "float32")] if args.device == "cpu" and sys.platform == "linux" else []
    both = [("released", "", "float32"), *kept, ("released", "", "bfloat16")]
    rounded = [("released", "", "TF32"), ("RPFNet", "optimize()", "TF32")] if args.device == "cuda" else []
    fast = [*rounded, ("RPFNet", "optimize()", "float32"), ("RPFNet", "optimize()", "bfloat16")]
    fast += [("RPFNet", COMPILED, "bfloat16")] * args.compile
    fast += [(name, "optimize()", precision) for name in dict.fromkeys(args.checkpoint) for precision in ("float32", "bfloat16")]
    fast += [(peer, "", "float32") for peer in dict.fromkeys(args.peer)]
    step = [*both, ("RPFNet", "", "float32"), ("RPFNet", "", "bfloat16")]
    groups = {"inference": [[Case(*row, "inference", hw, args.batch) for row in both + fast] for hw in args.sizes],
              "training": [[Case(*row, "training", "128x128", 16) for row in step]]}
    return [cases for task in args.tasks for cases in groups[task]]


def check_options(args: argparse.Namespace) -> None:
    """Raises ValueError or OSError for wrong options, before any work is done."""
    default = build_parser().get_default
    given = [name for name, value in vars(args).items() if value != default(name) and name not in ("device", "print")]
    if given and args.print:
        raise ValueError(f"--{given[0]} has no effect with --print")
    unfit = [name for name in given if name in ("sizes", "batch", "compile", "checkpoint", "peer")]
    if unfit and "inference" not in args.tasks:
        raise ValueError(f"--{unfit[0]} goes with --tasks inference")
    for peer in args.peer:
        os.stat(peer)
    if args.json:
        check_place("--json", args.json)
    check_device(args.device)


def empty_report(args: argparse.Namespace, command: str) -> dict:
    """A report without rows: the machine, and how it is used."""
    return {"rows": [], "failed": {}, "machine": {
        "device": torch.cuda.get_device_name() if args.device == "cuda" else processor(),
        "threads": args.threads, "load average": round(os.getloadavg()[0], 2) if hasattr(os, "getloadavg") else "unknown",
        "torch": torch.__version__, "date": time.strftime("%Y-%m-%d"), "commit": commit(),
        "command": command}}


def run(args: argparse.Namespace, report: dict) -> None:
    """Measure all rows, and write the report after each task and size. Raises OSError."""
    for cases in plan(args):
        rows, errors = measure(cases, args.device, args.threads, args.repeats or (30 if args.device == "cuda" else 2))
        report["rows"] += rows
        report["failed"] |= errors
        if args.json:
            write_atomically(args.json, (json.dumps(report, indent=1) + "\n").encode())


def markdown(report: dict) -> str:
    """Markdown table of a run, followed by the machine and the failed rows."""
    lines = [[key.replace("_", " ") for key in COLUMNS]]
    lines += [["-" if r[key] is None else str(r[key]) for key in COLUMNS] for r in report["rows"]]
    about = [f"- {key}: {value}" for key, value in (report["machine"] | report["failed"]).items()]
    return "\n".join([aligned(lines, "markdown", COLUMNS.index("median_ms")), "", *about])


def main(argv: Sequence[str] | None = None) -> int:
    args = build_parser().parse_args(argv)
    try:
        check_options(args)
    except (ValueError, OSError) as error:
        return failed("bench.py", one_line(error))
    if args.print:
        return print_again(args.print)
    report = empty_report(args, command_line("tools/bench.py", argv))
    try:
        run(args, report)
    except OSError as error:
        return failed("bench.py", error)
    except KeyboardInterrupt:
        complain("bench.py: interrupted; the table has the tasks and sizes that were finished")
        return INTERRUPTED
    finally:
        if report["rows"] or report["failed"]:      # also after Ctrl-C or a full disk
            print(markdown(report))
    return 1 if report["failed"] else 0


def print_again(path: Path) -> int:
    """Print the table of a file of --json. Returns the exit code."""
    try:
        report = read_json(path)
        table = markdown(report)
    except OSError as error:
        return failed("bench.py", error)
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        return failed(f"bench.py: --print {path}: not a file of --json", error)
    print(table)
    return 1 if report["failed"] else 0


if __name__ == "__main__":
    sys.exit(run_command(main))
