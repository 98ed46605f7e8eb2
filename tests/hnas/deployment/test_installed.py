"""Test the lines of doctor on versions: outside the range of hnas, or newer than any that it was run with."""

from __future__ import annotations

import json
import tomllib
from importlib.metadata import version
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.version import Version

from hnas.cli import deploy_main
from hnas.deployment import installed

ROOT = Path(__file__).resolve().parents[3]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]


def pretend(monkeypatch: pytest.MonkeyPatch, lines: list[str], record: dict[str, list[str]], **versions: str) -> None:
    """Put other ranges, another record and other installed versions in place."""
    monkeypatch.setattr(installed, "requires", lambda name: lines)
    monkeypatch.setattr(installed, "version", lambda name: versions[name])
    monkeypatch.setattr(installed, "_tested", lambda: record)


def test_a_version_outside_the_range_is_named_with_the_command_that_mends_it(monkeypatch):
    pretend(monkeypatch, ['torch<3,>=2.6; extra == "export"', "numpy>=2.0"], {}, torch="2.5.1+cpu", numpy="2.0")
    assert installed.remarks() == [
        "torch 2.5.1+cpu is installed, hnas needs torch<3,>=2.6; pip install 'torch<3,>=2.6'"
    ]


def test_a_version_newer_than_any_that_hnas_was_run_with_is_named(monkeypatch):
    record = {"torch": ["2.6.0", "2.15.0"], "numpy": ["2.0.0", "2.4.6"]}
    pretend(monkeypatch, ["torch<3,>=2.6", "numpy>=2.0"], record, torch="2.16.0", numpy="2.4.9")
    assert installed.remarks() == ["torch 2.16.0 is newer than any version that hnas was run with (2.6.0 to 2.15.0)"]


def test_doctor_prints_the_remarks(monkeypatch, capsys):
    pretend(monkeypatch, [], {"Python": ["3.8.0", "3.9.1"]})
    assert deploy_main(["doctor"]) == 0
    assert "is newer than any version that hnas was run with (3.8.0 to 3.9.1)" in capsys.readouterr().out


def test_extras_of_ours_markers_and_packages_that_are_absent_are_passed_over(monkeypatch):
    lines = ['hnas[export]; extra == "search"', 'absent>=9; platform_machine == "x86_64" and extra == "rtx"']
    lines += ["pytest>=999; extra == 'dev'", 'numpy[all]>=999; extra == "b"']
    monkeypatch.setattr(installed, "requires", lambda name: lines)
    monkeypatch.setattr(installed, "_tested", dict)
    numpy = version("numpy")
    assert installed.remarks() == [f"numpy {numpy} is installed, hnas needs numpy>=999; pip install 'numpy>=999'"]


def test_an_installation_without_metadata_has_no_ranges(monkeypatch):
    def missing(name: str) -> list[str]:
        raise installed.PackageNotFoundError(name)

    monkeypatch.setattr(installed, "requires", missing)
    monkeypatch.setattr(installed, "_tested", dict)
    assert installed.remarks() == []


def test_every_range_of_the_project_is_compared_as_packaging_does():
    groups = (PROJECT["dependencies"], *PROJECT["optional-dependencies"].values())
    wanted = {Requirement(line) for group in groups for line in group} - {None}
    versions = ("0.6.1.3", "0.6.2", "0.9.9", "0.10.0", "1", "1.17", "2.0.0", "2.6", "2.13.0+cpu", "3.0", "2026.4.1")
    for requirement in wanted:
        for each in versions:
            theirs = requirement.specifier.contains(Version(each))
            assert installed.admits(str(requirement.specifier), each) is theirs, f"{requirement} {each}"


def test_another_comparison_is_refused():
    with pytest.raises(ValueError, match=r"cannot compare with '~=1.2'; known: >=1.2, <2, ==1.2 and ==1.2"):
        installed.admits("~=1.2", "1.2")


def test_the_record_names_dependencies_and_a_low_and_a_high_version_each():
    record = json.loads((ROOT / "hnas" / "assets" / "tested.json").read_text())
    groups = (PROJECT["dependencies"], *PROJECT["optional-dependencies"].values())
    ranges = {Requirement(line).name: Requirement(line).specifier for group in groups for line in group}
    for name, (low, high) in record.items():
        assert Version(low) <= Version(high)
        assert name == "Python" or (ranges[name].contains(low) and ranges[name].contains(high)), name
