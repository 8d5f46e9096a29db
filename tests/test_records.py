"""Records read by mmjax and by TFDS are equal."""

from __future__ import annotations

import pathlib

import numpy as np
import pytest
import tensorflow_datasets as tfds

from mmjax.datasets.records import Records

FEATURES = {
    "key": tfds.features.Text(),
    "label": tfds.features.ClassLabel(names=["cat", "dog"]),
    "rate": tfds.features.Scalar(dtype=np.int32),
    "amount": tfds.features.Scalar(dtype=np.float32),
    "present": tfds.features.FeaturesDict({"sound": tfds.features.Scalar(dtype=np.bool_)}),
    "picture": tfds.features.Tensor(shape=(2, 3), dtype=np.uint8, encoding="bytes"),
    "sound": {"samples": tfds.features.Tensor(shape=(None, None), dtype=np.int16, encoding="bytes")},
    "frames": tfds.features.Sequence(tfds.features.Text()),
    "series": tfds.features.Tensor(shape=(None,), dtype=np.float32, encoding="bytes"),
}


class Small(tfds.core.GeneratorBasedBuilder):
    """TFDS builder that writes the given examples."""

    VERSION = tfds.core.Version("1.0.0")

    def __init__(self, features: dict, examples: list[dict], **options):
        self._features, self._examples = features, examples
        super().__init__(file_format="array_record", **options)

    def _info(self):
        return self.dataset_info_from_configs(features=tfds.features.FeaturesDict(self._features))

    def _split_generators(self, manager):
        return {"train": iter(enumerate(self._examples))}

    def _generate_examples(self):
        raise NotImplementedError


def write(folder: pathlib.Path, features: dict, examples: list[dict]) -> pathlib.Path:
    builder = Small(features, examples, data_dir=str(folder))
    builder.download_and_prepare()
    return pathlib.Path(builder.data_dir)


def example(number: int, draws: np.random.Generator) -> dict:
    return {
        "key": f"row {number} ü",
        "label": ["cat", "dog"][number % 2],
        "rate": -number,
        "amount": number / 3,
        "present": {"sound": number % 3 == 0},
        "picture": draws.integers(0, 256, (2, 3)).astype(np.uint8),
        "sound": {"samples": draws.integers(-9, 9, (number + 1, 2)).astype(np.int16)},
        "frames": [f"frame {frame}" for frame in range(number % 3 + 1)],
        "series": draws.normal(size=number + 1).astype(np.float32),
    }


def same(one, other) -> bool:
    if isinstance(other, dict):
        return one.keys() == other.keys() and all(same(one[name], value) for name, value in other.items())
    if isinstance(one, list):
        return one == list(other)
    if isinstance(other, np.ndarray):
        return one.dtype == other.dtype and np.array_equal(one, other)
    return type(one) is type(other) and one == other


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> pathlib.Path:
    draws = np.random.default_rng(0)
    examples = [example(number, draws) for number in range(7)]
    return write(tmp_path_factory.mktemp("records"), FEATURES, examples)


def test_every_record_is_what_tfds_reads(folder):
    truth = tfds.builder_from_directory(str(folder)).as_data_source("train")
    records = Records(folder, "train")
    assert len(records) == len(truth) == 7
    assert all(same(records[index], truth[index]) for index in range(7))
    assert [record["rate"] for record in records] == [record["rate"] for record in truth]


def test_a_feature_that_is_not_known_is_refused(tmp_path):
    features = {"numbers": tfds.features.Tensor(shape=(2,), dtype=np.int32)}
    with pytest.raises(TypeError, match="'numbers'"):
        Records(write(tmp_path, features, [{"numbers": [1, 2]}]), "train")
