"""The page in a real browser: nothing is fetched, nothing fails, the slider moves, its command does what it says."""

from __future__ import annotations

import json
import shlex
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from chain import succeed
from click.testing import CliRunner

from cryoforum_plugin.cli.main import main
from cryoforum_plugin.formats import read_particles

# every element of Bokeh lies in a shadow of its own
FIND_HANDLE = """
const search = root => {
  for (const one of root.querySelectorAll("*")) {
    if (one.classList.contains("noUi-handle")) return one
    const found = one.shadowRoot ? search(one.shadowRoot) : null
    if (found) return found
  }
  return null
}
return search(document)
"""
LINES = "return [...Bokeh.documents[0]._all_models.values()].filter(m => m.type === 'Span' && m.name).map(m => [m.name, m.location])"


@pytest.fixture
def folder(write_star: Any, project: Path) -> Path:
    """Return the current folder, with 300 predicted particles and training curves."""
    n, rng = 300, np.random.default_rng(3)
    half_set = rng.integers(1, 3, n)
    confidence = rng.beta(0.5, 0.5, n) ** half_set
    write_star(
        "predicted.star",
        {
            "rlnImageName": [f"{i + 1:06d}@stack.mrcs" for i in range(n)],
            "rlnOpticsGroup": [1] * n,
            "rlnAngleRot": np.round(rng.uniform(-180, 180, n), 3),
            "rlnAngleTilt": np.round(np.degrees(np.arccos(rng.uniform(-1, 1, n))), 3),
            "rlnAnglePsi": np.round(rng.uniform(-180, 180, n), 3),
            "rlnRandomSubset": half_set,
            "rlnParticleFigureOfMerit": [f"{value:.6f}" for value in confidence],
            "rlnAccuracyRotations": [f"{1 + 30 * (1 - value):.6f}" for value in confidence],
            "cryoforumCredibleRadius90": [f"{2 + 60 * (1 - value):.6f}" for value in confidence],
        },
    )
    (project / "config.json").write_text(json.dumps({"settings": {"symmetry": "C1"}}))
    (project / "metrics.csv").write_text(
        "epoch,train_loss,validation_loss,validation_median_deg\n1,2,3,40\n2,1,2,20\n"
    )
    (project / "log.txt").write_text("2026-01-01 10:00:00,000 WARNING dark particles <b>\n")
    (project / "fsc" / "all").mkdir(parents=True)
    (project / "fsc" / "all" / "fsc.csv").write_text(
        "resolution_A,fsc\n" + "".join(f"{96 / s},{1 / (1 + (s / 6) ** 6)}\n" for s in range(1, 17))
    )
    succeed("report", ".", "-o", "report.html")
    return project


@pytest.fixture
def page(browser: Any, folder: Path) -> Any:
    """Return the browser with the report open and drawn."""
    from selenium.webdriver.support.ui import WebDriverWait

    for log in ("browser", "performance"):
        browser.get_log(log)
    browser.get((folder / "report.html").as_uri())
    WebDriverWait(browser, 30).until(lambda b: b.execute_script("return window.Bokeh?.documents[0]?.is_idle"))
    return browser


def texts(page: Any) -> dict[str, str]:
    """What the page tells of the threshold, by the name of the place."""
    found = page.find_elements("css selector", "[id^=threshold-]")
    return {element.get_attribute("id").removeprefix("threshold-"): element.text for element in found}


def press(page: Any, key: str, times: int) -> None:
    """Press a key on the slider."""
    from selenium.webdriver.common.action_chains import ActionChains

    handle = page.execute_script(FIND_HANDLE)
    assert handle is not None
    page.execute_script("arguments[0].focus()", handle)
    ActionChains(page).send_keys(key * times).perform()


def requests(page: Any) -> list[str]:
    """Addresses that the browser asked for."""
    events = [json.loads(entry["message"])["message"] for entry in page.get_log("performance")]
    return [
        event["params"]["request"]["url"]
        for event in events
        if event["method"] == "Network.requestWillBeSent"
    ]


def test_the_page_fetches_nothing_and_no_script_fails(page: Any, folder: Path) -> None:
    from selenium.webdriver.common.keys import Keys

    press(page, Keys.ARROW_LEFT, 3)
    asked = [url for url in requests(page) if not url.startswith(("data:", "blob:"))]
    assert asked == [(folder / "report.html").as_uri()]
    assert [entry for entry in page.get_log("browser") if entry["level"] != "INFO"] == []
    assert page.execute_script("return performance.getEntriesByType('resource').length") == 0


def test_every_plot_is_drawn(page: Any) -> None:
    drawn = page.execute_script(
        "return Bokeh.documents[0].roots().filter(m => m.type === 'Figure').map(m => {"
        "const view = Bokeh.index.get_by_id ? Bokeh.index.get_by_id(m.id) : Bokeh.index[m.id];"
        "return [m.title.text, view.el.clientWidth, view.el.clientHeight]})"
    )
    titles = [title for title, _, _ in drawn]
    assert titles[:2] == ["Loss", "Validation error"]
    assert {"Mean expected error", "View coverage", "Predicted resolution", "FSC"} <= set(titles)
    assert all(width > 300 and height > 200 for _, width, height in drawn)


def test_warnings_stand_at_the_top(page: Any) -> None:
    headings = [element.text for element in page.find_elements("css selector", "h2")]
    assert headings[0] == "Warnings"
    assert page.find_element("css selector", ".warnings").text == "dark particles <b>"
    assert page.execute_script("return document.documentElement.scrollWidth <= window.innerWidth")


@pytest.mark.parametrize(("key", "times"), [("ARROW_RIGHT", 61), ("END", 1), ("HOME", 1)])
def test_the_command_keeps_exactly_what_the_slider_says(
    page: Any, folder: Path, key: str, times: int
) -> None:
    from selenium.webdriver.common.keys import Keys

    press(page, Keys.ARROW_RIGHT, 10)
    before, lines_before = texts(page), page.execute_script(LINES)
    press(page, getattr(Keys, key), times)
    after, lines_after = texts(page), page.execute_script(LINES)
    assert set(before) == {
        "particles-kept", "of-half-set-1", "of-half-set-2", "mean-expected-error", "view-coverage",
        "predicted-resolution", "command",
    }  # fmt: skip
    for name in ("particles-kept", "mean-expected-error", "command"):
        assert before[name] != after[name]
    assert lines_before != lines_after
    program, *arguments = shlex.split(after["command"])
    assert program == "cryoforum"
    output = Path(arguments[arguments.index("-o") + 1])
    result = CliRunner().invoke(main, [*arguments, "--json", "figures.json"])
    assert result.exit_code == 0, result.stderr
    counts = json.loads((folder / "figures.json").read_text())["counts"]
    for place, name in (
        ("particles-kept", "all"),
        ("of-half-set-1", "half set 1"),
        ("of-half-set-2", "half set 2"),
    ):
        kept, total = counts[name]["kept"], sum(counts[name].values())
        assert after[place] == f"{kept:,} of {total:,} ({100 * kept / total:.1f} %)"
    table = read_particles(output)
    assert table.prediction is not None
    assert table.prediction.expected_error_deg is not None
    assert after["mean-expected-error"] == f"{table.prediction.expected_error_deg.mean():.2f} deg"
    places = dict(lines_after)
    assert places["confidence"] == float(arguments[arguments.index("--min-confidence") + 1])
    assert places["kept"] == pytest.approx(100 * len(table) / 300)


def test_a_page_without_plots_needs_no_library(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps({"settings": {"symmetry": "C1"}}))
    succeed("report", tmp_path, "-o", tmp_path / "report.html")
    assert (tmp_path / "report.html").stat().st_size < 10_000
