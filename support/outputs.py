"""Writing without losing anything: files whole or not at all, one run at a time, never over an input."""
from __future__ import annotations

import csv
import errno
import io
import os
import secrets
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

# The disk and not the file is at fault: the next write fails as well.
DISK_ERRORS = {errno.ENOSPC, errno.EROFS, errno.EIO} | {getattr(errno, "EDQUOT", errno.ENOSPC)}


class OutputError(Exception):
    """The results cannot be written there; the message names the place and the remedy."""


def write_atomically(path: Path, data: bytes, sync: bool = True) -> None:
    """Write a file whole or not at all, under a name of its own first. Raises OSError that names `path`.

    sync: wait until the data are on the disk. Without it a power cut, not a crash, may leave an empty file.
    """
    part = path.with_name(f".{secrets.token_hex(8)}.part")
    try:
        with open(part, "xb") as file:      # x: neither an existing file nor a link that somebody planted
            file.write(data)
            if sync:
                file.flush()
                os.fsync(file.fileno())
        part.replace(path)
    except OSError as error:
        raise OSError(error.errno, error.strerror or str(error), str(path)) from None
    finally:
        part.unlink(missing_ok=True)


def as_csv(columns: Sequence[str], rows: Iterable[Mapping]) -> bytes:
    """A CSV file with a header; cells that a row does not have stay empty."""
    text = io.StringIO()
    writer = csv.DictWriter(text, columns, restval="", lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue().encode()


def refuse_overwriting(folders: Iterable[Path], file: Path | None, inputs: Sequence[Path]) -> None:
    """One check of all outputs against all inputs, before anything is written. Raises OutputError.

    A folder of results holds no input: fused images among the sources would be taken for sources by the next run.
    A single file is no input, nor the twin of one under another suffix.

    Args:
        folders: which results are written to.
        file: the only result, with a name that the user chose; None for results named after their pairs.
        inputs: all files that are read.
    """
    homes: dict[tuple[int, int] | None, list[Path]] = {}
    for path in inputs:
        for place in {path, Path(os.path.realpath(path))}:      # of links, both ends
            homes.setdefault(_identity(place.parent), []).append(place)
    homes.pop(None, None)
    if file:
        for source in homes.get(_identity(file.parent), []):
            if source.stem.casefold() == file.stem.casefold():
                raise OutputError(f"{file}: {source.name} is a source; choose another name for --out")
        folders = [folder for folder in folders if folder != file.parent]
    for folder in folders:
        if _identity(folder) in homes:
            raise OutputError(f"{folder}: this folder holds source images; choose another --out")


def _identity(path: Path) -> tuple[int, int] | None:
    """The same for all names of one folder; None if there is none."""
    try:
        status = path.stat()
    except OSError:
        return None
    return status.st_dev, status.st_ino


@contextmanager
def making(folders: Sequence[Path]) -> Iterator[None]:
    """Makes the folders; those that were not there and stay empty are removed again. Raises OSError."""
    missing = {place for folder in folders for place in (folder, *folder.parents) if not place.exists()}
    try:
        for folder in folders:
            folder.mkdir(parents=True, exist_ok=True)
        yield
    finally:
        for place in sorted(missing, reverse=True):     # from below
            try:
                place.rmdir()
            except OSError:     # not empty, or never made
                pass


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Keeps other runs out of a folder until the block or the process ends, however it ends.

    Not on Windows, nor on file systems without locks. Raises OutputError at once where another run is.
    """
    try:
        import fcntl
    except ImportError:
        yield
        return
    path = folder / ".lock"
    while True:
        number = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o666)
        try:
            fcntl.flock(number, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(number)
            raise OutputError(f"{folder}: another run is writing there; wait for it or choose another --out") from None
        except OSError:
            pass
        if _identity(path) == (os.fstat(number).st_dev, os.fstat(number).st_ino):
            break
        os.close(number)        # another run ended in between, and removed the file
    try:
        yield
    finally:
        path.unlink(missing_ok=True)
        os.close(number)
