"""`predict` on an original file and evaluation of the stored record give the model identical arrays."""

from __future__ import annotations

import csv
import io
import pathlib

import numpy as np
import PIL.Image
import pytest
import soundfile

from mmjax.config import build
from mmjax.data.buffer_pool import BufferPool
from mmjax.data.rows import PaddedRows
from mmjax.datasets import Prepared
from mmjax.evaluation.predictor import read_inputs
from mmjax.modalities import MODALITIES
from mmjax.prepare.decide import default_drops
from mmjax.prepare.options import PrepareConfig
from mmjax.prepare.preparation import prepare
from mmjax.prepare.runners import Local

KINDS = list(MODALITIES)
OPTIONS = {
    "image": {"size": (8, 8), "background": "dark", "crop": "content"},
    "audio": {"sample_rate": 8000, "seconds": 0.2, "trim": 30.0},
    "text": {"length": 12},
    "table": {},
    "series": {"length": 20},
    "points": {"points": 15, "choose": "farthest"},
    "video": {"frames": 4, "size": (8, 8), "rate": 9.0},
}
ROWS = 14
TEXTS = ["Öl und Wasser", "zwei Worte ", "\ufeff marked", "a\tb", "日本語の文"]


def draws(row: int) -> np.random.Generator:
    return np.random.default_rng(row)


def scene(row: int, *shape: int) -> np.ndarray:
    coarse = draws(row).integers(0, 256, (4, 5, *shape[2:])).astype(np.uint8)
    return np.kron(coarse, np.ones((6, 7, *(1,) * len(shape[2:])), np.uint8))


def write_image(folder: pathlib.Path, row: int) -> str:
    mode = ("RGB", "L", "LA", "RGBA", "P", "1", "CMYK", "RGB", "L")[row % 9]
    suffix = ("png", "jpg", "png", "webp", "gif", "png", "jpg", "jpg", "jpg")[row % 9]
    exif = PIL.Image.Exif()
    exif[0x0112] = (6, 1)[row % 2]
    image = PIL.Image.fromarray(scene(row, 24, 35, 3))
    image.convert(mode).save(folder / f"{row}.{suffix}", **({"exif": exif} if suffix == "jpg" else {}))
    return f"{row}.{suffix}"


def write_audio(folder: pathlib.Path, row: int) -> str:
    forms = [
        *(("WAV", subtype) for subtype in ("PCM_U8", "PCM_16", "PCM_24", "PCM_32", "FLOAT", "DOUBLE", "ULAW")),
        *(("WAVEX", "PCM_24"), ("FLAC", "PCM_16"), ("FLAC", "PCM_24"), ("OGG", "VORBIS"), ("MP3", "MPEG_LAYER_III")),
    ]
    form, subtype = forms[row % len(forms)]
    samples = 0.3 * draws(row).normal(size=(2400, 1 + row % 2)) / (1 + 3 * (row % 3))
    if subtype == "FLOAT":
        samples *= 9  # beyond full scale
    path = folder / f"{row}.{ {'WAV': 'wav', 'WAVEX': 'wav'}.get(form, form.lower()) }"
    soundfile.write(path, samples, (8000, 11_025, 16_000)[row % 3], format=form, subtype=subtype)
    return path.name


def write_series(folder: pathlib.Path, row: int) -> str:
    count = 15 + row
    values = np.stack([1.7e9 + np.arange(count), 1013 + 5 * draws(row).normal(size=count)], axis=1)
    values = values[:, : 1 + (row % 4 != 3)]
    if row % 3:
        np.save(folder / f"{row}.npy", (values * 1000).astype(np.int64) if row % 3 == 2 else values)
        return f"{row}.npy"
    cells = [["" if (step + column) % 7 == 0 else repr(float(v)) for column, v in enumerate(line)]
             for step, line in enumerate(values)]  # fmt: skip
    (folder / f"{row}.csv").write_text(
        ",".join("tp"[: values.shape[1]]) + "\n" + "\n".join(map(",".join, cells)) + "\n"
    )
    return f"{row}.csv"


def write_points(folder: pathlib.Path, row: int) -> str:
    columns = 3 + (row % 4 != 3)
    values = draws(row).normal(size=(12 + row, columns)) + [500_000.0, 5_400_000.0, 100.0, 0.0][:columns]
    values[1, 0] = np.nan
    if row % 3:
        np.save(folder / f"{row}_cloud.npy", values)
        return f"{row}_cloud.npy"
    names = "xyzi"[: values.shape[1]]
    header = {"FIELDS": " ".join(names), "SIZE": " ".join("4" * len(names)), "TYPE": " ".join("F" * len(names))}
    header |= {"WIDTH": len(values), "HEIGHT": 1, "POINTS": len(values), "DATA": "ascii"}
    text = "# .PCD v0.7\nVERSION 0.7\n" + "".join(f"{key} {value}\n" for key, value in header.items())
    (folder / f"{row}.pcd").write_text(text + "\n".join(" ".join(map(repr, line)) for line in values.tolist()))
    return f"{row}.pcd"


def write_video(folder: pathlib.Path, row: int) -> str:
    frames = np.stack([scene(100 * row + number, 24, 35, 3) for number in range(5)])
    kind = ("GIF", "WEBP", "PNG")[row % 3]
    images = [PIL.Image.fromarray(frame) for frame in frames]
    # 30 / 1.001 frames a second is not a float32 number.
    options = {"duration": (33, 100, 70)[row % 3], "save_all": True, "append_images": images[1:]}
    path = folder / f"{row}_clip.{kind.lower()}"
    images[0].save(path, kind, **options, **({"lossless": True} if kind == "WEBP" else {}))
    return path.name


def cells(row: int) -> dict[str, str]:
    found = {"time": repr(1.7e9 + row + 0.25), "grade": ("1.0", "2", "x")[row % 3], "age": str(20 + row)}
    return {name: "" if (row + place) % 6 == 5 else cell for place, (name, cell) in enumerate(found.items())}


@pytest.fixture(scope="module")
def prepared(tmp_path_factory) -> tuple[Prepared, list[dict[str, str]]]:
    """Prepared dataset of all kinds, and the `predict` arguments of each row."""
    folder, arguments, lines = tmp_path_factory.mktemp("files"), [], []
    for row in range(ROWS):
        given = {"image": write_image(folder, row), "audio": write_audio(folder, row)}
        given |= {"series": write_series(folder, row), "points": write_points(folder, row)}
        given |= {"video": write_video(folder, row)}
        text, table = f"{TEXTS[row % len(TEXTS)]} {row}", cells(row)
        lines.append({"key": f"row {row}", **given, "text": text, **table})
        facts = ",".join(f"{name}={cell}" for name, cell in table.items() if cell)
        arguments.append({name: str(folder / file) for name, file in given.items()} | {"text": text, "table": facts})
    buffer = io.StringIO()
    writer = csv.DictWriter(buffer, list(lines[0]))
    writer.writeheader()
    writer.writerows(lines)
    (folder / "manifest.csv").write_text(buffer.getvalue())
    columns = {kind: f"{kind}:{kind}" for kind in KINDS if kind != "table"} | {"table": "time+grade+age:table"}
    keep = [name for name, drops in default_drops().items() if drops and name != "unreadable"]
    config = {"source": str(folder / "manifest.csv"), "columns": columns, "splits": {"train": 1.0}, "keep": keep}
    done = prepare(build(PrepareConfig, config, ""), folder / "out", Local(1))
    assert done.report["dropped"] == 0, done.report["findings"]
    return Prepared(Prepared.Config(path=str(folder / "out"))), arguments


@pytest.mark.parametrize("kind", KINDS)
def test_the_original_file_and_the_stored_record_are_one_input(prepared, kind):
    dataset, arguments = prepared
    cls = MODALITIES[kind]
    modality = cls(build(cls.Config, {**dataset.dataset_options[kind], **OPTIONS[kind]}, kind))
    source = dataset.source("train")
    assert len(source) == ROWS
    for index in range(ROWS):
        row = int(source.stored(index)["key"].decode().split()[1])
        evaluated = PaddedRows({kind: modality}, 1, BufferPool())
        evaluated.put(kind, 0, 0, source[index].inputs[kind])
        predicted = read_inputs({kind: modality}, {kind: arguments[row][kind]})[kind]
        assert predicted.mask.any()
        np.testing.assert_array_equal(predicted.mask, evaluated.inputs[kind].mask[0], err_msg=f"row {row}")
        np.testing.assert_array_equal(predicted.values, evaluated.inputs[kind].values[0], err_msg=f"row {row}")
