"""Texts given in Python are read as a file with the same cells is, and what is no text is refused."""

import re

import numpy as np
import pandas as pd
import pytest

from lora_cls.commands.cross_validation import cross_validate
from lora_cls.commands.predict import Classifier, predict_file
from lora_cls.data import load_test
from lora_cls.errors import DataError


@pytest.fixture(scope="module")
def cases(train, test, tfidf_recipe, tmp_path_factory):
    """Finished runs by how they make their texts: with the table that they were asked, and the text column."""
    folder = tmp_path_factory.mktemp("texts")
    odd = [" ", r"happy\nand lovely\tday", "  furious, angry  ", "happy", *[f"scared {i}" for i in range(8)]]
    new = test.assign(text=odd)
    title = {"title": lambda table: ["happy news", "hate", "worried"] * (len(table) // 3)}
    recipes = {
        "unescape": (tfidf_recipe(data__unescape=True), train, new),
        "template": (tfidf_recipe(data__text_template="happy? {text}\nangry?"), train, new),
        "columns": (
            tfidf_recipe(data__text_columns=["title", "text"], data__unescape=True), train.assign(**title),
            new.assign(**title),
        ),
    }  # fmt: skip
    return {
        name: (cross_validate(recipe, table, new, folder / name), new) for name, (recipe, table, new) in recipes.items()
    }


@pytest.mark.parametrize("name", ["unescape", "template", "columns"])
def test_the_same_as_from_a_file(cases, name, tmp_path):
    """A DataFrame and, of one column, its texts answer exactly as `predict` of a file does; a blank text too."""
    run, new = cases[name]
    new.to_csv(tmp_path / "new.csv", index=False)
    expected = pd.read_csv(predict_file(run, tmp_path / "new.csv", tmp_path / "out") / "test_proba.csv")
    expected = expected[run.label_names].to_numpy()
    classifier = Classifier.load(run)
    np.testing.assert_array_equal(classifier.predict_proba(new), expected)
    np.testing.assert_array_equal(classifier.predict_proba(new.iloc[::-1]), expected[::-1])
    np.testing.assert_array_equal(classifier.predict_proba(load_test(run.recipe.data, new)), expected)
    np.testing.assert_array_equal(classifier.predict_proba(new.iloc[[2]]), expected[[2]])
    assert classifier.predict_proba(new.iloc[:0]).shape == (0, 3)
    if name == "columns":
        with pytest.raises(DataError, match=r"made of 2 columns \(title, text\): give a DataFrame .* Got list instead"):
            classifier.predict(["a text"])
        return
    for texts in (list(new["text"]), tuple(new["text"]), new["text"], new["text"].to_numpy(), pd.Index(new["text"]),
                  new["text"].to_numpy(dtype=np.str_), new["text"].astype("string").array):  # fmt: skip
        np.testing.assert_array_equal(classifier.predict_proba(texts), expected)
    for i in range(3):
        np.testing.assert_array_equal(classifier.predict_proba(new["text"].iloc[i]), expected[i])
    assert len(classifier.predict_labels(new)) == len(new)
    assert classifier.answer(new)[1].shape == expected.shape


@pytest.mark.parametrize("name", ["template", "columns"])
def test_the_card_asks_as_the_run_reads(cases, name, monkeypatch, capsys):
    """The README's lines with Classifier run as printed, of several text columns too."""
    run, _ = cases[name]
    monkeypatch.chdir(run.path)
    (code,) = re.findall(r"```python\n(.*?)```", (run.path / "README.md").read_text(), re.DOTALL)
    exec(code, {})
    assert len(capsys.readouterr().out.splitlines()) == 2


@pytest.mark.parametrize(
    ("given", "told"),
    [
        ({"text": ["a", "b"]}, "Got dict instead"),
        ({"a", "b"}, "Got set instead"),
        (None, "Got NoneType instead"),
        (7, "Got int instead"),
        (b"bytes", "Got bytes instead"),
        ((text for text in "ab"), "Got generator instead"),
        (["a", None, "b", 7], "Got NoneType at position 1, int at position 3"),
        (["a", ["b"]], "Got list at position 1"),
        (["a", b"b"], "Got bytes at position 1"),
        (pd.Series(["a", float("nan")]), "Got float at position 1"),
        (np.array([["a"], ["b"]]), "Got an array of 2 dimensions instead of one"),
        (np.array("a"), "Got an array of 0 dimensions instead of one"),
        (np.array([1, 2]), "Got int64 at position 0, int64 at position 1"),
        (["a", "half \ud83d"], "row 1 holds half of a character"),
        (pd.DataFrame({"txt": ["a"]}), r"no column 'text', which this run's texts are made of. Did you mean"),
        (pd.DataFrame({"text": [["a"]]}), "row 0 holds list"),
        (pd.DataFrame([["a", "b"]], columns=["text", "text"]), "several columns 'text'"),
    ],
)
def test_what_is_no_text(finished, given, told):
    """Anything else is refused with its position and type, by every method, and nothing is answered."""
    classifier = Classifier.load(finished("tfidf"))
    for ask in (classifier.predict, classifier.predict_proba, classifier.predict_labels, classifier.answer):
        with pytest.raises(DataError, match=told):
            ask(given)
