"""Files that a kill at any moment leaves whole: written aside, then renamed."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import Tensor


def write_text(file: Path, text: str) -> None:
    """Write ``text`` so that ``file`` is either as before or complete."""
    aside = file.with_name(f".{file.name}.{os.getpid()}")
    with aside.open("w", encoding="utf-8") as stream:
        stream.write(text)
        stream.flush()
        os.fsync(stream.fileno())
    aside.replace(file)


def write_json(file: Path, value: Any) -> None:
    """Write ``value`` as indented JSON, whole or not at all."""
    write_text(file, json.dumps(value, indent=1) + "\n")


def read_json(file: Path) -> dict[str, Any]:
    """The JSON object in ``file``; one line says what is wrong with it otherwise."""
    try:
        value = json.loads(file.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise FileNotFoundError(f"no file {file}") from None
    except RecursionError:
        raise ValueError(f"{file} cannot be read as JSON: nested too deeply") from None
    except (OSError, UnicodeDecodeError, json.JSONDecodeError) as error:
        raise ValueError(f"{file} cannot be read as JSON: {error}") from None
    if not isinstance(value, dict):
        raise ValueError(f"{file} holds a JSON {type(value).__name__}, expected an object")
    return value


def write_tensors(file: Path, tensors: Mapping[str, Tensor], metadata: Mapping[str, str]) -> None:
    """Write contiguous clones as safetensors, whole or not at all."""
    from safetensors.torch import save_file

    aside = file.with_name(f".{file.name}.{os.getpid()}")
    save_file({name: t.detach().clone().contiguous() for name, t in tensors.items()}, aside, dict(metadata))
    aside.chmod(0o644)  # safetensors writes for its owner alone
    with aside.open("rb") as stream:
        os.fsync(stream.fileno())
    aside.replace(file)


def read_tensors(file: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    """The tensors and metadata of a safetensors file; one line says what is wrong with it otherwise."""
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(file, framework="pt") as reader:
            tensors = {name: reader.get_tensor(name) for name in reader.keys()}  # noqa: SIM118  # it does not iterate
            return tensors, dict(reader.metadata() or {})
    except FileNotFoundError:
        raise FileNotFoundError(f"no file {file}") from None
    except (SafetensorError, OSError) as error:
        raise ValueError(f"{file} is no whole safetensors file: {error}") from None
