"""Fuse many pairs: threads read and write images while the network computes.

If a pair fails in one of these steps, its error is recorded and the other pairs are fused.
"""
from __future__ import annotations

import argparse
import time
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

import cv2
import numpy as np
import torch
from torch import nn
from tqdm import tqdm

from dataset import reader
from images import DataError, luma, note_shift, write_image
from inference import fuse_luminance, in_colour_of, prepare
from support.console import one_line
from support.outputs import DISK_ERRORS
from support.pairing import Pair
from support.runtime import lacks_memory, on_gpu, team

# Threads that read and write images.
CPU_THREADS = 2     # with the network on a CPU; more threads would take cores from the network
GPU_THREADS = 8     # with the network on a GPU; fusing then takes less time than encoding one PNG

# Errors that can be caused by a single pair. Any other exception ends the program, and so does a RuntimeError of the network
# on the first pair, which is probably a bug.
PAIR_ERRORS = (DataError, ValueError, OSError, RuntimeError, MemoryError, cv2.error)


class Item(NamedTuple):
    """A pair whose images have been read."""
    pair: Pair
    ir: np.ndarray                              # uint8 (H, W)
    vis: np.ndarray                             # uint8 (H, W) or (H, W, 3)
    inputs: tuple[np.ndarray, np.ndarray]       # network inputs, see inference.prepare

    @property
    def shapes(self) -> tuple:
        """Shapes of both images. Only items with equal shapes share a batch."""
        return self.ir.shape, self.vis.shape


def read_item(pair: Pair, args: argparse.Namespace) -> Item:
    """Read and prepare one pair with the options of test.py. Raises PAIR_ERRORS."""
    ir, vis = reader(args)(pair)
    if not args.no_alignment_check:
        note_shift(pair.name, ir, vis)
    vis = luma(vis) if args.gray else vis
    return Item(pair, ir, vis, prepare(ir, vis))


def read_ahead(pool: ThreadPoolExecutor, pairs: Iterable[Pair], args: argparse.Namespace,
               ahead: int) -> Iterator[tuple[Pair, Future]]:
    """Yield the pairs in order, each with the future of its item. Up to `ahead` pairs are read in advance."""
    waiting: deque = deque()
    for pair in pairs:
        waiting.append((pair, pool.submit(read_item, pair, args)))
        if len(waiting) > ahead:
            yield waiting.popleft()
    while waiting:
        yield waiting.popleft()


def target(pair: Pair, args: argparse.Namespace) -> Path:
    """Path of the fused image of a pair."""
    return args.out_file or args.out / f"{pair.name}.{args.format}"     # not `with_suffix`: names may contain dots


def compare_folder(args: argparse.Namespace) -> Path:
    """Folder of the images of --compare."""
    return args.out / "compare"


def write_item(item: Item, luminance: np.ndarray, args: argparse.Namespace) -> None:
    """Write the fused image, and with --compare also the comparison. Raises PAIR_ERRORS.

    luminance: fused luminance, float32 (H, W) in [0, 1].
    """
    fused = in_colour_of(item.vis, luminance, args.studio_range)
    path = target(item.pair, args)
    write_image(path, fused)
    if args.compare:
        write_image(compare_folder(args) / path.name, side_by_side(item.ir, item.vis, fused))


def side_by_side(ir: np.ndarray, vis: np.ndarray, fused: np.ndarray) -> np.ndarray:
    """infrared | visible | fused as one RGB image, with white lines between them. All are uint8 of one (H, W)."""
    panels = [x if x.ndim == 3 else cv2.cvtColor(x, cv2.COLOR_GRAY2RGB) for x in (ir, vis, fused)]
    line = np.full((len(ir), 4, 3), 255, np.uint8)
    return np.hstack([panels[0], line, panels[1], line, panels[2]])


def in_batches(items: Iterable[Item], limit: int) -> Iterator[list[Item]]:
    """Group consecutive items of one shape into batches of at most `limit` items."""
    batch: list[Item] = []
    for item in items:
        if batch and (len(batch) == limit or item.shapes != batch[0].shapes):
            yield batch
            batch = []
        batch.append(item)
    if batch:
        yield batch


class Fuser:
    """Fuses pairs and writes the results.

    Args:
        args: options of test.py, as `test.parse` and `test.choose_output` set them.
        model: the network, as for `inference.fuse_pair`.

    Attributes:
        seconds: inference time of each fused image.
        written: number of images that were written.
        problems: one line for each pair that failed.
    """

    def __init__(self, args: argparse.Namespace, model: nn.Module):
        self.args, self.model = args, model
        self.seconds, self.problems, self.written = [], [], 0
        self._singly = False        # whether a batch did not fit into memory
        self._writing: deque[tuple[Pair, Future]] = deque()

    def fuse_all(self, pairs: Sequence[Pair]) -> None:
        """Fuse and write all pairs.

        Raises OSError if the disk is full, and RuntimeError if the network cannot run at all. `written` is then still
        correct.
        """
        threads = GPU_THREADS if on_gpu(self.args.device) else CPU_THREADS
        ahead = 2 * threads     # bounds the queue of pairs that were read and the queue of results to be written
        pool = ThreadPoolExecutor(threads)
        try:
            with tqdm(total=len(pairs), unit="pair", desc="fusing", disable=team.rank > 0) as bar:
                waiting = read_ahead(pool, pairs, self.args, self.args.batch + ahead)
                for batch in in_batches(self._read(waiting, bar), self.args.batch):
                    for item, luminance in zip(batch, self._fuse(batch)):
                        if luminance is not None:
                            self._writing.append((item.pair, pool.submit(write_item, item, luminance, self.args)))
                            self._finish(ahead)
                        bar.update()
                self._finish(0)
        finally:
            # After an error or Ctrl-C, running tasks are finished and queued tasks are cancelled.
            pool.shutdown(cancel_futures=True)
            self._count_the_rest()

    def _read(self, waiting: Iterable[tuple[Pair, Future]], bar: tqdm) -> Iterator[Item]:
        for pair, item in waiting:
            try:
                yield item.result()
            except PAIR_ERRORS as error:
                self._failed(pair, error)
                bar.update()

    def _fuse(self, batch: list[Item], again: bool = False) -> Sequence[np.ndarray | None]:
        """Fused luminance of each item; None for an item that failed. again: after an error, the last attempt."""
        if self._singly and len(batch) > 1:
            return [self._fuse([item])[0] for item in batch]
        start = time.perf_counter()
        try:
            # The result is copied to the CPU, so the time includes all GPU work.
            fused = fuse_luminance(self.model, [item.inputs for item in batch], self.args.tile)
        except PAIR_ERRORS as error:      # mostly out of memory
            full = lacks_memory(error)
            if isinstance(error, RuntimeError) and not full and not self.seconds:
                raise                     # of the device or the compiler: every pair would fail like the first
            if len(batch) == 1 and (again or not full or not on_gpu(self.args.device)):
                self._failed(batch[0].pair, error)
                return [None]
            self._singly = self._singly or full and len(batch) > 1
        else:
            self.seconds += [(time.perf_counter() - start) / len(batch)] * len(batch)
            return fused
        # Fuse the items one by one: they may fit into memory, and only a bad item is lost. This is not done in the
        # exception handler, because there the exception keeps the tensors of the batch alive. On a GPU, cuFFT and cuDNN
        # cannot use the memory that PyTorch keeps for its tensors.
        if on_gpu(self.args.device):
            torch.cuda.empty_cache()
        return [self._fuse([item], again=True)[0] for item in batch]

    def _finish(self, ahead: int) -> None:
        """Wait until at most `ahead` images are still to be written. Raises OSError if the disk is full."""
        while len(self._writing) > ahead:
            self._settle(*self._writing[0])
            self._writing.popleft()     # only after it is counted, because Ctrl-C can come in between

    def _settle(self, pair: Pair, done: Future) -> None:
        """Wait for a write, and count it or record its error. Raises OSError if the disk is full."""
        try:
            done.result()
            self.written += 1
        except PAIR_ERRORS as error:
            if isinstance(error, OSError) and error.errno in DISK_ERRORS:
                raise
            self._failed(pair, error)

    def _count_the_rest(self) -> None:
        for pair, done in self._writing:
            if not done.cancelled():
                with suppress(OSError):     # of a full disk, which ends the run anyway
                    self._settle(pair, done)
        self._writing.clear()

    def _failed(self, pair: Pair, error: Exception) -> None:
        self.problems.append(f"{pair.name}: {explained(error, self.args)}")


def explained(error: Exception, args: argparse.Namespace) -> str:
    """The error in words, with a remedy where there is one."""
    if isinstance(error, DataError):
        return str(error)
    if lacks_memory(error):
        tiles = f"a smaller --tile than {args.tile}" if args.tile else "--tile 1024"
        return f"out of memory ({one_line(error)}); try {'smaller frames' if args.video else tiles}"
    return one_line(error)
