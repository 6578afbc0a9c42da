"""Quiz submissions over HTTP, counted live: the pipeline runs inside the web service.

    pip install 'streamactors[service,metrics]'
    uvicorn examples.fastapi_counts:app --workers 2

    curl -i localhost:8000/submissions -d '{"quiz_id": "algebra", "score": 4.5, "submitted_at": 1757318400000}'
    curl localhost:8000/quizzes/algebra

A 202 says that the submission is on disk: it will be counted, once, whatever happens to the process. One worker runs
the job, the other stands by and takes over; both append, each to a partition of its own, and both read the views. See
docs/web-service.md.
"""

import logging
import os
import time
from collections.abc import AsyncIterator
from contextlib import ExitStack, asynccontextmanager
from typing import Annotated, Any

import msgspec
from fastapi import FastAPI, HTTPException, Request
from fastapi.responses import JSONResponse
from prometheus_client import make_asgi_app

import streamactors as sa
from streamactors.ops import metrics

DATA = os.environ.get("QUIZ_DATA", "quiz-service-data")
PARTITIONS = 8  # workers that there may ever be, and some more for those that still end when their successors begin
CLOCKS_DIFFER_MS = 60_000
BODY_BYTES_MAX = 64 * 1024


class Submission(msgspec.Struct):
    """What is counted; a submission may have more fields, and they are kept."""

    quiz_id: Annotated[str, msgspec.Meta(min_length=1, max_length=100)]
    score: Annotated[float, msgspec.Meta(ge=-1e6, le=1e6)]
    submitted_at: Annotated[int, msgspec.Meta(ge=0)]  # ms since the epoch


pipeline = sa.Pipeline("quiz-service")
by_quiz = pipeline.topic("submissions", Submission).event_time("submitted_at", disorder="60s").key_by("quiz_id")
by_quiz.window(sa.Tumbling("10min")).allowed_lateness("1d").early(every="1s").count().to_view("windows")
by_quiz.aggregate(count=sa.count(), mean_score=sa.mean("score")).to_view("quizzes")
decode = msgspec.json.Decoder(Submission).decode
logging.basicConfig(level=logging.INFO)  # who runs the job, and all that happens to it, beside uvicorn's own lines


@asynccontextmanager
async def lifespan(app: FastAPI) -> AsyncIterator[None]:
    async with sa.Log(DATA) as log:
        app.state.submissions = await log.create_topic("submissions", PARTITIONS)
        await app.state.submissions.claim()  # one writing process for each partition
        with ExitStack() as open_here:
            open_here.enter_context(metrics.register(log))
            app.state.views = open_here.enter_context(sa.open_views(DATA, pipeline.name))
            async with sa.stand_by(pipeline, DATA, log=log, around=metrics.register) as app.state.job:
                yield


app = FastAPI(lifespan=lifespan)
app.mount("/metrics", make_asgi_app())


@app.post("/submissions", status_code=202)
async def submit(request: Request) -> dict[str, int]:
    body = b""
    async for part in request.stream():
        if len(body := body + part) > BODY_BYTES_MAX:
            raise HTTPException(413, f"a submission has at most {BODY_BYTES_MAX:,} bytes")
    try:
        submission = decode(body)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise HTTPException(422, str(error)) from error
    if submission.submitted_at > time.time() * 1_000 + CLOCKS_DIFFER_MS:  # it would end the windows of all others
        raise HTTPException(422, f"submitted_at {submission.submitted_at} is in the future")
    return (await app.state.submissions.append(body))._asdict()  # returns when it is on disk


@app.get("/quizzes/{quiz_id:path}")
async def quiz(quiz_id: str) -> dict[str, Any]:
    with app.state.views.snapshot() as view:  # both of one checkpoint
        total = view("quizzes").get(quiz_id)
        windows = {start: count for (_, start), count in view("windows").items([quiz_id])}
    if total is None:
        raise HTTPException(404, f"no submission to {quiz_id} was counted yet")
    return {**total, "windows": windows}


@app.get("/health")
async def health() -> JSONResponse:
    standing = app.state.job
    return JSONResponse({"worker": os.getpid(), "job": str(standing)}, 200 if standing.error is None else 503)


@app.exception_handler(sa.StorageError)
@app.exception_handler(sa.Held)
@app.exception_handler(sa.UsageError)
async def unavailable(_: Request, error: Exception) -> JSONResponse:
    return JSONResponse({"detail": str(error)}, 503)
