"""Files as people have them, prepared by one command with at most `--target`."""

from __future__ import annotations

import json
import pathlib

import numpy as np
import PIL.Image
import pyarrow
import pyarrow.parquet
import pytest
import sklearn.datasets

from mmjax.__main__ import main
from mmjax.datasets import Prepared
from mmjax.recipe import load_recipe


def prepared(folder: pathlib.Path, source: pathlib.Path, *words: str, left_out: tuple[str, ...] = ()) -> Prepared:
    """Runs the command; checks that all rows and columns are kept except the columns `left_out`."""
    assert main(["prepare", f"--source={source}", f"--output={folder / 'out'}", "--workers=1", *words]) == 0
    report = json.loads((folder / "out" / "report.json").read_text())
    assert report["dropped"] == 0 and tuple(report["left_out"]) == left_out, report
    return Prepared(Prepared.Config(path=str(folder / "out")))


def records(dataset: Prepared) -> list:
    sources = [dataset.source(split) for split in dataset.splits]
    return [source[index] for source in sources for index in range(len(source))]


@pytest.mark.parametrize("indexed", [False, True])
def test_a_parquet_table_of_numbers_with_the_name_of_its_target(tmp_path, indexed):
    data = sklearn.datasets.load_diabetes()
    table = {**dict(zip(data.feature_names, data.data.T, strict=True)), "target": data.target}
    table = {name: values[:120] for name, values in table.items()}
    if indexed:  # as pandas writes the index of a table whose rows were chosen
        table["__index_level_0__"] = np.arange(120) * 3
    pyarrow.parquet.write_table(pyarrow.table(table), tmp_path / "diabetes.parquet")
    left_out = ("__index_level_0__",) if indexed else ()
    dataset = prepared(tmp_path, tmp_path / "diabetes.parquet", "--target=target", left_out=left_out)
    assert dict(dataset.inputs) == {"table": "table"} and list(dataset.targets) == ["target"]
    columns = dataset.dataset_options["table"]["columns"]
    assert sorted(columns) == sorted(data.feature_names)
    found = sorted((*record.inputs["table"], record.targets["target"]) for record in records(dataset))
    order = [data.feature_names.index(name) for name in columns]
    assert found == sorted((*row[order], target) for row, target in zip(data.data[:120], data.target, strict=False))
    assert load_recipe(f"prepared:{tmp_path / 'out'}").tasks.target.kind == "regression"


NAMES = ["zéro (0)", "un, one", "deux  & 2", "trois=3", "quatre;4", "cinq+5", "six 'VI'", "sept #7", "huit%8", "Neuf."]


def test_deep_pictures_in_folders_with_odd_names(tmp_path):
    digits = sklearn.datasets.load_digits()
    truth = {}
    for index in range(50):
        label = NAMES[digits.target[index]]
        path = tmp_path / "mes images, (été)" / label / f"nr. {index}, (é).png"
        path.parent.mkdir(parents=True, exist_ok=True)
        PIL.Image.fromarray(np.uint16(digits.images[index] / 16 * 65535)).save(path)
        truth[f"{label}/nr. {index}, (é)"] = (label, digits.images[index])
    dataset = prepared(tmp_path, tmp_path / "mes images, (été)", "--keep=duplicate")
    assert dict(dataset.inputs) == {"image": "image"} and set(dataset.targets["label"].classes) == set(NAMES)
    for split in dataset.splits:
        source = dataset.source(split)
        for index in range(len(source)):
            label, pixels = truth.pop(source.stored(index)["key"].decode())
            record = source[index]
            assert dataset.targets["label"].classes[record.targets["label"]] == label
            assert np.abs(record.inputs["image"] - pixels / 16 * 255).max() <= 0.5 + 1e-6
    assert not truth
    assert load_recipe(f"prepared:{tmp_path / 'out'}").tasks.label.kind == "classification"


@pytest.mark.parametrize("end", ["\n", "\r\n"])
@pytest.mark.parametrize("backslashes", [False, True])
def test_a_spreadsheet_with_bom_semicolons_decimal_commas_blanks_and_lists(tmp_path, end, backslashes):
    digits = sklearn.datasets.load_digits()
    folder = tmp_path / "mes données, (été)"
    (folder / "images à voir").mkdir(parents=True)
    rows, lines = {}, ["bild;größe in m;preis;etiketten;klasse"]
    for index in range(40):
        digit = int(digits.target[index])
        name = f"images à voir/photo {index}, (neu).png"
        PIL.Image.fromarray(np.uint8(digits.images[index] * 255 / 16)).save(folder / name)
        tags = [tag for tag, holds in (("pair", digit % 2 == 0), ('né "1"; rare', digit == 1), ("0", True)) if holds]
        cell = json.dumps(tags, ensure_ascii=False).replace('"', '""')
        size, price = digit / 3 + 0.25, 1000 * index + 0.5
        written = f"{price:,.2f}".translate(str.maketrans(",.", ".,"))
        path = name.replace("/", "\\") if backslashes else name
        lines.append(f'{path};{f"{size:.3f}".replace(".", ",")};{written};"{cell}";K{digit % 3}')
        rows[price] = (round(size, 3), set(tags), f"K{digit % 3}", digits.images[index])
    (folder / "tabelle neu.csv").write_bytes(b"\xef\xbb\xbf" + (end.join(lines) + end).encode())
    dataset = prepared(tmp_path, folder / "tabelle neu.csv", "--keep=duplicate")
    assert dict(dataset.inputs) == {"bild": "image"}
    assert set(dataset.targets) == {"größe_in_m", "preis", "etiketten", "klasse"}
    classes = {name: spec.classes for name, spec in dataset.targets.items()}
    for record in records(dataset):
        size, tags, label, pixels = rows.pop(float(record.targets["preis"]))
        assert record.targets["größe_in_m"] == size and classes["klasse"][record.targets["klasse"]] == label
        held = np.flatnonzero(record.targets["etiketten"])
        assert {classes["etiketten"][position] for position in held} == tags
        assert np.abs(record.inputs["bild"] - pixels * 255 / 16).max() < 1
    assert not rows
    assert load_recipe(f"prepared:{tmp_path / 'out'},target=klasse").tasks.klasse.kind == "classification"
