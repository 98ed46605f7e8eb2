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
