"""Greyscale images of more than 8 bits: one range per column, the same in training and in `predict`."""

from __future__ import annotations

import csv
import json
import pathlib

import numpy as np
import PIL.Image
import pytest

from mmjax.datasets import Prepared
from mmjax.errors import UserError
from mmjax.modalities.image import Image, grey_to_uint8
from mmjax.prepare.kinds import KINDS, Unreadable
from mmjax.prepare.options import PrepareConfig
from mmjax.prepare.preparation import prepare
from mmjax.prepare.runners import Local

SCALES = {  # (values of black and of white, dtype, suffix)
    "ten": ((0, 1023), np.uint16, "png"),
    "twelve": ((0, 4095), np.uint16, "png"),
    "sixteen": ((0, 65535), np.uint16, "png"),
    "ct": ((-1024, 3071), np.int32, "tif"),
    "unit": ((0.0, 1.0), np.float32, "tif"),
    "depth": ((0.4, 7.5), np.float32, "tif"),
    "tiny": ((1e-7, 3e-7), np.float32, "tif"),
}


def gratings(count: int = 24) -> list[np.ndarray]:
    """Gratings with values in [0, 1] and different mean brightness."""
    draws, (y, x) = np.random.default_rng(0), np.mgrid[0:32, 0:32] / 31
    pictures = []
    for index in range(count):
        wave = np.sin(draws.uniform(12, 36) * (x if index % 2 else y) + draws.uniform(0, 6)) / 2 + 0.5
        pictures.append((0.8 * wave + 0.2 * draws.random((32, 32))) * (0.3 + 0.7 * index / (count - 1)))
    return pictures


def write(folder: pathlib.Path, pictures: list[np.ndarray], suffix: str) -> pathlib.Path:
    rows = [{"key": f"k{n}", "picture": f"{n}.{suffix}", "kind": "ab"[n % 2]} for n in range(len(pictures))]
    for row, values in zip(rows, pictures, strict=True):
        PIL.Image.fromarray(values).save(folder / row["picture"])
    for row in rows:
        row["split"] = "test" if row["key"] in ("k1", "k23") else "train"
    with (folder / "data.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    return folder / "data.csv"


def stored(folder: pathlib.Path) -> tuple[Prepared, dict[str, np.ndarray]]:
    dataset, found = Prepared(Prepared.Config(path=str(folder))), {}
    for split in dataset.splits:
        source = dataset.source(split)
        for index in range(len(source)):
            found[source.stored(index)["key"].decode()] = source[index].inputs["picture"]
    return dataset, found


@pytest.mark.parametrize("scale", SCALES)
def test_a_column_has_one_range_from_its_training_split_and_predict_reads_alike(tmp_path, scale):
    (low, high), dtype, suffix = SCALES[scale]
    pictures = [(low + (high - low) * values).astype(dtype) for values in gratings()]
    config = PrepareConfig(source=str(write(tmp_path, pictures, suffix)), keep=("duplicate",))
    report = prepare(config, tmp_path / "out", Local(1)).report
    assert set(report["findings"]) <= {"duplicate", "shared"} and report["dropped"] == 0
    dataset, found = stored(tmp_path / "out")
    training = np.concatenate([picture.reshape(-1) for n, picture in enumerate(pictures) if n not in (1, 23)])
    bottom, top = float(training.min()), float(training.max())
    limits = dataset.dataset_options["picture"]["range"]
    np.testing.assert_allclose(limits, [bottom, top], atol=0.002 * (top - bottom))
    modality = Image(Image.Config(size=(32, 32), channels=1, range=tuple(limits)))
    for n, picture in enumerate(pictures):
        expected = np.clip((picture.astype(np.float64) - limits[0]) / (limits[1] - limits[0]) * 255, 0, 255)
        assert np.abs(found[f"k{n}"] - expected).max() <= 0.5 + 1e-6
        np.testing.assert_array_equal(modality.read(str(tmp_path / f"{n}.{suffix}"), "--picture"), found[f"k{n}"])
    assert len(np.unique(np.stack(list(found.values())))) > 200
    card = (tmp_path / "out" / "card.html").read_text()
    assert "unreadable:" not in card and card.count("<img") >= 10


def test_a_given_range_is_used_and_a_wrong_one_refused(tmp_path):
    source = write(tmp_path, [(4095 * values).astype(np.uint16) for values in gratings()], "png")
    options = {"source": str(source), "reduce": {"image": {"range": [1000, 2000], "shortest": 16}}}
    prepare(PrepareConfig(**options), tmp_path / "out", Local(1))
    dataset, found = stored(tmp_path / "out")
    assert dataset.dataset_options["picture"]["range"] == [1000, 2000] and found["k0"].shape == (16, 16)
    assert found["k22"].max() == 255 and found["k22"].min() == 0
    with pytest.raises(UserError, match=r"range = .* is not \(low, high\)"):
        PrepareConfig(source="x", reduce={"image": {"range": [2, 1]}})


def test_dark_pictures_are_not_blank_constant_ones_are_and_values_that_are_not_finite_are_absent():
    kind = KINDS["image"]()
    dark = np.full((16, 16), 7, np.uint16)
    dark[3, 4] = 9
    assert kind.faults(kind.measure(kind.decode(dark))) == {}
    assert kind.faults(kind.measure(kind.decode(dark * 0 + 7))) == {"blank": "all values are 7"}
    depth = np.linspace(1, 2, 256, dtype=np.float32).reshape(16, 16)
    depth[0, 0], depth[0, 1] = np.nan, np.inf
    measured = kind.measure(kind.decode(depth))
    assert 1 < measured["low"] < 1.02 and measured["high"] == 2
    assert kind.stored(kind.decode(depth), {"channels": {"largest": 1}, "limits": [1.0, 2.0]})[:4] == b"\x89PNG"
    with pytest.raises(Unreadable, match="no pixel has a finite value"):
        kind.decode(np.full((4, 4), np.nan, np.float32))
    np.testing.assert_array_equal(grey_to_uint8(np.array([[np.nan, 0, 5, 10, 99]]), (0, 10)), [[0, 0, 128, 255, 255]])


def test_copies_of_deep_pictures_are_found_and_darker_ones_are_not_copies():
    kind = KINDS["image"]()
    pictures = [(4095 * values).astype(np.uint16) for values in gratings(8)]
    changed = [pictures[3], np.asarray(PIL.Image.fromarray(pictures[3]).resize((40, 40))), pictures[3] // 2]
    signatures = [kind.signature(kind.decode(picture)) for picture in (*pictures, *changed)]
    scores = [kind.similarity(signatures[3], other) >= kind.config.similarity for other in signatures]
    assert np.flatnonzero(scores).tolist() == [3, 8, 9]
    assert [3, 8] in kind.candidates(np.stack([kind.hashes(signature) for signature in signatures])).tolist()


def test_a_file_of_more_bits_is_refused_where_the_training_data_had_none(tmp_path):
    PIL.Image.fromarray(np.arange(64, dtype=np.uint16).reshape(8, 8)).save(tmp_path / "deep.png")
    with pytest.raises(UserError, match="more than 8 bits, and this model was trained on none"):
        Image(Image.Config()).read(str(tmp_path / "deep.png"), "--picture")


def test_digits_of_sixteen_bits_in_folders_with_odd_names(tmp_path):
    import sklearn.datasets

    digits = sklearn.datasets.load_digits()
    names = ["null (0)", "één, 1", "zwei  2"]
    for index in np.flatnonzero(digits.target < 3)[:30]:
        folder = tmp_path / "in" / names[digits.target[index]]
        folder.mkdir(parents=True, exist_ok=True)
        pixels = np.kron(digits.images[index], np.ones((3, 3))) * 4000 / 16
        PIL.Image.fromarray(pixels.astype(np.uint16)).save(folder / f"Bild {index} (å).png")
    result = prepare(PrepareConfig(source=str(tmp_path / "in")), tmp_path / "out", Local(1))
    assert result.manifest["targets"]["label"]["classes"] == sorted(names)
    assert result.report["dropped"] == 0
    assert json.loads((tmp_path / "out" / "manifest.json").read_text())["facts"]["image"]["range"] == [0, 4000]
