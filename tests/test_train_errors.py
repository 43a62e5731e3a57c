"""Training when something goes wrong: errors in mid-run, output that fails, folders in use, a damaged last.pth."""
import io
import json
import math
import re
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from conftest import write_roadscene
from training import TINY, fail_to_write, interrupt_at, rows, said, same_weights

import recipe
import train
import trainer
from support import console, outputs

ROOT = Path(train.__file__).parent
# --- errors in mid-run ---


class Gone:
    """A stream of a terminal that was closed."""
    encoding = "utf-8"

    def write(self, text=""):
        raise OSError(5, "Input/output error")

    flush = write


def test_training_does_not_die_for_want_of_a_place_to_print(folders, tmp_path, monkeypatch):
    """Output and log fail, and so does the warning about the log; see also the campaign, with real terminals."""
    fail_to_write(monkeypatch, ["log.csv"], OSError(28, "No space left on device"))
    for stream in ("stdout", "stderr"):
        monkeypatch.setattr(sys, stream, console.Lasting(Gone()))       # as the command has them
    assert train.main([*folders, *TINY, "--steps", "7", "--out", str(tmp_path)]) == 0
    assert torch.load(tmp_path / "last.pth", weights_only=True)["step"] == 7


def test_the_command_ends_well_with_its_output_on_a_full_disk(folders, tmp_path):
    if not Path("/dev/full").exists():
        pytest.skip("no /dev/full")
    with open("/dev/full", "w") as full:
        argv = [sys.executable, str(ROOT / "train.py"), *folders, *TINY, "--steps", "7", "--out", str(tmp_path)]
        assert subprocess.run(argv, stdout=full, stderr=full, check=False).returncode == 0
    assert torch.load(tmp_path / "last.pth", weights_only=True)["step"] == 7


@pytest.mark.parametrize("step, saved", [(2, 0), (3, 0), (5, 3)])
def test_infinite_gradients_after_a_finite_loss_leave_the_last_checkpoint(folders, tmp_path, monkeypatch, capsys, step, saved):
    """Epochs of three steps; the last of them is step 5, at the end of the run."""
    train_step = train.Trainer.train_step

    def diverging(self, *batch):
        train_step(self, *batch)
        if self.step == step:
            next(self.model.parameters()).data.fill_(math.nan)
    monkeypatch.setattr(train.Trainer, "train_step", diverging)
    assert train.main([*folders, *TINY, "--steps", str(step), "--out", str(tmp_path)]) == 1
    assert f"step {step}: some weights or statistics are not finite; lower --lr" in capsys.readouterr().err
    assert not (tmp_path / "best.pth").exists()
    if saved:
        assert torch.load(tmp_path / "last.pth", weights_only=True)["step"] == saved
    else:
        assert not (tmp_path / "last.pth").exists()


def test_a_log_that_could_not_be_written_is_written_at_the_end(folders, tmp_path, monkeypatch):
    failures = iter([True, True])
    fail_to_write(monkeypatch, ["log.csv"], OSError(28, "No space left on device"), lambda path: next(failures, False))
    assert train.main([*folders, *TINY, "--steps", "6", "--out", str(tmp_path)]) == 0
    assert [row["step"] for row in rows(tmp_path)] == ["3", "6"]


@pytest.mark.parametrize("place", ["loss", "model", "decoder"])
def test_what_is_not_finite_is_written_to_no_file(tmp_path, place):
    """As after Ctrl-C in the step that diverges: last.pth of an earlier step stays."""
    run = trainer.Trainer(train.parse([*TINY, "--out", str(tmp_path)]))
    run.step = 1
    run.sums = {"L_total": torch.tensor(math.nan if place == "loss" else 1)}
    if place != "loss":
        next(getattr(run, place).parameters()).data.fill_(math.nan)
        with pytest.raises(recipe.TrainingError, match="some weights or statistics are not finite"):
            run.take_as_best({})
    with pytest.raises(recipe.TrainingError, match="step 1: .* not finite"):
        run.save(trainer.write_once)
    assert not run.unwritten and not any(tmp_path.iterdir())


def test_a_line_for_a_log_file_is_flushed():
    file = io.BytesIO()
    stream = io.TextIOWrapper(file)
    trainer.say("epoch 1", stream)
    assert file.getvalue().split() == [b"epoch", b"1"]


def fail_in_step(number, error, monkeypatch, place="zero_grad"):
    """`error` in step `number`, before its changes; or with place="step" between those of the two optimisers."""
    original, calls = getattr(torch.optim.Adam, place), []

    def fails(self, *args, **kwargs):
        calls.append(1)
        if len(calls) == 2 * number:
            raise error
        return original(self, *args, **kwargs)
    monkeypatch.setattr(torch.optim.Adam, place, fails)


def test_an_error_of_the_network_has_a_traceback_and_the_steps_before_it_are_saved(folders, tmp_path, monkeypatch, capsys):
    fail_in_step(3, RuntimeError("The size of tensor a (7) must match the size of tensor b (8)"), monkeypatch)
    assert train.main([*folders, *TINY, "--steps", "6", "--out", str(tmp_path)]) == 1
    error = capsys.readouterr().err
    assert error.count("Traceback") == 1 and "in fails" in error
    assert error.splitlines()[-1].startswith("train.py: The size of tensor a (7)")
    assert torch.load(tmp_path / "last.pth", weights_only=True)["step"] == 2


@pytest.mark.parametrize(("error", "message"), [
    (RuntimeError("DataLoader worker (pid 7) is killed by signal: Killed.\nDetails"),
     r"\(pid 7\) is killed by signal.*lower --workers"),
    (ConnectionResetError(104, "Connection reset by peer"), "a data loader process has ended.*lower --workers"),
    (EOFError(), "a data loader process has ended.*lower --workers"),
    (torch.OutOfMemoryError("CUDA out of memory"), "too little memory for a training step.*lower --batch, --crop"),
    (RuntimeError("DefaultCPUAllocator: can't allocate memory"), "lower --batch, --crop"),
    (MemoryError(), "lower --batch, --crop"),
], ids=str)
def test_an_error_in_mid_run_is_one_line_and_the_steps_before_it_are_saved(
        folders, tmp_path, monkeypatch, capsys, error, message):
    run = [*folders, *TINY, "--steps", "6"]
    with monkeypatch.context() as patch:
        fail_in_step(6, error, patch)
        assert train.main([*run, "--out", str(tmp_path / "cut")]) == 1
    line, = said(capsys)
    assert re.search(message, line)
    assert torch.load(tmp_path / "cut" / "last.pth", weights_only=True)["step"] == 5
    assert train.main(["--resume", "--out", str(tmp_path / "cut")]) == 0
    assert rows(tmp_path / "cut")[-1]["step"] == "6"


@pytest.mark.skipif(not hasattr(signal, "SIGCHLD"), reason="Windows has no such signal")
def test_the_end_of_a_loader_does_not_disturb_the_save(folders, tmp_path, monkeypatch):
    """PyTorch's handler raises an error when it hears of a killed loader, which can be after the read failed."""
    def heard(*_):
        raise RuntimeError("DataLoader worker (pid 7) is killed by signal: Killed.")

    def rescue_among_signals(self):
        former = signal.signal(signal.SIGCHLD, heard)
        rescue(self)
        assert signal.signal(signal.SIGCHLD, former) is heard

    check, rescue = trainer.Trainer._check_finite, trainer.Trainer.rescue
    monkeypatch.setattr(trainer.Trainer, "_check_finite", lambda self: signal.raise_signal(signal.SIGCHLD) or check(self))
    monkeypatch.setattr(trainer.Trainer, "rescue", rescue_among_signals)
    fail_in_step(3, ConnectionResetError(104, "Connection reset by peer"), monkeypatch)
    assert train.main([*folders, *TINY, "--crops", "12", "--steps", "6", "--out", str(tmp_path)]) == 1
    assert torch.load(tmp_path / "last.pth", weights_only=True)["step"] == 2


def test_too_little_memory_for_the_images_or_a_validation_pair_is_said_so(tmp_path, monkeypatch, capsys):
    write_roadscene(tmp_path / "RoadScene")
    run = ["--data", str(tmp_path / "RoadScene"), *TINY, "--steps", "2", "--val-every", "1", "--out", str(tmp_path / "run")]
    evaluating = trainer.RPFNet.forward

    def forward(self, *images, **options):
        if not self.training:
            raise RuntimeError("DefaultCPUAllocator: can't allocate memory")
        return evaluating(self, *images, **options)
    with monkeypatch.context() as patch:
        patch.setattr(trainer.RPFNet, "forward", forward)
        assert train.main(run) == 1
    line, = said(capsys)
    assert re.search(r"validation pair FLIR_\w+ \(\d+x\d+\): too little memory; --val-every 0", line)

    def full(*_):
        raise MemoryError
    monkeypatch.setattr(train, "PairDataset", full)
    assert train.main([*run[:-1], str(tmp_path / "other")]) == 1
    line, = said(capsys)
    assert "too little memory to hold 180 pairs" in line


def test_half_a_step_is_not_saved(folders, tmp_path, monkeypatch):
    """The networks have taken different numbers of steps: what counts is the end of the last epoch."""
    fail_in_step(5, RuntimeError("killed"), monkeypatch, "step")
    assert train.main([*folders, *TINY, "--steps", "6", "--out", str(tmp_path)]) == 1
    assert torch.load(tmp_path / "last.pth", weights_only=True)["step"] == 3


@pytest.mark.parametrize("left", ["last.pth", "best.pth", "best.json", "log.csv"])
def test_a_new_run_does_not_destroy_an_old_one(folders, tmp_path, capsys, left):
    (tmp_path / left).write_bytes(b"of an earlier run")
    assert train.main([*folders, *TINY, "--steps", "2", "--out", str(tmp_path)]) == 1
    line, = said(capsys)
    assert left in line and "another --out" in line
    assert [path.read_bytes() for path in tmp_path.iterdir()] == [b"of an earlier run"]


def test_a_second_run_in_one_folder_is_told_at_once(folders, tmp_path, capsys):
    assert train.main([*folders, *TINY, "--steps", "1", "--out", str(tmp_path)]) == 0
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    capsys.readouterr()
    with outputs.locked(tmp_path):
        for argv in (["--resume"], [*folders, *TINY]):
            assert train.main([*argv, "--out", str(tmp_path)]) == 1
            line, = said(capsys)
            assert "another run is writing there" in line
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before


def test_a_resumed_run_removes_what_a_kill_left_of_a_save(folders, tmp_path):
    assert train.main([*folders, *TINY, "--steps", "1", "--out", str(tmp_path)]) == 0
    before = sorted(tmp_path.iterdir())
    for name in (".0123456789abcdef.part", ".own.part"):
        (tmp_path / name).write_bytes(b"half")
    assert train.main(["--resume", "--out", str(tmp_path)]) == 0
    assert sorted(tmp_path.iterdir()) == [tmp_path / ".own.part", *before]


@pytest.mark.parametrize(("out", "message"), [
    (".", "this folder holds source images; choose another --out"), ("0.png", ": a file is in its place; name a folder")])
def test_nothing_is_written_among_the_training_images(folders, capsys, out, message):
    place = Path(folders[1])
    before = sorted(place.iterdir())
    assert train.main([*folders, *TINY, "--steps", "1", "--out", str(place / out)]) == 1
    line, = said(capsys)
    assert str(place) in line and line.endswith(message) and sorted(place.iterdir()) == before


def test_a_run_that_cannot_start_leaves_no_folder(tmp_path):
    assert train.main(["--data", str(tmp_path / "absent"), "--out", str(tmp_path / "new" / "run")]) == 1
    assert not list(tmp_path.iterdir())


# --- what is resumed ---


@pytest.fixture(scope="module")
def half(folders, tmp_path_factory):
    """last.pth of a run of six steps, interrupted after the fourth."""
    out = tmp_path_factory.mktemp("half")
    with pytest.MonkeyPatch.context() as patch:
        interrupt_at(4, patch)
        assert train.main([*folders, *TINY, "--steps", "6", "--out", str(out)]) == 130
    return out / "last.pth"


def resume(half, out, edit):
    """Exit code of a run that goes on from a changed last.pth."""
    state = torch.load(half, weights_only=True)
    edit(state)
    torch.save(state, out / "last.pth")
    return train.main(["--resume", "--out", str(out)])


def test_a_run_that_is_older_than_an_option_goes_on_with_the_papers_value(half, tmp_path, folders):
    (tmp_path / "older").mkdir()
    assert resume(half, tmp_path / "older", lambda state: state["recipe"].pop("dim")) == 0
    assert train.main([*folders, *TINY, "--steps", "6", "--out", str(tmp_path / "whole")]) == 0
    assert same_weights(tmp_path / "older", tmp_path / "whole")
    assert json.loads((tmp_path / "older" / "best.json").read_text())["recipe"]["dim"] == 0


def put(place, value):
    """Sets an entry of nested dictionaries and lists."""
    def edit(state):
        for key in place[:-1]:
            state = state[key]
        state[place[-1]] = value
    return edit


def spoiled(state):
    state["model"]["head.last.weight"][0] = torch.nan


DAMAGED = [
    *((lambda state, key=key: state.pop(key), f"it lacks {key}") for key in recipe.STATE),
    (put(["recipe", "out"], "/elsewhere"), "unknown options: out"),
    (put(["recipe", "device"], "cuda"), "unknown options: device"),
    (put(["recipe"], [1]), "is a list"),
    (put(["recipe", "teacher"], "a" * 5000), "teacher is a text"),
    (put(["recipe", "stages"], 10**9), "no whole number from 1 to 64"),
    (put(["recipe", "seed"], "0"), "seed is a text"),
    (put(["recipe", "ir"], None), "names no training pairs"),
    (put(["recipe", "dataset"], "msrs"), "two sets of them"),
    (put(["recipe", "ir"], ["a"]), "ir is a list"),
    (put(["recipe", "channels"], 8), "its network is not that of its recipe"),
    (put(["config", "stages"], 3), "its network is not that of its recipe"),
    (put(["config"], None), "its network is not that of its recipe"),
    (spoiled, "head.last.weight holds NaN"),
    (put(["decoder"], {}), "it lacks"),
    (put(["model"], torch.zeros(1)), "weights by name are expected"),
    (put(["optimisers"], []), "its state is damaged"),
    (put(["optimisers", 0], {"state": {}}), "its state is damaged"),
    (put(["sums"], 3), "its state is damaged"),
    (put(["history"], [1]), "its state is damaged"),
    (put(["history", 0, "lr"], "=cmd()"), "its state is damaged"),
    (put(["step"], "x"), "its state is damaged"),
    (put(["step"], 5000), "do not fit together"),
    (put(["step"], -1), "do not fit together"),
    (put(["step"], 1), "do not fit together"),
    (put(["seconds"], math.nan), "do not fit together"),
    (put(["history"], []), "do not fit together"),
    (put(["version"], "3"), "another version"),
    (put(["version"], 2), "another version"),
    (put(["version"], None), "another version"),
]


@pytest.mark.parametrize(("edit", "message"), DAMAGED, ids=[message for _, message in DAMAGED])
def test_a_last_pth_that_is_not_whole_is_refused_in_one_line(half, tmp_path, capsys, edit, message):
    assert resume(half, tmp_path, edit) == 1
    line, = said(capsys)
    assert "last.pth" in line and message in line
    assert [path.name for path in tmp_path.iterdir()] == ["last.pth"]


def test_own_pairs_may_move_but_not_become_a_data_set(half, tmp_path, folders, capsys):
    for argv in (["--data", "x"], ["--dataset", "msrs"]):
        with pytest.raises(SystemExit):
            train.main(["--resume", *argv, "--out", str(half.parent)])
        assert "was trained on --ir and --vis" in capsys.readouterr().err
    assert train.parse(["--resume", "--ir", "moved", "--out", str(half.parent)]).ir == "moved"


def test_a_run_is_not_resumed_with_other_pairs(half, tmp_path, folders, capsys):
    """Crops are numbered in the list of pairs, so another list gives other crops."""
    more = {option: shutil.copytree(folder, tmp_path / option) for option, folder in zip(folders[::2], folders[1::2])}
    for folder in more.values():
        first = sorted(folder.iterdir())[0]
        shutil.copy(first, folder / f"another{first.suffix}")
    out = tmp_path / "run"
    shutil.copytree(half.parent, out)
    argv = [str(text) for pair in more.items() for text in pair]
    assert train.main(["--resume", *argv, "--out", str(out)]) == 1
    assert "the training pairs have changed" in capsys.readouterr().err


def test_a_run_is_not_resumed_with_pairs_of_other_sizes(half, tmp_path, folders, capsys):
    moved = {option: shutil.copytree(folder, tmp_path / option) for option, folder in zip(folders[::2], folders[1::2])}
    for folder in moved.values():
        first = sorted(folder.iterdir())[0]
        image = cv2.imread(str(first), cv2.IMREAD_UNCHANGED)
        cv2.imwrite(str(first), np.concatenate([image, image], 1))
    out = tmp_path / "run"
    shutil.copytree(half.parent, out)
    assert train.main(["--resume", *[str(text) for pair in moved.items() for text in pair], "--out", str(out)]) == 1
    assert "the training pairs have changed" in capsys.readouterr().err


def test_best_json_does_not_describe_weights_that_could_not_be_written(tmp_path):
    run, written, full = trainer.Trainer(train.parse([*TINY, "--out", str(tmp_path)])), [], [True]
    run.unwritten = {tmp_path / "best.pth": b"weights", tmp_path / "best.json": b"about"}

    def write(path, data):
        if not full:
            written.append(path.name)
        return not full
    run._write_best(write)
    assert written == [] and len(run.unwritten) == 2
    full.clear()
    run._write_best(write)
    assert written == ["best.pth", "best.json"] and not run.unwritten


def test_notes_name_what_was_taken_another_way(tmp_path, capsys):
    for name in "ab":
        for side, kind in (("ir", np.uint16), ("vis", np.uint8)):
            (tmp_path / side).mkdir(exist_ok=True)
            cv2.imwrite(str(tmp_path / side / f"{name}.png"), np.arange(24 * 30, dtype=kind).reshape(24, 30))
    options = ["--ir", str(tmp_path / "ir"), "--vis", str(tmp_path / "vis"), *TINY, "--steps", "1"]
    assert train.main([*options, "--out", str(tmp_path / "run")]) == 0
    (line,) = [line for line in re.split("[\r\n]", capsys.readouterr().err) if line.startswith("note: ")]
    assert "16-bit infrared" in line and "a.png, b.png" in line
