"""Training: the schedule, the log, and runs that are killed, interrupted and resumed."""
import csv
import json
import signal
import subprocess
import sys
import time
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch

import train
from net import RPFNet

ROOT = Path(train.__file__).parent
TINY = ["--crop", "16", "--crops", "6", "--batch", "2", "--channels", "4", "--stages", "2"]


@pytest.fixture
def folders(tmp_path):
    """Two folders of small pairs, as train.py's --ir and --vis take them."""
    rng = np.random.default_rng(0)
    for side in ("ir", "vis"):
        (tmp_path / side).mkdir()
        for n in range(3):
            smooth = cv2.GaussianBlur(rng.integers(0, 256, (24, 30), np.uint8), (0, 0), 1.5)
            cv2.imwrite(str(tmp_path / side / f"{n}.png"), cv2.normalize(smooth, None, 0, 255, cv2.NORM_MINMAX))
    return ["--ir", str(tmp_path / "ir"), "--vis", str(tmp_path / "vis")]


@pytest.fixture(autouse=True)
def keep_signal_handlers():
    handlers = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    yield
    for number, handler in handlers.items():
        signal.signal(number, handler)


def tensors(state):
    """All numbers of a checkpoint that training computes, by a flat name."""
    out = {}

    def walk(prefix, value):
        if isinstance(value, dict):
            for key, item in value.items():
                walk(f"{prefix}/{key}", item)
        elif isinstance(value, (list, tuple)):
            for key, item in enumerate(value):
                walk(f"{prefix}/{key}", item)
        elif isinstance(value, torch.Tensor):
            out[prefix] = value
    walk("", {key: state[key] for key in ("model", "decoder", "optimisers")})
    return out


def same_weights(first, second):
    first, second = (tensors(torch.load(p / "last.pth", weights_only=True)) for p in (first, second))
    assert first.keys() == second.keys() and len(first) > 50
    return all(torch.equal(first[key], second[key]) for key in first)


def command(*options):
    return [sys.executable, str(ROOT / "train.py"), *map(str, options)]


def test_step_schedule_halves_at_each_fifth():
    rates = [train.learning_rate(1e-3, "step", p) for p in (0, 0.199, 0.2, 0.5, 0.99, 1.2)]
    assert rates == [1e-3, 1e-3, 5e-4, 2.5e-4, 6.25e-5, 6.25e-5]
    assert train.learning_rate(1e-3, "cosine", 0.5) == pytest.approx(5e-4)


def test_same_seed_same_weights_and_another_seed_others(folders, tmp_path):
    for name, seed in (("a", 1), ("b", 1), ("c", 2)):
        assert train.main([*folders, *TINY, "--steps", "4", "--seed", str(seed), "--out", str(tmp_path / name)]) == 0
    assert same_weights(tmp_path / "a", tmp_path / "b")
    assert not same_weights(tmp_path / "a", tmp_path / "c")


@pytest.mark.parametrize("options", [["--amp"], ["--norm", "batch", "--channels-last"]])
def test_a_run_cut_in_mid_epoch_and_resumed_is_the_whole_run_bit_for_bit(folders, tmp_path, options, monkeypatch):
    recipe = [*folders, *TINY, *options, "--steps", "8"]
    assert train.main([*recipe, "--out", str(tmp_path / "whole")]) == 0
    step = train.Trainer.train_step

    def interrupted(self, *batch):
        step(self, *batch)
        if self.step == 4:
            signal.raise_signal(signal.SIGINT)

    monkeypatch.setattr(train.Trainer, "train_step", interrupted)
    assert train.main([*recipe, "--out", str(tmp_path / "cut")]) == 130
    assert torch.load(tmp_path / "cut" / "last.pth", weights_only=True)["step"] == 4
    monkeypatch.undo()
    assert train.main(["--resume", "--out", str(tmp_path / "cut")]) == 0
    assert same_weights(tmp_path / "whole", tmp_path / "cut")
    logs = [[{k: v for k, v in row.items() if k != "seconds"} for row in csv.DictReader((tmp_path / run / "log.csv").open())]
            for run in ("whole", "cut")]
    assert logs[0] == logs[1] and [row["step"] for row in logs[0]] == ["3", "6", "8"]


def test_a_killed_process_resumes_from_its_last_checkpoint(folders, tmp_path):
    """SIGKILL leaves no time to save: what counts is the checkpoint of the last whole epoch."""
    recipe = [*folders, *TINY, "--steps", "60"]
    process = subprocess.Popen(command(*recipe, "--out", tmp_path / "killed"), stderr=subprocess.DEVNULL)
    log = tmp_path / "killed" / "log.csv"
    deadline = time.monotonic() + 60
    while not (log.exists() and log.read_text().count("\n") > 4):
        assert process.poll() is None and time.monotonic() < deadline, "training did not reach its fourth epoch"
        time.sleep(0.05)
    process.kill()
    process.wait()
    step = torch.load(tmp_path / "killed" / "last.pth", weights_only=True)["step"]
    assert 9 <= step < 60
    assert train.main(["--resume", "--out", str(tmp_path / "killed")]) == 0
    assert train.main([*recipe, "--out", str(tmp_path / "whole")]) == 0
    assert same_weights(tmp_path / "whole", tmp_path / "killed")


def test_resume_refuses_another_recipe(folders, tmp_path, capsys):
    run = ["--out", str(tmp_path / "run")]
    assert train.main([*folders, *TINY, "--steps", "2", *run]) == 0
    assert train.main(["--resume", "--batch", "3", *run]) == 1
    assert "batch 2 -> 3" in capsys.readouterr().err
    assert train.main(["--resume", "--out", str(tmp_path / "absent")]) == 1
    assert "nothing to resume" in capsys.readouterr().err


def test_best_weights_load_and_carry_their_recipe(folders, tmp_path):
    assert train.main([*folders, *TINY, "--steps", "3", "--out", str(tmp_path)]) == 0
    model = RPFNet.from_pretrained(tmp_path / "best.pth")
    about = json.loads((tmp_path / "best.json").read_text())
    assert about["steps"] == 3 and about["recipe"]["seed"] == 0 and about["config"] == model.config
    last = RPFNet.from_pretrained(tmp_path / "last.pth")
    assert all(torch.equal(v, last.state_dict()[k]) for k, v in model.state_dict().items())


def test_missing_data_gives_one_line_with_the_command(tmp_path, capsys):
    assert train.main(["--data", str(tmp_path), "--out", str(tmp_path)]) == 1
    error = capsys.readouterr().err.strip()
    assert "git clone https://github.com/hanna-xu/RoadScene" in error and "\n" not in error


def test_a_full_disk_loses_nothing(folders, tmp_path, monkeypatch, capsys):
    """The older checkpoint stays whole; in mid-run training goes on, at the end the exit code says so."""
    run = [*folders, *TINY, "--steps", "9", "--out", str(tmp_path)]
    written = Path.write_bytes

    def full(self, data):
        if self.name == "last.pth.part" and (tmp_path / "last.pth").exists():
            raise OSError(28, "No space left on device")
        return written(self, data)

    monkeypatch.setattr(Path, "write_bytes", full)
    assert train.main(run) == 1
    assert "No space left" in capsys.readouterr().err
    assert torch.load(tmp_path / "last.pth", weights_only=True)["step"] == 3
    assert len(list(csv.DictReader((tmp_path / "log.csv").open()))) == 3
    monkeypatch.undo()
    assert train.main(["--resume", "--out", str(tmp_path)]) == 0


def test_a_saturated_decoder_ends_training_with_the_remedy(folders, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(train, "CHECK_EVERY", 1)
    forward = train.AuxiliaryDecoder.forward
    monkeypatch.setattr(train.AuxiliaryDecoder, "forward", lambda self, x: forward(self, x) * 1e-6 + 0.99)
    assert train.main([*folders, *TINY, "--steps", "3", "--out", str(tmp_path)]) == 1
    assert "saturated" in capsys.readouterr().err


def test_a_diverged_run_ends_with_an_error(folders, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(train, "CHECK_EVERY", 1)
    assert train.main([*folders, *TINY, "--steps", "9", "--lr", "1e30", "--clip", "0", "--out", str(tmp_path)]) == 1
    assert "not finite" in capsys.readouterr().err


@pytest.mark.parametrize("options", [["--lambda-2", "0"], ["--no-saliency"], ["--no-contrast"],
                                     ["--contrast-domain", "spatial"], ["--weight", "none"]])
def test_ablations_train(folders, tmp_path, options):
    assert train.main([*folders, *TINY, *options, "--steps", "2", "--out", str(tmp_path)]) == 0
    (row,) = csv.DictReader((tmp_path / "log.csv").open())
    assert ("L_s" in row) == (options != ["--lambda-2", "0"])
    assert ("L_reg" in row) == (options != ["--no-saliency"])


def test_max_minutes_ends_the_run_with_its_schedule_done(folders, tmp_path):
    assert train.main([*folders, *TINY, "--max-minutes", "0.02", "--out", str(tmp_path)]) == 0
    rows = list(csv.DictReader((tmp_path / "log.csv").open()))
    assert 1.2 <= float(rows[-1]["seconds"]) < 20 and float(rows[-1]["lr"]) < 1e-3


def test_training_on_real_pairs_lowers_the_loss_and_validates(data_root, tmp_path):
    recipe = ["--data", str(data_root / "RoadScene"), "--channels", "8", "--crop", "64", "--batch", "4", "--crops", "80",
              "--epochs", "3", "--val-every", "3", "--lr", "1e-2", "--out", str(tmp_path)]
    assert train.main(recipe) == 0
    rows = list(csv.DictReader((tmp_path / "log.csv").open()))
    assert float(rows[-1]["L_total"]) < 0.9 * float(rows[0]["L_total"])
    about = json.loads((tmp_path / "best.json").read_text())["validation"]
    assert about["val_loss"] > 0 and 4 < about["EN"] < 8 and 0.4 < about["CC"] < 1
