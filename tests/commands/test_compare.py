"""Comparisons: the runs' own scores, paired differences, seeds, cost, and files in which every name is inert."""

import json
import re
import xml.etree.ElementTree as ElementTree
from html.parser import HTMLParser

import numpy as np
import pandas as pd
import pytest

from lora_cls.commands.blend import blend
from lora_cls.commands.compare import compare
from lora_cls.commands.tune import tune
from lora_cls.errors import RunError
from lora_cls.evaluation import bootstrap_difference
from lora_cls.recipe import Thresholds
from lora_cls.report.comparison import comparison_cells, figure, markdown, write_comparison
from lora_cls.runs import RunFolder

SVG = "{http://www.w3.org/2000/svg}"
HOSTILE = '<script>alert(1)</script> "$x$ |'


@pytest.fixture
def runs(make_run, problem):
    """Two seeds of one recipe, and a worse run of another recipe; with test rows."""
    y_true, fold, logits = problem(300)
    test = np.zeros((3, 20, 2))
    return [
        make_run("worse", logits(2.5), y_true, fold, test=test, recipe={"tfidf": {"C": 0.1}}),
        make_run("seed1", logits(1), y_true, fold, test=test, recipe={"train": {"seed": 1}}),
        make_run("seed2", logits(1), y_true, fold, test=test, recipe={"train": {"seed": 2}}),
    ]


def test_scores_are_the_runs_own(runs):
    """Scores and F1 per label are those of each run's metrics.json, best first; differences are paired."""
    found = compare([run.path for run in runs])
    assert found.runs[-1].name == "worse"
    assert found.runs[0].difference is None
    for one in found.runs:
        run = next(run for run in runs if run.path.name == one.name)
        metrics = json.loads((run.path / "metrics.json").read_text())
        assert vars(one.score) == metrics["cross_fitted"]["macro_f1_interval"]
        assert one.f1 == [row["f1"] for row in metrics["cross_fitted"]["per_label"]]
        assert one.untuned == metrics["untuned"]["macro_f1"]
    decided = {
        run.path.name: run.task().cross_fit(run.y_true, run.out_of_fold().y_score, run.folds["fold"]).y_pred
        for run in runs
    }
    worst, best = (decided[found.runs[i].name] for i in (-1, 0))
    assert found.runs[-1].difference == bootstrap_difference(runs[0].y_true, worst, best, np.arange(300))
    assert found.runs[-1].difference.high < 0
    for j in range(2):
        top = max(one.f1[j] for one in found.runs)
        assert found.winners(j) == [one.name for one in found.runs if one.f1[j] == top]


def test_seeds(runs):
    """Runs that differ in their seed are grouped, with mean and standard deviation; others are not."""
    found = compare([run.path for run in runs])
    (seeds,) = found.seeds
    assert sorted(seeds.names) == ["seed1", "seed2"]
    scores = [one.score.estimate for one in found.runs if one.name in seeds.names]
    assert seeds.mean == pytest.approx(np.mean(scores))
    assert seeds.sd == pytest.approx(np.std(scores, ddof=1))
    assert (seeds.low, seeds.high) == (min(scores), max(scores))
    assert compare([run.path for run in runs[:2]]).seeds == []


def test_seeds_differ_in_the_seed_alone(make_run, problem):
    """The same seed twice is one seed; a run tuned anew, or with other rows, is no seed of the others."""
    y_true, fold, logits = problem(300)
    one, again = (make_run(name, logits(1), y_true, fold) for name in ("one", "again"))
    assert compare([one, again]).seeds == []
    other = make_run("other", logits(1), y_true, fold, recipe={"train": {"seed": 7}})
    (seeds,) = compare([one, again, other]).seeds
    assert len(seeds.names) == 2
    tune(other, Thresholds(strategy="global"))
    assert compare([one, other]).seeds == []
    tune(other)
    assert len(compare([one, other]).seeds) == 1
    info = other.info.model_copy(update={"data": other.info.data.model_copy(update={"extra_train_sha256": "1"})})
    info.write(other.files.info)
    assert compare([one, RunFolder(other.path)]).seeds == []


def test_untuned_of_a_blend_is_not_stated(runs, tmp_path):
    """A blend's logits are of corrected probabilities: logit > 0 means something else for it."""
    blend(runs[1:], tmp_path / "both")
    found = compare([*runs, tmp_path / "both"])
    assert {run.name: run.untuned is None for run in found.runs} == {
        "both": True, "seed1": False, "seed2": False, "worse": False,
    }  # fmt: skip
    cells = {row[1]: row[4] for row in comparison_cells(found)}
    assert cells["both"] == "-"


def test_cost(runs):
    """Minutes and rows per second from what the folds recorded; 1,000 texts by one fold's model."""
    cost = compare([run.path for run in runs]).runs[0].cost
    assert cost["train_minutes"] == pytest.approx(1.5)
    assert cost["train_rows_per_second"] == pytest.approx(600 / 90)  # each row in two of three folds
    assert cost["seconds_per_1000_texts"] == pytest.approx(1000 * 4.5 / (300 + 3 * 20))
    assert cost["peak_memory_gib"] == 1.0
    assert cost["trainable_parameters"] == 7


def test_files(runs, tmp_path):
    """Four files; the CSV holds the figures in full, and a second time overwrites the same bytes."""
    found = compare([run.path for run in runs])
    files = write_comparison(found, tmp_path / "out")
    assert sorted(file.name for file in files) == ["compare.csv", "compare.html", "compare.md", "compare.svg"]
    before = [file.read_bytes() for file in files]
    write_comparison(found, tmp_path / "out")
    assert [file.read_bytes() for file in files] == before
    table = pd.read_csv(tmp_path / "out" / "compare.csv")
    assert table["macro_f1"].tolist() == [one.score.estimate for one in found.runs]
    assert f"{found.runs[0].score.estimate:.4f}" in markdown(found)
    with pytest.raises(RunError, match="is a run folder"):
        write_comparison(found, runs[0].path)


def test_the_figure_stands_where_its_axes_say(runs):
    """Points and intervals lie, by the ticks of both axes, at minutes and scores; without any library that draws."""
    found = compare(runs)
    root = ElementTree.fromstring(figure(found))
    texts = [(float(e.get("x")), float(e.get("y")), e.text) for e in root.iter(f"{SVG}text") if e.get("x")]
    scores = [(y - 4, float(text)) for x, y, text in texts if re.fullmatch(r"0\.\d+", text) and x < 60]
    slope, start = np.polyfit(*zip(*scores, strict=True), 1)
    bars = [group.find(f"{SVG}path").get("d") for group in root.iter(f"{SVG}g")]
    for bar, run in zip(bars, found.runs, strict=True):
        low, high = (float(n) for n in re.fullmatch(r"M[\d.]+,([\d.]+)h8m-4,0V([\d.]+)m-4,0h8", bar).groups())
        assert slope * low + start == pytest.approx(run.score.low, abs=1e-3)
        assert slope * high + start == pytest.approx(run.score.high, abs=1e-3)


def test_in_a_notebook(runs):
    """A comparison says in a line what won, is a table with a row per run, and shows both without its 20 fields."""
    found = compare(runs)  # run folders, as paths elsewhere
    assert repr(found).startswith(f"Comparison(3 runs, 300 rows, 3 folds, macro-F1: {found.runs[0].name} 0.")
    table = found.table()
    assert table["run"].tolist() == [one.name for one in found.runs]
    assert table["minus_best"].tolist() == [0.0, *(one.difference.estimate for one in found.runs[1:])]
    assert table["f1_joy"].tolist() == [one.f1[found.label_names.index("joy")] for one in found.runs]
    shown = found._repr_html_()
    for one in found.runs:
        assert one.name in shown and f"{one.score.estimate:.4f}" in shown and f"{one.f1[0]:.4f}" in shown


class _Page(HTMLParser):
    def __init__(self):
        super().__init__()
        self.tags, self.links, self.text = set(), [], ""

    def handle_starttag(self, tag, attrs):
        self.tags.add(tag)
        self.links += [
            value for key, value in attrs if key in ("src", "href", "xlink:href") and not value.startswith("#")
        ]

    def handle_data(self, data):
        self.text += data


def test_names_are_inert(make_run, problem, tmp_path):
    """A folder or a label named like markup stands as text in the page and the table; the page loads nothing."""
    y_true, fold, logits = problem(60)
    hostile = HOSTILE.replace("/", "\u2215")  # a folder's name has no slash
    runs = [make_run(name, logits(1), y_true, fold, names=(HOSTILE, "joy")) for name in (hostile, "_plain")]
    found = compare([run.path for run in runs])
    write_comparison(found, tmp_path / "out")
    page = _Page()
    page.feed((tmp_path / "out" / "compare.html").read_text(encoding="utf-8"))
    assert "script" not in page.tags
    assert "svg" in page.tags
    assert page.links == ["data:,"]  # the icon of the tab: none
    assert HOSTILE in page.text
    assert hostile in page.text
    ElementTree.parse(tmp_path / "out" / "compare.svg")
    text = (tmp_path / "out" / "compare.md").read_text(encoding="utf-8")
    assert "<script>" not in text
    widths = [len(re.findall(r"(?<!\\)\|", line)) for line in text.splitlines() if line.startswith("|")]
    assert set(widths[:4]) == {12}  # header, rule and a row per run: eleven cells each
