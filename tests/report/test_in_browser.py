"""The page in a browser, at the width of a telephone and of a desk; skipped without a browser."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from reallm_compiler.execute.run import compile_model
from reallm_compiler.report import write_report
from tests.report.browser import Browser, find_browser, open_browser

PROGRAM = find_browser()
pytestmark = pytest.mark.skipif(PROGRAM is None, reason="no Chromium on this machine")

LOWEST_CONTRAST = """
(() => {
  const channel = (v) => (v /= 255) <= 0.03928 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4;
  const light = ([r, g, b]) => 0.2126 * channel(r) + 0.7152 * channel(g) + 0.0722 * channel(b);
  const parse = (text) => text.match(/[\\d.]+/g).map(Number);
  const behind = (node) => {
    const layers = [];
    for (let one = node; one; one = one.parentElement) {
      const [r, g, b, a = 1] = parse(getComputedStyle(one).backgroundColor);
      layers.push([r, g, b, a]);
      if (a === 1) break;
    }
    return layers.reverse().reduce((below, [r, g, b, a]) =>
      [r, g, b].map((v, i) => v * a + below[i] * (1 - a)), [255, 255, 255]);
  };
  let lowest = 21;
  const names = "h1,h2,h3,p,td,th,li,a,summary,pre,dt,dd,caption,svg text";
  for (const node of document.querySelectorAll(names)) {
    if (!node.textContent.trim()) continue;
    const style = getComputedStyle(node);
    const ink = parse(node.ownerSVGElement ? style.fill : style.color).slice(0, 3);
    const [a, b] = [light(ink), light(behind(node))].sort((x, y) => y - x);
    lowest = Math.min(lowest, (a + 0.05) / (b + 0.05));
  }
  return lowest;
})()
"""


@pytest.fixture(scope="module")
def page(tiny_llama: Path, tiny_recipe: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("pages")
    archive = folder / "<img src=x onerror=document.title='hacked'>.reallm"
    compile_model(tiny_recipe, model=tiny_llama, output=archive, workers=1, progress=False)
    write_report([archive], folder / "r.html", reference=tiny_llama)
    return folder / "r.html"


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    assert PROGRAM is not None
    with open_browser(PROGRAM) as opened:
        yield opened


@pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
@pytest.mark.parametrize("width", [390, 1400])
def test_it_fits_and_can_be_read(browser: Browser, page: Path, width: int, dark: bool) -> None:
    browser.entries.clear()
    browser.open(page, width, dark=dark)
    assert browser.value("innerWidth") == width
    assert browser.value("document.documentElement.scrollWidth") <= width
    assert browser.value(LOWEST_CONTRAST) >= 4.5
    ground = browser.value("getComputedStyle(document.body).backgroundColor")
    assert ground == ("rgb(20, 23, 26)" if dark else "rgb(255, 255, 255)")
    assert browser.value("document.title").startswith("reallm: <img src=x")
    assert browser.value("document.querySelectorAll('img').length") == 0
    smallest = "Math.min(...[...document.querySelectorAll('svg text')].map("
    smallest += "(one) => one.getBoundingClientRect().height))"
    assert browser.value(smallest) >= 9
    assert browser.entries == []  # nothing was refused, and no script failed


def test_a_press_on_a_heading_sorts(browser: Browser, page: Path) -> None:
    browser.open(page, 1400)
    column = "[...document.querySelectorAll('table.sorted tbody tr')].map("
    column += "(row) => Number(row.cells[5].querySelector('data').value))"
    before = browser.value(column)
    browser.value("document.querySelectorAll('table.sorted thead button')[5].click()")
    assert before != sorted(before)
    assert browser.value(column) == sorted(before)
    browser.value("document.querySelectorAll('table.sorted thead button')[5].click()")
    assert browser.value(column) == sorted(before, reverse=True)


def test_without_scripts_everything_is_there(browser: Browser, page: Path) -> None:
    browser.open(page, 1400)
    rows = "document.querySelectorAll('tr').length"
    text = "document.querySelector('main').textContent"
    with_scripts = [browser.value(rows), browser.value(text)]
    browser.open(page, 1400, scripts=False)
    assert [browser.value(rows), browser.value(text)] == with_scripts
    assert browser.value("document.querySelectorAll('button').length") == 0
