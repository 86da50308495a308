"""The benchmark over recipes: same folds for all, a stop costs nothing, and a failure is told."""

import sys

import pytest
import yaml

from benchmarks import encoder_vs_decoder as benchmark


def test_recipes_compared(emotion_table, tmp_path, monkeypatch):
    """Two recipes and a broken one; a second call trains nothing again and writes the result."""
    emotion_table(45).to_csv(tmp_path / "train.csv", index=False)
    emotion_table(12, seed=5)[["id", "text"]].to_csv(tmp_path / "test.csv", index=False)
    recipes = []
    for name, values in {"a": {"tfidf": {"min_df": 1}}, "b": {"tfidf": {"C": 0.1}}, "broken": {"tfidf": 1}}.items():
        file = tmp_path / f"{name}.yaml"
        file.write_text(yaml.safe_dump(values | {"cv": {"n_splits": 3 if name == "a" else 5}}))
        recipes.append(str(file))
    arguments = [
        "--data",
        tmp_path,
        "--out",
        tmp_path / "runs",
        "--results",
        tmp_path / "results",
        "--recipes",
        *recipes,
    ]
    monkeypatch.setattr(sys, "argv", ["benchmark", *map(str, arguments)])
    with pytest.raises(SystemExit) as stopped:
        benchmark.main()
    assert stopped.value.code == 1
    text = (tmp_path / "results" / "encoder_vs_decoder_train.md").read_text(encoding="utf-8")
    assert "FAILED, and missing below: " in text
    assert "45 rows, 3 folds" in text  # those of the first recipe, whatever the second says
    assert "scikit-learn" in text
    assert (tmp_path / "results" / "encoder_vs_decoder_train.svg").is_file()
    before = {file: file.stat().st_mtime_ns for file in (tmp_path / "runs").rglob("*") if file.is_file()}
    monkeypatch.setattr(sys, "argv", ["benchmark", *map(str, arguments[:-1])])  # without the broken one
    with pytest.raises(SystemExit) as stopped:
        benchmark.main()
    assert stopped.value.code == 0
    assert {file: file.stat().st_mtime_ns for file in (tmp_path / "runs").rglob("*") if file.is_file()} == before


def test_data(tmp_path):
    """A folder must hold a training table; more than two files are too many."""
    from lora_cls.errors import DataError

    with pytest.raises(DataError, match=r"holds no train\.csv"):
        benchmark.tables([tmp_path])
    with pytest.raises(DataError, match="Got 3 files"):
        benchmark.tables([tmp_path / name for name in "abc"])
