"""`sweep.html` and `trials.csv`: what they say is what the trials hold, and what users wrote is text.

`test_sweep_page_in_a_browser.py` opens the page.
"""

import base64
import hashlib
import json
import re
import shutil
from html.parser import HTMLParser

import numpy as np
import pandas as pd
import pytest
from scipy.stats import spearmanr

from lora_cls.evaluation import Interval
from lora_cls.report.sweep import write_sweep_page, write_trials_table
from lora_cls.report.sweep_content import summarize, sweep_content, sweep_sentences
from lora_cls.search.folder import HoldoutScore
from lora_cls.search.objective import run_score
from lora_cls.search.optuna_files import open_study
from lora_cls.terminal import print_sweep

optuna = pytest.importorskip("optuna")

HOSTILE = [
    "</script><script>window.harmed = 1</script>",
    '"><img src=x onerror="window.harmed = 1">',
    "\u202egnorw \x07<b> &amp;",
]


class Page(HTMLParser):
    """Names of elements, texts, scripts and the figures of a page."""

    def __init__(self, file):
        super().__init__(convert_charrefs=True)
        self.tags, self.texts, self.scripts, self.data, self.open = [], [], [], "", []
        self.feed(file.read_text(encoding="utf-8"))
        self.figures = json.loads(self.data)
        self.text = " ".join(" ".join(self.texts).split())

    def handle_starttag(self, tag, attributes):
        self.tags.append(tag)
        self.open.append((tag, dict(attributes)))

    def handle_endtag(self, tag):
        while self.open.pop()[0] != tag:
            pass

    def handle_data(self, data):
        tag, attributes = self.open[-1] if self.open else ("", {})
        if tag == "script":
            if attributes.get("type") == "application/json":
                self.data += data
            else:
                self.scripts.append(data)
        elif tag != "style":
            self.texts.append(data)


@pytest.fixture(scope="module")
def search(make_search, some_trials, tmp_path_factory):
    """24 trials: 17 complete, 6 stopped, one failed; two of them confirmed."""
    return make_search(tmp_path_factory.mktemp("sweep") / "mine", some_trials())


@pytest.fixture(scope="module")
def hostile(make_search, some_trials, tmp_path_factory):
    """A search whose labels, fields, choices, recipe and reasons are attacks."""
    field = f"lora.{HOSTILE[0]}"
    space = {"train.learning_rate": {"low": 1e-5, "high": 1e-3, "log": True}, field: {"choices": HOSTILE}}
    trials = some_trials(16)
    for i, trial in enumerate(trials):
        trial["params"] = {"train.learning_rate": trial["params"]["train.learning_rate"], field: HOSTILE[i % 3]}
        trial["reason"] = HOSTILE[i % 3]
    return make_search(
        tmp_path_factory.mktemp("sweep") / "<i>hostile", trials, space=space, label_names=HOSTILE, recipe=HOSTILE[1]
    )


def test_headline(search, small_run):
    """The best score, that on fresh folds, by how much the search flattered itself, and what early stops saved."""
    found, trials = summarize(search), search.trials
    fresh = run_score(small_run, "macro_f1")
    assert found.best.score == max(trial.score for trial in trials if trial.state == "complete")
    assert set(found.fresh.values()) == {fresh}
    confirmed = [trial.score for trial in search.ranked()[:2]]
    assert found.flattered == pytest.approx(np.mean(confirmed) - fresh)
    stopped = [trial for trial in trials if trial.state == "stopped"]
    assert len(stopped) == found.count("stopped") == 6
    assert found.rows_saved == sum(trial.rows_planned - trial.rows_trained for trial in stopped)
    planned = sum(trial.rows_planned for trial in trials if trial.state in ("complete", "stopped"))
    assert found.rows_planned == planned
    assert found.minutes == pytest.approx(sum(trial.seconds for trial in trials) / 60)
    assert found.minutes_saved == pytest.approx(2 * sum(trial.seconds for trial in stopped) / 60, rel=1e-2)
    said = " ".join(sweep_sentences(search, found))
    assert f"Trial {found.best.number} is the best: macro-F1 {found.best.score:.4f} over the folds 0, 1, 2." in said
    assert f"On fresh folds it scores {fresh:.4f}: this is the score to state." in said
    assert f"{found.rows_saved:,} of {planned:,} rows of training ({found.rows_saved / planned:.0%})" in said
    assert all(sentence in Page(write_sweep_page(search)).text for sentence in sweep_sentences(search, found))


def test_a_loss_flatters_where_it_is_less(make_search, some_trials, tmp_path, small_run):
    """Of `objective: loss` the least is best, and worse on fresh folds means more."""
    trials, loss = some_trials(12), run_score(small_run, "loss")
    for i, trial in enumerate(trials):
        trial |= {"score": loss + 0.01 * (i - 1), "fresh": i == 0}
    search = make_search(tmp_path / "s", trials, objective="loss")
    found = summarize(search)
    assert found.best.number == 0
    assert found.fresh == {0: pytest.approx(loss)}
    assert found.flattered == pytest.approx(0.01)
    content = sweep_content(search)
    assert content["objective"] == "log loss" and content["better"] == "less"
    assert "1 trial scored again on fresh folds: 0.0100 worse there" in " ".join(content["sentences"])


def test_rows_held_out_from_the_whole_search(make_search, some_trials, tmp_path):
    """Said where it is the best trial's score, and not where another trial became the best since."""
    search = make_search(tmp_path / "s", some_trials(8))
    best, other = (trial.number for trial in search.ranked()[:2])
    for number, shown in ((best, True), (other, False)):
        HoldoutScore(
            trial=number, rows=554, macro_f1=Interval(0.701, 0.65, 0.74, confidence=0.95, n_resamples=999, n_groups=554)
        ).write(search.files.holdout_score)
        said = " ".join(sweep_content(search)["sentences"])
        assert ("On 554 rows that no trial saw, its models of fresh folds have macro-F1 0.7010" in said) == shown


def test_correlations_and_importance(search):
    """Spearman's of SciPy, over complete trials; PED-ANOVA of Optuna."""
    content, done = sweep_content(search), [trial for trial in search.trials if trial.state == "complete"]
    for row in content["correlations"]:
        expected = spearmanr([trial.params[row["field"]] for trial in done], [trial.score for trial in done])
        assert row["value"] == pytest.approx(expected.statistic, abs=1e-4)
        assert row["n"] == len(done) == 17
    numeric = ["train.learning_rate", "train.num_train_epochs", "train.per_device_train_batch_size"]
    assert [row["field"] for row in content["correlations"]] == numeric
    expected = optuna.importance.get_param_importances(
        open_study(search.files.journal), evaluator=optuna.importance.PedAnovaImportanceEvaluator()
    )
    assert dict(content["importance"]) == pytest.approx(expected)
    for j, label in enumerate(content["labels"]):
        f1 = [search_f1(search, trial.number)[j] for trial in done]
        assert label["median"] == pytest.approx(np.median(f1), abs=1e-6)
        rates = [trial.params["train.learning_rate"] for trial in done]
        assert label["correlations"][0] == pytest.approx(spearmanr(rates, f1).statistic, abs=1e-4)


def search_f1(search, number):
    metrics = json.loads((search.files.run(number) / "metrics.json").read_text())
    return [row["f1"] for row in metrics["cross_fitted"]["per_label"]]


def test_scores_per_label_are_packed(search):
    """Two characters a number: thousandths in base 36, of complete trials in the order of their numbers."""
    labels = Page(write_sweep_page(search)).figures["labels"]
    assert labels["trials"] == [trial.number for trial in search.trials if trial.state == "complete"]
    for number, packed in zip(labels["trials"], labels["f1"], strict=True):
        found = [int(packed[i : i + 2], 36) / 1000 for i in range(0, len(packed), 2)]
        assert found == pytest.approx(search_f1(search, number), abs=0.00051)


def test_figures_hold_every_trial(search):
    """States, scores, means so far and places on the fields' axes; a choice is its place among the choices."""
    figures, trials = Page(write_sweep_page(search)).figures, search.trials
    assert figures["trials"]["number"] == list(range(24))
    assert [("complete", "stopped", "failed", "running")[i] for i in figures["trials"]["state"]] == [
        trial.state for trial in trials
    ]
    assert figures["trials"]["mean"][3] == pytest.approx(trials[3].mean, abs=1e-6)
    assert figures["values"][2] == [
        [8, 16, 32].index(trial.params["train.per_device_train_batch_size"]) for trial in trials
    ]
    assert figures["fields"][0] == {
        "name": "train.learning_rate",
        "low": 1e-5,
        "high": 1e-3,
        "log": True,
        "choices": None,
    }


def test_table(search):
    """A line per trial: whole numbers stay whole, what there is not stays empty, fields and folds have columns."""
    table = pd.read_csv(write_trials_table(search), dtype=str, keep_default_na=False)
    assert list(table["number"]) == [str(i) for i in range(24)]
    assert list(table.columns[:5]) == ["number", "state", "score", "mean_of_folds", "score_on_fresh_folds"]
    for row, trial in zip(table.to_dict("records"), search.trials, strict=True):
        assert row["state"] == trial.state
        assert row["score"] == ("" if trial.score is None else repr(trial.score))
        for fold in (0, 1, 2):
            assert row[f"score_fold_{fold}"] == (repr(trial.fold_scores[fold]) if fold in trial.fold_scores else "")
        assert float(row["train.learning_rate"]) == trial.params["train.learning_rate"]
        assert row["train.num_train_epochs"] == str(trial.params["train.num_train_epochs"])
        assert row["lora.target_modules"] == trial.params["lora.target_modules"]
        assert row["rows_trained"] == str(trial.rows_trained)
        assert row["reason"] == (trial.reason or "")
        assert row["retries"] == "0"
    assert (table["score_on_fresh_folds"] != "").sum() == 2


def test_cells_of_the_table_are_no_formulas(make_search, tmp_path):
    """A reason or choice that a spreadsheet would run begins with an apostrophe; null and lists stand as in recipes."""
    space = {"lora.target_modules": {"choices": ["=1+1", None, True, ["q_proj", "v_proj"]]}}
    params = ["=1+1", None, True, '["q_proj", "v_proj"]']
    trials = [
        {"params": {"lora.target_modules": value}, "score": 0.5, "reason": "@x", "attempts": 3} for value in params
    ]
    space_of_optuna = {"lora.target_modules": {"choices": params}}
    search = make_search(tmp_path / "s", trials, space=space, optuna_space=space_of_optuna)
    table = pd.read_csv(write_trials_table(search), dtype=str, keep_default_na=False)
    assert table["lora.target_modules"].tolist() == ["'=1+1", "null", "true", '["q_proj", "v_proj"]']
    assert table["reason"].tolist() == ["'@x"] * 4
    assert table["retries"].tolist() == ["2"] * 4
    values = Page(write_sweep_page(search)).figures["values"]
    assert values == [[0, 1, 2, 3]]


@pytest.mark.parametrize(
    ("trials", "sentence"),
    [
        ([], "0 trials. No trial is complete yet."),
        ([{"state": "running", "attempts": 1}], "1 trial: 1 running; 0.0 minutes"),
        ([{"state": "running", "folds": {0: 0.4}}, {"state": "failed", "reason": "nan"}], "No trial is complete"),
        ([{"score": 0.5, "folds": {0: 0.5}, "f1": [0.5, 0.5, 0.5]}], "Trial 0 is the best: macro-F1 0.5000"),
        ([{"score": 0.5, "f1": None}, {"score": 0.6, "f1": None}], "It is the greatest of 2 scores, which flatters"),
    ],
)  # fmt: skip
def test_a_search_that_has_hardly_begun(make_search, tmp_path, trials, sentence):
    """No trial, none complete, no fold, one, and trials without settings: a page, a table, and no importance."""
    search = make_search(tmp_path / "s", trials)
    page = Page(write_sweep_page(search))
    assert sentence in page.text
    assert "Stated from 10 complete trials on" in page.text or "Drawn when a trial is complete" in page.text
    assert len(pd.read_csv(write_trials_table(search))) == len(trials)


def test_a_damaged_run_costs_its_own_row(make_search, some_trials, tmp_path):
    """Run folders that are missing, damaged or of other labels are named; all else is shown."""
    search = make_search(tmp_path / "s", some_trials(12))
    shutil.rmtree(search.files.run(0))
    metrics = search.files.run(1) / "metrics.json"
    metrics.write_text(metrics.read_text().replace('"joy"', '"joi"'))
    (search.files.run(2) / "metrics.json").write_bytes(b"\xff{")
    (search.files.run(4) / "metrics.json").unlink()
    (search.files.run(4) / "metrics.json").mkdir()
    found, second = (trial.number for trial in search.ranked()[:2])
    (search.files.confirmation(second) / "recipe.yaml").write_bytes(b"\x00: [")
    search.files.holdout_score.write_bytes(b"{")
    (search.files.confirmation(found) / "fold-00" / "oof_logits.npy").write_bytes(b"")
    content = sweep_content(search)
    assert content["unread"].startswith("Scores per label could not be read of trials 0, 1, 2, 4: ")
    assert content["figures"]["labels"]["trials"] == [6, 8, 9, 10]
    assert content["confirmed"] == []
    assert len(content["trials"]) == 12
    write_sweep_page(search)


def test_scores_that_are_no_numbers(make_search, some_trials, tmp_path):
    """A loss that is infinite, as of a fold, is no value of a figure, and ends no page."""
    trials = some_trials(6)
    trials[0] |= {"score": float("inf"), "folds": {0: float("inf"), 1: float("nan")}}
    search = make_search(tmp_path / "s", trials, objective="loss")
    figures = Page(write_sweep_page(search)).figures
    assert figures["trials"]["score"][0] is None and figures["trials"]["mean"][0] is None


def test_hostile_names_are_text(hostile):
    """Nothing that a user wrote becomes an element; the policy allows the page's own scripts, which it holds."""
    file = write_sweep_page(hostile)
    page, html = Page(file), file.read_text(encoding="utf-8")
    assert page.tags.count("script") == 4 and "img" not in page.tags and "b" not in page.tags
    assert "<script>window.harmed" not in html and "\x07" not in html
    assert HOSTILE[0] in page.texts and HOSTILE[1] in page.texts
    policy = re.search(r'Content-Security-Policy" content="([^"]*)"', html)[1].replace("&#39;", "'")
    digests = [base64.b64encode(hashlib.sha256(script.encode()).digest()).decode() for script in page.scripts]
    assert policy.endswith("script-src " + " ".join(f"'sha256-{digest}'" for digest in digests))
    assert page.figures["labels"]["names"][:2] == HOSTILE[:2]
    assert not re.search(r'(src|href)="(?!data:,|#)', html)


def test_a_large_search_makes_a_page_that_opens(make_search, some_trials, tmp_path):
    """1,000 trials of 100 labels stay under 2 MB, counted up from 100 of them."""
    names = [f"label {i}" for i in range(100)]
    sizes = []
    for n in (1, 100):
        search = make_search(tmp_path / str(n), some_trials(n, 100), label_names=names)
        sizes.append(write_sweep_page(search).stat().st_size)
    assert sizes[0] + 1000 * (sizes[1] - sizes[0]) / 99 < 2e6


def test_on_the_terminal(search, capsys):
    """The best ten, the sentences of the page, and a command that runs the best."""
    search.files.best.write_text("task: null\n")
    write_trials_table(search)
    print_sweep(search)
    said = capsys.readouterr().out
    best = search.ranked()
    for trial in best[:10]:
        assert re.search(rf"\b{trial.number}\b.* {trial.score:.4f} ", said)
    assert f"{best[10].score:.4f}" not in said
    for sentence in sweep_sentences(search, summarize(search)):
        assert sentence in said
    assert f"lora-cls run {search.files.best} --train train.csv" in said
    assert str(search.files.table) in said


def test_on_the_terminal_before_anything_is_complete(make_search, tmp_path, capsys):
    """What there is, and no command for a file that is not there."""
    print_sweep(make_search(tmp_path / "s", [{"state": "running"}]))
    said = capsys.readouterr().out
    assert "No trial is complete yet." in said and "lora-cls run" not in said
