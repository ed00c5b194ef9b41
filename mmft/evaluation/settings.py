"""What `mmft evaluate` measures beyond rewards; a part of the flat settings of `mmft.config`."""

from __future__ import annotations

from dataclasses import dataclass, field

from mmft.evaluation.bootstrap import Resampling


@dataclass
class EvaluationSettings:
    """Metrics, comparisons and correlations on held-out rows."""

    metrics: list[str] = field(
        default_factory=list,
        metadata={
            "help": "Corpus metrics of `evaluate`, and of training's held-out rows: bleu, rouge_l, cider_d, "
            "clip_score, or {name: clip_score, model: ...}."
        },
    )
    by: list[str] = field(
        default_factory=list,
        metadata={"help": "`evaluate`: columns whose values group the rows; every measure by group."},
    )
    correlate_with: list[str] = field(
        default_factory=list,
        metadata={
            "help": "`evaluate`: columns of numbers, such as human ratings, to correlate measures with."
        },
    )
    correlate_state: bool = field(
        default=False,
        metadata={"help": "`evaluate`: correlate completions with what the model sees, by its embeddings."},
    )
    compare_with: str | None = field(
        default=None,
        metadata={
            "help": "`evaluate`: compare with `base` (the model without its adapter), the folder of another "
            "adapter or model, or an evaluation.json."
        },
    )
    num_resamples: int = field(default=2000, metadata={"help": "Bootstrap resamples behind an interval."})
    confidence_level: float = field(default=0.95, metadata={"help": "Of intervals."})

    def resampling(self, seed: int) -> Resampling:
        """How intervals are drawn; checks both numbers."""
        return Resampling(num_resamples=self.num_resamples, confidence_level=self.confidence_level, seed=seed)
