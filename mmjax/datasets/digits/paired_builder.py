"""TFDS builder shared by the datasets of paired digits; only preparation imports it, since TFDS is slow to import."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, ClassVar

import tensorflow_datasets as tfds

from mmjax.datasets.digits.paired_digits import features


class PairedBuilder(tfds.core.GeneratorBasedBuilder, skip_registration=True):  # type: ignore[call-arg]
    """Tasks, progress and stored features of paired digits."""

    BUILDER_CONFIGS = [
        tfds.core.BuilderConfig(
            name="arithmetic", description="Image digit, audio digit, and a sentence that names an operation on them."
        ),
        tfds.core.BuilderConfig(name="matched", description="The same digit as image, audio and text."),
    ]

    # No downloads. Without this attribute, TFDS looks for a checksum file, using a package that is not among its
    # requirements.
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
