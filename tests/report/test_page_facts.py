"""What the page says of a run in a few words."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from mmft.report.page_facts import duration, facts, run_record, subtitle
from mmft.report.page_source import RunSource
from mmft.report.run_kind import Kind
from tests.report.run_folders import HOSTILE, SETTINGS, summary


def run(told: dict[str, Any], kind: Kind = "policy", **fields: Any) -> RunSource:
    return RunSource(Path("x"), "x", kind, settings=SETTINGS, summary=told, **fields)


def test_a_policy_says_how_it_ran():
    told = summary(
        2_500,
        kept_samples=2_000,
        wall_seconds=200.0,
        steps=400,
        sampler_difference=2e-6,
        unjudged_share=0.125,
        feature_cache_hit_rate=0.5,
        masked_samples={"judge": 3, "clip": 0},
    )
    assert dict(facts(run(told))) == {
        "optimizer steps": "400",
        "training took": "3 min",
        "optimizer steps per second": "2",
        "held-out rows": "2,500",
        "of which the run keeps": "2,000, spread evenly",
        "scoring": "each prompt shared by its completions (largest difference to the plain forward 1.0e-06)",
        "sampler beside scoring": "largest difference 2.0e-06",
        "feature cache": "50% of prompts were encoded before",
        "completions that nothing judged": "12.5%",
        "reward judge failed": "3 samples left out",
        "device": "cpu",
    }


def test_why_completions_were_scored_one_by_one_is_said():
    told = dict(facts(run({"packed": False, "packed_reason": "log-probs differ"})))
    assert told == {"scoring": "each completion on its own: log-probs differ"}


def test_a_run_that_crashed_says_how_far_it_came():
    assert facts(run({}, history=[{"step": 40}, {"step": 50}, {"loss": 1}])) == [
        ["last step that was logged", "50"]
    ]
    assert facts(run({})) == []


def test_an_agent_says_what_it_used():
    told = dict(
        facts(
            run(
                {
                    "environment_steps": 30_000, "env_restarts": 2, "actions": ["left", "right"],
                    "buffer": {"holds": "room for 5 steps"}, "encoder": {"asked": 2_000, "encoded": 10},
                },
                kind="agent",
            )
        )
    )  # fmt: skip
    assert told == {
        "steps in environments": "30,000",
        "environments made anew": "2",
        "actions": "left, right",
        "buffer": "room for 5 steps",
        "states": "2,000 asked for, 10 of them went through the model",
    }


@pytest.mark.parametrize(
    ("kind", "told", "expected"),
    [
        ("policy", summary(), "PPO with a learned critic, mmft/tiny-captioner on mmft/scenes"),
        ("policy", summary(critic=False, algorithm="a2c"), "Advantage actor-critic without a critic, "),
        ("policy", {}, "PPO, mmft/tiny-captioner on mmft/scenes"),
        (
            "agent",
            {"algorithm": "dqn", "environment": "e"},
            "Deep Q-learning of an agent in e, on mmft/tiny-",
        ),
        ("reward_model", {}, "A reward model on mmft/tiny-captioner, learned from mmft/scenes"),
        ("sft", {}, "A warm start of mmft/tiny-captioner on the captions of mmft/scenes"),
    ],
)
def test_one_line_says_what_was_trained(kind: Kind, told: dict[str, Any], expected: str):
    assert subtitle(run(told, kind)).startswith(expected)


def test_the_record_of_a_run_holds_its_settings_and_its_machine():
    told = summary(hardware={"cpu": "fast", "gpu": None}, warnings=["w" * 2_000])
    record = run_record(run(told, problems=["p"]))
    assert record["hardware"] == {"cpu": "fast", "gpu": None, "processes": 1}
    assert record["versions"] == {"python": "3.11", "torch": "2.13"}
    assert record["config"]["reward_funcs"] == ["captioning"]
    assert [len(text) for text in record["warnings"]] == [1_000, 1]


def test_what_is_of_no_shape_does_no_harm():
    odd = {
        "steps": "many",
        "wall_seconds": None,
        "packed": "yes",
        "masked_samples": [1],
        "actions": {},
        "buffer": 3,
        "encoder": [],
        "hardware": HOSTILE,
        "versions": None,
        "device": HOSTILE,
        "num_processes": [],
    }
    record = run_record(run(odd))
    assert record["facts"] == [["device", "</script><script>alert(1)</script>\ufffd\ufffd\u202e"]]
    assert (record["hardware"], record["versions"]) == ({}, {})


@pytest.mark.parametrize(
    ("seconds", "text"), [(3.4, "3 s"), (119, "119 s"), (600, "10 min"), (9_000, "2 h 30 min")]
)
def test_durations_as_one_says_them(seconds: float, text: str):
    assert duration(seconds) == text


def test_the_speed_of_a_run_that_was_resumed_is_not_that_of_its_last_session():
    history = [{"step": 1, "loss": 1.0, "seconds/training": 30.0}, {"step": 2, "seconds/training": 10.0}]
    told = dict(facts(run({"steps": 20, "wall_seconds": 15.0}, history=history)))
    assert told["training took, since it was last resumed"] == "15 s"
    assert told["optimizer steps per second"] == "0.5"  # 20 / (30 + 10)
    whole = dict(facts(run({"steps": 20, "wall_seconds": 50.0}, history=history)))
    assert (whole["training took"], whole["optimizer steps per second"]) == ("50 s", "0.4")
