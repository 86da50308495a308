"""Why an answer: words taken out one by one."""

import sys

import numpy as np
import pandas as pd
import pytest
from scipy.special import logit

from lora_cls.commands.blend import blend
from lora_cls.commands.cross_validation import cross_validate
from lora_cls.commands.explain import AT_ONCE, word_spans
from lora_cls.commands.predict import Classifier
from lora_cls.commands.tune import tune
from lora_cls.errors import DataError
from lora_cls.recipe import Prediction

TEXT = "so happy and  lovely, but afraid"


@pytest.mark.parametrize("kind", ["tfidf", "bert"])
def test_contributions_are_what_an_answer_loses(finished, kind):
    """Log-odds of the text less those of it without the word, by the folds together, in the order of the text."""
    classifier = Classifier.load(finished(kind))
    found = classifier.explain(TEXT)
    assert found.words == ["so", "happy", "and", "lovely,", "but", "afraid"]
    assert [TEXT[start:end] for start, end in found.spans] == found.words
    whole = classifier.predict_proba(TEXT)
    np.testing.assert_allclose(found.y_score, whole, atol=1e-5)
    np.testing.assert_array_equal(found.y_pred, classifier.predict(TEXT))
    for i, text in (
        (1, "so and  lovely, but afraid"),
        (3, "so happy and  but afraid"),
        (5, "so happy and  lovely, but "),
    ):
        without = classifier.predict_proba(text)
        np.testing.assert_allclose(found.without[i], without, atol=1e-5)
        np.testing.assert_allclose(found.contributions[i], logit(whole) - logit(without), atol=1e-3)
    table = found.table()
    assert table.columns.tolist() == classifier.label_names and table.index.tolist()[1] == (3, "happy")


def test_words_that_a_label_is_made_of(finished):
    """In a model that learnt its words, they are the strongest; and against the others."""
    found = Classifier.load(finished("tfidf")).explain("the furious dog came because of a letter")
    (word, value), *_ = found.strongest("anger")
    assert word == "furious" and value > 0
    assert "furious" in repr(found.table())


def test_words():
    """White space of every kind parts words, and characters of scripts without spaces are words of their own."""
    for text, words in (
        ("a\u00a0b\tc\n\nd", ["a", "b", "c", "d"]),
        ("我很高兴 ok", ["我", "很", "高", "兴", "ok"]),
        ("मैं खुश हूँ", ["मैं", "खुश", "हूँ"]),
        ("", []),
        (" \n", []),
    ):
        assert [text[start:end] for start, end in word_spans(text)] == words
    text = " ".join(f"w{i}" for i in range(1000))
    parts = [text[start:end].split() for start, end in word_spans(text, most=7)]
    assert len(parts) == 7 and " ".join(map(" ".join, parts)) == text
    assert max(map(len, parts)) - min(map(len, parts)) <= 1


def test_texts_of_no_and_of_many_words(finished):
    """Without words there is nothing to contribute; a long text is asked for in batches that no cache keeps."""
    classifier = Classifier.load(finished("tfidf"))
    assert classifier.explain("").contributions.shape == (0, 3)
    assert classifier.explain("happy").contributions.shape == (1, 3)
    asked = []
    original = classifier._predictor.predict
    classifier._predictor.predict = lambda folder, texts: asked.append(len(texts)) or original(folder, texts)
    found = classifier.explain("happy " * 300, most_words=120)
    assert found.contributions.shape == (120, 3) and sum(asked) == 3 * 121
    assert max(asked) == AT_ONCE < 64


def test_several_columns_and_what_is_refused(tfidf_recipe, emotion_table, tmp_path):
    """A run of several text columns takes a row of a table; several texts are no text."""
    table = emotion_table(45)
    table.insert(1, "title", "about " + table["text"].str.split().str[0])
    recipe = tfidf_recipe(data__text_template="{title}: {text}")
    run = cross_validate(recipe, table, table[["id", "title", "text"]].iloc[:9], tmp_path / "run")
    classifier = Classifier.load(run)
    row = pd.DataFrame({"title": ["about me"], "text": ["so happy"]})
    found = classifier.explain(row)
    assert found.text == "about me: so happy" and found.words == ["about", "me:", "so", "happy"]
    np.testing.assert_array_equal(found.y_score, classifier.predict_proba(row)[0])
    with pytest.raises(DataError, match="give a DataFrame with these columns"):
        classifier.explain("so happy")
    with pytest.raises(DataError, match=r"One text is explained at a time\. Got 2 instead"):
        classifier.explain(pd.concat([row, row]))


def test_votes_and_blends(finished, copy_of, tfidf_recipe, train, test, tmp_path):
    """Where folds vote, their mean log-odds are explained, and they vote on; a blend answers like any run."""
    run = copy_of(finished("tfidf"))
    expected = Classifier.load(run)
    expected.prediction = Prediction(combine="mean_logit")
    expected = expected.explain(TEXT)
    tune(run, prediction=Prediction(combine="vote"))
    classifier = Classifier.load(run)
    np.testing.assert_array_equal(classifier.explain(TEXT).contributions, expected.contributions)
    assert classifier.prediction.combine == "vote"
    runs = [cross_validate(tfidf_recipe(), train, test, tmp_path / "one")]
    more = {"fold_table": tmp_path / "one" / "folds.csv"}
    runs.append(cross_validate(tfidf_recipe(tfidf__C=9.0), train, test, tmp_path / "two", **more))
    blended = Classifier.load(blend(runs, tmp_path / "blend")).explain(TEXT)
    assert blended.strongest("fear")[0][0] == "afraid"


def test_classes(tfidf_recipe, emotion_table, tmp_path):
    """Of classes it is of log-probabilities: what speaks for one speaks against the others."""
    table = emotion_table(90)
    table = table[["id", "text"]].assign(genre=np.where(table["fear"] == 1, "fear", "other"))
    run = cross_validate(tfidf_recipe(task="single_label"), table, table[["id", "text"]].iloc[:9], tmp_path / "run")
    found = Classifier.load(run).explain("we were terrified and scared")
    fear, other = found.contributions[2]
    assert fear > 0 > other
    np.testing.assert_allclose(np.exp(np.log(found.y_score) - found.contributions).sum(axis=1), 1)


def test_hostile_text_is_inert_in_a_notebook(finished):
    """Text and names are escaped."""
    found = Classifier.load(finished("tfidf")).explain('<script>alert(1)</script> happy" onmouseover="x')
    shown = found._repr_html_()
    assert "<script>" not in shown and 'onmouseover="' not in shown and "&lt;script&gt;" in shown


def test_command(finished, monkeypatch, capsys):
    """The words and the labels are printed, the strongest where there are many."""
    from lora_cls import cli

    run = finished("tfidf")
    monkeypatch.setattr(sys, "argv", ["lora-cls", "explain", str(run.path), f"{TEXT} {'[red] ' * 9}", "--words", "4"])
    with pytest.raises(SystemExit) as done:
        cli.main()
    out = capsys.readouterr().out
    assert not done.value.code
    assert "Log-odds of each label" in out and "afraid" in out and "Not shown: 11 of less weight." in out
