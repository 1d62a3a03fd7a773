"""The hanzo client: the same words to a model in this process and to a node."""

import contextlib
import json
import re
import subprocess
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

import hanzo
from conftest import ANSWER, BINARIES, EXAMPLES, GOLDEN, QUESTION, QUICK
from hanzo import Hanzo
from zoo.gym import BitDeltaConfig
from zoo.gym.errors import ConfigError, NotSupportedError, UnknownUserError

MESSAGES = [{"role": "user", "content": QUESTION}]


@pytest.fixture(scope="module")
def node(taught):
    """A node that serves the taught users."""
    command = [BINARIES / "hanzo-node", "start", "--enable-bitdelta", "--variants-dir", taught, "--port", "0"]
    command += ["--model", GOLDEN / "tiny-llama", "--model-name", "tiny"]
    with subprocess.Popen(list(map(str, command)), stdout=subprocess.PIPE, text=True) as process:
        yield re.search(r"http://\S+", process.stdout.readline()).group()
        process.terminate()


@pytest.fixture(params=["local", "node"])
def client(request, taught):
    """A client of each kind."""
    if request.param == "local":
        with Hanzo(inference_mode="local", variants_dir=taught) as client:
            yield client
    else:
        yield Hanzo(base_url=request.getfixturevalue("node") + "/v1/", api_key="none")


def test_an_answer_has_openais_shape(client):
    response = client.chat.completions.create(model="tiny", user_id="ada", messages=MESSAGES)
    assert response.object == "chat.completion" and response.model == "tiny" and response.id.startswith("chatcmpl-")
    [choice] = response.choices
    assert (choice.index, choice.finish_reason) == (0, "stop")
    assert (choice.message.role, choice.message.content) == ("assistant", ANSWER)
    usage = response.usage
    assert usage.total_tokens == usage.prompt_tokens + usage.completion_tokens > usage.completion_tokens > 0
    dumped = response.model_dump()
    assert (
        dumped["choices"][0]["message"]["content"] == ANSWER
        and "cached_tokens" in dumped["usage"]["prompt_tokens_details"]
    )
    assert json.loads(response.model_dump_json()) == dumped


def test_a_stream_has_openais_chunks(client):
    stream = client.chat.completions.create(
        model="tiny", user_id="bob", messages=MESSAGES, stream=True, stream_options={"include_usage": True}
    )
    chunks = list(stream)
    assert {chunk.object for chunk in chunks} == {"chat.completion.chunk"} and len({chunk.id for chunk in chunks}) == 1
    assert chunks[0].choices[0].delta.role == "assistant"
    assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices) == ANSWER
    assert [chunk.choices[0].finish_reason for chunk in chunks if chunk.choices][-1] == "stop"
    assert chunks[-1].choices == [] and chunks[-1].usage.completion_tokens > 0


def test_the_user_may_be_named_in_openais_ways(client):
    def say(model="tiny", **fields):
        return client.chat.completions.create(model=model, messages=MESSAGES, max_tokens=8, **fields)

    for fields in ({"user": "ada"}, {"safety_identifier": "ada"}, {"extra_body": {"user_id": "ada"}}):
        assert say(**fields).choices[0].message.content == ANSWER
    assert say("tiny:ada").choices[0].message.content == ANSWER
    assert say(tools=None, stop=None).choices[0].message.content != ANSWER


def test_several_answers_and_a_seed(client):
    def say():
        response = client.chat.completions.create(
            model="tiny", messages=MESSAGES, n=3, temperature=1.5, seed=5, max_completion_tokens=12
        )
        return [choice.message.content for choice in response.choices]

    assert say() == say() and len(set(say())) == 3


def test_a_stream_that_is_left_ends(client):
    with client.chat.completions.create(model="tiny", messages=MESSAGES, stream=True, max_tokens=400) as stream:
        next(stream)
    assert client.chat.completions.create(model="tiny", user_id="ada", messages=MESSAGES).choices


@pytest.mark.parametrize("stream", [False, True])
def test_a_user_without_a_variant_is_an_error_and_not_the_base(client, stream):
    with pytest.raises((UnknownUserError, hanzo.NotFoundError), match="carol"):
        client.chat.completions.create(model="tiny", user_id="carol", messages=MESSAGES, stream=stream)


def test_refusals_are_typed(node):
    client = Hanzo(base_url=node)
    with pytest.raises(hanzo.NotFoundError) as caught:
        client.chat.completions.create(model="tiny", user_id="carol", messages=MESSAGES)
    assert (caught.value.status_code, caught.value.param) == (404, "user_id") and caught.value.code
    with pytest.raises(hanzo.BadRequestError, match="temperature"):
        client.chat.completions.create(model="tiny", messages=MESSAGES, temperature="hot")
    with pytest.raises(hanzo.APIConnectionError, match="no node answers"):
        Hanzo(base_url="127.0.0.1:1", max_retries=0).chat.completions.create(model="m", messages=MESSAGES)


def test_what_this_process_does_not_do_is_refused(taught):
    client = Hanzo(inference_mode="local", variants_dir=taught)
    with pytest.raises(NotSupportedError, match="response_format"):
        client.chat.completions.create(model="tiny", messages=MESSAGES, response_format={"type": "json_object"})
    with pytest.raises(ConfigError, match="n = 9"):
        client.chat.completions.create(model="tiny", messages=MESSAGES, n=9)
    with pytest.raises(ConfigError, match="temperature"):
        client.chat.completions.create(model="tiny", messages=MESSAGES, temperature="hot")
    for arguments in ({}, {"inference_mode": "cloud"}, {"inference_mode": "local", "base_url": "x"}):
        with pytest.raises(hanzo.HanzoError):
            Hanzo(**arguments)


def test_a_variant_is_trained_and_served_in_this_process():
    with Hanzo(inference_mode="local") as client:
        done = client.train_variant(
            user_id="u",
            base_model="tiny",
            dataset=EXAMPLES,
            config=BitDeltaConfig(group_size=32),
            progress=False,
            **QUICK,
        )
        assert done.path == "variants/u/variant.safetensors"
        response = client.chat.completions.create(model="tiny", user_id="u", messages=MESSAGES)
        assert response.choices[0].message.content == ANSWER


class Teacher(BaseHTTPRequestHandler):
    """A node's side of a training job: keeps what it was sent, reports two states, ends as ``outcome`` says."""

    seen: list = []
    outcome: dict = {}

    def do_POST(self):
        self.seen.append(("POST", self.path, json.loads(self.rfile.read(int(self.headers["Content-Length"])))))
        self.answer(202, json.dumps({"object": "training", "status": "queued"}))

    def do_GET(self):
        if self.path == "/v1/models":
            self.answer(200, json.dumps({"object": "list", "data": [{"id": "tiny"}]}))
            return
        running = {
            "status": "running",
            "phase": "training",
            "done": 1,
            "total": 2,
            "unit": "steps",
            "messages": ["begun"],
        }
        events = [running, {**running, "done": 2, "messages": ["begun", "ended"], **self.outcome}]
        self.answer(200, "".join(f"data: {json.dumps(event)}\n\n" for event in events) + "data: [DONE]\n\n")

    def do_DELETE(self):
        self.seen.append(("DELETE", self.path, None))
        self.answer(202, "{}")

    def answer(self, status, text):
        self.send_response(status)
        self.send_header("Content-Length", str(len(text)))
        self.end_headers()
        self.wfile.write(text.encode())

    def log_message(self, *_):
        """Says nothing."""


@contextlib.contextmanager
def serving(handler):
    """The handler at an address."""
    handler.seen.clear()
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_port}"
        finally:
            server.shutdown()
            thread.join()


def test_a_node_trains_as_this_process_does():
    Teacher.outcome = {"status": "succeeded", "version": 3}
    seen = []
    with serving(Teacher) as url:
        pairs = [{"prompt": "x", "chosen": "y"}]
        config = BitDeltaConfig(bits=2, group_size=32)
        done = Hanzo(base_url=url).train_variant("a b", "tiny", EXAMPLES, config, pairs, progress=seen.append, seed=7)
    [(_, path, body)] = Teacher.seen
    assert path == "/v1/variants/a%20b/train"
    assert [len(body["data"]), body["eval_data"]] == [2, []]
    expected = {"bits": 2, "group_size": 32, "seed": 7, "num_train_epochs": 3, "finetuning_type": "full"}
    assert expected.items() <= body["settings"].items()
    assert (done.status, done.version) == ("succeeded", 3)
    assert [event.message for event in seen if event.message] == ["begun", "ended"]
    assert [event.done for event in seen if not event.message] == [1, 2]


def test_a_nodes_training_that_fails_or_is_left_says_so():
    Teacher.outcome = {"status": "failed", "error": "the loss became NaN"}

    class EnoughError(Exception):
        pass

    def enough(progress):
        raise EnoughError

    with serving(Teacher) as url:
        client = Hanzo(base_url=url)
        with pytest.raises(hanzo.HanzoError, match="u failed: the loss became NaN"):
            client.train_variant("u", dataset=EXAMPLES, progress=False)
        with pytest.raises(hanzo.HanzoError, match="does not serve 'other'; it serves tiny"):
            client.train_variant("u", "other", EXAMPLES)
        with pytest.raises(ConfigError, match="decided"):
            client.train_variant("u", "tiny", EXAMPLES, BitDeltaConfig(), bits=2)
        with pytest.raises(EnoughError):
            client.train_variant("u", dataset=EXAMPLES, progress=enough)
    assert [(method, path) for method, path, _ in Teacher.seen][-1] == ("DELETE", "/v1/variants/u/train")


class Moody(BaseHTTPRequestHandler):
    """Refuses twice, then answers; keeps what it was sent."""

    seen: list = []

    def do_POST(self):
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        self.seen.append((self.headers["Authorization"], body))
        status = [429, 503, 200][min(len(self.seen) - 1, 2)]
        answer = {"error": {"message": "busy"}} if status != 200 else {"id": "x", "choices": [], "flavour": "plum"}
        data = json.dumps(answer).encode()
        self.send_response(status)
        self.send_header("Retry-After", "0")
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, *_):
        """Says nothing."""


@pytest.fixture
def moody():
    with serving(Moody) as url:
        yield url


def test_a_busy_node_is_asked_again_with_the_key(moody):
    response = Hanzo(base_url=moody, api_key="secret").chat.completions.create(
        model="m", messages=MESSAGES, user_id="u"
    )
    assert [key for key, _ in Moody.seen] == ["Bearer secret"] * 3
    assert Moody.seen[0][1] == {"model": "m", "messages": MESSAGES, "user_id": "u"}
    # What this package does not know of is kept.
    assert response.flavour == "plum" and response.model_dump()["flavour"] == "plum"


def test_tries_end(moody):
    with pytest.raises(hanzo.RateLimitError, match="busy"):
        Hanzo(base_url=moody, max_retries=0).chat.completions.create(model="m", messages=MESSAGES)
    assert len(Moody.seen) == 1
