"""Speed and memory of RPFNet beside the authors' released graph, in one run.

    python bench.py                                             480 x 640 and a training step, within 50 s on a CPU
    python bench.py --sizes 768x1024 2048x2048 --seconds 900    larger images need more time
    python bench.py --sizes 128x128 --batch 16 --device cuda --json bench.json

How it measures:
- Rows of one size take turns, pass by pass, after warm-up, so that a disturbance hits all alike. Time is
  the median, spread the interquartile range (0 of one pass), ratio the time over that of the released
  graph in float32. On a CPU, where a pass takes seconds, large ones warm up on an eighth of the input, and
  the first pass, which fetches memory from the system, counts only where time allowed no other.
- float32 is the plain network, in which PyTorch lets GPUs' convolutions use TF32; bfloat16 is autocast with
  channels_last (the FFT stays in float32).
- FLOPs are those of PyTorch's counter (convolutions; a multiplication and an addition are 2), and of the
  FFTs by convention: 2.5 N log2 N for a real one of N points, 5 N log2 N for a complex one.
- Peak memory on a CPU: each row runs in a process of its own, and counts by how much its resident set
  grew at most over the idle state (libraries, weights and inputs loaded), up to the end of the first
  timed pass. On CUDA: the peak that PyTorch's allocator gave out (max_memory_allocated), weights and
  inputs included.
- RPFNet's rows keep freed memory, as test.py and train.py do (net.keep_freed_memory). The released graph runs
  as its users run it, and once more with freed memory kept, which tells how much of the ratio that makes.
- A training step is train.py's own: forward, all losses, backward, clipping, two Adam steps. The released
  graph gets the same losses and auxiliary decoder.
- The released graph leaves out the attention of the authors' file, whose result is dropped: it would only
  be slower with it.
"""
from __future__ import annotations

import os
import time

START = time.monotonic()        # --seconds counts from here: importing PyTorch takes some of them
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")     # threads that spin while another row runs would ruin its time

import multiprocessing

# A server that has everything loaded and no threads yet: what it forks starts at once. It loads while this process does.
START_METHOD = "forkserver" if "forkserver" in multiprocessing.get_all_start_methods() else "spawn"
if START_METHOD == "forkserver":
    from multiprocessing import forkserver
    forkserver.set_forkserver_preload(["torch", "kornia", "cv2", "train", "released"])
    if __name__ == "__main__":
        forkserver.ensure_running()

import argparse
import functools
import importlib
import json
import math
import platform
import re
import statistics
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from multiprocessing.connection import Connection
from pathlib import Path
from typing import NamedTuple

import torch
from released import ReleasedNet
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils.flop_counter import FlopCounterMode

import train
from dataset import positive
from net import CHECKPOINT, MIN_SIZE, RPFNet, first_line, keep_freed_memory

KEPT = "memory kept"                        # the released graph with net.keep_freed_memory
COMPILED = "compiled"                       # optimize(compiled=True)
FAST = ("optimize()", COMPILED)             # RPFNet's own fast paths
TINY = 32                                   # side of the image that loads libraries before memory is counted
LARGE = 2 ** 17                             # pixels a pass; above, a CPU warms up on a part
GRACE = 2                                   # seconds that a last pass may take beyond --seconds
WARM_UP_COST = 1.25                         # of a first timed pass with its warm-up, in passes
SECONDS = {"cpu": 46, "cuda": 240}          # for each size
REPEATS = {"cpu": 5, "cuda": 30}
CUDA_WARM_UP = 3                            # passes; a GPU picks kernels and raises its clock


class BenchError(Exception):
    """The benchmark cannot be run as asked; one line."""


class Case(NamedTuple):
    """One row of the table."""
    model: str          # "rpfnet", "released" or a peer's module:function
    variant: str        # "plain", one of FAST, or KEPT
    task: str           # "inference" or "training"
    height: int
    width: int
    batch: int
    precision: str      # "float32" or "bfloat16"

    @property
    def size(self) -> str:
        return f"{self.height}x{self.width}"

    def __str__(self) -> str:
        variant = "" if self.variant == "plain" else f" {self.variant}"
        return f"{self.model}{variant} {self.precision} {self.task} {self.size}"


# ---------------------------------------------------------------------------------------------
# What is run

Run = Callable[[Tensor, Tensor], object]        # (ir, vis_y), each (B, 1, H, W)


def build_network(name: str) -> nn.Module:
    """The network of a row, on the CPU. Speed does not depend on the weights; random ones will do."""
    torch.manual_seed(0)
    if name == "released":
        return ReleasedNet()
    if name == "rpfnet":
        return RPFNet.from_pretrained() if CHECKPOINT.is_file() else RPFNet()
    module, _, function = name.partition(":")
    return getattr(importlib.import_module(module), function)()


def inference(case: Case, device: str) -> Run:
    """A pass of the network in inference mode."""
    model = build_network(case.model).to(device).eval()
    fast = case.variant in FAST
    if fast:
        model.optimize(case.variant == COMPILED)
    elif case.precision == "bfloat16":
        model = model.to(memory_format=torch.channels_last)
    autocast = not fast and case.precision == "bfloat16"

    @torch.inference_mode()
    def run(ir: Tensor, vis_y: Tensor) -> None:
        with torch.autocast(device, torch.bfloat16, enabled=autocast):
            model(ir, vis_y)
    return run


def training(case: Case, device: str) -> Run:
    """A step of train.py; for the released graph with its network in the place of RPFNet."""
    options = ["--device", device, "--batch", str(case.batch), "--crop", str(case.height)]
    if case.precision == "bfloat16":
        options += ["--amp", "--channels-last"]
    args = train.build_parser().parse_args(options)
    trainer = train.Trainer(args)
    if case.model == "released":
        layout = torch.channels_last if args.channels_last else torch.contiguous_format
        trainer.model = ReleasedNet().to(device, memory_format=layout)
        trainer.optimisers[0] = torch.optim.Adam(trainer.model.parameters(), args.lr)
    return trainer.train_step


def images(case: Case, device: str) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    shape = case.batch, 1, case.height, case.width
    ir, vis_y = (torch.rand(shape, generator=generator).to(device) for _ in range(2))
    return ir, vis_y


def prepare(case: Case, device: str) -> tuple[Run, tuple[Tensor, Tensor]]:
    """The job and its inputs."""
    return (inference if case.task == "inference" else training)(case, device), images(case, device)


# ---------------------------------------------------------------------------------------------
# Workers: one row each, run a pass when told to


class CpuWorker:
    """A row in a process of its own, so that its peak memory is its own. Two of them never run at once.

    Raises TimeoutError, here and in run(), when it is not done at `end` (time.monotonic()).
    """

    def __init__(self, case: Case, threads: int, end: float = math.inf):
        context = multiprocessing.get_context(START_METHOD)
        self.case, self.end, self.times, self.peak = case, end, [], None
        self.connection, other = context.Pipe()
        self.process = context.Process(target=_serve, args=(other, case, threads), daemon=True)
        self.process.start()
        other.close()
        self._receive()

    def run(self) -> None:
        """One timed pass."""
        self.connection.send(True)
        seconds, peak = self._receive()
        self.times.append(seconds)
        # After the first pass: later ones grow the heap by fragments, which would depend on their number.
        self.peak = self.peak or peak

    def close(self) -> None:
        self.process.kill()
        self.process.join()

    def _receive(self) -> tuple[float, float | None] | None:
        try:
            if not self.connection.poll(None if math.isinf(self.end) else max(self.end - time.monotonic(), 0)):
                self.close()
                raise TimeoutError
            error, value = self.connection.recv()
        except EOFError:
            raise BenchError("its process was ended, most likely for want of memory") from None
        if error:
            raise BenchError(error)
        return value


def _serve(connection: Connection, case: Case, threads: int) -> None:
    try:
        torch.set_num_threads(threads)
        if case.model == "rpfnet" or case.variant == KEPT:
            keep_freed_memory()
        run, inputs = prepare(case, "cpu")
        run(*(x[:1, :, :TINY, :TINY] for x in inputs))
        idle = peak_resident()
        # What is compiled is so for one shape.
        run(*(x if case.variant in FAST else part(x) for x in inputs))
        connection.send((None, None))
        while True:
            connection.recv()
            start = time.perf_counter()
            run(*inputs)
            seconds = time.perf_counter() - start
            connection.send((None, (seconds, idle and peak_resident() - idle)))
    except Exception as error:      # noqa: BLE001  whatever it is, the parent reports it
        connection.send((named(error), None))


def named(error: Exception) -> str:
    return f"{type(error).__name__}: {first_line(error)}"


@contextmanager
def _as_bench_error() -> Iterator[None]:
    try:
        yield
    except Exception as error:      # noqa: BLE001  out of memory, a compiler's, a peer's
        raise BenchError(named(error)) from None


def part(x: Tensor) -> Tensor:
    """What warms up for x: an eighth of a large batch, of its images or of their rows."""
    if x.numel() <= LARGE:
        return x
    return x[:len(x) // 8] if len(x) >= 8 else x[:, :, :max(x.shape[2] // 8, MIN_SIZE)]


def peak_resident() -> float | None:
    """Largest resident set of this process so far, in MB; None where the system does not tell (Windows)."""
    try:
        import resource
    except ImportError:
        return None
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 1e6


class CudaWorker:
    """A row on the GPU, in this process; every pass is synchronised. Any error is a BenchError."""

    def __init__(self, case: Case, device: str):
        self.case, self.times, self.device = case, [], device
        before = torch.cuda.memory_allocated()
        with _as_bench_error():
            self.job, self.inputs = prepare(case, device)
            for _ in range(CUDA_WARM_UP):
                self.job(*self.inputs)
            torch.cuda.reset_peak_memory_stats()
            self.job(*self.inputs)
        # Without the rows beside it. What is compiled replays a CUDA graph, whose memory is not allocated anew.
        self.peak = None if case.variant == COMPILED else (torch.cuda.max_memory_allocated() - before) / 1e6

    def run(self) -> None:
        with _as_bench_error():
            torch.cuda.synchronize()
            start = time.perf_counter()
            self.job(*self.inputs)
            torch.cuda.synchronize()
        self.times.append(time.perf_counter() - start)

    def close(self) -> None:
        del self.job, self.inputs


# ---------------------------------------------------------------------------------------------
# FLOPs


def real_fft_flops(points: int) -> float:
    return 2.5 * points * math.log2(points)


def _fft(shape: Sequence[int], dims: Sequence[int], points: int, factor: float) -> int:
    """FLOPs of all transforms over `dims` of a tensor of `shape`, of `points` points each."""
    transforms = math.prod(shape) / math.prod(shape[dim] for dim in dims)
    return round(factor * transforms * real_fft_flops(points))


def _rfft(shape: Sequence[int], dims: Sequence[int], *_: object, **__: object) -> int:
    return _fft(shape, dims, math.prod(shape[dim] for dim in dims), 1)


def _irfft(shape: Sequence[int], dims: Sequence[int], *_: object, out_shape: Sequence[int], **__: object) -> int:
    return _fft(out_shape, dims, math.prod(out_shape[dim] for dim in dims), 1)


def _complex_fft(shape: Sequence[int], dims: Sequence[int], *_: object, **__: object) -> int:
    return _fft(shape, dims, math.prod(shape[dim] for dim in dims), 2)


FFTS = {torch.ops.aten._fft_r2c: _rfft, torch.ops.aten._fft_c2r: _irfft, torch.ops.aten._fft_c2c: _complex_fft}


@functools.cache
def count_flops(model: str, task: str, batch: int, height: int, width: int) -> tuple[int, int]:
    """FLOPs of one pass of the network: of convolutions and products, and of FFTs. Training: without the losses."""
    network = build_network(model).train(task == "training")    # in eval mode RPFNet adds a border

    def count(mode: AbstractContextManager) -> dict:
        with mode, FlopCounterMode(display=False, custom_mapping=FFTS) as counter:
            x = torch.zeros(batch, 1, height, width)
            fused = network(x, x)
            if task == "training":
                fused.sum().backward()
        return counter.get_flop_counts().get("Global", {})

    try:
        counts = count(FakeTensorMode(allow_non_fake_inputs=True))      # shapes without values: nothing is computed
    except Exception:       # noqa: BLE001  a peer may look at values; then it takes a real pass
        counts = count(nullcontext())
    ffts = sum(value for operator, value in counts.items() if operator in FFTS)
    return sum(counts.values()) - ffts, ffts


def flops(case: Case) -> tuple[int, int]:
    return count_flops(case.model, case.task, case.batch, case.height, case.width)


# ---------------------------------------------------------------------------------------------
# Time budget


class Budget:
    """Which rows fit in the time: predicts a pass from its FLOPs and the rates seen so far."""

    def __init__(self, seconds: float, device: str):
        self.end = START + seconds
        self.seen: dict[tuple, float] = {}      # seconds per FLOP of (model, variant, precision)
        self._calibrate(device)

    def left(self) -> float:
        return self.end - time.monotonic()

    def predict(self, case: Case) -> float:
        """Seconds of one pass, at the slowest rate seen of this network in this precision, or else of any."""
        alike = [rate for (model, _, precision), rate in self.seen.items() if (model, precision) == (case.model, case.precision)]
        return sum(flops(case)) * max(alike or self.seen.values())

    def needed(self, case: Case) -> float:
        """Seconds until a row has its first pass: start, warm-up, pass."""
        return 1 + WARM_UP_COST * self.predict(case)

    def learn(self, case: Case, seconds: float) -> None:
        self.seen[case.model, case.variant, case.precision] = seconds / max(sum(flops(case)), 1)

    def _calibrate(self, device: str) -> None:
        case = Case("released", "plain", "inference", 128, 128, 1, "float32")
        run, inputs = prepare(case, device)
        for _ in range(2):
            start = time.perf_counter()
            run(*inputs)
            if device != "cpu":
                torch.cuda.synchronize()
            seconds = time.perf_counter() - start
        self.learn(case, seconds)


def measure(cases: list[Case], repeats: int, budget: Budget, share: float, start: Callable,
            later: Sequence[Case] = ()) -> tuple[list[dict], list[str]]:
    """Rows of one task and size, and those left out.

    Args:
        cases: the baseline first, then the most important one.
        share: the part of the time left that these rows may use.
        start: makes a worker of a case.
        later: rows of other tasks and sizes for which time is kept back, as the rates seen so far predict it.
    """
    end = time.monotonic() + share * budget.left()

    def for_the_others() -> float:
        return min(end - time.monotonic(), budget.left() - sum(map(budget.needed, later)))

    workers, left_out = [], []
    for index, case in enumerate(cases):
        if index and not workers:
            left_out.append(f"{case} (no ratio without the first)")
            continue
        needed = budget.needed(case)
        # The first two make the ratio that matters, and may take the others' share.
        if needed > (budget.left() if index < 2 else for_the_others()):
            left_out.append(f"{case} (about {needed:.0f} s; --seconds)")
            continue
        try:
            worker = start(case)
            worker.run()
        except TimeoutError:        # the prediction was wrong, as beside another job
            left_out.append(f"{case} (stopped; --seconds)")
            continue
        except BenchError as error:     # no reason to lose the other rows
            left_out.append(f"{case} ({first_line(error)})")
            continue
        budget.learn(case, worker.times[0])
        workers.append(worker)
    repeat(workers, repeats, time.monotonic() + for_the_others())
    return [row(worker) for worker in workers], left_out


def repeat(workers: list, repeats: int, end: float) -> None:
    """Whole rounds of all workers, as many as are wanted beside their first pass, and fit."""
    for _ in range(repeats):
        if time.monotonic() + sum(worker.times[-1] for worker in workers) > end:
            return
        for worker in workers:
            try:
                worker.run()
            except (TimeoutError, BenchError):      # its earlier passes count
                return


def row(worker: CpuWorker | CudaWorker) -> dict:
    """The worker's result, and its end."""
    case, times = worker.case, [1000 * seconds for seconds in worker.times[1:] or worker.times]
    worker.close()
    quartiles = statistics.quantiles(times, n=4, method="inclusive") if len(times) > 1 else (times[0],) * 3
    matrix, ffts = flops(case)
    return {"model": case.model, "variant": case.variant, "task": case.task, "size": case.size, "batch": case.batch,
            "precision": case.precision, "median_ms": round(statistics.median(times), 3),
            "spread_ms": round(quartiles[2] - quartiles[0], 3), "repeats": len(times),
            "peak_mb": worker.peak and round(worker.peak, 1), "gflop": round(matrix / 1e9, 3),
            "gflop_fft": round(ffts / 1e9, 3), "parameters": parameters(case.model)}


@functools.cache
def parameters(model: str) -> int:
    return sum(p.numel() for p in build_network(model).parameters())


def add_ratios(rows: list[dict]) -> None:
    """Time over that of the released graph in float32 at the same task and size."""
    base = {(r["task"], r["size"]): r["median_ms"] for r in rows
            if (r["model"], r["variant"], r["precision"]) == ("released", "plain", "float32")}
    for r in rows:
        r["ratio"] = round(r["median_ms"] / base[r["task"], r["size"]], 3)


# ---------------------------------------------------------------------------------------------
# Command line


def build_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cuda" if torch.cuda.is_available() else "cpu",
                        help="default: cuda where there is one")
    parser.add_argument("--sizes", type=parse_size, nargs="+", default=[(480, 640)], metavar="HxW",
                        help="images of the inference rows (default: 480x640)")
    parser.add_argument("--batch", type=positive, default=1, help="images a pass of the inference rows (default: 1)")
    parser.add_argument("--precision", nargs="+", choices=("float32", "bfloat16"), default=["float32", "bfloat16"],
                        help="default: both; the released graph in float32 is always run")
    parser.add_argument("--tasks", nargs="+", choices=("inference", "training"), default=["inference", "training"],
                        help="default: both")
    parser.add_argument("--train-batch", type=positive, default=16, help="crops a training step (default: 16)")
    parser.add_argument("--train-crop", type=parse_crop, default=128, help="side of a crop, pixels (default: 128)")
    parser.add_argument("--compile", action="store_true", help="also a row of RPFNet.optimize(compiled=True); it takes "
                        "a minute or more to compile: set --seconds")
    parser.add_argument("--peer", action="append", default=[], metavar="MODULE:FUNCTION", help="another network "
                        "to time: a function without arguments that returns a module with forward(ir, vis_y)")
    parser.add_argument("--repeats", type=positive, help=f"timed passes a row (default: {REPEATS['cpu']} on a CPU, "
                        f"{REPEATS['cuda']} on a GPU), fewer where time runs out")
    parser.add_argument("--seconds", type=positive, help=f"time for everything (default: {SECONDS['cpu']} for "
                        f"each size on a CPU, {SECONDS['cuda']} on a GPU); rows that would not fit are left out, and named")
    parser.add_argument("--threads", type=positive, default=torch.get_num_threads(),
                        help="CPU threads (default: all cores)")
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write the rows here")
    return parser


def parse_size(text: str) -> tuple[int, int]:
    match = re.fullmatch(r"(\d{1,5})x(\d{1,5})", text)
    if not match or min(map(int, match.groups())) < MIN_SIZE:
        raise argparse.ArgumentTypeError(f"{text!r}: expected HEIGHTxWIDTH, each at least {MIN_SIZE}, such as 480x640")
    return int(match[1]), int(match[2])


def parse_crop(text: str) -> int:
    return parse_size(f"{text}x{text}")[0]


def groups(args: argparse.Namespace) -> list[list[Case]]:
    """Rows by task and size, the baseline first, then what matters most should time run out."""
    baseline, plain = ("released", "plain", "float32"), [("rpfnet", "plain", "bfloat16"), ("rpfnet", "plain", "float32")]
    released = ("released", "plain", "bfloat16")
    kept = [("released", KEPT, "float32")] if args.device == "cpu" and sys.platform == "linux" else []
    fast = [("rpfnet", "optimize()", "bfloat16")] + [("rpfnet", COMPILED, "bfloat16")] * args.compile
    peers = [(peer, "plain", precision) for peer in args.peer for precision in args.precision]
    plans = []
    if "inference" in args.tasks:
        plans += [("inference", height, width, args.batch, [*fast, *plain, released, *peers]) for height, width in args.sizes]
    if "training" in args.tasks:
        plans += [("training", args.train_crop, args.train_crop, args.train_batch, [*plain, released])]
    cases = []
    for task, height, width, batch, order in plans:
        order = [row for row in order if row[2] in args.precision]
        cases.append([Case(model, variant, task, height, width, batch, precision)
                      for model, variant, precision in (baseline, *order[:1], *kept, *order[1:])])
    return cases


def check(args: argparse.Namespace) -> None:
    """Raises BenchError for what cannot work, before any time is spent."""
    if args.device == "cuda" and not torch.cuda.is_available():
        raise BenchError("--device cuda: PyTorch finds no CUDA device here; use --device cpu")
    if args.json and not args.json.absolute().parent.is_dir():
        raise BenchError(f"--json {args.json}: there is no such folder")
    for peer in args.peer:
        try:
            build_network(peer)
        except Exception as error:      # noqa: BLE001  it is the user's code
            raise BenchError(f"--peer {peer}: {named(error)}; expected MODULE:FUNCTION that Python can import, "
                             "PYTHONPATH included, and call without arguments") from None


def describe_machine(args: argparse.Namespace) -> dict:
    """What the numbers depend on."""
    name = torch.cuda.get_device_name() if args.device == "cuda" else cpu_name()
    load = round(os.getloadavg()[0], 2) if hasattr(os, "getloadavg") else None
    return {"device": name, "threads": args.threads, "torch": torch.__version__, "load_average": load,
            "date": time.strftime("%Y-%m-%d")}


def cpu_name() -> str:
    try:
        return re.search(r"model name\s*: (.*)", Path("/proc/cpuinfo").read_text())[1]
    except (OSError, TypeError):
        return platform.processor() or platform.machine()


COLUMNS = {"model": "model", "task": "task", "size": "size", "batch": "batch", "precision": "precision",
           "median_ms": "ms", "spread_ms": "spread", "repeats": "passes", "peak_mb": "peak MB", "gflop": "GFLOP",
           "gflop_fft": "+ FFT", "ratio": "ratio"}


def table(rows: list[dict]) -> str:
    lines = [list(COLUMNS.values())]
    for r in rows:
        name = r["model"] if r["variant"] == "plain" else f"{r['model']} {r['variant']}"
        lines.append([cell((r | {"model": name})[key]) for key in COLUMNS])
    widths = [max(map(len, column)) for column in zip(*lines)]
    return "\n".join("  ".join(text.ljust(w) if i in (0, 1, 4) else text.rjust(w)
                               for i, (text, w) in enumerate(zip(line, widths))) for line in lines)


def cell(value: object) -> str:
    if value is None:
        return "-"
    if isinstance(value, float):
        return f"{value:.1f}" if value >= 10 else f"{value:.3g}"
    return str(value)


def run(args: argparse.Namespace) -> None:
    check(args)
    torch.set_num_threads(args.threads)
    machine = describe_machine(args)
    print(", ".join(f"{key.replace('_', ' ')} {value}" for key, value in machine.items()), flush=True)
    budget = Budget(args.seconds or SECONDS[args.device] * len(args.sizes), args.device)
    start = functools.partial(CudaWorker, device=args.device)
    if args.device == "cpu":
        start = functools.partial(CpuWorker, threads=args.threads, end=budget.end + GRACE)
    rows, left_out, plans = [], [], groups(args)
    for index, cases in enumerate(plans):
        later = [case for group in plans[index + 1:] for case in group[:2]]
        done, missing = measure(cases, args.repeats or REPEATS[args.device], budget, 1 / (len(plans) - index), start, later)
        rows += done
        left_out += missing
    if not rows:
        raise BenchError(f"no row: {'; '.join(left_out)}")
    add_ratios(rows)
    for r in rows:
        r["device"] = args.device
    print(table(rows))
    models = dict.fromkeys(r["model"] for r in rows)
    print("parameters: " + ", ".join(f"{name} {parameters(name):,}" for name in models))
    if left_out:
        print("left out: " + "; ".join(left_out))
    if args.json:
        args.json.write_text(json.dumps({"rows": rows, "machine": machine, "left_out": left_out}, indent=1) + "\n")


def main(argv: Sequence[str] | None = None) -> int:
    try:
        run(build_parser().parse_args(argv))
    except (BenchError, OSError) as error:
        print(f"bench.py: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
