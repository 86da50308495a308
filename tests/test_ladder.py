"""The ladder of steps: same folds for all, each against its base, failures told, nothing trained twice."""

import sys

import pytest
import yaml

from benchmarks import ladder


def test_steps(emotion_table, tmp_path, monkeypatch, capsys):
    """Two runs, a broken one, what needs it, a blend and a tuned copy; a second call does nothing again."""
    emotion_table(45).to_csv(tmp_path / "train.csv", index=False)
    emotion_table(30, seed=5).to_csv(tmp_path / "test.csv", index=False)
    steps = [
        {"name": "plain", "recipe": "tfidf-logreg", "set": {"cv.n_splits": 3, "tfidf.min_df": 1}},
        {"name": "weak", "base": "plain", "set": {"tfidf.C": 0.1, "cv.n_splits": 5}},
        {"name": "broken", "base": "plain", "set": {"tfidf.C": -1}},
        {"name": "after", "base": "plain", "blend": ["plain", "broken"]},
        {"name": "both", "base": "plain", "blend": ["plain", "weak"]},
        {"name": "fixed", "base": "plain", "tune": ["--strategy", "fixed"]},
    ]
    (tmp_path / "steps.yaml").write_text(yaml.safe_dump(steps))
    arguments = [tmp_path / "steps.yaml", "--train", tmp_path / "train.csv", "--test", tmp_path / "test.csv", "--out",
                 tmp_path / "runs", "--results", tmp_path / "result.md"]  # fmt: skip
    monkeypatch.setattr(sys, "argv", ["ladder", *map(str, arguments)])
    ladder.main()
    rows = {line.split(" | ")[0].strip("| "): line for line in (tmp_path / "result.md").read_text().splitlines()}
    assert "tfidf.C: Input should be greater" in rows["broken"]
    assert "has not ended" in rows["after"]
    for name in ("weak", "both", "fixed"):  # one table of folds: differences out of fold and on the test rows
        assert rows[name].count("[") == 5
    assert rows["plain"].count("[") == 3
    assert set((tmp_path / "runs" / "test.csv").read_text().splitlines()[0].split(",")) == {"id", "text"}
    done = {file: file.stat().st_mtime_ns for file in (tmp_path / "runs").rglob("*/*") if file.is_file()}
    ladder.main()
    assert {file: file.stat().st_mtime_ns for file in (tmp_path / "runs").rglob("*/*") if file.is_file()} == done
    assert "broken: FAILED" in capsys.readouterr().out


def test_unknown_base(tmp_path):
    """A step without anything to do is refused by name."""
    with pytest.raises(AssertionError, match="lost: a step needs"):
        ladder.Ladder.settings(ladder.Ladder.__new__(ladder.Ladder), ladder.Step("lost"))
