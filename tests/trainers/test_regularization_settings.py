"""Coefficients of regularisers as they are written: numbers, numbers by part, and what is neither."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from transformers import HfArgumentParser

from mmft.errors import ConfigError
from mmft.trainers.ppo import PPOConfig
from mmft.trainers.regularization import RegularizationConfig
from mmft.trl_bridge import TrlParser

GOOD: list[tuple[Any, Any]] = [
    (0.01, 0.01),
    ("0.01", 0.01),
    ("1e-2", 0.01),
    (None, 0.0),
    (0, 0.0),
    ("{language: 0.01, vision: 1e-1}", {"language": 0.01, "vision": 0.1}),
    ({"head": "0.5"}, {"head": 0.5}),
]


@pytest.mark.parametrize(("given", "expected"), GOOD)
def test_coefficients_are_numbers_or_numbers_by_part(given: Any, expected: Any, tmp_path: Path):
    args = PPOConfig(output_dir=str(tmp_path), l2_pretrained_coef=given, l2_adapter_coef=given, use_cpu=True)
    assert args.l2_pretrained_coef == args.l2_adapter_coef == expected
    assert args.regularizes == bool(expected)


@pytest.mark.parametrize(
    ("text", "expected"), [("0.01", 0.01), ("1e-2", 0.01), ("{language: 0.01, vision: 1}", None)]
)
def test_coefficients_can_be_written_in_a_file_and_on_the_command_line(
    text: str, expected: float | None, tmp_path: Path
):
    expected_value: Any = {"language": 0.01, "vision": 1.0} if expected is None else expected
    path = tmp_path / "config.yaml"
    path.write_text(f"output_dir: {tmp_path}\nuse_cpu: true\nl2_pretrained_coef: {text}\n")
    (from_file,) = TrlParser((PPOConfig,)).parse_args_and_config(args=["--config", str(path)])
    line = ["--output_dir", str(tmp_path), "--use_cpu", "true", "--l2_pretrained_coef", text]
    (from_line,) = HfArgumentParser((PPOConfig,)).parse_args_into_dataclasses(args=line)
    assert from_file.l2_pretrained_coef == from_line.l2_pretrained_coef == expected_value


@pytest.mark.parametrize(
    ("value", "message"),
    [
        (-0.1, "`l2_pretrained_coef` must be a number >= 0; got -0.1"),
        ("much", "must be a number >= 0; got 'much'; give a number, or numbers by part"),
        (float("nan"), "must be a number >= 0; got nan"),
        ("inf", "must be a number >= 0; got 'inf'"),
        (True, "must be a number >= 0; got True"),
        ([0.1], r"must be a number >= 0; got \[0.1\]"),
        ({"language": -1}, r"`l2_pretrained_coef\[language\]` must be a number >= 0; got -1"),
        ({"text": 0.1}, "names 'text', which is not one of vision, projector, language, head"),
        ("{language: 0.1", "`l2_pretrained_coef` is no YAML"),
    ],
)
def test_impossible_coefficients_are_refused(value: Any, message: str, tmp_path: Path):
    with pytest.raises(ConfigError, match=message):
        RegularizationConfig(output_dir=str(tmp_path), use_cpu=True, l2_pretrained_coef=value)


def test_an_unknown_device_of_the_copy_is_refused(tmp_path: Path):
    with pytest.raises(ConfigError, match="`l2_pretrained_device` must be model or cpu; got 'disk'"):
        RegularizationConfig(output_dir=str(tmp_path), use_cpu=True, l2_pretrained_device="disk")
