"""A node over HTTP, with the standard library alone: errors by status, retries with back-off, server-sent events."""

from __future__ import annotations

import dataclasses
import http.client
import json
import random
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Callable, Generator
from typing import Any

from zoo.gym import Progress

from .errors import APIConnectionError, APIStatusError, HanzoError, of_status
from .types import Training

#: Statuses that another try may change.
_RETRIED = (408, 409, 429, 500, 502, 503, 504)
#: Longest wait before another try, in seconds.
_LONGEST_WAIT = 30.0


class Remote:
    """A node."""

    def __init__(self, base_url: str, api_key: str | None, timeout: float, max_retries: int) -> None:
        url = base_url if "://" in base_url else f"http://{base_url}"
        url = url.rstrip("/")
        self._url = url.removesuffix("/v1")
        self._timeout = timeout
        self._max_retries = max_retries
        self._headers = {"Content-Type": "application/json", "User-Agent": "hanzo-python"}
        if api_key is not None:
            self._headers["Authorization"] = f"Bearer {api_key}"

    def get(self, path: str) -> Any:
        """``GET path``."""
        with self._open("GET", path, None) as response:
            return self._json(response)

    def post(self, path: str, body: dict[str, Any]) -> Any:
        """``POST path`` with a JSON body."""
        with self._open("POST", path, body) as response:
            return self._json(response)

    def train(self, user_id: str, body: dict[str, Any], report: Callable[[Progress], None]) -> Training:
        """Trains a user's variant at the node and waits for its end. An interruption here calls it back there."""
        path = f"/v1/variants/{urllib.parse.quote(user_id, safe='')}/train"
        training, said = Training.from_dict(self.post(path, body)), 0
        try:
            for event in self.stream(f"{path}/events", None):
                training = Training.from_dict(event)
                now = Progress(training.phase, training.done, training.total, training.unit, training.note)
                for line in training.messages[said:]:
                    report(dataclasses.replace(now, message=line))
                said = max(said, len(training.messages))
                report(now)
        except BaseException:
            self._call_back(path)
            raise
        if training.status != "succeeded":
            raise HanzoError(f"the training of {user_id} {training.status}: {training.error or 'no reason given'}")
        return training

    def _call_back(self, path: str) -> None:
        """Ends a training that nobody waits for, if it is not over."""
        try:
            self._open("DELETE", path, None).close()
        except HanzoError:
            # What made us leave is the error to report.
            pass

    def stream(self, path: str, body: dict[str, Any] | None) -> Generator[Any, None, None]:
        """The events of an answer (of a ``GET`` without a body). The request is sent at the first one asked for."""
        with self._open("GET" if body is None else "POST", path, body) as response:
            lines = iter(response)
            while True:
                try:
                    line = next(lines, None)
                except (OSError, http.client.HTTPException) as error:
                    raise APIConnectionError(f"{self._url} went away inside the answer: {error}") from error
                if line is None:
                    raise APIConnectionError(f"{self._url} ended the answer before it was complete")
                if not line.startswith(b"data:"):
                    continue
                data = line[len(b"data:") :].strip()
                if data == b"[DONE]":
                    return
                event = json.loads(data)
                if isinstance(event, dict) and isinstance(event.get("error"), dict):
                    raise APIStatusError(_message(event, "the answer failed"), 200, event)
                yield event

    def _open(self, method: str, path: str, body: dict[str, Any] | None) -> Any:
        data = None if body is None else json.dumps(body).encode()
        tries = 0
        while True:
            request = urllib.request.Request(self._url + path, data=data, headers=self._headers, method=method)
            try:
                return urllib.request.urlopen(request, timeout=self._timeout)
            except urllib.error.HTTPError as error:
                with error:
                    refusal, wait = self._refusal(error), _seconds(error.headers.get("Retry-After"))
                if error.code not in _RETRIED or tries == self._max_retries:
                    raise refusal from None
            except (OSError, http.client.HTTPException) as error:
                reason = getattr(error, "reason", error)
                if tries == self._max_retries:
                    raise APIConnectionError(f"no node answers at {self._url}: {reason}") from error
                wait = None
            # Full jitter, so that clients who were refused together do not come back together.
            backoff = random.uniform(0.25, 0.5) * 2**tries
            time.sleep(min(_LONGEST_WAIT, backoff if wait is None else wait))
            tries += 1

    def _refusal(self, error: urllib.error.HTTPError) -> APIStatusError:
        try:
            body = json.loads(error.read())
        except (OSError, ValueError):
            body = None
        return of_status(_message(body, f"{self._url} answers {error.code}"), error.code, body)

    def _json(self, response: Any) -> Any:
        try:
            return json.loads(response.read())
        except (OSError, http.client.HTTPException, ValueError) as error:
            raise APIConnectionError(f"the answer of {self._url} cannot be read: {error}") from error


def _message(body: Any, otherwise: str) -> str:
    error = body.get("error") if isinstance(body, dict) else None
    message = error.get("message") if isinstance(error, dict) else None
    return message if isinstance(message, str) else otherwise


def _seconds(header: str | None) -> float | None:
    try:
        return None if header is None else max(0.0, float(header))
    except ValueError:
        return None
