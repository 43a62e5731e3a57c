"""Writing: whole or not at all, one run at a time, never over an input."""
import errno
import os
import subprocess
import sys
from pathlib import Path

import pytest

from support import outputs
from support.outputs import OutputError, check_place, locked, making, refuse_overwriting, write_atomically

ROOT = Path(outputs.__file__).parents[1]


def names(folder):
    return sorted(path.name for path in folder.iterdir())


@pytest.mark.parametrize("sync", [True, False])
def test_a_file_is_written_whole_or_stays_as_it_was(tmp_path, monkeypatch, sync):
    path = tmp_path / "a.bin"
    write_atomically(path, b"first", sync)
    assert path.read_bytes() == b"first"

    def full(self, target):
        raise OSError(errno.ENOSPC, "No space left on device", str(self))
    monkeypatch.setattr(Path, "replace", full)
    with pytest.raises(OSError, match="No space left") as caught:
        write_atomically(path, b"second", sync)
    assert caught.value.filename == str(path)       # and not the temporary name
    assert path.read_bytes() == b"first" and names(tmp_path) == ["a.bin"]


def test_what_is_renamed_is_on_the_disk(tmp_path, monkeypatch):
    events = []
    whole = Path.replace
    monkeypatch.setattr(os, "fsync", lambda number: events.append(("sync", os.fstat(number).st_size)))
    monkeypatch.setattr(Path, "replace", lambda self, to: events.append(("rename", 0)) or whole(self, to))
    write_atomically(tmp_path / "a", b"12345")
    assert events == [("sync", 5), ("rename", 0)]


def test_writers_of_one_file_share_no_temporary_name_and_follow_no_link(tmp_path, monkeypatch):
    (tmp_path / "victim").write_text("precious")
    guesses = iter(["taken", "free"])
    monkeypatch.setattr(outputs.secrets, "token_hex", lambda _: next(guesses))
    (tmp_path / ".taken.part").symlink_to(tmp_path / "victim")
    with pytest.raises(FileExistsError):
        write_atomically(tmp_path / "a", b"x")
    (tmp_path / "a").symlink_to(tmp_path / "victim")
    write_atomically(tmp_path / "a", b"x")          # takes the link's place
    assert (tmp_path / "victim").read_text() == "precious" and not (tmp_path / "a").is_symlink()


def test_an_error_names_the_file_and_not_its_temporary_name(tmp_path):
    (tmp_path / "a").write_text("a file")
    with pytest.raises(OSError) as caught:
        write_atomically(tmp_path / "a" / "b", b"x")
    assert caught.value.filename == str(tmp_path / "a" / "b")


def test_the_permissions_are_those_of_any_new_file(tmp_path):
    write_atomically(tmp_path / "a", b"x")
    (tmp_path / "b").write_bytes(b"x")
    assert (tmp_path / "a").stat().st_mode == (tmp_path / "b").stat().st_mode


@pytest.mark.parametrize(("name", "stray"), [
    (".0123456789abcdef.part", True), (".0123456789abcdef.part.mp4", True), (".DS_Store", True), ("desktop.ini", True),
    ("a.part.mp4", False), (".hidden.mp4", False), ("a.mp4", False)])
def test_leftovers_of_a_killed_run_are_known(name, stray):
    assert outputs.is_stray(Path("folder", name)) == stray


# --- never over an input ---


@pytest.fixture
def source(tmp_path):
    (tmp_path / "sources").mkdir()
    path = tmp_path / "sources" / "a.jpg"
    path.write_bytes(b"x")
    return path


def test_a_folder_of_results_holds_no_source(tmp_path, source):
    refuse_overwriting([tmp_path / "out", tmp_path / "out" / "compare"], None, [source])
    (tmp_path / "link").symlink_to(source.parent)
    (tmp_path / "images").mkdir()
    (tmp_path / "images" / "a.jpg").symlink_to(source)
    for folder, inputs in ((source.parent, [source]), (tmp_path / "link", [source]),
                           (source.parent, [tmp_path / "images" / "a.jpg"])):       # where a linked source lies, too
        with pytest.raises(OutputError, match="holds source images"):
            refuse_overwriting([tmp_path / "out", folder], None, [*inputs])


def test_one_result_is_neither_a_source_nor_its_twin(source):
    refuse_overwriting([source.parent], source.parent / "fused.png", [source])
    for name in ("a.jpg", "a.png", "A.png"):
        with pytest.raises(OutputError, match="a.jpg is a source"):
            refuse_overwriting([source.parent], source.parent / name, [source])
    (source.parent / "fused.png").write_bytes(b"an earlier result")
    refuse_overwriting([source.parent], source.parent / "fused.png", [source])


def test_one_result_does_not_replace_a_source_of_another_pair(tmp_path):
    files = [tmp_path / side / f"{name}.png" for side in ("ir", "vis") for name in "ab"]
    for file in files:
        file.parent.mkdir(exist_ok=True)
        file.write_bytes(b"x")
    sources = [tmp_path / "ir" / "a.png", tmp_path / "vis" / "a.png"]
    refuse_overwriting([tmp_path / "vis"], tmp_path / "vis" / "c.png", sources)
    for side in ("ir", "vis"):
        with pytest.raises(OutputError, match="b.png: is the partner of .*b.png; choose another name"):
            refuse_overwriting([tmp_path / side], tmp_path / side / "b.png", sources)


@pytest.mark.parametrize("names", [("ir/a_ir", "vis/a_vis", "vis/b_vis", "ir/b_ir"), ("IR1", "VIS1", "IR2", "VIS2")])
def test_partners_are_found_by_names_without_affix(tmp_path, names):
    files = [tmp_path / f"{name}.png" for name in (*names, "a", "vis/a", "fused")]
    for file in files:
        file.parent.mkdir(exist_ok=True)
        file.write_bytes(b"x")
    with pytest.raises(OutputError, match=f"{files[2].name}: is the partner of .*{files[3].name}; choose another name"):
        refuse_overwriting([files[2].parent], files[2], files[:2])
    for earlier_result in files[4:]:
        refuse_overwriting([earlier_result.parent], earlier_result, files[:2])


def test_a_result_beside_its_sources_is_replaced_whatever_the_path(tmp_path, monkeypatch):
    """A relative path and one through a symbolic link name the same folder."""
    (tmp_path / "set").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "set")
    for name in ("a_ir.png", "a_vis.png", "a.png", "a_ir.json", "a.txt", "b_vis.png"):
        (tmp_path / "set" / name).write_bytes(b"x")
    monkeypatch.chdir(tmp_path / "set")
    for folder in (Path(), tmp_path / "link", tmp_path / "set"):
        sources = [folder / "a_ir.png", folder / "a_vis.png"]
        refuse_overwriting([folder], folder / "a.png", sources)
        with pytest.raises(OutputError, match="b.png: is the partner of .*b_vis.png"):
            (tmp_path / "set" / "b.png").write_bytes(b"x")
            refuse_overwriting([folder], folder / "b.png", sources)


def test_a_result_is_no_input_also_before_the_input_exists(source):
    outputs.refuse_input(source.parent / "b.csv", [source, source.parent / "c.csv"])
    for name, others in (("a.jpg", [source]), ("b.csv", [source, source.parent / ".." / "sources" / "b.csv"])):
        with pytest.raises(OutputError, match="is an input"):
            outputs.refuse_input(source.parent / name, others)


def test_undecodable_bytes_of_a_file_name_are_escaped():
    name = os.fsdecode(b"a\xff.png")
    assert outputs.as_csv(["image"], [{"image": name}]) == b"image\na\\udcff.png\n"


# --- folders and locks ---


def test_folders_that_stay_empty_are_removed_and_others_kept(tmp_path):
    (tmp_path / "there").mkdir()
    with making([tmp_path / "there" / "new" / "out", tmp_path / "there" / "new" / "out" / "compare"]):
        assert (tmp_path / "there" / "new" / "out" / "compare").is_dir()
    assert names(tmp_path / "there") == []
    with pytest.raises(ZeroDivisionError), making([tmp_path / "new"]):
        (tmp_path / "new" / "result").write_text("")
        1 / 0  # noqa: B018
    assert names(tmp_path / "new") == ["result"]


def test_a_second_run_is_told_at_once_and_nothing_is_left(tmp_path):
    with locked(tmp_path):
        with pytest.raises(OutputError, match="another run"), locked(tmp_path):
            pass
        assert names(tmp_path) == [".lock"]
    assert names(tmp_path) == []
    with locked(tmp_path):
        pass


def test_the_lock_of_a_killed_run_is_free(tmp_path):
    code = "import os, pathlib\nfrom support import outputs\nwith outputs.locked(pathlib.Path('.')): os._exit(9)"
    subprocess.run([sys.executable, "-c", code], cwd=tmp_path, env={**os.environ, "PYTHONPATH": str(ROOT)}, check=False)
    assert names(tmp_path) == [".lock"]
    with locked(tmp_path):
        pass


def test_a_planted_link_is_no_lock(tmp_path):
    (tmp_path / ".lock").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(OSError), locked(tmp_path):
        pass
    assert not (tmp_path / "elsewhere").exists()


@pytest.mark.parametrize("name, message", [(".", "is a folder"), ("absent/a.csv", "no such folder"),
                                           (os.devnull, "is a device or a pipe"), ("a.csv", "its folder cannot be written")])
def test_a_place_that_cannot_be_written_is_refused_before_the_work(tmp_path, monkeypatch, name, message):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(os, "access", lambda path, mode: mode != os.W_OK)      # root can write everywhere
    with pytest.raises(ValueError, match=f"^--csv {name}: {message}"):
        check_place("--csv", Path(name))


def test_sources_by_two_paths_are_no_partners(tmp_path):
    (tmp_path / "set").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "set")
    for name in ("a_ir.png", "a_vis.png", "a.png"):
        (tmp_path / "set" / name).touch()
    for ir, vis in (("link", "set"), ("set", "link")):
        refuse_overwriting([tmp_path / "set"], tmp_path / "set" / "a.png",
                           [tmp_path / ir / "a_ir.png", tmp_path / vis / "a_vis.png"])


def test_a_file_in_place_of_a_folder_is_named(tmp_path):
    (tmp_path / "a.md").touch()
    for place in (tmp_path / "a.md", tmp_path / "a.md" / "b"):
        with pytest.raises(NotADirectoryError, match="a file is in its place; name a folder.*a.md"), making([place]):
            pass


def test_a_folder_without_permission_is_named(tmp_path, monkeypatch):
    """Simulated, because the administrator may write everywhere."""
    original = os.open

    def denied(path, flags, *rest):
        if flags & os.O_CREAT:
            raise PermissionError(errno.EACCES, "Permission denied", str(path))
        return original(path, flags, *rest)
    monkeypatch.setattr(os, "open", denied)
    with pytest.raises(OutputError, match="no permission to write there; choose another --out"), locked(tmp_path):
        pass
