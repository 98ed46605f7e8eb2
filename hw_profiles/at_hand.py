"""Describe the NVIDIA GPU of this machine: ``hw_profiles.Device(**gpu_figures())``.

The figures come from NVIDIA's driver and from tables of what a streaming multiprocessor (SM) does in one cycle.
"""

from __future__ import annotations

import ctypes
from functools import cache
from typing import Any

NAME = "cuda"
_DRIVER = "libcuda.so.1"
_BAND = (0.3, 3.0)  # our assumption: no row checks a prediction for such a GPU
_LAUNCH_US = 4.0  # our assumption
# CUdevice_attribute of cuda.h
_CLOCK_KHZ, _SMS, _MEMORY_KHZ, _BUS_BITS, _MAJOR, _MINOR = 13, 16, 36, 37, 75, 76
# Compute capability -> multiply-adds of one SM in one cycle, dense: on the CUDA cores in fp32, on the tensor cores in
# fp16. Sources: NVIDIA's architecture white papers (peak rate / SMs / boost clock / 2).
_PER_CYCLE = {
    (7, 0): (64, 512),
    (7, 5): (64, 512),
    (8, 0): (64, 1024),
    (8, 6): (128, 512),
    (8, 7): (128, 1024),
    (8, 9): (128, 512),
    (9, 0): (128, 2048),
    (10, 0): (128, 4096),
    (12, 0): (128, 512),
}


@cache
def gpu_figures() -> dict[str, Any]:
    """Return the fields of the profile of the first GPU. Its latency is measured; the figures serve predictions only.

    Raises:
        ValueError: there is no NVIDIA driver, or no GPU, or one that is older than Volta.
    """
    driver = _driver()
    gpu = ctypes.c_int()
    if driver.cuInit(0) != 0 or driver.cuDeviceGet(ctypes.byref(gpu), 0) != 0:
        raise ValueError(_no_gpu("the driver reports no GPU"))

    def attribute(number: int) -> int:
        value = ctypes.c_int()
        if driver.cuDeviceGetAttribute(ctypes.byref(value), number, gpu) != 0:
            raise ValueError(_no_gpu(f"the driver does not tell attribute {number}"))
        if value.value <= 0 and number != _MINOR:
            raise ValueError(_no_gpu(f"the driver tells {value.value} for attribute {number}"))
        return value.value

    name, memory = ctypes.create_string_buffer(128), ctypes.c_size_t()
    driver.cuDeviceGetName(name, len(name), gpu)
    driver.cuDeviceTotalMem_v2(ctypes.byref(memory), gpu)
    capability = attribute(_MAJOR), attribute(_MINOR)
    known = [each for each in _PER_CYCLE if each <= capability]
    if not known:
        raise ValueError(_no_gpu(f"{name.value.decode()} has compute capability {capability[0]}.{capability[1]}"))
    cores, tensor = _PER_CYCLE[max(known)]
    cycles = attribute(_SMS) * attribute(_CLOCK_KHZ) * 1e3 * 2 / 1e9
    tf32 = {"tf32": tensor / 2 * cycles} if capability >= (8, 0) else {}
    int8 = {"int8": 2.0 * tensor * cycles} if capability >= (7, 5) else {}
    return dict(
        name=NAME,
        title=name.value.decode("utf-8", "replace"),
        kind="gpu",
        backend="tensorrt",
        backends=("tensorrt",),
        precisions=("fp32", "fp16", *(("int8",) if int8 else ())),
        peaks={"fp32": cores * cycles, **tf32, "fp16": tensor * cycles, **int8},
        bandwidth=2.0 * attribute(_MEMORY_KHZ) * 1e3 * attribute(_BUS_BITS) / 8 / 1e9,
        memory=memory.value / 2**20,
        launch_us=_LAUNCH_US,
        band=_BAND,
        local=True,
        compute_capability=f"{capability[0]}.{capability[1]}",
        sources=(
            "the driver: SMs, clocks, bus; peaks derived from the compute capability; launch_us, band: our assumption",
        ),
    )


def _driver() -> Any:
    try:
        return ctypes.CDLL(_DRIVER)
    except OSError:
        raise ValueError(_no_gpu(f"{_DRIVER} is not installed")) from None


def _no_gpu(why: str) -> str:
    mend = "run hnas on a machine with an NVIDIA GPU of 2017 or newer and its driver, or choose a jetson target"
    return f"target {NAME} is the GPU of this machine, and {why}: not run on a device here; {mend}"
