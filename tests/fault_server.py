"""A chat server on this machine that answers like a model, or fails in the way it is told to.

    with FaultServer(labels=("scab", "rust")) as server:
        server.base_url                    # "http://127.0.0.1:54321/v1": what an endpoint is configured with

What it does with a request is decided by the first of these that applies:

- ``script=["429", "ok"]``: the kinds of the requests in the order of their arrival; then as if there were none
- ``plan=lambda asked: "500"``: a function of the request
- ``share=0.2, seed=0, faults=FAULTS``: this share of requests fails, each with a kind drawn from ``faults``. The draw
  depends on seed, pictures, prompt and how often these were asked before: never on the order of arrival.

Kinds: ``ok``, those of `FAULTS`, those of `REFUSALS`, ``dribble``, a byte every 20 ms, and ``cut short``, a text that
stops at the limit of tokens. `KINDS` says of each whether it is an answer, and whether asking again may help. What a
good answer says is ``server.answer_of(picture digest)``: a label, a confidence, a reason; by default drawn from the
digest, or set by ``answer=function of the digest``. `picture_digest` gives the digest of a data URL.

Options: ``latency_s`` before every answer; ``hold``, so many requests must have been there at once before any is
answered; ``silence_s``, how long the kind ``silence`` waits before a good answer;
``retry_after``, the text of that header; ``refuses={"response_format": 400}``, request fields refused with a status;
``ignores={"logprobs"}``, fields that are accepted without effect, as transformers serve does; ``decides=False``, no
``/v1/systemone``; ``usage=False``, no token counts; ``key="..."``, the only key that is let in (and echoed in the 401).

Counts: ``calls`` (a Counter of kinds), ``total`` (all of them), ``paid`` (a Counter of (picture digest, prompt digest)
of the requests that were answered with an answer), ``most_at_once``, and ``asked``, every request as `Asked`.
``reset()`` empties them. The server runs in a thread with its own event loop and ends with the block.
"""

from __future__ import annotations

import asyncio
import base64
import hashlib
import json
import math
import re
import socket
import struct
import threading
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any, NamedTuple, Self

import numpy as np
from aiohttp import web

MEGABYTE = 2**20


class Kind(NamedTuple):
    """What a kind of reply comes to."""

    answers: bool
    """Whether a reader that invents nothing can take a label from it."""
    again: bool
    """Whether asking again may help."""


KINDS: Mapping[str, Kind] = {
    "ok": Kind(True, False),
    "429": Kind(False, True),
    "429 with Retry-After": Kind(False, True),
    "500": Kind(False, True),
    "502": Kind(False, True),
    "503": Kind(False, True),
    "504": Kind(False, True),
    "reset": Kind(False, True),
    "half a body": Kind(False, True),
    "silence": Kind(False, True),
    "wrong content type": Kind(False, True),
    "empty choices": Kind(False, True),
    "refusal": Kind(False, False),
    "wrong label": Kind(False, False),
    "other case": Kind(False, False),
    "fenced": Kind(True, False),
    "two objects": Kind(False, False),
    "95%": Kind(True, False),
    "95": Kind(False, False),
    "nan": Kind(False, False),
    "-1": Kind(False, False),
    "a megabyte": Kind(False, False),
    "another language": Kind(False, False),
    "dribble": Kind(False, True),
    "cut short": Kind(False, False),
    "307": Kind(False, False),
    "400": Kind(False, False),
    "401": Kind(False, False),
    "403": Kind(False, False),
    "404": Kind(False, False),
}
REFUSALS = ("307", "400", "401", "403", "404")
"""Kinds that stay so until somebody changes the configuration."""
FAULTS = tuple(kind for kind in KINDS if kind not in ("ok", "dribble", "cut short", *REFUSALS))
"""What goes wrong by chance."""


class Said(NamedTuple):
    """What a good answer says."""

    label: str
    confidence: float
    reason: str = "the server saw it"


@dataclass(frozen=True)
class Asked:
    """One request."""

    path: str
    body: dict[str, Any]
    headers: dict[str, str]
    text: str
    """All text of the question."""
    pictures: tuple[bytes, ...]
    """The files in it, decoded from base64."""
    number: int
    """How often the same question came before."""
    seed: int | None = None

    @cached_property
    def picture(self) -> str:
        """Digest of the first picture; of nothing where there is none."""
        return digest(self.pictures[0] if self.pictures else b"")

    @cached_property
    def prompt(self) -> str:
        """Digest of the text and the other pictures."""
        rest = "".join(digest(picture) for picture in self.pictures[1:])
        return digest(f"{self.text}{rest}{self.seed}".encode())


def digest(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def picture_digest(url: str) -> str:
    """Digest of the picture in a data URL: what `FaultServer.answer_of` takes."""
    return digest(base64.b64decode(url.partition(",")[2], validate=True))


@dataclass
class FaultServer:
    """See the module."""

    labels: Sequence[str] = ("red", "green", "blue")
    script: Iterable[str] = ()
    plan: Callable[[Asked], str] | None = None
    share: float = 0.0
    seed: int = 0
    faults: Sequence[str] = FAULTS
    answer: Callable[[str], Said] | None = None
    latency_s: float = 0.0
    hold: int = 0
    silence_s: float = 60.0
    retry_after: str = "0"
    refuses: Mapping[str, int] = field(default_factory=dict)
    ignores: frozenset[str] | set[str] = frozenset()
    decides: bool = True
    usage: bool = True
    key: str | None = None
    tops: Callable[[Asked], Sequence[tuple[str, float]]] | None = None
    """Most probable first tokens with their log-probabilities; by default made from the answer."""

    calls: Counter[str] = field(default_factory=Counter, init=False)
    paid: Counter[tuple[str, str]] = field(default_factory=Counter, init=False)
    asked: list[Asked] = field(default_factory=list, init=False)
    most_at_once: int = field(default=0, init=False)
    _before: Counter[tuple[str, str]] = field(default_factory=Counter, init=False)

    def __enter__(self) -> Self:
        self._script = iter(self.script)
        self._now = 0
        self._ready = threading.Event()
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._run, name="fault server", daemon=True)
        self._thread.start()
        if not self._ready.wait(10):
            raise RuntimeError("the server did not start in 10 s")
        return self

    def __exit__(self, *_: object) -> None:
        self._loop.call_soon_threadsafe(self._end.set)
        self._thread.join(10)

    @property
    def base_url(self) -> str:
        return f"http://127.0.0.1:{self.port}/v1"

    @property
    def total(self) -> int:
        return sum(self.calls.values())

    def reset(self) -> None:
        """Forget what was asked; the draws of faults begin anew."""
        self.calls.clear()
        self.paid.clear()
        self.asked.clear()
        self._before.clear()
        self.most_at_once = 0

    def answer_of(self, picture: str) -> Said:
        """What a good answer says of a picture, by its digest."""
        if self.answer is not None:
            return self.answer(picture)
        draw = int(picture[:12], 16)
        return Said(self.labels[draw % len(self.labels)], round(0.5 + (draw // 7 % 50) / 100, 2))

    def kind_of(self, asked: Asked) -> str:
        """Which kind of reply a request gets, but for the script."""
        if self.plan is not None:
            return self.plan(asked)
        if self.share == 0:
            return "ok"
        drawn = [self.seed, asked.number, int(asked.picture[:12], 16), int(asked.prompt[:12], 16)]
        rng = np.random.default_rng(drawn)
        return str(rng.choice(np.array(self.faults))) if rng.random() < self.share else "ok"

    # The server itself: everything below runs in its thread.

    def _run(self) -> None:
        asyncio.set_event_loop(self._loop)
        self._loop.run_until_complete(self._serve())
        self._loop.close()

    async def _serve(self) -> None:
        self._end = asyncio.Event()
        app = web.Application(client_max_size=64 * MEGABYTE)
        app.router.add_post("/v1/chat/completions", self._handle)
        app.router.add_post("/v1/systemone", self._handle)
        runner = web.AppRunner(app, access_log=None, shutdown_timeout=0.05, handler_cancellation=True)
        await runner.setup()
        listening = socket.create_server(("127.0.0.1", 0), backlog=1024)
        self.port = listening.getsockname()[1]
        await web.SockSite(runner, listening).start()
        self._ready.set()
        await self._end.wait()
        await runner.cleanup()

    async def _handle(self, request: web.Request) -> web.StreamResponse:
        self._now += 1
        self.most_at_once = max(self.most_at_once, self._now)
        try:
            return await self._reply(request)
        finally:
            self._now -= 1

    async def _reply(self, request: web.Request) -> web.StreamResponse:
        asked = self._read(request, await request.json())
        self.asked.append(asked)
        if self.key is not None and asked.headers.get("Authorization") != f"Bearer {self.key}":
            self.calls["401"] += 1
            return failed(401, f"Incorrect API key provided: {asked.headers.get('Authorization')}")
        if self.latency_s:
            await asyncio.sleep(self.latency_s)
        while self.most_at_once < self.hold and not self._end.is_set():
            await asyncio.sleep(0.005)
        if refused := [name for name in self.refuses if asked.body.get(name) is not None]:
            self.calls["refused field"] += 1
            return failed(self.refuses[refused[0]], f"Unsupported parameter: {refused[0]!r} is not supported here.")
        if asked.path.endswith("systemone") and not self.decides:
            self.calls["404"] += 1
            return failed(404, "Not Found")
        kind = next(self._script, None) or self.kind_of(asked)
        self.calls[kind] += 1
        if kind in ("reset", "half a body", "silence", "dribble", "a megabyte"):
            return await self._break(request, asked, kind)
        if kind == "wrong content type":
            return web.Response(text="<html><body>Please sign in.</body></html>", content_type="text/html")
        if re.match(r"\d{3}", kind):
            header = {"Retry-After": self.retry_after} if kind.endswith("Retry-After") else {}
            header |= {"Location": "/v1/elsewhere"} if kind == "307" else {}
            return failed(int(kind[:3]), f"scripted failure, key {asked.headers.get('Authorization')}", header)
        if KINDS[kind].answers:
            self.paid[asked.picture, asked.prompt] += 1
        if asked.path.endswith("systemone"):
            return web.json_response(self._decided(asked, kind))
        if kind == "empty choices":
            return web.json_response({**self._good(asked), "choices": []})
        if kind == "refusal":
            message = {"role": "assistant", "content": None, "refusal": "I cannot help with this picture."}
            return web.json_response(self._completion(message))
        if kind == "cut short":
            half = {"role": "assistant", "content": self._odd(asked, "fenced")[:30]}
            return web.json_response(self._completion(half, "length"))
        if kind == "ok":
            return web.json_response(self._good(asked))
        return web.json_response(self._completion({"role": "assistant", "content": self._odd(asked, kind)}))

    def _read(self, request: web.Request, body: dict[str, Any]) -> Asked:
        texts, pictures = [], []
        for message in body.get("messages", ()):
            content = message["content"]
            parts: list[dict[str, Any]] = [{"type": "text", "text": content}] if isinstance(content, str) else content
            for part in parts:
                if part["type"] == "text":
                    texts.append(part["text"])
                else:
                    pictures.append(base64.b64decode(part["image_url"]["url"].partition(",")[2], validate=True))
        if "state" in body:
            texts += [body["state"], json.dumps(body["questions"])]
            pictures = [base64.b64decode(asset["data_base64"]) for asset in body.get("assets", {}).values()]
        asked = Asked(request.path, body, dict(request.headers), "\n".join(texts), tuple(pictures), 0, body.get("seed"))
        before = self._before[asked.picture, asked.prompt]
        self._before[asked.picture, asked.prompt] += 1
        return replace(asked, number=before)

    def _good(self, asked: Asked) -> dict[str, Any]:
        said = self.answer_of(asked.picture)
        if asked.body.get("logprobs") and "logprobs" not in self.ignores:
            return self._lettered(asked, said)
        content = json.dumps({"label": said.label, "confidence": said.confidence, "reason": said.reason})
        return self._completion({"role": "assistant", "content": content})

    def _lettered(self, asked: Asked, said: Said) -> dict[str, Any]:
        letters = {found[2]: found[1] for found in re.finditer(r'^([A-Z])\. "(.*?)":', asked.text, re.MULTILINE)}
        if self.tops is not None:
            tops = list(self.tops(asked))
        else:
            rest = (1 - said.confidence) / max(len(letters) - 1, 1)
            shares = {letter: said.confidence if name == said.label else rest for name, letter in letters.items()}
            tops = [(letter, math.log(max(p, 1e-12))) for letter, p in shares.items()]
        tops = sorted(tops, key=lambda top: -top[1])[: asked.body["top_logprobs"]]
        listed = [{"token": token, "logprob": value, "bytes": None} for token, value in tops]
        done = self._completion({"role": "assistant", "content": tops[0][0]})
        done["choices"][0]["logprobs"] = {"content": [{**listed[0], "top_logprobs": listed}]}
        return done

    def _decided(self, asked: Asked, kind: str) -> dict[str, Any]:
        said = self.answer_of(asked.picture)
        options = list(asked.body["questions"]["label"]["criteria"])
        rest = (1 - said.confidence) / max(len(options) - 1, 1)
        shares = {option: said.confidence if option == said.label else rest for option in options}
        if kind == "wrong label":
            shares = {"something else": 1.0}
        elif kind == "nan":
            shares = dict.fromkeys(options, -1.0)
        answers = {} if kind == "empty choices" else {"label": {"type": "choice", "probabilities": shares}}
        return {"model": asked.body["model"], "answers": answers, "usage": {"input_tokens": 400, "output_tokens": 0}}

    def _odd(self, asked: Asked, kind: str) -> str:
        said = self.answer_of(asked.picture)
        good = {"label": said.label, "confidence": said.confidence, "reason": said.reason}
        other = self.labels[(list(self.labels).index(said.label) + 1) % len(self.labels)]
        texts: dict[str, dict[str, Any]] = {
            "wrong label": {**good, "label": "a label of nobody"},
            "other case": {**good, "label": said.label.swapcase()},
            "95%": {**good, "confidence": "95%"},
            "95": {**good, "confidence": 95},
            "nan": {**good, "confidence": math.nan},
            "-1": {**good, "confidence": -1},
        }
        if kind in texts:
            return json.dumps(texts[kind])
        if kind == "fenced":
            return f"```json\n{json.dumps(good)}\n```"
        if kind == "two objects":
            return json.dumps(good) + "\n" + json.dumps({**good, "label": other})
        assert kind == "another language", kind
        return "На снимке видно лист; вероятно, он болен."

    def _completion(self, message: dict[str, Any], finish: str = "stop") -> dict[str, Any]:
        choice = {"index": 0, "message": message, "finish_reason": finish, "logprobs": None}
        done = {"id": "1", "object": "chat.completion", "created": 0, "model": "scripted", "choices": [choice]}
        if self.usage:
            done["usage"] = {"prompt_tokens": 500, "completion_tokens": 20, "total_tokens": 520}
        return done

    async def _break(self, request: web.Request, asked: Asked, kind: str) -> web.StreamResponse:
        assert request.transport is not None
        good = self._good(asked)
        if kind == "silence":
            with suppress(TimeoutError):
                await asyncio.wait_for(self._end.wait(), self.silence_s)
            self.paid[asked.picture, asked.prompt] += 1
            return web.json_response(good)
        whole = json.dumps(good).encode()
        headers = {"Content-Type": "application/json"}
        if kind in ("dribble", "a megabyte"):
            sent = web.StreamResponse(headers=headers)
            await sent.prepare(request)
            for chunk in whole if kind == "dribble" else [whole[:-1], *[b" " * 4096] * 257, whole[-1:]]:
                await sent.write(bytes([chunk]) if isinstance(chunk, int) else chunk)
                await asyncio.sleep(0.02 * (kind == "dribble"))
            return sent
        cut = web.StreamResponse(headers={**headers, "Content-Length": str(len(whole))})
        if kind == "half a body":
            await cut.prepare(request)
            await cut.write(whole[: len(whole) // 2])
            request.transport.close()
            return cut
        # A socket closed without lingering sends a reset instead of an end.
        request.transport.get_extra_info("socket").setsockopt(
            socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0)
        )
        request.transport.abort()
        return cut


def failed(status: int, message: str, headers: Mapping[str, str] | None = None) -> web.Response:
    error = {"message": message, "type": "scripted", "code": None}
    return web.json_response({"error": error}, status=status, headers=headers)
