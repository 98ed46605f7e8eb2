"""Test the profile of the GPU of this machine, with a compiled stand-in for NVIDIA's driver."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from hnas import hw_profiles
from hnas.hw_profiles import at_hand

DRIVER = """
#include <string.h>
int cuInit(unsigned flags) {{ return {init}; }}
int cuDeviceGet(int *device, int ordinal) {{ *device = 5; return ordinal; }}
int cuDeviceGetAttribute(int *value, int attribute, int device) {{
    switch (attribute) {{
        case 13: *value = {clock}; break;
        case 16: *value = {sms}; break;
        case 36: *value = {memory}; break;
        case 37: *value = {bus}; break;
        case 75: *value = {major}; break;
        case 76: *value = {minor}; break;
        default: return 1;
    }}
    return device != 5;
}}
int cuDeviceGetName(char *name, int length, int device) {{ strncpy(name, "Planted GPU", length); return device != 5; }}
int cuDeviceTotalMem_v2(unsigned long *bytes, int device) {{ *bytes = 16ul << 30; return device != 5; }}
"""
A100 = {"init": 0, "clock": 1_410_000, "sms": 108, "memory": 1_215_000, "bus": 5120, "major": 8, "minor": 0}


@pytest.fixture
def plant(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Return a function that compiles a driver with the given figures, and makes it the driver of this machine."""
    if shutil.which("cc") is None:
        pytest.skip("there is no C compiler for the stand-in of the driver")

    def planted(**changed: int) -> None:
        (tmp_path / "driver.c").write_text(DRIVER.format(**{**A100, **changed}))
        library = tmp_path / f"cuda{len(list(tmp_path.iterdir()))}.so"  # a name that is open already is not read again
        subprocess.run(["cc", "-shared", "-fPIC", "-o", library, tmp_path / "driver.c"], check=True)
        monkeypatch.setattr(at_hand, "_DRIVER", str(library))
        at_hand.gpu_figures.cache_clear()

    return planted


def test_a_planted_gpu_has_the_peaks_of_its_data_sheet(plant: Callable[..., None]) -> None:
    plant()
    found = hw_profiles.load("cuda")
    assert (found.name, found.title, found.compute_capability, found.local) == ("cuda", "Planted GPU", "8.0", True)
    sheet = {"fp32": 19_500, "tf32": 156_000, "fp16": 312_000, "int8": 624_000}  # NVIDIA A100, dense
    assert found.peaks == pytest.approx(sheet, rel=0.01)
    assert found.bandwidth == pytest.approx(1555, rel=0.01)
    assert found.memory == 16384
    hw_profiles._check_figures(found)
    with pytest.raises(ValueError, match="cuda has no power modes"):
        hw_profiles.load("cuda", "MAXN")


def test_a_gpu_of_a_later_kind_is_read_as_the_last_one_known(plant: Callable[..., None]) -> None:
    plant(major=12, minor=1, sms=48)
    assert hw_profiles.load("cuda").peaks["fp16"] == pytest.approx(512 * 48 * 1.41 * 2)
    plant(major=7, minor=0)
    assert hw_profiles.load("cuda").precisions == ("fp32", "fp16")


@pytest.mark.parametrize(
    ("figures", "why"),
    [
        ({"init": 100}, "the driver reports no GPU"),
        ({"sms": 0}, "the driver tells 0 for attribute 16"),
        ({"major": 6, "minor": 1}, r"Planted GPU has compute capability 6\.1"),
    ],
)
def test_no_usable_gpu_is_one_line(plant: Callable[..., None], figures: dict[str, int], why: str) -> None:
    plant(**figures)
    with pytest.raises(
        ValueError, match=rf"^target cuda is the GPU of this machine, and {why}: not run on a device here; "
    ):
        hw_profiles.load("cuda")


def test_no_driver_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(at_hand, "_DRIVER", "libnowhere.so.1")
    at_hand.gpu_figures.cache_clear()
    with pytest.raises(
        ValueError, match=r"libnowhere\.so\.1 is not installed: not run on a device here; run hnas on"
    ) as caught:
        hw_profiles.load("cuda")
    assert "\n" not in str(caught.value)
