"""Describe a machine: CPU, revision, instruction sets, cores, system. ``Machine.here()`` describes this one."""

from __future__ import annotations

import os
import platform
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Tuple

# Keys of /proc/cpuinfo: x86 has the first three, ARM the others.
_REVISION = {
    "cpu family": "family",
    "model": "model",
    "stepping": "stepping",
    "CPU implementer": "implementer",
    "CPU variant": "variant",
    "CPU part": "part",
    "CPU revision": "revision",
}
_INSTRUCTIONS = (
    *("sse4_2", "avx", "f16c", "fma", "avx2", "avx_vnni", "avx512f", "avx512bw", "avx512vl", "avx512_vnni"),
    *("avx512_bf16", "avx512_fp16", "amx_tile", "amx_int8", "amx_bf16"),
    *("asimd", "fphp", "asimdhp", "asimddp", "i8mm", "bf16", "sve", "sve2", "sme"),
)


@dataclass(frozen=True)
class Machine:
    """Describe the machine on which figures were taken.

    ``cpu``: the name that the system reports. Cloud machines may hide it; then ``revision`` and ``instructions`` tell
    CPU generations apart.
    ``cores``: the number of CPU cores that this process may use.
    ``revision``: family, model and stepping; on ARM implementer, variant, part and revision of each kind of core.
    ``instructions``: the instruction sets by which runtimes choose kernels.
    """

    cpu: str
    cores: int
    os: str
    python: str
    revision: str = ""
    instructions: Tuple[str, ...] = ()

    @property
    def processor(self) -> str:
        """Return everything that identifies the CPU, in one line. Machines with equal lines run the same kernels."""
        return ", ".join(filter(None, (self.cpu, self.revision, " ".join(self.instructions))))

    @property
    def sums_overflow(self) -> bool:
        """Return whether the CPU may add products of u8 and s8 in 16 bits: x86 without VNNI, as far as is known."""
        x86 = self.os.endswith(("x86_64", "AMD64", "i686"))
        return x86 and not {"avx_vnni", "avx512_vnni", "amx_int8"} & set(self.instructions)

    @classmethod
    def here(cls) -> Machine:
        """Return the description of this machine."""
        text = _text(Path("/proc/cpuinfo"))
        board = _text(Path("/proc/device-tree/model")).strip("\0 \n")  # boards: NVIDIA Jetson Orin Nano ...
        named = next(iter(_stated(text, "model name|Model")), "")
        cpu = board or named or platform.processor() or platform.machine()
        parts = {word: _stated(text, key) for key, word in _REVISION.items()}
        revision = " ".join(f"{word} {'+'.join(found)}" for word, found in parts.items() if found)
        known = {word for line in _stated(text, "flags|Features") for word in line.split()}
        cores = len(os.sched_getaffinity(0))
        system = f"{platform.system()} {platform.machine()}"
        instructions = tuple(word for word in _INSTRUCTIONS if word in known)
        return cls(cpu, cores, system, platform.python_version(), revision, instructions)


def _text(path: Path) -> str:
    try:
        return path.read_text("utf-8", "replace")
    except OSError:  # absent, or a phone forbids reading it
        return ""


def _stated(text: str, key: str) -> list[str]:
    """Return the distinct values of the key pattern ``key`` in /proc/cpuinfo. Phones have several kinds of core."""
    found = re.findall(rf"^(?:{key})[ \t]*:[ \t]*(\S.*?)[ \t]*$", text, re.MULTILINE)
    return list(dict.fromkeys(found))
