"""What a run wrote is checked when it is read; one process writes at a time; threads share a `Classifier`."""

import json
import shutil
import subprocess
import sys
import threading

import numpy as np
import pytest

from lora_cls.commands.blend import blend
from lora_cls.commands.cross_validation import cross_validate
from lora_cls.commands.predict import Classifier, predict_file
from lora_cls.commands.tune import tune
from lora_cls.errors import RunError
from lora_cls.recipe import Thresholds
from lora_cls.runs import RunFolder
from lora_cls.runs.lock import LOCK, locked

TEXTS = ["happy and delighted, a lovely day", "furious and angry, I hate it", "afraid of the dark"] * 3


@pytest.mark.parametrize("kind", ["tfidf", "llama"])
def test_threads_answer_as_one_after_the_other(finished, kind):
    """Four threads on one `Classifier`: each gets the answers that it would have got alone."""
    classifier = Classifier.load(finished(kind).path)
    parts = [[*TEXTS[i : i + 3], f"text {i} of its own"] for i in range(8)]
    alone = [classifier.predict_proba(part) for part in parts]
    found = {}

    def work(first):
        for _ in range(3):
            for i in range(first, len(parts), 4):
                found.setdefault(i, []).append(classifier.predict_proba(parts[i]))

    threads = [threading.Thread(target=work, args=(i,)) for i in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for i, expected in enumerate(alone):
        assert len(found[i]) == 3
        assert all(np.array_equal(answer, expected) for answer in found[i])


def test_a_fold_that_another_process_trains(finished, train, test, sample, copy_of):
    """The message says which process, and nothing is trained twice; afterwards the lock is gone."""
    run = copy_of(finished("tfidf"))
    run.fold(1).info_file.unlink()
    code = (
        "import sys\nfrom pathlib import Path\nfrom lora_cls.runs.lock import locked\n"
        "with locked(Path(sys.argv[1]), 'is trained'):\n    print('held', flush=True)\n    sys.stdin.readline()"
    )
    holder = subprocess.Popen(
        [sys.executable, "-c", code, str(run.fold(1).path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert holder.stdout.readline() == "held\n"
    again = {"out": run.path, "sample_submission": sample, "resume": True}
    with pytest.raises(RunError, match=f"fold-01: is trained by process {holder.pid} on .* since "):
        cross_validate(run.recipe, train, test, **again)
    holder.communicate("\n")
    assert cross_validate(run.recipe, train, test, **again).finished_folds == [0, 1, 2]
    assert not list(run.path.rglob(LOCK))


def test_a_lock_of_a_killed_process(tmp_path):
    """What a kill leaves behind stops nobody, and goes with the next use."""
    (tmp_path / LOCK).write_text("process 1 on another-machine since 2026-01-01 00:00:00")
    with locked(tmp_path, "is written"), locked(tmp_path, "is written"):  # a process may take it again
        assert (tmp_path / LOCK).is_file()
    assert not (tmp_path / LOCK).exists()


def test_tuning_stopped_between_thresholds_and_scores(finished, copy_of):
    """New thresholds beside old scores are not shown as one result; `tune` mends it."""
    run = copy_of(finished("tfidf"))
    old = run.files.scores.read_bytes()
    before = run.results().scores.strategy
    tune(run.path, Thresholds(strategy="fixed", default=0.9))
    run.files.scores.write_bytes(old)
    with pytest.raises(RunError, match="lora-cls tune"):
        RunFolder(run.path).results()
    tune(run.path)
    assert RunFolder(run.path).results().scores.strategy == before


def test_a_blend_without_its_fits(finished, copy_of, tmp_path):
    """A blend that learnt from labels is never scored without what it learnt."""
    first = finished("tfidf")
    second = shutil.copytree(first.path, tmp_path / "second")
    blended = blend([first.path, second], tmp_path / "blend", "stacking")
    score = blended.results().scores.cross_fitted.macro_f1
    assert tune(blended.path).cross_fitted.macro_f1 == score
    blended.files.fitted_logits.unlink()
    with pytest.raises(RunError, match=r"fitted_logits\.npy is missing"):
        tune(blended.path)


def test_a_blend_stopped_while_it_is_written(finished, tmp_path, monkeypatch):
    """Stopped at any time, there is no blend at all, and the same command makes it."""
    import lora_cls.commands.blend as module

    class Stopped(BaseException):
        pass

    def stop(*_, **__):
        raise Stopped

    first = finished("tfidf")
    second = shutil.copytree(first.path, tmp_path / "second")
    for name in ("tune", "sums", "_fold_info"):
        with monkeypatch.context() as patch:
            patch.setattr(module, name, stop)
            with pytest.raises(Stopped):
                blend([first.path, second], tmp_path / "blend", "stacking")
        assert sorted(path.name for path in tmp_path.iterdir()) == ["second"]
    run = blend([first.path, second], tmp_path / "blend", "stacking")
    assert "# blend" in run.files.card.read_text()
    assert not list(run.path.rglob(LOCK))


def test_changed_on_purpose(finished, copy_of):
    """Thresholds that a user changed by hand are taken, as the message says, without their sum; but for nonsense."""
    run = copy_of(finished("tfidf"))
    values = json.loads(run.files.decision.read_text())
    for threshold, right in ((0.9, True), (2.5, False), (-1, False), ("0.5", False), (True, False)):
        changed = values | {"shipped": values["shipped"] | {"joy": threshold}}
        run.files.decision.write_text(json.dumps(changed))
        with pytest.raises(RunError):
            Classifier.load(run.path)
        del changed["sha256"]
        run.files.decision.write_text(json.dumps(changed))
        if right:
            assert Classifier.load(run.path).thresholds[run.label_names.index("joy")] == threshold
        else:
            with pytest.raises(RunError, match=r"shipped\.joy"):
                Classifier.load(run.path)


def test_many_rows_in_pieces(finished, copy_of, test, tmp_path, monkeypatch):
    """What was answered before a stop is not answered again, the files are the same, and no piece is left."""
    import lora_cls.commands.predict as module

    run = copy_of(finished("tfidf"))
    whole = predict_file(run, test, tmp_path / "whole")
    monkeypatch.setattr(module, "ROWS_PER_PIECE", 5)
    logits, asked = Classifier.logits, []

    def stop(self, rows, models, *told):
        asked.append(len(rows))
        if len(asked) == 2:
            raise KeyboardInterrupt
        return logits(self, rows, models, *told)

    monkeypatch.setattr(Classifier, "logits", stop)
    with pytest.raises(KeyboardInterrupt):
        predict_file(run, test, tmp_path / "pieces")
    predict_file(run, test, tmp_path / "pieces")
    assert asked == [5, 5, 5, 2]
    assert sorted(file.name for file in (tmp_path / "pieces").iterdir()) == ["submission.csv", "test_proba.csv"]
    for file in whole.iterdir():
        assert file.read_bytes() == (tmp_path / "pieces" / file.name).read_bytes()
    asked.clear()
    with pytest.raises(KeyboardInterrupt):
        predict_file(run, test, tmp_path / "again")
    tune(run.path, Thresholds(strategy="fixed", default=0.9))
    asked.clear()
    asked += [0, 0]
    predict_file(RunFolder(run.path), test, tmp_path / "again")  # other thresholds: all anew
    assert asked[2:] == [5, 5, 2]


@pytest.mark.skipif(sys.platform == "darwin", reason="its file names are text")
def test_names_of_bytes_that_are_no_text(finished, train, test, tmp_path):
    """Files and folders whose names are no UTF-8, as of old archives: the run is complete, card and page included."""
    folder = tmp_path / "tr\udce4in"
    folder.mkdir()
    train.to_csv(folder / "tr\udce4in.csv", index=False)
    said = []
    run = cross_validate(finished("tfidf").recipe, folder / "tr\udce4in.csv", test, folder / "r\udce4n")
    tune(run, say=said.append)
    assert said == []
    assert run.files.card.is_file() and run.files.page.is_file()
    assert Classifier.load(run.path).predict(TEXTS).shape == (9, 3)
