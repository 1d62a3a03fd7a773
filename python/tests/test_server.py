"""Serving through Python: many users in one batch, streams, and nobody answered by the base in silence."""

import asyncio

import pytest

from conftest import ANSWER, QUESTION
from zoo.gym import BitDeltaConfig, PersonalizedServer
from zoo.gym.errors import DeviceError, EngineError, PromptError, UnknownUserError, VariantError, WrongBaseError

LONG = "Tell me a long story."


@pytest.fixture
def server(taught):
    server = PersonalizedServer("tiny")
    assert server.load_variants([taught / "ada", str(taught / "bob" / "variant.safetensors")]) == ["ada", "bob"]
    yield server
    server.close()


def test_each_user_is_answered_by_their_own_variant(server):
    assert server.variants() == ["ada", "bob"]
    assert asyncio.run(server.infer(user_id="ada", prompt=QUESTION, max_new_tokens=512)) == ANSWER
    assert asyncio.run(server.infer(None, QUESTION, max_new_tokens=8)) != ANSWER
    with pytest.raises(UnknownUserError, match="carol"):
        asyncio.run(server.infer("carol", QUESTION))


def test_a_stream_is_the_answer_in_pieces(server):
    async def pieces():
        return [piece async for piece in server.stream(None, LONG, max_new_tokens=24)]

    streamed = asyncio.run(pieces())
    assert len(streamed) > 4 and "".join(streamed) == asyncio.run(server.infer(None, LONG, max_new_tokens=24))


def test_a_batch_of_users_has_the_answers_that_each_has_alone(server):
    requests = [(user, f"{LONG} {i}") for i in range(4) for user in ("ada", "bob", None)] + [("ada", QUESTION)]
    together = asyncio.run(server.infer_batch(requests, max_new_tokens=16))
    alone = [asyncio.run(server.infer(user, prompt, max_new_tokens=16)) for user, prompt in requests]
    assert together == alone and together[-1] == ANSWER


def test_a_batch_runs_together(server):
    async def watch():
        answers = asyncio.ensure_future(server.infer_batch([(None, f"{LONG} {i}") for i in range(8)], 256))
        most = 0
        while not answers.done():
            most = max(most, server.stats()["running"])
            await asyncio.sleep(0)
        return most

    assert asyncio.run(watch()) > 1


def test_sampling_follows_its_seed(server):
    def say(seed):
        return asyncio.run(server.infer(None, LONG, 24, temperature=1.5, top_p=0.9, top_k=50, seed=seed))

    assert say(1) == say(1) != say(2)
    whole = asyncio.run(server.infer(None, LONG, 24))
    stop = whole[4:7]
    assert asyncio.run(server.infer(None, LONG, 24, stop=stop)) == whole[: whole.index(stop)]


def test_a_cancelled_answer_gives_its_place_back(server):
    async def leave():
        task = asyncio.ensure_future(server.infer(None, LONG, 400))
        while not server.stats()["running"]:
            await asyncio.sleep(0.001)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        async for _ in server.stream("ada", LONG, 400):
            break
        while server.stats()["running"]:
            await asyncio.sleep(0.001)
        return await server.infer("ada", QUESTION)

    assert asyncio.run(leave()) == ANSWER


def test_one_that_fails_in_a_batch_is_the_batchs_error(server):
    with pytest.raises(UnknownUserError, match="carol"):
        asyncio.run(server.infer_batch([("ada", QUESTION), ("carol", QUESTION)]))
    assert asyncio.run(server.infer("ada", QUESTION)) == ANSWER


def test_a_base_that_is_not_kept_still_knows_its_variants(taught):
    server = PersonalizedServer("tiny", BitDeltaConfig(cache_base_model=False))
    server.load_variants([taught / "ada"])
    assert server._model._engine is None
    for _ in range(2):
        assert asyncio.run(server.infer_batch([("ada", QUESTION)] * 3)) == [ANSWER] * 3
        assert server._model._engine is None


def test_users_of_a_folder_are_found_when_they_ask(taught):
    server = PersonalizedServer("tiny", variants_dir=taught, base_dtype="int8", threads=1, max_batch=2)
    assert server.variants() == ["ada", "bob"]
    assert asyncio.run(server.infer("ada", QUESTION)) == ANSWER
    assert server.stats()["variant_bytes"] > 0
    assert not server.unload_variant("nobody") and server.unload_variant("ada")
    server.close()


def test_what_cannot_be_served_says_why(server, taught, tmp_path):
    with pytest.raises(DeviceError, match="supported are cpu"):
        PersonalizedServer("tiny", device="cuda:0")
    with pytest.raises(WrongBaseError, match="made on base"):
        PersonalizedServer("qwen3-4b").load_variants([taught / "ada"])
    damaged = tmp_path / "eve.safetensors"
    damaged.write_bytes((taught / "ada" / "variant.safetensors").read_bytes()[:-9])
    with pytest.raises(VariantError, match="eve.safetensors"):
        server.load_variants([damaged])
    with pytest.raises(VariantError, match="nowhere"):
        server.load_variants(["nowhere"])
    with pytest.raises(PromptError, match="tokens"):
        asyncio.run(server.infer("ada", "word " * 2000))
    for prompt in (7, [{"role": "king", "content": "x"}], [{"role": "user"}], ["x"]):
        with pytest.raises(PromptError):
            asyncio.run(server.infer("ada", prompt))


def test_closing_ends_what_runs():
    server = PersonalizedServer("tiny")

    async def close_inside():
        task = asyncio.ensure_future(server.infer(None, LONG, 400))
        while not server.stats()["running"]:
            await asyncio.sleep(0.001)
        await asyncio.to_thread(server.close)
        with pytest.raises(EngineError):
            await task

    asyncio.run(close_inside())
