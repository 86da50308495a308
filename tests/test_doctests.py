"""The examples in the docstrings run, and print what they say."""

import doctest
import importlib
import inspect
from pathlib import Path

import pytest

import lora_cls

PACKAGE = Path(lora_cls.__file__).parent
MODULES = [
    ".".join(file.relative_to(PACKAGE.parent).with_suffix("").parts)
    for file in sorted(PACKAGE.rglob("*.py"))
    if ">>>" in file.read_text(encoding="utf-8")
]
NEED_RUNS = "lora_cls.commands."
"""These train or take a run folder: their examples are run on a table and on runs that a test prepares."""
WITH_RUNS = {
    "Classifier",
    "blend",
    "compare",
    "cross_validate",
    "export",
    "predict_file",
    "push",
    "score_file",
    "sweep",
    "tune",
}


def examples(module, **names):
    """The examples of a module, one `doctest.DocTest` for each docstring that has any; `names` are known in them."""
    found = doctest.DocTestFinder().find(importlib.import_module(module), extraglobs=names)
    return [test for test in found if test.examples]


def check(tests):
    """Run examples; no option may skip or soften one."""
    assert not [test.name for test in tests for example in test.examples if example.options]
    report = []
    runner = doctest.DocTestRunner(verbose=False)
    for test in tests:
        runner.run(test, out=report.append)
    assert not report, "".join(report)


@pytest.mark.parametrize("module", [name for name in MODULES if not name.startswith(NEED_RUNS)])
def test_examples(module, tmp_path, monkeypatch):
    """What works on arrays, tables and recipes; files are written into a folder of the test."""
    monkeypatch.chdir(tmp_path)
    tests = examples(module)
    assert tests
    check(tests)


def test_public_functions_have_examples():
    """All but those that need runs, of which `WITH_RUNS` have one."""
    public = [getattr(lora_cls, name) for name in lora_cls.__all__]
    functions = [found for found in public if inspect.isfunction(found) and not found.__module__.startswith(NEED_RUNS)]
    assert len(functions) >= 8
    assert not [function.__name__ for function in functions if ">>>" not in function.__doc__]


def test_examples_with_runs(emotion_table, tiny_recipe, tmp_path, monkeypatch):
    """Training, and what takes a run: the reader's tables and two runs on the same folds stand ready."""
    monkeypatch.chdir(tmp_path)
    tables = {"train_df": emotion_table(45), "test_df": emotion_table(12, seed=5)[["id", "text"]]}
    baseline = lora_cls.load_recipe("tfidf-logreg", ["cv.n_splits=2"])
    for name, recipe in {"tfidf": baseline, "lora": tiny_recipe("bert")}.items():
        lora_cls.cross_validate(recipe, *tables.values(), f"runs/{name}")
    tests = [test for module in MODULES if module.startswith(NEED_RUNS) for test in examples(module, **tables)]
    assert {test.name.rpartition(".")[2] for test in tests} >= WITH_RUNS
    check(tests)
