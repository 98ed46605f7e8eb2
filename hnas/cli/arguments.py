"""Parse arguments: errors in one line, and help texts that several commands share."""

from __future__ import annotations

import argparse
from typing import NoReturn

PRECISION = "auto, fp32, fp16, bf16, int8, mixed (int8, blocks in float) or w8 (weights alone; default: the device's)"
HOST = "verify and measure on this device: ssh://[user@]device[:port][/path/of/python] or adb://[serial]"


class Parser(argparse.ArgumentParser):
    """An ArgumentParser whose errors are one line."""

    def error(self, message: str) -> NoReturn:
        """The message alone, exit code 2."""
        self.exit(2, f"{self.prog}: {message}; see {self.prog} --help\n")
