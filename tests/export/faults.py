"""Plant a fault in a converter, for the tests of diagnosis; ``python -m tests.export.faults`` is hnas-deploy with it.

ONNX files of a process that called ``install`` have SiLU where the program has hard-swish.
"""

import sys
from dataclasses import replace

import torch
from torch import fx

from hnas.export.graph.program import Program
from hnas.export.onnx import file as onnx_file

aten = torch.ops.aten


def install() -> None:
    """Plant the fault in this process."""
    write = onnx_file.write_program

    def faulty(program: Program, *args, **kwargs) -> None:
        graph = fx.Graph()
        graph.output(graph.graph_copy(program.module.graph, {}))
        for node in graph.nodes:
            if node.target is aten.hardswish.default:
                node.target = aten.silu.default
        write(replace(program, module=fx.GraphModule(program.module, graph)), *args, **kwargs)

    onnx_file.write_program = faulty


if __name__ == "__main__":  # hnas-deploy with the fault in it
    from hnas.cli import deploy_main

    install()
    sys.exit(deploy_main(sys.argv[1:]))
