"""Open an artifact in this process: ``open_runner(runtime, artifact)``. Any error of a runtime becomes one line."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Mapping

from hnas.export.device.artifact import Artifact
from hnas.export.device.errors import ExportError, Unavailable, one_line

if TYPE_CHECKING:
    from hnas.export.device.runtimes import Runner, Runtime

_FLOOR_MB = {"tensorrt": 16384}  # its builder tries kernels; any other runtime: 2048
_SHARE = 0.8  # of the memory of the machine, at most


def open_runner(runtime: Runtime, artifact: Artifact) -> Runner:
    """Return the runner of ``artifact``.

    Raises:
        Unavailable: the runtime is not installed, or this machine lacks the precision.
        ValueError, ExportError: the runtime refuses the file.
    """
    missing = runtime.missing()
    if missing is not None:
        raise Unavailable(missing)
    try:
        return runtime.load(artifact)
    except ExportError:
        raise
    except Exception as error:  # the message of a runtime seldom names the file
        what = f"{artifact.backend} cannot open {artifact.source}{_other(artifact.versions, runtime)}"
        reason = one_line(error, 1000).replace(f"{artifact.path}/", "")
        # the cause is often at the end
        short = reason if len(reason) <= 200 else f"{reason[:100]} ... {reason[-95:]}"
        raise ExportError(f"{what}: {short}") from error


def memory_limit(artifact: Artifact, backend: str) -> int:
    """Return the memory, in MB, that the process that runs ``artifact`` in ``backend`` may allocate.

    2 GB (TensorRT: 16 GB) and eight times the bytes of files, inputs and outputs. A larger network needs an explicit
    ``memory_mb``.
    """
    tensors = sum(tensor.nbytes for tensor in (*artifact.inputs, *artifact.outputs))
    return _FLOOR_MB.get(backend, 2048) + 8 * (artifact.size_bytes + tensors) // 2**20


def limit_memory(megabytes: int) -> None:
    """Limit the memory that this process may allocate from now on (data segment), to 80 % of the machine's at most."""
    import resource

    machine = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    _, hard = resource.getrlimit(resource.RLIMIT_DATA)
    limit = min(int(megabytes) * 2**20, int(_SHARE * machine))
    # RLIMIT_AS would count memory that is only reserved. The hard limit stays: the next artifact may need more.
    resource.setrlimit(resource.RLIMIT_DATA, (limit if hard < 0 else min(limit, hard), hard))


def _other(built: Mapping[str, str], runtime: Runtime) -> str:
    """Return a note for an error if this machine has another version of the runtime than the artifact, else ""."""
    here = {name: version for name, version in runtime.versions().items() if built.get(name, version) != version}
    words = [f"made with {name} {built[name]}, here is {version}" for name, version in here.items()]
    return f" ({'; '.join(words)})" if words else ""
