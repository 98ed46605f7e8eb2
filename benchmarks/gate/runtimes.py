"""Say whether the runtime of a backend can run on this machine, and in which version."""

from __future__ import annotations


def missing_runtime(backend: str) -> str | None:
    """Return why the runtime of ``backend`` cannot run here, with the install command; None where it can."""
    from hnas.export import backends

    return backends.load(backend).missing()


def require_runtime(backend: str) -> None:
    """Raise ``Unavailable``, with the install command, unless the runtime of ``backend`` can run here."""
    from hnas.export.device.errors import Unavailable

    reason = missing_runtime(backend)
    if reason:
        raise Unavailable(reason)


def runtime_versions(backend: str) -> dict[str, str]:
    """Return the versions of the runtime; empty where the runtime is not installed, as for another device."""
    from hnas.export import backends

    return {} if missing_runtime(backend) else dict(backends.load(backend).versions())
