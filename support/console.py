"""Terminal helpers: printable names, streams that may be closed, Ctrl-C, warnings.

It imports only the standard library, so that it loads fast.
"""
from __future__ import annotations

import argparse
import io
import math
import os
import reprlib
import signal
import sys
import threading
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from multiprocessing import parent_process
from pathlib import Path
from types import TracebackType
from typing import Any

INTERRUPTED = 130       # exit code after Ctrl-C, as in a shell
# The modules of the packages in requirements.txt.
REQUIRED = {"torch", "torchvision", "numpy", "cv2", "PIL", "kornia", "skimage", "scipy", "tqdm"}


def printable(text: str) -> str:
    r"""Escape control codes, line ends and undecodable bytes as \x1b, \n, ..., so that text is safe in a terminal."""
    return "".join(char if char.isprintable() else char.encode("unicode_escape").decode() for char in text)


def first_line(error: Exception) -> str:
    """First line of an error's message; the name of its type if the message is empty."""
    return (str(error).strip() or type(error).__name__).splitlines()[0]


def one_line(error: Exception) -> str:
    """"FILE: REASON" for an OSError that names a file, otherwise the first line of the error's message."""
    if isinstance(error, OSError) and error.filename and error.strerror:
        return f"{error.filename}: {error.strerror}"
    return first_line(error)


def can_show(text: str) -> bool:
    """Whether standard output can encode these characters."""
    try:
        text.encode(getattr(sys.stdout, "encoding", None) or "utf-8")
    except UnicodeEncodeError:
        return False
    return True


def complain(*lines: str) -> None:
    """Print lines to standard error, escaped by `printable`."""
    for line in lines:
        print(printable(line), file=sys.stderr)


def failed(command: str, error: object) -> int:
    """Print why a command failed, in one line or several, after the name of the command. Returns exit code 1.

    The message of an OSError is that of `one_line`. A closed standard output is reported by `run`, so its
    BrokenPipeError is raised again.
    """
    if isinstance(error, BrokenPipeError):
        raise error
    text = one_line(error) if isinstance(error, OSError) else error
    complain(*f"{command}: {text}".splitlines())
    return 1


def finished(problems: Sequence[str], interrupted: bool = False, label: str = "skipped") -> int:
    """Print one line for each problem, such as an image that was skipped. Returns the exit code of the command."""
    complain(*(f"{label}: {problem}" for problem in problems))
    return INTERRUPTED if interrupted else 1 if problems else 0


def count(low: int, high: int) -> Callable[[str], int]:
    """Type of an option for argparse: an integer from `low` to `high`."""
    def parsed(text: str) -> int:
        value = int(text) if text.strip().removeprefix("-").isdecimal() and len(text) < 30 else low - 1
        if not low <= value <= high:
            raise argparse.ArgumentTypeError(f"{reprlib.repr(text)} is no whole number from {low} to {high}")
        return value
    return parsed


positive = count(1, 10**9)


class Added(argparse.Action):
    """Action for a list with a default: the values add up if the option stands several times, without the default."""

    def __call__(self, parser: argparse.ArgumentParser, namespace: argparse.Namespace, values: Any,
                 option_string: str | None = None) -> None:
        before = getattr(namespace, self.dest)
        setattr(namespace, self.dest, [*([] if before is self.default else before), *values])


def number(low: float, high: float = math.inf, above: bool = False) -> Callable[[str], float]:
    """Type of an option for argparse: a finite number from `low` to `high`. With `above`, `low` itself is excluded."""
    def parsed(text: str) -> float:
        try:
            value = float(text)
        except ValueError:
            value = math.nan
        if not math.isfinite(value) or not low <= value <= high or above and value == low:
            limits = f"{'above' if above else 'from'} {low}" + (f" to {high}" if high < math.inf else "")
            raise argparse.ArgumentTypeError(f"{reprlib.repr(text)} is no finite number {limits}")
        return value
    return parsed


def given(text: str) -> str:
    """Type of an option for argparse: text that is not empty."""
    if not text.strip():
        raise argparse.ArgumentTypeError("is empty; is a variable of the shell unset?")
    return text


def given_path(text: str) -> Path:
    """Type of an option for argparse: a path that is not empty."""
    return Path(given(text))


def refuse_unused(args: argparse.Namespace, parser: argparse.ArgumentParser, options: Mapping[str, set[str]], mode: str,
                  title: str) -> None:
    """Raises ValueError for an option that has no effect in a mode of the command.

    Args:
        args, parser: the options and their parser.
        options: {mode: names of the options that it uses}. Names that no mode has are not checked.
        mode: a key of `options`.
        title: the mode in the message.
    """
    for name in sorted(set().union(*options.values()) - options[mode]):
        if getattr(args, name) != parser.get_default(name):
            raise ValueError(f"{title} goes without --{name.replace('_', '-')}")


def before_imports() -> None:
    """Called by a command before its imports. They take seconds, and Ctrl-C should end them without a traceback.

    A missing package of requirements.txt is reported in one line, and any other error with its traceback.
    Closed standard streams are opened on the null device. Otherwise the next file that is opened would get the
    descriptor of such a stream, and C libraries would write their warnings into it.
    """
    if signal.getsignal(signal.SIGINT) is not signal.SIG_IGN:      # SIGINT is ignored for background jobs
        signal.signal(signal.SIGINT, _leave)
    sys.excepthook = _without_package
    while (number := os.open(os.devnull, os.O_RDWR)) <= 2:
        pass
    os.close(number)


def _without_package(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
    if isinstance(error, ModuleNotFoundError) and error.name in REQUIRED:
        complain(f"{os.path.basename(sys.argv[0])}: {error.name} is missing; python -m pip install -r requirements.txt")
    else:
        sys.__excepthook__(kind, error, trace)


def run(main: Callable[[], int]) -> int:
    """Run the `main` of a command and return its exit code.

    The first Ctrl-C raises KeyboardInterrupt in `main`. The second ends the process at once. If standard output is a
    closed pipe (| head), the command ends without a message and with exit code 1. If standard error is closed, the
    command continues.
    """
    if signal.getsignal(signal.SIGINT) is not signal.SIG_IGN:
        signal.signal(signal.SIGINT, _interrupt)
    sys.stdout = sys.stdout or open(os.devnull, "w")
    sys.stderr = Lasting(sys.stderr or open(os.devnull, "w"))
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")
    try:
        code = main()
        sys.stdout.flush()
        return code
    except KeyboardInterrupt:
        return INTERRUPTED
    except BrokenPipeError:
        return _without_output()
    except OSError as error:
        command = os.path.basename(sys.argv[0])
        if error.filename:
            return failed(command, error)
        print(f"{command}: standard output: {error.strerror}", file=sys.stderr)      # which has no file name
        return _without_output()
    finally:
        signal.signal(signal.SIGINT, signal.SIG_IGN)        # Ctrl-C during Python's shutdown must not change the code


def _without_output() -> int:
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())      # Python flushes standard output at its end
    return 1


def _leave(*_: object) -> None:
    os._exit(INTERRUPTED)


def _interrupt(*_: object) -> None:
    signal.signal(signal.SIGINT, _leave)
    raise KeyboardInterrupt


@contextmanager
def handling(handler: Callable[[int, object], None], *names: str) -> Iterator[None]:
    """In the block, the handler gets these signals, such as "SIGTERM". Signals that the shell ignores stay ignored."""
    numbers = [getattr(signal, name) for name in names if hasattr(signal, name)]        # Windows has no SIGHUP
    former = {number: signal.signal(number, handler) for number in numbers if signal.getsignal(number) is not signal.SIG_IGN}
    try:
        yield
    finally:
        for number, before in former.items():
            signal.signal(number, before)


def end_with_parent() -> None:
    """For a process of multiprocessing: end it when its parent ends, also if the parent is killed."""
    def wait() -> None:
        if parent := parent_process():
            parent.join()
            os._exit(1)
    threading.Thread(target=wait, daemon=True).start()


@contextmanager
def like_ctrl_c() -> Iterator[None]:
    """In the block, the first SIGTERM or SIGHUP raises KeyboardInterrupt, further ones do nothing. See `handling`."""
    received = []

    def stop(number: int, _: object) -> None:
        received.append(number)
        if len(received) == 1:
            raise KeyboardInterrupt
    with handling(stop, "SIGTERM", "SIGHUP"):
        yield


class Lasting:
    """A text stream that ignores write errors, so that a closed terminal does not end the program."""

    def __init__(self, stream):
        self._stream = stream

    def write(self, text: str) -> int:
        try:
            return self._stream.write(text)
        except (OSError, ValueError):
            return len(text)

    def flush(self) -> None:
        with suppress(OSError, ValueError):     # as in write
            self._stream.flush()

    def __getattr__(self, name: str):
        return getattr(self._stream, name)


# ---------------------------------------------------------------------------------------------
# Warnings that name files


class ImageWarning(UserWarning):
    """A warning about an image, a pair or a folder: ImageWarning(what, name)."""

    def __str__(self) -> str:
        return ": ".join(reversed(self.args))


def note(what: str, name: object) -> None:
    """Warn about `name`. Commands print all names with the same `what` in one line; see `collected`."""
    warnings.warn(ImageWarning(what, str(name)), stacklevel=3)


@contextmanager
def collected(notes: list[tuple[str, ...]]) -> Iterator[None]:
    """Collect the warnings of the block in `notes`, for `grouped`. They are not printed.

    Pillow's warnings about odd headers are left out. The filters are those of the whole process, so the threads of the
    block must not change them.
    """
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always", ImageWarning)       # also with PYTHONWARNINGS=ignore
        warnings.filterwarnings("ignore", module=r"PIL\.")
        try:
            yield
        finally:
            notes += [warning.message.args if isinstance(warning.message, ImageWarning) else (str(warning.message),)
                      for warning in caught]


def explain(notes: list[tuple[str, ...]]) -> None:
    """Print collected warnings."""
    complain(*(f"note: {line}" for line in grouped(notes)))


@contextmanager
def noted() -> Iterator[None]:
    """Collect the warnings of the block, or of a function that this decorates, and print them at its end."""
    notes: list[tuple[str, ...]] = []
    try:
        with collected(notes):
            yield
    finally:
        explain(notes)


def grouped(notes: list[tuple[str, ...]], most: int = 20) -> list[str]:
    """One line for each `what` of the notes (what, name), with at most `most` sorted names."""
    names: dict[str, list[str]] = {}
    for what, *name in sorted({*notes}):        # threads add notes in any order
        names.setdefault(what, []).extend(name)
    return [what + (": " if those else "") + listed(those, most) for what, those in names.items()]


def listed(names: list[str], most: int) -> str:
    """Join names to a text such as "a, b, c and 7 more", with at most `most` names."""
    return ", ".join(names[:most]) + (f" and {len(names) - most} more" if len(names) > most else "")
