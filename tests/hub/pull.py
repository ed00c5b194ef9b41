"""Run in a process of its own, whose client talks to the hub of HF_ENDPOINT: loads what was pushed.

Its argument is the repository; prints one JSON object.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import torch
from PIL import Image

PROMPT, ANSWER = "Describe the picture.", "a red circle."


def picture() -> Image.Image:
    return Image.linear_gradient("L").resize((64, 64)).convert("RGB")


@torch.no_grad()
def logps_of(model: Any, processor: Any) -> list[float]:
    """Log-probs of the answer, by nothing but the model's own forward."""
    content = [{"type": "image"}, {"type": "text", "text": PROMPT}]
    text = processor.apply_chat_template([{"role": "user", "content": content}], add_generation_prompt=True)
    inputs = processor(text=text + ANSWER, images=picture(), return_tensors="pt")
    count = len(processor.tokenizer(ANSWER, add_special_tokens=False)["input_ids"])
    logps = model(**inputs).logits[0, -count - 1 : -1].log_softmax(-1)
    return logps.gather(1, inputs["input_ids"][0, -count:, None])[:, 0].tolist()


def answers_of(run: Any) -> list[dict[str, Any]]:
    """What the run's policy says, what its critic and its rewards hold of it."""
    from mmft.runs import Answerer

    row = run.make_row(picture(), references=[ANSWER])
    found = Answerer(run.load_policy(), run.load_rewards(), run.settings).answer([row])
    return [
        {"text": each.text, "logps": each.logps, "values": each.values, "rewards": each.rewards}
        for each in found
    ]


def main(repo: str) -> None:
    from peft import PeftModel
    from transformers import AutoModelForImageTextToText, AutoProcessor

    packaged = str(Path(__file__).parents[2] / "mmft" / "tiny" / "captioner")
    base = AutoModelForImageTextToText.from_pretrained(packaged, dtype=torch.float32)
    model: Any = PeftModel.from_pretrained(base, repo)
    told = {"peft": logps_of(model.eval(), AutoProcessor.from_pretrained(repo))}
    told["knows_mmft"] = "mmft" in sys.modules

    from mmft import Run

    run = Run.from_pretrained(repo)
    told |= {"name": run.name, "kind": run.kind, "answers": answers_of(run)}
    print(json.dumps(told))


if __name__ == "__main__":
    main(sys.argv[1])
