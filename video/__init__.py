"""Fusing video: files, folders of frames, cameras. Frames are read, fused and written one at a time.

The steady network can be used alone, too:

    from video import Steady
    with Steady(RPFNet.from_pretrained()) as steady:
        fused = [steady.fuse(ir, vis) for ir, vis in frames]        # uint8 each, as RPFNet.fuse
"""
from __future__ import annotations

import argparse
import time
from pathlib import Path

import cv2
from torch import nn
from tqdm import tqdm

from images import DataError, luma, note_shift
from support.headers import SUFFIXES as IMAGE_SUFFIXES
from support.outputs import OutputError, refuse_overwriting
from support.runtime import team
from video.clips import RATE, SUFFIXES, FolderClip, camera_number, is_video, open_clip
from video.results import CODECS, FrameFolder, VideoFile, check_display, shown
from video.steady import KEEP, Steady

__all__ = ["Steady", "VideoFuser", "add_options", "check_options"]

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
    args.video = args.video or any(camera_number(source) is not None or is_video(source) for source in sources)
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
        if not out.is_dir() and suffix in SUFFIXES - CODECS.keys() | IMAGE_SUFFIXES:
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
