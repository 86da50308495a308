"""The server under load: requests a second, p50 and p99 by the number of clients, against `pipeline`; memory over time.

Each client sends one text, waits for the answer, and sends the next. The server is another process, on the same cores
where there are no others. `--pipeline FOLDER` answers the same texts one at a time by transformers' pipeline, with a
model of the same base and number of labels: speed alone is compared. `--minutes` then keeps up the load of 8 clients,
and notes the server's memory (RSS).
"""

from __future__ import annotations

import argparse
import asyncio
import json
import statistics
import sys
import time
from datetime import datetime, timezone
from pathlib import Path

import numpy as np
import pandas as pd
import psutil

from benchmarks.machine import commit, machine


async def client(port: int, texts: list[str], until: float, seconds: list[float], wrong: list[str]) -> None:
    """One client on one connection, until the time is over."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    at = 0
    while time.monotonic() < until:
        body = json.dumps({"texts": [texts[at % len(texts)]]}).encode()
        at += 1
        started = time.monotonic()
        head = "POST /v1/predict HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type: application/json\r\n"
        writer.write(f"{head}Content-Length: {len(body)}\r\n\r\n".encode() + body)
        status = (await reader.readline()).decode().strip()
        size = 0
        while (line := await reader.readline()) not in (b"\r\n", b""):
            name, _, value = line.partition(b":")
            size = int(value) if name.lower() == b"content-length" else size
        await reader.readexactly(size)
        seconds.append(time.monotonic() - started)
        if "200" not in status:
            wrong.append(status)
    writer.close()


async def load(port: int, texts: list[str], clients: int, duration: float) -> tuple[list[float], list[str], float]:
    """Seconds of every request, statuses other than 200, and the time that all took."""
    seconds: list[float] = []
    wrong: list[str] = []
    started = time.monotonic()
    parts = [texts[i * len(texts) // clients :] + texts for i in range(clients)]
    await asyncio.gather(*(client(port, part, started + duration, seconds, wrong) for part in parts))
    return seconds, wrong, time.monotonic() - started


def started_server(run: Path, log: Path) -> tuple[psutil.Popen, int]:
    """The server of a run on a free port, once it is ready."""
    command = [sys.executable, "-m", "lora_cls.cli", "serve", str(run), "--port", "0"]
    with log.open("wb") as out:
        server = psutil.Popen(command, stdout=out, stderr=out)
    while True:
        time.sleep(0.2)
        said = log.read_text(encoding="utf-8")
        if server.poll() is not None:
            sys.exit(said)
        if "http://127.0.0.1:" in said:
            port = int(said.partition("http://127.0.0.1:")[2].split(" ")[0])
            if asyncio.run(ready(port)):
                return server, port


async def ready(port: int) -> bool:
    """Whether the models are loaded."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    writer.write(b"GET /readyz HTTP/1.1\r\nHost: 127.0.0.1\r\nConnection: close\r\n\r\n")
    status = await reader.readline()
    writer.close()
    return b"200" in status


def by_pipeline(folder: Path, texts: list[str], duration: float) -> list[float]:
    """Seconds of each text, one at a time, through `pipeline` on a model and tokenizer in one folder."""
    from transformers import pipeline

    classify = pipeline("text-classification", model=str(folder), top_k=None, function_to_apply="sigmoid")
    classify(texts[0], truncation=True)
    until, seconds = time.monotonic() + duration, []
    while time.monotonic() < until:
        text = texts[len(seconds) % len(texts)]
        started = time.monotonic()
        classify(text, truncation=True)
        seconds.append(time.monotonic() - started)
    return seconds


def row(name: str, clients: object, seconds: list[float], took: float, wrong: int, rss: str) -> str:
    """A line of the table."""
    p50, p99 = statistics.median(seconds), float(np.quantile(seconds, 0.99))
    return (
        f"| {name} | {clients} | {len(seconds)} | {len(seconds) / took:.1f} | {p50 * 1e3:.0f} | {p99 * 1e3:.0f} | "
        f"{wrong} | {rss} |"
    )


def main() -> None:
    """Measure, and write a table."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("run", type=Path)
    parser.add_argument("texts", type=Path, help="a table with a column text")
    parser.add_argument("--clients", type=int, nargs="+", default=[1, 8, 64])
    parser.add_argument("--seconds", type=float, default=20.0, help="of each load")
    parser.add_argument("--minutes", type=float, default=0.0, help="of a load of 8 clients in which memory is noted")
    parser.add_argument("--pipeline", type=Path, help="a folder for AutoModelForSequenceClassification")
    parser.add_argument("--beside", default="", help="what else the machine did, for the table")
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--results", type=Path)
    given = parser.parse_args()
    given.work.mkdir(parents=True, exist_ok=True)
    texts = pd.read_csv(given.texts, keep_default_na=False)["text"].tolist()
    lines = ["| answered by | clients | requests | a second | p50 ms | p99 ms | errors | RSS MiB |", "|" + "---|" * 8]
    notes = []
    if given.pipeline:
        seconds = by_pipeline(given.pipeline, texts, given.seconds)
        lines.append(row("pipeline, one at a time, without HTTP", 1, seconds, sum(seconds), 0, ""))
        print(lines[-1], flush=True)
    server, port = started_server(given.run, given.work / "server.log")
    said = (given.work / "server.log").read_text(encoding="utf-8").splitlines()[0].rpartition("', ")[2]
    try:
        asyncio.run(load(port, texts, 8, 3))  # the first requests prepare kernels and memory
        for clients in given.clients:
            seconds, wrong, took = asyncio.run(load(port, texts, clients, given.seconds))
            mib = f"{server.memory_info().rss / 2**20:.0f}"
            lines.append(row("lora-cls serve", clients, seconds, took, len(wrong), mib))
            print(lines[-1], flush=True)
        if given.minutes:
            found, answered, errors = [], 0, 0
            for _ in range(round(given.minutes * 2)):
                seconds, wrong, _ = asyncio.run(load(port, texts, 8, 30))
                answered, errors = answered + len(seconds), errors + len(wrong)
                found.append(server.memory_info().rss / 2**20)
                print(f"{found[-1]:.0f} MiB", flush=True)
            notes = [
                f"Memory over {given.minutes:g} minutes of 8 clients ({answered:,} requests, {errors} errors), MiB "
                f"each half minute: {', '.join(f'{mib:.0f}' for mib in found)}.",
                "",
            ]
    finally:
        server.terminate()
        code = server.wait(60)
    text = "\n".join(
        [
            f"## {given.run.name}: {said.rstrip(')')}",
            "",
            f"{datetime.now(timezone.utc):%Y-%m-%d}, commit {commit()}; {machine()}. {given.beside}".rstrip(),
            "",
            *lines,
            "",
            *notes,
            f"Stopped by SIGTERM with exit code {code}.",
            "",
        ]
    )
    print(text)
    if given.results:
        with given.results.open("a", encoding="utf-8") as results:
            results.write("\n" + text)


if __name__ == "__main__":
    main()
