"""`sweep.html` in headless Chromium: no error, no request, every figure drawn, hostile names inert.

Skipped where Playwright or Chromium is missing, as `tests/runs/test_page_in_a_browser.py`.
"""

import shutil

import numpy as np
import pytest

from lora_cls.report.sweep import write_sweep_page
from lora_cls.runs import Scores

pytest.importorskip("optuna")
sync_api = pytest.importorskip("playwright.sync_api")
CHROMIUM = next(
    (path for name in ("chromium", "chromium-browser", "google-chrome") if (path := shutil.which(name))), None
)
pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="no Chromium on the path")
HOSTILE = [
    "</script><script>window.harmed = 1</script>",
    '"><img src=x onerror="window.harmed = 1">',
    "\u202egnorw <b>",
]


@pytest.fixture(scope="module")
def browser():
    with sync_api.sync_playwright() as playwright:
        found = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield found
        found.close()


@pytest.fixture
def opened(browser):
    """Function that opens the page of a search, and fails at the end on any message of the console and any request."""
    contexts, said, requests = [], [], []

    def open_page(search, **options):
        context = browser.new_context(**options)
        contexts.append(context)
        page = context.new_page()
        page.on("console", lambda message: said.append(message.text))
        page.on("pageerror", lambda error: said.append(str(error)))
        page.on("request", lambda request: requests.append(request.url))
        page.goto(write_sweep_page(search).resolve().as_uri())
        page.wait_for_timeout(300)
        return page

    yield open_page
    for context in contexts:
        context.close()
    assert said == []
    assert [url for url in requests if not url.endswith(".html")] == []


@pytest.fixture(scope="module")
def search(make_search, some_trials, tmp_path_factory):
    return make_search(tmp_path_factory.mktemp("sweep") / "mine", some_trials())


def all_drawn(page):
    return page.locator("[data-figure]").count() == page.locator("[data-figure] .plot:has(svg)").count()


@pytest.mark.parametrize("options", [
    {"color_scheme": "light"}, {"color_scheme": "dark"}, {"viewport": {"width": 390, "height": 844}},
])  # fmt: skip
def test_every_figure_is_drawn(opened, search, options):
    """Light, dark and on a phone: all figures drawn and named, nothing wider than the page."""
    page = opened(search, **options)
    assert all_drawn(page)
    assert page.locator("[data-figure]").count() == 5 + 4
    named = page.locator("[data-figure] svg[role=img]").evaluate_all("a => a.map(e => e.ariaLabel)")
    assert len(named) == 9 and all(named)
    assert page.evaluate("document.documentElement.scrollWidth") <= page.viewport_size["width"]
    ground = page.evaluate("getComputedStyle(document.body).backgroundColor")
    dark = np.mean([float(part) for part in ground[4:-1].split(",")]) < 128
    assert dark == (options.get("color_scheme") == "dark")
    figure = page.locator("[data-figure=slice] svg").first
    figure.scroll_into_view_if_needed()
    box = figure.bounding_box()
    for share in np.linspace(0.15, 0.95, 30):  # where a dot is near
        page.mouse.move(box["x"] + share * box["width"], box["y"] + 0.4 * box["height"])
        if page.locator("[aria-label=tip] path").count():
            break
    fill = page.locator("[aria-label=tip] path").first.evaluate("e => getComputedStyle(e).fill")
    assert (np.mean([float(part) for part in fill[4:-1].split(",")]) < 128) == dark


def test_every_choice_draws(opened, search):
    """Whatever is chosen above a figure is drawn; labels and trials in every order."""
    page = opened(search)
    for select in page.locator("select").all():
        for value in select.locator("option").evaluate_all("a => a.map(e => e.value)"):
            select.select_option(value)
            assert all_drawn(page)


def test_a_cell_of_the_heat_table_says_its_score(opened, search):
    """Pointed at, the first cell in the order of numbers is the first label of the first complete trial."""
    page = opened(search)
    page.select_option("#heat-by", "number")
    page.select_option("#heat-shown", "value")
    page.locator("[data-figure=heat]").scroll_into_view_if_needed()
    corner = page.locator("[data-figure=heat] svg g path").first.evaluate(
        "e => { const box = e.parentNode.getBoundingClientRect(); return [box.left + 3, box.top + 3]; }"
    )
    page.mouse.move(*corner)
    first = next(trial for trial in search.trials if trial.state == "complete")
    f1 = Scores.read(search.files.run(first.number) / "metrics.json").cross_fitted.per_label[0].f1
    assert f"joy\u2069, trial {first.number}: {f1:.3f} (median" in page.locator("#heat-cell").inner_text()


def test_tables_sort(opened, search):
    """Trials by their score, the greatest first; those without one stand last."""
    page = opened(search)
    page.locator("#trials thead button", has_text="macro-F1").click()
    cells = page.locator("#trials tbody tr td:nth-child(3)").evaluate_all("a => a.map(e => e.dataset.value)")
    scores = [float(cell) for cell in cells if cell]
    assert scores == sorted(scores, reverse=True) and cells[len(scores) :] == [""] * 7


@pytest.mark.parametrize("n", [0, 1, 2])
def test_a_search_that_has_hardly_begun(opened, make_search, some_trials, tmp_path, n):
    """No trial, one, two: no error, and what is there is drawn."""
    page = opened(make_search(tmp_path / "s", some_trials(n)))
    assert all_drawn(page)
    assert page.locator("#result h2").is_visible()


def test_trials_that_went_wrong_altogether(opened, make_search, some_trials, tmp_path):
    """Infinite losses, equal scores, and choices that no range has: no error."""
    trials = some_trials(12)
    for i, trial in enumerate(trials):
        trial["score"] = float("inf") if i == 0 else 0.5
    assert all_drawn(opened(make_search(tmp_path / "s", trials, objective="loss")))


def test_hostile_names_are_inert(opened, make_search, some_trials, tmp_path):
    """Labels, fields, choices, recipe and reasons: nothing runs or becomes an element; they can be read."""
    field = f"lora.{HOSTILE[0]}"
    space = {"train.learning_rate": {"low": 1e-5, "high": 1e-3, "log": True}, field: {"choices": HOSTILE}}
    trials = some_trials(16)
    for i, trial in enumerate(trials):
        trial["params"] = {"train.learning_rate": trial["params"]["train.learning_rate"], field: HOSTILE[i % 3]}
        trial["reason"] = HOSTILE[i % 3]
    search = make_search(tmp_path / "<i>s", trials, space=space, label_names=HOSTILE, recipe=HOSTILE[1])
    phone = opened(search, viewport={"width": 390, "height": 844})
    assert phone.evaluate("document.documentElement.scrollWidth") == 390
    page = opened(search, viewport={"width": 1280, "height": 5000})
    assert all_drawn(page)
    for figure in page.locator("[data-figure] .plot > svg").all():  # tips are drawn where one points
        box = figure.bounding_box()
        for share in (0.2, 0.5, 0.8):
            page.mouse.move(box["x"] + share * box["width"], box["y"] + share * box["height"])
    assert page.evaluate("window.harmed") is None
    assert page.locator("img, b, i").count() == 0
    assert page.locator("script").count() == 4
    assert HOSTILE[0] in page.locator("#labels tbody td:first-child").all_inner_texts()
    assert HOSTILE[1] in page.locator("td.reason").all_inner_texts()
