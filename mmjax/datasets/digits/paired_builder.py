"""TFDS builder shared by the datasets of paired digits; only preparation imports it, since TFDS is slow to import."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, ClassVar

import tensorflow_datasets as tfds

from mmjax.datasets.digits.paired_digits import features


class PairedBuilder(tfds.core.GeneratorBasedBuilder, skip_registration=True):  # type: ignore[call-arg]
    """Tasks, progress and stored features of paired digits."""

    BUILDER_CONFIGS = [
        tfds.core.BuilderConfig(name="arithmetic", description="Seen digit, heard digit, and what to do with them."),
        tfds.core.BuilderConfig(name="matched", description="The same digit seen, heard and written."),
    ]

    # Nothing is downloaded. Without this, TFDS looks for a checksum file through a package that it does not require.
    url_infos: ClassVar[dict[str, Any]] = {}

    # Progress callback, called with the number of utterances or records finished since its last call.
    advance: Callable[[int], None] = staticmethod(lambda count: None)

    def _dataset_info(
        self, image_shape: tuple[int, int], stored: Mapping[str, Any], homepage: str
    ) -> tfds.core.DatasetInfo:
        config = self.builder_config
        return tfds.core.DatasetInfo(
            builder=self,
            description=config.description,
            features=tfds.features.FeaturesDict({**features(tfds, config.name, image_shape), **stored}),
            homepage=homepage,
        )
