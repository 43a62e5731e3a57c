"""The terminal: options, names that may hold anything, streams that may be closed, Ctrl-C. Imports nothing that takes time."""
from __future__ import annotations

import argparse
import io
import os
import signal
import sys
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

INTERRUPTED = 130       # exit code after Ctrl-C, as in a shell


def printable(text: str) -> str:
    r"""Control codes, line ends and undecodable bytes as \x1b, \n, ...; safe in a terminal."""
    return "".join(char if char.isprintable() else char.encode("unicode_escape").decode() for char in text)


def complain(*lines: str) -> None:
    for line in lines:
        print(printable(line), file=sys.stderr)


def given(text: str) -> str:
    """Not empty, for argparse."""
    if not text.strip():
        raise argparse.ArgumentTypeError("is empty; is a variable of the shell unset?")
    return text


def given_path(text: str) -> Path:
    return Path(given(text))


def before_imports() -> None:
    """What a command does first: its imports take seconds, in which Ctrl-C needs no traceback.

    Closed standard streams are opened on the null device. Otherwise the next file would get their descriptors, and with
    them the warnings of C libraries.
    """
    if signal.getsignal(signal.SIGINT) is not signal.SIG_IGN:      # nohup, or in the background
        signal.signal(signal.SIGINT, _leave)
    while (number := os.open(os.devnull, os.O_RDWR)) <= 2:
        pass
    os.close(number)


def run(main: Callable[[], int]) -> int:
    """The exit code of a command's `main`, whatever its streams are.

    The first Ctrl-C raises KeyboardInterrupt in `main`, the second ends the process at once. Where standard output is a
    closed pipe (| head), it ends in silence with exit code 1; a standard error that nobody reads stops nothing.
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
        return _without_output(1)
    except OSError as error:        # main names the files of its own errors
        print(f"{os.path.basename(sys.argv[0])}: standard output: {error.strerror}", file=sys.stderr)
        return _without_output(1)
    finally:
        signal.signal(signal.SIGINT, signal.SIG_IGN)        # Python's end takes a moment, in which the exit code is settled


def _without_output(code: int) -> int:
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())      # for the flush when Python ends
    return code


def _leave(*_: object) -> None:
    os._exit(INTERRUPTED)


def _interrupt(*_: object) -> None:
    signal.signal(signal.SIGINT, _leave)
    raise KeyboardInterrupt


class Lasting:
    """A text stream that drops what cannot be written, so that a terminal that goes away ends nothing."""

    def __init__(self, stream):
        self._stream = stream

    def write(self, text: str) -> int:
        try:
            return self._stream.write(text)
        except (OSError, ValueError):
            return len(text)

    def flush(self) -> None:
        try:
            self._stream.flush()
        except (OSError, ValueError):
            pass

    def __getattr__(self, name: str):
        return getattr(self._stream, name)


# ---------------------------------------------------------------------------------------------
# Warnings that name files


class ImageWarning(UserWarning):
    """Something about an image, a pair or a folder that deserves a look: ImageWarning(what, name)."""

    def __str__(self) -> str:
        return ": ".join(reversed(self.args))


def note(what: str, name: object) -> None:
    """Warn about `name`. Commands list all names of the same `what` in one line, see `collected`."""
    warnings.warn(ImageWarning(what, str(name)), stacklevel=3)


@contextmanager
def collected(notes: list[tuple[str, ...]]) -> Iterator[None]:
    """Adds the warnings of the block to `notes`, for `grouped`, in place of printing them."""
    with warnings.catch_warnings(record=True) as caught:
        try:
            yield
        finally:
            notes += [warning.message.args if isinstance(warning.message, ImageWarning) else (str(warning.message),)
                      for warning in caught]


def grouped(notes: list[tuple[str, ...]], most: int = 20) -> list[str]:
    """(what, name) -> one line for each `what`, with its names in order, `most` at most."""
    names: dict[str, list[str]] = {}
    for what, *name in sorted({*notes}):        # threads give them in any order
        names.setdefault(what, []).extend(name)
    return [what + (": " if those else "") + listed(those, most) for what, those in names.items()]


def listed(names: list[str], most: int) -> str:
    """a, b, c and 7 more"""
    return ", ".join(names[:most]) + (f" and {len(names) - most} more" if len(names) > most else "")
