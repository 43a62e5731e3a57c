"""Fuse image pairs and write the results to ./Fused/.

    python test.py                                                  the rendered pairs in samples/
    python test.py --ir DIR --vis DIR                               your own folders, matched by file name
    python test.py --ir a.png --vis b.png                           one pair
    python test.py --dataset roadscene --data data/RoadScene        a published data set
    torchrun --nproc_per_node=4 test.py ...                         the same, shared among four processes

Colour comes from the visible image; names and sizes are kept.
"""
from __future__ import annotations

import argparse
import statistics
import sys
import time
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

import cv2
import numpy as np
import torch
from torch import nn
from tqdm import tqdm

from dataset import DATASETS, Pair, find_chosen, find_pairs, load_pair, positive
from images import DataError, luma, write_image
from inference import fuse_luminance, in_colour_of, prepare
from net import CHECKPOINTS, RPFNet
from runtime import check_device, first_line, keep_freed_memory, team

SAMPLES = Path(__file__).resolve().parent / "samples"
CPU_THREADS = 2     # that read and write; more would take cores from the network
GPU_THREADS = 8     # where the network leaves the CPU free, and takes less time than one PNG


def build_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    source = parser.add_argument_group("what to fuse (default: the rendered samples)")
    source.add_argument("--ir", type=Path, help="infrared folder or file (for IR*/VIS* in one folder: that folder, twice)")
    source.add_argument("--vis", type=Path, help="visible folder or file")
    source.add_argument("--dataset", type=str.lower, choices=DATASETS, help="a published data set's layout")
    source.add_argument("--data", type=Path, help="its folder")
    source.add_argument("--split", help="its split (default: the one that is evaluated; roadscene: the 40 of val)")

    output = parser.add_argument_group("output")
    output.add_argument("--out", type=Path, default=Path("Fused"), help="folder for the results (default: ./Fused)")
    output.add_argument("--format", choices=("png", "bmp", "tif", "jpg"), default="png",
                        help="default: png; jpg loses detail and changes metrics")
    output.add_argument("--gray", action="store_true", help="write the fused luminance without colour, as metrics see it")
    output.add_argument("--compare", action="store_true", help="also write infrared | visible | fused to OUT/compare/")
    output.add_argument("--studio-range", action="store_true", help="the published pictures' contrast stretch, "
                        "1.164 (Y - 16); off by default, because it is a mix-up of colour ranges")

    network = parser.add_argument_group("network")
    network.add_argument("--checkpoint", metavar="NAME|FILE", help=f"weights: {', '.join(CHECKPOINTS)} "
                         "(default: contrast), or a file; best.pth and last.pth of train.py will do")
    network.add_argument("--as-published", action="store_true", help="normalise by the statistics of each image, as the published "
                         "pictures were made: more contrast, and night turns to fog; with --studio-range: their colour conversion too")
    network.add_argument("--released", type=Path, metavar="MODEL.PTH", help="use the authors' published network: their "
                         "graph, with the statistics of the one image; the pickle is read without executing it")
    network.add_argument("--fast", action="store_true", help="bfloat16: the same picture (over 50 dB), faster on GPUs from "
                         "NVIDIA's Ampere on and on CPUs with bfloat16 instructions; slower on older ones")
    network.add_argument("--compile", action="store_true", help="--fast, and torch.compile with CUDA graphs: for many images "
                         "of one size on a GPU; the first takes a minute, as does a last batch that is smaller")
    network.add_argument("--batch", type=positive, metavar="N", help="neighbours of one size that are fused in one pass "
                         "(default: 4 on a GPU, 1 on a CPU); but for rounding, each image is the same, whatever else is in its batch")
    network.add_argument("--tile", type=int, default=0, metavar="PIXELS", help="fuse in overlapping tiles of this side, for images "
                         "that do not fit into memory; off by default, because each tile gets a contrast of its own")
    network.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu",
                         help="cuda, cuda:1, cpu (default: cuda where there is one)")
    return parser


def collect_pairs(args: argparse.Namespace) -> tuple[list[Pair], list[str]]:
    """The pairs to fuse, and a line for each file that has no partner."""
    chosen = find_chosen(args.dataset, args.data, args.split, args.ir, args.vis)
    if chosen:
        return chosen
    if args.ir is None and args.vis is None:
        return find_pairs(SAMPLES / "ir", SAMPLES / "vis")
    if args.ir is None or args.vis is None:
        raise DataError("--ir and --vis go together")
    for path in (args.ir, args.vis):
        if not path.exists():
            raise DataError(f"{path}: no such file or folder")
    if args.ir.is_file() and args.vis.is_file():
        return [Pair(args.vis.stem, args.ir, args.vis)], []
    if args.ir.is_file() or args.vis.is_file():
        raise DataError("--ir and --vis: give two files or two folders")
    return find_pairs(args.ir, args.vis)


def refuse_overwriting(args: argparse.Namespace, pairs: Sequence[Pair]) -> None:
    """The user's own images are never the output."""
    for pair in pairs:
        target = (args.out / f"{pair.name}.{args.format}").resolve()
        if target in (pair.ir.resolve(), pair.vis.resolve()):
            raise DataError(f"{target} is a source image; choose another --out")


def on_gpu(args: argparse.Namespace) -> bool:
    return args.device.startswith("cuda")


def load_network(args: argparse.Namespace) -> nn.Module:
    if args.released and (args.checkpoint or args.fast or args.compile or args.as_published):
        raise DataError("--released goes without --checkpoint, --as-published, --fast and --compile")
    if args.as_published and (args.fast or args.compile):
        raise DataError("--as-published goes without --fast and --compile, which need fixed statistics")
    check_device(args.device)
    if args.released:
        from tools.released import load_released  # only here: nobody else pays for the import
        return load_released(args.released).to(args.device)
    model = RPFNet.from_pretrained(args.checkpoint or "contrast", args.device)
    if args.as_published:
        return model.use_image_statistics()
    return model.optimize(args.fast or args.compile, args.compile)


# ---------------------------------------------------------------------------------------------
# Reading, fusing and writing overlap: threads decode, convert colours and encode while the network computes.


class Item(NamedTuple):
    """A pair with its images."""
    pair: Pair
    ir: np.ndarray
    vis: np.ndarray
    inputs: tuple[np.ndarray, np.ndarray]       # what the network sees of them, see inference.prepare

    @property
    def shapes(self) -> tuple:
        return self.ir.shape, self.vis.shape


def read_item(pair: Pair, gray: bool) -> Item:
    """Raises DataError, ValueError."""
    ir, vis = load_pair(pair)
    vis = luma(vis) if gray else vis
    return Item(pair, ir, vis, prepare(ir, vis))


def read_ahead(pool: ThreadPoolExecutor, pairs: Iterable[Pair], gray: bool, ahead: int) -> Iterator[tuple[Pair, Future]]:
    """Pairs in order, each with the future of its item; `ahead` are decoded in advance."""
    waiting: deque = deque()
    for pair in pairs:
        waiting.append((pair, pool.submit(read_item, pair, gray)))
        if len(waiting) > ahead:
            yield waiting.popleft()
    yield from waiting


class Writer:
    """Finishes and writes images on the pool's threads, `ahead` at a time, and remembers the first failure."""

    def __init__(self, pool: ThreadPoolExecutor, args: argparse.Namespace, ahead: int):
        self.pool, self.args, self.ahead, self.pending = pool, args, ahead, deque()

    def put(self, item: Item, luminance: np.ndarray) -> None:
        """Queue one image. Raises OSError when an earlier one could not be written (a full disk)."""
        self.pending.append(self.pool.submit(self._write, item, luminance))
        while len(self.pending) > self.ahead:
            self.pending.popleft().result()

    def finish(self) -> None:
        while self.pending:
            self.pending.popleft().result()

    def _write(self, item: Item, luminance: np.ndarray) -> None:
        fused = in_colour_of(item.vis, luminance, self.args.studio_range)
        name = f"{item.pair.name}.{self.args.format}"
        write_image(self.args.out / name, fused)
        if self.args.compare:
            write_image(self.args.out / "compare" / name, side_by_side(item.ir, item.vis, fused))


def side_by_side(ir: np.ndarray, vis: np.ndarray, fused: np.ndarray) -> np.ndarray:
    """infrared | visible | fused, RGB, with a white line between."""
    panels = [x if x.ndim == 3 else cv2.cvtColor(x, cv2.COLOR_GRAY2RGB) for x in (ir, vis, fused)]
    line = np.full((len(ir), 4, 3), 255, np.uint8)
    return np.hstack([panels[0], line, panels[1], line, panels[2]])


def in_batches(items: Iterable[Item], limit: int) -> Iterator[list[Item]]:
    """Neighbours of one size together, `limit` at most."""
    batch: list[Item] = []
    for item in items:
        if batch and (len(batch) == limit or item.shapes != batch[0].shapes):
            yield batch
            batch = []
        batch.append(item)
    if batch:
        yield batch


class Fuser:
    """Fuses and writes pairs; `seconds` holds the time of each image, `problems` a line for each pair that failed."""

    def __init__(self, args: argparse.Namespace, model: nn.Module):
        self.args, self.model = args, model
        self.seconds, self.problems = [], []

    def fuse_all(self, pairs: Sequence[Pair]) -> None:
        threads = GPU_THREADS if on_gpu(self.args) else CPU_THREADS
        ahead = 2 * threads     # pairs that are read before their batch, and results that wait to be written
        with ThreadPoolExecutor(threads) as pool, tqdm(total=len(pairs), unit="pair", desc="fusing", disable=team.rank > 0) as bar:
            writer = Writer(pool, self.args, ahead)
            waiting = read_ahead(pool, pairs, self.args.gray, self.args.batch + ahead)
            for batch in in_batches(self._read(waiting, bar), self.args.batch):
                for item, luminance in zip(batch, self._fuse(batch)):
                    if luminance is not None:
                        writer.put(item, luminance)
                    bar.update()
            writer.finish()

    def _read(self, waiting: Iterable[tuple[Pair, Future]], bar: tqdm) -> Iterator[Item]:
        for pair, item in waiting:
            try:
                yield item.result()
            except (DataError, ValueError) as error:
                self._failed(pair, error)
                bar.update()

    def _fuse(self, batch: list[Item]) -> Sequence[np.ndarray | None]:
        """The luminance of each item; None for those that failed."""
        start = time.perf_counter()
        try:
            # Ends on the CPU: no synchronisation is missing in the time.
            fused = fuse_luminance(self.model, [item.inputs for item in batch], self.args.tile)
        except (ValueError, RuntimeError, MemoryError) as error:      # too large for the memory, most of all
            if len(batch) == 1:
                self._failed(batch[0].pair, error)
                return [None]
        else:
            self.seconds += [(time.perf_counter() - start) / len(batch)] * len(batch)
            return fused
        # One by one they may fit, and only the bad one is lost. Not in the handler, where the error holds the tensors.
        if on_gpu(self.args):
            torch.cuda.empty_cache()
        return [self._fuse([item])[0] for item in batch]

    def _failed(self, pair: Pair, error: Exception) -> None:
        self.problems.append(f"{pair.name}: {first_line(error)}")


def report(args: argparse.Namespace, seconds: list[float], problems: list[str]) -> None:
    device = torch.cuda.get_device_name(args.device) if on_gpu(args) else args.device.upper()
    if seconds:
        # The first batch of each process pays for memory and kernel choices.
        mean = statistics.mean(seconds[team.world * args.batch:] or seconds)
        print(f"{len(seconds)} images in {args.out}{'/' if args.out.name else ''}, {1000 * mean:.0f} ms an image on {device}"
              + (f", {team.world} processes side by side" if team.world > 1 else ""))
    for problem in problems:
        print(f"skipped: {problem}", file=sys.stderr)


def main(argv: Sequence[str] | None = None) -> int:
    args = build_parser().parse_args(argv)
    args.batch = args.batch or (4 if on_gpu(args) else 1)
    team.join()
    keep_freed_memory()
    lonely, seconds, problems, fatal = [], [], [], []       # fatal: of this process; the others go on
    try:
        pairs, lonely = collect_pairs(args)
        refuse_overwriting(args, pairs)
        fuser = Fuser(args, load_network(args))
        (args.out / "compare" if args.compare else args.out).mkdir(parents=True, exist_ok=True)
        fuser.fuse_all(team.share(pairs))
        seconds, problems = fuser.seconds, fuser.problems
    except (DataError, FileNotFoundError, ValueError, RuntimeError, OSError) as error:
        fatal = [f"test.py: {error}"]
    except KeyboardInterrupt:
        print("\ntest.py: interrupted; the images written so far are whole", file=sys.stderr)
        return 130
    seconds, problems, fatal = team.gathered(seconds), lonely + team.gathered(problems), team.gathered(fatal)
    if team.rank > 0:
        return 0    # rank 0 reports for all, and its exit code counts; it would be ended if another one failed first
    if fatal:
        print("\n".join(dict.fromkeys(fatal)), file=sys.stderr)
        return 1
    report(args, seconds, problems)
    return 1 if problems else 0


if __name__ == "__main__":
    sys.exit(main())
