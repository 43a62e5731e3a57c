"""Output of video: frames in a folder, a video file, a window."""
from __future__ import annotations

import errno
import itertools
import os
import secrets
import shutil
import subprocess
import sys
from pathlib import Path

import cv2
import numpy as np

from images import DataError, write_image
from support.console import note
from support.headers import SUFFIXES
from support.outputs import OutputError
from video.clips import count_frames

RESERVE = 2**24     # bytes that stay free on the disk, because the index of an .mp4 file is written at its end
CODECS = {".mp4": "mp4v", ".avi": "MJPG"}
WINDOW = "RPFNet: q ends"


class FrameFolder:
    """Writes each frame as an image into an existing folder. At the end, other images there are counted in a note.

    Args:
        path: the output folder.
        suffix: image format, such as "png".
        prefix: start of the file names, which tells videos in one folder apart.
    """

    def __init__(self, path: Path, suffix: str, prefix: str = ""):
        self.path, self.suffix, self.prefix = path, suffix, prefix
        self._written: set[str] = set()

    def __enter__(self) -> FrameFolder:
        return self

    def __exit__(self, *_: object) -> None:
        others = sum(path.suffix.lower() in SUFFIXES and path.name not in self._written for path in self.path.iterdir())
        if others:
            note("also holds images that are not of this video", f"{self.path} ({others})")

    def write(self, name: str, image: np.ndarray) -> None:
        """Write a frame; arguments and errors as for `images.write_image`. `name` has no suffix."""
        file = self.path / f"{self.prefix}{name}.{self.suffix}"
        write_image(file, image)
        self._written.add(file.name)


class VideoFile:
    """Writes a video file. It has a temporary name until the end of the `with` block.

    OpenCV does not report a full disk, so `write` ends before the disk is full. After an error or Ctrl-C, the frames so far
    are kept if they can be read. If there was a file at `path`, it is not replaced then, and the frames are in
    NAME.partial.SUFFIX beside it, or NAME.partial-2.SUFFIX if that exists, and so on.

    Attributes:
        path: the file that holds the frames after the block.

    Args:
        path: .mp4 or .avi file in an existing folder.
        rate: frames per second.
    Raises:
        OutputError: the codec is missing, or frames were lost, such as by a quota.
    """

    def __init__(self, path: Path, rate: float):
        self.path, self.rate = path, rate
        # The temporary name keeps the suffix, because OpenCV chooses the format by it.
        self._part = path.with_name(f".{secrets.token_hex(8)}.part{path.suffix}")
        self._writer: cv2.VideoWriter | None = None
        self._shape: tuple[int, ...] = ()
        self._written = 0

    def __enter__(self) -> VideoFile:
        return self

    def __exit__(self, kind: object, *_: object) -> None:
        if self._writer is None:
            return
        complete, found = False, self._written
        try:
            self._writer.release()
            if kind is None or kind is KeyboardInterrupt:       # another error must not be hidden by that of the check
                found = self._count()
            # Ctrl-C can come after a frame was written and before it was counted.
            complete = kind is None and found >= self._written
        finally:
            if found:
                self._keep(complete)
        if not found:
            self._part.unlink(missing_ok=True)
            raise OutputError(f"{self.path}: no frame could be written; is the disk full?")
        if found < self._written:
            raise OutputError(f"{self.path}: of {self._written} frames {found} are in the file, which is kept; is the disk full?")

    def write(self, name: str, image: np.ndarray) -> None:
        """Add a frame, uint8 (H, W) or (H, W, 3) RGB.

        Raises DataError if the size changes, OSError for an almost full disk, and OutputError as for the class.
        """
        if shutil.disk_usage(self._part.parent).free < RESERVE:
            raise OSError(errno.ENOSPC, f"less than {RESERVE / 1e6:.0f} MB are free on the disk", str(self.path))
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
        writer = cv2.VideoWriter(str(self._part.absolute()), cv2.VideoWriter_fourcc(*CODECS[suffix]), self.rate, (width, height))
        if not writer.isOpened():
            self._part.unlink(missing_ok=True)
            other = next(other for other in CODECS if other != suffix)
            raise OutputError(f"{self.path}: this OpenCV does not write {CODECS[suffix]} of {width}x{height} at {self.rate:g} "
                              f"frames a second; choose {other} or another --fps, or install opencv-python from PyPI")
        return writer

    def _keep(self, complete: bool) -> None:
        """Give the file its name. An earlier file is replaced only if the new one is complete.

        Raises OutputError that names the file with the frames if that fails.
        """
        if not self._part.exists():
            return
        problem = ""
        if complete or not self.path.exists():
            try:
                self._part.replace(self.path)
                return
            except OSError as error:
                problem = f"{self.path}: cannot be replaced ({error.strerror}); "
        try:
            target = _partial(self.path)
            self._part.replace(target)
        except OSError as error:
            raise OutputError(f"{self._part}: holds the frames and could not be renamed ({error.strerror})") from None
        if problem:
            raise OutputError(f"{problem}the frames are in {target}")
        self.path = target

    def _count(self) -> int:
        """The number of frames in the file."""
        # OpenCV does not report lost frames, and the header may name them too. So the frames are counted.
        file = cv2.VideoCapture(str(self._part.absolute()))
        file.set(cv2.CAP_PROP_FORMAT, -1)       # without decoding them
        found = count_frames(file)
        file.release()
        return found


def _partial(path: Path) -> Path:
    """A free name beside `path`: NAME.partial.mp4, NAME.partial-2.mp4, ..."""
    names = (path.with_name(f"{path.stem}.partial{f'-{number}' * (number > 1)}{path.suffix}") for number in itertools.count(1))
    return next(name for name in names if not name.exists())


def _bgr(image: np.ndarray) -> np.ndarray:
    return cv2.cvtColor(image, cv2.COLOR_GRAY2BGR if image.ndim == 2 else cv2.COLOR_RGB2BGR)


def check_display() -> None:
    """Raises OutputError if no window can be shown."""
    if sys.platform.startswith("linux") and not os.environ.get("DISPLAY"):
        raise OutputError("--show: there is no display here (DISPLAY is not set); leave --show out")
    # In another process, because OpenCV ends a process whose display does not answer.
    probe = [sys.executable, "-c", "import cv2; cv2.namedWindow('probe')"]
    if subprocess.run(probe, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL).returncode:
        raise OutputError("--show: no window can be opened here; check the display, install opencv-python in place of "
                          "opencv-python-headless, or leave --show out")


def shown(image: np.ndarray) -> bool:
    """Show a frame. Returns False if the user closed the window or pressed q or Escape."""
    cv2.imshow(WINDOW, _bgr(image))
    return cv2.waitKey(1) not in (ord("q"), 27) and cv2.getWindowProperty(WINDOW, cv2.WND_PROP_VISIBLE) >= 1
