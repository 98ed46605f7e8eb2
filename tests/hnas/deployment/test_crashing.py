"""A search whose converter really dies: each crash costs one subnet, and the run ends with its bundle."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

import hnas
from hnas.deployment import flow
from hnas.deployment.pricing import FAILED
from hnas.export.bundle.bundle import read_bundle
from tests.hnas import photos

pytestmark = pytest.mark.slow

# Imported by every Python that starts with this folder on its path; only the compiler's child minds. Its conversions
# are counted in a file, as each death starts a new child: the first is the largest subnet's.
HOOK = '''
import os, resource, signal, sys
from importlib.machinery import PathFinder

FOLDER = os.path.dirname(os.path.abspath(__file__))


def segfault():
    import ctypes
    sys.stderr.write("converter: 3 nodes to go\\n")
    sys.stderr.flush()
    ctypes.string_at(0)


def killed():
    os.kill(os.getpid(), signal.SIGKILL)  # as the kernel does where the machine is out of memory


def memory():
    used = int(open("/proc/self/statm").read().split()[5]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_DATA, (used + 2**26, used + 2**26))
    held = [bytearray(2**22) for _ in range(10_000)]


class Finder:
    """Lets the module load as ever, and puts a function before its own."""

    def find_spec(self, name, path, target=None):
        if name != "hnas.export.backends.onnxruntime.convert":
            return None
        spec = PathFinder.find_spec(name, path)
        load = spec.loader.exec_module

        def exec_module(module):
            load(module)
            convert = module.compile

            def compile(*given, **named):
                with open(os.path.join(FOLDER, "conversions"), "a+") as file:
                    file.write("x")
                    file.flush()
                    number = file.tell()
                made = convert(*given, **named)  # an artifact that is whole, and nobody will hear of it
                {2: segfault, 3: killed, 4: memory}.get(number, int)()
                return made

            module.compile = compile

        spec.loader.exec_module = exec_module
        return spec


if "hnas.export.compiling.conversion" in sys.orig_argv:
    sys.meta_path.insert(0, Finder())
'''


def test_a_search_survives_a_converter_that_dies_three_ways(
    trained: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    hook = tmp_path / "hook"
    hook.mkdir()
    (hook / "sitecustomize.py").write_text(HOOK)
    monkeypatch.setenv("PYTHONPATH", str(hook))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(flow, "PROCESSES", 1)
    monkeypatch.setattr(flow, "BLOCKS", 2)
    options: dict[str, Any] = {"precision": "fp32", "budget": "6evals", "out": tmp_path / "run"}
    found = hnas.deploy("onnxruntime-cpu", supernet=trained / "trained", data=trained / "photos", **options)
    said = {key: line for key, line in photos.journal(tmp_path / "run").items() if key.startswith(FAILED)}
    segfault, killed, memory = map(str, said.values())
    start = "onnxruntime cannot compile a subnet to fp32:"
    assert segfault.startswith(f"{start} the compiler died with SIGSEGV on 'compile'")
    assert segfault.endswith(": converter: 3 nodes to go")  # the tail of its log
    assert killed.startswith(f"{start} the compiler died with SIGKILL on 'compile' (memory limit")
    assert memory.startswith(f"{start} MemoryError")
    assert "\n" not in segfault + killed + memory
    assert len((hook / "conversions").read_text()) > 4 + 2  # other candidates were priced, finalists were built
    dead = {key.removeprefix(FAILED) for key in said}
    assert found.result.arch.digest not in dead
    assert read_bundle(tmp_path / "run" / "bundle").artifact().digest == found.bundle.artifact().digest
    again = hnas.deploy(
        "onnxruntime-cpu", supernet=trained / "trained", data=trained / "photos", **options, resume=True
    )
    assert json.dumps(again.to_json(), default=str) == json.dumps(found.to_json(), default=str)
