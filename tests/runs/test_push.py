"""Runs and exports on the hub: what a server on this machine receives, and what is refused before anything is sent."""

import base64
import hashlib
import json
import re
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import numpy as np
import pandas as pd
import pytest

from lora_cls.commands.export import export
from lora_cls.commands.predict import Classifier
from lora_cls.commands.push import push
from lora_cls.commands.tune import tune
from lora_cls.errors import RecipeError, RunError
from lora_cls.report.page import write_page
from lora_cls.runs import RunFolder, training_data

REPO = "ann/emotions"
TOKEN = "hf_test"
OWN_PATH = re.compile(rb"/(tmp|home|root|usr|work|opt)/")


class Hub(ThreadingHTTPServer):
    """As much of the hub as a push asks for: repositories with their files, in memory, and what it was asked."""

    def __init__(self):
        super().__init__(("127.0.0.1", 0), Requests)
        self.repos, self.blobs, self.asked, self.commits = {}, {}, [], 0
        self.endpoint = f"http://127.0.0.1:{self.server_port}"


class Requests(BaseHTTPRequestHandler):
    def log_message(self, *args):
        pass

    def answer(self, status, value=None, **headers):
        body = json.dumps(value).encode()
        self.send_response(status)
        for name, said in {"Content-Type": "application/json", "Content-Length": len(body), **headers}.items():
            self.send_header(name.replace("_", "-"), str(said))
        self.end_headers()
        self.wfile.write(body)

    def handle_one(self):
        hub, path = self.server, self.path.partition("?")[0]
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        hub.asked.append(f"{self.command} {path}")
        if path.startswith("/lfs/"):
            assert hashlib.sha256(body).hexdigest() == path.removeprefix("/lfs/")
            hub.blobs[path.removeprefix("/lfs/")] = body
            return self.answer(200)
        if self.headers.get("Authorization") != f"Bearer {TOKEN}":
            return self.answer(401, {"error": "Invalid username or password."})
        if path == "/api/repos/create":
            given = json.loads(body)
            name = f"{given['organization']}/{given['name']}"
            if given["organization"] != "ann":
                return self.answer(403, {"error": "You don't have the rights to create a model under this namespace"})
            hub.repos[name] = {"private": given["visibility"] == "private", "files": {}}
            return self.answer(200, {"url": f"{hub.endpoint}/{name}"})
        if path == "/api/validate-yaml":
            return self.answer(200, {"errors": [], "warnings": []})
        name = re.fullmatch(r"(?:/api/models)?/(\w+/\w+)(?:\.git|/.*)?.*", path)[1]
        if name not in hub.repos:
            return self.answer(404, {"error": "Repository not found"}, X_Error_Code="RepoNotFound")
        repo = hub.repos[name]
        if path == f"/api/models/{name}":
            found = [{"rfilename": file} for file in repo["files"]]
            return self.answer(200, {"id": name, "private": repo["private"], "sha": "0" * 40, "siblings": found})
        if path == f"/api/models/{name}/tree/main":
            found = [
                {"type": "file", "path": file, "size": len(content), "oid": "0"}
                for file, content in repo["files"].items()
            ]
            return self.answer(200, found)
        given = [json.loads(line) for line in body.splitlines()]
        if path == f"/api/models/{name}/preupload/main":
            modes = [
                {
                    "path": f["path"],
                    "uploadMode": "lfs" if f["path"].endswith("s") else "regular",
                    "shouldIgnore": False,
                }
                for f in given[0]["files"]
            ]
            return self.answer(200, {"files": modes})
        if path == f"/{name}.git/info/lfs/objects/batch":
            actions = [
                o | {"actions": {"upload": {"href": f"{hub.endpoint}/lfs/{o['oid']}"}}} for o in given[0]["objects"]
            ]
            return self.answer(200, {"transfer": "basic", "objects": actions})
        assert path == f"/api/models/{name}/commit/main", path
        hub.commits += 1
        for line in given:
            value = line["value"]
            if line["key"] == "file":
                repo["files"][value["path"]] = base64.b64decode(value["content"])
            elif line["key"] == "lfsFile":
                repo["files"][value["path"]] = hub.blobs[value["oid"]]
            elif line["key"] == "deletedFile":
                del repo["files"][value["path"]]
        return self.answer(200, {"commitUrl": f"{hub.endpoint}/{name}/commit/{'0' * 40}", "commitOid": "0" * 40})

    do_GET = do_POST = do_PUT = handle_one  # noqa: N815


@pytest.fixture
def hub(monkeypatch):
    """A running stub of the hub, which huggingface_hub takes for it."""
    from huggingface_hub import constants
    from huggingface_hub.utils import _http

    served = Hub()
    threading.Thread(target=served.serve_forever, daemon=True).start()
    for name, value in {"ENDPOINT": served.endpoint, "HF_HUB_OFFLINE": False, "HF_HUB_DISABLE_XET": True}.items():
        monkeypatch.setattr(constants, name, value)
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    _http.close_session()
    yield served
    served.shutdown()
    served.server_close()
    _http.close_session()


@pytest.fixture(scope="module")
def run(small_recipe, train, test, tmp_path_factory):
    """Two folds of adapters, from files; the rows are called by names of people."""
    from lora_cls.commands.cross_validation import cross_validate

    folder = tmp_path_factory.mktemp("push")
    train.assign(id=[f"ann.{i}@example.org" for i in range(len(train))]).to_csv(folder / "train.csv", index=False)
    test.to_csv(folder / "test.csv", index=False)
    return cross_validate(small_recipe("bert"), folder / "train.csv", folder / "test.csv", folder / "run")


def downloaded(hub, folder):
    """What the hub holds, as files."""
    for name, content in hub.repos[REPO]["files"].items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(content)
    return folder


def test_dry_run_and_what_arrives(run, copy_of, hub, tmp_path):
    """A dry run asks nobody; the hub then receives these very files, in one commit, in a private repository; nothing
    in them is a text, an id or a path; and they answer as the run does."""
    run = copy_of(run)
    write_page(run, training_data(run))  # with texts
    told = push(run, REPO, base_model="org/tiny", dry_run=True)
    assert (told.url, hub.asked) == (None, [])
    assert {"README.md", "report.html", "thresholds.json", "labels.json", "fold-00/adapter/adapter_config.json"} <= {
        file.path for file in told.files
    }
    assert {"folds.csv", "train_labels.csv", "oof_proba.csv", "text_hashes.npy", "mistakes.csv"} <= set(told.kept)
    assert told.notes == []
    sent = push(run, REPO, base_model="org/tiny")
    repo = hub.repos[REPO]
    assert (repo["private"], hub.commits, sent.files) == (True, 1, told.files)
    arrived = {name: (len(content), hashlib.sha256(content).hexdigest()) for name, content in repo["files"].items()}
    assert arrived == {file.path: (file.size, file.sha256) for file in told.files}
    texts = [text for text in training_data(run).texts if len(text) > 20]
    assert any(text in run.files.page.read_text() for text in texts)
    for name, content in repo["files"].items():
        assert not OWN_PATH.search(content), name
        assert b"example.org" not in content, name
        assert not [text for text in texts if text.encode() in content], name
    there = downloaded(hub, tmp_path / "there")
    config = json.loads((there / "fold-00/adapter/adapter_config.json").read_text())
    assert config["base_model_name_or_path"] == "org/tiny"
    card = (there / "README.md").read_text()
    assert "base_model: org/tiny" in card and "from_pretrained('org/tiny')" in card and "Before you share" not in card
    base = run.info.backbone_path
    texts = ["so happy", "afraid and worried"]
    answers = Classifier.load(there, backbone=base).predict_proba(texts)
    np.testing.assert_array_equal(answers, Classifier.load(run).predict_proba(texts))
    with pytest.raises(RunError, match="was pushed to the hub without its rows"):
        tune(there)


@pytest.mark.parametrize("to", ["adapter", "merged"])
def test_exports(run, hub, tmp_path, to):
    """An export opens as it did; a merged one needs no name of its base."""
    shipped = export(run, tmp_path / "shipped", to=to)
    sent = push(shipped, REPO, base_model="org/tiny" if to == "adapter" else None, public=True)
    assert hub.repos[REPO]["private"] is False
    assert not [name for name, content in hub.repos[REPO]["files"].items() if OWN_PATH.search(content)]
    assert sent.kept == ["text_hashes.npy"]
    there = downloaded(hub, tmp_path / "there")
    assert "Before you share" not in (there / "README.md").read_text()
    base = run.info.backbone_path if to == "adapter" else None
    answers = Classifier.load(there, backbone=base).predict_proba("so happy")
    np.testing.assert_array_equal(answers, Classifier.load(shipped).predict_proba("so happy"))


def test_an_export_for_another_program(run, hub, tmp_path):
    """One without a recipe goes as it is: models, card and JSON; and is searched like any other."""
    folder = tmp_path / "plain"
    folder.mkdir()
    for name in ("README.md", "config.json", "export.json", "model.safetensors", "train.csv"):
        (folder / name).write_bytes(b"{}" if name.endswith("json") else b"\0" * 16)
    sent = push(folder, REPO)
    assert hub.repos[REPO]["files"] == {file.path: (folder / file.path).read_bytes() for file in sent.files}
    assert (len(sent.files), sent.kept) == (4, ["train.csv"])
    assert sent.notes == ["No texts of training rows were looked for: give the table with --train."]
    rows = training_data(run)
    (folder / "README.md").write_text(f"It says yes of: {rows.texts[0]}")
    (folder / "config.json").write_text('{"_name_or_path": "/home/ann/base"}')
    with pytest.raises(RunError, match=r"(?s)config\.json holds a path.*README\.md holds the text of .* 'row 0'"):
        push(folder, REPO, train=run.path.parent / "train.csv")


def test_all_that_must_not_leave_is_named(run, copy_of, hub):
    """A folder that holds texts and paths is refused, with every file named at once; nothing is sent."""
    run = copy_of(run)
    rows = training_data(run)
    (quoted,) = [i for i, name in enumerate(rows.ids) if name == "ann.3@example.org"]
    notes = json.dumps({"seen": f'as in "{rows.texts[quoted]}"'})
    (run.path / "fold-00/adapter/notes.json").write_text(notes)
    (run.path / "fold-01/adapter/note.txt").write_text("made of /home/ann/secret/train.csv, and ~/more.csv")
    with pytest.raises(RunError) as refused:
        push(run, REPO)
    said = str(refused.value)
    assert "is not sent to the hub, nothing of it" in said
    assert "which others do not have: say what it is called on the hub with --base-model" in said
    assert "fold-00/adapter/notes.json holds the text of a training row: 'ann.3@example.org'" in said
    assert "fold-01/adapter/note.txt holds a path of this machine: '/home/ann/secret/train.csv' and 1 more" in said
    assert hub.asked == []


def test_texts_that_cannot_be_read(run, copy_of):
    """Where the training table is gone, it is said that no texts were looked for; another table is refused."""
    moved = copy_of(run)
    info = moved.info
    paths = info.data.paths | {"train": "gone.csv"}
    info.model_copy(update={"data": info.data.model_copy(update={"paths": paths})}).write(moved.files.info)
    moved = RunFolder(moved.path)
    (note,) = push(moved, REPO, base_model="org/tiny", dry_run=True).notes
    assert note.startswith("No texts of training rows were looked for (") and note.endswith("with --train.")
    table = run.path.parent / "train.csv"
    assert push(moved, REPO, base_model="org/tiny", dry_run=True, train=table).notes == []
    with pytest.raises(RunError, match="is not the data"):
        push(moved, REPO, base_model="org/tiny", dry_run=True, train=pd.read_csv(table).iloc[:-1])


def test_kinds_that_stay(finished):
    """Nothing of a TF-IDF model works without words of the training texts."""
    with pytest.raises(RunError, match="vocabularies hold words and pieces of the training texts"):
        push(finished("tfidf"), REPO)


@pytest.mark.parametrize(
    ("repo", "base", "said"),
    [("emotions", None, "OWNER/NAME"), ("ann/emo tions", None, "OWNER/NAME"), (REPO, "/opt/base", "--base-model")],
)
def test_names(run, repo, base, said):
    with pytest.raises(RecipeError, match=said):
        push(run, repo, base_model=base, dry_run=True)


def test_a_second_push(run, hub):
    """What an earlier push left and this one does not send is removed; files of others stay."""
    push(run, REPO, base_model="org/tiny")
    files = hub.repos[REPO]["files"]
    first = dict(files)
    files |= {"fold-09/fold.json": b"{}", "fold-09/adapter/adapter_model.safetensors": b"", "LICENSE": b"mine"}
    push(run, REPO, base_model="org/tiny")
    assert hub.repos[REPO]["files"] == first | {"LICENSE": b"mine"}


def test_a_public_repository(run, hub):
    """What is private by default goes into no public repository unasked."""
    push(run, REPO, base_model="org/tiny", public=True)
    with pytest.raises(RunError, match="is there, and public: send it there with --public"):
        push(run, REPO, base_model="org/tiny")


def refused(run, repo=REPO):
    with pytest.raises(RunError) as error:
        push(run, repo, base_model="org/tiny")
    assert "\n" not in str(error.value)
    return str(error.value)


def test_what_the_hub_refuses(run, hub, monkeypatch):
    """One sentence each: no token, a wrong one, no right to write, no hub, and a hub that is switched off."""
    from huggingface_hub import constants

    assert "does not let this token write to bob/emotions" in refused(run, "bob/emotions")
    monkeypatch.setenv("HF_TOKEN", "hf_wrong")
    assert "does not know the token" in refused(run)
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    assert "HF_HUB_OFFLINE" in refused(run)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.delenv("HF_TOKEN")
    monkeypatch.setattr(constants, "HF_TOKEN_PATH", "nowhere")
    assert "no token" in refused(run)
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")
    assert "cannot be reached" in refused(run)
    assert hub.repos == {}
