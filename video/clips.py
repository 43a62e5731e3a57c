"""Sources of video: two files, two folders of frames, or two cameras. Each is an iterable of `Frame`s."""
from __future__ import annotations

import argparse
import time
from collections.abc import Callable, Iterator, Sequence
from itertools import count
from pathlib import Path
from typing import Any, NamedTuple

import cv2
import numpy as np
from tqdm import tqdm

from dataset import of_one_size
from images import (
    DataError,
    decode,
    gray_if_equal,
    infrared_luma,
    infrared_span,
    luma,
    note_depth,
    read_ir,
    read_vis,
    visible_bits,
)
from support.console import note
from support.headers import SUFFIXES as IMAGE_SUFFIXES
from support.pairing import Pair, list_images, match_pairs

COUNTED = {".mp4", ".avi", ".mov", ".m4v"}                      # formats whose header holds the number of frames
SUFFIXES = COUNTED | {".mkv", ".webm", ".mpg", ".mpeg", ".wmv", ".ts", ".mts", ".m2ts", ".flv", ".vob", ".3gp", ".ogv"}
MOST_FRAMES = 2 ** 30   # a header with at least so many was written before the end was known
CAMERA_DIGITS = 3       # longer numbers are names
RATE = 25.0             # frames per second, if the sources have no rate
SAME_RATE = 0.005       # frames per second; tolerance for rates that are rounded in headers


def camera_number(source: Path) -> int | None:
    """The number of a camera; None for anything else, also for an existing file or folder whose name is a number."""
    text = str(source)
    is_number = text.isascii() and text.isdigit() and len(text) <= CAMERA_DIGITS
    return int(text) if is_number and not source.exists() else None


def is_video(source: Path) -> bool:
    """Whether a path has the suffix of a video file and is not a folder."""
    return source.suffix.lower() in SUFFIXES and not source.is_dir()


class Frame(NamedTuple):
    """Both sources at one time, uint8 of one size."""
    name: str
    ir: np.ndarray      # (H, W)
    vis: np.ndarray     # (H, W) or (H, W, 3) RGB


class FolderClip:
    """Two folders of frames, matched by file name. Iteration gives `Frame`s.

    One range scales the 16-bit infrared of all frames: --ir-range, or the minimum and maximum of the sequence. 16-bit
    visible frames have one depth: --vis-bits, or that of the brightest frame. A range for each frame would cause
    flicker.

    Attributes:
        name: name of the visible folder.
        rate: frames per second.
        length: number of frames.
        inputs: the input files.
    Raises:
        DataError: no such folder, no frames, or frames without a partner; during iteration, a frame that cannot be
            read.
    """

    def __init__(self, args: argparse.Namespace):
        self.args, self.name, self.rate = args, args.vis.name, args.fps or RATE
        folders, patterns = (args.ir, args.vis), (args.ir_pattern, args.vis_pattern)
        if not any(patterns):
            _check_lengths(*((folder, len(list_images(folder))) for folder in folders))
        self._pairs = match_pairs(*folders, *patterns)
        self.length = len(self._pairs)
        self.inputs = [path for pair in self._pairs for path in (pair.ir, pair.vis)]

    def __iter__(self) -> Iterator[Frame]:
        span, bits = self.args.ir_range or self._span(), self.args.vis_bits or self._depth()
        first = self._pairs[0]
        for pair in self._pairs:
            ir = read_ir(pair.ir, span) if span else infrared_luma(_of_8_bits(pair.ir, first.ir), pair.ir.name)
            vis = read_vis(pair.vis, bits) if bits else gray_if_equal(_of_8_bits(pair.vis, first.vis))
            yield Frame(pair.name, *of_one_size(pair, ir, vis, self.args.resize))

    def _span(self) -> tuple[int, int] | None:
        """Minimum and maximum of the infrared sequence; None for 8-bit images."""
        spans = _measured([pair.ir for pair in self._pairs], infrared_span, None, "range of the infrared")
        if not spans:
            return None
        lows, highs = zip(*spans)
        return min(lows), max(highs)

    def _depth(self) -> int | None:
        """Bits of the visible sequence; None for 8-bit images."""
        depths = _measured([pair.vis for pair in self._pairs], visible_bits, 8, "depth of the visible frames")
        if not depths:
            return None
        note_depth(max(depths), self.name)
        return max(depths)


def _measured(paths: Sequence[Path], measure: Callable[[Path], Any], of_8_bits: Any, title: str) -> list:
    """measure(path) of each file of a sequence; [] if the first has 8 bits, for which the measure is `of_8_bits`.

    Raises DataError, also if some have 8 bits and others 16.
    """
    values: list = []
    if measure(paths[0]) == of_8_bits:
        return values
    for path in tqdm(paths, unit="frame", desc=title):
        values.append(measure(path))
        if values[-1] == of_8_bits:
            raise _mixed(path, paths[0])
    return values


def _of_8_bits(path: Path, first: Path) -> np.ndarray:
    """Read pixels as uint8. Raises DataError, also for 16 bits, which would be scaled frame by frame."""
    pixels = decode(path)
    if pixels.dtype == np.uint16:
        raise _mixed(path, first)
    return pixels


def _mixed(path: Path, first: Path) -> DataError:
    return DataError(f"{path} and {first}: one has 8 bits and the other 16; convert all frames alike")


def check_name(path: Path) -> None:
    """Raises DataError for a name with undecodable bytes, which crashes OpenCV."""
    try:
        str(path.absolute()).encode()
    except UnicodeEncodeError:
        raise DataError(f"{path}: its name has undecodable bytes; rename it") from None


class Capture:
    """A video file or a camera, read by OpenCV.

    Attributes:
        name: name for messages.
        is_camera: True for a camera, False for a file.
        rate: frames per second; 0 if it is unknown.
        length: number of frames as in the header; None if it is unknown before the end.
        time: time of the last frame, seconds.
    Raises:
        DataError: no such file or camera, one that cannot be decoded, or gray video of more than 8 bits.
    """

    def __init__(self, source: Path):
        number = camera_number(source)
        self.is_camera, self.name = number is not None, str(source) if number is None else f"camera {number}"
        if not self.is_camera:
            if not source.is_file():
                problem = ("is a folder; name a video file" if source.is_dir() else
                           "is a device or a pipe; give the number of a camera" if source.exists() else "no such file")
                raise DataError(f"{source}: {problem}")
            check_name(source)
        # Absolute, because FFmpeg takes the text before a colon in a relative path as a protocol.
        self._place = str(source.absolute()) if number is None else number
        self._capture = cv2.VideoCapture(self._place)
        if not self._capture.isOpened():
            raise DataError(f"{self.name}: cannot be opened; " + (
                "is it connected, and free?" if self.is_camera else "damaged, or a format that this OpenCV does not read"))
        self._check_depth(source)
        self.rate = max(self._capture.get(cv2.CAP_PROP_FPS), 0.0)
        frames = int(self._capture.get(cv2.CAP_PROP_FRAME_COUNT))
        self.length = frames if source.suffix.lower() in COUNTED and frames < MOST_FRAMES else None

    def _check_depth(self, source: Path) -> None:
        """Raises DataError for gray video of more than 8 bits, such as 16-bit infrared, because OpenCV would read 8."""
        # FFmpeg's tags are Y, 1, 0 and the number of bits for little endian, and the reverse for big endian.
        tag = int(max(self._capture.get(cv2.CAP_PROP_CODEC_PIXEL_FORMAT), 0)).to_bytes(8, "little")[:4]
        for signature, bits in ((tag[:3], tag[3]), (tag[:0:-1], tag[0])):
            if signature == b"Y1\0" and bits > 8:
                raise DataError(f"{self.name}: gray video of {bits} bits, and OpenCV reads only 8; extract the frames "
                                "of both files into folders (mkdir ir; ffmpeg -i "
                                f"{source.name} ir/%05d.png), and use --ir ir --vis vis --video --fps RATE")

    def read(self) -> np.ndarray | None:
        """The next frame, uint8 (H, W) or (H, W, 3) RGB; None after the last."""
        found, frame = self._capture.read()
        if not found:
            return None
        return frame if frame.ndim == 2 else cv2.cvtColor(frame, cv2.COLOR_BGR2RGB)

    @property
    def time(self) -> float:
        return self._capture.get(cv2.CAP_PROP_POS_MSEC) / 1000

    def count_rest(self) -> int:
        """Count the remaining frames without decoding them."""
        return count_frames(self._capture)

    def count_again(self) -> None:
        """Set the length by counting the frames of the file. The header also counts those that a cut has left out."""
        capture = cv2.VideoCapture(self._place)
        self.length = count_frames(capture)
        capture.release()


def count_frames(capture: cv2.VideoCapture) -> int:
    """Read to the end. Returns the number of frames that were left."""
    return next(number for number in count() if not capture.grab())


class CaptureClip:
    """Two video files or two cameras. Iteration gives `Frame`s.

    Attributes:
        name: name of the visible file without suffix; for cameras, "camera" with date and time, because a recording
            cannot be repeated.
        rate: frames per second.
        length: number of frames; None for cameras, and for files whose header does not hold it.
        inputs: the input files.
    Raises:
        DataError: as for Capture, or lengths or rates that differ; during iteration, sizes or lengths that differ.
    """

    def __init__(self, args: argparse.Namespace):
        self.args = args
        self.ir, self.vis = Capture(args.ir), Capture(args.vis)
        self.name = time.strftime("camera_%Y-%m-%d_%H-%M-%S") if self.vis.is_camera else args.vis.stem
        self.inputs = [] if self.vis.is_camera else [args.ir, args.vis]
        if None not in (self.ir.length, self.vis.length) and self.ir.length != self.vis.length:
            for source in (self.ir, self.vis):
                source.count_again()
            _check_lengths(*((source.name, source.length) for source in (self.ir, self.vis)))
        self.length, self.rate = self.vis.length, args.fps or self.vis.rate or (RATE if self.vis.is_camera else 0.0)
        if not args.fps and abs(self.ir.rate - self.vis.rate) > SAME_RATE:
            remedy = ("give --fps, the rate at which frames are fused" if self.vis.is_camera else
                      "convert both to one rate, or give --fps if their frames match one by one")
            raise DataError(f"{self.ir.name} has {self.ir.rate:.6g} frames a second and {self.vis.name} "
                            f"{self.vis.rate:.6g}; {remedy}")
        if not self.rate:
            raise DataError(f"{self.vis.name}: has no frame rate; give --fps")

    def __iter__(self) -> Iterator[Frame]:
        pair = Pair(self.name, Path(self.ir.name), Path(self.vis.name))
        steps = _Steps(self.ir, self.vis) if self.inputs and not self.args.fps else None
        for number in count():
            ir, vis = self.ir.read(), self.vis.read()
            if ir is None or vis is None:
                return self._check_end(number, ir is not None, vis is not None)
            if steps:
                steps.compare(number)
            ir = luma(ir) if number else infrared_luma(ir, self.ir.name)        # warns for the first frame only
            yield Frame(f"{number:06d}", *of_one_size(pair, ir, vis, self.args.resize))

    def _check_end(self, number: int, *more: bool) -> None:
        """Check the end of the sources after `number` frames. Raises DataError unless both end here.

        more: for each source, whether it has one more frame.
        """
        if number == 0 or self.vis.is_camera:
            silent = [source.name for source, has_one in zip((self.ir, self.vis), more) if not has_one]
            raise DataError(f"{' and '.join(silent)}: no frame could be read" + (f" after the first {number}" if number else ""))
        for source, has_one in zip((self.ir, self.vis), more):
            if any(more) and not has_one and number < (source.length or 0):
                raise DataError(f"{source.name}: cannot be decoded after {number} of {source.length} frames; it is damaged")
        totals = [number + (1 + source.count_rest() if has_one else 0) for source, has_one in zip((self.ir, self.vis), more)]
        _check_lengths((self.ir.name, totals[0]), (self.vis.name, totals[1]))
        if self.length is not None and number < self.length:
            note("ends before the number of frames in its header; is it damaged?", f"{self.vis.name}, {number} of {self.length}")


class _Steps:
    """Notes once if the times between frames differ: a file with a variable frame rate shows other moments than its partner."""

    def __init__(self, ir: Capture, vis: Capture):
        self.sources, self.before, self.noted = (ir, vis), (0.0, 0.0), False

    def compare(self, number: int) -> None:
        """Call it after each frame. number: that of the frame, from 0."""
        times = tuple(source.time for source in self.sources)
        ir, vis = (now - then for now, then in zip(times, self.before))
        self.before = times
        if number and not self.noted and abs(ir - vis) > 0.5 / self.sources[1].rate:
            self.noted = True
            note("the times of their frames differ; convert both to a constant rate (ffmpeg -i FILE -fps_mode cfr NEW)",
                 f"{self.sources[0].name} and {self.sources[1].name}, from frame {number}")


def _check_lengths(*sides: tuple[object, int]) -> None:
    """Raises DataError that names both numbers of frames, unless they are equal. sides: two of (name, number)."""
    (ir, first), (vis, second) = sides
    if first != second:
        raise DataError(f"{ir} has {first} frames and {vis} has {second}; cut both to one length")


def open_clip(args: argparse.Namespace) -> FolderClip | CaptureClip:
    """Open the sources that --ir and --vis name. Raises DataError."""
    for source in (args.ir, args.vis):
        if camera_number(source) is None and not source.exists():
            raise DataError(f"{source}: no such file or folder")
        if source.suffix.lower() in IMAGE_SUFFIXES and not source.is_dir():
            raise DataError(f"{source}: is an image; a video is a file, or a folder of images with --video")
    kinds = [(source.is_dir(), camera_number(source) is not None) for source in (args.ir, args.vis)]
    if kinds[0] != kinds[1]:
        raise DataError(f"{args.ir} and {args.vis}: give two files, two folders or two cameras")
    if args.ir.is_dir():
        return FolderClip(args)
    if args.ir_pattern or args.vis_pattern or args.ir_range or args.vis_bits:
        raise DataError("--ir-pattern, --vis-pattern, --ir-range and --vis-bits go with folders in --ir and --vis")
    return CaptureClip(args)
