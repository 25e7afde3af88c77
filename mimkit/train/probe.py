"""The online probe: does the encoder learn? Labels are read here and nowhere in training."""

from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

from mimkit.data.open import Data
from mimkit.data.source import Source
from mimkit.evaluate.features import Interrupted, pooled_features, spread
from mimkit.evaluate.knn import knn_predict, top1
from mimkit.settings import ProbeSettings
from mimkit.types import Encoder


class Probe:
    """Weighted kNN accuracy: training images vote on test images. Available where both have labels."""

    def __init__(self, settings: ProbeSettings, data: Data):
        self.settings = settings
        labelled = data.train.labels is not None and data.test is not None and data.test.labels is not None
        self.available = labelled and settings.every > 0
        if self.available:
            assert data.test is not None
            self.bank, self.queries = data.train.labelled(), data.test.labelled()
            self.bank_index = spread(len(self.bank), settings.bank)
            self.query_index = spread(len(self.queries), settings.queries)
            self.size = f"{len(self.bank_index)} neighbours, {len(self.query_index)} test images"

    def measure(self, encoder: Encoder, stop: Callable[[], bool] = lambda: False) -> float | None:
        """Top-1 in percent; None if `stop()` came in between."""
        try:
            bank, labels = self._features(encoder, self.bank, self.bank_index, stop)
            queries, truth = self._features(encoder, self.queries, self.query_index, stop)
        except Interrupted:
            return None
        return top1(knn_predict(bank, labels, queries, self.settings.k, self.settings.temperature), truth)

    def _features(
        self, encoder: Encoder, source: Source, indices: np.ndarray, stop: Callable[[], bool]
    ) -> tuple[Tensor, Tensor]:
        features, read = pooled_features(encoder, source, indices, stop)
        assert source.labels is not None
        return features, torch.from_numpy(source.labels[read])
