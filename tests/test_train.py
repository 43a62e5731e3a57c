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
    # In processes of their own as well: what earlier tests set here (threads) decides the order of float32 sums.
    for options in (["--resume", "--out", tmp_path / "killed"], [*recipe, "--out", tmp_path / "whole"]):
        subprocess.run(command(*options), stderr=subprocess.DEVNULL, check=True)
    assert same_weights(tmp_path / "whole", tmp_path / "killed")


def test_resume_refuses_another_recipe(folders, tmp_path, capsys):
    run = ["--out", str(tmp_path / "run")]
    assert train.main([*folders, *TINY, "--steps", "2", *run]) == 0
    assert train.main(["--resume", "--batch", "3", *run]) == 1
    assert "batch 2 -> 3" in capsys.readouterr().err
    assert train.main(["--resume", "--out", str(tmp_path / "absent")]) == 1
    assert "nothing to resume" in capsys.readouterr().err
    path = tmp_path / "run" / "last.pth"
    torch.save(torch.load(path, weights_only=True) | {"version": train.VERSION - 1}, path)
    assert train.main(["--resume", *run]) == 1
    assert "another version of train.py" in capsys.readouterr().err


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
    assert not list(tmp_path.glob("*.part"))
    monkeypatch.undo()
    assert train.main(["--resume", "--out", str(tmp_path)]) == 0


def test_a_decoder_that_saturates_in_mid_epoch_ends_training_with_the_remedy(folders, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(train, "CHECK_EVERY", 1)
    forward, calls = train.AuxiliaryDecoder.forward, []

    def saturating(self, x):
        calls.append(1)
        return forward(self, x) * (1e-6 if len(calls) > 12 else 1) + 0.01

    monkeypatch.setattr(train.AuxiliaryDecoder, "forward", saturating)
    assert train.main([*folders, *TINY, "--crops", "60", "--steps", "30", "--out", str(tmp_path)]) == 1
    assert "saturated" in capsys.readouterr().err and len(calls) == 13


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


@pytest.mark.parametrize("name", ["log.csv", "best.pth"])
def test_a_log_that_cannot_be_written_does_not_end_the_run(folders, tmp_path, monkeypatch, capsys, name):
    written = Path.write_bytes

    def locked(self, data):
        if self.name == name + ".part":
            raise OSError(13, "Permission denied")
        return written(self, data)

    monkeypatch.setattr(Path, "write_bytes", locked)
    assert train.main([*folders, *TINY, "--steps", "6", "--out", str(tmp_path)]) == 0
    assert name in capsys.readouterr().err
    assert torch.load(tmp_path / "last.pth", weights_only=True)["step"] == 6


def test_a_run_that_ended_before_its_last_row_writes_it_when_resumed(folders, tmp_path, monkeypatch):
    """A kill during the last validation leaves all steps done, and neither their row nor best.pth."""
    monkeypatch.setattr(train.Trainer, "end_epoch", lambda self, val: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        train.main([*folders, *TINY, "--steps", "3", "--out", str(tmp_path)])
    monkeypatch.undo()
    assert not (tmp_path / "best.pth").exists()
    assert train.main(["--resume", "--out", str(tmp_path)]) == 0
    assert (tmp_path / "best.pth").exists() and (tmp_path / "log.csv").read_text().count("\n") == 2


def test_a_new_run_does_not_destroy_an_old_one(folders, tmp_path, capsys):
    run = [*folders, *TINY, "--steps", "2", "--out", str(tmp_path)]
    assert train.main(run) == 0
    before = (tmp_path / "last.pth").read_bytes()
    assert train.main(run) == 1
    assert "--resume" in capsys.readouterr().err and (tmp_path / "last.pth").read_bytes() == before


def test_init_starts_from_given_weights(folders, tmp_path):
    first = [*folders, *TINY, "--steps", "3"]
    assert train.main([*first, "--out", str(tmp_path / "a")]) == 0
    # With a learning rate of nearly nothing the weights stay those that were given.
    for name in ("best.pth", "last.pth"):
        out = tmp_path / name.replace(".pth", "")
        assert train.main([*first, "--init", str(tmp_path / "a" / name), "--lr", "1e-12", "--seed", "5", "--out", str(out)]) == 0
        given, kept = (RPFNet.from_pretrained(p).state_dict() for p in (tmp_path / "a" / name, out / "best.pth"))
        for key in given:
            torch.testing.assert_close(kept[key], given[key], atol=1e-9, rtol=0)


@pytest.mark.parametrize("option", [["--stages", "3"], ["--channels", "8"], ["--norm", "batch"]])
def test_init_refuses_the_weights_of_another_network(folders, tmp_path, capsys, option):
    """With shared stages, weights of two iterations load into a network of three."""
    first = [*folders, *TINY, "--steps", "1"]
    assert train.main([*first, "--out", str(tmp_path / "a")]) == 0
    assert train.main([*first, *option, "--init", str(tmp_path / "a" / "best.pth"), "--out", str(tmp_path / "b")]) == 1
    given = {"--stages": "stages 2", "--channels": "channels 4", "--norm": "norm pooled"}[option[0]]
    assert f"its network has {given}" in capsys.readouterr().err


def test_options_reach_what_they_name():
    args = train.build_parser().parse_args(["--contrast-domain", "spatial", "--no-contrast", "--weight", "printed",
                                            "--ssim-window", "5", "--no-ssim-weighted", "--no-ssim-whole",
                                            "--lambda-1", "0.7", "--lambda-2", "3"])
    loss = train.build_loss(args)
    assert (loss.contrastive.domain, loss.contrastive.contrast, loss.contrastive.weight) == ("spatial", False, "printed")
    assert (loss.structure.weighted, loss.structure.whole) == (False, False)
    assert (loss.structure.window, loss.saliency.lambda_1, loss.lambda_2) == (5, 0.7, 3)


@pytest.mark.parametrize("option", [["--amp"], ["--clip", "0.01"], ["--lr", "1e-2"], ["--lambda-2", "1"]])
def test_options_change_the_weights(folders, tmp_path, option):
    # clip: Adam forgets a constant factor, so what shows is that it differs from step to step.
    assert train.main([*folders, *TINY, "--steps", "4", "--out", str(tmp_path / "plain")]) == 0
    assert train.main([*folders, *TINY, "--steps", "4", *option, "--out", str(tmp_path / "option")]) == 0
    assert not same_weights(tmp_path / "plain", tmp_path / "option")


@pytest.mark.parametrize("options, message", [
    (["--device", "nonsense"], "device nonsense"),
    (["--channels", "2"], "channels=2"),
    (["--init", "nowhere.pth"], "nowhere.pth"),
])
def test_wrong_options_are_explained_in_one_line(folders, tmp_path, capsys, options, message):
    assert train.main([*folders, "--crop", "16", *options, "--out", str(tmp_path)]) == 1
    lines = [line for line in capsys.readouterr().err.splitlines() if line.startswith("train.py: ")]
    assert len(lines) == 1 and message in lines[0]


@pytest.mark.parametrize("options", [["--epochs", "0"], ["--batch", "-1"], ["--ssim-window", "4"], ["--ir", "x"],
                                     ["--steps", "-1"], ["--val-every", "-1"], ["--dataset", "tno"]])
def test_impossible_options_are_refused_by_the_parser(options):
    with pytest.raises(SystemExit):
        train.main(options)


def test_resume_of_a_foreign_file_names_it(tmp_path, capsys):
    torch.save({"model": {}}, tmp_path / "last.pth")
    assert train.main(["--resume", "--out", str(tmp_path)]) == 1
    assert "last.pth: not a checkpoint of this train.py" in capsys.readouterr().err
