"""The command line from a newcomer's side: files in, one command, files out; and what it says to mistakes."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from safetensors.torch import load_file

from mmft.cli import COMMANDS, main
from tests import zoo

SETTINGS: dict[str, Any] = {
    "dataset_name": "mmft/scenes",
    "instruction": "Describe the picture.",
    "max_train_rows": 8,
    "eval_split": "validation",
    "max_eval_rows": 3,
    "reward_funcs": ["tests.reference.rewards:byte_variety", {"name": "captioning", "gamma": 0.2}],
    "reward_weights": [1.0, 0.5],
    "eval_funcs": ["bleu"],
    "use_peft": True,
    "lora_r": 2,
    "lora_dropout": 0.0,
    "num_generations": 2,
    "per_device_train_batch_size": 4,
    "num_ppo_epochs": 1,
    "max_completion_length": 6,
    "learning_rate": 1e-2,
    "max_steps": 2,
    "save_steps": 2,
    "use_cpu": True,
    "num_samples": 2,
    "seed": 3,
}
SFT_SETTINGS: dict[str, Any] = {
    name: SETTINGS[name]
    for name in (
        "dataset_name",
        "instruction",
        "max_train_rows",
        "eval_split",
        "max_eval_rows",
        "use_cpu",
        "seed",
    )
} | {
    "use_peft": True,
    "lora_r": 2,
    "per_device_train_batch_size": 4,
    "max_steps": 3,
    "learning_rate": 1e-2,
    "bf16": False,
    "activation_checkpointing": False,
    "save_strategy": "no",
}


@pytest.fixture(scope="module")
def model_folder(tmp_path_factory: pytest.TempPathFactory) -> str:
    folder = tmp_path_factory.mktemp("model")
    zoo.build_model("llava").save_pretrained(folder)
    zoo.build_processor("llava").save_pretrained(folder)
    return str(folder)


def write_config(folder: Path, settings: dict[str, Any]) -> str:
    path = folder / "recipe.yaml"
    path.write_text(yaml.safe_dump(settings))
    return str(path)


@pytest.fixture(scope="module")
def run_folder(model_folder: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One finished `mmft ppo` run that several tests look at."""
    folder = tmp_path_factory.mktemp("ppo")
    settings = SETTINGS | {"model_name_or_path": model_folder, "output_dir": str(folder / "run")}
    assert main(["ppo", "--config", write_config(folder, settings)]) == 0
    return folder / "run"


def summary(folder: Path) -> dict[str, Any]:
    return json.loads((folder / "summary.json").read_text())


def lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


# Help and mistakes


def test_the_help_names_every_command(capsys: pytest.CaptureFixture[str]):
    assert main(["--help"]) == main([]) == 0
    said = capsys.readouterr().out
    assert all(f"  {name}" in said for name in COMMANDS)


def test_the_help_comes_within_a_second_and_without_heavy_libraries():
    code = (
        "import sys; from mmft.cli import main; main(['--help']);"
        "print({'torch', 'transformers', 'trl', 'datasets'} & set(sys.modules))"
    )
    seconds = []
    for _ in range(3):  # the best of three: the machine may be busy with other tests
        start = time.perf_counter()
        said = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
        seconds.append(time.perf_counter() - start)
    assert said.endswith("set()\n")
    assert min(seconds) < 1.0


@pytest.mark.parametrize(
    ("command", "fields"),
    [
        ("ppo", ["reward_funcs", "num_generations", "kl_coef", "model_name_or_path", "lora_r"]),
        ("sft", ["completion_column", "max_length", "lora_r"]),
    ],
)
def test_the_help_of_a_command_lists_its_fields(
    command: str, fields: list[str], capsys: pytest.CaptureFixture[str]
):
    assert main([command, "--help"]) == 0
    said = capsys.readouterr().out
    assert all(f"\n  {field} " in said for field in fields)
    assert "\n  ddp_backend " not in said
    assert max(map(len, said.splitlines())) <= 110


def test_every_field_is_listed_on_request(capsys: pytest.CaptureFixture[str]):
    assert main(["ppo", "--help-all"]) == 0
    assert "\n  ddp_backend " in capsys.readouterr().out


def refusal(capsys: pytest.CaptureFixture[str], argv: list[str]) -> str:
    assert main(argv) == 2
    said = capsys.readouterr()
    assert said.out == ""
    assert said.err.count("\n") == 1, "a mistake is one line, without a traceback"
    return said.err


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["pop"], "no command 'pop'. Did you mean `mmft ppo`?"),
        (["ppo", "--config"], "`--config` needs a file"),
        (["ppo", "--config", "nowhere.yaml"], "nowhere.yaml is no file"),
        (
            ["ppo", "--num_generation", "4"],
            "`--num_generation` is no field of this command. Did you mean `num_gen",
        ),
        (["ppo", "--num_generations", "four"], "invalid int value: 'four'"),
        (["ppo", "--num_generations", "3", "--output_dir", "x"], "multiple of `num_generations=3`"),
        (["ppo", "--learning_rate", "1e-3"], "`output_dir` is missing"),
        (["ppo", "--output_dir", "x", "--use_cpu"], "`reward_funcs` is empty"),
        (["ppo", "--output_dir", "x", "--reward_funcs", "captionin"], "Did you mean 'captioning'?"),
        (["ppo", "--output_dir", "x", "--reward_funcs", "bleu"], "`dataset_name` is missing"),
        (
            ["sft", "--output_dir", "x", "--use_cpu", "--bf16", "no", "--completion_choice", "last"],
            "got 'last'",
        ),
    ],
)
def test_a_mistake_is_answered_in_one_line(argv: list[str], message: str, capsys: pytest.CaptureFixture[str]):
    assert message in refusal(capsys, argv)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("learning_rat: 1.0", "`learning_rat` is no field of this command. Did you mean `learning_rate`?"),
        ("- a\n- b", "must hold a mapping"),
        ("a: [", "is not valid YAML"),
        ("output_dir: x\nrename_columns: captions", "`rename_columns` must be a mapping"),
        ("output_dir: x\nnum_generations: 4.5", "invalid int value: '4.5'"),
    ],
)
def test_a_mistake_in_a_config_is_answered_in_one_line(
    text: str, message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    path = tmp_path / "recipe.yaml"
    path.write_text(text)
    assert message in refusal(capsys, ["ppo", f"--config={path}"])


def test_a_missing_model_and_a_missing_adapter_are_named(
    tmp_path: Path, model_folder: str, capsys: pytest.CaptureFixture[str]
):
    path = write_config(tmp_path, SETTINGS | {"output_dir": str(tmp_path / "run")})
    argv = ["evaluate", "--config", path, "--model_name_or_path"]
    assert "`model_name_or_path` 'no/such' cannot be loaded" in refusal(capsys, [*argv, "no/such"])
    adapter = ["--adapter_path", str(tmp_path)]
    assert "holds no adapter_config.json" in refusal(capsys, [*argv, model_folder, *adapter])


def test_an_unknown_split_of_the_scenes_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    path = write_config(tmp_path, SETTINGS | {"output_dir": str(tmp_path / "run")})
    said = refusal(capsys, ["ppo", "--config", path, "--train_split", "tran"])
    assert "mmft/scenes" in said
    assert "got 'tran'" in said


# PPO and its run folder


def test_a_run_leaves_every_file(run_folder: Path):
    names = {path.name for path in run_folder.iterdir()}
    assert names >= {
        "adapter_config.json", "adapter_model.safetensors", "heads.safetensors", "processor_config.json",
        "config.yaml", "metrics.jsonl", "samples.jsonl", "summary.json", "curves.png", "overview.png",
        "README.md",
    }  # fmt: skip


def test_the_summary_tells_before_and_after_and_how_it_ran(run_folder: Path):
    told = summary(run_folder)
    for when in ("before", "after"):
        assert set(told[when]) >= {
            "reward", "rewards/byte_variety", "rewards/captioning", "rewards/captioning/bleu",
            "rewards/bleu_reward", "completions/mean_length",
        }  # fmt: skip
        parts = told[when]["rewards/byte_variety"] + 0.5 * told[when]["rewards/captioning"]
        assert told[when]["reward"] == pytest.approx(parts, abs=1e-6)
    assert told["steps"] == 2
    assert told["wall_seconds"] > 0
    assert told["packed"] is True
    assert 0 <= told["packed_difference"] <= 1e-4
    assert told["num_processes"] == 1
    assert told["unjudged_share"] == 0.0
    assert told["versions"]["torch"] == torch.__version__


def test_the_samples_pair_each_held_out_row_before_and_after(run_folder: Path):
    told = summary(run_folder)
    samples = lines(run_folder / "samples.jsonl")
    assert [sample["key"] for sample in samples] == [["validation", row] for row in range(3)]
    assert all(sample["references"] for sample in samples)
    for when in ("before", "after"):
        mean = sum(sample[when]["reward"] for sample in samples) / len(samples)
        assert mean == pytest.approx(told[when]["reward"], abs=1e-6)


def test_the_model_card_shows_the_table_and_loads_the_adapter(run_folder: Path, model_folder: str):
    card = (run_folder / "README.md").read_text()
    assert f"| total reward | {summary(run_folder)['before']['reward']:.3f} |" in card
    code = card.split("```python\n")[1].split("```")[0]
    found: dict[str, Any] = {}
    exec(code, found)
    trained = load_file(run_folder / "adapter_model.safetensors")
    loaded = dict(found["model"].named_parameters())
    for name, tensor in trained.items():
        assert torch.equal(loaded[name.replace(".weight", ".default.weight")], tensor)
    assert any(bool(tensor.any()) for name, tensor in trained.items() if "lora_B" in name)
    assert found["model"].peft_config["default"].base_model_name_or_path == model_folder


def test_the_written_config_repeats_the_run(run_folder: Path, tmp_path: Path):
    again = tmp_path / "again"
    assert main(["ppo", "--config", str(run_folder / "config.yaml"), "--output_dir", str(again)]) == 0
    first, second = (load_file(each / "adapter_model.safetensors") for each in (run_folder, again))
    assert all(torch.equal(first[name], second[name]) for name in first)
    assert summary(again)["after"] == summary(run_folder)["after"]


def test_a_run_goes_on_from_its_last_checkpoint(run_folder: Path, tmp_path: Path):
    argv = ["ppo", "--config", str(run_folder / "config.yaml"), "--output_dir", str(tmp_path)]
    assert main(argv) == 0
    assert main([*argv, "--max_steps", "3", "--resume_from_checkpoint", "true"]) == 0
    steps = [line["step"] for line in lines(tmp_path / "metrics.jsonl") if "loss" in line]
    assert steps == [1, 2, 3]
    assert summary(tmp_path)["steps"] == 3
    assert summary(tmp_path)["before"] == summary(run_folder)["before"]


def test_resuming_from_nothing_is_refused(
    run_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    argv = ["ppo", "--config", str(run_folder / "config.yaml"), "--output_dir", str(tmp_path)]
    assert main([*argv, "--resume_from_checkpoint", "true"]) == 2
    assert f"{tmp_path} holds no checkpoint" in capsys.readouterr().err
    assert main([*argv, "--resume_from_checkpoint", str(tmp_path)]) == 2
    assert "holds no trainer_state.json" in capsys.readouterr().err


def test_without_held_out_rows_a_run_ends_without_a_comparison(run_folder: Path, tmp_path: Path):
    config = yaml.safe_load((run_folder / "config.yaml").read_text())
    path = write_config(
        tmp_path, config | {"eval_split": None, "max_steps": 1, "output_dir": str(tmp_path / "run")}
    )
    assert main(["ppo", "--config", path]) == 0
    assert summary(tmp_path / "run")["before"] is None
    assert (tmp_path / "run" / "curves.png").is_file()
    assert not (tmp_path / "run" / "samples.jsonl").exists()


# The other commands


def test_evaluate_finds_the_scores_that_the_run_ended_with(
    run_folder: Path, model_folder: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    target = tmp_path / "scores.json"
    argv = ["evaluate", "--config", str(run_folder / "config.yaml"), "--output_file", str(target)]
    assert main([*argv, "--adapter_path", str(run_folder)]) == 0
    assert "total reward" in capsys.readouterr().out
    with_adapter = json.loads(target.read_text())
    assert with_adapter["means"] == pytest.approx(summary(run_folder)["after"], abs=1e-6)
    assert with_adapter["adapter"] == str(run_folder)
    assert len(with_adapter["samples"]) == with_adapter["rows"] == 3
    # A folder with nothing but an adapter names its own base.
    assert main([*argv, "--model_name_or_path", str(run_folder)]) == 0
    assert json.loads(target.read_text())["means"] == with_adapter["means"]
    assert json.loads(target.read_text())["model"] == model_folder
    assert main(argv) == 0
    assert json.loads(target.read_text())["means"] == pytest.approx(summary(run_folder)["before"], abs=1e-6)


def test_generate_writes_greedy_or_sampled_completions(run_folder: Path, tmp_path: Path):
    target = tmp_path / "said.jsonl"
    argv = ["generate", "--config", str(run_folder / "config.yaml"), "--output_file", str(target)]
    assert main(argv) == 0
    greedy = [line["completions"] for line in lines(target)]
    samples = lines(run_folder / "samples.jsonl")
    assert [each[0]["completion"] for each in greedy] == [
        sample["before"]["completion"] for sample in samples
    ]
    assert main([*argv, "--do_sample", "--num_generations", "4", "--per_device_train_batch_size", "4"]) == 0
    sampled = [line["completions"] for line in lines(target)]
    assert [len(each) for each in sampled] == [4, 4, 4]
    assert len({each["completion"] for group in sampled for each in group}) > 1


def test_generate_needs_no_rewards(run_folder: Path, tmp_path: Path):
    config = yaml.safe_load((run_folder / "config.yaml").read_text())
    path = write_config(tmp_path, config | {"reward_funcs": [], "eval_funcs": [], "reward_weights": None})
    target = tmp_path / "said.jsonl"
    assert main(["generate", "--config", path, "--output_file", str(target)]) == 0
    assert all(line["completions"][0]["reward"] is None for line in lines(target))


def test_a_warm_start_with_adapters_learns_and_ppo_goes_on_from_it(
    model_folder: str, run_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    warm = tmp_path / "warm"
    settings = SFT_SETTINGS | {"model_name_or_path": model_folder, "output_dir": str(warm)}
    assert main(["sft", "--config", write_config(tmp_path, settings)]) == 0
    assert f"--model_name_or_path {warm}/merged" in capsys.readouterr().out
    told = summary(warm)
    assert told["after"]["loss"] < told["before"]["loss"]
    ppo = ["ppo", "--config", str(run_folder / "config.yaml"), "--max_steps", "1", "--save_strategy", "no"]
    merged, stacked = tmp_path / "merged", tmp_path / "stacked"
    assert main([*ppo, "--model_name_or_path", str(warm / "merged"), "--output_dir", str(merged)]) == 0
    # The same policy, given as base and adapter: the run keeps the base that its own adapter belongs to.
    assert main([*ppo, "--adapter_path", str(warm), "--output_dir", str(stacked)]) == 0
    assert summary(stacked)["before"] == pytest.approx(summary(merged)["before"], abs=1e-5)
    assert summary(stacked)["before"] != pytest.approx(summary(run_folder)["before"], abs=1e-5)
    evaluate = [
        "evaluate",
        "--config",
        str(stacked / "config.yaml"),
        "--output_file",
        str(tmp_path / "scores.json"),
    ]
    override = ["--model_name_or_path", str(stacked / "base"), "--adapter_path", str(stacked)]
    assert main([*evaluate, *override]) == 0
    scores = json.loads((tmp_path / "scores.json").read_text())
    assert scores["means"] == pytest.approx(summary(stacked)["after"], abs=1e-5)


def test_a_warm_start_of_the_weights_themselves_is_a_model(model_folder: str, tmp_path: Path):
    warm = tmp_path / "warm"
    settings = SFT_SETTINGS | {"model_name_or_path": model_folder, "output_dir": str(warm), "use_peft": False}
    path = write_config(
        tmp_path, settings | {"trainable": ["projector", "language"], "completion_choice": "all"}
    )
    assert main(["sft", "--config", path]) == 0
    before, after = (load_file(Path(each) / "model.safetensors") for each in (model_folder, warm))
    moved = {name.split(".")[0] for name in before if not torch.equal(before[name], after[name])}
    assert "language_model" in moved
    assert "vision_tower" not in moved


def test_check_tells_what_would_happen_and_writes_nothing(
    model_folder: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    run = tmp_path / "run"
    path = write_config(tmp_path, SETTINGS | {"model_name_or_path": model_folder, "output_dir": str(run)})
    assert main(["check", "--config", path]) == 0
    said = capsys.readouterr().out
    for part in (
        "no problems found",
        "scoring: packed",
        "language",
        "peak memory",
        "lengths: prompt",
        "2 prompts x 2",
    ):
        assert part in said
    assert not run.exists()


def test_check_finds_every_problem_at_once(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    rows = tmp_path / "rows.jsonl"
    rows.write_text(
        "\n".join(
            json.dumps({"image": name, "references": references})
            for name, references in [("no.png", ["a"]), ("no.png", [""])]
        )
    )
    settings = SETTINGS | {"dataset_name": str(rows), "eval_split": None, "reward_funcs": ["captionin"]}
    settings |= {
        "model_name_or_path": str(tmp_path),
        "output_dir": str(tmp_path / "run"),
        "reward_weights": None,
    }
    assert main(["check", "--config", write_config(tmp_path, settings)]) == 1
    said = capsys.readouterr().out
    problems = [line for line in said.splitlines() if line.startswith("PROBLEM")]
    assert len(problems) == 4
    for part in ("row 0 of 'train'", "row 1 of 'train'", "captionin", "cannot be loaded"):
        assert sum(part in problem for problem in problems) == 1


@pytest.mark.parametrize(
    ("settings", "problem"),
    [
        ({"max_completion_length": 4000}, "exceed the model's"),
        ({"reward_funcs": ["tests.reference.rewards:abstains"]}, "no reward could judge the first row"),
        ({"reward_funcs": ["tests.reference.rewards:breaks"]}, "reward 'breaks' failed on row"),
        ({"use_peft": False, "trainable": []}, "nothing trains"),
    ],
)
def test_check_finds_what_shows_only_when_it_runs(
    settings: dict[str, Any],
    problem: str,
    model_folder: str,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
):
    config = SETTINGS | {
        "model_name_or_path": model_folder,
        "output_dir": str(tmp_path),
        "reward_weights": None,
    }
    assert main(["check", "--config", write_config(tmp_path, config | settings)]) == 1
    assert problem in capsys.readouterr().out


@pytest.mark.slow
def test_of_two_processes_one_writes_and_speaks(run_folder: Path, tmp_path: Path):
    argv = ["-m", "torch.distributed.run", "--nproc_per_node", "2", "-m", "mmft", "ppo"]
    settings = [
        "--config",
        str(run_folder / "config.yaml"),
        "--output_dir",
        str(tmp_path),
        "--save_strategy",
        "no",
    ]
    done = subprocess.run(
        [sys.executable, *argv, *settings],
        cwd=Path(__file__).parents[1],
        env=distributed_environment(),
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    assert done.stdout.count("total reward") == 1
    told = summary(tmp_path)
    assert told["num_processes"] == 2
    assert told["before"] == pytest.approx(summary(run_folder)["before"], abs=1e-6)
    assert len(lines(tmp_path / "samples.jsonl")) == 3


def distributed_environment() -> dict[str, str]:
    import os

    return dict(os.environ) | {"ACCELERATE_USE_CPU": "true", "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
