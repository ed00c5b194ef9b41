"""What frozen features pass before they are fused: scaling, and PCA on what is scaled.

Statistics are taken once, over a warm-up, and kept from then on: a transform that went on learning would move
the states under the heads.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import cast

from torch import Tensor, nn

from mmft.data.normalize import FeatureTransform, make_scaler
from mmft.data.pca import PCA
from mmft.errors import ConfigError
from mmft.models.modalities import Modalities

NUMBERS = "numbers"
Exchange = Callable[[FeatureTransform], None]
"""Takes the statistics of the other processes into a transform that saw only this one's rows."""


class FeatureTransforms(nn.Module):
    """Per modality a scaler and then, where components are asked for, Z = (X - mean) W.

    Numbers of the environment are scaled and never projected: they are few, and each means something.

    Attributes:
        scalers: by modality.
        projections: by modality, empty without PCA.
    """

    def __init__(
        self, widths: Mapping[str, int], *, scaling: str = "standard", pca_components: int | None = None
    ) -> None:
        super().__init__()
        self.scalers = nn.ModuleDict({name: make_scaler(scaling, width) for name, width in widths.items()})
        projected = {} if pca_components is None else {n: w for n, w in widths.items() if n != NUMBERS}
        for name, width in projected.items():
            if pca_components is not None and not 1 <= pca_components <= width:
                raise ConfigError(
                    f"`pca_components` must be between 1 and {width}, the width of the {name} features; got "
                    f"{pca_components}."
                )
        self.projections = nn.ModuleDict(
            {name: PCA(width, int(pca_components or width)) for name, width in projected.items()}
        )

    @property
    def widths(self) -> dict[str, int]:
        """D_m of what comes out."""
        return {name: self._last(name).output_size for name in self.scalers}

    @property
    def is_fitted(self) -> bool:
        """Whether everything here has the statistics it needs."""
        return all(bool(each.num_seen) for each in self.modules() if hasattr(each, "num_seen"))

    def fit(self, chunks: Sequence[Modalities], exchange: Exchange = lambda transform: None) -> None:
        """Takes the statistics of all chunks, first those of scaling, then those of what was scaled.

        Raises:
            ValueError: fewer rows than PCA needs.
        """
        for transforms in (self.scalers, self.projections):
            for name, transform in transforms.items():
                for chunk in chunks:
                    rows, mask = chunk.embeddings[name], chunk.masks[name]
                    if transforms is self.projections:
                        rows = self.scalers[name](rows)
                    cast(FeatureTransform, transform).update(rows, mask)
                exchange(cast(FeatureTransform, transform))
        for projection in self.projections.values():
            cast(PCA, projection).fit_components()

    def forward(self, states: Modalities) -> Modalities:
        """The transformed embeddings; other modalities are left as they are."""
        embeddings = {name: self._transformed(name, x) for name, x in states.embeddings.items()}
        return Modalities(embeddings, states.masks)

    def _transformed(self, name: str, embedding: Tensor) -> Tensor:
        for transforms in (self.scalers, self.projections):
            if name in transforms:
                embedding = transforms[name](embedding)
        return embedding

    def _last(self, name: str) -> FeatureTransform:
        return cast(FeatureTransform, (self.projections if name in self.projections else self.scalers)[name])
