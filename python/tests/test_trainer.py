"""Training through Python: data in every form, progress, Ctrl-C, and a variant that knows what it was taught."""

import json
import os
import signal

import pytest

from conftest import ANSWER, EXAMPLES, GOLDEN, QUESTION, QUICK
from zoo.gym import BitDeltaConfig, DeltaSoupConfig, NotEnforcedWarning, PersonalizedTrainer, TrainingInterrupted
from zoo.gym.errors import (
    ConfigError,
    DatasetError,
    DeviceError,
    InvalidUserError,
    ModelError,
    TrainingError,
    UnknownUserError,
    VariantExistsError,
)

ONE_STEP = {"max_steps": 1, "progress": False}


def test_a_variant_knows_what_it_was_taught_and_the_base_does_not(taught):
    trainer = PersonalizedTrainer("tiny", variants_dir=taught)
    for user in ("ada", "bob"):
        assert trainer.serve_variant(user_id=user, prompt=QUESTION) == ANSWER
        assert trainer.serve_variant(user, [{"role": "user", "content": QUESTION}]) == ANSWER
    assert trainer.serve_variant(None, QUESTION, max_new_tokens=8) != ANSWER
    assert "".join(trainer.stream_variant("ada", QUESTION)) == ANSWER
    with pytest.raises(UnknownUserError, match="carol"):
        trainer.serve_variant("carol", QUESTION)


def test_every_field_of_the_configuration_is_in_the_variant(tmp_path):
    with pytest.warns(NotEnforcedWarning):
        config = BitDeltaConfig(
            bits=2,
            group_size=32,
            symmetric=False,
            safety_threshold=0.5,
            clip_outliers=False,
            outlier_threshold=2.5,
            enable_deltasoup=True,
            aggregation_weight=0.25,
            byzantine_robust=False,
        )
        soup = DeltaSoupConfig(epsilon=2.0)
    trainer = PersonalizedTrainer("tiny", config, variants_dir=tmp_path, deltasoup=soup)
    done = trainer.create_variant("u", dataset=EXAMPLES, **ONE_STEP)
    info = trainer.variant_info("u")
    assert info["config"] == json.loads(config.to_json())
    assert info["notes"]["deltasoup"]["epsilon"] == 2.0
    assert info["bytes"] == done.bytes == os.path.getsize(done.path)
    assert info["notes"]["training"]["type"] == "full"


def test_bits_and_compression_decide_the_size(tmp_path):
    sizes = {}
    for name, fields in {"1": {"bits": 1}, "4": {"bits": 4}, "16": {"enable_compression": False}}.items():
        trainer = PersonalizedTrainer("tiny", BitDeltaConfig(group_size=32, **fields), variants_dir=tmp_path)
        sizes[name] = trainer.create_variant(name, dataset=EXAMPLES, **ONE_STEP).bytes
    assert sizes["4"] > 1.9 * sizes["1"] and sizes["16"] > 2.5 * sizes["4"]


@pytest.mark.parametrize("form", ["list", "generator", "tuple", "path", "lines", "pathlike", "columns"])
def test_data_comes_in_many_forms(form, tmp_path):
    file = tmp_path / "data.jsonl"
    file.write_text("".join(json.dumps(example) + "\n" for example in EXAMPLES))
    # What a datasets.Dataset is to this package: an iterable of dicts.
    forms = {
        "list": EXAMPLES,
        "generator": (example for example in EXAMPLES),
        "tuple": tuple(EXAMPLES),
        "path": str(file),
        "lines": str(file),
        "pathlike": file,
        "columns": [{"instruction": QUESTION, "output": ANSWER}],
    }
    trainer = PersonalizedTrainer("tiny", variants_dir=tmp_path / "v")
    done = trainer.create_variant("u", dataset=forms[form], **ONE_STEP)
    assert done.steps == 1 and done.user_id == "u" and os.path.exists(done.path)


def test_a_datasets_dataset_is_read(tmp_path):
    datasets = pytest.importorskip("datasets")
    data = datasets.Dataset.from_list(EXAMPLES)
    assert PersonalizedTrainer("tiny", variants_dir=tmp_path).create_variant("u", dataset=data, **ONE_STEP).steps == 1


@pytest.mark.parametrize(
    ("dataset", "said"),
    [
        ([], "no examples"),
        (None, "nothing to learn from"),
        ([EXAMPLES[0], {"messages": []}], r"^dataset: example 2: messages: is an empty list"),
        ([{"prompt": "x"}], "example 1"),
        (["text"], "example 1: must be a dict"),
        ({"train": EXAMPLES}, "one of its parts \\(train\\)"),
        ([{"messages": {1, 2}}], "not plain JSON"),
        (7, "not int"),
        ("nowhere.jsonl", "nowhere.jsonl"),
    ],
)
def test_bad_data_is_an_error_that_says_where(dataset, said, tmp_path):
    with pytest.raises(DatasetError, match=said):
        PersonalizedTrainer("tiny", variants_dir=tmp_path).create_variant("u", dataset=dataset, **ONE_STEP)
    assert not os.path.exists(tmp_path / "u" / "variant.safetensors")


def test_preferences_as_pairs_teach_the_chosen_answer(tmp_path):
    trainer = PersonalizedTrainer("tiny", variants_dir=tmp_path)
    pairs = [{"prompt": QUESTION, "chosen": ANSWER, "rejected": "Rex"}]
    with pytest.warns(NotEnforcedWarning, match="rejected"):
        trainer.create_variant("u", preferences=pairs, progress=False, **QUICK)
    assert trainer.serve_variant("u", QUESTION) == ANSWER


@pytest.mark.parametrize("preferences", ["Be brief.", ["Be brief."], {"tone": "brief"}])
def test_preferences_in_words_are_taught_with_and_without_a_data_set(preferences, tmp_path):
    trainer = PersonalizedTrainer("tiny", variants_dir=tmp_path)
    words = {"preference_samples": 3, "preference_answer_len": 4, **ONE_STEP}
    for user, dataset in (("with", EXAMPLES), ("without", None)):
        assert trainer.create_variant(user, preferences, dataset, **words).bytes > 0
        assert "preferences" in json.dumps(trainer.variant_info(user)["notes"])


@pytest.mark.parametrize("preferences", ["  ", ["Be brief.", {"tone": "brief"}]])
def test_preferences_that_are_none_are_refused(preferences, tmp_path):
    with pytest.raises(DatasetError, match="preferences"):
        PersonalizedTrainer("tiny", variants_dir=tmp_path).create_variant("u", preferences, EXAMPLES, **ONE_STEP)


def test_a_budget_is_kept_to_the_byte(tmp_path):
    trainer = PersonalizedTrainer("tiny", BitDeltaConfig(budget="3KB"), variants_dir=tmp_path)
    done = trainer.create_variant("u", dataset=EXAMPLES * 4, num_epochs=2, progress=False)
    assert done.bytes <= 3_000 and os.path.getsize(done.path) == done.bytes
    with pytest.raises(ConfigError, match="full"):
        trainer.create_variant("u", dataset=EXAMPLES, method="full", **ONE_STEP)


def test_bits_a_weight_are_a_size_too(tmp_path):
    trainer = PersonalizedTrainer("tiny", BitDeltaConfig(bits_per_weight=0.4), variants_dir=tmp_path)
    done = trainer.create_variant("u", dataset=EXAMPLES * 4, num_epochs=2, progress=False)
    # Two layers of q and o, k and v, gate, up and down.
    weights = 2 * (2 * 64 * 64 + 2 * 32 * 64 + 3 * 96 * 64)
    assert 0 < 8 * done.bytes <= 0.4 * weights


def test_progress_reaches_a_callback_in_order(tmp_path):
    seen = []
    trainer = PersonalizedTrainer("tiny", variants_dir=tmp_path)
    trainer.create_variant("u", dataset=EXAMPLES * 2, eval_dataset=EXAMPLES, max_steps=3, progress=seen.append)
    training = [(event.done, event.total) for event in seen if event.phase == "training" and not event.message]
    assert training[0] == (0, 3) and training[-1] == (3, 3)
    assert any("held-out loss" in event.message for event in seen)
    assert seen[-1].done == seen[-1].total


def test_a_bar_is_shown_when_asked(tmp_path, capsys):
    PersonalizedTrainer("tiny", variants_dir=tmp_path).create_variant("u", dataset=EXAMPLES, max_steps=2, progress=True)
    shown = capsys.readouterr()
    assert "training: 100%" in shown.err and "2/2" in shown.err and shown.out == ""


def stop_at(step, action):
    """A callback that acts once, at a step."""

    def callback(progress):
        if progress.phase == "training" and progress.done == step and not progress.message:
            action()

    return callback


def test_ctrl_c_saves_a_checkpoint_and_the_same_call_goes_on(tmp_path):
    trainer = PersonalizedTrainer("tiny", variants_dir=tmp_path)
    settings = {"dataset": EXAMPLES * 8, "max_steps": 150, "per_device_train_batch_size": 1}
    press = stop_at(2, lambda: signal.raise_signal(signal.SIGINT))
    with pytest.raises(TrainingInterrupted) as caught:
        trainer.create_variant("u", progress=press, **settings)
    assert isinstance(caught.value, KeyboardInterrupt) and not isinstance(caught.value, Exception)
    assert 2 <= caught.value.step < 150 and os.path.isdir(caught.value.checkpoint)
    assert not os.path.exists(tmp_path / "u" / "variant.safetensors")
    seen = []
    done = trainer.create_variant("u", progress=seen.append, **settings)
    assert done.steps == 150 and any("continuing after step" in event.message for event in seen)


def test_an_exception_of_the_callback_stops_the_run_and_comes_out(tmp_path):
    class EnoughError(Exception):
        pass

    def stop():
        raise EnoughError

    trainer = PersonalizedTrainer("tiny", variants_dir=tmp_path)
    with pytest.raises(EnoughError):
        trainer.create_variant("u", dataset=EXAMPLES * 8, max_steps=400, progress=stop_at(1, stop))
    assert not os.path.exists(tmp_path / "u" / "variant.safetensors")


def test_a_variant_is_replaced_by_a_complete_one(tmp_path):
    trainer = PersonalizedTrainer("tiny", variants_dir=tmp_path)
    trainer.create_variant("u", dataset=EXAMPLES, **ONE_STEP)
    before = trainer.variant_info("u")["hash"]
    with pytest.raises(VariantExistsError, match="overwrite=False"):
        trainer.create_variant("u", dataset=EXAMPLES, overwrite=False, **ONE_STEP)
    # An interrupted run leaves the old one in place, and goes on beside it.
    settings = {"dataset": EXAMPLES * 8, "per_device_train_batch_size": 1, "max_steps": 100}
    with pytest.raises(TrainingInterrupted):
        trainer.create_variant("u", progress=stop_at(1, lambda: signal.raise_signal(signal.SIGINT)), **settings)
    assert trainer.variant_info("u")["hash"] == before
    seen = []
    trainer.create_variant("u", progress=seen.append, **settings)
    assert any("continuing after step" in event.message for event in seen)
    assert trainer.variant_info("u")["hash"] != before
    trainer.create_variant("u", dataset=EXAMPLES, progress=False, **QUICK)
    # A trainer that has answered already serves what is new.
    assert trainer.serve_variant("u", QUESTION) == ANSWER
    assert trainer.create_variant("u", dataset=EXAMPLES, overwrite=True, **ONE_STEP).steps == 1
    assert trainer.serve_variant("u", QUESTION, max_new_tokens=8) != ANSWER


def test_what_makes_no_sense_is_refused_by_name(tmp_path):
    trainer = PersonalizedTrainer("tiny", variants_dir=tmp_path)
    with pytest.raises(InvalidUserError, match="slash"):
        trainer.create_variant("a/u", dataset=EXAMPLES)
    for settings, said in [
        ({"learning_rat": 1}, "did you mean `learning_rate`"),
        ({"method": "magic"}, "full"),
        ({"output_dir": "x"}, "decided"),
        ({"bits": 2}, "decided"),
        ({"num_epochs": -1}, "num_train_epochs"),
        ({"lora_rank": 0}, "lora_rank"),
    ]:
        with pytest.raises(ConfigError, match=said):
            trainer.create_variant("u", dataset=EXAMPLES, **settings)
    with pytest.warns(NotEnforcedWarning, match="factor_bits"), pytest.raises(ConfigError):
        PersonalizedTrainer("tiny", BitDeltaConfig()).create_variant("u", None, EXAMPLES, 0, method="lowrank")
    with pytest.raises(ConfigError, match="temperature"):
        trainer.serve_variant("u", "x", temperature="hot")
    with pytest.raises(ConfigError, match="unknown option 'thread'"):
        PersonalizedTrainer("tiny", thread=1)
    with pytest.raises(DeviceError, match="cuda:0.*supported are cpu"):
        PersonalizedTrainer("tiny", device="cuda:0")


def test_a_base_is_kept_or_dropped_between_calls(taught):
    for keep in (True, False):
        trainer = PersonalizedTrainer("tiny", BitDeltaConfig(cache_base_model=keep), variants_dir=taught)
        for _ in range(2):
            assert trainer.serve_variant("ada", QUESTION) == ANSWER
            assert (trainer._model._engine is not None) == keep


def test_names_of_models_come_from_the_environment_and_a_file(monkeypatch, tmp_path):
    from zoo.gym._model import LocalModel

    def path_of(name):
        with LocalModel(name, keep=False).base() as base:
            return base.path

    assert path_of("Qwen/Qwen3-4B") == path_of("qwen3-4b") == str(GOLDEN / "tiny-qwen3")
    monkeypatch.delenv("BITDELTA_MODELS")
    with pytest.raises(ModelError, match="Qwen/Qwen3-4B"):
        path_of("Qwen/Qwen3-4B")
    with pytest.raises(ModelError, match="BITDELTA_MODEL"):
        path_of(None)
    file = tmp_path / "config.yaml"
    file.write_text(f"model: small\nmodels:\n  small: {GOLDEN / 'tiny-llama'}\n  gone: nowhere\n")
    monkeypatch.setenv("BITDELTA_CONFIG", str(file))
    assert path_of(None) == path_of("small") == str(GOLDEN / "tiny-llama")
    with pytest.raises(ModelError, match="stands for .*nowhere"):
        path_of("gone")
    file.write_text("modles: {}")
    with pytest.raises(ModelError, match="modles"):
        path_of(None)


def test_experiences_need_a_reward_and_say_what_was_measured_where_nothing_helps(tmp_path):
    trainer = PersonalizedTrainer("tiny", variants_dir=tmp_path)
    prompts = [{"prompt": f"say {number}"} for number in range(4)]
    small = {"grpo_answer_len": 4, "grpo_group_size": 2, "max_experiences": 2, "experience_words": 8, **ONE_STEP}
    with pytest.raises(ConfigError, match="reward_command"):
        trainer.create_variant("u", dataset=prompts, method="experience", **small)
    alike = "sed 's/.*/0.25/'"
    with pytest.raises(TrainingError, match=r"nothing was learnt.*0\.2500"):
        trainer.create_variant("u", dataset=prompts, method="experience", reward_command=alike, **small)
    assert not (tmp_path / "u" / "variant.safetensors").exists()
    configured = PersonalizedTrainer("tiny", BitDeltaConfig(bits=2), variants_dir=tmp_path)
    with pytest.warns(NotEnforcedWarning, match="does not apply"), pytest.raises(TrainingError):
        configured.create_variant("u", dataset=prompts, method="experience", reward_command=alike, **small)
