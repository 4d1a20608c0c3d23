"""A captioner over HTTP: any server that speaks OpenAI's chat completions (vLLM, SGLang, `transformers serve`).

A server at work fails in three ways, which are kept apart:

- It is away or overloaded (no connection, 429, 503): the request waits and is sent again, until nothing at all was
  answered for `give_up_min`.
- It fails at one request (time-out, 500, a cut connection) while it answers others: after a few attempts that request
  is given up, and the rest goes on.
- It refuses (4xx): at once that request's own failure; but a refused key or an unknown model stops everything.
"""

import asyncio
import base64
import logging
import math
import os
import random
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import httpx

from data.captioning.interface import Generation, NoAnswer, Request
from data.jobs.errors import CaptionerError
from data.pictures import images

logger = logging.getLogger(__name__)

_FIRST_WAIT_SEC = 0.5
_LONGEST_WAIT_SEC = 30.0
_OWN_FAILURES = 6
"""Attempts that may fail at a server which answers others, before a request is given up."""
_REFUSALS = 8
"""Refused requests, before a single answer, that say that something is wrong with all of them."""
_FEW_PIXELS = 1 << 16
_NEAR: dict[str, None] = {"all://127.0.0.1": None, "all://localhost": None}
"""Addresses without a proxy: one that the environment names leads out of this machine."""
_BUSY = (408, 409, 425, 429, 503)


class ServerCaptioner:
    """A model behind a URL.

    Args:
        url: base of the API, such as "http://127.0.0.1:8000/v1".
        model: the name under which the server knows its model.
        generation: how answers are written; top_p and seed are sent where the temperature is above 0.
        in_flight: requests that the server has at once.
        timeout_sec: seconds that one answer may take.
        give_up_min: minutes without a single answer after which the server counts as gone.
        api_key_env: name of the environment variable that holds the server's key; None sends none.

    Raises:
        CaptionerError: for a key that is not there.
    """

    def __init__(
        self,
        url: str,
        model: str,
        generation: Generation | None = None,
        *,
        in_flight: int = 32,
        timeout_sec: float = 120.0,
        give_up_min: float = 15.0,
        api_key_env: str | None = None,
    ) -> None:
        self.generation = generation or Generation()
        self.in_flight = in_flight
        self._url = url.rstrip("/")
        self._model = model
        self._timeout_sec = timeout_sec
        self._give_up_sec = 60 * give_up_min
        self._key_name = api_key_env
        self._key = _read_key(api_key_env)
        self._state = _State()
        self._asking = asyncio.Lock()
        logging.getLogger("httpx").setLevel(logging.WARNING)  # it has a line for every request

    def identity(self) -> dict[str, Any]:
        """Do as every `Captioner` does."""
        return identity(self._model, self.generation)

    def answer(self, requests: Sequence[Request]) -> list[str]:
        """Answer as every `Captioner` does, in an event loop of its own."""
        try:
            asyncio.get_running_loop()
        except RuntimeError:
            return asyncio.run(self._answer_all(requests))
        with ThreadPoolExecutor(1) as pool:  # a notebook's thread has a loop already, and only one can run in it
            return pool.submit(asyncio.run, self._answer_all(requests)).result()

    async def _answer_all(self, requests: Sequence[Request]) -> list[str]:
        self._state.last_answer = time.monotonic()
        self._asking = asyncio.Lock()
        places = asyncio.Semaphore(self.in_flight)
        async with self._client() as client:

            async def one(request: Request) -> str:
                async with places:
                    return await self._answer_one(client, request)

            tasks = [asyncio.create_task(one(request)) for request in requests]
            try:
                return await asyncio.gather(*tasks)
            finally:
                for task in tasks:
                    task.cancel()
                await asyncio.gather(*tasks, return_exceptions=True)

    def _client(self) -> httpx.AsyncClient:
        return httpx.AsyncClient(
            headers={"Authorization": f"Bearer {self._key}"} if self._key else {},
            limits=httpx.Limits(max_connections=self.in_flight + 1, max_keepalive_connections=self.in_flight),
            timeout=httpx.Timeout(self._timeout_sec, pool=None),
            mounts=_NEAR,
        )

    async def _answer_one(self, client: httpx.AsyncClient, request: Request) -> str:
        """The answer to one request, however often it takes."""
        body = self._body(await asyncio.to_thread(_content, request), self.generation.max_new_tokens)
        if self.generation.temperature:
            body |= {"top_p": self.generation.top_p, "seed": self.generation.seed_of([request])}
        wait, own_failures = _FIRST_WAIT_SEC, 0
        while True:
            answers_before = self._state.num_answers
            try:
                answer = await self._post(client, body)
            except _Trouble as trouble:
                if not trouble.busy and await self._is_alive(client, answers_before):
                    own_failures += 1
                if own_failures == _OWN_FAILURES:
                    logger.warning("a request failed %d times at %s: %s", own_failures, self._url, trouble)
                    return NoAnswer(trouble.reason, str(trouble))
                self._note_trouble(trouble)
                # Drawn from the whole span, so that requests that failed together do not come back together.
                await asyncio.sleep(max(random.uniform(0, wait), trouble.retry_after_sec))
                wait = min(2 * wait, _LONGEST_WAIT_SEC)
            else:
                self._note_answer(answer)
                return answer

    async def _post(self, client: httpx.AsyncClient, body: dict[str, Any]) -> str:
        """One attempt: the answer's text, or NoAnswer where the server refuses this request.

        Raises:
            _Trouble: for what may go away by itself.
            CaptionerError: for what does not, and concerns all requests.
        """
        url = f"{self._url}/chat/completions"
        try:
            # The limit of a time-out of httpx is the silence between two bytes; this one is the whole answer's.
            async with asyncio.timeout(self._timeout_sec):
                response = await client.post(url, json=body)
        except (TimeoutError, httpx.TimeoutException) as error:
            raise _Trouble("time-out", f"no answer in {self._timeout_sec:g} s (--timeout_sec)") from error
        except (httpx.UnsupportedProtocol, httpx.InvalidURL) as error:
            raise CaptionerError(f"--server is {self._url!r}: {error}; expected http://HOST:PORT/v1") from error
        except httpx.RequestError as error:
            busy = isinstance(error, httpx.ConnectError)
            raise _Trouble("server error", f"{type(error).__name__}: {error}", busy=busy) from error
        status, said = response.status_code, _message(response)
        if 300 <= status < 400:
            raise CaptionerError(f"{url} leads on to {response.headers.get('location')}; give that address (--server)")
        if status in (401, 403):
            named = "is not accepted" if self._key_name else "is wanted; name its environment variable: --api_key_env"
            raise CaptionerError(f"{url} answered {status}: {said}; a key {named}")
        if status in (404, 405) or (400 <= status < 500 and '"model_not_found"' in response.text):
            raise CaptionerError(
                f"{url} answered {status}: {said}; either there is no chat completion at this address (--server ends "
                f"in /v1 for most), or no model {self._model!r} (--model); {await self._model_names(client)}"
            )
        if status in _BUSY or status >= 500:
            wait = _seconds(response.headers.get("retry-after"))
            raise _Trouble("server error", f"{status}: {said}", busy=status in _BUSY, retry_after_sec=wait)
        if status >= 400:
            return NoAnswer("refused by the server", f"{status}: {said}")
        try:
            return (response.json()["choices"][0]["message"]["content"] or "").strip()
        except (ValueError, LookupError, TypeError, AttributeError) as error:
            raise _Trouble("server error", f"{status} without a message: {said}") from error

    async def _is_alive(self, client: httpx.AsyncClient, answers_before: int) -> bool:
        """Whether the server has answered another request meanwhile, or answers a short one now."""
        state, failed = self._state, time.monotonic()
        async with self._asking:  # one asks for all that failed at the same time
            if state.num_answers > answers_before:
                return True
            if state.asked < failed:
                state.asked = time.monotonic()
                try:
                    await self._post(client, self._body("Say yes.", 1))
                    state.alive, state.last_answer = True, time.monotonic()
                except _Trouble:
                    state.alive = False
            return state.alive

    async def _model_names(self, client: httpx.AsyncClient) -> str:
        """What the server says about its models, for a message."""
        try:
            found = (await client.get(f"{self._url}/models", timeout=10)).json()["data"]
            return "it names " + (", ".join(repr(model["id"]) for model in found[:5]) or "none")
        except (httpx.HTTPError, ValueError, LookupError, TypeError):
            return "it does not say which it has"

    def _body(self, content: Any, max_tokens: int) -> dict[str, Any]:
        return {
            "model": self._model,
            "messages": [{"role": "user", "content": content}],
            "max_tokens": max_tokens,
            "temperature": self.generation.temperature,
        }

    def _note_answer(self, answer: str) -> None:
        state = self._state
        if isinstance(answer, NoAnswer):
            state.num_refused += 1
            if state.num_refused >= _REFUSALS and not state.num_answers:
                raise CaptionerError(
                    f"{self._url} refused the first {state.num_refused} requests, the last with {answer.detail}; "
                    f"does the model {self._model!r} take pictures, and are --model and --max_new_tokens right?"
                )
        else:
            state.num_answers += 1
        if state.troubled:
            logger.info("%s answers again", self._url)
        state.troubled = False
        state.last_answer = time.monotonic()

    def _note_trouble(self, trouble: "_Trouble") -> None:
        state = self._state
        silent_sec = time.monotonic() - state.last_answer
        if silent_sec > self._give_up_sec:
            raise CaptionerError(
                f"{self._url} has answered nothing for {silent_sec / 60:.1f} minutes, the last trouble: {trouble}; "
                "start the server and run the same command again, or raise --give_up_min"
            )
        if not state.troubled:
            logger.warning("%s: %s; trying again, for %g minutes at most", self._url, trouble, self._give_up_sec / 60)
        state.troubled = True


@dataclass
class _State:
    """What is known of the server.

    Args:
        num_answers, num_refused: requests so far.
        last_answer: when it answered last.
        troubled: whether the latest attempt failed.
        asked, alive: when it was last asked whether it lives, and whether it did.
    """

    num_answers: int = 0
    num_refused: int = 0
    last_answer: float = 0.0
    troubled: bool = False
    asked: float = -math.inf
    alive: bool = False


class _Trouble(Exception):
    """An attempt that failed and may succeed later; `busy` where the server is away or says that it has too much."""

    def __init__(self, reason: str, detail: str, *, busy: bool = False, retry_after_sec: float = 0.0) -> None:
        super().__init__(detail)
        self.reason, self.busy, self.retry_after_sec = reason, busy, retry_after_sec


def served_models(url: str, timeout_sec: float = 10.0) -> list[str]:
    """Names of the models that a server says it has; none where it does not say.

    Raises:
        httpx.HTTPError: nothing answers at the URL.
    """
    with httpx.Client(timeout=timeout_sec, mounts=_NEAR) as client:
        response = client.get(f"{url.rstrip('/')}/models")
    try:
        return [model["id"] for model in response.json()["data"]]
    except (ValueError, LookupError, TypeError):
        return []


def identity(model: str, generation: Generation) -> dict[str, Any]:
    """All that decides the answers of a server; its address does not."""
    return {"engine": "server", "model": model, **generation.identity()}


def _content(request: Request) -> Any:
    """A message's content, with the picture in it: small ones exactly, others as they are stored in shards."""
    if request.image is None:
        return request.text
    # PNG takes 15 times as long as JPEG, for four times the bytes.
    suffix, stored = images.encode(request.image, lossless=request.image.width * request.image.height <= _FEW_PIXELS)
    kind = {"jpg": "jpeg"}.get(suffix, suffix)
    url = f"data:image/{kind};base64,{base64.b64encode(stored).decode()}"
    return [{"type": "image_url", "image_url": {"url": url}}, {"type": "text", "text": request.text}]


def _message(response: httpx.Response) -> str:
    """What an error says, in at most 300 characters."""
    try:
        found = response.json()
        found = found.get("error", found.get("detail", found)) if isinstance(found, dict) else found
        said = found.get("message", found) if isinstance(found, dict) else found
    except ValueError:
        said = response.text
    return " ".join(str(said).split())[:300]


def _seconds(retry_after: str | None) -> float:
    """What Retry-After asks for, where it is a number of seconds."""
    try:
        return min(float(retry_after or 0), _LONGEST_WAIT_SEC)
    except ValueError:
        return 0.0


def _read_key(name: str | None) -> str | None:
    if name is None:
        return None
    key = os.environ.get(name)
    if not key:
        raise CaptionerError(f"--api_key_env is {name}, but there is no such environment variable, or it is empty")
    return key
