"""A chat model behind an OpenAI-compatible endpoint: one request, one answer or one error that says what to do.

Retries, limits and budgets are the wrappers' work; here a call is made once. What the caller needs for them is in
`CallError`: whether asking again may help, after how many seconds, and what the attempt took.
"""

from __future__ import annotations

import asyncio
import ssl
import time
from collections.abc import AsyncGenerator, Mapping, Sequence
from functools import cache
from typing import TYPE_CHECKING, Any, cast
from weakref import WeakKeyDictionary

import anyio

from secondlook.agents.call_error import CallError, Problem, Reply, clean, meaning
from secondlook.agents.chat_options import OPTIONAL, leave_out, refused_option
from secondlook.agents.chat_reply import Completion, Decided, Said, Token, read_completion, read_decision
from secondlook.agents.cost import Cost
from secondlook.agents.endpoint import CHARACTERS_PER_TOKEN, Endpoint, rough_tokens
from secondlook.agents.errors import AgentError

if TYPE_CHECKING:
    import httpx2
    import openai

__all__ = ["CallError", "ChatModel", "Decided", "Endpoint", "Said", "Token"]

MAX_REPLY = 2**20
"""Bytes of a reply that are read."""
_refused: dict[tuple[str, str], set[str]] = {}
"""Options that a model at an endpoint has refused so far, in this process."""


class TooLongError(AgentError):
    """A reply of more bytes than are read."""


class ChatModel:
    """A model at an endpoint. Any number of tasks, event loops and threads may share one.

    Parameters
    ----------
    endpoint : Endpoint
    model : str
        Its name there.

    Notes
    -----
    The key is read from the environment at the first call in an event loop, and kept only in the client of that loop,
    which is closed with it. Of the other variables that the SDK reads, those for the address, organisations, projects
    and administrators have no effect; those for proxies have. Redirections are not followed.

    An option that the server refuses by name (status 400, 404, 422 or 501) is left out and the question asked once
    more; if that is answered, it is not sent to this model again: the JSON schema (with `structured` ``auto``),
    temperature and seed. In place of max_tokens, max_completion_tokens is sent.
    """

    def __init__(self, endpoint: Endpoint, model: str) -> None:
        self.endpoint = endpoint
        self.model = model
        self._clients: WeakKeyDictionary[asyncio.AbstractEventLoop, openai.AsyncOpenAI] = WeakKeyDictionary()
        self._holders: WeakKeyDictionary[asyncio.AbstractEventLoop, AsyncGenerator[None]] = WeakKeyDictionary()

    def __repr__(self) -> str:
        return f"ChatModel({self.endpoint.base_url!r}, {self.model!r})"

    async def complete(
        self,
        messages: Sequence[Mapping[str, Any]],
        *,
        schema: Mapping[str, Any] | None = None,
        top_logprobs: int | None = None,
        temperature: float = 0.0,
        seed: int | None = None,
        max_tokens: int = 300,
    ) -> Said:
        """Ask for the next message of a conversation.

        Parameters
        ----------
        messages : sequence of mapping
            In the form of the chat completions interface: ``role`` and ``content``.
        schema : mapping, optional
            JSON schema that the answer keeps to, where the endpoint allows that.
        top_logprobs : int, optional
            How many of the most probable tokens to report at each place.
        temperature : float
            0 is the most probable answer.
        seed : int, optional
            Of a draw.
        max_tokens : int
            Length of the answer at most.

        Raises
        ------
        CallError
            Where there is no answer: network, status, a reply that is none, a refusal.
        ConfigError
            Where the key is missing.
        """
        body: dict[str, Any] = {
            "model": self.model, "messages": list(messages), "temperature": temperature, "max_tokens": max_tokens
        }  # fmt: skip
        if seed is not None:
            body["seed"] = seed
        if top_logprobs is not None:
            body |= {"logprobs": True, "top_logprobs": top_logprobs}
        if schema is not None and self.endpoint.structured != "none":
            form = {"name": "answer", "strict": True, "schema": schema}
            body["response_format"] = {"type": "json_schema", "json_schema": form}
        reply, calls, seconds = await self._ask(body)
        self._check(reply, seconds)
        found = read_completion(reply.body)
        if found is None:
            raise self._error(Problem("sent a reply that is no chat completion", 0.0), seconds)
        # Where the server did not count, the money is still spent: it is reckoned, as it was before the call.
        used = found.usage or (_rough_tokens(messages), len(found.text) // CHARACTERS_PER_TOKEN)
        usd = self.endpoint.usd(*used)
        if (problem := self._unanswered(found)) is not None:
            raise self._error(problem, seconds, usd)
        return Said(found.text, found.tokens, *(found.usage or (0, 0)), usd, seconds, calls, found.cut)

    async def decide(
        self, state: str, questions: Mapping[str, Any], assets: Mapping[str, Mapping[str, str]]
    ) -> Decided:
        """Ask typed questions about a state at ``/v1/systemone``.

        Parameters
        ----------
        state : str
            What the questions are about; where it names an asset, the picture is put.
        questions : mapping
            Name to question: ``type`` ("choice"), ``instructions``, and ``criteria``, options with descriptions.
        assets : mapping
            Name to picture: ``type`` ("image"), ``format`` and ``data_base64``.

        Raises
        ------
        CallError
            As `complete` does.
        ConfigError
            Where the key is missing.
        """
        body = {"model": self.model, "state": state, "questions": dict(questions), "assets": dict(assets)}
        path = "/systemone" if self.endpoint.base_url.endswith("/v1") else "/v1/systemone"
        reply, seconds = await self._post(path, body)
        if reply.status == 404:
            problem = Problem("has no /v1/systemone, or not this model (404); check model, or choose another belief")
            raise self._error(problem, seconds)
        self._check(reply, seconds)
        if (found := read_decision(reply.body)) is None:
            raise self._error(Problem("sent a reply that is no decision", 0.0), seconds)
        probabilities, usage = found
        used = usage or (0, 0)
        return Decided(probabilities, *used, self.endpoint.usd(*used), seconds)

    async def _ask(self, body: Mapping[str, Any]) -> tuple[Reply, int, float]:
        """Post what the model accepts of a request, and learn what it refuses: the reply, requests made, seconds."""
        known = _refused.setdefault((self.endpoint.base_url, self.model), set())
        kept = None if self.endpoint.structured == "auto" else "response_format"
        without = known - {kept}
        total = 0.0
        for calls in range(1, len(OPTIONAL) + 2):
            sent = leave_out(body, without)
            reply, seconds = await self._post("/chat/completions", sent)
            total += seconds
            refused = refused_option(reply, [name for name in sent if name != kept])
            if refused is None:
                if reply.status < 300:
                    known |= without
                return reply, calls, total
            without.add(refused)
        raise AssertionError("an option was refused that had not been sent")

    def _unanswered(self, found: Completion) -> Problem | None:
        if found.refusal:
            return Problem(f"refused to answer: {clean(found.refusal, self._key())}", reached=True)
        if found.empty and found.cut:
            return Problem("used up max_tokens before it answered; raise it", reached=True)
        return Problem("sent no text", 0.0) if found.empty else None

    def _check(self, reply: Reply, seconds: float) -> None:
        if (problem := meaning(reply, self._key(), self.endpoint.key_env, time.time())) is not None:
            raise self._error(problem, seconds)

    def _error(self, problem: Problem, seconds: float, usd: float = 0.0) -> CallError:
        what = f"{self.endpoint.base_url} ({self.model}) {problem.what}."
        return CallError(what, problem.retry_after_s, Cost(seconds=seconds, usd=usd), problem.reached)

    def _key(self) -> str | None:
        """Return the key that the running event loop's client sends."""
        found = self._clients.get(asyncio.get_running_loop())
        return found.api_key if found is not None and self.endpoint.key_env else None

    async def _post(self, path: str, body: Mapping[str, Any]) -> tuple[Reply, float]:
        """Send a request once; return what came back, whatever its status, and the seconds it took."""
        import httpx2
        import openai

        client = await self._client()
        # For each request anew, since the SDK also finds such a header in variables of its own.
        headers = {"Authorization": f"Bearer {client.api_key}" if self.endpoint.key_env else openai.omit}
        start = time.perf_counter()
        try:
            with anyio.fail_after(self.endpoint.timeout_s):
                response = await client.post(path, body=body, cast_to=httpx2.Response, options={"headers": headers})
            return _reply(response), time.perf_counter() - start
        except openai.APIStatusError as error:
            return _reply(error.response), time.perf_counter() - start
        except (openai.APIConnectionError, TimeoutError) as error:
            problem = self._unreached(error)
        except TooLongError as error:
            problem = Problem(str(error))
        # Outside of the handlers, so that the SDK's errors, which hold the request, do not travel along.
        raise self._error(problem, time.perf_counter() - start)

    def _unreached(self, error: Exception) -> Problem:
        """Say why nothing came back: nobody was there, or nothing came in time."""
        import openai

        first: BaseException = error
        while first.__cause__ is not None:
            first = first.__cause__
        # The transport calls a refused connection a timeout; its first cause knows better.
        refused = isinstance(first, OSError) and not isinstance(first, TimeoutError)
        if isinstance(error, openai.APITimeoutError | TimeoutError) and not refused:
            return Problem(f"did not answer within {self.endpoint.timeout_s:g} s", 0.0)
        cause = clean(repr(first if refused else error.__cause__), self._key())
        return Problem(f"could not be reached, or broke off ({cause})", 0.0)

    async def _client(self) -> openai.AsyncOpenAI:
        """Return the client of the running event loop."""
        loop = asyncio.get_running_loop()
        if (found := self._clients.get(loop)) is not None:
            return found
        client = _new_client(self.endpoint)
        self._clients[loop] = client
        # An event loop that ends closes its asynchronous generators, and this one then closes the client.
        holder = self._hold(client, loop)
        self._holders[loop] = holder
        await anext(holder)
        return client

    async def _hold(self, client: openai.AsyncOpenAI, loop: asyncio.AbstractEventLoop) -> AsyncGenerator[None]:
        try:
            yield
        finally:
            self._clients.pop(loop, None)
            self._holders.pop(loop, None)
            await client.close()


def _reply(response: httpx2.Response) -> Reply:
    return Reply(response.status_code, response.headers, response.content)


def _rough_tokens(messages: Sequence[Mapping[str, Any]]) -> int:
    """Reckon the tokens of a conversation, a picture as one of 1024 by 1024 pixels."""
    parts = [part for m in messages for part in ([m] if isinstance(m["content"], str) else m["content"])]
    texts = [part.get("text") or part.get("content") or "" for part in parts]
    return rough_tokens(sum(map(len, texts)), sum(not text for text in texts), 1024)


def _new_client(endpoint: Endpoint) -> openai.AsyncOpenAI:
    import openai

    key = endpoint.key()
    # Encodings are refused, so that what is counted on the way is what is held in memory.
    own: dict[str, Any] = {"Accept-Encoding": "identity"}
    own |= {"OpenAI-Organization": openai.omit, "OpenAI-Project": openai.omit}
    http = openai.DefaultAioHttpClient(
        timeout=endpoint.timeout_s, follow_redirects=False, event_hooks={"response": [_bounded]}, verify=_certificates()
    )
    return openai.AsyncOpenAI(
        api_key=key or "none", base_url=endpoint.base_url, max_retries=0, timeout=endpoint.timeout_s,
        default_headers=own, http_client=http,
    )  # fmt: skip


@cache
def _certificates() -> ssl.SSLContext:
    """Whom to trust; read once, for that takes longer than all else that a client needs."""
    import httpx2

    return httpx2.create_ssl_context()


async def _bounded(response: httpx2.Response) -> None:
    """Count a reply while it streams in, and stop where it is too long."""
    import httpx2

    if response.headers.get("content-encoding", "identity") != "identity":
        raise TooLongError("sent a compressed reply, which was not asked for")
    inner = cast("httpx2.AsyncByteStream", response.stream)

    class Counted(httpx2.AsyncByteStream):
        async def __aiter__(self) -> AsyncGenerator[bytes]:
            count = 0
            async for chunk in inner:
                count += len(chunk)
                if count > MAX_REPLY:
                    raise TooLongError(f"sent a reply of more than {MAX_REPLY:,} bytes")
                yield chunk

        async def aclose(self) -> None:
            await inner.aclose()

    response.stream = Counted()
