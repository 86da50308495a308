"""The server: right answers, several clients in one pass, every limit; whatever clients do, the next one is right."""

import http.client
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from contextlib import contextmanager

import numpy as np
import pytest

pytest.importorskip("fastapi")
pytest.importorskip("uvicorn")
pytest.importorskip("prometheus_client")

from lora_cls.errors import DataError, RecipeError, RunError
from lora_cls.evaluation.abstention import Abstention
from lora_cls.serving.limits import Limits
from lora_cls.serving.listener import make_server
from lora_cls.serving.served import Served, named_places
from lora_cls.serving.server import serve

LABELS = ["joy", "</script><img src=x onerror=alert(1)>"]


class Stub:
    """Models whose answer for a text is its length, and for `bad` an error."""

    n_models = 2

    def __init__(self, seconds=0.0, label_names=LABELS):
        self.label_names, self.seconds = list(label_names), seconds
        self.passes, self.may_go = [], threading.Event()
        self.may_go.set()

    def answer(self, texts):
        if texts == ["a text"]:  # when the server starts
            return np.zeros((1, 2)), np.zeros((1, 2), dtype=np.int8)
        self.passes.append(list(texts))
        assert self.may_go.wait(20)
        time.sleep(self.seconds)
        if "bad" in texts:
            raise DataError("a text is bad.")
        if "worse" in texts:
            raise ZeroDivisionError
        scores = np.array([[len(text) / 1000, 0.25] for text in texts])
        return scores, (scores >= [0.005, 0.5]).astype(np.int8)


def served(models, name="stub", **more):
    return Served(name, models, ("text",), "multi_label", False, (0.005, 0.5), **more)


@contextmanager
def running(*runs, token=None, hosts=None, **limits):
    """The port of a server in a thread; stopped afterwards."""
    failures = []
    server = make_server({run.name: run for run in runs}, Limits(**limits), token, hosts, failures.append)
    listening = socket.create_server(("127.0.0.1", 0))
    port = listening.getsockname()[1]
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listening]})
    thread.start()
    try:
        until = time.monotonic() + 20
        while call(port, "/readyz")[0] != 200 and not failures and time.monotonic() < until:
            time.sleep(0.01)
        assert not failures
        yield port, server
    finally:
        server.should_exit = True
        thread.join(30)
        assert not thread.is_alive()


def call(port, path="/v1/predict", body=None, headers=None):
    """Status, and what the JSON says (text where it is none)."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=30)
    data = body if isinstance(body, (bytes, type(None))) else json.dumps(body).encode()
    known = {"Content-Type": "application/json"}
    connection.request("GET" if data is None else "POST", path, data, known | (headers or {}))
    answer = connection.getresponse()
    text = answer.read().decode()
    connection.close()
    is_json = answer.headers["Content-Type"] == "application/json"
    return answer.status, json.loads(text) if is_json else text


def right(port, text="happy"):
    """Whether the next answer is right."""
    status, found = call(port, body={"texts": [text]})
    return status == 200 and found["answers"][0]["probabilities"]["joy"] == len(text) / 1000


def test_an_answer():
    """Probabilities, thresholds and labels, in the order of the texts and by name; what is served, too."""
    with running(served(Stub())) as (port, _):
        status, found = call(port, body={"texts": ["four", "fives"]})
        assert status == 200
        assert found["thresholds"] == dict(zip(LABELS, (0.005, 0.5), strict=True))
        assert [answer["labels"] for answer in found["answers"]] == [[], ["joy"]]
        assert found["answers"][1]["probabilities"] == {LABELS[0]: 0.005, LABELS[1]: 0.25}
        assert call(port, body={"texts": ["x"], "run": "stub"})[0] == 200
        facts = call(port, "/v1/runs")[1]
        assert facts["runs"][0]["labels"] == LABELS and facts["max_texts"] == 1000
        assert call(port, "/healthz") == (200, {"status": "alive"})


def test_clients_are_answered_together():
    """While a pass is under way others wait, and are answered in one; each gets its own."""
    models = Stub()
    with running(served(models)) as (port, _):
        models.may_go.clear()
        answers = {}
        texts = ["x" * n for n in range(1, 21)]
        threads = [
            threading.Thread(target=lambda text=text: answers.update({text: call(port, body={"texts": [text]})}))
            for text in texts
        ]
        for thread in threads:
            thread.start()
        until = time.monotonic() + 10
        while "lora_cls_waiting_requests 20.0" not in call(port, "/metrics")[1] and time.monotonic() < until:
            time.sleep(0.01)  # the loop answers this while the models are at work
        models.may_go.set()
        for thread in threads:
            thread.join(20)
        found = {text: answer["answers"][0]["probabilities"]["joy"] for text, (_, answer) in answers.items()}
        assert found == {text: len(text) / 1000 for text in texts}
        assert len(models.passes) == 2 and len(models.passes[1]) >= 15


def test_freed_memory_goes_back_now_and_then(monkeypatch):
    """Not after every pass: behind the first one that ends after the time."""
    from lora_cls.serving import batching

    given = []
    monkeypatch.setattr(batching, "give_back_memory", lambda: given.append(threading.current_thread().name))
    with running(served(Stub())) as (port, _):
        assert right(port) and right(port)
        assert not given
        monkeypatch.setattr(batching, "GIVES_BACK", 0.0)
        assert right(port) and right(port)
    assert len(given) == 2 and all(name.startswith("models") for name in given)


def test_a_large_request_lets_others_through():
    """Its rows are asked by length, 64 at a time, and the answers are in its own order."""
    models = Stub(seconds=0.02)
    with running(served(models)) as (port, _):
        texts = ["x" * (1 + i * 7 % 300) for i in range(500)]
        large = threading.Thread(target=lambda: done.append(call(port, body={"texts": texts})[1]))
        done = []
        large.start()
        while not models.passes:
            time.sleep(0.005)
        assert right(port) and not done
        large.join(20)
        assert [a["probabilities"]["joy"] for a in done[0]["answers"]] == [len(text) / 1000 for text in texts]
        assert max(map(len, models.passes)) == 64
        first = [len(text) for text in models.passes[0]]
        assert first == sorted(first, reverse=True) and min(first) > 200


def test_who_sent_what_is_wrong_hears_of_it_alone():
    """One request of a pass fails, the others are answered; other errors are 500 without their insides."""
    models = Stub()
    with running(served(models)) as (port, _):
        models.may_go.clear()
        answers = {}
        threads = [
            threading.Thread(target=lambda text=text: answers.update({text: call(port, body={"texts": [text]})}))
            for text in ("first", "good", "bad")
        ]
        for thread in threads:
            thread.start()
            time.sleep(0.1)
        models.may_go.set()
        for thread in threads:
            thread.join(20)
        assert answers["bad"] == (422, {"detail": "a text is bad."})
        assert answers["good"][0] == answers["first"][0] == 200
        status, said = call(port, body={"texts": ["worse"]})
        assert status == 500 and "ZeroDivision" not in str(said)
        assert right(port)


@pytest.mark.parametrize(
    ("body", "status", "sentence"),
    [
        (b"{", 422, "no JSON object"),
        (b"[1]", 422, "no JSON object"),
        (b"[" * 100_000, 400, "nested too deeply"),
        (b'{"texts": ["\xff"]}', 400, "no JSON in UTF-8"),
        (b'{"texts": ["\\ud800"]}', 422, "texts.0: it holds half of a character"),
        (b'{"texts": [NaN]}', 422, "texts.0: expected a text"),
        ({"texts": []}, 422, "1 to 1,000 texts"),
        ({"texts": ["x"] * 10_000}, 422, "1 to 1,000 texts"),
        ({"texts": ["x", 3]}, 422, "texts.1: expected a text"),
        ({"texts": [{"text": "x"}]}, 422, "texts.0: expected a text"),
        ({"texts": ["x" * 101]}, 422, "a text may hold 100 characters"),
        ({"texts": ["x"], "other": 1}, 422, "other: "),
        ({"texts": ["x"], "run": "nobody"}, 422, "run that is served: stub"),
        (b"x" * 10_000_000, 413, "1,000,000 bytes"),
    ],
)
def test_what_is_wrong_is_refused(server_of_limits, body, status, sentence):
    """With the status and a sentence that says where; the next answer is right."""
    found, said = call(server_of_limits, body=body)
    assert found == status and sentence in said["detail"]
    assert right(server_of_limits)


@pytest.fixture(scope="module")
def server_of_limits():
    with running(served(Stub()), characters=100) as (port, _):
        yield port


def test_a_body_without_end_is_refused(server_of_limits):
    """Without a Content-Length it is counted as it comes."""
    with socket.create_connection(("127.0.0.1", server_of_limits), timeout=20) as connection:
        connection.sendall(b"POST /v1/predict HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n")
        for _ in range(20):
            connection.sendall(b"10000\r\n" + b"x" * 0x10000 + b"\r\n")
        assert connection.recv(1000).startswith(b"HTTP/1.1 413")
    assert right(server_of_limits)


def test_slow_clients_and_those_who_leave():
    """A body that does not arrive is refused; headers that do not are cut off; a client that leaves is forgotten."""
    models = Stub()
    with running(served(models), reading=0.3) as (port, _):
        with socket.create_connection(("127.0.0.1", port), timeout=20) as slow:
            slow.sendall(b"POST /v1/predict HTTP/1.1\r\nHost: x\r\nContent-Length: 30\r\n\r\n{")
            with socket.create_connection(("127.0.0.1", port), timeout=20) as slower:
                slower.sendall(b"POST /v1/pre")
                assert right(port)
                assert slow.recv(1000).startswith(b"HTTP/1.1 408")
                assert slower.recv(1000) == b""
        models.may_go.clear()
        waits = threading.Thread(target=right, args=(port,))
        waits.start()
        while not any("happy" in texts for texts in models.passes[1:]):
            time.sleep(0.01)
        body = json.dumps({"texts": ["left"]}).encode()
        with socket.create_connection(("127.0.0.1", port)) as leaver:
            leaver.sendall(b"POST /v1/predict HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n")
            leaver.sendall(f"Content-Length: {len(body)}\r\n\r\n".encode() + body)
            time.sleep(0.2)
        time.sleep(0.2)
        models.may_go.set()
        waits.join(20)
        assert right(port)
        assert not any("left" in texts for texts in models.passes)


def test_too_many_wait_and_too_long():
    """429 while as many wait as may; 503 where the answer takes too long, and nothing of it is asked afterwards."""
    models = Stub()
    with running(served(models), waiting=2, seconds=1.0) as (port, _):
        models.may_go.clear()
        found = []
        threads = [threading.Thread(target=lambda: found.append(call(port, body={"texts": ["x"]}))) for _ in range(2)]
        for thread in threads:
            thread.start()
            time.sleep(0.1)
        status, said = call(port, body={"texts": ["x"]})
        assert status == 429 and said["detail"].startswith("2 requests wait already")
        for thread in threads:
            thread.join(20)
        assert [status for status, _ in found] == [503, 503]
        assert "within 1 seconds" in found[0][1]["detail"]
        models.may_go.set()
        assert right(port)


def test_a_token():
    """Asked of everything that answers or counts; the page and the probes need none."""
    with running(served(Stub()), token="s3cret") as (port, _):
        for headers in ({}, {"Authorization": "Bearer s3cre"}, {"Authorization": "s3cret"}):
            for path in ("/v1/runs", "/metrics"):
                assert call(port, path, headers=headers)[0] == 401
            assert call(port, body={"texts": ["x"]}, headers=headers)[0] == 401
        assert call(port, body={"texts": ["x"]}, headers={"Authorization": "Bearer s3cret"})[0] == 200
        assert call(port, "/")[0] == call(port, "/readyz")[0] == 200


def test_another_name_for_this_machine():
    """A page elsewhere whose name leads here is refused; without a token, as otherwise anybody may ask."""
    with running(served(Stub()), hosts=frozenset({"127.0.0.1", "[::1]"})) as (port, _):
        assert call(port, "/healthz", headers={"Host": "evil.example"})[0] == 400
        assert call(port, "/healthz", headers={"Host": "[::1]:80"})[0] == 200


def test_metrics():
    """Requests by path and status, texts, labels and passes; an unknown path makes no series of its own."""
    with running(served(Stub())) as (port, _):
        assert right(port)
        call(port, "/nowhere/1")
        text = call(port, "/metrics")[1]
        assert 'lora_cls_requests_total{path="/v1/predict",status="200"} 1.0' in text
        assert 'lora_cls_requests_total{path="other",status="404"} 1.0' in text
        assert 'lora_cls_labels_total{label="joy",run="stub"} 1.0' in text
        assert 'lora_cls_texts_total{run="stub"} 1.0' in text and "lora_cls_pass_seconds_count 1.0" in text
        assert "nowhere" not in text


def test_a_request_that_waits_when_the_server_stops_is_answered():
    """No new one is taken."""
    models = Stub(seconds=0.5)
    found = []
    with running(served(models)) as (port, server):
        asks = threading.Thread(target=lambda: found.append(right(port)))
        asks.start()
        while not models.passes:
            time.sleep(0.01)
        server.should_exit = True
        asks.join(20)
    assert found == [True]
    with pytest.raises(OSError, match="refused"):
        call(port)


def test_columns_and_bands():
    """A run of several columns takes objects; a band leaves labels out."""

    class Columns(Stub):
        def answer(self, texts):
            assert list(texts.columns) == ["title", "body"]
            return np.array([[0.9, 0.6]]), np.ones((1, 2), dtype=np.int8)

    band = Abstention(0.9, np.array([0.8, 0.8]), np.array([0.1, 0.1]))
    run = Served("two", Columns(), ("title", "body"), "multi_label", False, (0.5, 0.5), band)
    with running(run) as (port, _):
        status, found = call(port, body={"texts": [{"title": "a", "body": "b"}]})
        assert status == 200
        assert found["answers"][0]["labels"] == ["joy"] and found["answers"][0]["abstained"] == [LABELS[1]]
        for wrong in ("a", {"title": "a"}):
            status, said = call(port, body={"texts": [wrong]})
            assert status == 422 and ("columns title, body" in said["detail"] or "each column" in said["detail"])


def test_the_page_holds_nothing_of_users():
    """Labels come later as text; the policy allows its own script alone."""
    with running(served(Stub())) as (port, _):
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=20)
        connection.request("GET", "/")
        answer = connection.getresponse()
        policy, html = answer.headers["Content-Security-Policy"], answer.read().decode()
        assert "default-src 'none'" in policy and "connect-src 'self'" in policy and "'unsafe-eval'" not in policy
        assert "script-src 'sha256-" in policy and "frame-ancestors 'none'" in policy
        assert "onerror" not in html and "http://" not in html and "https://" not in html
        assert "innerHTML" not in html


def test_the_schema_has_models():
    """Requests and answers are described, with limits."""
    with running(served(Stub()), texts=7) as (port, _):
        schema = call(port, "/openapi.json")[1]
        post = schema["paths"]["/v1/predict"]["post"]
        assert {"200", "400", "401", "408", "413", "422", "429", "500", "503"} == set(post["responses"])
        parts = schema["components"]["schemas"]
        assert parts["PredictRequest"]["properties"]["texts"]["maxItems"] == 7
        assert set(parts["TextAnswer"]["properties"]) == {"labels", "probabilities", "abstained"}


def test_several_runs():
    """Each is asked by its name, which may not be left out."""
    with running(served(Stub()), served(Stub(label_names=["a", "b"]), "other")) as (port, _):
        status, found = call(port, body={"texts": ["x"], "run": "other"})
        assert status == 200 and found["run"] == "other" and list(found["thresholds"]) == ["a", "b"]
        for body in ({"texts": ["x"]}, {"texts": ["x"], "run": None}, {"texts": ["x"], "run": "third"}):
            status, said = call(port, body=body)
            assert status == 422 and said["detail"].endswith("that is served: stub, other.")


def test_names():
    """Of folders, or given; not twice, and none that cannot be asked for."""
    assert list(named_places(["a/b", "c=a/b"])) == ["b", "c"]
    with pytest.raises(RecipeError, match="would both be called b"):
        named_places(["a/b", "c/b"])
    with pytest.raises(RecipeError, match="no name to ask for"):
        named_places(["a/b c"])


def test_what_cannot_be_listened_on(tmp_path, monkeypatch, finished_tfidf):
    """A port that is taken, an address of another machine, and an empty token are refused in a sentence."""
    with socket.create_server(("127.0.0.1", 0)) as taken, pytest.raises(RunError, match="cannot be listened on"):
        serve([finished_tfidf], port=taken.getsockname()[1])
    with pytest.raises(RunError, match="cannot be listened on"):
        serve([finished_tfidf], host="192.0.2.1", port=0)
    monkeypatch.setenv("LORA_CLS_TOKEN", "")
    with pytest.raises(RecipeError, match="LORA_CLS_TOKEN must hold"):
        serve([finished_tfidf], port=0)
    monkeypatch.delenv("LORA_CLS_TOKEN")
    with pytest.raises(RunError, match="nothing"):
        serve([tmp_path / "nothing"], port=0)


@pytest.fixture(scope="module")
def finished_tfidf(tmp_path_factory, emotion_table):
    from lora_cls.commands.cross_validation import cross_validate

    recipe = {"tfidf": {"min_df": 1}, "cv": {"n_splits": 2}}
    return cross_validate(recipe, emotion_table(30), out=tmp_path_factory.mktemp("tfidf") / "run").path


def test_the_command(finished_tfidf, emotion_table):
    """A run by the command line: `Classifier`'s answers, and SIGTERM ends it with exit code 0."""
    from lora_cls import Classifier

    command = [sys.executable, "-m", "lora_cls.cli", "serve", f"mine={finished_tfidf}", "--port", "0"]
    server = subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env=os.environ.copy())
    try:
        said = [server.stderr.readline(), server.stderr.readline()]
        assert said[0].startswith("mine: Classifier(")
        port = int(said[1].partition("127.0.0.1:")[2].split()[0])
        while call(port, "/readyz")[0] != 200:
            time.sleep(0.05)
        texts = emotion_table(5, seed=3)["text"].tolist()
        found = call(port, body={"texts": texts})[1]
        classifier = Classifier.load(finished_tfidf)
        scores = [list(answer["probabilities"].values()) for answer in found["answers"]]
        assert scores == classifier.predict_proba(texts).tolist()
        assert [answer["labels"] for answer in found["answers"]] == classifier.predict_labels(texts)
        server.send_signal(signal.SIGTERM)
        assert server.wait(20) == 0
    finally:
        server.kill()
        server.stderr.close()


CHROMIUM = next((path for name in ("chromium", "google-chrome") if (path := shutil.which(name))), None)


@pytest.mark.skipif(CHROMIUM is None, reason="no Chromium on the path")
@pytest.mark.parametrize("width", [1000, 380])
def test_the_page_in_a_browser(width):
    """Hostile texts and labels are shown as they are, nothing is asked elsewhere, nothing is too wide."""
    sync_api = pytest.importorskip("playwright.sync_api")
    hostile = '<img src=x onerror="window.harmed=1"> \u202egnorw </textarea><script>window.harmed=1</script>'
    said, asked = [], []
    with (
        running(served(Stub()), served(Stub(), "other"), token="abc") as (port, _),
        sync_api.sync_playwright() as playwright,
    ):
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        page = browser.new_page(viewport={"width": width, "height": 800})
        page.on("pageerror", lambda error: said.append(str(error)))
        page.on("request", lambda request: asked.append(request.url))
        page.goto(f"http://127.0.0.1:{port}/")
        page.fill("#token", "abc")
        page.click("#use-token")
        page.wait_for_selector("#ask:not([disabled])")
        page.select_option("#run", "other")
        page.fill("textarea", f"happy\n{hostile}")
        page.click("#ask")
        page.wait_for_selector(".bars")
        assert page.locator(".given").all_text_contents() == ["happy", hostile]
        assert page.locator(".bars").first.locator("dt").all_text_contents() == LABELS
        assert page.locator("#answers img, #answers script").count() == 0
        assert page.evaluate("window.harmed") is None
        assert page.evaluate("document.documentElement.scrollWidth <= window.innerWidth")
        browser.close()
    assert said == []
    assert all(url.startswith(f"http://127.0.0.1:{port}/") for url in asked)
