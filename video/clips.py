"""Frames in: two video files, two folders of frames, or two cameras, as an iterable of `Frame`s."""
from __future__ import annotations

import argparse
from collections.abc import Iterator
from itertools import count
from pathlib import Path
from typing import NamedTuple

import cv2
import numpy as np
from tqdm import tqdm

from dataset import load_pair, of_one_size
from images import DataError, infrared_luma, infrared_span, luma
from support.console import note
from support.pairing import Pair, all_paired, find_pairs, list_images

COUNTED = {".mp4", ".avi", ".mov", ".m4v"}                      # their headers hold the exact number of frames
SUFFIXES = COUNTED | {".mkv", ".webm", ".mpg", ".mpeg", ".wmv", ".ts"}
RATE = 25.0             # frames a second, where the sources have no rate
SAME_RATE = 0.005       # frames a second; what headers round


def camera_number(source: Path) -> int | None:
    """The number of a camera; None for anything else, also for a file or folder whose name is a number."""
    text = str(source)
    return int(text) if text.isascii() and text.isdigit() and not source.exists() else None


def is_video(source: Path) -> bool:
    return source.suffix.lower() in SUFFIXES and not source.is_dir()


class Frame(NamedTuple):
    """Both sources at one time: infrared (H, W), visible (H, W) or (H, W, 3) RGB, uint8, of one size."""
    name: str
    ir: np.ndarray
    vis: np.ndarray


class FolderClip:
    """Two folders of frames, matched by file name; iterates over `Frame`s.

    16-bit infrared is scaled by one range for all frames: --ir-range, or from the darkest to the brightest pixel of all.
    A range for each frame would make the sequence flicker.

    Attributes:
        name: of the visible folder.
        rate: frames a second.
        length: number of frames.
        inputs: the files.
    Raises:
        DataError: no folder, no frames, or frames without a partner; when iterated, a frame that cannot be read.
    """

    def __init__(self, args: argparse.Namespace):
        self.args, self.name, self.rate = args, args.vis.name, args.fps or RATE
        folders, patterns = (args.ir, args.vis), (args.ir_pattern, args.vis_pattern)
        if not any(patterns):
            _check_lengths(*((folder, len(list_images(folder))) for folder in folders))
        self._pairs = all_paired(*find_pairs(*folders, *patterns))
        self.length = len(self._pairs)
        self.inputs = [path for pair in self._pairs for path in (pair.ir, pair.vis)]

    def __iter__(self) -> Iterator[Frame]:
        span = self.args.ir_range or self._span()
        for pair in self._pairs:
            yield Frame(pair.name, *load_pair(pair, self.args.resize, span))

    def _span(self) -> tuple[int, int] | None:
        """Range of the whole infrared sequence; None for 8 bits."""
        if infrared_span(self._pairs[0].ir) is None:
            return None
        spans = [infrared_span(pair.ir) for pair in tqdm(self._pairs, unit="frame", desc="range of the infrared")]
        lows, highs = zip(*(span for span in spans if span))
        return min(lows), max(highs)


class Capture:
    """A video file or a camera, by OpenCV.

    Attributes:
        name: for messages.
        is_camera: whether it is one.
        rate: frames a second, 0 if it does not tell.
        length: number of frames; None where only the end tells.
    Raises:
        DataError: no such file or camera, or one that cannot be decoded.
    """

    def __init__(self, source: Path):
        number = camera_number(source)
        self.is_camera, self.name = number is not None, str(source) if number is None else f"camera {number}"
        if not self.is_camera and not source.is_file():
            raise DataError(f"{source}: no such file")
        self._capture = cv2.VideoCapture(str(source) if number is None else number)
        if not self._capture.isOpened():
            raise DataError(f"{self.name}: cannot be opened; " + (
                "is it connected, and free?" if self.is_camera else "damaged, or a format that this OpenCV does not read"))
        self.rate = max(self._capture.get(cv2.CAP_PROP_FPS), 0.0)
        self.length = int(self._capture.get(cv2.CAP_PROP_FRAME_COUNT)) if source.suffix.lower() in COUNTED else None

    def read(self) -> np.ndarray | None:
        """The next frame, uint8 (H, W) or (H, W, 3) RGB; None after the last."""
        found, frame = self._capture.read()
        if not found:
            return None
        return frame if frame.ndim == 2 else cv2.cvtColor(frame, cv2.COLOR_BGR2RGB)

    def count_rest(self) -> int:
        """The number of frames that are left; they are not decoded."""
        return next(number for number in count() if not self._capture.grab())


class CaptureClip:
    """Two video files or two cameras; iterates over `Frame`s.

    Attributes:
        name: of the visible file, without suffix; or "camera".
        rate: frames a second.
        length: number of frames; None for cameras, and for files whose header does not tell.
        inputs: the files.
    Raises:
        DataError: as Capture, or lengths or rates that differ; when iterated, sizes and lengths that differ.
    """

    def __init__(self, args: argparse.Namespace):
        self.args = args
        self.ir, self.vis = Capture(args.ir), Capture(args.vis)
        self.name = "camera" if self.vis.is_camera else args.vis.stem
        self.inputs = [] if self.vis.is_camera else [args.ir, args.vis]
        self.length, self.rate = self.vis.length, args.fps or self.vis.rate or (RATE if self.vis.is_camera else 0.0)
        if self.ir.length is not None and self.length is not None:
            _check_lengths((self.ir.name, self.ir.length), (self.vis.name, self.length))
        if not args.fps and abs(self.ir.rate - self.vis.rate) > SAME_RATE:
            raise DataError(f"{self.ir.name} has {self.ir.rate:.6g} frames a second and {self.vis.name} {self.vis.rate:.6g}; "
                            "bring both to one rate, or, if their frames belong together one by one, give --fps")
        if not self.rate:
            raise DataError(f"{self.vis.name}: has no frame rate; give --fps")

    def __iter__(self) -> Iterator[Frame]:
        pair = Pair(self.name, Path(self.ir.name), Path(self.vis.name))
        for number in count():
            ir, vis = self.ir.read(), self.vis.read()
            if ir is None or vis is None:
                return self._check_end(number, ir is not None, vis is not None)
            ir = luma(ir) if number else infrared_luma(ir, self.ir.name)        # a warning once, not for each frame
            yield Frame(f"{number:06d}", *of_one_size(pair, ir, vis, self.args.resize))

    def _check_end(self, number: int, *more: bool) -> None:
        """Raises DataError unless both sources end here, after `number` frames; more: whether each has one more."""
        if number == 0 or self.vis.is_camera:
            silent = [source.name for source, has_one in zip((self.ir, self.vis), more) if not has_one]
            raise DataError(f"{' and '.join(silent)}: no frame could be read after the first {number}")
        totals = [number + (1 + source.count_rest() if has_one else 0) for source, has_one in zip((self.ir, self.vis), more)]
        _check_lengths((self.ir.name, totals[0]), (self.vis.name, totals[1]))
        if self.length is not None and number < self.length:
            note("ends before the number of frames in its header; is it damaged?", f"{self.vis.name}, {number} of {self.length}")


def _check_lengths(*sides: tuple[object, int]) -> None:
    """Raises DataError, with both numbers of frames, unless they are equal."""
    (ir, first), (vis, second) = sides
    if first != second:
        raise DataError(f"{ir} has {first} frames and {vis} has {second}; cut both to one length")


def open_clip(args: argparse.Namespace) -> FolderClip | CaptureClip:
    """The sources that --ir and --vis name. Raises DataError."""
    kinds = [(source.is_dir(), camera_number(source) is not None) for source in (args.ir, args.vis)]
    if kinds[0] != kinds[1]:
        raise DataError(f"{args.ir} and {args.vis}: give two files, two folders or two cameras")
    if args.ir.is_dir():
        return FolderClip(args)
    if args.ir_pattern or args.vis_pattern or args.ir_range:
        raise DataError("--ir-pattern, --vis-pattern and --ir-range go with folders in --ir and --vis")
    return CaptureClip(args)
