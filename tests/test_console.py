"""The terminal: names, notes, streams and Ctrl-C."""
import argparse
import os
import signal
import subprocess
import sys
import warnings
from pathlib import Path

import pytest

from support import console
from support.console import grouped, one_line, printable

ROOT = Path(console.__file__).parents[1]


def command(body, **options):
    """A command whose main is `body`, as a process."""
    code = ("import os, sys, time\nfrom support import console\nconsole.before_imports()\n"
            f"def main():\n    {body}\nsys.exit(console.run(main))")
    return subprocess.Popen([sys.executable, "-c", code], cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
                            **options)


def test_names_are_safe_in_a_terminal():
    assert printable("a\x1b[31m\n\x9b\u202e\udcff ärger 図") == r"a\x1b[31m\n\x9b\u202e\udcff ärger 図"


def test_notes_are_one_line_for_each_thing():
    notes = [("dark", "a"), ("flat", "b"), ("dark", "c"), ("dark", "a"), ("odd",)]
    assert grouped(notes) == ["dark: a, c", "flat: b", "odd"]
    assert grouped(notes, most=1) == ["dark: a and 1 more", "flat: b", "odd"]


@pytest.mark.parametrize(("error", "line"), [
    (OSError(2, "No such file", "a.png"), "a.png: No such file"), (OSError("a\nb"), "a"), (ValueError("  c\nd"), "c"),
    (MemoryError(), "MemoryError"), (OSError(5, None, "a.png"), "[Errno 5] None: 'a.png'")], ids=str)
def test_an_error_is_one_line(error, line):
    assert one_line(error) == line


@pytest.mark.parametrize("body", ["time.sleep(60)", "[time.sleep(0.01) for _ in range(6000)]"])
def test_ctrl_c_is_silent_with_exit_code_130(body):
    running = command(f"print('on', flush=True); {body}")
    assert running.stdout.readline() == b"on\n"
    running.send_signal(signal.SIGINT)
    assert (*running.communicate(timeout=60), running.returncode) == (b"", b"", 130)


def test_the_second_ctrl_c_ends_what_the_first_began():
    body = ("try: print('on', flush=True); time.sleep(60)\n"
            "    finally: print('saving', flush=True); time.sleep(60)")
    running = command(body)
    for line in (b"on\n", b"saving\n"):
        assert running.stdout.readline() == line
        running.send_signal(signal.SIGINT)
    assert (running.communicate(timeout=60)[1], running.returncode) == (b"", 130)


def test_ctrl_c_that_the_shell_ignores_stays_ignored():
    running = command("print('on', flush=True); time.sleep(0.5)\n    return 0",
                      preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_IGN))
    running.stdout.readline()
    running.send_signal(signal.SIGINT)
    assert (running.communicate(timeout=60)[1], running.returncode) == (b"", 0)


def test_a_missing_package_is_named_and_other_errors_keep_their_traceback(monkeypatch, capsys):
    monkeypatch.setattr(signal, "signal", lambda *_: None)
    monkeypatch.setattr(sys, "excepthook", None)        # restores the present one at the end
    monkeypatch.setattr(sys, "argv", ["folder/test.py"])
    console.before_imports()
    for name in ("cv2", "dataset"):
        error = ModuleNotFoundError(f"No module named {name!r}", name=name)
        sys.excepthook(type(error), error, None)
    missing, *traceback = capsys.readouterr().err.splitlines()
    assert missing == "test.py: cv2 is missing; python -m pip install -r requirements.txt"
    assert traceback == ["ModuleNotFoundError: No module named 'dataset'"]
    assert len(console.REQUIRED) == len((ROOT / "requirements.txt").read_text().split())


@pytest.mark.parametrize("name", ["test.py", "train.py", "metrics.py"])
def test_the_commands_prepare_for_missing_packages(name):
    before, _, rest = (ROOT / name).read_text(encoding="utf-8").partition("    console.before_imports()\n\nimport argparse\n")
    assert rest and "import numpy" not in before and "import torch" not in before


OUT, ERR = "out \\xe4rger\n", "err \\xe4rger\n"      # in ASCII
FULL = pytest.mark.skipif(not Path("/dev/full").exists(), reason="/dev/full stands for the full disk; this system has none")


@pytest.mark.parametrize(("redirection", "code", "out", "err"), [
    ("", 0, OUT, ERR), (">&-", 0, "", ERR), ("2>&-", 0, OUT, ""), ("<&- >&- 2>&-", 0, "", ""),
    pytest.param("2>/dev/full", 0, OUT, "", marks=FULL),
    pytest.param(">/dev/full", 1, "", "script.py: standard output: No space left on device\n", marks=FULL)])
def test_streams_that_are_closed_or_full(tmp_path, redirection, code, out, err):
    """The file that is opened first must not get the number of a closed stream."""
    script = tmp_path / "script.py"
    script.write_text("import os, sys\nfrom support import console\nconsole.before_imports()\ndef main():\n"
                      "    with open(sys.argv[1], 'w') as file: assert file.fileno() > 2\n"
                      "    print('out ärger'); print('err ärger', file=sys.stderr); return 0\n"
                      "sys.exit(console.run(main))")
    done = subprocess.run(["bash", "-c", f"'{sys.executable}' '{script}' '{tmp_path / 'opened'}' {redirection}"],
                          env={**os.environ, "PYTHONPATH": str(ROOT), "PYTHONIOENCODING": "ascii"}, capture_output=True,
                          text=True, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (code, out, err) and (tmp_path / "opened").exists()


def test_a_closed_pipe_is_no_error_of_a_file(capsys):
    with pytest.raises(BrokenPipeError):
        console.failed("x.py", BrokenPipeError(32, "Broken pipe"))
    assert console.failed("x.py", OSError(28, "No space left on device", "a.csv")) == 1
    assert capsys.readouterr().err == "x.py: a.csv: No space left on device\n"
    assert console.failed("x.py", "two\n  lines\x1b") == 1
    assert capsys.readouterr().err == "x.py: two\n  lines\\x1b\n"


def test_notes_are_collected_whatever_the_filters_of_warnings():
    notes = []
    with warnings.catch_warnings(action="ignore"), console.collected(notes):
        console.note("flat", "a.png")
    with warnings.catch_warnings(action="always"), console.collected(notes):
        warnings.warn_explicit("odd header", UserWarning, "TiffImagePlugin.py", 1, module="PIL.TiffImagePlugin")
        warnings.warn_explicit("another warning", UserWarning, "other.py", 1, module="other")
    assert notes == [("flat", "a.png"), ("another warning",)]


def test_an_error_of_a_file_names_the_file_and_keeps_the_output():
    running = command("[print('rows'), open('/absent/file')]")
    out, error = running.communicate(timeout=60)
    assert (out, running.returncode) == (b"rows\n", 1)
    assert error.decode().endswith("/absent/file: No such file or directory\n") and error.count(b"\n") == 1


def test_a_closed_pipe_is_silent():
    running = command("[print(n) for n in range(100000)]")
    running.stdout.close()
    assert (running.stderr.read(), running.wait(60)) == (b"", 1)


def test_lists_with_a_default_add_up_without_it():
    parser = argparse.ArgumentParser()
    parser.add_argument("--seeds", type=int, nargs="+", action=console.Added, default=[0])
    assert [parser.parse_args(line.split()).seeds for line in ("", "--seeds 0", "--seeds 1 --seeds 2 3")] == [[0], [0], [1, 2, 3]]
