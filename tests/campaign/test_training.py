"""Runs of train.py that are killed, interrupted, starved and silenced: `python -m pytest -m campaign tests/campaign`.

Each is a process of its own. Whatever happens, there is one line or silence in place of a traceback, the exit code says
how it ended, and what was trained can be resumed.
"""
import os
import pty
import random
import re
import resource
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from training import TINY, same_weights

import train

ROOT = Path(train.__file__).parent
COMMAND = [sys.executable, str(ROOT / "train.py")]
LONG = 100_000      # steps that no run here comes to

pytestmark = [pytest.mark.campaign, pytest.mark.skipif(sys.platform != "linux", reason="signals and limits of Linux")]


@pytest.fixture
def start(folders, tmp_path):
    """Starts train.py on small pairs; ends it when the test is over."""
    started = []

    def begin(*options, **arguments):
        arguments = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True,
                     "errors": "replace"} | arguments
        environment = os.environ | {"OMP_NUM_THREADS": "1"} | arguments.pop("env", {})
        argv = [*COMMAND, *folders, *TINY, "--out", str(tmp_path / "run"), *map(str, options)]
        started.append(subprocess.Popen(argv, env=environment, **arguments))
        return started[-1]
    yield begin
    for process in started:
        process.kill()
        process.communicate()


def resumed(out, **arguments):
    return subprocess.run([*COMMAND, "--resume", "--out", str(out)], capture_output=True, text=True,
                          env=os.environ | {"OMP_NUM_THREADS": "1"}, check=False, **arguments)


def wait_for(condition, process, seconds=300):
    deadline = time.monotonic() + seconds
    while not condition():
        assert process.poll() is None and time.monotonic() < deadline, "the run ended before it came so far"
        time.sleep(0.02)


def is_training(out):
    """Two epochs are logged: signals have their handlers, and there is something to lose."""
    log = out / "run" / "log.csv"
    return lambda: log.exists() and log.read_text().count("\n") > 2


def last_step(out):
    return torch.load(out / "run" / "last.pth", weights_only=True)["step"]


def ends(process, code, lines=1):
    """The process ends with this exit code, and says no more than so many lines of its own."""
    out, error = process.communicate(timeout=300)
    assert process.returncode == code, error
    assert not re.search("^(Traceback|Exception)", f"{out}\n{error}", re.MULTILINE), error
    told = [line for line in re.split("[\r\n]", error or "") if line.startswith("train.py: ")]
    assert len(told) <= lines, error
    return "\n".join(told)


# --- kills ---


@pytest.fixture(scope="module")
def whole(folders, tmp_path_factory):
    """The run that the killed ones should end as."""
    out = tmp_path_factory.mktemp("whole")
    subprocess.run([*COMMAND, *folders, *TINY, "--steps", "60", "--out", str(out)], check=True, capture_output=True,
                   env=os.environ | {"OMP_NUM_THREADS": "1"})
    return out


@pytest.mark.parametrize("seed", range(20))
def test_a_killed_run_resumes_to_the_same_bits(start, tmp_path, whole, seed):
    process = start("--steps", 60)
    wait_for((tmp_path / "run" / "last.pth").exists, process)
    time.sleep(random.Random(seed).random())
    process.kill()
    process.communicate()
    assert resumed(tmp_path / "run").returncode == 0
    assert same_weights(whole, tmp_path / "run")


@pytest.mark.parametrize("seed", range(5))
def test_a_run_killed_while_it_saves_resumes_to_the_same_bits(start, tmp_path, whole, seed):
    process = start("--steps", 60)
    run, skipped = tmp_path / "run", seed
    wait_for((run / "last.pth").exists, process)
    seen = set()
    while process.poll() is None and len(seen) <= skipped:      # the temporary file of a save
        seen |= {path.name for path in run.glob(".*.part")} | {path.name for path in run.glob("*.part")}
    process.kill()
    process.communicate()
    assert resumed(run).returncode == 0
    assert same_weights(whole, run)


@pytest.mark.parametrize("name", ["SIGINT", "SIGTERM", "SIGHUP"])
def test_a_signal_ends_the_step_and_saves(start, tmp_path, name):
    process = start("--steps", LONG)
    wait_for(is_training(tmp_path), process)
    number = getattr(signal, name)
    process.send_signal(number)
    ends(process, 128 + number, lines=0)
    assert last_step(tmp_path) >= 6


# --- Ctrl-C at any time ---


@pytest.mark.parametrize("tenths", [1, 2, 4, 6, 8, 10, 13, 16, 20, 25, 30])
def test_ctrl_c_in_the_first_seconds_is_silent(start, tenths):
    process = start("--steps", LONG)
    time.sleep(tenths / 10)
    process.send_signal(signal.SIGINT)
    ends(process, 130)


@pytest.mark.parametrize("pause", [0, 0.001, 0.01, 0.1])
@pytest.mark.parametrize("times", [2, 3, 5])
def test_ctrl_c_again_and_again(start, tmp_path, times, pause):
    process = start("--steps", LONG)
    wait_for(is_training(tmp_path), process)
    for _ in range(times):
        process.send_signal(signal.SIGINT)
        time.sleep(pause)
    ends(process, 130)
    assert last_step(tmp_path) >= 6


@pytest.mark.parametrize("times", [1, 2])
def test_ctrl_c_with_loader_processes(start, tmp_path, times):
    """All processes of the terminal get it."""
    process = start("--steps", LONG, "--workers", 2, start_new_session=True)
    wait_for(is_training(tmp_path), process)
    for _ in range(times):
        os.killpg(process.pid, signal.SIGINT)
        time.sleep(0.05)
    ends(process, 130)


def children(pid):
    return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


def test_a_killed_loader_process_is_one_line_and_loses_nothing(start, tmp_path):
    process = start("--steps", LONG, "--workers", 2, "--crops", 2000)
    wait_for(lambda: len(children(process.pid)) >= 2, process)
    time.sleep(3)
    os.kill(children(process.pid)[0], signal.SIGKILL)
    assert "DataLoader worker" in ends(process, 1)
    assert last_step(tmp_path) > 0
    assert goes_on(tmp_path)


def goes_on(tmp_path):
    """Whether the run goes on, for as long as it is looked at."""
    process = subprocess.Popen([*COMMAND, "--resume", "--out", str(tmp_path / "run")], stderr=subprocess.DEVNULL,
                               stdout=subprocess.PIPE, text=True, env=os.environ | {"OMP_NUM_THREADS": "1"})
    line = process.stdout.readline()
    process.send_signal(signal.SIGINT)
    process.communicate(timeout=300)
    return "training pairs" in line


# --- no place to print ---


def closed(numbers):
    def close():
        for number in numbers:
            os.close(number)
    return close


@pytest.mark.parametrize("numbers", [(1,), (2,), (1, 2), (0, 1, 2)], ids=str)
def test_closed_streams(start, tmp_path, numbers):
    process = start("--steps", 9, stdout=None, stderr=None, preexec_fn=closed(numbers))
    ends(process, 0)
    assert last_step(tmp_path) == 9


@pytest.mark.parametrize("streams", [("stdout",), ("stderr",), ("stdout", "stderr")], ids=str)
def test_streams_on_a_full_disk(start, tmp_path, streams):
    with open("/dev/full", "w") as full:
        process = start("--steps", 9, **dict.fromkeys(streams, full))
        ends(process, 0)
    assert last_step(tmp_path) == 9


@pytest.mark.parametrize("stream", ["stdout", "stderr"])
def test_a_reader_that_leaves(start, tmp_path, stream):
    process = start("--steps", 60)
    pipe = getattr(process, stream)
    pipe.read(1)
    pipe.close()
    setattr(process, stream, None)
    ends(process, 0)
    assert last_step(tmp_path) == 60


@pytest.mark.parametrize("environment", [{"PYTHONIOENCODING": "ascii"}, {"LC_ALL": "C", "PYTHONUTF8": "0"},
                                         {"PYTHONIOENCODING": "cp1252"}, {"PYTHONIOENCODING": "cp437"}], ids=str)
def test_other_encodings(start, folders, tmp_path, environment):
    ends(start("--steps", 6, "--out", tmp_path / "ärger \u2192 Ø", env=environment), 0)
    process = start("--steps", LONG, "--out", tmp_path / "ärger \u2192 Ø 2", env=environment)
    wait_for((tmp_path / "ärger \u2192 Ø 2" / "last.pth").exists, process)
    process.send_signal(signal.SIGINT)          # the last line names the folder
    ends(process, 130)
    ends(start("--init", tmp_path / "Übel.pth", "--out", tmp_path / "c", env=environment), 1)


def on_terminal(start, *options, **arguments):
    """A run on a terminal of its own, and the terminal's other end."""
    ours, theirs = pty.openpty()
    process = start(*options, stdin=theirs, stdout=theirs, stderr=theirs, start_new_session=True, **arguments)
    os.close(theirs)
    return process, ours


def drain(terminal):
    os.set_blocking(terminal, False)
    try:
        os.read(terminal, 1 << 16)
    except BlockingIOError:
        pass


@pytest.mark.parametrize("ignored", [True, False])
def test_a_terminal_that_goes_away(start, tmp_path, ignored):
    """Under nohup the run goes on; else it is saved and ends."""
    def ignore():
        if ignored:
            signal.signal(signal.SIGHUP, signal.SIG_IGN)
    process, terminal = on_terminal(start, "--steps", 90 if ignored else LONG, preexec_fn=ignore)
    trained = is_training(tmp_path)
    wait_for(lambda: drain(terminal) or trained(), process)
    os.close(terminal)
    process.send_signal(signal.SIGHUP)
    process.wait(timeout=300)
    assert process.returncode == (0 if ignored else 129)
    assert last_step(tmp_path) == 90 if ignored else last_step(tmp_path) >= 6


# --- no place to write, no memory ---


def limited(what, value):
    return lambda: resource.setrlimit(what, (value, value))


@pytest.mark.parametrize("size", [1000, 20_000])        # of 0, PyTorch itself says that it needs a temporary folder
def test_files_that_cannot_grow(start, tmp_path, size):
    """As on a full disk: the run says so each time, trains to its end, and ends with an error for want of best.pth."""
    process = start("--steps", 9, preexec_fn=limited(resource.RLIMIT_FSIZE, size))
    assert "best.pth: File too large" in ends(process, 1)
    assert not (tmp_path / "run" / "last.pth").exists() and not list((tmp_path / "run").glob("*.part"))


def test_a_disk_that_is_full_for_a_while(start, tmp_path):
    process = start("--steps", 300)
    wait_for(is_training(tmp_path), process)
    resource.prlimit(process.pid, resource.RLIMIT_FSIZE, (100, resource.RLIM_INFINITY))
    before = last_step(tmp_path)
    time.sleep(2)
    assert process.poll() is None
    resource.prlimit(process.pid, resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
    ends(process, 0)
    assert last_step(tmp_path) == 300 > before


def test_too_little_memory_names_the_options_that_lower_it(start):
    process = start("--batch", 500, "--crops", 500, "--crop", 48, "--channels", 64,
                    preexec_fn=limited(resource.RLIMIT_AS, 6 * 2**30))
    assert "lower --batch, --crop" in ends(process, 1)


def test_a_folder_that_may_not_be_written_to(start, tmp_path):
    if os.geteuid() == 0:
        pytest.skip("root may write everywhere")
    (tmp_path / "run").mkdir(mode=0o555)
    assert "run" in ends(start("--steps", 3), 1)


@pytest.mark.parametrize("place", ["/proc/x", "/dev/null", "/dev/null/x", "a" * 300])
def test_folders_that_cannot_be_made(start, place):
    ends(start("--steps", 3, "--out", place), 1)


# --- two runs ---


@pytest.mark.parametrize("pause", [0, 0.5, 2, None])
def test_two_runs_in_one_folder(start, tmp_path, pause):
    """The second is told, whenever it comes; the first is not disturbed. None: when the first is training."""
    first = start("--steps", 200)
    if pause is None:
        wait_for(is_training(tmp_path), first)
    else:
        time.sleep(pause)
    second = start("--steps", 200)
    codes = sorted(process.wait(timeout=600) for process in (first, second))
    assert codes == [0, 1]
    assert last_step(tmp_path) == 200
