"""Run artifacts on a device. This folder is sent to the device, which needs Python 3.8, numpy and a runtime."""

from hnas.export.device.privacy import silence

silence()  # before a module of this folder imports a runtime
