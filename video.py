"""Fusing video: files, folders of frames, cameras. Frames are read, fused and written one at a time.

The steady network can be used alone, too:

    from video import Steady
    with Steady(RPFNet.from_pretrained()) as steady:
        fused = [steady.fuse(ir, vis) for ir, vis in frames]        # uint8 each, as RPFNet.fuse
"""
from __future__ import annotations

import argparse
import os
import secrets
import sys
import time
from collections.abc import Iterator
from itertools import count
from pathlib import Path
from typing import NamedTuple

import cv2
import numpy as np
import torch
from torch import Tensor, nn
from tqdm import tqdm

import images
from dataset import load_pair, of_one_size
from images import DataError, infrared_luma, infrared_span, luma, note_shift, write_image
from inference import fuse_pair
from layers import ImagePools
from support.console import note
from support.outputs import OutputError, refuse_overwriting
from support.pairing import Pair, all_paired, find_pairs, list_images
from support.runtime import team

CODECS = {".mp4": "mp4v", ".avi": "MJPG"}                       # what results are written as
COUNTED = {*CODECS, ".mov", ".m4v"}                             # their headers hold the exact number of frames
SUFFIXES = COUNTED | {".mkv", ".webm", ".mpg", ".mpeg", ".wmv", ".ts"}

KEEP = 0.9              # weight of the past in the steady pools
RATE = 25.0             # frames a second, where the sources have no rate
SAME_RATE = 0.005       # frames a second; what headers round

# A scene cut. Inside five clips of M3SVD the largest change is 6.0, where the camera's gain jumps; from the end of one to the
# start of another the smallest is 22 (results/cuts.csv). The factor is for a camera that pans.
CUT_LEAST = 10.0        # gray levels
CUT_FACTOR = 3.0        # times the usual change
THUMBNAIL = 32, 24      # pixels

WINDOW = "RPFNet: q ends"

VIDEO_HELP = f"""\
--ir and --vis are two files ({' '.join(sorted(SUFFIXES))}),
two folders of frames with --video, or the numbers of two cameras (0 is the first).
--out is a file (.mp4 or .avi) or a folder. The sources must be aligned, and have one size,
length and frame rate. Ctrl-C ends the result where it is; it can be played."""


# ---------------------------------------------------------------------------------------------
# Options


def _weight(text: str) -> float:
    """0 to below 1, for argparse."""
    if not 0 <= float(text) < 1:
        raise argparse.ArgumentTypeError(f"{text} is not from 0 to below 1")
    return float(text)


def _rate(text: str) -> float:
    """Frames a second, for argparse."""
    if not 0 < float(text) <= 1000:
        raise argparse.ArgumentTypeError(f"{text} is not a number of frames a second, above 0 and up to 1000")
    return float(text)


def add_options(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("video", VIDEO_HELP)
    group.add_argument("--video", action="store_true", help="the folders in --ir and --vis hold the frames of one video, in "
                       "the order of their names; 16-bit infrared is scaled by one range for all (default: that of all frames)")
    group.add_argument("--steady", type=_weight, metavar="KEEP", help="against flicker: the network's global pools follow an "
                       "exponential average over the frames, with this weight of the past; a scene cut begins a new one "
                       f"(default: {KEEP}; 0: each frame as an image alone)")
    group.add_argument("--fps", type=_rate, metavar="RATE", help="frames a second of the result (default: as the sources; "
                       f"{RATE:g} for folders, and cameras that do not tell)")
    group.add_argument("--show", action="store_true", help="also show the frames in a window; q ends the run")


def check_options(args: argparse.Namespace) -> None:
    """Sets args.video and args.steady from all options of test.py. Raises ValueError for what does not go together."""
    sources = [source for source in (args.ir, args.vis) if source]
    args.video = args.video or any(_camera(source) is not None or _is_file(source) for source in sources)
    if not args.video:
        if args.steady is not None or args.fps or args.show:
            raise ValueError("--steady, --fps and --show are for video: files, cameras, or folders with --video")
        return
    unfit = "tile", "batch", "compile", "compare", "dataset", "data", "split"
    given = [f"--{name}" for name in unfit if getattr(args, name)]
    if given:
        raise ValueError(f"video goes without {', '.join(given)}")
    if len(sources) != 2:
        raise ValueError("video needs --ir and --vis")
    if args.released and args.steady:
        raise ValueError("--steady: the network of --released has no global pools; leave it out")
    args.steady = KEEP if args.steady is None else args.steady


def _camera(source: Path) -> int | None:
    """The number of a camera; None for anything else, also for a file or folder whose name is a number."""
    text = str(source)
    return int(text) if text.isascii() and text.isdigit() and not source.exists() else None


def _is_file(source: Path) -> bool:
    return source.suffix.lower() in SUFFIXES and not source.is_dir()


# ---------------------------------------------------------------------------------------------
# A steady network


class Cuts:
    """Finds scene cuts: frames that differ much more from the one before than frames did so far.

    The change is the mean absolute difference of both sources, averaged down to 32 x 24 pixels. It is a cut above 10 gray
    levels and above 3 times the usual change, which is the exponential average of all changes so far.

    Attributes:
        change: from the last frame but one to the last, gray levels.
        usual: the usual change before that.
    """

    def __init__(self):
        self.change = self.usual = 0.0
        self._thumbnails: np.ndarray | None = None

    def is_cut(self, ir: np.ndarray, vis: np.ndarray) -> bool:
        """Whether a new scene begins with this frame, uint8 (H, W) and (H, W) or (H, W, 3); never with the first."""
        small = np.stack([cv2.resize(luma(x), THUMBNAIL, interpolation=cv2.INTER_AREA) for x in (ir, vis)]).astype(np.float32)
        self.usual = KEEP * self.usual + (1 - KEEP) * self.change
        self.change = 0.0 if self._thumbnails is None else float(np.abs(small - self._thumbnails).mean())
        self._thumbnails = small
        return self.change > max(CUT_LEAST, CUT_FACTOR * self.usual)


class Steady:
    """A network for the frames of one video: its global pools follow an exponential average over time.

    The channel attention weighs channels by their average and maximum over the image. A hot object that enters changes
    both, and with them the static background. Averaged over frames they change slowly. Nothing else is averaged, so
    a moving object leaves no trail. The first frame, and the first after a scene cut (`Cuts`), is fused as an image alone.

    Args:
        model: as for `inference.fuse_pair`. Its `ImagePools` carry hooks until the end of the `with` block.
        keep: weight of the past, 0 to below 1. 0: each frame is fused as an image alone, exactly.
    Raises:
        ValueError: keep out of its range.
    """

    def __init__(self, model: nn.Module, keep: float = KEEP):
        if not 0 <= keep < 1:
            raise ValueError(f"keep={keep}; a weight from 0 to below 1 is needed")
        self.model, self.keep = model, keep
        self._averages: dict[nn.Module, list[Tensor]] = {}
        self._cuts = Cuts()
        pools = [module for module in model.modules() if isinstance(module, ImagePools)] if keep else []
        self._hooks = [module.register_forward_hook(self._follow) for module in pools]

    def __enter__(self) -> Steady:
        return self

    def __exit__(self, *_: object) -> None:
        for hook in self._hooks:
            hook.remove()
        self._averages.clear()

    def fuse(self, ir: np.ndarray, vis: np.ndarray, studio_range: bool = False) -> np.ndarray:
        """Fuse the next frame; arguments, result and errors as of `inference.fuse_pair`."""
        if self._hooks and self._cuts.is_cut(ir, vis):
            self._averages.clear()
        return fuse_pair(self.model, ir, vis, studio_range)

    def _follow(self, module: nn.Module, _: object, pools: tuple[Tensor, Tensor]) -> tuple[Tensor, ...]:
        # In float32: bfloat16 has no room for a tenth of a small change.
        new = [pool.float() for pool in pools]
        if module in self._averages:
            new = [torch.lerp(pool, before, self.keep) for pool, before in zip(new, self._averages[module])]
        self._averages[module] = new
        return tuple(average.to(pool.dtype) for average, pool in zip(new, pools))


# ---------------------------------------------------------------------------------------------
# Frames in


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
        number = _camera(source)
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
    kinds = [(source.is_dir(), _camera(source) is not None) for source in (args.ir, args.vis)]
    if kinds[0] != kinds[1]:
        raise DataError(f"{args.ir} and {args.vis}: give two files, two folders or two cameras")
    if args.ir.is_dir():
        return FolderClip(args)
    if args.ir_pattern or args.vis_pattern or args.ir_range:
        raise DataError("--ir-pattern, --vis-pattern and --ir-range go with folders in --ir and --vis")
    return CaptureClip(args)


# ---------------------------------------------------------------------------------------------
# Frames out


class FrameFolder:
    """Writes each frame as an image of its own into a folder that is there."""

    def __init__(self, folder: Path, suffix: str):
        self.folder, self.suffix = folder, suffix

    def __enter__(self) -> FrameFolder:
        return self

    def __exit__(self, *_: object) -> None:
        pass

    def write(self, name: str, image: np.ndarray) -> None:
        """Errors as of `images.write_image`."""
        write_image(self.folder / f"{name}.{self.suffix}", image)


class VideoFile:
    """Writes a video file, under a temporary name until the end of the `with` block, however it ends.

    Args:
        path: .mp4 or .avi; its folder is there.
        rate: frames a second.
    Raises:
        OutputError: the codec is missing, or the disk is full.
    """

    def __init__(self, path: Path, rate: float):
        self.path, self.rate = path, rate
        self._part = path.with_name(f".{secrets.token_hex(8)}.part{path.suffix}")   # OpenCV chooses the format by the suffix
        self._writer: cv2.VideoWriter | None = None
        self._shape: tuple[int, ...] = ()
        self._written = 0

    def __enter__(self) -> VideoFile:
        return self

    def __exit__(self, kind: object, *_: object) -> None:
        if self._writer is None:
            return
        try:
            self._writer.release()
            if kind is None:
                self._check_written()
        finally:
            if self._part.exists():
                self._part.replace(self.path)

    def write(self, name: str, image: np.ndarray) -> None:
        """Add uint8 (H, W) or (H, W, 3) RGB. Raises DataError for another size than before; OutputError."""
        if self._writer is None:
            self._writer, self._shape = self._opened(image), image.shape[:2]
        if image.shape[:2] != self._shape:
            raise DataError(f"{name} is {image.shape[1]}x{image.shape[0]}, and the frames before it are "
                            f"{self._shape[1]}x{self._shape[0]}; a video has one size")
        self._writer.write(_bgr(image))
        self._written += 1

    def _opened(self, image: np.ndarray) -> cv2.VideoWriter:
        height, width = image.shape[:2]
        if height % 2 or width % 2:
            note("video files have even sizes: the last row or column is left out; frames in a folder keep it", self.path.name)
        suffix = self.path.suffix.lower()
        writer = cv2.VideoWriter(str(self._part), cv2.VideoWriter_fourcc(*CODECS[suffix]), self.rate, (width, height))
        if not writer.isOpened():
            self._part.unlink(missing_ok=True)
            other = next(other for other in CODECS if other != suffix)
            raise OutputError(f"{self.path}: this OpenCV does not write {CODECS[suffix]}; choose {other}, or install "
                              "opencv-python from PyPI")
        return writer

    def _check_written(self) -> None:
        # OpenCV does not report a full disk.
        found = int(cv2.VideoCapture(str(self._part)).get(cv2.CAP_PROP_FRAME_COUNT))
        if found != self._written:
            self._part.unlink(missing_ok=True)
            raise OutputError(f"{self.path}: of {self._written} frames {found} could be written; is the disk full?")


def _bgr(image: np.ndarray) -> np.ndarray:
    return cv2.cvtColor(image, cv2.COLOR_GRAY2BGR if image.ndim == 2 else cv2.COLOR_RGB2BGR)


def check_display() -> None:
    """Raises OutputError where no window can be shown."""
    # Asked before OpenCV, whose windows end the process where there is no display.
    if sys.platform.startswith("linux") and not (os.environ.get("DISPLAY") or os.environ.get("WAYLAND_DISPLAY")):
        raise OutputError("--show: there is no display here (DISPLAY is not set); leave --show out")
    try:
        cv2.namedWindow(WINDOW)
    except cv2.error:
        raise OutputError("--show: this OpenCV has no windows; install opencv-python in place of "
                          "opencv-python-headless") from None


def shown(image: np.ndarray) -> bool:
    """Show a frame; False if the user closed the window, or pressed q or Escape."""
    cv2.imshow(WINDOW, _bgr(image))
    return cv2.waitKey(1) not in (ord("q"), 27) and cv2.getWindowProperty(WINDOW, cv2.WND_PROP_VISIBLE) >= 1


# ---------------------------------------------------------------------------------------------
# The run


class VideoFuser:
    """Fuses the video that the options of test.py name.

    Attributes:
        folder: is written to; it must be there for `fuse_all`.
        place: the resulting file; the folder for frames.
        written: number of frames.
        seconds: the time that they took, with reading and writing.
    Raises:
        DataError, OutputError: wrong sources, or results that cannot be written.
    """

    def __init__(self, args: argparse.Namespace):
        if team.world > 1:
            raise DataError("a video is fused by one process; start it without torchrun")
        if args.show:
            check_display()
        cv2.utils.logging.setLogLevel(cv2.utils.logging.LOG_LEVEL_SILENT)       # many lines where ours is one
        self.args, self.clip = args, open_clip(args)
        self.file = self._chosen_file()
        self.folder = self.file.parent if self.file else args.out
        self.place = self.file or args.out
        refuse_overwriting([] if self.file else [self.folder], self.file, self.clip.inputs)
        self.written, self.seconds = 0, 0.0

    def _chosen_file(self) -> Path | None:
        """The video file that is written; None for frames."""
        out, suffix = self.args.out, self.args.out.suffix.lower()
        if not out.is_dir() and suffix in SUFFIXES - CODECS.keys() | images.SUFFIXES:
            raise DataError(f"--out {out}: a video is written as {' or '.join(CODECS)}, or as frames into a folder")
        is_file = suffix in CODECS and not out.is_dir()
        if not is_file and isinstance(self.clip, FolderClip):
            return None
        if self.args.format:
            raise DataError(f"--format {self.args.format} is for frames that are written into a folder")
        return out if is_file else out / f"{self.clip.name}.mp4"

    def fuse_all(self, model: nn.Module) -> None:
        """Fuse and write frame by frame; what was written is whole, however this ends.

        Raises DataError, OutputError, OSError, ValueError, KeyboardInterrupt.
        """
        output = VideoFile(self.file, self.clip.rate) if self.file else FrameFolder(self.folder, self.args.format or "png")
        try:
            with Steady(model, self.args.steady) as steady, output:
                self._fuse_frames(steady, output)
        except OutputError:
            self.written = 0        # the file cannot be played
            raise

    def _fuse_frames(self, steady: Steady, output: VideoFile | FrameFolder) -> None:
        start = time.perf_counter()
        for frame in tqdm(self.clip, total=self.clip.length, unit="frame", desc="fusing"):
            if not self.written and not self.args.no_alignment_check:
                note_shift(self.clip.name, frame.ir, frame.vis)
            vis = luma(frame.vis) if self.args.gray else frame.vis
            fused = steady.fuse(frame.ir, vis, self.args.studio_range)
            output.write(frame.name, fused)
            self.written, self.seconds = self.written + 1, time.perf_counter() - start
            if self.args.show and not shown(fused):
                break
