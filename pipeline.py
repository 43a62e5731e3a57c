"""Fusing many pairs: threads decode, convert colours and encode while the network computes.

A pair that fails in any of these steps is remembered, and the others go on.
"""
from __future__ import annotations

import argparse
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

from dataset import SizeError, load_pair
from images import DataError, luma, note_shift, write_image
from inference import fuse_luminance, in_colour_of, prepare
from support.outputs import DISK_ERRORS
from support.pairing import Pair
from support.runtime import first_line, on_gpu, team

CPU_THREADS = 2     # that read and write; more would take cores from the network
GPU_THREADS = 8     # where the network leaves the CPU free, and takes less time than one PNG

# What one pair may bring about and the next one may not. Anything else is a fault of the program.
PAIR_ERRORS = (DataError, ValueError, OSError, RuntimeError, MemoryError, cv2.error)


class Item(NamedTuple):
    """A pair with its images."""
    pair: Pair
    ir: np.ndarray
    vis: np.ndarray
    inputs: tuple[np.ndarray, np.ndarray]       # what the network sees of them, see inference.prepare

    @property
    def shapes(self) -> tuple:
        return self.ir.shape, self.vis.shape


def read_item(pair: Pair, args: argparse.Namespace) -> Item:
    """Raises PAIR_ERRORS."""
    ir, vis = load_pair(pair, args.resize, args.ir_range)
    if not args.no_alignment_check:
        note_shift(pair.name, ir, vis)
    vis = luma(vis) if args.gray else vis
    return Item(pair, ir, vis, prepare(ir, vis))


def read_ahead(pool: ThreadPoolExecutor, pairs: Iterable[Pair], args: argparse.Namespace,
               ahead: int) -> Iterator[tuple[Pair, Future]]:
    """Pairs in order, each with the future of its item; `ahead` are decoded in advance."""
    waiting: deque = deque()
    for pair in pairs:
        waiting.append((pair, pool.submit(read_item, pair, args)))
        if len(waiting) > ahead:
            yield waiting.popleft()
    while waiting:
        yield waiting.popleft()


def target(pair: Pair, args: argparse.Namespace) -> Path:
    """The file of a fused image. (Of the pair's name, not `with_suffix`: it may hold dots.)"""
    return args.out_file or args.out / f"{pair.name}.{args.format}"


def compare_folder(args: argparse.Namespace) -> Path:
    return args.out / "compare"


def write_item(item: Item, luminance: np.ndarray, args: argparse.Namespace) -> None:
    """Raises PAIR_ERRORS."""
    fused = in_colour_of(item.vis, luminance, args.studio_range)
    path = target(item.pair, args)
    write_image(path, fused)
    if args.compare:
        write_image(compare_folder(args) / path.name, side_by_side(item.ir, item.vis, fused))


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
    """Fuses and writes pairs.

    Attributes:
        seconds: the time of each image that was fused.
        written: how many were written.
        problems: a line for each pair that failed.
    """

    def __init__(self, args: argparse.Namespace, model: nn.Module):
        self.args, self.model = args, model
        self.seconds, self.problems, self.written = [], [], 0
        self._writing: deque[tuple[Pair, Future]] = deque()

    def fuse_all(self, pairs: Sequence[Pair]) -> None:
        """Raises OSError where the disk is full; what was written by then is counted all the same."""
        threads = GPU_THREADS if on_gpu(self.args.device) else CPU_THREADS
        ahead = 2 * threads     # pairs that are read before their batch, and results that wait to be written
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
            pool.shutdown(cancel_futures=True)      # after an error or Ctrl-C, what runs is finished, no more begun
            self._count_the_rest()

    def _read(self, waiting: Iterable[tuple[Pair, Future]], bar: tqdm) -> Iterator[Item]:
        for pair, item in waiting:
            try:
                yield item.result()
            except PAIR_ERRORS as error:
                self._failed(pair, error)
                bar.update()

    def _fuse(self, batch: list[Item]) -> Sequence[np.ndarray | None]:
        """The luminance of each item; None for those that failed."""
        start = time.perf_counter()
        try:
            # Ends on the CPU: no synchronisation is missing in the time.
            fused = fuse_luminance(self.model, [item.inputs for item in batch], self.args.tile)
        except PAIR_ERRORS as error:      # too large for the memory, most of all
            if len(batch) == 1:
                self._failed(batch[0].pair, error)
                return [None]
        else:
            self.seconds += [(time.perf_counter() - start) / len(batch)] * len(batch)
            return fused
        # One by one they may fit, and only the bad one is lost. Not in the handler, where the error holds the tensors.
        if on_gpu(self.args.device):
            torch.cuda.empty_cache()
        return [self._fuse([item])[0] for item in batch]

    def _finish(self, ahead: int) -> None:
        """Wait until no more than `ahead` images are being written. Raises OSError where the disk is full."""
        while len(self._writing) > ahead:
            pair, done = self._writing[0]       # taken away when it is counted: Ctrl-C may come in between
            try:
                done.result()
                self.written += 1
            except PAIR_ERRORS as error:
                if isinstance(error, OSError) and error.errno in DISK_ERRORS:
                    raise
                self._failed(pair, error)
            self._writing.popleft()

    def _count_the_rest(self) -> None:
        for pair, done in self._writing:
            error = None if done.cancelled() else done.exception()
            self.written += not done.cancelled() and error is None
            if error and not (isinstance(error, OSError) and error.errno in DISK_ERRORS):
                self._failed(pair, error)
        self._writing.clear()

    def _failed(self, pair: Pair, error: Exception) -> None:
        self.problems.append(f"{pair.name}: {explained(error, self.args)}")


def explained(error: Exception, args: argparse.Namespace) -> str:
    """What went wrong, with the remedy."""
    if isinstance(error, SizeError):
        return f"{error}, or bring one to the other with --resize ir or --resize vis"
    if isinstance(error, DataError):
        return str(error)
    text = first_line(error)
    if isinstance(error, MemoryError | torch.OutOfMemoryError) or (
            isinstance(error, RuntimeError | cv2.error) and "alloc" in text):
        tiles = f"a smaller --tile than {args.tile}" if args.tile else "--tile 1024"
        return f"out of memory ({text}); try {'smaller frames' if args.video else tiles}"
    return f"{error.filename}: {error.strerror}" if isinstance(error, OSError) and error.filename else text
