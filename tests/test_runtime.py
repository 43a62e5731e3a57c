"""The machine: devices, malloc's settings, and how processes share work (torchrun itself: test_distributed.py)."""
import sys
from types import SimpleNamespace

import pytest
import torch

import trainer
from recipe import TrainingError
from support import runtime
from support.console import first_line
from support.records import device_name, short_hash
from support.runtime import Team, check_device, has_bfloat16

# --- several processes ---


def members(world):
    for rank in range(world):
        member = Team()
        member.rank, member.world = rank, world
        yield member


def test_the_shares_make_up_the_whole():
    assert [list(member.share(range(7))) for member in members(3)] == [[0, 3, 6], [1, 4], [2, 5]]


def test_one_process_has_everything_and_needs_no_other():
    alone = Team()
    alone.join()        # without torchrun
    assert alone.share([1, 2]) == [1, 2] and alone.gathered([1, 2]) == [1, 2]
    x = torch.ones(2)
    assert alone.sum(x) is x


@pytest.mark.parametrize("count", [0, 1, 5, 6])
def test_gathered_shares_are_in_the_order_before_sharing(monkeypatch, count):
    shares = [list(member.share(list(range(count)))) for member in members(2)]

    def all_gather(parts, own):
        assert own in shares
        parts[:] = shares
    monkeypatch.setattr(runtime.distributed, "all_gather_object", all_gather)
    for member, share in zip(members(2), shares):
        assert member.gathered(share) == list(range(count))


# --- devices and errors ---


def test_devices_that_cannot_be_used_are_named_in_one_line(monkeypatch):
    check_device("cpu")
    with pytest.raises(ValueError, match="device cuda:99: ") as error:
        check_device("cuda:99")
    assert "\n" not in str(error.value)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    for device, why in (("gpu", "unknown; choose cpu or cuda"), ("cuda", "PyTorch finds no CUDA GPU here; use cpu")):
        with pytest.raises(ValueError) as error:
            check_device(device)
        assert str(error.value) == f"device {device}: {why}"


def test_a_numbered_gpu_becomes_the_current_one(monkeypatch):
    chosen = []
    monkeypatch.setattr(runtime, "check_device", lambda device: None)
    monkeypatch.setattr(torch.cuda, "set_device", chosen.append)
    for device in ("cpu", "cuda", "cuda:1"):
        runtime.use_device(device)
    assert chosen == ["cuda:1"]


def test_two_processes_on_one_gpu_are_refused_before_nccl_fails(monkeypatch):
    network = SimpleNamespace(parameters=lambda: iter([SimpleNamespace(device=torch.device("cuda"))]))
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 0)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda _: SimpleNamespace(uuid="A"))
    monkeypatch.setattr(runtime.team, "world", 3)
    monkeypatch.setattr(runtime.team, "gathered", lambda own: [*own, "B", "A"])
    with pytest.raises(TrainingError, match="3 processes, but only 2 GPUs"):
        trainer.in_parallel(network)


def test_with_torchrun_a_device_has_no_number(monkeypatch):
    monkeypatch.setattr(runtime.team, "world", 2)
    check_device("cpu")
    with pytest.raises(ValueError, match="device cuda:1: torchrun gives each process a GPU of its own; use cuda"):
        check_device("cuda:1")


@pytest.mark.parametrize(("error", "line"), [(ValueError("first\nsecond"), "first"), (MemoryError(), "MemoryError"),
                                             (RuntimeError("  \n "), "RuntimeError")])
def test_an_error_in_one_line(error, line):
    assert first_line(error) == line


def test_a_device_is_not_called_a_cpu_if_it_is_none():
    assert device_name(torch.device("cpu")) == f"cpu, {torch.get_num_threads()} threads"
    assert device_name(torch.device("meta")) == "meta"


@pytest.mark.skipif(not hasattr(torch.backends, "fp32_precision"), reason="older PyTorch has one setting only")
def test_convolutions_are_exact_also_if_the_program_has_chosen_tf32():
    program, cudnn = torch.backends, torch.backends.cudnn
    before = program.fp32_precision, cudnn.conv.fp32_precision, cudnn.rnn.fp32_precision
    try:
        program.fp32_precision = "tf32"
        runtime.exact_convolutions()
        assert cudnn.conv.fp32_precision == "ieee" and not cudnn.allow_tf32
    finally:
        program.fp32_precision, cudnn.conv.fp32_precision, cudnn.rnn.fp32_precision = before


# --- memory ---


@pytest.mark.parametrize("error", [
    MemoryError(), torch.OutOfMemoryError("CUDA out of memory"), RuntimeError("cuFFT error: CUFFT_ALLOC_FAILED"),
    RuntimeError("cuFFT error: CUFFT_INTERNAL_ERROR"), RuntimeError("cuDNN error: CUDNN_STATUS_INTERNAL_ERROR"),
    RuntimeError("GET was unable to find an engine to execute this computation"),
    RuntimeError("DefaultCPUAllocator: not enough memory: you tried to allocate 8 bytes.")])
def test_errors_for_lack_of_memory(error):
    assert runtime.lacks_memory(error)


@pytest.mark.parametrize("error", [RuntimeError("no C++ compiler was found"), ValueError("out of memory"),
                                   RuntimeError("cuDNN error: CUDNN_STATUS_BAD_PARAM")])
def test_errors_that_have_another_reason(error):
    assert not runtime.lacks_memory(error)


@pytest.mark.skipif(sys.platform != "linux", reason="malloc is set on Linux alone")
@pytest.mark.parametrize(("limit", "expected"), [
    (2**40, {runtime.M_MMAP_THRESHOLD: runtime.LARGEST_KEPT, runtime.M_TRIM_THRESHOLD: 2**31 - 1}),
    (2**25, {runtime.M_MMAP_THRESHOLD: 2**25, runtime.M_TRIM_THRESHOLD: 2**31 - 1}),    # glibc before 2.35
    (0, {}),        # trimming alone would make things worse
])
def test_malloc_is_told_what_it_takes(monkeypatch, limit, expected):
    told = {}

    class Libc:
        def mallopt(self, key, value):
            if key == runtime.M_MMAP_THRESHOLD and value > limit:
                return 0
            told[key] = value
            return 1

    monkeypatch.setattr(runtime.ctypes, "CDLL", lambda _: Libc())
    runtime.keep_freed_memory()
    assert told == expected


@pytest.mark.skipif(sys.platform != "linux", reason="malloc is set on Linux alone")
def test_a_libc_without_mallopt_is_left_alone(monkeypatch):
    monkeypatch.setattr(runtime.ctypes, "CDLL", lambda _: object())     # musl
    runtime.keep_freed_memory()


# --- bfloat16 ---


@pytest.mark.parametrize(("instructions", "expected"), [
    ({"avx2": True, "avx512_bf16": False, "amx_bf16": False}, False), ({"avx2": True, "avx512_bf16": True}, True),
    ({"avx512_bf16": False, "amx_bf16": True}, True), ({"neon": True, "bf16": False}, False),
    ({"neon": True, "bf16": True}, True), ({}, True)], ids=str)
def test_a_cpu_has_bfloat16_by_its_instructions(monkeypatch, instructions, expected):
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: instructions, raising=False)
    assert has_bfloat16("cpu") is expected


def test_a_cpu_of_which_nothing_is_told_counts_as_one_that_has_it(monkeypatch):
    monkeypatch.delattr(torch.cpu, "get_capabilities", raising=False)
    assert has_bfloat16(torch.device("cpu"))


@pytest.mark.parametrize("real", [True, False])
def test_a_gpu_that_imitates_bfloat16_does_not_have_it(monkeypatch, real):
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation=True: including_emulation or real)
    assert has_bfloat16("cuda:1") is real


def test_a_hash_depends_on_the_limits_of_its_parts():
    assert short_hash(b"ab", b"c") != short_hash(b"a", b"bc")
