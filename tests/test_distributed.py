"""torchrun: two gloo processes share training and fusion, and resume each other's runs.

On CPUs each process normalises its own share of a batch, so two do not train as one does. What they should compute is
known: the mean over all crops of what each share gives. One process that passes the shares one after the other
(`in_shares`) is therefore the reference, and the two must agree with it to rounding.
"""
import csv
import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import cv2
import numpy as np
import pytest
import torch
from conftest import write_pairs

import test as fuse_command
import train
import trainer
from dataset import PairDataset, match_pairs
from layers import ExactStatistics
from net import RPFNet

ROOT = Path(train.__file__).parent
TORCHRUN = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2"]

# Batches of 5, 5 and 1 crops: 3 + 2 in two processes, and one crop for two of them.
RECIPE = ["--crop", "16", "--crops", "11", "--batch", "5", "--channels", "4", "--stages", "2", "--steps", "8"]

# What differs is the order in which float32 numbers are added up, 6e-8 a time: 1e-7 is seen in the log. Adam divides
# each gradient by its own size, so a weight whose gradient is nearly zero shows more of it: 1e-6 is seen, of steps
# that sum up to 3e-3.
LOG = {"rel": 1e-5}
# The metrics see 8-bit images, where 1e-7 can move a pixel by one level.
PIXELS = set(trainer.VALIDATION_METRICS)
WEIGHTS = {"rtol": 1e-4, "atol": 2e-5}

# What one process of the second torchrun does: a run of two that a signal to rank 1 cuts in mid-epoch, then the rest of
# a run of one, then test.py. One torchrun for the three, because its start takes longer than they do.
PROCESS = """
import json, os, signal, sys
from pathlib import Path
sys.path[:0] = [{root!r}, {tests!r}]
import test as fuse_command
import test_distributed as shared
import train

rank, base = os.environ["RANK"], Path({base!r})
shared.validate_too(setattr)
shared.stop_at(4, setattr, when=rank == "1")
codes = [train.main(shared.recipe(base, "cut by two"))]
shared.stop_at(0, setattr)
codes += [train.main(["--resume", "--out", str(base / "cut by one")]), fuse_command.main(shared.fusion(base, "by two"))]
(base / f"codes {{rank}}.json").write_text(json.dumps(codes))
sys.stdout.flush(), sys.stderr.flush()
train.distributed.barrier()
os._exit(0)     # three runs in one interpreter leave DDP objects whose end at exit may abort; the commands run one
"""


def recipe(base, out):
    return ["--ir", str(base / "ir"), "--vis", str(base / "vis"), *RECIPE, "--out", str(base / out)]


def fusion(base, out):
    return ["--ir", str(base / "ir"), "--vis", str(base / "more"), "--checkpoint", str(base / "whole" / "best.pth"),
            "--out", str(base / out)]


def validate_too(patch):
    """Own folders have no validation split: validate on the five training pairs, which two processes share 3 + 2."""
    def load(args):
        pairs = PairDataset(match_pairs(args.ir, args.vis))
        return pairs, pairs
    patch(train, "load_data", load)


def in_shares(patch):
    """Let one process compute what two do: each share of a batch by itself, with its own statistics."""
    forward = train.Trainer._forward

    def of_each_share(self, model, decoder, ir, vis_y):
        # The loss is a mean over images, so those of both shares may go into it together.
        places = torch.arange(len(ir))
        parts = [forward(self, model, decoder, ir[rank::2], vis_y[rank::2]) for rank in (0, 1) if len(ir) > rank]
        order = torch.cat([places[0::2], places[1::2]]).argsort()
        return [torch.cat(outputs)[order] for outputs in zip(*parts)]

    @torch.no_grad()
    def statistics_of_each_share(self, crops, stop):
        statistics = ExactStatistics(self.model, self.decoder)
        for numbers in self.batches(len(self.history)):
            for share in (numbers[0::2], numbers[1::2]):
                if share:
                    pairs = zip(*(crops[number] for number in share))
                    forward(self, self.model, self.decoder, *(torch.from_numpy(np.stack(x)) / 255 for x in pairs))
                    statistics.add(len(share))
        statistics.store()
    patch(train.Trainer, "_forward", of_each_share)
    patch(train.Trainer, "exact_statistics", statistics_of_each_share)


TRAIN_STEP = train.Trainer.train_step


def stop_at(number, patch, when=True):
    """Let this process see Ctrl-C in step `number`; 0: in none."""
    def step(self, *batch):
        TRAIN_STEP(self, *batch)
        if self.step == number and when:
            signal.raise_signal(signal.SIGINT)
    patch(train.Trainer, "train_step", step)


def torchrun(*command):
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    return subprocess.run([*TORCHRUN, *map(str, command)], capture_output=True, text=True, env=environment, timeout=240,
                          check=False)


def log(out):
    rows = csv.DictReader((out / "log.csv").open())
    return [{key: float(value) for key, value in row.items() if key != "seconds" and value} for row in rows]


def close(first, second):
    """Logs and final weights within the tolerances above."""
    compare_logs(first, second)
    compare_weights(first, second)
    return True


def compare_logs(first, second):
    rows = [log(out) for out in (first, second)]
    assert len(rows[0]) == len(rows[1]) == 3
    for row, other in zip(*rows):
        rounded = row.keys() & PIXELS
        assert {k: row[k] for k in rounded} == pytest.approx({k: other[k] for k in rounded}, rel=1e-3)
        assert {k: v for k, v in row.items() if k not in rounded} == pytest.approx(
            {k: v for k, v in other.items() if k not in rounded}, **LOG)


def compare_weights(first, second):
    """Those of the auxiliary decoder included."""
    states = [torch.load(out / "last.pth", weights_only=True) for out in (first, second)]
    assert states[0]["step"] == states[1]["step"] == 8
    for net in ("model", "decoder"):
        assert not any(name.startswith("module.") for name in states[1][net])
        first, second = ({k: v for k, v in state[net].items() if "tracked" not in k} for state in states)
        torch.testing.assert_close(second, first, **WEIGHTS)


@pytest.fixture(scope="module")
def base(tmp_path_factory, one_thread):
    """Pairs, a run of one process in shares, and the same run cut after four steps."""
    base = tmp_path_factory.mktemp("runs")
    write_pairs(base, "abcde", (48, 60))
    (base / "more").mkdir()
    rng = np.random.default_rng(0)
    for name in "abcde":
        cv2.imwrite(str(base / "more" / f"{name}.png"), rng.integers(0, 256, (48, 60, 3), np.uint8))
    with pytest.MonkeyPatch.context() as patch:
        in_shares(patch.setattr)
        assert train.main(recipe(base, "whole")) == 0
        validate_too(patch.setattr)
        assert train.main(recipe(base, "validated")) == 0
        stop_at(4, patch.setattr)
        assert train.main(recipe(base, "cut by one")) == 130
    return base


@pytest.fixture(scope="module")
def second(base):
    """The second torchrun's standard output and error, after it is done; see PROCESS."""
    (base / "more" / "b.png").write_bytes(b"damaged")       # one of rank 1's two pairs
    script = base / "process.py"
    script.write_text(PROCESS.format(root=str(ROOT), tests=str(Path(__file__).parent), base=str(base)))
    done = torchrun(script)
    assert done.returncode == 0, done.stderr
    return done


def test_two_processes_train_as_one_that_passes_their_shares(base):
    done = torchrun(ROOT / "train.py", *recipe(base, "two"))
    assert done.returncode == 0, done.stderr
    assert close(base / "whole", base / "two")
    assert done.stdout.count("epoch 1: ") == 1 and done.stdout.count("2 x cpu") == 1
    assert {p.name for p in (base / "two").iterdir()} == {"last.pth", "best.pth", "best.json", "log.csv"}
    RPFNet.from_pretrained(base / "two" / "best.pth")
    about = json.loads((base / "two" / "best.json").read_text())
    assert about["command"].startswith("torchrun --nproc_per_node=2 train.py --ir ")


def test_a_signal_to_one_process_stops_both_and_one_goes_on(base, second, monkeypatch):
    codes = [json.loads((base / f"codes {rank}.json").read_text()) for rank in (0, 1)]
    assert [code[0] for code in codes] == [130, 130]
    assert torch.load(base / "cut by two" / "last.pth", weights_only=True)["step"] == 4
    in_shares(monkeypatch.setattr)
    validate_too(monkeypatch.setattr)
    assert train.main(["--resume", "--out", str(base / "cut by two")]) == 0
    assert close(base / "validated", base / "cut by two")


def test_two_processes_go_on_from_a_run_of_one_and_share_the_validation(base, second):
    assert close(base / "validated", base / "cut by one")
    assert "val_loss" in log(base / "cut by one")[-1]


@pytest.fixture
def one_of_two(tmp_path, monkeypatch):
    """The Trainer of rank 0 of two processes, with no second one, and a clock."""
    run, now = trainer.Trainer(train.parse([*RECIPE, "--max-minutes", "1", "--out", str(tmp_path)])), [0.0]
    monkeypatch.setattr(trainer.team, "world", 2)
    monkeypatch.setattr(trainer.distributed, "all_reduce", lambda *_: None)
    monkeypatch.setattr(trainer, "time", SimpleNamespace(monotonic=lambda: now[0]))
    run._tick = 0.0
    return run, now


def test_several_processes_end_by_time_but_not_between_two_epochs(one_of_two):
    """The end of an epoch is not that of the run: the last epoch is one that wrote best.pth."""
    run, now = one_of_two
    for seconds, step, finished in ((50, 2, False), (61, 3, False), (62, 4, True)):     # 3 steps an epoch
        now[0], run.step, run.history = seconds, step, [{}] * (step // 3)
        run.agree(SimpleNamespace(received=0))
        assert (run.seconds, run.finished) == (seconds, finished)


def test_one_of_several_processes_does_not_save_after_its_own_error(one_of_two, monkeypatch):
    """A save adds up sums of all processes, so it would wait for the others for ever."""
    run, _ = one_of_two
    run.step = 1
    monkeypatch.setattr(trainer.Trainer, "save", lambda *_: pytest.fail("saved"))
    run.rescue()


def test_test_py_shares_the_images_and_reports_once(base, second, capsys):
    assert fuse_command.main(fusion(base, "by one")) == 1
    alone = {p.name: p.read_bytes() for p in (base / "by one").iterdir()}
    assert alone == {p.name: p.read_bytes() for p in (base / "by two").iterdir()} and len(alone) == 4
    assert second.stdout.count("4 images in") == 1 and "; 2 processes fuse at the same time" in second.stdout
    assert second.stderr.count("skipped: b: ") == 1
    assert [json.loads((base / f"codes {rank}.json").read_text())[2] for rank in (0, 1)] == [1, 0]


def test_a_run_whose_shares_are_normalised_together_is_another(base, monkeypatch):
    """What the reference above leaves out would be seen: without it, log and weights are farther off than the tolerances."""
    assert train.main(recipe(base, "as one")) == 0
    for compare, message in ((compare_logs, "approx"), (compare_weights, "not close")):
        with pytest.raises(AssertionError, match=message):
            compare(base / "whole", base / "as one")
