"""Check one small program on one backend: ``holds(bench, "openvino", function, (1, 8), layer=nn.Linear(8, 8))``."""

import torch

from hnas.export import backends
from hnas.export.diagnosis.trial import Setting
from tests.conftest import need
from tests.export.programs import program_of

IMAGE = (1, 2, 6, 6)


def holds(bench, backend, function, *shapes, precision="fp32", passes=None, **parts):
    """Assert that the program gives the same result on the backend as in torch."""
    need(backend, backends.load(backend).missing())
    program = program_of(function, *shapes, **{name: part.eval() for name, part in parts.items()})
    generator = torch.Generator().manual_seed(1)
    calls = [tuple(torch.randn(shape, generator=generator) for shape in shapes) for _ in range(4)]
    found = bench.judge(program, calls, Setting(backend, precision, passes=passes))
    assert found.outcome == "holds", found.line
