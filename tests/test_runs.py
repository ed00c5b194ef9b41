"""A finished run, opened again: what answers is what was trained, and what judges is what judged."""

from __future__ import annotations

import dataclasses
import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

import mmft
from mmft.cli import main
from mmft.engine import backbone_module
from mmft.errors import ConfigError
from mmft.runs import Answerer, Run, with_system_prompt
from mmft.tiny import load_scenes
from mmft.types import PromptRow
from tests.cli.support import SETTINGS, lines, write_config

CAPTIONER = {
    "model_name_or_path": "mmft/tiny-captioner",
    "reward_funcs": [{"name": "captioning", "gamma": 0.2}, "cider_d"],
    "reward_weights": [1.0, 0.5],
    "eval_temperature": 0.0,
    "vf_coef": 1.0,
    "max_completion_length": 16,
}


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Run:
    folder = tmp_path_factory.mktemp("run")
    settings = SETTINGS | CAPTIONER | {"output_dir": str(folder / "mine")}
    assert main(["ppo", "--config", write_config(folder, settings)]) == 0
    return Run.from_pretrained(folder / "mine")


def held_out(run: Run) -> list[PromptRow]:
    scenes = load_scenes("validation", 3)
    return [run.make_row(scene["image"], references=scene["references"]) for scene in scenes]


def test_it_knows_its_name_its_settings_and_what_it_trained(run: Run):
    assert (run.name, run.kind) == ("mine", "policy")
    assert run.settings["learning_rate"] == SETTINGS["learning_rate"]
    assert run.summary["steps"] == SETTINGS["max_steps"]
    assert mmft.Run is Run


def test_the_opened_policy_says_and_earns_what_the_run_wrote_down(run: Run):
    written = [line["after"] for line in lines(run.folder / "samples.jsonl")]
    answerer = Answerer(run.load_policy(), run.load_rewards(), run.settings)
    for answer, expected in zip(answerer.answer(held_out(run)), written, strict=True):
        assert answer.text == expected["completion"]
        assert answer.ended == expected["ended"]
        assert len(answer.logps) == len(answer.token_texts) == expected["tokens"]
        assert sum(answer.logps) / len(answer.logps) == pytest.approx(expected["mean_logp"], abs=1e-5)
        assert answer.reward == pytest.approx(expected["reward"], abs=1e-5)
        assert answer.rewards == pytest.approx(expected["rewards"], abs=1e-5)


def test_the_base_says_what_was_said_before(run: Run):
    written = [line["before"]["completion"] for line in lines(run.folder / "samples.jsonl")]
    answers = Answerer(run.load_base(), None, run.settings).answer(held_out(run))
    assert [answer.text for answer in answers] == written
    assert [(answer.values, answer.reward, answer.rewards) for answer in answers] == [(None, None, {})] * 3


def test_the_critic_comes_back_and_nothing_trains(run: Run):
    policy = run.load_policy()
    values = Answerer(policy, None, run.settings).answer(held_out(run)[:1])[0].values
    assert values is not None
    assert any(value != 0.0 for value in values)
    assert not any(parameter.requires_grad for parameter in policy.parameters())
    assert not policy.training


def test_a_policy_is_loaded_by_its_class_as_well(run: Run):
    mine, other = run.load_policy(), mmft.VLMActorCritic.from_pretrained(run.folder)
    for name, parameter in other.state_dict().items():
        assert torch.equal(parameter, mine.state_dict()[name]), name


def test_rows_of_one_key_and_other_pictures_are_other_prompts(run: Run):
    rows = held_out(run)
    assert len({row.key for row in rows}) == 1
    answerer = Answerer(run.load_base(), None, run.settings)
    together = answerer.answer(rows)
    assert together[0].logps != together[1].logps
    assert [answerer.answer([row])[0].text for row in rows] == [answer.text for answer in together]


def test_sampled_answers_differ_by_the_seed_alone(run: Run):
    policy = run.load_base()
    row = held_out(run)[:1]

    def sampled(seed: int) -> str:
        answerer = Answerer(policy, None, run.settings | {"seed": seed})
        return answerer.answer(row, temperature=3.0)[0].text

    assert sampled(1) == sampled(1)
    assert sampled(1) != sampled(2)


def test_rewards_come_with_their_weights_arguments_and_state(run: Run):
    suite = run.load_rewards()
    assert suite.names == ("captioning", "cider_d", "bleu_reward")
    assert suite.weights == [1.0, 0.5, 0.0]
    assert suite.state_dict() == json.loads((run.folder / "rewards.json").read_text())
    assert run.load_rewards(reported=False).names == ("captioning", "cider_d")


def moved(run: Run, folder: Path, settings: dict[str, Any] | None = None) -> Run:
    shutil.copytree(run.folder, folder / "copy", ignore=shutil.ignore_patterns("checkpoint-*"))
    if settings is not None:
        (folder / "copy" / "config.yaml").write_text(yaml.safe_dump(settings))
    return Run.from_pretrained(folder / "copy")


def test_what_it_asked_is_its_instruction_or_the_prompt_of_its_rows(run: Run, tmp_path: Path):
    told = moved(run, tmp_path, run.settings | {"instruction": "What is it?"})
    assert (run.prompt, told.prompt) == ("Describe the picture.", "What is it?")
    silent = dataclasses.replace(told, settings=run.settings | {"instruction": None})
    assert silent.prompt == "Describe the picture."  # of the held-out rows
    (told.folder / "samples.jsonl").write_text("")
    assert silent.prompt == "Describe the picture."  # what the packaged captioner was taught
    with pytest.raises(ConfigError, match=r"copy' does not say what it asked\. Give a prompt"):
        _ = dataclasses.replace(told, settings={}).prompt


def test_a_row_gets_the_system_prompt_of_the_run(run: Run):
    told = dataclasses.replace(run, settings=run.settings | {"system_prompt": "Be short."})
    row = told.make_row(None, "Say it.", references=["it"])
    assert row.messages[0] == {"role": "system", "content": [{"type": "text", "text": "Be short."}]}
    assert (row.prompt, row.columns) == ("Say it.", {"references": ["it"]})
    assert with_system_prompt(row, None) is row


def test_the_model_it_started_from_is_found_beside_it_or_by_the_name_given(run: Run, tmp_path: Path):
    beside = moved(run, tmp_path)
    settings = json.loads((beside.folder / "adapter_config.json").read_text())
    gone = settings | {"base_model_name_or_path": str(tmp_path / "gone")}
    (beside.folder / "adapter_config.json").write_text(json.dumps(gone))
    message = r"the pretrained model '.*gone' of the policy '.*copy' cannot be loaded: .*`--base-model`"
    with pytest.raises(ConfigError, match=message):
        beside.load_policy()
    with pytest.raises(ConfigError, match=r"gone' of the run '.*copy' cannot be loaded"):
        beside.load_base()
    renamed = Run.from_pretrained(beside.folder, base="mmft/tiny-captioner")
    assert renamed.load_policy().backbone.has_adapters
    shutil.copytree(mmft.tiny.captioner_path(), beside.folder / "base")
    assert beside.load_policy().backbone.has_adapters
    assert not beside.load_base().backbone.has_adapters


def test_a_folder_without_a_run_or_a_policy_is_refused(run: Run, tmp_path: Path):
    with pytest.raises(
        ConfigError, match=r"holds no run: neither config\.yaml nor a model\. Give the `output"
    ):
        Run.from_pretrained(tmp_path)
    (tmp_path / "config.yaml").write_text("learning_rate: 1.0\n")
    bare = Run.from_pretrained(tmp_path)
    with pytest.raises(ConfigError, match=r"holds neither adapter_config\.json nor config\.json: no policy"):
        bare.load_policy()
    with pytest.raises(ConfigError, match=r"does not say which model it started from\. Name it \(`base=`\)"):
        bare.load_base()
    with pytest.raises(ConfigError, match=r"names no reward in its config\.yaml"):
        bare.load_rewards()


def test_a_broken_file_is_named(tmp_path: Path):
    (tmp_path / "config.yaml").write_text("learning_rate: 1.0\n")
    (tmp_path / "summary.json").write_text("{")
    with pytest.raises(ConfigError, match=r"summary\.json cannot be read: .*Restore it, or remove it"):
        Run.from_pretrained(tmp_path)


@pytest.mark.parametrize(
    ("settings", "file", "kind"),
    [
        ({"env": "mmft/FindObject-v0"}, None, "agent"),
        ({"algorithm": "dqn"}, "agent.json", "agent"),
        ({"chosen_column": "chosen"}, "reward_model.json", "reward_model"),
        ({"completion_choice": "first"}, None, "sft"),
        ({"algorithm": "rwl"}, None, "policy"),
    ],
)
def test_what_a_run_trained_is_told_by_its_files(
    settings: dict[str, Any], file: str | None, kind: str, tmp_path: Path
):
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(settings))
    if file is not None:
        (tmp_path / file).write_text("{}")
    run = Run.from_pretrained(tmp_path)
    assert run.kind == kind
    if kind in ("agent", "reward_model"):
        with pytest.raises(
            ConfigError, match=r"which writes nothing\. Give the folder of a run of `mmft ppo`"
        ):
            run.load_policy()


def test_a_run_from_the_hub_runs_no_code_of_its_own_unless_it_is_trusted(run: Run):
    shipped = dataclasses.replace(run, trusts_code=False)
    assert shipped.load_rewards().names == run.load_rewards().names
    nested = {"name": "shaped", "reward": "bleu", "potential": {"name": "subprocess:Popen", "args": ["x"]}}
    for settings in (
        {"reward_funcs": ["bleu", nested]},
        {"reward_funcs": ["bleu"], "eval_funcs": ["os:system"]},
        {"reward_funcs": [{"name": "judge", "base_url": "http://somewhere", "model": "m"}]},
    ):
        evil = dataclasses.replace(shipped, settings=settings)
        with pytest.raises(
            ConfigError, match=r"'mine' comes from the hub and names code of its own, '\w+.*`--tr"
        ):
            evil.load_rewards()
    agent = dataclasses.replace(shipped, settings={"env": "my_module:make"})
    with pytest.raises(ConfigError, match="names code of its own, 'my_module:make'"):
        agent.check_code()
    dataclasses.replace(agent, settings={"env": "mmft/FindObject-v0"}).check_code()
    dataclasses.replace(agent, trusts_code=True).check_code()


def test_weights_are_of_the_dtype_and_the_revision_that_the_run_was_told(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    told = moved(run, tmp_path, run.settings | {"dtype": "bfloat16", "model_revision": "v2"})
    asked: list[dict[str, Any]] = []

    def load(name: str, **options: Any) -> Any:
        asked.append(options)
        raise ConfigError("seen")

    monkeypatch.setattr(backbone_module, "load_backbone", load)
    for opened in (told.load_policy, told.load_base):
        with pytest.raises(ConfigError, match="seen"):
            opened()
    assert [(each["dtype"], each["revision"]) for each in asked] == [("bfloat16", "v2")] * 2
    with pytest.raises(ConfigError, match="seen"):  # another base has revisions of its own
        dataclasses.replace(told, base="elsewhere").load_policy(dtype="float32")
    assert (asked[-1]["dtype"], "revision" in asked[-1]) == ("float32", False)


def test_the_base_of_whole_weights_that_began_with_an_adapter_has_it_inside(run: Run, tmp_path: Path):
    whole = moved(run, tmp_path, run.settings | {"adapter_path": str(run.folder)})
    for name in ("adapter_config.json", "adapter_model.safetensors"):
        (whole.folder / name).unlink()
    scenes = held_out(run)
    expected = Answerer(run.load_policy(), None, run.settings).answer(scenes)
    for answer, other in zip(Answerer(whole.load_base()).answer(scenes), expected, strict=True):
        assert answer.logps[:10] == pytest.approx(other.logps[:10], abs=1e-4)
    gone = dataclasses.replace(whole, settings=run.settings | {"adapter_path": "gone"})
    with pytest.raises(ConfigError, match=r"started from the adapter 'gone', which is not there\. Name"):
        gone.load_base()
