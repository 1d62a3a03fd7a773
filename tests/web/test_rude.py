"""Rude clients against the built server: slow ones, ones that leave, two hundred at once, and one tenant at another's door.
What others are owed does not suffer, and nothing is left of them."""

from __future__ import annotations

import json
import socket
import time
from concurrent.futures import ThreadPoolExecutor
from urllib.parse import quote, urlsplit

import pytest
from conftest import QUESTION, Server

QUESTION_BODY = {"model": "tiny-llama", "messages": [{"role": "user", "content": QUESTION}], "max_tokens": 8}
#: As long as the context allows, and different each time.
STORY = {**QUESTION_BODY, "max_tokens": 400, "temperature": 1, "stream": True}


def connect(server: Server) -> socket.socket:
    address = urlsplit(server.url)
    return socket.create_connection((address.hostname, address.port), timeout=60)


def request(body: dict, key: str | None = None) -> bytes:
    data = json.dumps(body).encode()
    authorization = f"authorization: Bearer {key}\r\n" if key else ""
    head = (
        f"POST /v1/chat/completions HTTP/1.1\r\nhost: localhost\r\n{authorization}content-length: {len(data)}\r\n\r\n"
    )
    return head.encode() + data


def wait_until_idle(server: Server) -> None:
    """Fails where something runs or waits for nobody."""
    deadline = time.monotonic() + 60
    while True:
        _, health = server.ask("GET", "/health")
        if health["running"] == health["waiting"] == 0:
            return
        assert time.monotonic() < deadline, health


def test_two_hundred_who_dawdle_hold_up_nobody(server):
    dawdlers = [connect(server) for _ in range(200)]
    for index, dawdler in enumerate(dawdlers):
        # Half of a head, or a head and the beginning of its body.
        dawdler.sendall(request(QUESTION_BODY)[: 30 if index % 2 else -10])
    assert server.ask("POST", "/v1/chat/completions", QUESTION_BODY)[0] == 200
    for dawdler in dawdlers:
        dawdler.close()
    wait_until_idle(server)


def test_of_two_hundred_at_once_those_who_stay_are_answered_and_those_who_leave_are_let_go(server):
    def ask(index: int) -> bytes:
        with connect(server) as client:
            client.sendall(request(STORY))
            answer = client.recv(4096)
            leaves = index % 3 == 0
            while not leaves and b"[DONE]" not in answer[-100:]:
                piece = client.recv(65536)
                assert piece, answer
                answer += piece
            return answer

    with ThreadPoolExecutor(200) as crowd:
        answers = list(crowd.map(ask, range(200)))
    assert all(answer.startswith(b"HTTP/1.1 200") for answer in answers)
    wait_until_idle(server)
    assert server.ask("POST", "/v1/chat/completions", QUESTION_BODY)[0] == 200


def test_a_client_that_closes_its_side_has_left(server):
    with connect(server) as client:
        client.sendall(request(STORY))
        client.shutdown(socket.SHUT_WR)
        while client.recv(65536):
            pass
    wait_until_idle(server)


#: Ways to write "bob" so that a careless server might take it for one's own, or for a path.
DOORS = [
    "bob",
    "../bob",
    "..%2Fbob",
    "%2e%2e/bob",
    "ann/../bob",
    "ann%2F..%2Fbob",
    "ann%5C..%5Cbob",
    "ann%00",
    "ann%00bob",
    "ann%20",
    "ann.",
    "ann:bob",
    "ANN",
    quote("a\N{COMBINING DIAERESIS}nn"),
    quote("\N{FULLWIDTH LATIN SMALL LETTER A}nn"),
    quote("ann\N{ZERO WIDTH SPACE}"),
    "%FF%FE",
    "*",
    "x" * 5000,
]


@pytest.mark.parametrize("door", DOORS, ids=range(len(DOORS)))
def test_a_key_opens_no_door_but_its_users(guarded, door):
    ann = guarded.add_key("--user", "ann", "--rights", "chat,publish,train")
    calls = [
        ("GET", ""),
        ("GET", "/card"),
        ("PUT", ""),
        ("DELETE", ""),
        ("POST", "/rollback"),
        ("POST", "/unload"),
        ("POST", "/train"),
        ("GET", "/train"),
        ("GET", "/train/events"),
        ("DELETE", "/train"),
    ]
    for method, rest in calls:
        # By hand: a client library would tidy the path first.
        with connect(guarded) as client:
            head = f"{method} /v1/variants/{door}{rest} HTTP/1.1\r\nhost: localhost\r\nauthorization: Bearer {ann}\r\n"
            client.sendall(f"{head}connection: close\r\ncontent-length: 2\r\n\r\n{{}}".encode())
            answer = b""
            while piece := client.recv(65536):
                answer += piece
        status = int(answer.split()[1])
        assert status in (400, 403, 404, 405), (method, rest, answer)
        assert str(guarded.folder).encode() not in answer
