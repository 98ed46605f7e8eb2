"""The report of a deployment: what it says, and how it behaves in a real browser."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from hnas.deployment.reporting import _precisions
from hnas.export.proof.inspection import Layer
from hnas.pages.bars import histogram
from hnas.pages.bench import bench_page
from hnas.pages.deployment import ReportFacts, deployment_page
from hnas.pages.scatter import Mark, scatter
from hnas.pages.shell import page

EVIL = "<img src=http://evil.invalid/x onerror=alert(1)>\x1b[2J"
COMMAND = "hnas-deploy --target onnxruntime-cpu --seed 0"


def row(name: str, precision: str, latency: float, accuracy: float | None, verdict: str) -> dict[str, Any]:
    return {
        "subnet": name, "precision": precision, "accuracy_fp32": accuracy, "accuracy": accuracy,
        "latency_ms": {"value": latency, "low": 0.9 * latency, "high": 1.1 * latency},
        "predicted_ms": {"value": 2 * latency, "low": 1.5 * latency, "high": 3 * latency, "basis": EVIL},
        "size_bytes": 10_000, "agreement": 0.99, "sqnr_db": 41.5, "grade": "close", "worst": "scores[:, 7]",
        "verdict": verdict,
    }  # fmt: skip


def table(*, judged: bool = True) -> dict[str, Any]:
    rows = [
        row("largest", "fp32", 3.0, 0.93 if judged else None, "baseline"),
        row("subnet a", "fp32", 1.5, 0.92 if judged else None, "slower than int8"),
        row("subnet a", "int8", 0.7, 0.91 if judged else None, "kept: the fastest"),
    ]
    front = [
        {"arch": {"stages.0.depth": n, "stages.0.blocks.0.op": "mbconv3", "size": 28},
         "metrics": {"latency_ms": 0.5 + 0.2 * n, "accuracy": 0.85 + 0.01 * n}}
        for n in range(6)
    ]  # fmt: skip
    return {
        "target": "onnxruntime-cpu", "name": f"net {EVIL}", "bundle": "x", "rows": rows, "notes": [EVIL],
        "refused": [{"precision": "bf16", "reason": EVIL}], "footnote": "n=2000", "searched": "int8",
        "arch": front[2]["arch"], "front": front,
    }  # fmt: skip


FACTS = ReportFacts(
    command=COMMAND,
    provenance=[("machine", EVIL)],
    intervals=[(0.918, 0.94), (0.907, 0.931), (0.897, 0.922)],
    times={"largest": [3.0, 3.1, 2.9] * 40, "kept": [0.7, 0.71, 0.9] * 40},
    layers=[(f"conv_{i}", 10.0 + i, "Conv f32") for i in range(80)],
    findings=["1 Relu not fused"],
    precisions=[("i8", 12, 75.0), (EVIL, 3, 25.0)],
    mixed=f"mixed precision was tried because {EVIL}",
    blocks=[(f"block{i}", 70.0 - i, i > 68) for i in range(70)] + [("lost", -3.0, True)],
)


def test_every_figure_is_in_the_text() -> None:
    text = deployment_page(table(), FACTS)
    for said in (
        "3 ms (2.7 to 3.3)", "outside of the band", "scores[:, 7]", "41.5 dB", "1 Relu not fused", "conv_79",
        f"{COMMAND} --max-latency 0.505ms", "stages.0", "largest (120 calls)", "bf16",
        ">75%<", "-3.0 dB, float", "2.0 dB, int8", "mixed precision was tried",
    ):  # fmt: skip
        assert said in text, said
    assert "conv_0<" not in text, "the slowest 60 layers are shown"
    assert ("block11<" in text, "block10<" in text) == (True, False), "the most sensitive 60 blocks are shown"
    assert text.index("lost<") < text.index("block69<") < text.index("block68<")
    assert len(text) < 3_000_000


def test_no_text_of_a_table_becomes_markup() -> None:
    text = deployment_page(table(), FACTS)
    assert "<img" not in text
    assert "\x1b" not in text
    assert text.count("&lt;img src=http") >= 6


def test_without_images_and_without_a_front() -> None:
    found = {key: value for key, value in table(judged=False).items() if key not in ("front", "arch", "searched")}
    text = deployment_page(found, ReportFacts(command=COMMAND, provenance=[]))
    assert "signal-to-noise ratio" in text
    assert "front of the search" not in text
    assert "<polyline" not in text
    assert "Sensitivity" not in text
    assert "share of their time" not in text


def test_kernels_are_counted_by_precision() -> None:
    kinds = (
        ("kernel", "f32", 2.0),
        ("kernel", "i8", 1.0),
        ("layout", "f32", 9.0),
        ("kernel", "i8", None),
        ("kernel", "", 4.0),
    )
    seen = [Layer("", "Conv", role, precision, us) for role, precision, us in kinds]
    assert list(_precisions(seen)) == [("i8", 2, 1.0), ("f32", 1, 2.0), ("not stated by the runtime", 1, 4.0)]


@pytest.mark.parametrize("values", [[1.0], [1.0, 1.0], [0.0, 5.0], [0.001, 1000.0], [-3.0, 4.0]])
def test_a_chart_of_any_values_has_its_points_inside(values: list[float]) -> None:
    marks = [Mark((v, v, v), (v, v, v), str(i), "") for i, v in enumerate(values)]
    drawn = scatter(marks, ("x", "y"), title="t")
    assert "nan" not in drawn
    import re

    spots = [tuple(map(float, each)) for each in re.findall(r'class="hit" cx="([\d.-]+)" cy="([\d.-]+)"', drawn)]
    assert len(spots) == len(values)
    assert all(0 < x < 720 and 0 < y < 420 for x, y in spots)
    assert [x for x, _ in spots] == sorted(x for x, _ in spots)


def test_a_histogram_counts_every_value() -> None:
    drawn = histogram({"a": [1.0, 1.0, 2.0, 50.0]}, "ms", "t")
    assert drawn.count("<rect") == 48
    assert "nan" not in histogram({"a": [1.0] * 3, "b": [1.0]}, "ms", "t")


def test_the_page_of_a_check_has_its_verdict_and_every_block() -> None:
    rounds = [[(2.0, 1.0), (2.2, 1.0)], [(1.9, 1.0)]]
    text = bench_page("hnas-bench check", [("verdict", EVIL)], rounds, '{"a": "</script>"}')
    assert "<img" not in text
    assert text.count("</script>") == 1
    assert "process 1, block 2: 2.200x" in text
    assert "process 2, block 1: 1.900x" in text
    many = bench_page("t", [], [[(1.0 + i / 1e4, 1.0) for i in range(5000)]], "{}")
    assert "Every 9th block is shown" in many
    assert len(many) < 3_000_000
    assert "Every block" not in bench_page("t", [("error", "x")], [], "{}")


# --- in a browser -----------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    api = pytest.importorskip("playwright.sync_api", reason="playwright is not installed; pip install playwright")
    program = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
    if program is None:
        pytest.skip("no chromium; apt-get install chromium")
    with api.sync_playwright() as started:
        opened = started.chromium.launch(executable_path=program, args=["--no-sandbox"])
        yield opened
        opened.close()


def opened(browser: Any, file: Path, **options: Any) -> tuple[Any, list[str]]:
    """Return the page in a new tab, and a list that grows by each request and each message of the console."""
    seen: list[str] = []
    tab = browser.new_page(**options)
    tab.set_default_timeout(240_000)  # a busy machine takes more than the 30 s of Playwright
    tab.on("request", lambda request: seen.append(request.url))
    tab.on("console", lambda message: seen.append(message.text))
    tab.on("pageerror", lambda error: seen.append(str(error)))
    tab.goto(file.as_uri())
    return tab, seen


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "report.html"
    path.write_text(deployment_page(table(), FACTS), "utf-8")
    return path


def test_the_browser_asks_for_nothing_and_complains_of_nothing(browser: Any, file: Path) -> None:
    tab, seen = opened(browser, file)
    tab.click('.mark[data-key="row-2"] .shape')
    assert seen == [file.as_uri()]
    tab.close()


def test_the_watch_sees_a_request_and_an_error(browser: Any, tmp_path: Path) -> None:
    planted = tmp_path / "planted.html"
    planted.write_text(page("t", "<img src='http://127.0.0.1:9/x'>", "throw new Error('planted')"), "utf-8")
    tab, seen = opened(browser, planted)
    assert any("planted" in each for each in seen[1:])
    assert any("Content Security Policy" in each for each in seen), "the policy does not stop the request"
    tab.close()


def test_a_click_opens_the_network_and_its_command(browser: Any, file: Path) -> None:
    tab, _ = opened(browser, file)
    assert not tab.locator("#row-2 pre").is_visible()
    tab.click('.mark[data-key="row-2"] .shape')
    assert tab.locator("#row-2 pre").inner_text().strip() == COMMAND
    assert "mbconv3" in tab.locator("#row-2 .flow").inner_text()
    assert tab.locator(".mark.chosen").get_attribute("data-key") == "row-2"
    assert tab.locator("#row-0 pre").count() == 0, "no command keeps the baseline"
    assert tab.locator("#row-1 pre").text_content().strip() == f"{COMMAND} --precision fp32"
    tab.locator('.mark[data-key="front-3"]').focus()
    tab.keyboard.press("Enter")
    assert "--max-latency 1.111ms" in tab.locator("#front-3 pre").inner_text()
    assert tab.locator(".mark.chosen").count() == 1
    tab.close()


def test_a_filter_hides_and_shows(browser: Any, file: Path) -> None:
    tab, _ = opened(browser, file)
    box = tab.locator('input[data-filter="artifact, int8"]')
    box.uncheck()
    assert not tab.locator('.mark[data-key="row-2"]').is_visible()
    assert tab.locator('.mark[data-key="row-1"]').is_visible()
    box.check()
    assert tab.locator('.mark[data-key="row-2"]').is_visible()
    tab.close()


def test_every_point_is_reached_with_the_keyboard(browser: Any, file: Path) -> None:
    tab, _ = opened(browser, file)
    reached = set()
    for _ in range(40):
        tab.keyboard.press("Tab")
        reached.add(tab.evaluate("document.activeElement.dataset.key"))
    assert {f"row-{i}" for i in range(3)} | {f"front-{i}" for i in range(6)} <= reached
    tab.close()


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_it_fits_a_phone_in_both_schemes(browser: Any, file: Path, tmp_path: Path, scheme: str) -> None:
    tab, _ = opened(browser, file, viewport={"width": 360, "height": 740}, color_scheme=scheme)
    assert tab.evaluate("document.documentElement.scrollWidth <= innerWidth")
    paper = tab.evaluate("getComputedStyle(document.body).backgroundColor")
    assert paper == {"light": "rgb(255, 255, 255)", "dark": "rgb(13, 17, 23)"}[scheme]
    assert len(tab.screenshot(path=tmp_path / "shot.png")) > 10_000
    tab.close()


def test_on_paper_everything_is_open(browser: Any, file: Path) -> None:
    tab, _ = opened(browser, file)
    assert len(tab.pdf()) > 10_000
    assert tab.evaluate("[...document.querySelectorAll('details')].every((each) => each.open)")
    tab.emulate_media(media="print")
    assert not tab.locator("fieldset").is_visible()
    tab.close()
