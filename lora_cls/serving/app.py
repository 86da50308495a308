"""The application: what can be asked over HTTP, and how it is answered or refused."""

# no `from __future__ import annotations`: FastAPI reads the annotations of functions that stand in another one
import asyncio
import logging
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Annotated, Any

import numpy as np
from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import HTMLResponse, JSONResponse, Response
from prometheus_client import CONTENT_TYPE_LATEST
from pydantic import BaseModel, ConfigDict, Field
from starlette.exceptions import HTTPException

from lora_cls import __version__
from lora_cls.errors import DataError, LoraClsError, shorten
from lora_cls.report.offline import served_page
from lora_cls.serving.batching import Batcher, TooManyWaitError
from lora_cls.serving.limits import Limits
from lora_cls.serving.metrics import Metrics
from lora_cls.serving.served import Served

logger = logging.getLogger("lora_cls.serving")

REFUSALS = {
    400: "What was sent is no JSON, or the server is called by a name that it does not have.",
    401: "The token is missing or wrong.",
    408: "The request did not arrive in time.",
    413: "The request is too large.",
    422: "The request is JSON, but not as described here, or a text cannot be read.",
    429: "Too many requests wait: try again in a moment.",
    500: "The models could not answer.",
    503: "The models are being loaded, or there was no answer in time.",
}


class Problem(BaseModel):
    """Why a request is refused."""

    detail: str = Field(description="A sentence.")


class TextAnswer(BaseModel):
    """What is said of one text."""

    labels: list[str] = Field(description="Labels that the models give; one class where each text has exactly one.")
    probabilities: dict[str, float] = Field(description="Of every label; with votes, the share of the models.")
    abstained: list[str] | None = Field(
        default=None,
        description="Labels of which a yes or no would not be sure enough (--abstain-below-precision); left out "
        "where the server gives every answer.",
    )


class PredictAnswer(BaseModel):
    """Answers in the order of the texts."""

    run: str
    task: str = Field(description="multi_label, binary or single_label.")
    thresholds: dict[str, float] = Field(
        description="A label is given at or above its threshold. With single_label: the class with the greatest "
        "probability / threshold."
    )
    answers: list[TextAnswer]


class RunFacts(BaseModel):
    """A run that is served."""

    name: str
    task: str
    models: int = Field(description="Models that answer together.")
    columns: list[str] = Field(description="What texts are made of: of several, a text is an object of them.")
    labels: list[str]
    thresholds: dict[str, float]


class Runs(BaseModel):
    """What is served, and within which limits."""

    version: str
    runs: list[RunFacts]
    max_texts: int
    max_characters: int
    max_bytes: int


class State(BaseModel):
    """How the server is."""

    status: str


def make_app(
    served: dict[str, Served],
    limits: Limits,
    metrics: Metrics,
    failed: Callable[[BaseException], None],
) -> FastAPI:
    """The application, without what guards it.

    Parameters
    ----------
    failed : told of an error that leaves the server without models
    """
    names = list(served)
    batcher = Batcher(limits.window, limits.waiting, metrics.one_pass)
    metrics.waiting.set_function(lambda: batcher.n_waiting)
    ready = False
    who = f"run: expected the name of a run that is served: {shorten(names)}"
    text = Annotated[str, Field(max_length=limits.characters)]
    kinds = {len(run.columns) == 1 for run in served.values()}
    row: Any = text | dict[str, text] if len(kinds) == 2 else text if True in kinds else dict[str, text]
    named: Any = None if len(names) == 1 else ...  # required of several

    class PredictRequest(BaseModel):
        """Texts, and whom to ask."""

        model_config = ConfigDict(extra="forbid")

        texts: list[row] = Field(
            min_length=1,
            max_length=limits.texts,
            description="As they stand in the run's text column. Where texts are made of several columns (see "
            "/v1/runs), each is an object with a text for every column.",
        )
        run: str | None = Field(
            default=named,
            description="The name of a run; may be left out where one is served.",
            json_schema_extra={"enum": [*names, None] if len(names) == 1 else list(names)},
        )

    def warm_up() -> None:
        for run in served.values():
            row = "a text" if len(run.columns) == 1 else dict.fromkeys(run.columns, "a text")
            run.answer([row])

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        async def work() -> None:
            nonlocal ready
            try:
                await batcher.in_thread(warm_up)
                ready = True
                await batcher.run()
            except Exception as error:
                failed(error)

        working = asyncio.create_task(work())
        yield
        working.cancel()
        batcher.close()

    app = FastAPI(
        title="lora_cls", version=__version__, lifespan=lifespan, docs_url=None, redoc_url=None,
        description="Probabilities, thresholds and labels of texts, by models that lora_cls trained.",
    )  # fmt: skip
    app.state.batcher = batcher

    def refusal(status: int, sentence: str, **headers: str) -> JSONResponse:
        return JSONResponse({"detail": sentence}, status, headers=headers)

    def documented(*statuses: int) -> dict[int | str, dict[str, Any]]:
        return {status: {"model": Problem, "description": REFUSALS[status]} for status in statuses}

    @app.exception_handler(RequestValidationError)
    async def invalid(_: Request, error: RequestValidationError) -> Response:
        found = error.errors()
        if any(problem["type"] in ("json_invalid", "model_attributes_type") for problem in found):
            return refusal(422, 'The body is no JSON object such as {"texts": ["a text"]}, sent as application/json.')
        said = dict.fromkeys(who if p["loc"][1:] == ("run",) else _sentence(p, limits) for p in found)
        return refusal(422, f"{shorten(said, 5)}.")

    @app.exception_handler(HTTPException)
    async def refused(_: Request, error: HTTPException) -> Response:
        sentence = (
            "The body is no JSON in UTF-8, or is nested too deeply." if error.status_code == 400 else f"{error.detail}."
        )
        return JSONResponse({"detail": sentence}, error.status_code, headers=error.headers)

    @app.exception_handler(Exception)
    async def broken(_: Request, error: Exception) -> Response:
        return refusal(500, "The server made a mistake: its log has it.")

    @app.get("/", response_class=HTMLResponse, summary="A page to try texts on", include_in_schema=False)
    async def page() -> Response:
        html, policy = served_page()
        return HTMLResponse(html, headers={"Content-Security-Policy": f"{policy}; frame-ancestors 'none'"})

    @app.get("/healthz", summary="Whether the server answers at all", response_model=State, responses=documented(400))
    async def healthz() -> State:
        return State(status="alive")

    @app.get("/readyz", summary="Whether the models are loaded", response_model=State, responses=documented(400, 503))
    async def readyz() -> Any:
        return State(status="ready") if ready else refusal(503, "The models are being loaded.")

    @app.get(
        "/metrics",
        summary="Counters for Prometheus",
        response_class=Response,
        responses=documented(400, 401) | {200: {"content": {"text/plain": {"schema": {"type": "string"}}}}},
    )
    async def counters() -> Response:
        return Response(metrics.text(), media_type=CONTENT_TYPE_LATEST)

    @app.get("/v1/runs", summary="What is served", response_model=Runs, responses=documented(400, 401))
    async def runs() -> Runs:
        facts = [
            RunFacts(
                name=run.name,
                task=run.task,
                models=run.models.n_models,
                columns=list(run.columns),
                labels=run.label_names,
                thresholds=_by_label(run, run.thresholds),
            )
            for run in served.values()
        ]
        return Runs(
            version=__version__,
            runs=facts,
            max_texts=limits.texts,
            max_characters=limits.characters,
            max_bytes=limits.body,
        )

    @app.post(
        "/v1/predict",
        summary="Probabilities and labels of texts",
        response_model=PredictAnswer,
        response_model_exclude_none=True,
        responses=documented(*REFUSALS),
    )
    async def predict(request: Request, asked: PredictRequest) -> Any:
        name = names[0] if asked.run is None and len(names) == 1 else asked.run
        if name not in served:
            return refusal(422, f"{who}.")
        run = served[name]
        if not ready:
            return refusal(503, "The models are being loaded: try again in a moment.", **{"Retry-After": "2"})
        for i, row in enumerate(asked.texts):
            if (problem := run.problem(row)) is not None:
                return refusal(422, f"texts.{i}: {problem}.")
        answering = asyncio.create_task(batcher.answer(run, asked.texts))
        leaving = asyncio.create_task(_gone(request))
        try:
            await asyncio.wait({answering, leaving}, timeout=limits.seconds, return_when=asyncio.FIRST_COMPLETED)
            if not answering.done():
                return refusal(
                    503, f"There was no answer within {limits.seconds:g} seconds: the server is busy, or these are "
                    "too many texts at a time.",
                )  # fmt: skip
            y_score, y_pred = answering.result()
        except TooManyWaitError:
            return refusal(
                429, f"{limits.waiting} requests wait already: try again in a moment.", **{"Retry-After": "1"}
            )
        except DataError as error:
            return refusal(422, str(error))
        except LoraClsError as error:
            logger.error("%s: %s", name, error)
            return refusal(500, str(error))
        finally:
            answering.cancel()
            leaving.cancel()
        metrics.answered(name, run.label_names, y_pred)
        answer = PredictAnswer.model_construct(
            run=name,
            task=run.task,
            thresholds=_by_label(run, run.thresholds),
            answers=_answers(run, y_score, y_pred),
        )
        return Response(answer.model_dump_json(exclude_none=True), media_type="application/json")

    return app


async def _gone(request: Request) -> None:
    """Returns when the client has left."""
    while (await request.receive())["type"] != "http.disconnect":
        pass


def _by_label(run: Served, values: Any) -> dict[str, float]:
    return dict(zip(run.label_names, values, strict=True))


def _answers(run: Served, y_score: np.ndarray, y_pred: np.ndarray) -> list[TextAnswer]:
    labels, found = run.label_names, []
    known = np.ones(y_pred.shape, dtype=bool) if run.band is None else run.band.answered(y_score, y_pred)
    for score, given, sure in zip(y_score.tolist(), y_pred.tolist(), known.tolist(), strict=True):
        unsure = [name for name, is_sure in zip(labels, sure, strict=True) if not is_sure]
        found.append(
            TextAnswer.model_construct(
                labels=[name for name, yes, is_sure in zip(labels, given, sure, strict=True) if yes and is_sure],
                probabilities=dict(zip(labels, score, strict=True)),
                abstained=None if run.band is None else unsure,
            )
        )
    return found


def _sentence(problem: Any, limits: Limits) -> str:
    """What is wrong with a request, and where: `texts.3: ...`."""
    place, kind = problem["loc"][1:], problem["type"]
    if place[:1] != ("texts",):
        return f"{'.'.join(map(str, place)) or 'the body'}: {problem['msg']}"
    if len(place) == 1:
        return f"texts: expected a list of 1 to {limits.texts:,} texts"
    where = f"texts.{place[1]}"
    if kind == "string_too_long":
        return f"{where}: a text may hold {limits.characters:,} characters"
    if kind == "string_unicode":
        return f"{where}: it holds half of a character (a lone surrogate)"
    return f"{where}: expected a text, or an object with a text for each column"
