"""Run artifacts on a device. The whole folder is sent there; it needs Python 3.8, numpy and a runtime."""

from hnas.export.device.privacy import silence

silence()  # before anything here imports a runtime
