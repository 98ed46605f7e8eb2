"""The calls that every session of ONNX Runtime shares: ``class _OnnxRuntime(SessionRunner)``."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from hnas.export.device.signature import NamedOutputs, name_outputs, read_inputs

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from hnas.export.device.artifact import Artifact


class SessionRunner:
    """Run an artifact in a session of ONNX Runtime; a subclass opens it and binds inputs to its device."""

    def __init__(self, artifact: Artifact, session: Any) -> None:
        self.artifact = artifact
        self._session = session
        self._inputs = [value.name for value in session.get_inputs()]
        self._outputs = [value.name for value in session.get_outputs()]

    def __call__(self, *inputs: NDArray[Any], **named: NDArray[Any]) -> NamedOutputs:
        """Return the outputs for ``inputs``."""
        values = read_inputs(self.artifact, inputs, named)
        return name_outputs(self.artifact, self._session.run(self._outputs, dict(zip(self._inputs, values))))
