"""torchrun: two gloo processes train and fuse as one does, and resume each other's runs."""
import csv
import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch

import test as fuse_command
import train
from dataset import PairDataset, Team, match_pairs
from net import PooledNorm, RPFNet

ROOT = Path(train.__file__).parent
TORCHRUN = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2"]

# Batches of 5, 5 and 1 crops: 3 + 2 in two processes, and one crop for two of them.
RECIPE = ["--crop", "16", "--crops", "11", "--batch", "5", "--channels", "4", "--stages", "2", "--steps", "8"]

# What differs is the order in which float32 numbers are added up, 6e-8 a time: 1e-7 is seen in the log. Adam divides
# each gradient by its own size, so a weight whose gradient is nearly zero shows more of it: 1e-6 is seen, of steps
# that sum up to 3e-3.
LOG = {"rel": 1e-5}
# The metrics see 8-bit images, where 1e-7 can move a pixel by one level.
PIXELS = set(train.VALIDATION_METRICS)
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
(base / f"stand-in {{rank}}.json").write_text(json.dumps(shared.normalised(takes_part=rank == "0")))
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


def normalised(takes_part, rank=None):
    """A crop of this process, by PooledNorm, and the gradient of its sum of cubes."""
    x = torch.randn(1, 2, 4, 4, generator=torch.Generator().manual_seed(int(os.environ["RANK"] if rank is None else rank))).requires_grad_()
    norm = PooledNorm(2)
    norm.takes_part = takes_part
    y = norm(x)
    (y.pow(3).sum() * takes_part).backward()
    return [y.flatten().tolist(), x.grad.flatten().tolist()]


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
    """Logs and final weights, those of the auxiliary decoder included, within the tolerances above."""
    rows = [log(out) for out in (first, second)]
    assert len(rows[0]) == len(rows[1]) == 3
    for row, other in zip(*rows):
        rounded = row.keys() & PIXELS
        assert {k: row[k] for k in rounded} == pytest.approx({k: other[k] for k in rounded}, rel=1e-3)
        assert {k: v for k, v in row.items() if k not in rounded} == pytest.approx(
            {k: v for k, v in other.items() if k not in rounded}, **LOG)
    states = [torch.load(out / "last.pth", weights_only=True) for out in (first, second)]
    assert states[0]["step"] == states[1]["step"] == 8
    for net in ("model", "decoder"):
        assert not any(name.startswith("module.") for name in states[1][net])
        torch.testing.assert_close(states[1][net], states[0][net], **WEIGHTS)
    return True


@pytest.fixture(scope="module", autouse=True)
def keep_signal_handlers():
    handlers = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    yield
    for number, handler in handlers.items():
        signal.signal(number, handler)


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    """Pairs, a run of one process, and the same run cut after four steps."""
    base = tmp_path_factory.mktemp("runs")
    rng = np.random.default_rng(0)
    for side in ("ir", "vis", "more"):
        (base / side).mkdir()
    for name in "abcde":
        for side in ("ir", "vis"):
            smooth = cv2.GaussianBlur(rng.integers(0, 256, (48, 60), np.uint8), (0, 0), 1.5)
            cv2.imwrite(str(base / side / f"{name}.png"), cv2.normalize(smooth, None, 0, 255, cv2.NORM_MINMAX))
        cv2.imwrite(str(base / "more" / f"{name}.png"), rng.integers(0, 256, (48, 60, 3), np.uint8))
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    with pytest.MonkeyPatch.context() as patch:
        assert train.main(recipe(base, "whole")) == 0
        validate_too(patch.setattr)
        assert train.main(recipe(base, "validated")) == 0
        stop_at(4, patch.setattr)
        assert train.main(recipe(base, "cut by one")) == 130
    yield base
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def second(base):
    """The second torchrun's standard output and error, after it is done; see PROCESS."""
    (base / "more" / "b.png").write_bytes(b"damaged")       # one of rank 1's two pairs
    script = base / "process.py"
    script.write_text(PROCESS.format(root=str(ROOT), tests=str(Path(__file__).parent), base=str(base)))
    done = torchrun(script)
    assert done.returncode == 0, done.stderr
    return done


def test_two_processes_train_as_one(base):
    done = torchrun(ROOT / "train.py", *recipe(base, "two"))
    assert done.returncode == 0, done.stderr
    assert close(base / "whole", base / "two")
    assert done.stdout.count("epoch 1: ") == 1 and done.stdout.count("2 x cpu") == 1
    assert {p.name for p in (base / "two").iterdir()} == {"last.pth", "best.pth", "best.json", "log.csv"}
    RPFNet.from_pretrained(base / "two" / "best.pth")


def test_a_signal_to_one_process_stops_both_and_one_goes_on(base, second, monkeypatch):
    codes = [json.loads((base / f"codes {rank}.json").read_text()) for rank in (0, 1)]
    assert [code[0] for code in codes] == [130, 130]
    assert torch.load(base / "cut by two" / "last.pth", weights_only=True)["step"] == 4
    validate_too(monkeypatch.setattr)
    assert train.main(["--resume", "--out", str(base / "cut by two")]) == 0
    assert close(base / "validated", base / "cut by two")


def test_two_processes_go_on_from_a_run_of_one_and_share_the_validation(base, second):
    assert close(base / "validated", base / "cut by one")
    assert "val_loss" in log(base / "cut by one")[-1]


def test_a_stand_in_leaves_the_statistics_alone(base, second):
    values, gradient = json.loads((base / "stand-in 0.json").read_text())
    alone = normalised(True, rank=0)
    assert values == pytest.approx(alone[0], abs=1e-5) and gradient == pytest.approx(alone[1], abs=1e-5)
    assert not any(json.loads((base / "stand-in 1.json").read_text())[1])


def test_test_py_shares_the_images_and_reports_once(base, second, capsys):
    assert fuse_command.main(fusion(base, "by one")) == 1
    alone = {p.name: p.read_bytes() for p in (base / "by one").iterdir()}
    assert alone == {p.name: p.read_bytes() for p in (base / "by two").iterdir()} and len(alone) == 4
    assert second.stdout.count("4 images in") == 1 and "2 processes" in second.stdout
    assert second.stderr.count("skipped: b: ") == 1
    assert [json.loads((base / f"codes {rank}.json").read_text())[2] for rank in (0, 1)] == [1, 0]


def test_batch_norm_on_cpus_is_refused_in_one_line(monkeypatch, capsys, base):
    monkeypatch.setattr(train.team, "world", 2)
    assert train.main([*recipe(base, "refused"), "--norm", "batch"]) == 1
    error = capsys.readouterr().err.strip().splitlines()[-1]
    assert error.startswith("train.py: --norm batch needs GPUs")


def test_the_shares_make_up_the_whole():
    shares = []
    for rank in range(3):
        member = Team()
        member.rank, member.world = rank, 3
        shares.append(list(member.share(range(7))))
    assert shares == [[0, 3, 6], [1, 4], [2, 5]]
