"""tools/bench.py: its rows, what their fields mean, and what becomes of rows that fail; no assertion on speed."""
import json
import math
import os
import signal
import subprocess
import sys
from concurrent.futures import BrokenExecutor, Future
from pathlib import Path

import pytest
import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from net import AuxiliaryDecoder, RPFNet
from tools import bench
from tools.bench import KEPT, Case

ROOT = Path(__file__).resolve().parents[1]
MEGABYTES = 200
PEERS = {
    # Imports a net.py of its own, and needs a known amount of memory beside its output.
    "hog.py": "from net import Hog as build",
    "net.py": f"""
import torch
class Hog(torch.nn.Module):
    def forward(self, ir, vis):
        if ir.shape[2] > 32:
            torch.ones({MEGABYTES} * 250_000)
        return (ir + vis) / 2
""",
    # Its error cannot be sent between processes as it is.
    "raises.py": """
class Broken(Exception):
    def __init__(self, one, two):
        super().__init__("two\\nlines")
def build():
    raise Broken(1, 2)
""",
    "killed.py": "import os\ndef build():\n    os._exit(9)",
    "trainer.py": "raise RuntimeError('the trainer.py of the current folder')",
}


def row_of(model, variant="", precision="float32", task="inference", size="32x48", batch=1):
    return Case(model, variant, precision, task, size, batch)


# ---------------------------------------------------------------------------------------------
# The command


@pytest.fixture(scope="module")
def done(tmp_path_factory):
    """A run in a folder that has a trainer.py and a net.py of its own: exit code, printed text, report."""
    folder = tmp_path_factory.mktemp("bench")
    for name, text in PEERS.items():
        (folder / name).write_text(text)
    options = ["--device", "cpu", "--sizes", "33x48", "--repeats", "2", "--threads", "1", "--json", "bench.json"]
    options += [text for peer in ("raises.py", "hog.py", "killed.py") for text in ("--peer", peer)]
    result = subprocess.run([sys.executable, ROOT / "tools" / "bench.py", *options], cwd=folder, capture_output=True,
                            text=True, check=False)
    assert (folder / "bench.json").is_file(), result.stderr
    return result.returncode, result.stdout, json.loads((folder / "bench.json").read_text())


def test_rows_are_both_networks_in_both_precisions_and_the_peer(done):
    rows = [(r["model"], r["variant"], r["precision"]) for r in done[2]["rows"]]
    expected = [("released", "", "float32"), ("released", "", "bfloat16"), ("RPFNet", "optimize()", "float32"),
                ("RPFNet", "optimize()", "bfloat16"), ("hog.py", "", "float32")]
    assert sorted(row for row in rows if row[1] != KEPT) == sorted(expected)
    assert (("released", KEPT, "float32") in rows) == (sys.platform == "linux")


def test_rows_have_all_fields(done):
    for r in done[2]["rows"]:
        assert (r["task"], r["size"], r["batch"], r["repeats"]) == ("inference", "33x48", 1, 2)
        assert r["median_ms"] >= 0 and r["spread_ms"] >= 0 and r["gflop"] >= 0
    assert {"device", "threads", "torch", "load average", "date", "commit", "command"} == set(done[2]["machine"])
    assert done[2]["machine"]["threads"] == 1 and "--sizes 33x48" in done[2]["machine"]["command"]


def test_ratios_are_to_the_released_graph_in_float32(done):
    base = next(r for r in done[2]["rows"] if (r["model"], r["variant"], r["precision"]) == ("released", "", "float32"))
    assert base["ratio"] == 1
    for r in done[2]["rows"]:
        assert r["ratio"] == pytest.approx(r["median_ms"] / base["median_ms"], abs=6e-4)


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux tells the peak")
def test_peak_memory_is_that_of_the_row_alone(done):
    peaks = {r["model"]: r["peak_mb"] for r in done[2]["rows"] if r["variant"] != KEPT}
    assert 0.95 * MEGABYTES < peaks["hog.py"] < 1.2 * MEGABYTES
    assert 0 < peaks["released"] < 0.5 * MEGABYTES


def test_a_row_that_fails_is_named_and_costs_no_other(done):
    assert done[0] == 1
    assert done[2]["failed"] == {
        "raises.py float32 inference 33x48 1": "Broken: two",
        "killed.py float32 inference 33x48 1": "its process was ended, most likely for lack of memory"}


def test_prints_what_markdown_makes_of_the_file(done, tmp_path, capsys):
    file = tmp_path / "bench.json"
    file.write_text(json.dumps(done[2]))
    assert bench.main(["--print", str(file)]) == 1       # rows failed
    assert capsys.readouterr().out == done[1]
    table = [line.strip("|").split("|") for line in done[1].splitlines() if line.startswith("|")]
    assert len(table) == 2 + len(done[2]["rows"]) and {len(cells) for cells in table} == {len(bench.COLUMNS)}
    assert "- raises.py float32 inference 33x48 1: Broken: two\n" in done[1]


@pytest.mark.parametrize(("options", "message"), [
    (["--peer", "no/such/peer.py"], "bench.py: no/such/peer.py: No such file or directory"),
    (["--json", "no/such/folder/a.json"], "--json no/such/folder/a.json: no such folder"),
    (["--json", str(ROOT)], f"--json {ROOT}: is a folder"),
    (["--json", os.devnull], f"--json {os.devnull}: is a device"),
    (["--tasks", "training", "--batch", "2"], "--batch goes with --tasks inference"),
    (["--print", "no/such.json", "--repeats", "7"], "--repeats has no effect with --print"),
    (["--print", "no/such.json"], "bench.py: no/such.json: No such file or directory"),
    (["--print", str(ROOT / "README.md")], "README.md: not a file of --json"),
    (["--print", str(ROOT / "recipes" / "paper.json")], "paper.json: not a file of --json"),
    pytest.param(["--device", "cuda"], "device cuda: ",
                 marks=pytest.mark.skipif(torch.cuda.is_available(), reason="needs a machine without CUDA")),
])
def test_what_cannot_work_is_one_line(capsys, options, message):
    assert bench.main(["--device", "cpu", *options]) == 1
    error = capsys.readouterr().err
    assert error.startswith("bench.py: ") and message in error and error.count("\n") == 1


@pytest.mark.parametrize("content", [[], {"rows": [1], "machine": {}, "failed": {}}, {"rows": [], "machine": [], "failed": {}}])
def test_another_json_file_is_no_report(tmp_path, capsys, content):
    (tmp_path / "a.json").write_text(json.dumps(content))
    assert bench.main(["--print", str(tmp_path / "a.json")]) == 1
    error = capsys.readouterr().err
    assert "a.json: not a file of --json" in error and error.count("\n") == 1


@pytest.mark.parametrize("error, code, message", [
    (KeyboardInterrupt(), 130, "bench.py: interrupted"), (OSError(28, "No space left on device"), 1, "No space left")])
def test_an_end_before_time_keeps_the_finished_rows(monkeypatch, tmp_path, capsys, error, code, message):
    def measure(cases, *_):
        if cases[0].size == "64x48":
            raise error
        return [bench.row(cases[0], *passes(7)) | {"ratio": 1.0}], {}
    monkeypatch.setattr(bench, "measure", measure)
    options = ["--device", "cpu", "--sizes", "32x48", "64x48", "--json", str(tmp_path / "a.json")]
    assert bench.main(options) == code
    out, err = capsys.readouterr()
    assert message in err and out.count("| inference | 32x48 ") == 1
    assert [r["size"] for r in json.loads((tmp_path / "a.json").read_text())["rows"]] == ["32x48"]


def test_a_file_that_cannot_be_written_costs_no_printed_row(monkeypatch, tmp_path, capsys):
    def full(*_):
        raise OSError(28, "No space left on device")
    monkeypatch.setattr(bench, "write_atomically", full)
    monkeypatch.setattr(bench, "measure", lambda cases, *_: ([bench.row(cases[0], *passes(7)) | {"ratio": 1.0}], {}))
    assert bench.main(["--device", "cpu", "--json", str(tmp_path / "a.json")]) == 1
    out, err = capsys.readouterr()
    assert "| inference | 480x640 " in out and "No space left" in err


def test_windows_has_no_load_average(monkeypatch):
    monkeypatch.delattr(bench.os, "getloadavg", raising=False)
    assert bench.empty_report(bench.build_parser().parse_args(["--device", "cpu"]), "")["machine"]["load average"] == "unknown"


@pytest.mark.parametrize("size", ["480", "480x", "15x640", "axb", "-480x640"])
def test_wrong_sizes_are_named(capsys, size):
    with pytest.raises(SystemExit):
        bench.build_parser().parse_args([f"--sizes={size}"])
    assert size in capsys.readouterr().err


def test_plan_follows_the_options():
    def plan(*options):
        return bench.plan(bench.build_parser().parse_args(["--device", "cpu", *options]))

    groups = plan("--tasks", "inference", "training", "--sizes", "32x32", "64x48", "--batch", "2", "--peer", "a.py",
                  "--compile", "--checkpoint", "medical")
    assert [(cases[0].task, cases[0].size, cases[0].batch) for cases in groups] == [
        ("inference", "32x32", 2), ("inference", "64x48", 2), ("training", "128x128", 16)]
    for cases in groups:
        assert cases[0][:3] == ("released", "", "float32")      # the baseline
        assert len({case[3:] for case in cases}) == 1 and len(set(cases)) == len(cases)
    plain = {case[:3] for case in plan()[0]}
    assert plain - {("released", KEPT, "float32")} == {
        (*row, precision) for row in (("released", ""), ("RPFNet", "optimize()")) for precision in ("float32", "bfloat16")}
    assert (("released", KEPT, "float32") in plain) == (sys.platform == "linux")
    extra = {case[:3] for case in groups[0]} - plain
    assert extra == {("RPFNet", "compiled", "bfloat16"), ("a.py", "", "float32"),
                     ("medical", "optimize()", "float32"), ("medical", "optimize()", "bfloat16")}
    assert not extra & {case[:3] for case in groups[2]}
    on_gpu = plan("--device", "cuda", "--tasks", "inference", "training")
    assert KEPT not in {case.variant for case in on_gpu[0]}
    assert {case.model for case in on_gpu[0] if case.precision == "TF32"} == {"released", "RPFNet"}
    assert {case.precision for case in on_gpu[-1]} == {"float32", "bfloat16"}       # train.py turns TF32 off


@pytest.mark.parametrize("precision, rounds", [("TF32", True), ("float32", False), ("bfloat16", True)])
def test_convolutions_round_as_in_test_py_except_in_rows_of_float32(monkeypatch, precision, rounds):
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", True)
    bench.prepare(row_of("RPFNet", "optimize()", precision), "cpu")
    assert torch.backends.cudnn.allow_tf32 == rounds


def test_a_checkpoints_row_runs_its_network_folded():
    run = bench.prepare(bench.Case("medical", "optimize()", "float32", "inference", "32x32", 1), "cpu")
    pair = torch.rand(2, 1, 1, 32, 32, generator=torch.Generator().manual_seed(0)).unbind()
    torch.testing.assert_close(run(*pair), torch.inference_mode()(RPFNet.from_pretrained("medical").optimize())(*pair))


@pytest.mark.parametrize("name", ["speed", "speed_small"])
def test_the_table_in_the_documentation_is_that_of_the_stored_run(name):
    report = json.loads((ROOT / "results" / f"{name}.json").read_text(encoding="utf-8"))
    assert bench.markdown(report) in (ROOT / "docs" / "speed.md").read_text(encoding="utf-8")


# ---------------------------------------------------------------------------------------------
# Turns, with pools that compute nothing


@pytest.fixture
def turns(monkeypatch):
    """Runs `measure` with given answers of each model; returns the order of the passes and what `measure` returns."""
    def run(repeats, **answers):
        order = []

        class Pool:
            def __init__(self, workers, context, initializer, row):
                self.model = row[0].model

            def submit(self, function):
                future = Future()
                if function is not bench.answer:
                    future.set_result(None)
                    return future
                order.append(self.model)
                answer = answers[self.model].pop(0)
                (future.set_exception if isinstance(answer, Exception) else future.set_result)(answer)
                return future

            def shutdown(self, wait):
                order.append("end")

        monkeypatch.setattr(bench, "ProcessPoolExecutor", Pool)
        return order, *bench.measure([row_of(model) for model in answers], "cpu", 1, repeats)
    return run


def passes(*milliseconds):
    return [{"gflop": 1.0}, *({"ms": ms, "peak_mb": 10.0 + index} for index, ms in enumerate(milliseconds))]


def test_rows_take_turns(turns):
    order, rows, failed = turns(3, released=passes(10, 40, 70), RPFNet=passes(7, 7, 1), peer=passes(5, 5, 5))
    assert order == ["released", "RPFNet", "peer"] * 4 + ["end"] * 3 and failed == {}
    assert [(r["model"], r["median_ms"], r["spread_ms"], r["ratio"]) for r in rows] == [
        ("released", 40, 30, 1), ("RPFNet", 7, 3, 0.175), ("peer", 5, 0, 0.125)]
    assert all(r["peak_mb"] == 10 and r["repeats"] == 3 for r in rows)      # later passes add fragments of the heap


def test_the_start_of_the_processes_has_a_progress_bar(turns, capsys):
    turns(1, released=passes(10), RPFNet=passes(7))
    assert "starting processes: 100%" in (error := capsys.readouterr().err) and "2/2" in error


def test_one_pass_has_no_spread(turns):
    assert [(r["median_ms"], r["spread_ms"]) for r in turns(1, released=passes(10))[1]] == [(10, 0)]


def test_a_row_that_fails_is_not_asked_again(turns):
    order, rows, failed = turns(2, released=passes(10, 10), RPFNet=[{"gflop": 1}, RuntimeError("out of memory")],
                                peer=[BrokenExecutor("pool")])
    assert order[:-3] == ["released", "RPFNet", "peer", "released", "RPFNet", "released"]
    assert [r["model"] for r in rows] == ["released"]
    assert failed == {"RPFNet float32 inference 32x48 1": "out of memory",
                      "peer float32 inference 32x48 1": "its process was ended, most likely for lack of memory"}


def test_without_the_baseline_there_are_no_ratios(turns):
    _, rows, failed = turns(1, released=[RuntimeError("x")], RPFNet=passes(7))
    assert [(r["model"], r["median_ms"], r["ratio"]) for r in rows] == [("RPFNet", 7, None)] and len(failed) == 1
    assert "       7.0 |" in bench.markdown({"rows": rows, "machine": {}, "failed": failed})


# ---------------------------------------------------------------------------------------------
# What a row's process does, in this one


@pytest.fixture
def first(monkeypatch):
    """GFLOP of a row and the first timed pass; and whether it keeps freed memory."""
    def run(case, network=None):
        kept = []
        monkeypatch.setattr(bench, "keep_freed_memory", lambda: kept.append(True))
        monkeypatch.setattr(bench, "load_peer", lambda path: network)
        results = bench.passes(case, "cpu", torch.get_num_threads())
        return next(results)["gflop"], next(results), bool(kept)
    return run


def test_flops_of_a_known_network(first):
    class Known(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv = nn.Conv2d(1, 40, 3, padding=1)

        def forward(self, ir, vis):
            assert ir.sum().item() > 0      # a network may look at values
            return self.conv(ir).sum(1, keepdim=True) @ vis.mT     # (B, 1, H, W) (B, 1, W, H)

    gflop, timed, kept = first(row_of("known.py", size="200x300", batch=2), Known)
    assert gflop == pytest.approx(2 * 2 * 200 * 300 * (9 * 40 + 200) / 1e9, abs=1e-3)
    assert timed["ms"] > 0 and not kept


def test_flops_of_the_released_graph_by_hand(first):
    height, width = 96, 128
    stage = 32 * 32 * (1 + 9) + 3 * 9 * 32 * 32 + 96 * 32 + 9 * 32 * 32          # products a pixel
    products = height * width * (9 * 32 + 9 * 64 + 3 * stage + 9 * (32 * 32 + 32 * 16 + 16))
    products += 3 * 64 * 64 * height * (width // 2 + 1)                         # of half a spectrum
    assert first(row_of("released", size="96x128"))[0] == pytest.approx(2 * products / 1e9, abs=1e-3)


def test_a_training_step_is_three_passes_and_the_losses(first):
    network, decoder = RPFNet().train(), AuxiliaryDecoder().train()     # no border in training
    x = torch.zeros(2, 1, 64, 64)
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        decoder(network(x, x, return_features=True)[1][-1].residual)
    forward = counter.get_total_flops() / 1e9
    for precision in ("float32", "bfloat16"):
        gflop, timed, kept = first(row_of("RPFNet", "", precision, "training", "64x64", 2))
        assert 2.9 * forward < gflop < 3.1 * forward
        assert math.isfinite(timed["ms"]) and kept


def test_ctrl_c_ends_the_processes_of_the_rows(monkeypatch):
    ended = []

    class Pool:
        def __init__(self, *_):
            pass

        def submit(self, function):
            if function is not os.getpid:
                raise KeyboardInterrupt
            future = Future()
            future.set_result(4711)
            return future

        def shutdown(self, wait):
            ended.append(wait)
    monkeypatch.setattr(bench, "ProcessPoolExecutor", Pool)
    monkeypatch.setattr(os, "kill", lambda *process: ended.append(process))
    with pytest.raises(KeyboardInterrupt):
        bench.measure([Case("RPFNet", "", "float32", "inference", "64x64", 1)], "cpu", 1, 1)
    assert ended == [(4711, signal.SIGTERM), False]


def test_in_training_the_released_graph_takes_the_place_of_rpfnet(first):
    ours, theirs = (first(row_of(model, "", "bfloat16", "training", "32x32", 2)) for model in ("RPFNet", "released"))
    assert 0.5 * ours[0] < theirs[0] < 0.95 * ours[0]       # fewer products, the same losses and decoder
    assert ours[2] and not theirs[2]


@pytest.mark.parametrize(("error", "message"), [
    (SystemExit("usage: peer.py"), "SystemExit: usage: peer.py"),       # a peer that is a command
    (MemoryError(), "MemoryError: MemoryError"), (ValueError("one\ntwo"), "ValueError: one")])
def test_any_error_becomes_one_that_can_be_sent(monkeypatch, error, message):
    def fails():
        raise error
        yield

    monkeypatch.setattr(bench, "results", fails(), raising=False)
    with pytest.raises(RuntimeError, match=f"^{message}$"):
        bench.answer()


@pytest.mark.parametrize(("case", "expected"), [
    (row_of("released", KEPT), True), (row_of("released"), False), (row_of("RPFNet", "optimize()", "bfloat16"), True)])
def test_which_rows_keep_freed_memory(first, case, expected):
    assert first(case)[2] is expected
