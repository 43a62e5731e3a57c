"""Training: the schedule, the log, and runs that are killed, interrupted and resumed."""
import copy
import json
import math
import os
import shutil
import signal
import subprocess
import sys
import time
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace

import cv2
import numpy as np
import pytest
import torch
from conftest import random_pair, write_roadscene
from training import TINY, fail_to_write, interrupt_at, rows, said, same_weights

import recipe
import train
import trainer
from dataset import CropDataset, PairDataset, match_pairs, named_pairs
from loss import FusionLoss
from net import AuxiliaryDecoder, RPFNet
from support import records

ROOT = Path(train.__file__).parent


# --- runs ---


@pytest.fixture(scope="module")
def plain(folders, tmp_path_factory):
    """A run of four steps with the options of the recipe paper."""
    out = tmp_path_factory.mktemp("plain")
    assert train.main([*folders, *TINY, "--steps", "4", "--out", str(out)]) == 0
    return out


def test_a_best_json_is_a_recipe(folders, tmp_path):
    """The same command with it, without any other option, is the same run."""
    first = ["--recipe", "contrast", *folders, *TINY, "--no-amp", "--steps", "3", "--seed", "4"]
    assert train.main([*first, "--out", str(tmp_path / "a")]) == 0
    assert train.main(["--recipe", str(tmp_path / "a" / "best.json"), *folders, "--out", str(tmp_path / "b")]) == 0
    assert same_weights(tmp_path / "a", tmp_path / "b")


def test_training_turns_tf32_off(folders, tmp_path, monkeypatch):
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", True)
    assert train.main([*folders, *TINY, "--steps", "1", "--out", str(tmp_path)]) == 0
    assert not torch.backends.cudnn.allow_tf32


def test_a_run_on_own_pairs_records_their_folders_and_no_data_set(folders, tmp_path, capsys):
    assert train.main([*folders, *TINY, "--steps", "1", "--out", str(tmp_path)]) == 0
    stored = json.loads((tmp_path / "best.json").read_text())["recipe"]
    assert [stored[key] for key in ("ir", "vis")] == [folders[1], folders[3]]
    assert stored["data"] is None and stored["dataset"] is None and stored["init"] is None
    # Its recipe names no pairs.
    assert train.main(["--recipe", str(tmp_path / "best.json"), "--out", str(tmp_path / "b")]) == 1
    assert "give --ir and --vis" in capsys.readouterr().err.splitlines()[-1]


def test_own_pairs_with_patterns_sizes_and_a_range_and_a_run_that_keeps_them(tmp_path, monkeypatch, capsys):
    rng = np.random.default_rng(0)
    for folder in ("ir", "vis"):
        (tmp_path / folder).mkdir()
    for name in range(3):
        cv2.imwrite(str(tmp_path / "ir" / f"cold{name}.png"), rng.integers(0, 4096, (20, 24), np.uint16))
        cv2.imwrite(str(tmp_path / "vis" / f"{name}day.png"), rng.integers(0, 256, (40, 48), np.uint8))
    run = ["--ir", str(tmp_path / "ir"), "--vis", str(tmp_path / "vis"), "--ir-pattern", "cold*", "--vis-pattern", "*day",
           *TINY, "--steps", "3", "--out", str(tmp_path / "out")]
    assert train.main(run) == 1
    assert "infrared is 24x20 and visible 48x40" in capsys.readouterr().err
    with monkeypatch.context() as patch:
        interrupt_at(1, patch)
        assert train.main([*run, "--resize", "vis", "--ir-range", "0", "65535"]) == 130
    resume = ["--resume", "--out", str(tmp_path / "out")]
    assert train.main([*resume, "--ir-range", "0", "4095"]) == 1
    assert "ir_range [0, 65535] -> [0, 4095]" in capsys.readouterr().err
    seen = []
    monkeypatch.setattr(train, "CropDataset", lambda pairs, *rest: seen.append(pairs) or CropDataset(pairs, *rest))
    assert train.main(resume) == 0
    ir, vis = seen[0][0]
    assert ir.shape == vis.shape == (1, 20, 24) and ir.max() < 17       # 12 bits of 16


def test_processes_that_have_read_different_states_do_not_go_on(folders, tmp_path, monkeypatch, capsys):
    run = [*folders, *TINY, "--steps", "3", "--out", str(tmp_path)]
    with monkeypatch.context() as patch:
        interrupt_at(1, patch)
        assert train.main(run) == 130
    before = (tmp_path / "last.pth").read_bytes()
    monkeypatch.setattr(type(train.team), "gathered", lambda team, items: [*items, items[0] + 1])
    assert train.main(["--resume", "--out", str(tmp_path)]) == 1
    assert "last.pth: the processes have read different states" in capsys.readouterr().err
    assert (tmp_path / "last.pth").read_bytes() == before


def test_a_run_leaves_the_signal_handlers_as_they_were(folders, tmp_path):
    numbers = signal.SIGINT, signal.SIGTERM
    before = [signal.getsignal(number) for number in numbers]
    assert train.main([*folders, *TINY, "--steps", "1", "--out", str(tmp_path)]) == 0
    assert [signal.getsignal(number) for number in numbers] == before


@contextmanager
def handlers(**actions):
    """Signal handlers by name, such as SIGINT=signal.SIG_IGN, until the end of the block."""
    former = {name: signal.signal(getattr(signal, name), action) for name, action in actions.items()}
    try:
        yield
    finally:
        for name, action in former.items():
            signal.signal(getattr(signal, name), action)


@pytest.mark.skipif(not hasattr(signal, "SIGHUP"), reason="needs SIGHUP")
def test_a_repeated_signal_of_the_system_still_saves():
    """A terminal that is closed can send SIGHUP twice. Only Ctrl-C after another signal ends at once."""
    with handlers(**dict.fromkeys(("SIGINT", "SIGTERM", "SIGHUP"), signal.SIG_DFL)), trainer.Stop() as stop:
        for number in (signal.SIGHUP, signal.SIGHUP, signal.SIGTERM):
            signal.raise_signal(number)
        assert stop.signal == signal.SIGHUP
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGINT)


def test_signals_that_the_shell_ignores_stay_ignored():
    with handlers(SIGINT=signal.SIG_IGN):
        with trainer.Stop() as stop:
            signal.raise_signal(signal.SIGINT)
            assert not stop
        assert signal.getsignal(signal.SIGINT) is signal.SIG_IGN


def test_the_record_of_a_resumed_run_names_all_its_commands(folders, tmp_path, monkeypatch):
    with monkeypatch.context() as patch:
        interrupt_at(1, patch)
        assert train.main([*folders, *TINY, "--steps", "3", "--out", str(tmp_path)]) == 130
    assert train.main(["--resume", "--out", str(tmp_path)]) == 0
    about = json.loads((tmp_path / "best.json").read_text())
    assert about["command"].startswith("python train.py --ir ") and about["commit"] == train.commit()
    assert [run["command"] for run in about["resumed"]] == [f"python train.py --resume --out {tmp_path}"]
    assert all(run[key] == about[key] for run in about["resumed"] for key in ("device", "precision", "packages"))


def test_a_run_whose_record_is_older_has_all_its_keys(folders, tmp_path, monkeypatch):
    with monkeypatch.context() as patch:
        interrupt_at(1, patch)
        assert train.main([*folders, *TINY, "--steps", "3", "--out", str(tmp_path)]) == 130
    state = torch.load(tmp_path / "last.pth", weights_only=True)
    state["runs"] = [{key: state["runs"][0][key] for key in ("command", "commit")}]
    torch.save(state, tmp_path / "last.pth")
    assert train.main(["--resume", "--out", str(tmp_path)]) == 0
    about = json.loads((tmp_path / "best.json").read_text())
    assert about["command"].startswith("python train.py --ir ") and about["device"] == about["packages"] == "unknown"
    assert about["resumed"][0]["device"].startswith("cpu")


def test_a_run_resumes_from_what_is_saved_when_it_gets_the_lock(folders, tmp_path, monkeypatch):
    for steps in (1, 2):
        with monkeypatch.context() as patch:
            interrupt_at(steps, patch)
            again = ["--resume"] if steps > 1 else [*folders, *TINY, "--steps", "3"]
            assert train.main([*again, "--out", str(tmp_path)]) == 130
        (tmp_path / f"{steps}.pth").write_bytes((tmp_path / "last.pth").read_bytes())
    (tmp_path / "last.pth").write_bytes((tmp_path / "1.pth").read_bytes())
    locked, starts, load = train.locked, [], train.Trainer.load

    def waiting(folder):
        (folder / "last.pth").write_bytes((folder / "2.pth").read_bytes())      # the last save of another run
        return locked(folder)
    monkeypatch.setattr(train, "locked", waiting)
    monkeypatch.setattr(train.Trainer, "load", lambda self, state, path: starts.append(state["step"]) or load(self, state, path))
    assert train.main(["--resume", "--out", str(tmp_path)]) == 0 and starts == [2]


def test_weights_that_could_not_be_written_are_written_with_the_next_save(folders, tmp_path, monkeypatch, capsys):
    """The disk is full when the best epoch ends, and best.json is missing beside the new best.pth until it is not."""
    errors = iter([True])
    fail_to_write(monkeypatch, ["best.json"], OSError(28, "No space left on device", "best.json"),
                  when=lambda path: next(errors, False))
    monkeypatch.setattr("recipe.has_validation", lambda args: True)
    monkeypatch.setattr(train, "load_data", lambda args: (pairs, pairs))
    pairs = PairDataset(match_pairs(folders[1], folders[3]))
    losses = iter([1.0, 2.0])       # the first epoch is the best
    monkeypatch.setattr(trainer, "validate", lambda *_: {"val_loss": next(losses)} | dict.fromkeys(
        trainer.VALIDATION_METRICS, 0.0))
    assert train.main([*folders, *TINY, "--steps", "6", "--val-every", "1", "--out", str(tmp_path)]) == 0
    assert "best.json not written" in capsys.readouterr().err
    assert json.loads((tmp_path / "best.json").read_text())["steps"] == 3


def test_a_run_whose_weights_cannot_be_written_fails_and_resumes(folders, tmp_path, monkeypatch, capsys):
    with monkeypatch.context() as patch:
        fail_to_write(patch, ["best.pth"], OSError(28, "No space left on device", "best.pth"))
        assert train.main([*folders, *TINY, "--steps", "3", "--out", str(tmp_path)]) == 1
    assert "No space left on device" in capsys.readouterr().err and not (tmp_path / "best.pth").exists()
    assert train.main(["--resume", "--out", str(tmp_path)]) == 0
    assert RPFNet.from_pretrained(tmp_path / "best.pth").config["stages"] == 2


@pytest.mark.parametrize("there", [True, False])
def test_amp_is_used_where_the_machine_has_bfloat16_and_files_say_so(folders, tmp_path, monkeypatch, capsys, there):
    monkeypatch.setattr(trainer, "has_bfloat16", lambda device: there)
    assert train.main([*folders, *TINY, "--amp", "--steps", "1", "--out", str(tmp_path)]) == 0
    stored = json.loads((tmp_path / "best.json").read_text())
    assert stored["recipe"]["amp"] and stored["precision"] == ("bfloat16" if there else "float32")
    assert ("note: --amp: no bfloat16 instructions here" in capsys.readouterr().err) is not there


def test_step_schedule_halves_at_each_fifth():
    rates = [trainer.learning_rate(1e-3, "step", p) for p in (0, 0.199, 0.2, 0.5, 0.99, 1.2)]
    assert rates == [1e-3, 1e-3, 5e-4, 2.5e-4, 6.25e-5, 6.25e-5]
    assert trainer.learning_rate(1e-3, "cosine", 0.5) == pytest.approx(5e-4)
    with pytest.raises(ValueError, match="warmup"):
        trainer.learning_rate(1e-3, "warmup", 0.5)


def test_same_seed_same_weights_and_another_seed_others(folders, tmp_path):
    for name, seed in (("a", 1), ("b", 1), ("c", 2)):
        assert train.main([*folders, *TINY, "--steps", "4", "--seed", str(seed), "--out", str(tmp_path / name)]) == 0
    assert same_weights(tmp_path / "a", tmp_path / "b")
    assert not same_weights(tmp_path / "a", tmp_path / "c")


def test_crops_that_other_processes_read_give_the_same_weights(folders, tmp_path, plain):
    assert train.main([*folders, *TINY, "--steps", "4", "--workers", "2", "--out", str(tmp_path)]) == 0
    assert same_weights(plain, tmp_path)


@pytest.mark.parametrize("options, name", [([], "SIGINT"), (["--amp"], "SIGTERM"), (["--recipe", "contrast"], "SIGHUP")], ids=str)
def test_a_run_cut_in_mid_epoch_and_resumed_is_the_whole_run_bit_for_bit(folders, tmp_path, options, name, monkeypatch):
    options = [*options, *folders, *TINY, "--steps", "8"]
    assert train.main([*options, "--out", str(tmp_path / "whole")]) == 0
    received = getattr(signal, name, None)
    if received is None or signal.getsignal(received) is signal.SIG_IGN:
        pytest.skip(f"this system has no {name}, or the shell ignores it")
    interrupt_at(4, monkeypatch, received)
    assert train.main([*options, "--out", str(tmp_path / "cut")]) == 128 + received
    assert torch.load(tmp_path / "cut" / "last.pth", weights_only=True)["step"] == 4
    monkeypatch.undo()
    assert train.main(["--resume", "--out", str(tmp_path / "cut")]) == 0
    assert same_weights(tmp_path / "whole", tmp_path / "cut")
    logs = [[{key: value for key, value in row.items() if key != "seconds"} for row in rows(tmp_path / run)]
            for run in ("whole", "cut")]
    assert logs[0] == logs[1] and [row["step"] for row in logs[0]] == ["3", "6", "8"]


def test_a_killed_process_resumes_from_its_last_checkpoint(folders, tmp_path, one_thread):
    """SIGKILL leaves no time to save: what counts is the checkpoint of the last whole epoch."""
    recipe = [*folders, *TINY, "--steps", "60"]
    # One thread, here and there: their number decides the order in which float32 numbers are added up.
    process = subprocess.Popen([sys.executable, str(ROOT / "train.py"), *recipe, "--out", str(tmp_path / "killed")],
                               stderr=subprocess.DEVNULL, env=os.environ | {"OMP_NUM_THREADS": "1"})
    log = tmp_path / "killed" / "log.csv"
    deadline = time.monotonic() + 120
    while not (log.exists() and log.read_text().count("\n") > 4):
        assert process.poll() is None and time.monotonic() < deadline, "training did not reach its fourth epoch"
        time.sleep(0.005)
    process.kill()
    process.wait()
    step = torch.load(tmp_path / "killed" / "last.pth", weights_only=True)["step"]
    assert 9 <= step < 60
    assert train.main(["--resume", "--out", str(tmp_path / "killed")]) == 0
    assert train.main([*recipe, "--out", str(tmp_path / "whole")]) == 0
    assert same_weights(tmp_path / "whole", tmp_path / "killed")


def test_a_run_saves_in_mid_epoch_and_resumes_from_such_a_save(folders, tmp_path, monkeypatch):
    """Epochs of three steps. A kill after step 4 would leave the copy."""
    saved, save = [], train.Trainer.save

    def watched(self, *how):
        save(self, *how)
        saved.append(self.step)
        if self.step == 4:
            (tmp_path / "killed").mkdir(exist_ok=True)
            (tmp_path / "killed" / "last.pth").write_bytes((tmp_path / "whole" / "last.pth").read_bytes())
    with monkeypatch.context() as patch:
        patch.setattr(train, "SAVE_EVERY", 0)       # seconds
        patch.setattr(train.Trainer, "save", watched)
        assert train.main([*folders, *TINY, "--steps", "8", "--out", str(tmp_path / "whole")]) == 0
    assert {4, 5, 7} <= {*saved}
    assert torch.load(tmp_path / "killed" / "last.pth", weights_only=True)["step"] == 4
    assert train.main(["--resume", "--out", str(tmp_path / "killed")]) == 0
    assert same_weights(tmp_path / "whole", tmp_path / "killed")


def timed(monkeypatch, seconds):
    """A clock that advances only in a step, by so many seconds; returns its time in a list."""
    now, step = [0.0], train.Trainer.train_step

    def watched(self, *batch):
        now[0] += seconds
        step(self, *batch)
    monkeypatch.setattr(trainer, "time", SimpleNamespace(monotonic=lambda: now[0]))
    monkeypatch.setattr(train.Trainer, "train_step", watched)
    return now


def test_the_time_between_saves_counts_from_the_last_one(folders, tmp_path, monkeypatch):
    saved, save = [], train.Trainer.save
    timed(monkeypatch, train.SAVE_EVERY * 0.7)
    monkeypatch.setattr(train.Trainer, "save", lambda self, *how: saved.append(self.step) or save(self, *how))
    assert train.main([*folders, *TINY, "--crops", "14", "--steps", "7", "--out", str(tmp_path)]) == 0
    assert [*dict.fromkeys(saved)] == [2, 4, 6, 7]


def test_a_run_whose_time_ends_after_an_epoch_without_validation_still_writes_its_weights(folders, tmp_path, monkeypatch):
    now, write_log = timed(monkeypatch, 1), train.Trainer.write_log

    def slow(self):
        write_log(self)
        now[0] += 100
    monkeypatch.setattr(train.Trainer, "write_log", slow)
    assert train.main([*folders, *TINY, "--max-minutes", "1", "--out", str(tmp_path)]) == 0
    assert [row["step"] for row in rows(tmp_path)] == ["3", "4"] and (tmp_path / "best.pth").exists()


def test_a_run_that_is_ended_in_its_validation_has_saved_the_epoch(folders, tmp_path, monkeypatch, capsys):
    """By a second Ctrl-C, which saves nothing; a kill is the same."""
    def ended(*_):
        raise KeyboardInterrupt
    monkeypatch.setattr(train.Trainer, "end_epoch", ended)
    assert train.main([*folders, *TINY, "--steps", "3", "--out", str(tmp_path)]) == 130
    assert torch.load(tmp_path / "last.pth", weights_only=True)["step"] == 3


def test_resume_refuses_another_recipe(folders, tmp_path, capsys):
    run = ["--out", str(tmp_path / "run")]
    assert train.main([*folders, *TINY, "--steps", "2", *run]) == 0
    assert train.main(["--resume", "--batch", "3", *run]) == 1
    assert "batch 2 -> 3" in capsys.readouterr().err
    assert train.main(["--resume", "--steps", "4", *run]) == 1
    line, = said(capsys)
    assert "steps 2 -> 4" in line and f"another --out; --init {tmp_path / 'run' / 'last.pth'} begins with" in line
    assert train.main(["--resume", "--out", str(tmp_path / "absent")]) == 1
    assert "nothing to resume" in capsys.readouterr().err


def test_resuming_a_finished_run_says_so(folders, tmp_path, capsys):
    run = ["--out", str(tmp_path)]
    assert train.main([*folders, *TINY, "--steps", "3", *run]) == 0
    assert "is finished" not in capsys.readouterr().out
    assert train.main(["--resume", *run]) == 0
    assert "the run is finished after 3 steps; to train on, start a new run with --init" in capsys.readouterr().out


def test_best_weights_load_and_carry_their_origin(folders, tmp_path):
    run = [*folders, *TINY, "--steps", "3", "--out", str(tmp_path)]
    assert train.main(run) == 0
    model = RPFNet.from_pretrained(tmp_path / "best.pth")
    about = json.loads((tmp_path / "best.json").read_text())
    assert about["steps"] == 3 and about["recipe"]["seed"] == 0 and about["config"] == model.config
    assert about["command"].startswith("python train.py --ir ") and about["command"].split()[-1] == str(tmp_path)
    assert about["version"] == recipe.VERSION and about["commit"] == train.commit()
    assert torch.__version__.startswith(about["packages"]["torch"])
    assert {"python", "numpy", "kornia"} <= about["packages"].keys()
    last = RPFNet.from_pretrained(tmp_path / "last.pth")
    assert all(torch.equal(v, last.state_dict()[k]) for k, v in model.state_dict().items())


def test_shared_convolutions_are_stored_once(folders, tmp_path):
    sizes = {}
    for sharing in ("convolutions", "none"):
        out = tmp_path / sharing
        options = ["--channels", "32", "--sharing", sharing, "--steps", "1", "--out", str(out)]
        assert train.main([*folders, *TINY, *options]) == 0
        sizes[sharing] = (out / "best.pth").stat().st_size
    stage = sum(p.numel() for p in RPFNet().stages[0].parameters())
    # Bytes, of the 4 that each number of the second iteration takes.
    assert sizes["none"] - sizes["convolutions"] > 3 * stage


def test_the_commit_is_unknown_without_git(monkeypatch):
    def absent(*_, **__):
        raise FileNotFoundError("git")
    monkeypatch.setattr(records.subprocess, "run", absent)
    assert train.commit() == "unknown"


def test_the_commit_is_not_that_of_an_outer_repository(tmp_path, monkeypatch):
    """Of a copy of the files inside another project."""
    inner = tmp_path / "copy"
    inner.mkdir()
    for name in [name for name in os.environ if name.startswith("GIT_")]:      # of a hook: they name another repository
        monkeypatch.delenv(name)
    git = ["git", "-C", str(tmp_path), "-c", "user.name=a", "-c", "user.email=a@b", "-c", "commit.gpgsign=false",
           "-c", "core.hooksPath=/dev/null"]
    try:
        for words in (["init", "--quiet"], ["commit", "--quiet", "--allow-empty", "--message", "x"]):
            subprocess.run([*git, *words], check=True)
    except OSError:
        pytest.skip("no git")
    for root, known in ((inner, False), (tmp_path, True)):
        monkeypatch.setattr(records, "ROOT", root)
        assert (train.commit() != "unknown") == known
    own = train.commit()
    monkeypatch.setenv("GIT_DIR", str(Path(__file__).resolve().parents[1] / ".git"))      # as in a hook of another repository
    assert train.commit() == own


def test_running_statistics_are_those_of_the_epochs_crops(folders, tmp_path):
    """Of the first layer, whose input does not depend on the order of training: all crops as one batch."""
    assert train.main([*folders, *TINY, "--steps", "3", "--out", str(tmp_path)]) == 0
    model = RPFNet.from_pretrained(tmp_path / "best.pth")
    pairs = train.PairDataset(train.match_pairs(folders[1], folders[3]))
    crops = train.CropDataset(pairs, 16, seed=0)
    ir, vis = (torch.stack([torch.from_numpy(crops[n][side]) for n in range(6)]) / 255 for side in (0, 1))
    with torch.no_grad():
        for block, sources in ((model.stem_f, torch.cat([ir, vis], 1)), (model.stem_r, ir - vis)):
            out = block[0](sources)
            torch.testing.assert_close(block[1].running_mean, out.mean((0, 2, 3)), atol=1e-5, rtol=1e-4)
            # Unbiased within batches of 2 x 16 x 16 values.
            torch.testing.assert_close(block[1].running_var, out.var((0, 2, 3)), atol=0, rtol=1 / 500)


def test_statistics_that_are_fixed_from_the_first_step_are_those_of_the_crops(folders, tmp_path):
    """Without --init. The initial ones, mean 0 and variance 1, are of no images."""
    assert train.main([*folders, *TINY, "--steps", "1", "--fixed-statistics", "1", "--out", str(tmp_path)]) == 0
    weights = torch.load(tmp_path / "best.pth", weights_only=True)
    means = [value for name, value in weights.items() if name.endswith("running_mean")]
    assert means and all(value.any() for value in means)


def seen_crops(monkeypatch, argv):
    """The crops of each step of a run, as bytes."""
    seen, step = [], train.Trainer.train_step

    def watched(self, ir, *rest):
        seen.append([crop.numpy().tobytes() for crop in ir])
        step(self, ir, *rest)
    with monkeypatch.context() as patch:
        patch.setattr(train.Trainer, "train_step", watched)
        if "--resume" not in argv:
            interrupt_at(4, patch)
        train.main(argv)
    return seen


@pytest.mark.parametrize("option", ["--fixed-crops", "--no-fixed-crops"])
def test_epochs_have_the_same_crops_or_new_ones_and_a_resumed_run_goes_on(folders, tmp_path, monkeypatch, option):
    """Three epochs of three steps of two crops, cut after the fourth step."""
    cut, out = ["--resume", "--out", str(tmp_path / "cut")], tmp_path / "cut"
    argv = [*folders, *TINY, option, "--steps", "9"]
    seen = seen_crops(monkeypatch, [*argv, "--out", str(out)])
    assert len(seen) == 4
    seen += seen_crops(monkeypatch, cut)
    assert len(seen) == 9
    epochs = [[crop for step in seen[i:i + 3] for crop in step] for i in (0, 3, 6)]
    if option == "--fixed-crops":
        assert sorted(epochs[0]) == sorted(epochs[1]) == sorted(epochs[2])
        assert epochs[0] != epochs[1] != epochs[2]
    else:
        assert not {*epochs[0]} & {*epochs[1]} and not {*epochs[1]} & {*epochs[2]}


def test_missing_data_gives_one_line_with_the_command(tmp_path, capsys):
    assert train.main(["--data", str(tmp_path), "--out", str(tmp_path)]) == 1
    error = capsys.readouterr().err.strip()
    assert "git clone https://github.com/hanna-xu/RoadScene" in error and "\n" not in error


def test_a_full_disk_loses_nothing(folders, tmp_path, monkeypatch, capsys):
    """The older checkpoint stays whole; in mid-run training goes on, at the end the exit code says so."""
    fail_to_write(monkeypatch, ["last.pth"], OSError(28, "No space left on device"), Path.exists)
    assert train.main([*folders, *TINY, "--steps", "9", "--out", str(tmp_path)]) == 1
    assert "No space left" in capsys.readouterr().err
    assert torch.load(tmp_path / "last.pth", weights_only=True)["step"] == 3
    assert len(rows(tmp_path)) == 3
    monkeypatch.undo()
    assert train.main(["--resume", "--out", str(tmp_path)]) == 0
    assert {path.name for path in tmp_path.iterdir()} == {"last.pth", "best.pth", "best.json", "log.csv"}


def test_a_decoder_that_saturates_in_mid_epoch_ends_training_with_the_remedy(folders, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(train, "CHECK_EVERY", 1)
    forward, calls = trainer.AuxiliaryDecoder.forward, []

    def saturating(self, x):
        calls.append(1)
        return forward(self, x) * (1e-6 if len(calls) > 12 else 1) + 0.01

    monkeypatch.setattr(trainer.AuxiliaryDecoder, "forward", saturating)
    assert train.main([*folders, *TINY, "--crops", "60", "--steps", "30", "--out", str(tmp_path)]) == 1
    assert "saturated" in capsys.readouterr().err and len(calls) == 13


FIXED = [*TINY, "--steps", "8", "--fixed-statistics", "0.5"]


@pytest.fixture(scope="module")
def fixed(folders, tmp_path_factory):
    """A run whose statistics are fixed for the last four of eight steps, and these statistics before each step."""
    out, seen = tmp_path_factory.mktemp("fixed"), []
    step = train.Trainer.train_step

    def watched(self, *batch):
        seen.append({name: value.clone() for name, value in self.model.named_buffers() if "running" in name})
        step(self, *batch)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(train.Trainer, "train_step", watched)
        assert train.main([*folders, *FIXED, "--out", str(out)]) == 0
    return out, seen


def test_fixed_statistics_stay(fixed):
    out, seen = fixed
    changed = [any(not torch.equal(a[name], b[name]) for name in a) for a, b in zip(seen, seen[1:])]
    assert changed == [True] * 4 + [False] * 3      # the fourth change is to the exact statistics
    final = torch.load(out / "best.pth", weights_only=True)
    assert all(torch.equal(final[name], value) for name, value in seen[-1].items())


@pytest.mark.parametrize("stopped", [3, 4, 5, 6])
def test_fixed_statistics_survive_a_stop(folders, tmp_path, monkeypatch, fixed, stopped):
    """Before, at and after the step at which they are fixed."""
    with monkeypatch.context() as patch:
        interrupt_at(stopped, patch)
        assert train.main([*folders, *FIXED, "--out", str(tmp_path)]) == 130
    assert train.main(["--resume", "--out", str(tmp_path)]) == 0
    assert same_weights(fixed[0], tmp_path)


@pytest.mark.parametrize("part, call, step", [("statistics", 5, 4), ("validation", 42, 6)], ids=str)
def test_a_signal_ends_statistics_and_validation_at_once(tmp_path, monkeypatch, capsys, part, call, step):
    """The whole run is the same after --resume. Statistics: those to fix at step 4."""
    write_roadscene(tmp_path / "set")
    run = ["--data", str(tmp_path / "set"), *TINY, "--steps", "6", "--val-every", "1"]
    run += ["--fixed-statistics", "0.34"] if step == 4 else []
    assert train.main([*run, "--out", str(tmp_path / "whole")]) == 0
    place, name = {"statistics": (trainer.ExactStatistics, "add"), "validation": (trainer, "evaluate")}[part]
    done, calls = getattr(place, name), []

    def interrupted(*inputs, **options):
        calls.append(1)
        if len(calls) == call:
            signal.raise_signal(signal.SIGTERM)
        return done(*inputs, **options)
    with monkeypatch.context() as patch:
        patch.setattr(place, name, interrupted)
        assert train.main([*run, "--out", str(tmp_path / "cut")]) == 128 + signal.SIGTERM
    assert len(calls) == call
    assert torch.load(tmp_path / "cut" / "last.pth", weights_only=True)["step"] == step
    assert f"stopped at step {step}; resume with" in capsys.readouterr().out
    assert train.main(["--resume", "--out", str(tmp_path / "cut")]) == 0
    assert "finished" not in capsys.readouterr().out
    assert same_weights(tmp_path / "whole", tmp_path / "cut")
    best = [torch.load(tmp_path / run / "best.pth", weights_only=True) for run in ("whole", "cut")]
    assert all(torch.equal(best[0][name], best[1][name]) for name in best[0])


def test_a_run_from_given_weights_keeps_their_fixed_statistics(folders, tmp_path, fixed, monkeypatch):
    """With --fixed-statistics 1. Also if it is stopped before its first step, or after it."""
    first = torch.load(fixed[0] / "last.pth", weights_only=True)["model"]
    run = [*folders, *TINY, "--steps", "4", "--fixed-statistics", "1", "--init", str(fixed[0] / "last.pth")]
    for name, stop in (("whole", 0), ("cut", 1)):
        with monkeypatch.context() as patch:
            interrupt_at(stop, patch)
            assert train.main([*run, "--out", str(tmp_path / name)]) == (130 if stop else 0)
    assert train.main(["--resume", "--out", str(tmp_path / "cut")]) == 0
    assert same_weights(tmp_path / "whole", tmp_path / "cut")
    last = torch.load(tmp_path / "whole" / "last.pth", weights_only=True)["model"]
    statistics = [name for name in first if "running" in name]
    assert statistics and all(torch.equal(first[name], last[name]) for name in statistics)
    assert not torch.equal(first["head.last.weight"], last["head.last.weight"])


def test_a_small_share_fixes_the_statistics_for_the_last_step(folders, tmp_path):
    assert train.main([*folders, *TINY, "--steps", "4", "--fixed-statistics", "0.1", "--out", str(tmp_path)]) == 0
    args = train.parse([*folders, *TINY, "--steps", "4", "--fixed-statistics", "0.1"])
    assert train.Trainer(args, []).fixed_from == 3


def test_the_recipe_of_a_run_from_given_weights_says_that_it_drops_them(folders, tmp_path, fixed, capsys):
    init = ["--init", str(fixed[0] / "last.pth")]
    assert train.main([*folders, *TINY, "--steps", "1", *init, "--out", str(tmp_path / "a")]) == 0
    again = ["--recipe", str(tmp_path / "a" / "best.json"), *folders]
    capsys.readouterr()
    assert train.main([*again, *init, "--out", str(tmp_path / "b")]) == 0
    assert "random weights" not in capsys.readouterr().err
    assert train.main([*again, "--out", str(tmp_path / "c")]) == 0
    assert f"is of a run with --init {init[1]}; this run starts from random weights" in capsys.readouterr().err


def test_a_run_by_time_that_ends_in_a_validation_takes_no_further_step(tmp_path, monkeypatch):
    write_roadscene(tmp_path / "set")
    evaluate, now = trainer.evaluate, [0.0]
    monkeypatch.setattr(trainer.time, "monotonic", lambda: now[0])

    def slow(*images, **options):
        now[0] += 10
        return evaluate(*images, **options)
    monkeypatch.setattr(trainer, "evaluate", slow)
    run = ["--data", str(tmp_path / "set"), *TINY, "--max-minutes", "2", "--val-every", "1"]
    assert train.main([*run, "--out", str(tmp_path / "out")]) == 0
    assert [row["step"] for row in rows(tmp_path / "out")] == ["3"]     # 40 pairs take 400 seconds


def test_a_signal_at_the_very_end_is_no_failure(folders, tmp_path, monkeypatch):
    save = train.Trainer.save

    def interrupted(self, *how):
        save(self, *how)
        if self.complete:
            signal.raise_signal(signal.SIGTERM)
    monkeypatch.setattr(train.Trainer, "save", interrupted)
    assert train.main([*folders, *TINY, "--steps", "3", "--out", str(tmp_path)]) == 0


def test_a_teacher_whose_file_has_moved_is_known_by_its_content(folders, tmp_path, fixed, capsys):
    for name in ("best.pth", "best.json"):
        shutil.copy(fixed[0] / name, tmp_path / name)
    run = [*folders, *TINY, "--steps", "4", "--teacher", str(tmp_path / "best.pth"), "--out", str(tmp_path / "run")]
    with pytest.MonkeyPatch.context() as patch:
        interrupt_at(2, patch)
        assert train.main(run) == 130
    for name in ("best.pth", "best.json"):
        (tmp_path / name).rename(tmp_path / name.replace("best", "moved"))
    assert train.main(["--resume", "--out", str(tmp_path / "run"), "--teacher", str(tmp_path / "moved.pth")]) == 0


def test_the_loaders_ignore_the_first_sigterm_which_can_go_to_all_processes():
    with handlers(SIGINT=signal.SIG_DFL, SIGTERM=signal.SIG_DFL):
        trainer.leave_signals_to_the_parent(0)
        signal.raise_signal(signal.SIGINT)
        signal.raise_signal(signal.SIGTERM)
        assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL


def test_a_student_learns_the_picture_of_its_teacher(folders, tmp_path, capsys):
    """A kill in the middle changes nothing; the teacher is neither trained nor stored."""
    torch.manual_seed(1)
    network = RPFNet(channels=4, stages=2)
    (tmp_path / "teacher.json").write_text(json.dumps({"config": network.config}))
    torch.save(network.state_dict(), tmp_path / "teacher.pth")
    run = [*folders, *TINY, "--crops", "40", "--steps", "40", "--lr", "1e-2", "--teacher", str(tmp_path / "teacher.pth")]
    assert train.main([*run, "--out", str(tmp_path / "whole")]) == 0
    table = rows(tmp_path / "whole")
    assert float(table[-1]["L_1"]) < float(table[0]["L_1"]) / 2 and "L_c" not in table[0]
    with pytest.MonkeyPatch.context() as patch:
        interrupt_at(7, patch)
        assert train.main([*run, "--out", str(tmp_path / "parts")]) == 130
    assert train.main(["--resume", "--out", str(tmp_path / "parts")]) == 0
    assert same_weights(tmp_path / "whole", tmp_path / "parts")
    stored = torch.load(tmp_path / "whole" / "last.pth", weights_only=True)
    assert stored["model"].keys() == network.state_dict().keys()
    about = json.loads((tmp_path / "parts" / "best.json").read_text())
    assert about["teacher"] == about["resumed"][0]["teacher"] == records.hashed_name(tmp_path / "teacher.pth")
    torch.save(RPFNet(channels=4, stages=2).state_dict(), tmp_path / "teacher.pth")
    assert train.main(["--resume", "--out", str(tmp_path / "parts")]) == 1
    assert f"its teacher was {about['teacher']}" in capsys.readouterr().err


def test_a_diverged_run_ends_with_an_error(folders, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(train, "CHECK_EVERY", 1)
    assert train.main([*folders, *TINY, "--steps", "9", "--lr", "1e30", "--clip", "0", "--out", str(tmp_path)]) == 1
    assert "not finite" in capsys.readouterr().err


ABLATIONS = [["--lambda-2", "0"], ["--no-negatives"], ["--contrast-domain", "spatial"], ["--weight", "none"],
             ["--no-saliency"], ["--global-branch", "transformer"], ["--no-cpm"], ["--no-prior"], ["--stages", "1"],
             ["--sharing", "none"]]


@pytest.mark.parametrize("option", ABLATIONS, ids=" ".join)
def test_ablations_train_resume_and_load(folders, tmp_path, monkeypatch, option):
    with monkeypatch.context() as patch:
        interrupt_at(1, patch)
        assert train.main([*folders, *TINY, *option, "--steps", "2", "--out", str(tmp_path)]) == 130
    assert train.main(["--resume", "--out", str(tmp_path)]) == 0
    (row,) = rows(tmp_path)
    assert ("L_s" in row) == (option != ["--lambda-2", "0"])
    assert ("L_reg" in row) == (option not in (["--no-saliency"], ["--no-prior"]))
    assert ("D_neg" in row) == (option not in (["--no-negatives"], ["--weight", "none"]))
    model = RPFNet.from_pretrained(tmp_path / "best.pth")
    assert model.config["stages"] == (1 if option[0] == "--stages" else 2)
    assert (model.stem_r is None) == (option == ["--no-prior"])
    assert (model.stages[0].cpm is None) == (option in (["--no-prior"], ["--no-cpm"]))
    assert model(torch.rand(1, 1, 20, 24), torch.rand(1, 1, 20, 24)).isfinite().all()


def test_max_minutes_ends_the_run_with_its_schedule_done(folders, tmp_path, monkeypatch):
    """By a clock that advances one second at each look."""
    ticks = iter(range(10**6))
    monkeypatch.setattr(trainer, "time", SimpleNamespace(monotonic=lambda: float(next(ticks))))
    assert train.main([*folders, *TINY, "--max-minutes", "1", "--out", str(tmp_path)]) == 0
    last = rows(tmp_path)[-1]
    assert 60 <= float(last["seconds"]) < 80 and int(last["step"]) < 100
    assert float(last["lr"]) == pytest.approx(1e-3 / 16)


def test_training_on_real_pairs_lowers_the_loss_and_validates(data_root, tmp_path, monkeypatch):
    """On a few of each split, because metrics of whole pairs take a while."""
    monkeypatch.setattr(train, "named_pairs", lambda *which: named_pairs(*which)[:20 if which[2] == "train" else 2])
    recipe = ["--data", str(data_root / "RoadScene"), "--channels", "8", "--crop", "64", "--batch", "4",
              "--crops", "40", "--epochs", "3", "--val-every", "3", "--lr", "1e-2", "--out", str(tmp_path)]
    assert train.main(recipe) == 0
    first, *_, last = ({name: float(row[name]) for name in ("L_total", "L_c", "L_s")} for row in rows(tmp_path))
    assert all(last[name] < first[name] for name in first)
    about = json.loads((tmp_path / "best.json").read_text())
    scores = about["validation"]
    assert scores["val_loss"] > 0 and 3 < scores["EN"] < 8 and 0 < scores["CC"] < 1
    assert about["recipe"]["dataset"] == "roadscene" and about["recipe"]["ir"] is None


def test_a_log_that_cannot_be_written_does_not_end_the_run(folders, tmp_path, monkeypatch, capsys):
    fail_to_write(monkeypatch, ["log.csv"], OSError(13, "Permission denied"))
    assert train.main([*folders, *TINY, "--steps", "6", "--out", str(tmp_path)]) == 0
    assert "log.csv not written (Permission denied)" in capsys.readouterr().err
    assert torch.load(tmp_path / "last.pth", weights_only=True)["step"] == 6


def test_a_run_that_ended_before_its_last_row_writes_it_when_resumed(folders, tmp_path, monkeypatch):
    """A kill during the last validation leaves all steps done, and neither their row nor best.pth."""
    monkeypatch.setattr(train.Trainer, "end_epoch", lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        train.main([*folders, *TINY, "--steps", "3", "--out", str(tmp_path)])
    monkeypatch.undo()
    assert not (tmp_path / "best.pth").exists()
    assert train.main(["--resume", "--out", str(tmp_path)]) == 0
    (row,) = rows(tmp_path)
    assert (tmp_path / "best.pth").exists() and float(row["lr"]) == 1e-3 / 8     # that of the last step


def test_init_starts_from_given_weights(folders, tmp_path):
    first = [*folders, *TINY, "--steps", "3"]
    assert train.main([*first, "--out", str(tmp_path / "a")]) == 0
    # With a learning rate of nearly nothing the weights stay those that were given. best.pth has no decoder.
    for name in ("best.pth", "last.pth"):
        out = tmp_path / name.replace(".pth", "")
        start = tmp_path / "a" / name
        assert train.main([*first, "--init", str(start), "--lr", "1e-12", "--seed", "5", "--out", str(out)]) == 0
        given, kept = (dict(RPFNet.from_pretrained(p).named_parameters()) for p in (start, out / "best.pth"))
        torch.testing.assert_close(kept, given, atol=1e-9, rtol=0)      # without statistics: they are of other crops
        decoders = [torch.load(run / "last.pth", weights_only=True)["decoder"] for run in (tmp_path / "a", out)]
        equal = [torch.allclose(value, decoders[1][key], atol=1e-9, rtol=0) for key, value in decoders[0].items()
                 if value.ndim == 4]
        assert len(equal) > 1 and all(equal) == any(equal) == (name == "last.pth")


@pytest.mark.parametrize("option", [["--stages", "3"], ["--channels", "8"], ["--no-cpm"]])
def test_init_refuses_the_weights_of_another_network(folders, tmp_path, capsys, option):
    first = [*folders, *TINY, "--steps", "1"]
    assert train.main([*first, "--out", str(tmp_path / "a")]) == 0
    assert train.main([*first, *option, "--init", str(tmp_path / "a" / "best.pth"), "--out", str(tmp_path / "b")]) == 1
    given = {"--stages": "stages 2", "--channels": "channels 4", "--no-cpm": "cpm True"}[option[0]]
    assert f"its network has {given}" in capsys.readouterr().err


@pytest.mark.parametrize("option", [["--amp"], ["--clip", "0.01"], ["--lr", "1e-2"], ["--lambda-2", "1"],
                                    ["--lambda-3", "5"], ["--flips"], ["--no-fixed-crops"], ["--schedule", "cosine"],
                                    ["--saliency-form", "l2"], ["--saliency-form", "mean"], ["--dim", "1"]])
def test_options_change_the_weights(folders, tmp_path, plain, option):
    # clip: Adam forgets a constant factor, so what shows is that it differs from step to step.
    assert train.main([*folders, *TINY, "--steps", "4", *option, "--out", str(tmp_path)]) == 0
    assert not same_weights(plain, tmp_path)


@pytest.mark.parametrize("device", ["meta", "mps", "nonsense"])
def test_an_unknown_device_is_refused_before_any_data_is_read(folders, tmp_path, capsys, device):
    assert train.main([*folders, *TINY, "--device", device, "--out", str(tmp_path / "out")]) == 1
    assert f"device {device}" in capsys.readouterr().err and not (tmp_path / "out").exists()


@pytest.mark.gpu
@pytest.mark.parametrize("options", [[], ["--amp", "--recipe", "contrast"]], ids=str)
def test_training_on_a_gpu_resumes_and_its_weights_load(folders, tmp_path, monkeypatch, options):
    out = ["--device", "cuda", "--out", str(tmp_path)]
    with monkeypatch.context() as patch:
        interrupt_at(4, patch)
        assert train.main([*options, *folders, *TINY, "--steps", "6", *out]) == 130
    assert train.main(["--resume", *out]) == 0
    assert [row["step"] for row in rows(tmp_path)] == ["3", "6"]
    assert RPFNet.from_pretrained(tmp_path / "best.pth", "cuda").config["channels"] == 4


def test_the_loss_is_of_the_sources_and_of_m_prime_of_the_last_iteration(tmp_path):
    run, seen = train.Trainer(train.parse([*TINY, "--out", str(tmp_path)])), []
    ir, vis = random_pair(2, 16, 16)
    with torch.no_grad():
        fused, features = copy.deepcopy(run.model)(ir, vis, return_features=True)
        expected = fused, copy.deepcopy(run.decoder)(features[-1].residual), ir, vis
    run.loss.register_forward_pre_hook(lambda _, inputs: seen.extend(inputs))
    run.train_step(ir, vis)
    for got, image in zip(seen, expected, strict=True):
        torch.testing.assert_close(got, image)


def test_crops_have_the_options_of_the_run(folders, tmp_path, monkeypatch):
    seen = []
    monkeypatch.setattr(train, "CropDataset", lambda *given: seen.append(CropDataset(*given)) or seen[-1])
    assert train.main([*folders, *TINY, "--flips", "--dim", "0.25", "--lamps", "0.5", "--seed", "3", "--steps", "1",
                       "--out", str(tmp_path)]) == 0
    (crops,) = seen
    assert (crops.size, crops.seed, crops.flips, crops.dim, crops.lamps) == (16, 3, True, 0.25, 0.5)


def test_both_optimisers_follow_the_schedule(folders, tmp_path):
    assert train.main([*folders, *TINY, "--steps", "5", "--out", str(tmp_path)]) == 0
    state = torch.load(tmp_path / "last.pth", weights_only=True)
    assert [optimiser["param_groups"][0]["lr"] for optimiser in state["optimisers"]] == [1e-3 / 16] * 2


def test_the_gradients_of_both_networks_are_clipped(folders, tmp_path, monkeypatch):
    clipped = []
    monkeypatch.setattr(torch.nn.utils, "clip_grad_norm_", lambda parameters, norm: clipped.append((len([*parameters]), norm)))
    assert train.main([*folders, *TINY, "--clip", "2", "--steps", "1", "--out", str(tmp_path)]) == 0
    assert clipped == [(len([*net.parameters()]), 2) for net in (RPFNet(channels=4, stages=2), AuxiliaryDecoder(4))]


def test_the_log_has_means_over_crops_also_with_a_short_last_batch(folders, tmp_path, monkeypatch):
    totals, forward = [], FusionLoss.forward

    def watched(self, fused, *images):
        result = forward(self, fused, *images)
        totals.append(result[0].item() * len(fused))
        return result
    monkeypatch.setattr(FusionLoss, "forward", watched)
    assert train.main([*folders, *TINY, "--crops", "3", "--steps", "3", "--out", str(tmp_path)]) == 0
    # Batches of 2 and 1 crops, and an epoch that the end of the run cuts after its first 2.
    assert [float(row["L_total"]) for row in rows(tmp_path)] == pytest.approx([sum(totals[:2]) / 3, totals[2] / 2])


@pytest.fixture
def validated(folders, monkeypatch):
    """Validation on the training pairs; without metrics."""
    pairs = PairDataset(match_pairs(folders[1], folders[3]))
    monkeypatch.setattr("recipe.has_validation", lambda args: True)
    monkeypatch.setattr(train, "load_data", lambda args: (pairs, pairs))
    monkeypatch.setattr(trainer, "evaluate", lambda *_, **__: dict.fromkeys(trainer.VALIDATION_METRICS, 0.0))
    return pairs


def cut(folders, out, monkeypatch, *more):
    with monkeypatch.context() as patch:
        interrupt_at(4, patch)
        assert train.main([*folders, *TINY, "--steps", "6", "--val-every", "1", *more, "--out", str(out)]) == 130
    return torch.load(out / "last.pth", weights_only=True)


def test_a_resumed_run_keeps_its_time_and_its_best(folders, tmp_path, monkeypatch, validated):
    state = cut(folders, tmp_path, monkeypatch)
    before = (tmp_path / "best.pth").read_bytes()
    torch.save(state | {"seconds": 5000.0, "best": 0.0}, tmp_path / "last.pth")     # no loss is below 0
    assert train.main(["--resume", "--out", str(tmp_path)]) == 0
    assert 5000 <= float(rows(tmp_path)[-1]["seconds"]) < 5100      # rounded to 0.1 s, which a fast machine does not need
    assert (tmp_path / "best.pth").read_bytes() == before


def test_weights_that_were_never_written_are_not_the_best(folders, tmp_path, monkeypatch, validated):
    with monkeypatch.context() as patch:
        fail_to_write(patch, ["best.pth"], OSError(28, "No space left on device"))
        assert train.main([*folders, *TINY, "--steps", "6", "--val-every", "1", "--out", str(tmp_path)]) == 1
    assert train.main(["--resume", "--out", str(tmp_path)]) == 0 and (tmp_path / "best.pth").exists()


def test_validation_is_the_loss_in_eval_mode(validated):
    torch.manual_seed(0)
    model, loss = RPFNet(channels=4, stages=1), FusionLoss.paper()
    with trainer.Stop() as stop:
        got = trainer.validate(model.train(), loss, validated, torch.device("cpu"), stop)
    inputs = [[torch.from_numpy(x[None]) / 255 for x in pair] for pair in validated.items]
    with torch.no_grad():
        expected = [loss.fusion(model.eval()(*pair), *pair)[0].item() for pair in inputs]
    assert got["val_loss"] == pytest.approx(np.mean(expected)) and np.std(expected) > 1e-3


def test_validation_every_second_epoch_and_at_the_end(folders, tmp_path, validated):
    assert train.main([*folders, *TINY, "--steps", "9", "--val-every", "2", "--out", str(tmp_path)]) == 0
    assert [bool(row["val_loss"]) for row in rows(tmp_path)] == [False, True, True]


def test_each_validation_is_of_the_statistics_that_best_pth_holds(folders, tmp_path, monkeypatch, validated):
    """Also before the end of the run: the losses rise, so the first epoch is the best."""
    seen = []

    def validate(model, *_):
        seen.append({name: value.clone() for name, value in model.state_dict().items() if "running" in name})
        return {"val_loss": float(len(seen))} | dict.fromkeys(trainer.VALIDATION_METRICS, 0.0)
    monkeypatch.setattr(trainer, "validate", validate)
    exact, calls = train.Trainer.exact_statistics, []
    monkeypatch.setattr(train.Trainer, "exact_statistics", lambda self, *rest: calls.append(len(seen)) or exact(self, *rest))
    assert train.main([*folders, *TINY, "--steps", "6", "--val-every", "1", "--out", str(tmp_path)]) == 0
    assert calls == [0, 1]      # before each validation
    best = torch.load(tmp_path / "best.pth", weights_only=True)
    assert seen[0] and all(torch.equal(best[name], value) for name, value in seen[0].items())


def test_a_validation_loss_that_is_no_number_ends_the_run(folders, tmp_path, monkeypatch, capsys, validated):
    """Otherwise no epoch would be better than another, and the run would end well without best.pth."""
    monkeypatch.setattr(trainer, "validate", lambda *_: dict.fromkeys(("val_loss", *trainer.VALIDATION_METRICS), math.nan))
    assert train.main([*folders, *TINY, "--steps", "3", "--val-every", "1", "--out", str(tmp_path)]) == 1
    line, = said(capsys)
    assert "step 3: the validation loss is not a number; lower --lr" in line


def test_val_every_0_loads_no_validation_pairs(tmp_path):
    write_roadscene(tmp_path)
    options = ["--data", str(tmp_path), *TINY, "--out", str(tmp_path / "out"), "--val-every"]
    assert [train.load_data(train.parse([*options, every]))[1] is None for every in ("0", "1")] == [True, False]


def test_the_cosine_schedule():
    rates = [trainer.learning_rate(2.0, "cosine", progress) for progress in (0, 0.25, 0.5, 1, 1.2)]
    assert rates == pytest.approx([2, 1 + 0.5**0.5, 1, 0, 0])


def test_validation_scores_the_fused_images(folders, monkeypatch):
    pairs, model, seen = PairDataset(match_pairs(folders[1], folders[3])), RPFNet(channels=4, stages=1), []
    monkeypatch.setattr(trainer, "evaluate", lambda *images, names: seen.append(images) or dict.fromkeys(names, 1.0))
    with trainer.Stop() as stop:
        trainer.validate(model, FusionLoss.paper(), pairs, torch.device("cpu"), stop)
    for (fused, *sources), pair in zip(seen, pairs.items, strict=True):
        assert all(np.array_equal(image, source[0]) for image, source in zip(sources, pair))
        assert np.abs(fused.astype(int) - model.fuse(*sources)).max() <= 1
