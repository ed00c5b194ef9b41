"""One training step of TRL's GRPOTrainer and of mmft's PPOTrainer, side by side.

Same model, rows, LoRA and KL to the reference; mmft also trains its critic. Systems alternate, each in a
process of its own, so that both see the same machine and memory is counted apart. Writes a section of
RESULTS.md.
"""

from __future__ import annotations

import argparse
import json
import platform
import statistics
import sys
import time
from collections.abc import Sequence
from datetime import date
from typing import Any

import torch

from tests.benchmarks.floor import StepShape, decode_bytes, matmul_rate, read_rate, step_flops
from tests.benchmarks.models import SHAPES, build, build_rows
from tests.benchmarks.processes import alone, in_turn
from tests.benchmarks.sections import markdown_table, write_section
from tests.benchmarks.worker import COMPLETION_TOKENS, NUM_PROMPTS

SYSTEMS = ("trl", "mmft")


def prompt_tokens(shape: str) -> tuple[int, int]:
    """Prompt tokens and image patches of the benchmark's rows."""
    from mmft.data.rows import PromptDataset
    from mmft.engine.prompt_encoder import process_row

    model, processor = build(shape)
    inputs = process_row(processor, PromptDataset(build_rows(1))[0])
    vision = model.config.vision_config
    return inputs.input_ids.shape[1], (vision.image_size // vision.patch_size) ** 2


def reward_seconds(num_completions: int) -> float:
    """The captioning reward on captions of 20 words with five references each, the best of several."""
    from rewards import CaptioningReward

    rows = build_rows(8)
    references = [rows[i % 8]["references"] for i in range(num_completions)]
    captions = [refs[0] for refs in references]
    reward, best = CaptioningReward(), float("inf")
    for repeat in range(5):
        # Words shift between repeats: nothing may come from a cache of captions.
        texts = [f"{caption} w{20_000 + repeat * num_completions + i}" for i, caption in enumerate(captions)]
        start = time.perf_counter()
        reward(prompts=[""] * num_completions, completions=texts, references=references)
        best = min(best, time.perf_counter() - start)
    return best


def compare(shape: str, num_generations: int, rounds: int) -> dict[str, Any]:
    """Alternating measurements of both systems, medians, ratios and the share of the floor."""
    arguments = (shape, str(num_generations))
    runs = in_turn(SYSTEMS, rounds, lambda system: alone("tests.benchmarks.worker", system, *arguments))
    seconds = {s: statistics.median(t for run in runs[s] for t in run["seconds"]) for s in SYSTEMS}
    memory = {s: max(run["peak_mb"] for run in runs[s]) for s in SYSTEMS}
    tokens, patches = prompt_tokens(shape)
    model = build(shape)[0]
    step = StepShape(
        prompts=NUM_PROMPTS,
        prompt_tokens=tokens,
        generations=num_generations,
        completion_tokens=COMPLETION_TOKENS,
        patches=patches,
    )
    flops, rate, reading = step_flops(model, step), matmul_rate(), read_rate()
    floor = sum(flops.values()) / rate
    # Decoding a token takes its arithmetic or the reading of all weights, whichever is longer.
    bound = floor - flops["sampling"] / rate
    bound += max(flops["sampling"] / rate, decode_bytes(model, step) / reading)
    return {
        "shape": shape,
        "G": num_generations,
        "prompt_tokens": tokens,
        "lengths": {s: runs[s][0]["mean_length"] for s in SYSTEMS},
        "seconds": seconds,
        "memory": memory,
        "speedup": seconds["trl"] / seconds["mmft"],
        "memory_ratio": memory["trl"] / memory["mmft"],
        "gflop": sum(flops.values()) / 1e9,
        "rate": rate / 1e9,
        "floor": floor,
        "over_floor": seconds["mmft"] / floor,
        "read_rate": reading / 1e9,
        "over_bound": seconds["mmft"] / bound,
        "reward_share": reward_seconds(NUM_PROMPTS * num_generations) / seconds["mmft"],
        "parts": runs["mmft"][-1]["parts"],
    }


COLUMNS = (
    "model", "G", "prompt", "TRL s/step", "mmft s/step", "speed-up", "TRL peak MB", "mmft peak MB", "floor s",
    "mmft / floor", "with reads", "reward share",
)  # fmt: skip


def table(results: Sequence[dict[str, Any]]) -> str:
    rows = []
    for r in results:
        seconds, memory = r["seconds"], r["memory"]
        rows.append((
            r["shape"], str(r["G"]), str(r["prompt_tokens"]),
            f"{seconds['trl']:.2f}", f"{seconds['mmft']:.2f}",
            f"{r['speedup']:.1f}x", f"{memory['trl']:.0f}", f"{memory['mmft']:.0f}", f"{r['floor']:.2f}",
            f"{r['over_floor']:.2f}x",
            f"{r['over_bound']:.2f}x", f"{r['reward_share']:.2%}",
        ))  # fmt: skip
    return markdown_table(COLUMNS, rows)


def report(results: Sequence[dict[str, Any]]) -> str:
    import transformers
    import trl

    rates = ", ".join(f"{r['rate']:.0f}" for r in results)
    reads = ", ".join(f"{r['read_rate']:.0f}" for r in results)
    machine = f"{torch.get_num_threads()} CPU threads ({platform.machine()}), fp32"
    versions = f"torch {torch.__version__}, transformers {transformers.__version__}, TRL {trl.__version__}"
    return f"""# A training step beside TRL

{date.today().isoformat()}, {machine}, {versions}.
`python -m tests.benchmarks` writes this section; `make bench` all of them.

One training step of TRL's `GRPOTrainer` and of `PPOTrainer` with its critic: {NUM_PROMPTS} prompts with one
new picture each, G completions of {COMPLETION_TOKENS} tokens, LoRA r=16 on the language model's attention, KL
to the reference, captioning reward, one optimizer step per rollout. Random weights, about 40M parameters.
Medians; systems alternate; peak memory is above what was resident before training began.

{table(results)}

The floor is the arithmetic of `floor.py` over the machine's fp32 matrix-product rate, measured in the same
run ({rates} GFLOP/s). "With reads" is the floor in which decoding must also read the weights once per token
({reads} GB/s). The reward share is `CaptioningReward` on captions of 20 words, 5 references each.
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--shapes", nargs="+", default=SHAPES, choices=SHAPES)
    parser.add_argument("--generations", nargs="+", type=int, default=[8, 16])
    parser.add_argument("--rounds", type=int, default=2)
    arguments = parser.parse_args()
    results = []
    for shape in arguments.shapes:
        for num_generations in arguments.generations:
            results.append(compare(shape, num_generations, arguments.rounds))
            sys.stdout.write(json.dumps(results[-1], indent=1) + "\n" + table(results[-1:]) + "\n")
            sys.stdout.flush()
    write_section(report(results))
    sys.stdout.write(report(results))


if __name__ == "__main__":
    main()
