"""`mmft merge`: one plain model, which says what the policy says, without mmft."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from huggingface_hub import ModelCard
from PIL import Image
from safetensors import safe_open

from mmft.cli import main
from mmft.cli.merge import merge
from mmft.engine.actor_critic import VLMActorCritic
from mmft.errors import ConfigError
from mmft.hub import push
from mmft.models.adapters import adapter_config
from mmft.models.backbone import load_backbone, make_backbone
from mmft.runs import Run
from mmft.tiny import captioner_path
from tests import zoo

NAME = "mmft/tiny-captioner"
# PEFT compares vocabularies with the base model's config on the hub, where the packaged one is not.
pytestmark = pytest.mark.filterwarnings("ignore:Could not find a config file in mmft/:UserWarning")
READER = """
import json, sys
sys.modules["mmft"] = None  # to import it is an error from here on
import torch
from PIL import Image
from transformers import AutoModelForImageTextToText, AutoProcessor
from safetensors.torch import save_file
model = AutoModelForImageTextToText.from_pretrained(sys.argv[1]).eval()
processor = AutoProcessor.from_pretrained(sys.argv[1])
content = [{"type": "image"}, {"type": "text", "text": "Describe the picture."}]
text = processor.apply_chat_template([{"role": "user", "content": content}], add_generation_prompt=True)
picture = Image.linear_gradient("L").resize((64, 64)).convert("RGB")
inputs = processor(text=text + "a red circle.", images=picture, return_tensors="pt")
with torch.no_grad():
    logps = model(**inputs).logits.float().log_softmax(-1)
save_file({"logps": logps.contiguous()}, sys.argv[2])
print(json.dumps({"ends": model.generation_config.eos_token_id, "dtype": str(model.dtype)}))
"""


def make_policy(
    folder: Path, *, method: str = "lora", trainable: tuple[str, ...] = (), **settings: Any
) -> Path:
    """A run's folder whose every trained weight differs from where training would begin."""
    base = load_backbone(NAME, trainable=(), dtype="float32").base
    config = (
        None if method == "none" else adapter_config(base, method=method, r=2, alpha=4, bottleneck_size=2)
    )
    backbone = load_backbone(NAME, peft_config=config, trainable=trainable, dtype="float32")
    policy = VLMActorCritic(backbone, reference=False)
    with torch.no_grad():
        for weight in policy.parameters():
            if weight.requires_grad:
                weight.add_(0.05 * torch.randn_like(weight))
    if config is not None:
        backbone.model.peft_config["default"].base_model_name_or_path = NAME  # type: ignore[index, union-attr]
    policy.save_pretrained(folder)
    (folder / "config.yaml").write_text(yaml.safe_dump({"model_name_or_path": NAME} | settings))
    return folder


def read_elsewhere(model: Path, tmp_path: Path) -> tuple[torch.Tensor, dict[str, Any]]:
    """Log-probs of a text after a picture, by a process that knows no mmft."""
    environment = os.environ | {"HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-c", READER, str(model), str(tmp_path / "logps")]
    told = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False)
    assert told.returncode == 0, told.stderr
    with safe_open(tmp_path / "logps", framework="pt") as file:
        return file.get_tensor("logps"), json.loads(told.stdout.splitlines()[-1])


@torch.no_grad()
def logps_of(backbone: Any) -> torch.Tensor:
    processor = backbone.processor
    content = [{"type": "image"}, {"type": "text", "text": "Describe the picture."}]
    text = processor.apply_chat_template([{"role": "user", "content": content}], add_generation_prompt=True)
    picture = Image.linear_gradient("L").resize((64, 64)).convert("RGB")
    inputs = processor(text=text + "a red circle.", images=picture, return_tensors="pt")
    return backbone.model(**inputs).logits.log_softmax(-1)


def names(folder: str | Path) -> set[str]:
    with safe_open(Path(folder) / "model.safetensors", framework="pt") as file:
        return set(file.keys())


def test_the_merged_model_says_what_the_policy_says_without_mmft(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    run, merged = make_policy(tmp_path / "run", trainable=("projector",)), tmp_path / "merged"
    assert main(["merge", str(run), str(merged)]) == 0
    assert capsys.readouterr().out == f"{merged}/ holds LlavaForConditionalGeneration in float32, 8 MB\n"
    found, told = read_elsewhere(merged, tmp_path)
    policy = Run.from_pretrained(run).load_policy().backbone
    torch.testing.assert_close(found, logps_of(policy), atol=1e-5, rtol=1e-5)
    base = load_backbone(NAME, trainable=(), dtype="float32")
    assert (found - logps_of(base)).abs().max() > 0.1
    assert told == {"ends": 2, "dtype": "torch.float32"}
    # What serves models by their architecture finds the weights by their names.
    base.base.save_pretrained(tmp_path / "base")
    assert names(merged) == names(tmp_path / "base") == names(captioner_path())
    configs = [json.loads((each / "config.json").read_text()) for each in (merged, tmp_path / "base")]
    assert configs[0] == configs[1]
    assert {"processor_config.json", "tokenizer.json", "generation_config.json"} <= {
        each.name for each in merged.iterdir()
    }


def test_a_merged_model_can_be_pushed(tmp_path: Path):
    run, merged = make_policy(tmp_path / "run"), tmp_path / "merged"
    assert main(["merge", str(run), str(merged)]) == 0
    plan = push(merged, "ada/merged", dry_run=True)
    assert plan.kind == "model"
    assert plan.left_out == []
    card = ModelCard((merged / "README.md").read_text())
    assert (card.data.library_name, card.data.base_model) == ("transformers", None)
    assert f"AutoModelForImageTextToText.from_pretrained('{merged}')" in card.text
    (sent,) = [each for each in plan.shared if each.path == "README.md"]
    assert b"from_pretrained('ada/merged')" in (sent.content or b"")


def test_another_dtype_is_that_of_the_weights(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    run, merged = make_policy(tmp_path / "run"), tmp_path / "merged"
    assert main(["merge", str(run), str(merged), "--dtype", "bfloat16"]) == 0
    assert "in bfloat16, 4 MB" in capsys.readouterr().out
    with safe_open(merged / "model.safetensors", framework="pt") as file:
        assert {file.get_tensor(name).dtype for name in file.keys()} == {torch.bfloat16}
    assert json.loads((merged / "config.json").read_text())["dtype"] == "bfloat16"


def test_whole_weights_are_written_as_they_are(tmp_path: Path):
    run, merged = make_policy(tmp_path / "run", method="none"), tmp_path / "merged"
    assert main(["merge", str(run), str(merged)]) == 0
    with (
        safe_open(run / "model.safetensors", "pt") as one,
        safe_open(merged / "model.safetensors", "pt") as two,
    ):
        assert set(one.keys()) == set(two.keys())
        assert all(torch.equal(one.get_tensor(name), two.get_tensor(name)) for name in one.keys())


def refused(words: list[str], capsys: pytest.CaptureFixture[str]) -> str:
    assert main(["merge", *words]) == 2
    return capsys.readouterr().err


def test_a_folder_with_something_in_it_is_not_written_to(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "mine.txt").touch()
    assert "is not empty; give another folder" in refused(["run", str(tmp_path / "full")], capsys)
    assert "is a file; give a folder" in refused(["run", str(tmp_path / "full" / "mine.txt")], capsys)
    (tmp_path / "empty").mkdir()
    run = make_policy(tmp_path / "run")
    assert main(["merge", str(run), str(tmp_path / "empty")]) == 0


def test_bottleneck_adapters_are_no_weights(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    run = make_policy(tmp_path / "run", method="bottleneck")
    told = refused([str(run), str(tmp_path / "merged")], capsys)
    assert "bottleneck adapters, which act between layers and cannot become part of the weights" in told
    assert not (tmp_path / "merged").exists()


@pytest.mark.parametrize(
    ("file", "what"), [("agent.json", "an agent"), ("reward_model.json", "a reward model")]
)
def test_what_writes_nothing_is_no_policy(
    file: str, what: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    (tmp_path / file).touch()
    assert f"trained {what}" in refused([str(tmp_path), str(tmp_path / "merged")], capsys)


def test_adapters_of_a_quantised_model_need_to_be_told_what_to_be_put_on(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    run, merged = make_policy(tmp_path / "run", load_in_4bit=True), tmp_path / "merged"
    assert "was trained on a quantised model (`load_in_4bit`)" in refused([str(run), str(merged)], capsys)
    assert main(["merge", str(run), str(merged), "--base-model", NAME]) == 0
    backbone = load_backbone(NAME, trainable=())
    backbone.base.quantization_method = "bitsandbytes"
    with pytest.raises(ConfigError, match=r"base model of x is quantised.*`--base-model`"):
        merge(backbone, "x")


@pytest.mark.parametrize("family", zoo.FAMILIES)
def test_models_of_every_family_keep_the_names_of_their_weights(family: str, tmp_path: Path):
    model, processor = zoo.build_model(family), zoo.build_processor(family)
    model.save_pretrained(tmp_path / "base")
    backbone = make_backbone(model, processor, peft_config=adapter_config(model, r=2))
    merge(backbone, family).save_pretrained(tmp_path / "merged")
    assert names(tmp_path / "merged") == names(tmp_path / "base")
    configs = [json.loads((tmp_path / each / "config.json").read_text()) for each in ("base", "merged")]
    assert configs[0] == configs[1]
