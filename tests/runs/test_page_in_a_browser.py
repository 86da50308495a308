"""`report.html` in headless Chromium: no error, no request, sliders that say what scikit-learn says, tables that sort.

Skipped where Playwright or Chromium is missing (`pip install ".[browser]"`, and a `chromium` on the path).
"""

import json
import shutil

import numpy as np
import pytest
from sklearn.metrics import f1_score, precision_score, recall_score

from lora_cls.commands.cross_validation import cross_validate
from lora_cls.report.page import write_page
from lora_cls.runs import training_data

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
    """Function that opens a page, and fails at the end on any message of the console and any request."""
    contexts, said, requests = [], [], []

    def open_page(file, **options):
        context = browser.new_context(**options)
        contexts.append(context)
        page = context.new_page()
        page.on("console", lambda message: said.append(message.text))
        page.on("pageerror", lambda error: said.append(str(error)))
        page.on("request", lambda request: requests.append(request.url))
        page.goto(file.resolve().as_uri())
        page.wait_for_selector(".plot svg")
        return page

    yield open_page
    for context in contexts:
        context.close()
    assert said == []
    assert [url for url in requests if not url.endswith(".html")] == []


@pytest.fixture(scope="module")
def hostile(tmp_path_factory, emotion_table, tfidf_recipe):
    """The page, with texts, of a run whose names, ids and texts are attacks."""
    table = emotion_table(45).rename(columns=dict(zip(("joy", "anger", "fear"), HOSTILE, strict=True)))
    table["text"] = [f"{text} {HOSTILE[i % 3]}" for i, text in enumerate(table["text"])]
    table["id"] = [f"<img src=x onerror=harmed=1>{i}" for i in range(len(table))]
    run = cross_validate(
        tfidf_recipe(data__label_columns=HOSTILE), table, out=tmp_path_factory.mktemp("hostile") / "run"
    )
    return write_page(run, training_data(run, table))


def exact(page, card, name):
    return float(card.locator(f'output[data-of="{name}"]').get_attribute("data-exact"))


def test_sliders(opened, finished):
    """At the ends, in the middle and at every tenth stop: F1, precision, recall and the mean F1 are scikit-learn's."""
    run = finished("tfidf")
    page = opened(run.path / "report.html")
    oof = run.out_of_fold()
    rows, y_score = oof.rows, oof.y_score
    y_true = run.y_true[rows]
    shipped = json.loads((run.path / "thresholds.json").read_text())["shipped"]
    now = [shipped[name] for name in run.label_names]
    page.click(".open-all")

    def macro():
        return float(page.get_attribute("#macro", "data-exact"))

    def expected():
        return np.mean([f1_score(y_true[:, j], y_score[:, j] >= t, zero_division=0) for j, t in enumerate(now)])

    assert macro() == pytest.approx(expected(), abs=1e-12)
    for j in range(3):
        card = page.locator("details.label").nth(j)
        slider = card.locator("input")
        label = f"JSON.parse(document.getElementById('content').textContent).labels[{j}]"
        for stop in page.evaluate(f"{label}.thresholds")[::10]:
            slider.evaluate("(input, stop) => { input.value = stop; input.dispatchEvent(new Event('input')); }", stop)
            now[j] = exact(page, card, "threshold")
            assert now[j] == stop
            assert float(slider.evaluate("input => input.value")) == pytest.approx(stop)  # 0.40 stands at 40 %
            y_pred = y_score[:, j] >= now[j]
            for name, score in (("f1", f1_score), ("precision", precision_score), ("recall", recall_score)):
                assert exact(page, card, name) == pytest.approx(score(y_true[:, j], y_pred, zero_division=0), abs=1e-12)
            assert macro() == pytest.approx(expected(), abs=1e-12)
    moved = macro()
    page.locator("details.label input").first.focus()
    page.keyboard.press("End")
    assert macro() != moved
    page.click("#reset")
    now = [shipped[name] for name in run.label_names]
    assert macro() == pytest.approx(expected(), abs=1e-12)


def test_keys_move_a_slider_stop_by_stop(opened, finished):
    """An arrow goes to the next threshold that decides differently, however near, and back."""
    page = opened(finished("tfidf").path / "report.html")
    thresholds = page.evaluate("JSON.parse(document.getElementById('content').textContent).labels[0].thresholds")
    card = page.locator("details.label").first
    card.locator("input").focus()
    start = thresholds.index(exact(page, card, "threshold"))
    page.keyboard.press("ArrowRight")
    assert exact(page, card, "threshold") == thresholds[start + 1]
    page.keyboard.press("ArrowLeft")
    page.keyboard.press("ArrowLeft")
    assert exact(page, card, "threshold") == thresholds[start - 1]


def test_f1_is_seen_on_a_phone(opened, finished):
    """At 360 pixels the F1 of each label stands within the screen, unscrolled."""
    page = opened(finished("tfidf").path / "report.html", viewport={"width": 360, "height": 740})
    page.locator("#labels tbody bdi").first.evaluate(
        "e => { e.textContent = 'customer_service_complaint_about_delivery'; }"
    )
    for box in (cell.bounding_box() for cell in page.locator("#labels tbody td:nth-child(2)").all()):
        assert box["x"] + box["width"] <= 360


def test_sorting(opened, finished):
    """A click on a heading sorts by its numbers, the largest first; another turns the order round."""
    page = opened(finished("tfidf").path / "report.html")
    head = page.locator("#labels thead th").nth(1)

    def column():
        return [
            float(v)
            for v in page.locator("#labels tbody tr td:nth-child(2)").evaluate_all("a => a.map(e => e.dataset.value)")
        ]

    before = column()
    head.locator("button").click()
    assert column() == sorted(before, reverse=True)
    assert head.get_attribute("aria-sort") == "descending"
    head.locator("button").click()
    assert column() == sorted(before)
    page.locator("#labels thead th").first.locator("button").click()
    assert page.locator("#labels tbody td:first-child").all_inner_texts() == sorted(finished("tfidf").label_names)


def test_hostile_values_are_inert(opened, hostile):
    """Nothing that a user wrote runs or becomes an element, everything opened; it can be read as written."""
    page = opened(hostile)
    page.evaluate("document.querySelectorAll('details').forEach(d => { d.open = true; })")
    page.wait_for_timeout(300)
    assert page.evaluate("window.harmed") is None
    assert page.locator("img, b").count() == 0
    assert page.locator("script").count() == 4
    assert page.locator("#labels tbody td:first-child").first.inner_text() == HOSTILE[0]
    assert any(HOSTILE[1] in text for text in page.locator("td.text").all_inner_texts())
    assert page.locator("#labels tbody bdi").nth(2).evaluate("e => getComputedStyle(e).unicodeBidi") == "isolate"


@pytest.mark.parametrize("options", [
    {"color_scheme": "light"}, {"color_scheme": "dark"}, {"viewport": {"width": 360, "height": 740}},
])  # fmt: skip
def test_every_figure_is_drawn(opened, finished, options):
    """Light, dark and on a phone: all figures drawn, readable ink on the ground, nothing wider than the page."""
    page = opened(finished("bert").path / "report.html", **options)
    page.click(".open-all")
    page.wait_for_timeout(300)
    assert page.locator("[data-figure]").count() == page.locator("[data-figure] .plot:has(svg)").count() > 12
    width = page.evaluate("document.documentElement.scrollWidth")
    assert width <= page.viewport_size["width"]
    ink, ground = page.evaluate("['color', 'backgroundColor'].map(key => getComputedStyle(document.body)[key])")
    dark = options.get("color_scheme") == "dark"
    assert (lightness(ground) < lightness(ink)) == dark
    assert abs(lightness(ground) - lightness(ink)) > 150
    grounds = page.evaluate(  # of what shows where one points at a figure, and of the page's cards
        """[document.querySelector('.plot svg'), document.body].map(e => getComputedStyle(e))
           .map((style, i) => style.getPropertyValue(['--plot-background', '--card'][i]))"""
    )
    assert grounds[0] == grounds[1] != ""


def lightness(color):
    return np.mean([float(part) for part in color[color.index("(") + 1 : -1].split(",")[:3]])
