"""The jobs and the commands of docs/ci.md: files obey schemas, and the shell of every step runs on a small suite.

``pip`` and ``apt-get`` are replaced by programs that only write down their words.
"""

from __future__ import annotations

import os
import re
import shlex
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Any

import pytest

from hnas.benchmarks import cli
from tests.benchmarks.bundles import bundle, network
from tests.benchmarks.gate.suites import models, write

yaml = pytest.importorskip("yaml")
pytest.importorskip("onnxruntime")

DOCS = Path(__file__).parents[3] / "docs"
SCHEMAS = {"github-actions.yml": "vendor.github-workflows", "gitlab-ci.yml": "vendor.gitlab-ci"}
SHELLS = {"bash": ("bash", "--noprofile", "--norc", "-eo", "pipefail"), None: ("bash", "-e")}  # as GitHub starts them
RIGHT = {"name": "small", "artifact": "light", "max_size": "1MB"}
WRONG = {**RIGHT, "max_size": "1KB"}
DOUBTFUL = {"name": "points", "artifact": "good", "max_points_less": 1}  # the package has no such images


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = models(tmp_path_factory.mktemp("templates"))
    programs = folder / "bin"
    programs.mkdir()
    for name, text in (
        ("hnas-bench", f'exec {shlex.quote(sys.executable)} -m hnas.benchmarks "$@"'),
        ("pip", 'printf "%s\\n" "pip $*" >> installed'),
        ("apt-get", 'printf "%s\\n" "apt-get $*" >> installed'),
    ):
        (programs / name).write_text(f"#!/bin/sh\n{text}\n")
        (programs / name).chmod(0o755)
    return folder


def lint(path: Path) -> subprocess.CompletedProcess[str]:
    """Check a job against the schema of its CI system. The package has the schemas, so nothing is fetched."""
    words = [sys.executable, "-m", "check_jsonschema", "--builtin-schema", SCHEMAS[path.name], str(path)]
    return subprocess.run(words, capture_output=True, text=True, timeout=240, check=False)


@pytest.mark.parametrize(
    ("name", "right", "wrong"),
    [
        ("github-actions.yml", "timeout-minutes:", "timeout_minutes:"),
        ("gitlab-ci.yml", "allow_failure:", "allow-failure:"),
    ],
)
def test_a_job_obeys_the_schema_of_its_system(tmp_path: Path, name: str, right: str, wrong: str) -> None:
    pytest.importorskip("check_jsonschema")
    assert set(SCHEMAS) == {each.name for each in (DOCS / "ci").iterdir()}
    done = lint(DOCS / "ci" / name)
    assert done.returncode == 0, done.stdout + done.stderr
    text = (DOCS / "ci" / name).read_text("utf-8")
    assert text.count(right) == 1
    (tmp_path / name).write_text(text.replace(right, wrong))
    refused = lint(tmp_path / name)
    assert refused.returncode == 1
    assert f"'{wrong[:-1]}' was unexpected" in refused.stdout


def shell(root: Path, words: tuple[str, ...], script: str) -> subprocess.CompletedProcess[str]:
    """Run a script of a CI system in the folder of the suite."""
    environment = {**os.environ, "PATH": f"{root / 'bin'}:{os.environ['PATH']}", "GITHUB_STEP_SUMMARY": "summary"}
    return subprocess.run(
        [*words, "-c", script], cwd=root, env=environment, capture_output=True, text=True, timeout=240, check=False
    )


def clean(root: Path) -> None:
    for name in ("summary", "speed.jsonl", "hnas-bench.xml", "hnas-bench.md", "hnas-bench.html", "installed"):
        (root / name).unlink(missing_ok=True)


@pytest.mark.parametrize(
    ("claim", "code", "said"), [(RIGHT, 0, "holds"), (WRONG, 1, "fails"), (DOUBTFUL, 0, "inconclusive")]
)
def test_github_actions(root: Path, claim: dict[str, object], code: int, said: str) -> None:
    job = yaml.safe_load((DOCS / "ci" / "github-actions.yml").read_text())
    assert set(job) == {"name", True, "permissions", "jobs"}  # YAML 1.1 reads the key "on" as true
    (steps,) = (each["steps"] for each in job["jobs"].values())
    assert all(("uses" in step) != ("run" in step) for step in steps)
    assert all(re.fullmatch(r"actions/[\w-]+(/\w+)?@v\d+", step["uses"]) for step in steps if "uses" in step)
    clean(root)
    write(root, claim, name="speed.toml", header="")
    install, measure, show = (shell(root, SHELLS[step.get("shell")], step["run"]) for step in steps if "run" in step)
    assert (install.returncode, measure.returncode, show.returncode) == (0, code, 0), measure.stderr + show.stderr
    assert "pip install hnas[onnxruntime] @ git+https://" in (root / "installed").read_text()
    assert (root / "summary").read_text().startswith(f"### hnas-bench: {said}\n")
    assert ("::warning::" in measure.stdout) == (said == "inconclusive")
    assert said in show.stdout
    (kept,) = (step["with"]["path"] for step in steps if step.get("uses", "").startswith("actions/upload"))
    assert all((root / name).is_file() for name in kept.split())
    read, saved = (step for step in steps if step.get("uses", "").startswith("actions/cache"))
    assert [step["uses"].split("@")[0] for step in (read, saved)] == ["actions/cache/restore", "actions/cache/save"]
    assert read["with"]["key"] == saved["with"]["key"]
    assert "run_attempt" in saved["with"]["key"], "a key is saved once, and a job may be started again"
    assert (root / saved["with"]["path"]).is_file()
    assert [step.get("if") for step in steps[-3:]] == ["always()"] * 3


@pytest.mark.parametrize("program", [("bash", "-eo", "pipefail"), ("sh", "-e")], ids=["bash", "sh"])
@pytest.mark.parametrize(("claim", "code"), [(RIGHT, 0), (WRONG, 1), (DOUBTFUL, 4)])
def test_gitlab(root: Path, claim: dict[str, object], code: int, program: tuple[str, ...]) -> None:
    (job,) = yaml.safe_load((DOCS / "ci" / "gitlab-ci.yml").read_text()).values()
    assert job["allow_failure"] == {"exit_codes": [4]}
    assert job["artifacts"]["reports"]["junit"] == "hnas-bench.xml"
    clean(root)
    write(root, claim, name="speed.toml", header="")
    done = shell(root, program, "\n".join(job["before_script"] + job["script"]))
    assert done.returncode == code, done.stderr
    after = shell(root, program, "\n".join(job["after_script"]))
    assert after.returncode == 0
    assert "small" in after.stdout or "points" in after.stdout
    assert all((root / name).is_file() for name in job["artifacts"]["paths"] + job["cache"]["paths"])


def test_a_broken_suite_stops_both(root: Path) -> None:
    (root / "speed.toml").write_text("[[claim]]\nnam = 'a'\n")
    github = yaml.safe_load((DOCS / "ci" / "github-actions.yml").read_text())["jobs"]["hnas-bench"]["steps"]
    gitlab = yaml.safe_load((DOCS / "ci" / "gitlab-ci.yml").read_text())["hnas-bench"]["script"]
    measure = next(step["run"] for step in github if "hnas-bench run" in step.get("run", ""))
    for script in (measure, "\n".join(gitlab)):
        clean(root)
        assert shell(root, SHELLS["bash"], script).returncode == 2
        assert "<error" in (root / "hnas-bench.xml").read_text()


def typed() -> list[str]:
    """Return the commands of the page, in order."""
    return re.findall(r"^    (hnas-bench .*)$", (DOCS / "ci.md").read_text("utf-8"), re.MULTILINE)


def test_the_commands_of_the_page(tmp_path: Path, steady: None, capsys: Any, monkeypatch: Any) -> None:
    """Run the commands of the page as they are typed, on the suite that it shows."""
    page = (DOCS / "ci.md").read_text("utf-8")
    (suite,) = re.findall(r"^```toml\n# speed\.toml\n(.*?)^```", page, re.MULTILINE | re.DOTALL)
    (tmp_path / "nets").mkdir()
    for name, width in (("before", 48), ("after", 4)):
        network(tmp_path / name, width)
        (tmp_path / name / "model.onnx").rename(tmp_path / "nets" / f"{name}.onnx")
    (tmp_path / "bundles").mkdir()
    bundle(tmp_path / "bundles", "photos", target="onnxruntime-cpu")
    (tmp_path / "bundles" / "data").rename(tmp_path / "photos")
    shapes = suite.replace("1x3x224x224", "1x1x28x28")
    assert shapes != suite
    (tmp_path / "speed.toml").write_text(shapes)
    monkeypatch.chdir(tmp_path)
    for name in ("out/fashion", "bundles/fashion", "out/before", "out/after"):
        Path(name).parent.mkdir(exist_ok=True)
        bundle(Path(name).parent, Path(name).name)
    for name in ("net_fp32", "net_int8"):
        shutil.copy("nets/after.onnx", f"{name}.onnx")
    assert len(typed()) >= 10
    for line in typed():
        words = shlex.split(line.partition(" > ")[0].replace("1x3x224x224", "1x1x28x28"))
        assert cli.main(words[1:]) == 0, f"{line}\n{capsys.readouterr()}"
    names = {name for claim in tomllib.loads(suite)["claim"] for name in claim}
    assert len(names) > 8, "the suite of the page shows most keys"


def test_the_page_names_every_key() -> None:
    from dataclasses import fields

    from hnas.benchmarks.gate.suite import Suite, SuiteClaim

    section = (DOCS / "ci.md").read_text("utf-8").partition("\n## A suite of claims\n")[2]
    missing = [each.name for kind in (Suite, SuiteClaim) for each in fields(kind) if f"`{each.name}" not in section]
    assert missing == ["claim"]  # shown as [[claim]]
