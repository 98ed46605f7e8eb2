"""Call `export.compile` with the fields of its `CompileOptions` as plain arguments: what parametrised tests pass."""

from dataclasses import fields
from typing import Any

from hnas import export


def compile_flat(network: Any, example_inputs: Any = None, **named: Any) -> export.Artifact:
    known = {field.name for field in fields(export.CompileOptions)}
    chosen = export.CompileOptions(**{name: value for name, value in named.items() if name in known})
    plain = {name: value for name, value in named.items() if name not in known}
    return export.compile(network, example_inputs, options=chosen, **plain)
