"""bench.py: what it counts and how it schedules; no assertion on speed."""
import json
import math
import os
import subprocess
import sys
import time
from pathlib import Path

import bench
import pytest
import torch
from bench import BenchError, Case
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from net import RPFNet

SCRIPT = Path(bench.__file__)
MEGABYTES = 200


def memory_hog():
    """A peer that is known to need MEGABYTES beside its output."""
    class Hog(nn.Module):
        def forward(self, ir, vis):
            if ir.shape[2] > bench.TINY:
                torch.ones(MEGABYTES * 250_000)
            return (ir + vis) / 2
    return Hog()


def run(*options, tmp_path):
    environment = {"PYTHONPATH": os.pathsep.join([str(Path(__file__).parent), str(SCRIPT.parent)]), "PATH": "/usr/bin:/bin", "OMP_NUM_THREADS": "1"}
    return subprocess.run([sys.executable, SCRIPT, *map(str, options)], check=False, cwd=tmp_path,
                          env=environment, capture_output=True, text=True, timeout=300)


# ---------------------------------------------------------------------------------------------
# The command


@pytest.fixture(scope="module")
def report(tmp_path_factory):
    folder = tmp_path_factory.mktemp("bench")
    done = run("--device", "cpu", "--sizes", "33x48", "--train-batch", 2, "--train-crop", 32, "--repeats", 2,
               "--precision", "bfloat16", "--seconds", 280, "--peer", "test_bench:memory_hog", "--json", folder / "bench.json", tmp_path=folder)
    assert done.returncode == 0, done.stderr
    return done.stdout, json.loads((folder / "bench.json").read_text())


def test_writes_a_row_for_each_model_and_task_and_the_reference(report):
    rows = report[1]["rows"]
    plain = [(r["model"], r["task"], r["size"], r["precision"]) for r in rows if r["variant"] == "plain"]
    expected = [(model, task, size, precision) for task, size in (("inference", "33x48"), ("training", "32x32"))
                for model, precision in (("rpfnet", "bfloat16"), ("released", "bfloat16"), ("released", "float32"))]
    expected += [("test_bench:memory_hog", "inference", "33x48", "bfloat16")]
    assert sorted(plain) == sorted(expected)
    assert report[1]["left_out"] == []


def test_rows_have_all_fields(report):
    for r in report[1]["rows"]:
        assert r["device"] == "cpu" and r["repeats"] == 2
        assert r["median_ms"] > 0 and r["spread_ms"] >= 0 and r["peak_mb"] > 0 and r["ratio"] > 0
    assert {"device", "threads", "torch", "load_average", "date"} == set(report[1]["machine"])


def test_ratio_is_to_the_released_graph_in_float32(report):
    for task in ("inference", "training"):
        rows = [r for r in report[1]["rows"] if r["task"] == task]
        base = next(r for r in rows if r["model"] == "released" and r["precision"] == "float32")
        assert base["ratio"] == 1
        for r in rows:
            assert r["ratio"] == pytest.approx(r["median_ms"] / base["median_ms"], abs=1e-3)


def test_peak_memory_is_that_of_the_row_alone(report):
    peaks = {r["model"]: r["peak_mb"] for r in report[1]["rows"]
             if (r["task"], r["variant"]) == ("inference", "plain")}
    assert 0.95 * MEGABYTES < peaks["test_bench:memory_hog"] < 1.2 * MEGABYTES
    assert peaks["released"] < 0.5 * MEGABYTES


def test_prints_one_table_and_the_parameters(report):
    text = report[0]
    assert text.count("ratio") == 1 and "released 70,177" in text
    assert all(len(line) < 140 for line in text.splitlines())


@pytest.mark.skipif(torch.cuda.is_available(), reason="needs a machine without CUDA")
def test_an_unavailable_device_is_one_line(capsys):
    assert bench.main(["--device", "cuda"]) == 1
    assert capsys.readouterr().err == ("bench.py: --device cuda: PyTorch finds no CUDA device here; "
                                       "use --device cpu\n")


@pytest.mark.parametrize(("options", "message"), [
    (["--peer", "no_such_module:f"], "--peer no_such_module:f: ModuleNotFoundError"),
    (["--peer", "json:loads"], "--peer json:loads: TypeError"),
    (["--json", "no/such/folder/a.json"], "there is no such folder"),
])
def test_wrong_options_are_one_line(capsys, options, message):
    assert bench.main(["--device", "cpu", *options]) == 1
    error = capsys.readouterr().err
    assert message in error and error.count("\n") == 1


def test_too_little_time_is_one_line(capsys):
    assert bench.main(["--device", "cpu", "--seconds", "1", "--sizes", "16x16", "--tasks", "inference"]) == 1
    error = capsys.readouterr().err
    assert "no row: " in error and "--seconds" in error and error.count("\n") == 1


@pytest.mark.parametrize("size", ["480", "480x", "15x640", "axb", "-480x640"])
def test_wrong_sizes_are_named(capsys, size):
    with pytest.raises(SystemExit):
        bench.build_parser().parse_args([f"--sizes={size}"])
    assert size in capsys.readouterr().err


def test_a_worker_reports_its_error():
    case = Case("json:loads", "plain", "inference", 32, 32, 1, "float32")
    with pytest.raises(BenchError, match="TypeError: loads"):
        bench.CpuWorker(case, threads=1)


@pytest.mark.skipif(torch.cuda.is_available(), reason="needs a machine without CUDA")
def test_an_error_in_this_process_is_one_of_its_row_too():
    with pytest.raises(BenchError, match="TypeError: loads"):
        bench.CudaWorker(Case("json:loads", "plain", "inference", 32, 32, 1, "float32"), "cpu")


def test_a_worker_is_ended_when_its_time_is_up():
    case = Case("released", "plain", "inference", 32, 32, 1, "float32")
    with pytest.raises(TimeoutError):
        bench.CpuWorker(case, threads=1, end=time.monotonic())
    worker = bench.CpuWorker(case, threads=1)
    worker.run()
    worker.end = 0
    with pytest.raises(TimeoutError):
        worker.run()
    assert not worker.process.is_alive() and len(worker.times) == 1


# ---------------------------------------------------------------------------------------------
# FLOPs


def test_flops_of_the_released_graph_by_hand():
    height, width = 32, 48
    stage = 32 * 32 * (1 + 9) + 3 * 9 * 32 * 32 + 96 * 32 + 9 * 32 * 32          # products a pixel
    pixels = height * width
    products = pixels * (9 * 32 + 9 * 64 + 3 * stage + 9 * (32 * 32 + 32 * 16 + 16))
    products += 3 * 64 * 64 * height * (width // 2 + 1)     # of half a spectrum
    matrix, ffts = bench.count_flops("released", "inference", 1, height, width)
    assert matrix == 2 * products
    assert ffts == pytest.approx(3 * 2 * 32 * 2.5 * pixels * math.log2(pixels))


def test_flops_of_known_ffts():
    class Transforms(nn.Module):
        def forward(self, x, _):
            y = torch.fft.irfft(torch.fft.rfft(x))
            return torch.fft.ifft2(torch.fft.fft2(torch.complex(y, y))).real

    expected = {1: 2 * 2.5 * 64 * 6 * 32, 2: 2 * 5 * 64 * 32 * 11}      # 32 rows of 64 points; 2048 points
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(bench, "build_network", lambda _: Transforms())
        assert bench.count_flops("transforms", "inference", 1, 32, 64) == (0, sum(expected.values()))


def test_counts_a_network_that_looks_at_values():
    class Peer(nn.Module):
        def forward(self, x, _):
            return x @ x.mT if x.sum().item() == 0 else x

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(bench, "build_network", lambda _: Peer())
        assert bench.count_flops("peer", "inference", 1, 16, 16) == (2 * 16 ** 3, 0)


def test_a_training_step_counts_about_three_passes():
    step = bench.count_flops("rpfnet", "training", 2, 32, 32)[0]
    network, x = RPFNet().train(), torch.zeros(2, 1, 32, 32)        # no border in training
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        network(x, x)
    forward = counter.get_total_flops()
    assert 2.9 * forward < step < 3 * forward


# ---------------------------------------------------------------------------------------------
# Scheduling, with workers that do nothing


class FakeBudget:
    def __init__(self, seconds, passes):
        self.end, self.passes, self.learnt = time.monotonic() + seconds, passes, {}

    def left(self):
        return self.end - time.monotonic()

    def needed(self, case):
        return 1 + bench.WARM_UP_COST * self.passes[case.model]

    def learn(self, case, seconds):
        self.learnt[case.model] = seconds


def schedule(models, seconds, repeats=3, share=1.0, passes=1.0, before=None, later=()):
    """The order in which rows ran, the rows, and those left out."""
    order = []

    class Worker:
        def __init__(self, case):
            self.case, self.times, self.peak = case, [], 1.0

        def run(self):
            if self.case.model in (before or {}):
                before[self.case.model](self.times)
            order.append(self.case.model)
            self.times.append(0.01 * len(order))

        def close(self):
            pass

    cases, later = ([Case(model, "plain", "inference", 32, 32, 1, "float32") for model in group] for group in (models, later))
    budget = FakeBudget(seconds, dict.fromkeys(models, passes) if isinstance(passes, float) else passes)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(bench, "count_flops", lambda *_: (1, 1))
        patch.setattr(bench, "parameters", lambda _: 1)
        rows, left_out = bench.measure(cases, repeats, budget, share, Worker, later)
    return order, rows, left_out


def test_rows_take_turns():
    order, rows, _ = schedule(["released", "rpfnet", "peer"], seconds=100)
    assert order == ["released", "rpfnet", "peer"] * 4
    assert [r["repeats"] for r in rows] == [3, 3, 3]
    # Passes of 10, 40, 70 and 100 ms, of which the first fetches memory.
    assert rows[0]["median_ms"] == pytest.approx(70) and rows[0]["spread_ms"] == pytest.approx(30)


def test_one_pass_counts_where_time_allows_no_other():
    order, rows, _ = schedule(["released", "rpfnet"], seconds=100, repeats=0)
    assert order == ["released", "rpfnet"]
    assert [(r["repeats"], r["median_ms"]) for r in rows] == [(1, 10), (1, 20)]


def test_only_the_released_graph_runs_with_and_without_kept_memory(report):
    kept = [(r["model"], r["task"], r["precision"]) for r in report[1]["rows"] if r["variant"] == bench.KEPT]
    expected = [("released", task, "float32") for task in ("inference", "training")]
    assert kept == (expected if sys.platform == "linux" else [])


def test_leaves_out_what_does_not_fit_and_says_so():
    order, _, left_out = schedule(["released", "rpfnet", "peer"], 50, passes={"released": 1, "rpfnet": 100, "peer": 1})
    assert "rpfnet" not in order and left_out == ["rpfnet float32 inference 32x32 (about 126 s; --seconds)"]


def test_leaves_out_all_without_the_baseline():
    order, rows, left_out = schedule(["released", "rpfnet"], 50, passes={"released": 100, "rpfnet": 1})
    assert (order, rows, len(left_out)) == ([], [], 2)


def test_a_row_that_fails_costs_no_other():
    def fail(times):
        if not times:
            raise bench.BenchError("its process was ended")

    order, rows, left_out = schedule(["released", "rpfnet", "peer"], 100, before={"rpfnet": fail})
    assert [r["model"] for r in rows] == ["released", "peer"] and order.count("peer") == 4
    assert left_out == ["rpfnet float32 inference 32x32 (its process was ended)"]
    order, rows, left_out = schedule(["released", "rpfnet"], 100, before={"released": fail})
    assert (order, rows) == ([], []) and "no ratio" in left_out[1]


def test_by_default_both_networks_have_a_row_in_each_precision():
    options = ["--device", "cpu", "--sizes", "33x48", "--train-crop", "32", "--peer", "peer"]
    rows = [(c.model, c.task, c.size, c.precision) for cases in bench.groups(bench.build_parser().parse_args(options))
            for c in cases if c.variant == "plain"]
    expected = [(model, task, size, precision) for task, size in (("inference", "33x48"), ("training", "32x32"))
                for model in ("rpfnet", "released") for precision in ("float32", "bfloat16")]
    expected += [("peer", "inference", "33x48", precision) for precision in ("float32", "bfloat16")]
    assert sorted(rows) == sorted(expected)


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_the_second_row_is_rpfnet(precision):
    for cases in bench.groups(bench.build_parser().parse_args(["--precision", precision, "--device", "cpu"])):
        assert [case.model for case in cases[:2]] == ["released", "rpfnet"] and cases[1].precision == precision


def test_the_first_two_may_use_all_the_time():
    order, *_ = schedule(["released", "rpfnet", "peer"], seconds=50, share=0.2, passes=20.0)
    assert order[:2] == ["released", "rpfnet"] and "peer" not in order


def test_time_is_kept_back_for_what_matters_later():
    models, passes = ["released", "rpfnet", "peer"], {"released": 2, "rpfnet": 1, "peer": 2, "training": 30}
    assert "peer" in schedule(models, 41, passes=passes)[0]
    order, _, left_out = schedule(models, 41, passes=passes, later=["training"])
    assert order[:2] == models[:2] and "peer" not in order and "peer" in left_out[0]


def test_warms_up_on_a_part_of_large_inputs():
    shapes = [tuple(bench.part(torch.empty(shape, device="meta")).shape) for shape in (
        (1, 1, 128, 128), (1, 1, 480, 640), (16, 1, 128, 128), (1, 1, 64, 4096))]
    assert shapes == [(1, 1, 128, 128), (1, 1, 60, 640), (2, 1, 128, 128), (1, 1, 16, 4096)]
