"""The page of a run in a real browser: it opens, draws, answers the pointer, and prints."""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from making import make_config
from report.browser import CHROMIUM, Tab, browser
from report.runs import decide_run, long_run, packets, record, write_run

from tamiyo_jax.report import read_run, render_page

pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="chromium is not installed")

# Pixels of a figure that are no shade of grey: its axes are nearly grey, what it shows is not.
COLOURED = """
Array.from(document.querySelectorAll('.figure')).filter((one) => one.checkVisibility())
.map((one) => {
  const canvas = one.querySelector('canvas');
  const data = canvas.getContext('2d').getImageData(0, 0, canvas.width, canvas.height).data;
  let coloured = 0;
  for (let i = 0; i < data.length; i += 4) {
    const most = Math.max(data[i], data[i + 1], data[i + 2]);
    const least = Math.min(data[i], data[i + 1], data[i + 2]);
    if (data[i + 3] > 100 && most - least > 60) coloured++;
  }
  return [one.id, coloured];
})
"""
FIGURES = (
    "losses",
    "accuracy",
    "parameters",
    "lanes",
    "contributions",
    "heat",
    "signals",
    "latency",
)


@pytest.fixture(scope="module")
def tab() -> Iterator[Tab]:
    with browser() as opened:
        yield opened


@pytest.fixture(scope="module")
def a_page(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("page")
    run = decide_run(directory / "run", packets(60, broken=(30, 31)))
    return write(directory / "page.html", run)


def write(file: Path, *directories: Path) -> Path:
    runs = [read_run(directory) for directory in directories]
    file.write_text(render_page(runs, made_ns=time.time_ns()), encoding="utf-8")
    return file


def middle(tab: Tab, figure: str) -> tuple[float, float, float]:
    """Left edge, width and vertical middle of a figure's plane, scrolled into the window."""
    box = tab.run(
        f"(() => {{ const over = document.querySelector('#run-0-{figure} .u-over');"
        "over.scrollIntoView({block: 'center'}); const b = over.getBoundingClientRect();"
        "return [b.left, b.width, b.top + b.height / 2]; })()"
    )
    return box[0], box[1], box[2]


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_a_page_opens_without_a_word_in_the_console_and_every_figure_has_marks(
    tab: Tab, a_page: Path, scheme: str
):
    tab.problems.clear()
    tab.colours(scheme)
    tab.open(a_page)
    marks = dict(tab.run(COLOURED))
    assert tab.problems == []
    assert sorted(marks) == sorted(f"run-0-{figure}" for figure in FIGURES)
    assert all(coloured > 100 for coloured in marks.values()), marks


def test_the_page_is_dark_where_the_reader_prefers_that(tab: Tab, a_page: Path):
    background = {}
    for scheme in ("light", "dark"):
        tab.colours(scheme)
        tab.open(a_page)
        background[scheme] = tab.run("getComputedStyle(document.body).backgroundColor")
    assert background == {"light": "rgb(255, 255, 255)", "dark": "rgb(20, 23, 27)"}


@pytest.mark.parametrize("figure", FIGURES)
def test_the_pointer_shows_the_values_of_its_place(tab: Tab, a_page: Path, figure: str):
    tab.open(a_page)
    left, width, y = middle(tab, figure)
    tab.point(left + width * 0.25, y)
    tab.point(left + width * 0.75, y)
    tip = tab.run(f"document.querySelector('#run-0-{figure} .tip').innerText")
    shown = tab.run(f"document.querySelector('#run-0-{figure} .tip').style.display")
    assert shown == "block"
    assert tip.startswith("step 4")
    assert any(character.isdigit() for line in tip.splitlines()[1:] for character in line) or (
        "s0" in tip
    )
    tab.point(1, 1)
    hidden = tab.run(f"document.querySelector('#run-0-{figure} .tip').style.display")
    assert hidden == "none"


def test_the_pointer_on_a_decision_shows_what_was_done_and_why(tab: Tab, a_page: Path):
    tab.open(a_page)
    left, width, y = middle(tab, "losses")
    tab.point(left + 1, y)
    tab.point(left + width * 29 / 59, y)  # step 300 of 10 to 600
    tip = tab.run("document.querySelector('#run-0-losses .tip').innerText")
    assert "ROLLBACK to step-10" in tip
    assert "a loss in the packet is NaN or infinite" in tip


def test_dragging_zooms_all_figures_and_a_double_click_zooms_out(tab: Tab, a_page: Path):
    tab.open(a_page)
    left, width, y = middle(tab, "losses")
    tab.drag(left + width * 0.5, left + width * 0.75, y)
    scales = "plots.map((one) => [one.scales.x.min, one.scales.x.max])"
    zoomed = tab.run(scales)
    assert all(300 < low < high < 460 for low, high in zoomed), zoomed
    x = left + width / 2
    for count in (1, 2):
        for kind in ("mousePressed", "mouseReleased"):
            tab.point(x, y, kind, button="left", clickCount=count)
    assert tab.run(scales) == [[10, 600]] * len(FIGURES)


def test_decisions_can_be_searched(tab: Tab, a_page: Path):
    tab.open(a_page)
    rows = "document.querySelectorAll('#run-0-decisions tr').length - 1"
    everything = tab.run(rows)
    tab.run(
        "(() => { const box = document.querySelector('#run-0-decisions input');"
        "box.value = 'rollback'; box.dispatchEvent(new Event('input')); })()"
    )
    assert tab.run(rows) == 2 < everything


def test_a_page_prints_in_dark_ink_on_white_and_goes_back(tab: Tab, a_page: Path):
    tab.colours("dark")
    tab.open(a_page)
    printed = tab.print()
    assert printed.startswith(b"%PDF")
    assert len(printed) > 20_000
    assert tab.run("theme === DARK")


def test_several_runs_are_compared_in_one_page(tab: Tab, tmp_path: Path):
    pair = [
        decide_run(tmp_path / "guarded", packets(20), mode="guard"),
        decide_run(tmp_path / "broken", packets(40, broken=[15])),
    ]
    tab.problems.clear()
    tab.open(write(tmp_path / "page.html", *pair))
    marks = dict(tab.run(COLOURED))
    assert sorted(marks) == [
        f"compared-{figure}"
        for figure in ("accuracy", "parameters", "training_loss", "validation_loss")
    ]
    tab.run("document.querySelectorAll('details.run')[1].open = true")
    tab.run("new Promise((done) => setTimeout(done, 100))")
    marks = dict(tab.run(COLOURED))
    assert len(marks) == 4 + len(FIGURES)
    assert all(coloured > 100 for coloured in marks.values()), marks
    assert tab.problems == []


def test_ids_that_are_markup_stay_text(tab: Tab, tmp_path: Path):
    evil = "</script><script>window.broken = 1</script><img src=x onerror='window.broken = 1'>"
    packet = packets(1)[0]
    seeds = (replace(packet.seeds[0], seed_id=evil), packet.seeds[1])
    metrics = {f"layer/{evil}/gradient_norm": 1.0, **packet.training_metrics}
    run = decide_run(
        tmp_path / "a<b>&amp;",
        [
            replace(other, seeds=seeds, training_metrics=metrics, training_run_id=evil)
            for other in packets(6)
        ],
    )
    tab.problems.clear()
    tab.open(write(tmp_path / "page.html", run))
    assert tab.run("window.broken === undefined")
    assert tab.run("document.querySelector('h1').textContent") == "a<b>&amp;"
    assert tab.run(f"document.body.textContent.includes({evil!r})")
    assert tab.problems == []


def test_runs_that_lack_something_have_the_figures_that_they_can_have(tab: Tab, tmp_path: Path):
    some = packets(20)
    config = make_config(storage={"record_packets": False})
    steps = [
        record(n, replace(packet, validation_loss=None)) for n, packet in enumerate(some, start=1)
    ]
    runs = {
        "empty": write_run(tmp_path / "empty", []),
        "one": decide_run(tmp_path / "one", some[:1]),
        "seedless": decide_run(tmp_path / "seedless", packets(20, seeds=False), mode="guard"),
        "packetless": decide_run(tmp_path / "packetless", some, config=config),
        "unvalidated": write_run(tmp_path / "unvalidated", steps),
    }
    tab.problems.clear()
    figures = {}
    for name, run in runs.items():
        tab.open(write(tmp_path / "page.html", run))
        figures[name] = {
            figure.removeprefix("run-0-") for figure, marks in tab.run(COLOURED) if marks
        }
    assert tab.problems == []
    assert figures["empty"] == set()
    assert figures["one"] >= {"heat", "losses"}
    assert figures["seedless"] == set(FIGURES) - {"lanes", "contributions"}
    assert figures["packetless"] == {"signals", "latency"}
    assert figures["unvalidated"] >= {"losses", "lanes"}


@pytest.mark.slow
@pytest.mark.parametrize("every", [10, 1])
def test_a_run_of_a_hundred_thousand_steps_is_a_page_of_less_than_five_megabytes(
    tab: Tab, tmp_path: Path, every: int
):
    file = tmp_path / "page.html"
    run = long_run(tmp_path, 100_000, every)
    file.write_text(render_page([run], made_ns=time.time_ns()), encoding="utf-8")
    assert file.stat().st_size < 5e6
    tab.problems.clear()
    tab.open(file)
    assert tab.run("document.querySelector('.count').textContent").startswith(
        f"200 of {100_000 // every:,}"
    )
    assert all(coloured > 100 for _, coloured in tab.run(COLOURED))
    assert tab.problems == []
