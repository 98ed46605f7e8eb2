"""The description of a machine tells generations of a CPU apart."""

from __future__ import annotations

import platform

import pytest

from hnas.export.device import machine
from hnas.export.device.machine import Machine


def test_the_machine_at_hand() -> None:
    here = Machine.here()
    assert here.cpu
    assert here.cores >= 1


X86 = """processor : 0
vendor_id	: AuthenticAMD
cpu family	: 25
model		: 17
model name	: AMD EPYC
stepping	: 1
flags		: fpu sse4_2 avx2 nonsense avx512_vnni

processor : 1
cpu family	: 25
model		: 17
model name	: AMD EPYC
"""
ARM = """processor	: 0
Features	: fp asimd asimddp
CPU implementer	: 0x41
CPU part	: 0xd05
processor	: 1
Features	: fp asimd asimddp i8mm
CPU implementer	: 0x41
CPU part	: 0xd0d
Model		: Pixel 8
"""


@pytest.mark.parametrize(
    ("text", "processor"),
    [
        (X86, "AMD EPYC, family 25 model 17 stepping 1, sse4_2 avx2 avx512_vnni"),
        (X86.replace(": 25", ": 26"), "AMD EPYC, family 26 model 17 stepping 1, sse4_2 avx2 avx512_vnni"),
        (ARM, "Pixel 8, implementer 0x41 part 0xd05+0xd0d, asimd asimddp i8mm"),
        ("", platform.processor() or platform.machine()),
        ("model name :\nstepping\n", platform.processor() or platform.machine()),
    ],
    ids=["x86", "its next generation", "ARM", "nothing", "empty"],
)
def test_generations_of_a_cpu_are_told_apart(monkeypatch: pytest.MonkeyPatch, text: str, processor: str) -> None:
    monkeypatch.setattr(machine, "_text", lambda path: text if path.name == "cpuinfo" else "")
    assert Machine.here().processor == processor


@pytest.mark.parametrize(
    ("system", "instructions", "overflow"),
    [
        ("Linux x86_64", ("avx2",), True),
        ("Linux x86_64", ("avx2", "avx512_vnni"), False),
        ("Linux x86_64", ("avx2", "avx_vnni"), False),
        ("Linux x86_64", (), True),  # not known: the safe side
        ("Linux aarch64", ("asimd",), False),
        ("Linux aarch64", (), False),
    ],
)
def test_sums_overflow_on_x86_without_vnni(system: str, instructions: tuple[str, ...], overflow: bool) -> None:
    assert Machine("", 1, system, "3.11", "", instructions).sums_overflow is overflow


def test_onnxruntime_takes_exact_kernels_only_where_sums_overflow(monkeypatch: pytest.MonkeyPatch) -> None:
    """With VNNI they take twice as long and change nothing; without, int8 has 9 dB instead of 50."""
    pytest.importorskip("onnxruntime")
    from hnas.export.device.runtimes.onnxruntime import session_options

    monkeypatch.setattr(Machine, "sums_overflow", True)
    assert session_options(1).get_session_config_entry("session.x64quantprecision") == "1"
    monkeypatch.setattr(Machine, "sums_overflow", False)
    with pytest.raises(RuntimeError, match="x64quantprecision"):
        session_options(1).get_session_config_entry("session.x64quantprecision")
