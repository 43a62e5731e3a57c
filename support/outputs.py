"""Safe output files: atomic writes, a lock for each output folder, no overwriting of input files."""
from __future__ import annotations

import csv
import errno
import io
import os
import re
import secrets
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

from support.headers import SUFFIXES
from support.pairing import INFRARED, VISIBLE, without_affix

# Errors of the disk and not of one file: the next write would fail as well.
DISK_ERRORS = {errno.ENOSPC, errno.EROFS, errno.EIO} | {getattr(errno, "EDQUOT", errno.ENOSPC)}


# Files that systems add to folders.
STRAY_FILES = {".DS_Store", "Thumbs.db", "desktop.ini"}


def is_stray(path: Path) -> bool:
    """Whether a file belongs to no data set: added by the system, or left by a killed run."""
    # Temporary files of video keep the suffix: .NAME.part.mp4
    return path.name in STRAY_FILES or path.name.startswith(".") and ".part" in path.suffixes[-2:]


class OutputError(Exception):
    """The results cannot be written to this place. The message names the place and the remedy."""


def write_atomically(path: Path, data: bytes, sync: bool = True) -> None:
    """Write a file completely or not at all: write to a temporary name, then rename. Raises OSError that names `path`.

    sync: wait until the data are on the disk. Without it, a power failure (but not a crash) can leave an empty file.
    """
    part = path.with_name(f".{secrets.token_hex(8)}.part")
    try:
        with open(part, "xb") as file:      # x: never writes to an existing file or through a symbolic link
            file.write(data)
            if sync:
                file.flush()
                os.fsync(file.fileno())
        part.replace(path)
    except OSError as error:
        raise OSError(error.errno, error.strerror or str(error), str(path)) from None
    finally:
        with suppress(OSError):     # already renamed, or the folder cannot be written at all
            part.unlink()


def remove_parts(folder: Path) -> None:
    """Remove what `write_atomically` left in a folder when its process was killed. The caller holds the folder's lock."""
    for path in folder.iterdir():
        if re.fullmatch(r"\.[0-9a-f]{16}\.part", path.name):
            path.unlink(missing_ok=True)


def as_csv(columns: Sequence[str], rows: Iterable[Mapping]) -> bytes:
    """Content of a CSV file with a header. Cells that a row lacks are empty."""
    text = io.StringIO()
    writer = csv.DictWriter(text, columns, restval="", lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue().encode(errors="backslashreplace")    # a file name can hold undecodable bytes


def refuse_overwriting(folders: Iterable[Path], file: Path | None, inputs: Sequence[Path]) -> None:
    """Check all outputs against all inputs, before anything is written. Raises OutputError.

    An output folder must not hold an input file. The next run would otherwise read the fused images as sources. A
    single output file must not be an input file, and must not have the name of an input file with another suffix. It
    must not replace the source of another pair: a file in the folder of a source, with a partner in these folders.

    Args:
        folders: output folders.
        file: the only result, with a name that the user chose; None for results named after their pairs.
        inputs: all input files.
    """
    homes: dict[tuple[int, int] | None, list[Path]] = {}
    for path in inputs:
        for place in dict.fromkeys((path, Path(os.path.realpath(path)))):      # for a symbolic link: the link and its target
            homes.setdefault(_identity(place.parent), []).append(place)
    homes.pop(None, None)
    if file:
        for source in homes.get(_identity(file.parent), []):
            if source.stem.casefold() == file.stem.casefold():
                raise OutputError(f"{file}: {source.name} is a source; choose another name for --out")
        sources = [path for paths in homes.values() for path in paths]
        if file.exists() and _identity(file.parent) in homes and (partner := _partner(file, sources)):
            raise OutputError(f"{file}: is the partner of {partner}; choose another name for --out")
        folders = [folder for folder in folders if folder != file.parent]
    for folder in folders:
        if _identity(folder) in homes:
            raise OutputError(f"{folder}: this folder holds source images; choose another --out")


def _partner(file: Path, sources: Sequence[Path]) -> Path | None:
    """Another image or video beside the sources, and none of them, with the name of `file` without the usual affixes."""
    name, own = without_affix(file.stem, INFRARED + VISIBLE), _identity(file.parent)
    kinds = SUFFIXES | {path.suffix.lower() for path in (file, *sources)}
    taken = {_identity(source) for source in sources}
    # A folder can have several paths, for example a relative one and one through a symbolic link.
    for home, folder in {_identity(source.parent): source.parent for source in sources}.items():
        for path in sorted(folder.iterdir()):
            if path.suffix.lower() in kinds and without_affix(path.stem, INFRARED + VISIBLE) == name:
                twin = home == own and path.stem == file.stem
                if not twin and _identity(path) not in taken:
                    return path
    return None


def check_place(option: str, file: Path) -> None:
    """Raises ValueError if a file cannot be written there.

    It is a folder or a device, or its folder does not exist or cannot be written.
    """
    if file.is_dir() or not file.absolute().parent.is_dir():
        raise ValueError(f"{option} {file}: {'is a folder' if file.is_dir() else 'no such folder'}")
    if file.exists() and not file.is_file():        # write_atomically would replace /dev/null by a file
        raise ValueError(f"{option} {file}: is a device or a pipe; name a file")
    if not os.access(file.absolute().parent, os.W_OK):
        raise ValueError(f"{option} {file}: its folder cannot be written; name a file in another folder")


def check_csv_name(file: Path) -> None:
    """Raises ValueError if a CSV file would get the name of an image or replace a file of another kind."""
    if file.suffix.lower() in SUFFIXES:
        raise ValueError(f"--csv {file}: this is an image's name; give a file that ends in .csv")
    if file.is_file() and file.suffix.lower() not in (".csv", ".tsv", ".txt"):
        raise ValueError(f"--csv {file}: exists, and would be replaced; give a file that ends in .csv")


def refuse_input(file: Path, inputs: Iterable[Path]) -> None:
    """Raises OutputError if a file that is to be written is one of the input files, also if it does not exist yet."""
    if (_identity(file) or file.resolve()) in {_identity(path) or path.resolve() for path in inputs}:
        raise OutputError(f"{file}: is an input of this command; choose another name for the result")


def _identity(path: Path) -> tuple[int, int] | None:
    """Device and inode, equal for all paths of one folder or file; None if it does not exist."""
    try:
        status = path.stat()
    except OSError:
        return None
    return status.st_dev, status.st_ino


@contextmanager
def making(folders: Sequence[Path]) -> Iterator[None]:
    """Create the folders. At the end of the block, new folders that are still empty are removed. Raises OSError."""
    missing = {place for folder in folders for place in (folder, *folder.parents) if not place.exists()}
    try:
        for folder in folders:
            try:
                folder.mkdir(parents=True, exist_ok=True)
            except (FileExistsError, NotADirectoryError) as error:
                raise NotADirectoryError(error.errno, "a file is in its place; name a folder", str(folder)) from None
        yield
    finally:
        for place in sorted(missing, reverse=True):     # subfolders first
            with suppress(OSError):     # not empty, or never created
                place.rmdir()


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Lock a folder against other runs until the block or the process ends, also if the process is killed.

    Raises OutputError at once if another run holds the lock. On Windows, and on file systems without locks, there is no
    check.
    """
    try:
        import fcntl
    except ImportError:
        yield
        return
    path = folder / ".lock"
    while True:
        try:
            number = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o666)
        except PermissionError:
            try:
                number = os.open(path, os.O_RDONLY | os.O_NOFOLLOW)     # left by a killed run of another user
            except FileNotFoundError:
                raise OutputError(f"{folder}: no permission to write there; choose another --out") from None
        try:
            fcntl.flock(number, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(number)
            raise OutputError(f"{folder}: another run is writing there; wait for it or choose another --out") from None
        except OSError:
            pass
        if _identity(path) == (os.fstat(number).st_dev, os.fstat(number).st_ino):
            break
        os.close(number)        # another run has ended in the meantime and removed the file, so try again
    try:
        yield
    finally:
        with suppress(PermissionError):     # a file of another user, in a folder like /tmp
            path.unlink(missing_ok=True)
        os.close(number)
