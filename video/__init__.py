"""Fuse video: files, folders of frames, cameras. Frames are read, fused and written one at a time.

`Steady` can also be used without the command:

    from video import Steady
    with Steady(RPFNet.from_pretrained()) as steady:
        fused = [steady.fuse(ir, vis) for ir, vis in frames]        # uint8 arrays, as for RPFNet.fuse
"""
from __future__ import annotations

import argparse
import os
import time
from pathlib import Path

import cv2
from torch import nn
from tqdm import tqdm

from images import DataError, luma, note_shift
from support.console import like_ctrl_c, number
from support.headers import SUFFIXES as IMAGE_SUFFIXES
from support.outputs import OutputError, refuse_overwriting
from support.runtime import team
from video.clips import RATE, SUFFIXES, FolderClip, camera_number, check_name, is_video, open_clip
from video.results import CODECS, FrameFolder, VideoFile, check_display, shown
from video.steady import KEEP, Steady

__all__ = ["Steady", "VideoFuser", "add_options", "check_options", "weight_of_past"]

VIDEO_HELP = f"""\
--ir and --vis are two files ({' '.join(sorted(SUFFIXES))}),
two folders of frames with --video, or the numbers of two cameras (0 is the first).
--out is a file (.mp4 or .avi) or a folder; with --format png, a folder gets the frames as images.
The sources must be aligned, and must have one size, length and frame rate. After Ctrl-C, the
file holds the frames so far and can be played.
An existing file of this name is kept then, and the frames are in NAME.partial.mp4."""


# ---------------------------------------------------------------------------------------------
# Options


def weight_of_past(text: str) -> float:
    """Type of --steady for argparse: 0 <= weight < 1."""
    value = number(0, 1)(text)
    if value == 1:
        raise argparse.ArgumentTypeError(f"{text} is not below 1")
    return value


def add_options(parser: argparse.ArgumentParser) -> None:
    """Add the options for video to the parser of test.py."""
    group = parser.add_argument_group("video", VIDEO_HELP)
    group.add_argument("--video", action="store_true", help="the folders in --ir and --vis hold the frames of one "
                       "video, in the order of their names; one range scales the 16-bit infrared of all frames "
                       "(default: minimum and maximum of the sequence)")
    group.add_argument("--steady", type=weight_of_past, metavar="KEEP", help="reduce flicker: values of the network that "
                       "depend on the whole image are averaged exponentially over the frames, with this weight of the "
                       f"past; a scene cut starts new averages (default: {KEEP}; 0: each frame is fused alone; with "
                       "--as-published and --released this is always so)")
    group.add_argument("--fps", type=number(0, 1000, above=True), metavar="RATE", help="frames per second of the result "
                       f"(default: the rate of the sources; {RATE:g} for folders, and for cameras that report none)")
    group.add_argument("--show", action="store_true", help="also show the frames in a window; q ends a recording of "
                       "cameras, and interrupts the fusing of files like Ctrl-C")


def check_options(args: argparse.Namespace) -> None:
    """Set args.video and args.steady from the options of test.py. Raises ValueError for options that do not fit."""
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
    by_frame = "--released" if args.released else "--as-published" if args.as_published else ""
    if by_frame and args.steady:
        raise ValueError(f"--steady goes without {by_frame}: each frame is normalised by its own statistics")
    if args.steady is None:
        args.steady = 0.0 if by_frame else KEEP


# ---------------------------------------------------------------------------------------------
# The run


def silence_opencv() -> None:
    """Turn off the messages of OpenCV and FFmpeg. Errors are reported in one line here."""
    levels = getattr(cv2.utils, "logging", cv2)         # OpenCV 4.12 and earlier: cv2.setLogLevel
    levels.setLogLevel(0)       # silent
    os.environ.setdefault("OPENCV_FFMPEG_LOGLEVEL", "-8")


class VideoFuser:
    """Fuses the video that the options of test.py name.

    Args:
        args: options of test.py.

    Attributes:
        folder: output folder. It must exist before `fuse_all` is called.
        place: the file that holds the result; for frames, the output folder.
        written: number of frames that were written.
        seconds: time for these frames, including reading and writing.
    Raises:
        DataError, OutputError: wrong sources, or results that cannot be written.
    """

    def __init__(self, args: argparse.Namespace):
        if team.world > 1:
            raise DataError("a video is fused by one process; start it without torchrun")
        if args.show:
            check_display()
        silence_opencv()
        self.args, self.clip = args, open_clip(args)
        self.file = self._chosen_file()
        self.folder = self.file.parent if self.file else args.out
        if self.file:
            check_name(self.folder)     # the file itself has a temporary name
        self.place = self.file or args.out
        refuse_overwriting([] if self.file else [self.folder], self.file, self.clip.inputs)
        self.written, self.seconds = 0, 0.0

    def _chosen_file(self) -> Path | None:
        """The output file; None if frames are written into a folder. Raises DataError.

        Two folders, or --format, give frames in a folder, unless --out is a video file.
        """
        out, suffix = self.args.out, self.args.out.suffix.lower()
        if not out.is_dir() and suffix in {".gif", *SUFFIXES} - CODECS.keys() | IMAGE_SUFFIXES:
            raise DataError(f"--out {out}: a video is written as {' or '.join(CODECS)}; for frames, give a folder and "
                            "--format png")
        is_file = suffix in CODECS and not out.is_dir()
        if not is_file and (self.args.format or isinstance(self.clip, FolderClip)):
            if self.args.fps and isinstance(self.clip, FolderClip):
                raise DataError("--fps is for a video file; frames in a folder have no rate")
            return None
        if self.args.format:
            raise DataError(f"--format {self.args.format}: --out {out} is a video file; give a folder for frames")
        return out if is_file else out / f"{self.clip.name}.mp4"

    def fuse_all(self, model: nn.Module) -> None:
        """Fuse and write frame by frame. After an error, the frames so far form a valid result.

        Raises DataError, OutputError, OSError, ValueError, KeyboardInterrupt.
        """
        prefix = "" if isinstance(self.clip, FolderClip) else f"{self.clip.name}_"      # their frames have only numbers
        output = (VideoFile(self.file, self.clip.rate) if self.file else
                  FrameFolder(self.folder, self.args.format or "png", prefix))
        try:
            with like_ctrl_c(), Steady(model, self.args.steady) as steady, output:
                self._fuse_frames(steady, output)
        except OutputError:
            self.written = 0        # the error says how many frames the file has
            raise
        finally:
            self.place = output.path

    def _fuse_frames(self, steady: Steady, output: VideoFile | FrameFolder) -> None:
        start = time.perf_counter()
        length = self.clip.length
        for frame in tqdm(self.clip, total=length, unit="frame", desc="fusing", bar_format=_bar_format(length)):
            if not self.written and not self.args.no_alignment_check:
                note_shift(self.clip.name, frame.ir, frame.vis)
            vis = luma(frame.vis) if self.args.gray else frame.vis
            try:
                fused = steady.fuse(frame.ir, vis, self.args.studio_range)
            except ValueError as error:
                raise DataError(f"{self.clip.name}, frame {frame.name}: {error}") from None
            output.write(frame.name, fused)
            self.written, self.seconds = self.written + 1, time.perf_counter() - start
            if self.args.show and not shown(fused):
                if self.clip.inputs and self.written != length:
                    raise KeyboardInterrupt     # an earlier file is not replaced by a part of the video
                break


def _bar_format(length: int | None) -> str:
    """Format of the progress bar: that of tqdm, but always in frames a second, because --fps is set to this number."""
    # Below one frame a second, tqdm would show seconds a frame.
    if length is None:
        return "{desc}: {n_fmt}{unit} [{elapsed}, {rate_noinv_fmt}]"
    return "{l_bar}{bar}| {n_fmt}/{total_fmt} [{elapsed}<{remaining}, {rate_noinv_fmt}]"
