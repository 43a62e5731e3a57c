"""Video: frames in and out, errors, Ctrl-C, and pools that follow an average over the frames."""
import itertools
import os
import re
import shutil
import signal
import threading
import warnings
from contextlib import nullcontext
from pathlib import Path
from types import SimpleNamespace

import cv2
import numpy as np
import pytest
import torch
from conftest import random_pair, trained, write_clip, write_weights

import test as fuse_command
import video
from images import DataError, infrared_span, luma, read_gray, read_vis
from layers import ImagePools
from net import RPFNet
from support.console import INTERRUPTED, like_ctrl_c
from support.outputs import OutputError, is_stray
from tools.naturalness import entering_target, flicker_measures
from video import Steady
from video.clips import Capture, FolderClip, camera_number, is_video
from video.results import FrameFolder, VideoFile
from video.steady import Cuts

SIZE = 64, 80
LENGTH = 10
RATE = 12.5      # frames a second


def scene(seed=0, low=30, high=120):
    """A smooth random pair, infrared and colour visible."""
    rng = np.random.default_rng(seed)
    smooth = cv2.GaussianBlur(rng.random((*SIZE, 4)), (0, 0), 6)
    levels = np.uint8(low + (high - low) * (smooth - smooth.min()) / np.ptp(smooth))
    return levels[..., 0].copy(), levels[..., 1:].copy()


def network():
    """A small one, whose picture depends on the attention's pools strongly; running statistics are not the initial ones."""
    torch.manual_seed(1)
    model = RPFNet(channels=4, stages=2)
    with torch.no_grad():
        for layer in model.stages[0].rpm.ca.mlp[::2]:       # the stages share them
            layer.weight *= 4
        model.stages[0].rpm.ca.mlp[0].weight.abs_()
        for seed in range(10):
            model(*random_pair(2, 32, 32, seed=seed))
        model.head.last.weight *= 40
    return model.eval()


@pytest.fixture(scope="module")
def small(tmp_path_factory):
    return ["--checkpoint", write_weights(tmp_path_factory.mktemp("weights") / "last.pth", network())]


def read_clip(path):
    capture = cv2.VideoCapture(str(path))
    frames = []
    while (frame := capture.read()[1]) is not None:
        frames.append(frame)
    return frames, capture.get(cv2.CAP_PROP_FPS)


@pytest.fixture(scope="module")
def clips(tmp_path_factory):
    """ir.avi and vis.avi of 10 frames, short.avi of 7, slow.avi with half the rate, large.avi. Not to be written to."""
    folder = tmp_path_factory.mktemp("clips")
    ir, vis = zip(*entering_target(*scene(), LENGTH))
    write_clip(folder / "ir.avi", ir, RATE)
    write_clip(folder / "vis.avi", vis, RATE)
    write_clip(folder / "short.avi", vis[:7], RATE)
    write_clip(folder / "slow.avi", vis, RATE / 2)
    write_clip(folder / "large.avi", [cv2.resize(frame, None, fx=2, fy=2) for frame in vis], RATE)
    return folder


@pytest.fixture
def folders(tmp_path):
    """The same sequence as frames, with 16-bit infrared from 1000 to 3000 and more."""
    for side in ("ir", "vis"):
        (tmp_path / side).mkdir()
    for number, (ir, vis) in enumerate(entering_target(*scene(), LENGTH)):
        cv2.imwrite(str(tmp_path / "ir" / f"{number}.png"), 1000 + np.uint16(ir) * 10)
        cv2.imwrite(str(tmp_path / "vis" / f"{number}.png"), vis[..., ::-1])
    return tmp_path


@pytest.fixture
def press_q(monkeypatch):
    """Function after which the window that --show opens gets a q at this frame."""
    def press(frame):
        shown = []
        monkeypatch.setattr(video, "check_display", lambda: None)
        monkeypatch.setattr(cv2, "imshow", lambda window, image: shown.append(image))
        monkeypatch.setattr(cv2, "waitKey", lambda delay: ord("q") if len(shown) == frame else -1)
        monkeypatch.setattr(cv2, "getWindowProperty", lambda *_: 1.0)
    return press


def fuse(ir, vis, out, *options):
    return fuse_command.main(["--ir", str(ir), "--vis", str(vis), "--out", str(out), *options])


def names(folder):
    return sorted(path.name for path in folder.iterdir())


# --- files ---


@pytest.mark.parametrize("name", ["fused.mp4", "fused.avi"])
def test_two_files_become_one_of_the_same_length_rate_and_size(clips, tmp_path, small, name, capsys):
    assert fuse(clips / "ir.avi", clips / "vis.avi", tmp_path / "out" / name, *small) == 0
    frames, rate = read_clip(tmp_path / "out" / name)
    assert len(frames) == LENGTH and rate == RATE and frames[0].shape == (*SIZE, 3)
    assert names(tmp_path / "out") == [name]        # and no temporary file
    said = capsys.readouterr()
    assert f"10 frames in {tmp_path / 'out' / name}" in said.out and "frames a second on cpu, " in said.out
    assert "10/10" in said.err


@pytest.mark.parametrize("counted, progress", [({".avi"}, f"{LENGTH}/{LENGTH} ["), (set(), f"fusing: {LENGTH}frame [")])
def test_the_bar_shows_frames_a_second_also_of_slow_frames(clips, tmp_path, small, capsys, monkeypatch, counted, progress):
    monkeypatch.setattr(video.clips, "COUNTED", counted)
    monkeypatch.setattr("tqdm.std.time", itertools.count(0, 4).__next__)        # a frame takes 4 s or more
    assert fuse(clips / "ir.avi", clips / "vis.avi", tmp_path / "fused.avi", *small) == 0
    last = capsys.readouterr().err.splitlines()[-1]
    assert progress in last and re.search(r", +0\.\d\dframe/s]", last)


def test_a_folder_as_the_output_of_files_gets_one_named_after_the_visible(clips, tmp_path, small):
    assert fuse(clips / "ir.avi", clips / "vis.avi", tmp_path, *small) == 0
    assert names(tmp_path) == ["vis.mp4"]


def test_colour_is_that_of_the_visible_and_gray_has_none(clips, tmp_path, small):
    vis = read_clip(clips / "vis.avi")[0]
    assert fuse(clips / "ir.avi", clips / "vis.avi", tmp_path / "colour.avi", *small) == 0
    assert fuse(clips / "ir.avi", clips / "vis.avi", tmp_path / "gray.avi", *small, "--gray") == 0
    colour, gray, source = (np.int32(cv2.blur(frames[5], (9, 9))) for frames in
                            (*(read_clip(tmp_path / name)[0] for name in ("colour.avi", "gray.avi")), vis))
    assert np.corrcoef(*((x[..., 2] - x[..., 0]).ravel() for x in (colour, source)))[0, 1] > 0.9
    assert np.ptp(gray, axis=2).max() <= 2


@pytest.mark.parametrize("ir, vis, message", [
    ("ir.avi", "short.avi", "ir.avi has 10 frames and .*short.avi has 7"),
    ("ir.avi", "slow.avi", "ir.avi has 12.5 frames a second and .*slow.avi 6.25; .*--fps"),
    ("ir.avi", "large.avi", "infrared is 80x64 and visible 160x128.*--resize"),
    ("ir.avi", "none.avi", "none.avi: no such file"),
    ("ir.avi", "7", "give two files, two folders or two cameras"),
    ("ir.avi", ".", "give two files, two folders or two cameras"),
])
def test_sources_that_differ_are_named_with_both_numbers(clips, tmp_path, small, ir, vis, message, capsys):
    vis = vis if vis.isdigit() else clips / vis
    assert fuse(clips / ir, vis, tmp_path / "out" / "fused.avi", *small) == 1
    assert re.search(message, capsys.readouterr().err)
    assert names(tmp_path) == []


def test_rates_and_sizes_that_differ_go_together_where_the_user_says_so(clips, tmp_path, small):
    assert fuse(clips / "ir.avi", clips / "slow.avi", tmp_path / "a.avi", *small, "--fps", "10") == 0
    assert read_clip(tmp_path / "a.avi")[1] == 10
    assert fuse(clips / "ir.avi", clips / "large.avi", tmp_path / "b.avi", *small, "--resize", "vis") == 0
    assert read_clip(tmp_path / "b.avi")[0][0].shape == (*SIZE, 3)


def test_a_length_that_only_the_end_tells_is_an_error_after_a_file_that_can_be_played(clips, tmp_path, small, capsys,
                                                                                      monkeypatch):
    monkeypatch.setattr(video.clips, "COUNTED", set())        # as for .mkv
    assert fuse(clips / "ir.avi", clips / "short.avi", tmp_path / "fused.avi", *small) == 1
    assert "ir.avi has 10 frames and" in capsys.readouterr().err
    assert len(read_clip(tmp_path / "fused.avi")[0]) == 7 and names(tmp_path) == ["fused.avi"]


def test_damage_is_named(clips, tmp_path, small, capsys):
    (tmp_path / "ir.avi").write_bytes(b"no video")
    assert fuse(tmp_path / "ir.avi", clips / "vis.avi", tmp_path / "fused.avi", *small) == 1
    assert "ir.avi: cannot be opened; damaged" in capsys.readouterr().err


def test_a_source_is_not_written_over(clips, small, capsys):
    before = (clips / "vis.avi").read_bytes()
    for out in (clips / "vis.avi", clips / "vis.mp4", clips):
        assert fuse(clips / "ir.avi", clips / "vis.avi", out, *small) == 1
        assert "vis.avi is a source" in capsys.readouterr().err
    assert (clips / "vis.avi").read_bytes() == before


def test_ctrl_c_leaves_a_file_that_can_be_played(clips, tmp_path, small, capsys, monkeypatch):
    whole = Steady.fuse
    fused = []

    def interrupted(*args):
        if len(fused) == 4:
            signal.raise_signal(signal.SIGINT)
        fused.append(whole(*args))
        return fused[-1]
    monkeypatch.setattr(Steady, "fuse", interrupted)
    assert fuse(clips / "ir.avi", clips / "vis.avi", tmp_path / "fused.mp4", *small) == INTERRUPTED
    assert len(read_clip(tmp_path / "fused.mp4")[0]) == 4 and names(tmp_path) == ["fused.mp4"]
    said = capsys.readouterr()
    assert "4 frames in" in said.out and "test.py: interrupted" in said.err


def test_an_earlier_file_survives_a_run_that_ends_early(clips, tmp_path, small, capsys, monkeypatch):
    monkeypatch.setattr(video.clips, "COUNTED", set())
    assert fuse(clips / "ir.avi", clips / "vis.avi", tmp_path / "fused.avi", *small) == 0
    assert fuse(clips / "ir.avi", clips / "short.avi", tmp_path / "fused.avi", *small) == 1
    assert len(read_clip(tmp_path / "fused.avi")[0]) == LENGTH and len(read_clip(tmp_path / "fused.partial.avi")[0]) == 7
    assert f"7 frames in {tmp_path / 'fused.partial.avi'}" in capsys.readouterr().out


def test_names_with_undecodable_bytes_are_refused_because_opencv_would_crash(clips, tmp_path, small, capsys):
    bad = tmp_path / os.fsdecode(b"v\xff")
    try:
        bad.mkdir()
    except OSError:
        pytest.skip("this file system takes no undecodable names")
    shutil.copy(clips / "vis.avi", bad / "vis.avi")
    for vis, out in ((bad / "vis.avi", tmp_path / "a.avi"), (clips / "vis.avi", bad / "a.avi")):
        assert fuse(clips / "ir.avi", vis, out, *small) == 1
        assert "its name has undecodable bytes; rename it" in capsys.readouterr().err


@pytest.mark.parametrize("name", ["SIGINT", "SIGTERM", "SIGHUP"])
def test_a_signal_after_the_last_write_is_no_full_disk(clips, tmp_path, small, capsys, monkeypatch, name):
    write = VideoFile._opened

    class Interrupted:
        def __init__(self, writer):
            self.writer, self.release, self.frames = writer, writer.release, 0

        def write(self, image):
            self.writer.write(image)
            self.frames += 1
            if self.frames == 4:
                signal.raise_signal(getattr(signal, name))
    monkeypatch.setattr(VideoFile, "_opened", lambda *args: Interrupted(write(*args)))
    number = getattr(signal, name)
    former = signal.signal(number, signal.default_int_handler if name == "SIGINT" else signal.SIG_DFL)   # nohup ignores SIGHUP
    handler = signal.getsignal(number)
    try:
        assert fuse(clips / "ir.avi", clips / "vis.avi", tmp_path / "fused.avi", *small) == INTERRUPTED
        assert signal.getsignal(number) == handler
    finally:
        signal.signal(number, former)
    assert len(read_clip(tmp_path / "fused.avi")[0]) == 4
    said = capsys.readouterr()
    assert "3 frames in" in said.out and said.err.endswith("test.py: interrupted\n")


def test_a_signal_that_the_shell_ignores_stays_ignored():
    former = signal.signal(signal.SIGTERM, signal.SIG_IGN)
    try:
        with like_ctrl_c():
            signal.raise_signal(signal.SIGTERM)
    finally:
        signal.signal(signal.SIGTERM, former)


def test_frames_that_cannot_get_the_name_are_kept_under_another(tmp_path, monkeypatch):
    out, replace = tmp_path / "fused.avi", Path.replace
    out.write_bytes(b"earlier")

    refuse: set[Path] = set()

    def refused(path, target):
        if target in refuse:
            raise PermissionError(1, "Operation not permitted", str(path))
        return replace(path, target)
    monkeypatch.setattr(Path, "replace", refused)
    for target, message in ((out, f"{out}: cannot be replaced (Operation not permitted); the frames are in "
                                    f"{tmp_path / 'fused.partial.avi'}"),
                            (tmp_path / "fused.partial-2.avi", "holds the frames and could not be renamed")):
        refuse.add(target)
        with pytest.raises(OutputError, match=re.escape(message)), VideoFile(out, RATE) as file:
            file.write("a", np.zeros(SIZE, np.uint8))
    assert out.read_bytes() == b"earlier" and len(names(tmp_path)) == 3
    assert len(read_clip(tmp_path / "fused.partial.avi")[0]) == 1


@pytest.mark.parametrize("suffix", [".avi", ".mp4"])
def test_the_run_ends_before_the_disk_is_full(clips, tmp_path, small, capsys, monkeypatch, suffix):
    """The frames so far can be played, also those of .mp4, whose index comes last."""
    free = iter([2**30] * 3)
    monkeypatch.setattr(video.results.shutil, "disk_usage", lambda _: SimpleNamespace(free=next(free, 2**23)))
    out = tmp_path / f"fused{suffix}"
    assert fuse(clips / "ir.avi", clips / "vis.avi", out, *small) == 1
    assert len(read_clip(out)[0]) == 3 and names(tmp_path) == [out.name]
    said = capsys.readouterr()
    assert f"3 frames in {out}" in said.out and said.err.endswith(f"test.py: {out}: less than 17 MB are free on the disk\n")


def test_each_interrupted_recording_has_a_file_of_its_own(tmp_path):
    for count in (1, 2, 3):
        with pytest.raises(KeyboardInterrupt), VideoFile(tmp_path / "fused.avi", RATE) as file:
            for _ in range(count):
                file.write("frame", np.full(SIZE, 99, np.uint8))
            raise KeyboardInterrupt
    assert names(tmp_path) == ["fused.avi", "fused.partial-2.avi", "fused.partial.avi"]
    assert [len(read_clip(tmp_path / name)[0]) for name in names(tmp_path)] == [1, 3, 2]


def test_a_file_that_lacks_frames_is_kept_and_one_without_any_is_not(tmp_path):
    gray = np.full(SIZE, 99, np.uint8)
    for count, kept in ((3, True), (0, False)):
        out = tmp_path / f"{count}.avi"
        with pytest.raises(OutputError, match=f"3 are in the file, which is kept|{out.name}: no frame could be written"):
            with VideoFile(out, RATE) as file:
                for _ in range(count):
                    file.write("frame", gray)
                if count == 0:
                    file._writer = SimpleNamespace(release=lambda: None)        # opened, and the disk was full at once
                file._written += 2      # as if the disk had been full for two
        assert out.exists() == kept
    assert len(read_clip(tmp_path / "3.avi")[0]) == 3 and names(tmp_path) == ["3.avi"]


@pytest.mark.parametrize("interrupted", [False, True])
@pytest.mark.parametrize("suffix, kept", [(".avi", True), (".mp4", False)])     # the index of .mp4 is at its end
def test_an_earlier_file_survives_a_full_disk(tmp_path, suffix, kept, interrupted):
    resource = pytest.importorskip("resource")
    out, partial = tmp_path / f"fused{suffix}", tmp_path / f"fused.partial{suffix}"
    noise = np.random.default_rng(0).integers(0, 256, (20, *SIZE), np.uint8)
    write_clip(out, noise[:2])
    earlier = out.read_bytes()
    message = f"{partial}: of 20 frames [1-9] are in the file" if kept else f"{out}: no frame could be written"
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, limits[1]))
    try:
        with pytest.raises(OutputError, match=message), VideoFile(out, RATE) as file:
            for image in noise:
                file.write("frame", image)
            if interrupted:
                raise KeyboardInterrupt
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert out.read_bytes() == earlier and partial.exists() == kept and file.path == (partial if kept else out)
    assert len(names(tmp_path)) == 1 + kept         # and no temporary file
    with VideoFile(out, RATE) as file:
        for image in noise:
            file.write("frame", image)
    assert len(read_clip(out)[0]) == 20             # a complete one replaces it


def test_gray_video_of_16_bits_is_refused_with_the_remedy(clips, tmp_path, small, capsys):
    deep = [cv2.VIDEOWRITER_PROP_DEPTH, cv2.CV_16U, cv2.VIDEOWRITER_PROP_IS_COLOR, 0]
    writer = cv2.VideoWriter(str(tmp_path / "ir.mkv"), cv2.CAP_FFMPEG, cv2.VideoWriter_fourcc(*"FFV1"), RATE, SIZE[::-1], deep)
    if not writer.isOpened():
        pytest.skip("this OpenCV does not write 16-bit video")
    for level in range(LENGTH):
        writer.write(np.full(SIZE, 3000 + level, np.uint16))
    writer.release()
    assert fuse(tmp_path / "ir.mkv", clips / "vis.avi", tmp_path / "fused.avi", *small) == 1
    error = capsys.readouterr().err
    assert "ir.mkv: gray video of 16 bits" in error and "ffmpeg -i ir.mkv" in error and names(tmp_path) == ["ir.mkv"]


def test_paths_with_a_colon_are_files(clips, tmp_path, small, monkeypatch):
    monkeypatch.chdir(tmp_path)
    shutil.copy(clips / "ir.avi", "12:30 ir.avi")
    assert fuse("12:30 ir.avi", clips / "vis.avi", "12:30 fused.avi", *small) == 0
    assert len(read_clip(tmp_path / "12:30 fused.avi")[0]) == LENGTH


def test_a_writer_that_cannot_be_opened_names_the_remedy(clips, tmp_path, small, capsys, monkeypatch):
    monkeypatch.setitem(video.results.CODECS, ".mp4", "????")
    assert fuse(clips / "ir.avi", clips / "vis.avi", tmp_path / "fused.mp4", *small) == 1
    assert "does not write ???? of 80x64 at 12.5 frames a second; choose .avi" in capsys.readouterr().err
    assert names(tmp_path) == []


def test_frames_are_read_one_at_a_time(clips, tmp_path, monkeypatch):
    """Between two frames that are written, each source is read once."""
    events = []
    read, write = video.clips.Capture.read, VideoFile.write
    monkeypatch.setattr(video.clips.Capture, "read", lambda self: events.append("read") or read(self))
    monkeypatch.setattr(VideoFile, "write", lambda *args: events.append("write") or write(*args))
    monkeypatch.setattr(fuse_command, "load_network", lambda args: network())
    assert fuse(clips / "ir.avi", clips / "vis.avi", tmp_path / "fused.avi") == 0
    assert events == ["read", "read", "write"] * LENGTH + ["read", "read"]


# --- cameras ---


class Camera:
    """Stands for cv2.VideoCapture of a camera that stops after its frames."""

    def __init__(self, frames, rate):
        self.frames, self.rate, self.taken = frames, rate, 0

    def isOpened(self):
        return True

    def get(self, name):
        return self.rate if name == cv2.CAP_PROP_FPS else -1.0      # as OpenCV for what a camera does not know

    def read(self):
        self.taken += 1
        return (True, self.frames[self.taken - 1]) if self.taken <= len(self.frames) else (False, None)


@pytest.fixture
def plug_in(monkeypatch):
    """Function that connects camera 0 (infrared) and 1 (visible), with the frames of `clips`. Returns both."""
    opened = cv2.VideoCapture

    def connect(lengths=(LENGTH, LENGTH), rates=(RATE, RATE)):
        ir, vis = zip(*entering_target(*scene(), LENGTH))
        frames = [cv2.cvtColor(frame, cv2.COLOR_GRAY2BGR) for frame in ir], [frame[..., ::-1].copy() for frame in vis]
        cameras = [Camera(side[:length], rate) for side, length, rate in zip(frames, lengths, rates)]
        monkeypatch.setattr(cv2, "VideoCapture", lambda source: opened(source) if isinstance(source, str) else cameras[source])
        return cameras
    return connect


def test_two_cameras_are_read_in_turn_into_a_file_named_after_the_time(tmp_path, small, plug_in, press_q, monkeypatch, capsys):
    cameras, fused, whole = plug_in(), [], Steady.fuse
    monkeypatch.setattr(Steady, "fuse", lambda *args: fused.append(args[1:3]) or whole(*args))
    press_q(3)
    assert fuse("0", "1", tmp_path, *small, "--show") == 0
    [name] = names(tmp_path)
    assert re.fullmatch(r"camera_\d{4}-\d\d-\d\d_\d\d-\d\d-\d\d\.mp4", name)
    frames, rate = read_clip(tmp_path / name)
    assert len(frames) == len(fused) == 3 and rate == RATE and [camera.taken for camera in cameras] == [3, 3]
    assert f"3 frames in {tmp_path / name}" in capsys.readouterr().out
    for taken, (ir, vis) in zip(fused, entering_target(*scene(), LENGTH)):
        assert (taken[0] == ir).all() and (taken[1] == vis).all()


@pytest.mark.parametrize("lengths, message", [
    ((3, 9), "camera 0: no frame could be read after the first 3"),
    ((9, 3), "camera 1: no frame could be read after the first 3"),
    ((3, 3), "camera 0 and camera 1: no frame could be read after the first 3"),
    ((0, 9), "camera 0: no frame could be read"),
])
def test_a_camera_that_stops_is_named_and_the_frames_so_far_are_kept(tmp_path, small, plug_in, lengths, message, capsys):
    plug_in(lengths)
    assert fuse("0", "1", tmp_path / "fused.avi", *small) == 1
    assert f"test.py: {message}\n" in capsys.readouterr().err
    length = min(lengths)
    assert names(tmp_path) == ["fused.avi"] * (length > 0)
    assert len(read_clip(tmp_path / "fused.avi")[0]) == length


def test_rates_of_cameras_that_differ_need_fps(tmp_path, small, plug_in, capsys):
    plug_in(rates=(25.0, 30.0))
    assert fuse("0", "1", tmp_path / "fused.avi", *small) == 1
    assert re.search("camera 0 has 25 frames a second and camera 1 30; give --fps", capsys.readouterr().err)
    assert names(tmp_path) == []


@pytest.mark.parametrize("rates, options, expected", [((25.0, 30.0), ["--fps", "8"], 8), ((0.0, 0.0), [], 25)])
def test_the_rate_of_a_recording_is_fps_or_the_default_without_any(tmp_path, small, plug_in, press_q, rates, options, expected):
    plug_in(rates=rates)
    press_q(2)
    assert fuse("0", "1", tmp_path / "fused.avi", *small, "--show", *options) == 0
    frames, rate = read_clip(tmp_path / "fused.avi")
    assert len(frames) == 2 and rate == expected


def test_a_camera_that_is_not_there_is_named(tmp_path, small, capsys):
    assert fuse("97", "98", tmp_path / "fused.avi", *small) == 1
    assert "camera 97: cannot be opened; is it connected, and free?" in capsys.readouterr().err


# --- folders of frames ---


def test_folders_of_frames_become_frames_or_a_file(folders, small):
    assert fuse(folders / "ir", folders / "vis", folders / "out", *small, "--video") == 0
    assert names(folders / "out") == [f"{number}.png" for number in range(LENGTH)]
    assert fuse(folders / "ir", folders / "vis", folders / "fused.mp4", *small, "--video", "--fps", "30") == 0
    frames, rate = read_clip(folders / "fused.mp4")
    assert len(frames) == LENGTH and rate == 30
    (folders / "ir" / "9.png").unlink()
    assert fuse(folders / "ir", folders / "vis", folders / "out", *small, "--video") == 1


@pytest.mark.parametrize("suffix", video.results.CODECS)
def test_of_an_odd_size_a_file_lacks_the_last_row_and_column_with_a_note_and_frames_keep_them(tmp_path, small, suffix, capsys):
    for side, image in zip(("ir", "vis"), scene()):
        (tmp_path / side).mkdir()
        cv2.imwrite(str(tmp_path / side / "0.png"), image[:63, :79])
    for name in ("out", f"fused{suffix}"):
        assert fuse(tmp_path / "ir", tmp_path / "vis", tmp_path / name, *small, "--video") == 0
        note = f"note: video files have even sizes: the last row or column is left out; .*: {name}\n"
        assert bool(re.search(note, capsys.readouterr().err)) == (name != "out")
    whole = cv2.imread(str(tmp_path / "out" / "0.png"))
    assert whole.shape == (63, 79, 3)
    write_clip(tmp_path / f"even{suffix}", [whole[:62, :78, ::-1]])
    [frame], [even] = (read_clip(tmp_path / name)[0] for name in (f"fused{suffix}", f"even{suffix}"))
    assert frame.shape == (62, 78, 3) and (frame == even).all()


@pytest.mark.parametrize("old", [True, False], ids=["4.12", "4.13"])
def test_opencv_is_silent_in_each_version(monkeypatch, old):
    levels: list[int] = []
    switch = SimpleNamespace(setLogLevel=levels.append)
    monkeypatch.setattr(cv2, "utils", SimpleNamespace() if old else SimpleNamespace(logging=switch))
    monkeypatch.delattr(cv2, "setLogLevel", raising=False)
    if old:
        monkeypatch.setattr(cv2, "setLogLevel", switch.setLogLevel, raising=False)
    video.silence_opencv()
    assert levels == [0]


def test_folders_of_two_lengths_are_named_with_both(folders, small, capsys):
    (folders / "ir" / "9.png").unlink()
    assert fuse(folders / "ir", folders / "vis", folders / "out", *small, "--video") == 1
    assert "ir has 9 frames and" in capsys.readouterr().err


def test_16_bit_infrared_has_one_range_for_the_sequence(folders):
    options = SimpleNamespace(ir=folders / "ir", vis=folders / "vis", ir_pattern=None, vis_pattern=None, fps=None,
                              resize=None, ir_range=None, vis_bits=None)
    ir = [frame.ir for frame in FolderClip(options)]
    spans = [infrared_span(folders / "ir" / f"{number}.png") for number in range(LENGTH)]
    low, high = min(span[0] for span in spans), max(span[1] for span in spans)
    assert spans[0] != (low, high)      # the hot target is not in the first frame
    for number, frame in enumerate(ir):
        raw = cv2.imread(str(folders / "ir" / f"{number}.png"), cv2.IMREAD_UNCHANGED)
        np.testing.assert_allclose(frame, (raw - float(low)) * 255 / (high - low), atol=0.501)
    options.ir_range = 0, 65535
    assert max(frame.ir.max() for frame in FolderClip(options)) == round(high / 257)


def test_8_bit_infrared_is_read_once(folders, monkeypatch):
    for number in range(LENGTH):
        path = folders / "ir" / f"{number}.png"
        cv2.imwrite(str(path), np.uint8(cv2.imread(str(path), cv2.IMREAD_UNCHANGED) // 257))
    clip = FolderClip(SimpleNamespace(ir=folders / "ir", vis=folders / "vis", ir_pattern=None, vis_pattern=None, fps=None,
                                      resize=None, ir_range=None, vis_bits=None))
    reads = []
    monkeypatch.setattr(cv2, "imdecode", lambda *args, whole=cv2.imdecode: reads.append(1) or whole(*args))
    for number, frame in enumerate(clip):
        np.testing.assert_array_equal(frame.ir, cv2.imread(str(folders / "ir" / f"{number}.png"), cv2.IMREAD_GRAYSCALE))
    assert len(reads) == 2 * LENGTH + 2         # two more of the first frames, for the bit depth of the sequence


def test_16_bit_visible_has_one_depth_for_the_sequence(folders):
    """One bright pixel in one frame changes the depth of that file, but the brightness of no frame."""
    for number in range(LENGTH):
        levels = np.full((64, 80), 2000, np.uint16)
        levels[0, 0] = 4096 if number == 5 else 4095
        cv2.imwrite(str(folders / "vis" / f"{number}.png"), levels)
    options = SimpleNamespace(ir=folders / "ir", vis=folders / "vis", ir_pattern=None, vis_pattern=None, fps=None,
                              resize=None, ir_range=None, vis_bits=None)
    for bits, level in ((None, 31), (14, 31), (13, 62)):
        options.vis_bits = bits
        with warnings.catch_warnings(record=True) as notes:
            warnings.simplefilter("always")
            assert {int(np.median(frame.vis)) for frame in FolderClip(options)} == {level}
        assert sum("read as 14 bits; --vis-bits" in str(note.message) for note in notes) == (bits is None)
    options.vis_bits = 12
    with pytest.raises(DataError, match="5.png: has levels above 4095"):
        list(FolderClip(options))
    options.vis_bits = None
    for name in ("7.png", "0.png"):        # in the middle of the sequence, then at its begin
        cv2.imwrite(str(folders / "vis" / name), np.full((64, 80), 9, np.uint8))
        with pytest.raises(DataError, match="one has 8 bits and the other 16"):
            list(FolderClip(options))


@pytest.mark.parametrize("number", [0, 5])
def test_a_frame_with_fewer_bits_than_the_others_is_named(folders, number, small, capsys):
    path = folders / "ir" / f"{number}.png"
    cv2.imwrite(str(path), np.uint8(cv2.imread(str(path), cv2.IMREAD_UNCHANGED) // 257))
    assert fuse(folders / "ir", folders / "vis", folders / "out", *small, "--video") == 1
    assert f"{max(number, 1)}.png and {folders / 'ir' / '0.png'}: one has 8 bits" in capsys.readouterr().err


# --- options ---


@pytest.mark.parametrize("options, message", [
    (["--ir", "a.mp4", "--vis", "b.mp4", "--tile", "64", "--batch", "2"], "goes without --tile, --batch"),
    (["--ir", "a.mp4"], "needs --ir and --vis"),
    (["--ir", "a", "--vis", "b", "--steady", "0.5"], "for video"),
    (["--ir", "0", "--vis", "1", "--steady", "1"], "is not below 1"),
    (["--ir", "0", "--vis", "1", "--fps", "0"], "no finite number above 0 to 1000"),
    (["--ir", "0", "--vis", "1", "--as-published", "--steady", "0.5"], "goes without --as-published"),
    (["--ir", "0", "--vis", "1", "--released", "x.pth", "--steady", "0.5"], "goes without --released"),
])
def test_options_that_do_not_go_together(options, message, capsys):
    with pytest.raises(SystemExit):
        fuse_command.main(options)
    assert message in capsys.readouterr().err


def test_what_is_no_video_is_named(clips, folders, tmp_path, small, capsys):
    image = next((folders / "ir").iterdir())
    for ir, vis, out, options, message in (
            (image, image, "a.mp4", ["--video"], "is an image; a video is a file, or a folder of images"),
            ("20240101", "20240102", "a.mp4", ["--video"], "20240101: no such file or folder"),
            (os.devnull, os.devnull, "a.mp4", ["--video"], "is a device or a pipe; give the number of a camera"),
            (clips / "ir.avi", clips / "vis.avi", "a.gif", [], "a video is written as .mp4 or .avi"),
            (folders / "ir", folders / "vis", "frames", ["--video", "--fps", "30"], "--fps is for a video file")):
        assert fuse(ir, vis, tmp_path / out, *small, *options) == 1
        assert message in capsys.readouterr().err
    assert not (tmp_path / "a.mp4").exists()


def test_video_files_become_images_with_a_format(clips, tmp_path, small):
    """Without the losses of a codec: the frames are those of the network."""
    assert fuse(clips / "ir.avi", clips / "vis.avi", tmp_path / "out", *small, "--format", "bmp", "--steady", "0") == 0
    ir, vis = ([cv2.cvtColor(frame, cv2.COLOR_BGR2RGB) for frame in read_clip(clips / f"{side}.avi")[0]]
               for side in ("ir", "vis"))
    assert names(tmp_path / "out") == [f"vis_{number:06d}.bmp" for number in range(len(vis))]      # several videos in one folder
    model = RPFNet.from_pretrained(small[small.index("--checkpoint") + 1])
    expected = model.fuse(luma(ir[3]), vis[3])
    written = read_vis(tmp_path / "out" / "vis_000003.bmp")
    assert np.abs(written.astype(int) - expected).max() <= 1      # a rounding either way


def test_frames_that_cannot_be_fused_are_named(tmp_path, small, capsys):
    for side in ("ir", "vis"):
        write_clip(tmp_path / f"{side}.avi", [np.zeros((10, 14), np.uint8)] * 2)
    assert fuse(tmp_path / "ir.avi", tmp_path / "vis.avi", tmp_path / "out.avi", *small) == 1
    assert "test.py: vis, frame 000000: images of (10, 14) are too small" in capsys.readouterr().err


def test_options_of_folders_are_refused_for_files(clips, tmp_path, small, capsys):
    for options in (["--ir-range", "0", "9"], ["--vis-bits", "12"], ["--format", "png"]):
        assert fuse(clips / "ir.avi", clips / "vis.avi", tmp_path / "fused.mp4", *small, *options) == 1
        assert options[0] in capsys.readouterr().err


def test_a_window_without_a_display_is_one_line(clips, tmp_path, small, capsys, monkeypatch):
    monkeypatch.setattr(video.results.sys, "platform", "linux")
    for display, message in ((None, "there is no display here (DISPLAY is not set)"), (":77", "no window can be opened here")):
        monkeypatch.delenv("DISPLAY", raising=False) if display is None else monkeypatch.setenv("DISPLAY", display)
        assert fuse(clips / "ir.avi", clips / "vis.avi", tmp_path / "fused.mp4", *small, "--show") == 1
        assert capsys.readouterr().err.startswith(f"test.py: --show: {message}")


def test_q_in_the_window_replaces_no_earlier_file_by_a_part_of_the_video(clips, tmp_path, small, press_q):
    out = tmp_path / "fused.mp4"
    for frame, code in ((LENGTH, 0), (3, INTERRUPTED)):
        press_q(frame)
        assert fuse(clips / "ir.avi", clips / "vis.avi", out, *small, "--show") == code
    assert len(read_clip(out)[0]) == LENGTH and len(read_clip(tmp_path / "fused.partial.mp4")[0]) == 3


# --- steady ---


def test_off_is_the_image_path_to_the_bit_and_so_is_the_first_frame():
    model = network()
    frames = list(entering_target(*scene(), 5))
    alone = [model.fuse(*frame) for frame in frames]
    with Steady(model, 0) as steady:
        assert all((steady.fuse(*frame) == image).all() for frame, image in zip(frames, alone))
    with Steady(model, 0.9) as steady:
        together = [steady.fuse(*frame) for frame in frames]
    assert (together[0] == alone[0]).all() and (together[4] != alone[4]).any()
    assert (model.fuse(*frames[4]) == alone[4]).all()       # the hooks are gone


def test_an_image_of_another_thread_is_fused_alone():
    model, (ir, vis) = network(), scene()
    frames = list(entering_target(ir, vis, 3))
    alone = model.fuse(ir, vis)
    fused = []

    def in_between(module, *_):
        if not fused:
            fused.append(None)      # once: the other thread calls the same module
            thread = threading.Thread(target=lambda: fused.append(model.fuse(ir, vis)))
            thread.start()
            thread.join()
    with Steady(model, 0.9) as steady:
        expected = [steady.fuse(*pair) for pair in frames]
    hook = model.stages[0].register_forward_hook(in_between)
    with Steady(model, 0.9) as steady:
        got = [steady.fuse(*pair) for pair in frames]
    hook.remove()
    assert (fused[1] == alone).all() and all((a == b).all() for a, b in zip(got, expected))


def test_two_videos_and_images_can_share_a_network():
    model = network()
    frames = list(entering_target(*scene(), 3))
    alone, first, second = (Steady(model, 0.9) for _ in range(3))
    expected = [alone.fuse(*frame) for frame in frames]
    for frame, fused in zip(frames, expected):
        assert (first.fuse(*frame) == fused).all() and (second.fuse(*frame) == fused).all()
        model.fuse(*frames[0])


def test_the_command_keeps_averages_unless_steady_is_0(tmp_path, small):
    frames = list(entering_target(*scene(), 4))
    for side, images in zip(("ir", "vis"), zip(*frames)):
        (tmp_path / side).mkdir()
        for number, image in enumerate(images):
            cv2.imwrite(str(tmp_path / side / f"{number}.png"), image[..., ::-1] if image.ndim == 3 else image)
    model, last = RPFNet.from_pretrained(small[1]), len(frames) - 1

    def distance(name, number):
        fused = cv2.imread(str(tmp_path / name / f"{number}.png"))[..., ::-1]
        return np.abs(fused.astype(int) - model.fuse(*frames[number])).max()

    for name, options in (("alone", ["--steady", "0"]), ("steady", [])):
        assert fuse(tmp_path / "ir", tmp_path / "vis", tmp_path / name, *small, "--video", *options) == 0
    assert max(distance("alone", number) for number in range(len(frames))) <= 1
    assert distance("steady", 0) <= 1 < distance("steady", last)


@pytest.mark.parametrize("sources, options, steady", [
    ("01", [], 0.97), ("01", ["--steady", "0"], 0), ("01", ["--steady", "0.5"], 0.5), ("01", ["--as-published"], 0),
    ("01", ["--as-published", "--steady", "0"], 0),
    ("01", ["--released", "Model.pth"], 0), (("ir.mp4", "vis.mp4"), [], 0.97), (("ir", "vis"), ["--video"], 0.97),
    (("ir", "vis"), [], None)], ids=str)
def test_the_weight_of_the_past(sources, options, steady):
    assert fuse_command.parse(["--ir", sources[0], "--vis", sources[1], *options]).steady == steady


def test_a_compiled_network_cannot_keep_averages():
    model = network()
    model.compile()         # PyTorch compiles with the first call, which does not come
    with pytest.raises(ValueError, match="without compiled=True"):
        Steady(model)
    with pytest.raises(ValueError, match="without compiled=True"):
        Steady(torch.compile(network(), backend="eager"))
    with Steady(model, 0):
        pass


def test_the_pools_are_an_exponential_average():
    model = network()
    attention = model.stages[1].rpm.ca
    features, averaged = [], []
    attention.register_forward_pre_hook(lambda module, inputs: features.append(inputs[0]))
    attention.mlp.register_forward_pre_hook(lambda module, inputs: averaged.append(inputs[0]))
    with Steady(model, 0.75) as steady:
        for frame in entering_target(*scene(), 3):
            steady.fuse(*frame)
    seen = list(zip(features, zip(averaged[::2], averaged[1::2])))      # the MLP takes the average, then the maximum
    for kind, pool in enumerate((lambda x: x.mean((2, 3), keepdim=True), lambda x: x.amax((2, 3), keepdim=True))):
        expected = pool(seen[0][0])
        for x, pools in seen[1:]:
            expected = 0.75 * expected + 0.25 * pool(x)
            assert torch.allclose(pools[kind], expected)


def test_the_absolute_values_of_the_spectrum_are_an_exponential_average():
    model = network()
    spectral = model.stages[1].fdfm.spectral
    values, results = [], []
    spectral[-1].register_forward_pre_hook(lambda module, inputs: values.append(inputs[0].clone()))
    spectral.register_forward_hook(lambda module, inputs, result: results.append(result.clone()))
    with Steady(model, 0.75) as steady:
        for frame in entering_target(*scene(), 3):
            steady.fuse(*frame)
    seen = list(zip(values, results))
    expected = seen[0][0].abs()
    assert (seen[0][1] == seen[0][0].relu()).all()
    for z, result in seen[1:]:
        expected = 0.75 * expected + 0.25 * z.abs()
        assert torch.allclose(result, (z + expected) / 2, atol=1e-6)


@pytest.mark.parametrize("index, wrong, error", [
    (0, None, TypeError), (1, np.zeros((32, 40)), TypeError), (0, np.zeros((32, 40, 1), np.uint8), ValueError),
    (1, np.zeros((32, 41), np.uint8), ValueError)])
def test_wrong_frames_raise_as_in_fuse_pair_and_leave_the_averages(index, wrong, error):
    model = network()
    first, second = list(entering_target(*scene(), 2))
    results = []
    for with_wrong_frame in (False, True):
        with Steady(model) as steady:
            steady.fuse(*first)
            if with_wrong_frame:
                with pytest.raises(error):
                    steady.fuse(*(wrong if side == index else image for side, image in enumerate(second)))
            results.append(steady.fuse(*second))
    assert (results[0] == results[1]).all()


def test_a_new_size_begins_a_new_average():
    model = network()
    small, large = scene(1), tuple(cv2.resize(x, (80, 64)) for x in scene(1))
    with Steady(model) as steady:
        fused = [steady.fuse(*frame) for frame in (small, large)]
    assert (fused[1] == model.fuse(*large)).all()


def test_the_static_background_moves_less():
    model = network()
    changes = []
    ir, vis = scene(1)
    ir, vis = (cv2.resize(x, (160, 128)) for x in (ir, vis))
    for keep in (0, 0.9):
        with Steady(model, keep) as steady:
            changes.append(flicker_measures(steady, ir, vis, 6))
    assert changes[1]["jump"] < 0.5 * changes[0]["jump"] and changes[1]["flicker"] < changes[0]["flicker"]


def test_a_cut_begins_a_new_average():
    model = network()
    first, second = list(entering_target(*scene(1), 4)), list(entering_target(*scene(2, 90, 220), 4))
    with Steady(model) as steady:
        fused = [steady.fuse(*frame) for frame in first + second]
    assert (fused[4] == model.fuse(*second[0])).all() and (fused[5] != model.fuse(*second[1])).any()


def test_cuts_are_large_changes_and_steady_motion_has_none():
    rng = np.random.default_rng(0)
    wide = cv2.GaussianBlur(rng.random((64, 800)), (0, 0), 12)
    wide = np.uint8(255 * (wide - wide.min()) / np.ptp(wide))
    pan = [wide[:, 3 * step:][:, :80] for step in range(60)]
    cuts = Cuts()
    assert not any(cuts.is_cut(frame, frame) for frame in pan)
    assert cuts.is_cut(255 - pan[-1], 255 - pan[-1])
    assert not cuts.is_cut(255 - pan[-1], 255 - pan[-1])


def test_keep_is_checked():
    for keep in (-0.1, 1.0):
        with pytest.raises(ValueError, match="from 0 to below 1"):
            Steady(network(), keep)


def test_the_temporary_file_is_known_as_a_leftover(tmp_path):
    with VideoFile(tmp_path / "a.avi", RATE) as file:
        file.write("a", np.zeros(SIZE, np.uint8))
        (temporary,) = tmp_path.iterdir()
        assert is_stray(temporary)


def test_a_frame_of_another_size_ends_the_file(tmp_path):
    with pytest.raises(DataError, match="b is 40x32.*80x64"), VideoFile(tmp_path / "a.avi", RATE) as file:
        file.write("a", np.zeros(SIZE, np.uint8))
        file.write("b", np.zeros((32, 40), np.uint8))
    assert len(read_clip(tmp_path / "a.avi")[0]) == 1


def flags(*levels):
    cuts = Cuts()
    return [cuts.is_cut(*[np.full((24, 32), level, np.uint8)] * 2) for level in levels]


def test_a_cut_is_above_ten_levels_and_above_three_times_the_usual_change():
    assert flags(100, 110, 121) == [False, False, True]
    swing = [100, 120] * 40             # the usual change becomes 20
    assert flags(*swing) == [False, True, True, True, True, *[False] * 75]
    assert [flags(*swing, level)[-1] for level in (61, 59)] == [False, True]


def test_averages_of_bfloat16_pools_are_kept_in_float32():
    module = ImagePools()
    with Steady(RPFNet(channels=4, stages=1), 0.97) as steady:
        for level in [1.0] + [1.0078125] * 300:       # the next number of bfloat16
            pools = steady._average_pools(module, None, (torch.full((1, 4, 1, 1), level, dtype=torch.bfloat16),) * 2)
    assert all((pool == 1.0078125).all() and pool.dtype == torch.bfloat16 for pool in pools)


@pytest.fixture
def frame(tmp_path):
    """One frame of folders, whose sources are shifted by 15 pixels; options of test.py."""
    rng = np.random.default_rng(1)
    scene = cv2.GaussianBlur(rng.integers(0, 256, (200, 260), np.uint8), (0, 0), 2)
    for side, image in (("ir", scene[:180, :240]), ("vis", scene[9:189, 12:252])):
        (tmp_path / side).mkdir()
        cv2.imwrite(str(tmp_path / side / "0.png"), image)
    write_weights(tmp_path / "small.pth", trained())
    return ["--ir", str(tmp_path / "ir"), "--vis", str(tmp_path / "vis"), "--checkpoint", str(tmp_path / "small.pth"), "--video"]


def test_studio_range_is_that_of_images(frame, tmp_path):
    assert fuse_command.main([*frame, "--studio-range", "--out", str(tmp_path / "out")]) == 0
    ir, vis = (read_gray(tmp_path / side / "0.png") for side in ("ir", "vis"))
    expected = RPFNet.from_pretrained(tmp_path / "small.pth").fuse(ir, vis, studio_range=True)
    assert np.abs(read_gray(tmp_path / "out" / "0.png").astype(int) - expected).max() <= 1


@pytest.mark.parametrize("checked", [True, False])
def test_a_shift_of_the_first_frame_is_noted(frame, tmp_path, capsys, checked):
    assert fuse_command.main([*frame, *["--no-alignment-check"] * (not checked), "--out", str(tmp_path / "out")]) == 0
    assert ("vis by about 15 pixels" in capsys.readouterr().err) is checked


def test_folders_have_25_frames_a_second(frame, tmp_path):
    assert FolderClip(fuse_command.parse([*frame, "--out", str(tmp_path / "a.avi")])).rate == 25


@pytest.fixture
def clip(tmp_path):
    for side in ("ir", "vis"):
        write_clip(tmp_path / f"{side}.avi", [np.full((48, 64), 90, np.uint8)] * 4)
    return ["--ir", str(tmp_path / "ir.avi"), "--vis", str(tmp_path / "vis.avi"), "--out", str(tmp_path / "fused.avi"),
            "--checkpoint", write_weights(tmp_path / "small.pth")]


@pytest.mark.parametrize("rate, code", [(29.97, 1), (30.003, 0)])
def test_rates_may_differ_by_the_rounding_of_headers(clip, monkeypatch, rate, code):
    opened = video.clips.Capture.__init__

    def open_with_rate(self, source):
        opened(self, source)
        self.rate = rate if source.stem == "ir" else 30.0
    monkeypatch.setattr(video.clips.Capture, "__init__", open_with_rate)
    assert fuse_command.main(clip) == code


def test_a_file_with_fewer_frames_than_its_header_says_is_named(clip, monkeypatch, capsys):
    opened = video.clips.Capture.__init__

    def open_longer(self, source):
        opened(self, source)
        self.length += 2
    monkeypatch.setattr(video.clips.Capture, "__init__", open_longer)
    assert fuse_command.main(clip) == 0
    assert re.search(r"ends before the number of frames in its header; .*vis\.avi, 4 of 6", capsys.readouterr().err)


def test_a_header_that_counts_too_many_frames_is_no_other_length(clip, monkeypatch, capsys):
    opened = video.clips.Capture.__init__

    def open_longer(self, source):
        opened(self, source)
        self.length += 2 * (source.stem == "ir")
    monkeypatch.setattr(video.clips.Capture, "__init__", open_longer)
    assert fuse_command.main(clip) == 0 and "header" not in capsys.readouterr().err


def test_a_file_that_cannot_be_decoded_to_its_end_is_damaged_and_not_too_short(clip, monkeypatch, capsys):
    read, calls = video.clips.Capture.read, []

    def read_two(self):
        calls.append(self.name)
        return None if calls.count(self.name) > 2 and self.name.endswith("ir.avi") else read(self)
    monkeypatch.setattr(video.clips.Capture, "read", read_two)
    assert fuse_command.main(clip) == 1
    assert re.search(r"ir\.avi: cannot be decoded after 2 of 4 frames; it is damaged", capsys.readouterr().err)


@pytest.mark.parametrize("late, noted", [(0.03, True), (0.01, False)])      # half of the time between frames is 0.02
def test_frames_of_other_times_are_noted(clip, monkeypatch, capsys, late, noted):
    times = {"ir.avi": iter((5, 5.04, 5.08 + late, 5.12)), "vis.avi": iter((0, 0.04, 0.08, 0.12))}
    monkeypatch.setattr(video.clips.Capture, "time", property(lambda self: next(times[Path(self.name).name])))
    assert fuse_command.main(clip) == 0
    assert ("convert both to a constant rate" in (said := capsys.readouterr().err)) == noted
    assert said.count("from frame 2") == noted


@pytest.mark.parametrize("key, visible, goes_on", [(-1, 1, True), (ord("q"), 1, False), (27, 1, False), (-1, 0, False)])
def test_q_escape_and_a_closed_window_end_the_show(monkeypatch, key, visible, goes_on):
    monkeypatch.setattr(cv2, "imshow", lambda *_: None)
    monkeypatch.setattr(cv2, "waitKey", lambda delay: key)
    monkeypatch.setattr(cv2, "getWindowProperty", lambda *_: float(visible))
    assert video.results.shown(np.zeros((8, 8), np.uint8)) is goes_on


def test_the_range_of_a_sequence_holds_a_cold_object_that_enters_later(tmp_path):
    for side in ("ir", "vis"):
        (tmp_path / side).mkdir()
    for number, (low, high) in enumerate(((1000, 2000), (500, 1500))):
        levels = np.linspace(low, high, 400).astype(np.uint16).reshape(20, 20)
        cv2.imwrite(str(tmp_path / "ir" / f"{number}.png"), levels)
        cv2.imwrite(str(tmp_path / "vis" / f"{number}.png"), np.zeros((20, 20), np.uint8))
    clip = FolderClip(SimpleNamespace(ir=tmp_path / "ir", vis=tmp_path / "vis", ir_pattern=None, vis_pattern=None,
                                      fps=None, resize=None, ir_range=None, vis_bits=None))
    assert [(int(frame.ir.min()), int(frame.ir.max())) for frame in clip] == [(85, 255), (0, 170)]


def test_a_cut_is_seen_at_equal_brightness_and_not_in_fine_texture():
    halves = np.full((240, 320), 40, np.uint8)
    halves[:, 160:] = 120
    cuts = Cuts()
    assert [cuts.is_cut(frame, frame) for frame in (halves, halves[:, ::-1])] == [False, True]
    checks = np.uint8(200 * (np.indices((240, 320)).sum(0) % 2))
    cuts = Cuts()
    assert not any(cuts.is_cut(frame, frame) for frame in (checks, 200 - checks)) and cuts.change < 1


@pytest.mark.parametrize("after", [(130, 100), (100, 130)])
def test_a_cut_of_one_source_is_seen(after):
    still, *changed = (np.full((24, 32), level, np.uint8) for level in (100, *after))
    cuts = Cuts()
    assert [cuts.is_cut(still, still), cuts.is_cut(*changed)] == [False, True] and cuts.change == 15


def test_a_path_tells_cameras_files_and_folders_apart(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in ("1", "clip.mp4"):
        Path(name).mkdir()
    assert [camera_number(Path(name)) for name in ("0", "1", "1234", "a")] == [0, None, None, None]
    assert [is_video(Path(name)) for name in ("DJI_0001.MP4", "clip.mp4", "a.png")] == [True, False, False]


@pytest.mark.parametrize("tag, deep", [(b"Y1\0\x10", True), (b"\x10\x001Y", True), (b"Y1\0\x08", False),
                                       (b"\x08\x001Y", False)])
def test_gray_of_16_bits_is_known_in_both_byte_orders(tag, deep):
    number = float(int.from_bytes(tag, "little"))
    capture = SimpleNamespace(name="ir.avi", _capture=SimpleNamespace(get=lambda _: number))
    with pytest.raises(DataError, match="gray video of 16 bits") if deep else nullcontext():
        Capture._check_depth(capture, Path("ir.avi"))


def test_a_second_block_begins_new_averages():
    model, frames = network(), list(entering_target(*scene(), 3))
    steady = Steady(model, 0.9)
    with steady:
        for frame in frames[:2]:
            steady.fuse(*frame)
    with steady:
        assert np.array_equal(steady.fuse(*frames[2]), model.fuse(*frames[2]))


def test_images_of_an_earlier_video_are_counted(tmp_path):
    for name in ("7.png", "notes.txt"):
        (tmp_path / name).write_bytes(b"")
    with pytest.warns(UserWarning, match="also holds images that are not of this video") as caught:
        with FrameFolder(tmp_path, "png") as folder:
            folder.write("0", np.zeros(SIZE, np.uint8))
    assert [warning.message.args[1] for warning in caught] == [f"{tmp_path} (1)"]


def test_a_colour_map_is_noted_once(clip, tmp_path, capsys):
    ramp = np.tile(np.uint8(range(64)) * 4, (48, 1))
    write_clip(tmp_path / "ir.avi", [cv2.applyColorMap(ramp, cv2.COLORMAP_JET)] * 4)
    assert fuse_command.main(clip) == 0
    assert capsys.readouterr().err.count("infrared in colour is converted to luma") == 1


def test_a_header_without_an_end_gives_no_length(clip, tmp_path, monkeypatch):
    header = {cv2.CAP_PROP_FPS: 25.0, cv2.CAP_PROP_FRAME_COUNT: 2.0**31 - 1}
    monkeypatch.setattr(cv2, "VideoCapture", lambda place: SimpleNamespace(
        isOpened=lambda: True, get=lambda name: header.get(name, 0.0)))
    assert Capture(tmp_path / "ir.avi").length is None


def test_a_file_that_lacks_frames_is_counted_once(clip, monkeypatch, capsys):
    monkeypatch.setattr(video.results, "count_frames", lambda capture: 3)
    assert fuse_command.main(clip) == 1
    said = capsys.readouterr()
    assert "of 4 frames 3 are in the file" in said.err and "frames in" not in said.out


def test_a_shift_is_noted_for_the_first_frame_only(tmp_path, capsys):
    scene = cv2.GaussianBlur(np.random.default_rng(1).integers(0, 256, (200, 260), np.uint8), (0, 0), 2)
    for side in ("ir", "vis"):
        (tmp_path / side).mkdir()
        for n in range(2):
            image = scene[:180, :240] if side == "ir" else scene[9 - 3 * n:189 - 3 * n, 12:252]
            cv2.imwrite(str(tmp_path / side / f"{n}.png"), image)
    assert fuse_command.main(["--ir", str(tmp_path / "ir"), "--vis", str(tmp_path / "vis"), "--video", "--checkpoint",
                              write_weights(tmp_path / "small.pth"), "--out", str(tmp_path / "out")]) == 0
    assert capsys.readouterr().err.count("vis by about") == 1
