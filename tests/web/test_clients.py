"""Clients that others wrote, pointed at the built server: `openai` in Python and Go (the Rust one is in the server's own
tests), `hanzoai`, LangChain and LiteLLM. What each sends is understood, and what it gets back it can read."""

from __future__ import annotations

import asyncio
import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import hanzoai
import langchain_openai
import litellm
import openai
import pydantic
import pytest
from conftest import ANSWER, LESSON, MODEL, QUESTION, Server

HERE = Path(__file__).parent
NAME = MODEL.name
MESSAGES = [{"role": "user", "content": QUESTION}]
ASKED = {"model": NAME, "messages": MESSAGES, "max_tokens": 12, "temperature": 0}


@pytest.fixture(scope="module")
def ann(guarded: Server) -> str:
    """A key that may ask for ann alone; bob, whom it may not ask for, was taught something else."""
    guarded.teach("bob", [{**LESSON, "response": "Rex"}])
    return guarded.add_key("--user", "ann", "--rights", "chat")


@pytest.fixture(scope="module")
def client(guarded: Server, ann: str) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=f"{guarded.url}/v1", api_key=ann, max_retries=0) as client:
        yield client


WAYS_TO_SAY_ANN = [
    {"extra_body": {"user_id": "ann"}},
    {"user": "ann"},
    {"safety_identifier": "ann"},
    {"model": f"{NAME}:ann"},
    {"extra_body": {"user_id": "ann"}, "user": "bob"},
]


@pytest.mark.parametrize("way", WAYS_TO_SAY_ANN)
def test_openai_says_who_asks_in_any_of_its_ways(client, way):
    answer = client.chat.completions.create(**{**ASKED, **way})
    assert answer.choices[0].message.content == ANSWER
    assert answer.choices[0].finish_reason == "stop"
    assert answer.usage.total_tokens == answer.usage.prompt_tokens + answer.usage.completion_tokens


def test_openai_streams_and_counts(client):
    chunks = list(
        client.chat.completions.create(**ASKED, user="ann", stream=True, stream_options={"include_usage": True})
    )
    assert "".join(choice.delta.content or "" for chunk in chunks for choice in chunk.choices) == ANSWER
    assert chunks[-1].usage.completion_tokens > 0
    with client.chat.completions.stream(**ASKED, user="ann") as stream:
        events = [event.type for event in stream]
        assert stream.get_final_completion().choices[0].message.content == ANSWER
    assert "content.delta" in events and events[-1] == "content.done"


def test_openai_asks_for_many_users_at_once(guarded):
    async def ask() -> list[str]:
        async with openai.AsyncOpenAI(base_url=f"{guarded.url}/v1", api_key=guarded.key) as client:
            users = ["ann", "bob"] * 4
            answers = await asyncio.gather(*(client.chat.completions.create(**ASKED, user=user) for user in users))
            return [answer.choices[0].message.content for answer in answers]

    assert asyncio.run(ask()) == [ANSWER, "Rex"] * 4


def test_openai_parses_an_answer_of_a_certain_form(client):
    class Pet(pydantic.BaseModel):
        cat: bool

    answer = client.chat.completions.parse(**{**ASKED, "max_tokens": 64}, user="ann", response_format=Pet)
    assert isinstance(answer.choices[0].message.parsed, Pet)


def test_openai_completes_text_and_lists_models(client):
    assert [model.id for model in client.models.list()] == [NAME, f"{NAME}:ann"]
    assert client.completions.create(model=NAME, prompt="Hello", max_tokens=3, user="ann").usage.completion_tokens == 3


def test_openai_raises_its_own_errors(client, guarded):
    with pytest.raises(openai.PermissionDeniedError):
        client.chat.completions.create(**ASKED, user="bob")
    with pytest.raises(openai.BadRequestError) as refused:
        client.chat.completions.create(**{**ASKED, "temperature": -1}, user="ann")
    assert refused.value.param == "temperature"
    with pytest.raises(openai.NotFoundError):
        client.chat.completions.create(**{**ASKED, "model": "gpt-none"}, user="ann")
    stranger = openai.OpenAI(base_url=f"{guarded.url}/v1", api_key="wrong", max_retries=0)
    with pytest.raises(openai.AuthenticationError):
        stranger.models.list()


def test_hanzoai_puts_the_model_in_the_query_and_the_whole_body_aside(guarded, ann):
    client = hanzoai.Hanzo(base_url=guarded.url, api_key=ann)
    body = {key: value for key, value in ASKED.items() if key != "model"}
    answer = client.chat.completions.create(model=NAME, extra_body={**body, "user_id": "ann"})
    assert answer["choices"][0]["message"]["content"] == ANSWER


def test_langchain_answers_and_streams(guarded, ann):
    chat = langchain_openai.ChatOpenAI(
        base_url=f"{guarded.url}/v1",
        api_key=ann,
        model=NAME,
        temperature=0,
        max_tokens=12,
        model_kwargs={"user": "ann"},
    )
    answer = chat.invoke(QUESTION)
    assert answer.content == ANSWER
    assert answer.usage_metadata["output_tokens"] > 0
    assert "".join(chunk.content for chunk in chat.stream(QUESTION)) == ANSWER


@pytest.mark.filterwarnings("ignore:Items? .* using the `ReadOnly` qualifier:UserWarning")
def test_litellm_names_the_user_in_the_model_or_the_body(guarded, ann):
    common = {"api_base": f"{guarded.url}/v1", "api_key": ann, "messages": MESSAGES, "max_tokens": 12, "temperature": 0}
    # It drops `user` for a model that it does not know.
    for way in ({"model": f"openai/{NAME}:ann"}, {"model": f"openai/{NAME}", "extra_body": {"user_id": "ann"}}):
        assert litellm.completion(**common, **way).choices[0].message.content == ANSWER
        chunks = litellm.completion(**common, **way, stream=True)
        assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks) == ANSWER


def test_openai_in_go(guarded, ann):
    environment = {
        **os.environ,
        "OPENAI_BASE_URL": f"{guarded.url}/v1/",
        "OPENAI_API_KEY": ann,
        "QUESTION": QUESTION,
        "ANSWER": ANSWER,
    }
    done = subprocess.run(
        [os.environ.get("GO", "go"), "test", "-count=1", "./..."],
        cwd=HERE / "openai_go",
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
