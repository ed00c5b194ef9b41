"""Two processes act in environments of their own and learn one agent from all of them."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from mmft.engine.stored_observations import StoredStates, TextTable
from mmft.errors import ConfigError
from mmft.trainers.agent_rollouts import Steps
from tests.trainers.support import moved
from tests.trainers.test_two_processes import launch
from tests.trainers.two_processes_agents import SCENARIOS, scenario

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The results of one launch, shared by the tests."""
    path = tmp_path_factory.mktemp("two")
    launch("two_processes_agents.py", path)
    return path


def tensors(folder: Path, name: str, what: str) -> list[dict[str, Tensor]]:
    """What each process wrote."""
    return [load_file(folder / name / f"{what}_{number}.safetensors") for number in (0, 1)]


def results(folder: Path, name: str) -> list[dict[str, Any]]:
    return [json.loads((folder / name / f"result_{number}.json").read_text()) for number in (0, 1)]


@pytest.mark.parametrize("name", SCENARIOS)
def test_both_processes_learn_the_same_and_every_number_is_finite(name: str, folder: Path):
    first, second = tensors(folder, name, "weights")
    assert moved(first, second) == set()
    assert all(bool(tensor.isfinite().all()) for tensor in first.values() if tensor.is_floating_point())
    start = tensors(folder, name, "start")[0]
    learned = {"policy_head", "value_head"} if "ppo" in name else {"q_head"}
    assert {key.split(".")[0] for key in moved(start, first)} >= learned
    for key in moved(start, first):
        assert key.split(".")[0] in learned | {"transforms"} or ("lora_" in key and "lora" in name), key
    steps = results(folder, name)[0]["steps"]
    assert all(math.isfinite(value) for row in steps for value in row.values())


@pytest.mark.parametrize("name", SCENARIOS)
def test_the_processes_act_in_environments_of_their_own(name: str, folder: Path):
    pools = [result["pool"] for result in results(folder, name)]
    assert [pool["first"] for pool in pools] == [0, 2]
    actions = [[slot["actions"] for slot in pool["environments"]] for pool in pools]
    seen = [[slot["digest"] for slot in pool["environments"]] for pool in pools]
    assert (actions[0], seen[0]) != (actions[1], seen[1])
    first, second = (batch["actions"].tolist() for batch in tensors(folder, name, "batch"))
    assert first != second, "and draw noise of their own"


@pytest.mark.parametrize("name", ["dqn", "ppo"])
def test_statistics_are_those_of_all_rows(name: str, folder: Path):
    rows = torch.cat([part["rows"] for part in tensors(folder, name, "warm_up")]).double()
    saved = tensors(folder, name, "weights")[0]
    prefix = "transforms.scalers.fused."
    assert int(saved[f"{prefix}num_seen"]) == len(rows) >= 16
    torch.testing.assert_close(saved[f"{prefix}mean"], rows.mean(0))
    torch.testing.assert_close(saved[f"{prefix}minimum"], rows.min(0).values)
    if name == "ppo":
        assert int(saved["transforms.projections.fused.num_seen"]) == len(rows)


@pytest.mark.parametrize("name", SCENARIOS)
def test_the_first_gradient_is_that_of_one_process_with_all_rows(name: str, folder: Path, tmp_path: Path):
    start = tensors(folder, name, "start")[0]
    transforms = {k: t for k, t in tensors(folder, name, "weights")[0].items() if k.startswith("transforms")}
    alone = scenario(name, tmp_path)
    alone.agent.load_state_dict(start | transforms, strict=False)
    total: dict[str, Tensor] = {}
    parts = list(zip(tensors(folder, name, "batch"), results(folder, name), strict=True))
    count = sum(len(batch["actions"]) for batch, _ in parts)
    masked = sum(int((~batch["train_mask"]).sum()) for batch, _ in parts if "train_mask" in batch)
    alone.agent.eval()
    for batch, result in parts:
        loss = loss_of(alone, batch, TextTable(result["texts"]), count - masked)
        loss.backward()
    total = {n: p.grad for n, p in alone.agent.named_parameters() if p.grad is not None}
    expected = tensors(folder, name, "gradients")
    assert moved(*expected) == set()
    assert total.keys() == expected[0].keys()
    assert any("lora_" in key for key in total) == ("lora" in name)
    for key, gradient in total.items():
        torch.testing.assert_close(expected[0][key], gradient, rtol=1e-3, atol=1e-5, msg=key)
    assert max(float(gradient.abs().max()) for gradient in total.values()) > 1e-3


def loss_of(trainer: Any, batch: dict[str, Tensor], texts: TextTable, count: int) -> Tensor:
    """The part of one process in a loss that is a mean over `count` rows."""
    if "targets" in batch:
        actions, targets = batch.pop("actions"), batch.pop("targets")
        q = trainer.agent(StoredStates(batch, texts).restored("cpu")).q
        return (q.gather(1, actions[:, None])[:, 0] - targets).square().sum() / count
    names = ("actions", "legal", "train_mask", "old_logps", "values", "advantages", "returns")
    fields = {name: batch.pop(name) for name in names}
    rows = list(range(len(fields["actions"])))
    steps = Steps(number=0, rows=rows, states=StoredStates(batch, texts), **fields)
    return trainer.compute_loss(trainer.agent, {"batch": steps, "num_tokens": torch.tensor(float(count))})


def test_advantages_are_whitened_over_both_processes(folder: Path):
    # One mini-batch, so that the first optimizer step has all of the rollout.
    batches = tensors(folder, "ppo lora", "batch")
    advantages = torch.cat([batch["advantages"][batch["train_mask"]] for batch in batches])
    assert len(advantages) == 32
    assert float(advantages.mean()) == pytest.approx(0, abs=1e-5)
    assert float(advantages.std()) == pytest.approx(1, abs=1e-4)
    assert abs(float(batches[0]["advantages"].mean())) > 1e-3


def test_two_processes_resume_with_the_same_bits(folder: Path):
    for number, whole in enumerate(tensors(folder, "dqn", "weights")):
        resumed = load_file(folder / f"resumed_{number}.safetensors")
        assert moved(resumed, whole) == set()
        expected = results(folder, "dqn")[number]
        actual = json.loads((folder / f"resumed_{number}.json").read_text())
        assert actual["steps"] == expected["steps"]
        assert actual["pool"] == expected["pool"]
    failures = [result["pool"]["num_restarts"] for result in results(folder, "dqn")]
    assert failures[0] != failures[1], "so that the processes have played other numbers of rounds"


def test_one_process_cannot_take_over_the_checkpoint_of_two(folder: Path, tmp_path: Path):
    alone = scenario("dqn", tmp_path)
    with pytest.raises(ConfigError, match=r"was saved by a run with num_processes=2 \(now 1\)"):
        alone.train(resume_from_checkpoint=str(folder / "dqn" / "checkpoint-4"))


@pytest.mark.parametrize("name", SCENARIOS)
def test_both_processes_know_the_whole_evaluation(name: str, folder: Path):
    first, second = results(folder, name)
    assert first["metrics"] == second["metrics"]
    assert first["episodes"] == second["episodes"]
    assert len({tuple(episode) for episode in first["episodes"]}) == 5
    assert {environment for environment, _ in first["episodes"]} == {0, 1, 2, 3}
