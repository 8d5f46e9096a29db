"""Columns of tables: kinds, targets, names, and reports about them."""

from __future__ import annotations

import csv
import json
import pathlib
import unicodedata

import numpy as np
import pytest

from mmjax.__main__ import main
from mmjax.datasets import Prepared
from mmjax.errors import UserError
from mmjax.modalities.names import canonical_name, similar_names
from mmjax.modalities.table import Table
from mmjax.prepare.columns import KEYS, infer_layout
from mmjax.prepare.options import PrepareConfig
from mmjax.prepare.preparation import prepare
from mmjax.prepare.profile import guess_kind, profile_rows
from mmjax.prepare.runners import Local
from mmjax.prepare.sources import Row

NOTE = "these are the words of note {0}, which says {0} times {1}"


def layout(rows: list[dict], **options):
    """Infers the columns without preparing the rows."""
    profiles, unique = profile_rows((Row(str(index), row) for index, row in enumerate(rows)), KEYS)
    return infer_layout(profiles, unique, {}, PrepareConfig(source="rows", **options))


def kinds(rows: list[dict], **options) -> dict[str, str]:
    return {column.name: column.kind for column in layout(rows, **options).columns}


def run(source: pathlib.Path, **options):
    config = PrepareConfig(source=str(source), keep=("duplicate", "leakage"), **options)
    return prepare(config, source.parent / "out", Local(1))


def write_lines(folder: pathlib.Path, rows: list[dict]) -> pathlib.Path:
    path = folder / "data.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def write_csv(folder: pathlib.Path, rows: list[dict], **options) -> pathlib.Path:
    path = folder / "data.csv"
    with path.open("w", newline="", encoding=options.pop("encoding", "utf-8")) as file:
        writer = csv.DictWriter(file, list(rows[0]), **options)
        writer.writeheader()
        writer.writerows(rows)
    return path


def targets(folder: pathlib.Path) -> dict[str, dict[str, object]]:
    """{key: {target: stored value or None}} over all splits."""
    dataset, found = Prepared(Prepared.Config(path=str(folder))), {}
    for split in dataset.splits:
        source = dataset.source(split)
        for index in range(len(source)):
            found[source.stored(index)["key"].decode()] = source[index].targets
    return found


# Kinds.


def test_a_column_that_begins_late_is_found():
    rows = [{"note": NOTE.format(n, n % 7), "mood": ["good", "bad"][n % 2]} for n in range(2600)]
    for row in rows[2100:]:
        row["place"] = ["north", "south"][len(row["note"]) % 2]
    assert kinds(rows) == {"note": "text", "mood": "label", "place": "label"}


def test_decimals_and_words_that_come_late_decide_the_kind():
    ages = [{"note": NOTE.format(n, 1), "age": n % 5, "code": n % 3} for n in range(2600)]
    ages[2500]["age"], ages[2501]["code"] = 1.25, "seven"
    assert kinds(ages) == {"note": "text", "age": "number", "code": "label"}
    assert guess_kind([*("ab" * 1100), *(f"name {n}" for n in range(3000))]) == "text"


@pytest.mark.parametrize(
    "name",
    [
        "holiday photos/first day {}.png",
        "Übung/größe_{}.PNG",
        "a,b/c({}).jpg",
        "one (1) of {}, two.tiff",
        "日本/{}.webp",
    ],
)
def test_paths_may_hold_blanks_accents_commas_and_parentheses(name):
    assert guess_kind(name.format(number) for number in range(12)) == "image"
    paths = layout([{"picture": name.format(number), "kind": "ab"[number % 2]} for number in range(12)])
    assert paths.columns[0].paths and paths.left_out == {}


@pytest.mark.parametrize(
    "values, kind",
    [
        (range(25, 347), "number"),
        ([*range(100)] * 3, "label"),
        ([*range(30, 80)] * 3, "number"),
        (["007", "008", "120"] * 9, "label"),
        ([["a"], ["a", "b"], []], "labels"),
        (['["a", "b"]', "[]", '["c"]'], "labels"),
        ([[1, 2], [2]], "labels"),
        ([[0.25, 1.5], [2.0]], None),
        ([{"a": 1}], None),
        ([["a"], "b"], None),
        ([[], []], None),
    ],
)
def test_kinds_of_integers_and_lists_are_distinguished(values, kind):
    assert guess_kind(values) == kind


def test_every_column_left_out_has_its_reason(tmp_path, capsys):
    rows = [
        {"note": NOTE.format(n, 3), "mood": "ab"[n % 2], "index": n, "empty": None, "vector": [0.5, n], "sub": {"a": n}}
        for n in range(30)
    ]  # fmt: skip
    source = write_lines(tmp_path, rows)
    assert main(["prepare", f"--source={source}", f"--output={tmp_path / 'out'}", "--dry_run", "--workers=1"]) == 0
    printed = capsys.readouterr().out
    report = json.loads((tmp_path / "out.partial" / "report.json").read_text())["left_out"]
    assert set(report) == {"index", "empty", "vector", "sub"}
    assert "missing" in report["empty"] and "float" in report["vector"]
    assert all(name in printed and why in printed for name, why in report.items())
    assert all(why in (tmp_path / "out.partial" / "card.html").read_text() for why in report.values())
    assert layout(rows, columns={"note": "note"}).left_out["mood"] == "not in --columns"


# Multi-label targets.


@pytest.mark.parametrize("form", ["jsonl", "parquet", "csv", "separated"])
def test_lists_are_multi_label_targets_in_every_format(tmp_path, form, capsys):
    tags = [[], ["b"], ["a", "c"], None, ["c", "Zu\u0308rich", "c"], [1, "1.0"]]
    rows = [
        {"key": f"k{n}", "note": NOTE.format(n, n), "tags": tags[n % 6], "mood": ["good", "bad"][n // 6 % 2]}
        for n in range(60)
    ]
    columns = {}
    if form == "jsonl":
        source = write_lines(tmp_path, rows)
    elif form == "parquet":
        import pyarrow
        import pyarrow.parquet

        source = tmp_path / "data.parquet"
        for row in rows:
            row["tags"] = None if row["tags"] is None else [str(tag) for tag in row["tags"]]
        pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), source)
    else:
        join = json.dumps if form == "csv" else lambda names: " ; ".join(map(str, names)) or ";"
        rows = [row | {"tags": "" if row["tags"] is None else join(row["tags"])} for row in rows]
        source = write_csv(tmp_path, rows)
        columns = {"note": "note", "tags": "tags:labels;", "mood": "mood"} if form == "separated" else {}
    run(source, columns=columns)
    dataset, found = Prepared(Prepared.Config(path=str(tmp_path / "out"))), targets(tmp_path / "out")
    assert dataset.targets["tags"].classes == ("1", "Zürich", "a", "b", "c")
    names = dataset.targets["tags"].classes
    expected = [(), ("b",), ("a", "c"), None, ("Zürich", "c"), ("1",)]
    for n in range(60):
        stored = found[f"k{n}"]["tags"]
        held = None if stored is None else tuple(name for name, positive in zip(names, stored, strict=True) if positive)
        assert held == expected[n % 6]
    statistics = json.loads((tmp_path / "out" / "statistics.json").read_text())
    assert sum(split["columns"]["tags"]["classes"].get("c", 0) for split in statistics.values()) == 20
    workdir = tmp_path / "run"
    recipe = f"--config={pathlib.Path(__file__).parents[1] / 'configs/prepared.py'}:{tmp_path / 'out'}"
    assert main(["train", recipe, f"--workdir={workdir}"]) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1 and "multi-label" in error and "target=mood" in error and not workdir.exists()


def test_a_multi_label_cell_without_a_separator_is_reported(tmp_path):
    rows = [{"key": f"k{n}", "note": NOTE.format(n, n), "tags": "a;b" if n == 3 else '["a"]'} for n in range(12)]
    result = run(write_csv(tmp_path, rows), columns={"note": "note", "tags": "tags:labels"})
    assert result.report["findings"]["unreadable_target"]["rows"] == 1
    assert targets(tmp_path / "out")["k3"]["tags"] is None


# Names.


@pytest.mark.parametrize(
    "values, name",
    [
        ((1, 1.0, "1", "1.0", "1.", "+1", " 1 "), "1"),
        ((0, -0.0, "0", "-0", "0.00"), "0"),
        ((0.5, "0.50", ".5"), "0.5"),
        ((-12, "-12.0"), "-12"),
        (("007",), "007"),
        (("1e3",), "1e3"),
        (("1.2.3",), "1.2.3"),
        ((12345678901234567890, "12345678901234567890.0"), "12345678901234567890"),
        (("Zürich", unicodedata.normalize("NFD", "Zürich"), " Zürich "), "Zürich"),
        (("\udcff",), "\\udcff"),
    ],
)
def test_equal_names_have_one_spelling(values, name):
    assert {canonical_name(value) for value in values} == {name}


def test_labels_groups_splits_and_categories_are_spelled_once(tmp_path):
    def spelled(name: str, n: int) -> str:
        return unicodedata.normalize("NFD" if n % 2 else "NFC", name)

    rows = [
        {"key": f"k{n}", "note": NOTE.format(n, n), "grade": n % 3 if n < 60 else f"{n % 3}.0",
         "city": spelled(["Zürich", "Málaga"][n % 4 // 2], n), "who": f"{n % 10}{'.0' * (n % 2)}",
         "split": spelled(["train", "prüfung"][n % 10 == 0], n)}
        for n in range(120)
    ]  # fmt: skip
    columns = {"note": "note", "facts": "city:table", "grade": "grade", "place": "city:label"}
    run(write_csv(tmp_path, rows), columns=columns, group="who")
    dataset = Prepared(Prepared.Config(path=str(tmp_path / "out")))
    assert dataset.splits == ("train", "prüfung")
    assert dataset.targets["grade"].classes == ("0", "1", "2")
    assert dataset.targets["place"].classes == ("Málaga", "Zürich")
    assert dataset.dataset_options["facts"]["categories"] == {"city": ["Málaga", "Zürich"]}
    assert set(dataset.columns("train")["group"]) | set(dataset.columns("prüfung")["group"]) == set("0123456789")
    options = dataset.dataset_options["facts"]
    table = Table(Table.Config(columns=("city",), categories={"city": tuple(options["categories"]["city"])}))
    assert table.read(f"city={unicodedata.normalize('NFD', 'Zürich')}", "--facts") == [1]


def test_names_that_differ_only_in_case_or_blanks_are_reported(tmp_path):
    assert similar_names(["Cat", "cat", "cat", "dog", None]) == [{"Cat": 1, "cat": 2}]
    rows = [
        {"note": NOTE.format(n, n), "pet": ["cat", "Cat", "dog"][n % 3], "colour": ["light blue", "lightblue"][n % 2],
         "who": ["Ann", "ann", "Bob"][n % 3], "size": n / 7}
        for n in range(30)
    ]  # fmt: skip
    columns = {"note": "note", "facts": "colour+size:table", "pet": "pet"}
    notes = run(write_csv(tmp_path, rows), columns=columns, group="who").report["notes"]
    assert [note.split(":")[0] for note in notes] == ["facts/colour", "pet", "who"]
    assert notes[1] == "pet: 'Cat' (10 rows), 'cat' (10 rows) differ only in case or blanks"


# Tables.


def number_rows(count: int = 40) -> list[dict]:
    draws = np.random.default_rng(0).normal(size=(count, 3)).round(4)
    return [{"a": x, "b": y, "c": z, "species": "xyz"[n % 3]} for n, (x, y, z) in enumerate(draws)]


def test_a_table_alone_needs_no_option_or_the_name_of_its_target(tmp_path):
    rows = number_rows()
    assert [(c.name, c.kind, c.sources) for c in layout(rows).columns] == [
        ("table", "table", ("a", "b", "c")),
        ("species", "label", ("species",)),
    ]
    numbers = [{name: row[name] for name in "abc"} for row in rows]
    with pytest.raises(UserError, match="--target: no column is an input: a, b, c.*--target=COLUMN"):
        layout(numbers)
    assert kinds(numbers, target=["c"]) == {"table": "table", "c": "number"}
    assert kinds(rows, columns={"facts": "*:table", "species": "species"}) == {"facts": "table", "species": "label"}
    assert layout(rows, columns={"facts": "*:table"}, target=["c"]).columns[0].sources == ("a", "b", "species")
    pictures = [row | {"picture": f"{n}.png"} for n, row in enumerate(rows)]
    assert kinds(pictures, target=["species"]) == {"table": "table", "species": "label", "picture": "image"}
    for wrong in ({"target": ["d"]}, {"target": ["picture"]}, {"columns": {"x": "*:label"}}, {"columns": {"x": "*"}}):
        with pytest.raises(UserError):
            layout(pictures, **wrong)


def test_a_semicolon_table_with_a_mark_and_decimal_commas_is_prepared_with_a_target(tmp_path):
    rows = [{"Länge (cm)": f"{n / 7:.3f}".replace(".", ","), "Breite": n % 9, "y": f"{n},5"} for n in range(40)]
    write_csv(tmp_path, rows, delimiter=";", encoding="utf-8-sig")
    arguments = [f"--source={tmp_path}", f"--output={tmp_path / 'out'}", "--target=y", "--workers=1"]
    assert main(["prepare", *arguments]) == 0
    dataset, found = Prepared(Prepared.Config(path=str(tmp_path / "out"))), targets(tmp_path / "out")
    assert sorted(dataset.dataset_options["table"]["mean"]) == ["Breite", "Länge (cm)"]
    assert sorted(row["y"] for row in found.values()) == [n + 0.5 for n in range(40)]


def test_the_diabetes_of_sklearn_as_parquet_is_prepared_with_its_target(tmp_path):
    import pyarrow
    import pyarrow.parquet
    import sklearn.datasets

    data = sklearn.datasets.load_diabetes(scaled=False)
    columns = dict(zip(data.feature_names, data.data.T.tolist(), strict=True)) | {"target": data.target.tolist()}
    pyarrow.parquet.write_table(pyarrow.table(columns), tmp_path / "data.parquet")
    run(tmp_path / "data.parquet", target=["target"])
    found = targets(tmp_path / "out")
    assert len(found) == 442 and sorted(row["target"] for row in found.values()) == sorted(columns["target"])


# Findings.


def test_a_caption_that_is_a_file_name_is_lost_but_not_its_row(tmp_path):
    rows = [{"key": f"k{n}", "note": NOTE.format(n, n), "words": f"nothing about {n} is here"} for n in range(12)]
    rows[2]["note"], rows[3]["note"], rows[4]["note"] = "notes.txt", "IMG_0042.JPG", "my cat (1).png"
    rows[5] |= {"note": "gone.md", "words": "IMG_0001.JPG"}
    result = run(write_csv(tmp_path, rows))
    dataset, lost = Prepared(Prepared.Config(path=str(tmp_path / "out"))), set()
    for split in dataset.splits:
        source = dataset.source(split)
        lost |= {source.stored(n)["key"].decode() for n in range(len(source)) if source[n].inputs["note"] is None}
    assert lost == {"k2", "k3", "k4"}
    assert result.report["findings"]["file_name"]["rows"] == 4 and result.report["dropped"] == 1


def test_copies_with_another_target_or_group_are_kept_and_reported(tmp_path):
    rows = [{"key": f"k{n}", "note": NOTE.format(n, n * n), "size": n / 3, "who": n} for n in range(8)]
    rows += [rows[1] | {"key": "copy"}, rows[2] | {"key": "other", "size": 9.5}, rows[3] | {"key": "told", "who": 77}]
    source = write_csv(tmp_path, rows)
    columns = {"note": "note", "size": "size:number"}
    config = PrepareConfig(source=str(source), columns=columns, group="who")
    report = prepare(config, tmp_path / "out", Local(1)).report
    assert set(targets(tmp_path / "out")) == {row["key"] for row in rows} - {"copy"}
    assert report["findings"]["conflict"]["rows"] == 2
    assert report["warning"] == ""


def test_many_dropped_rows_are_reported_in_the_last_line_and_on_the_card(tmp_path, capsys):
    rows = [{"note": NOTE.format(n, n), "mood": "ab"[n % 2]} for n in range(30)]
    source = write_csv(tmp_path, rows + rows[:6])
    arguments = [f"--source={source}", "--workers=1", "--columns=note=note:text"]
    assert main(["prepare", *arguments, f"--output={tmp_path / 'few'}", "--keep=duplicate"]) == 0
    assert "warning" not in capsys.readouterr().out
    for row in rows[:3]:
        row["note"] = "n/a"
    write_csv(tmp_path, rows)
    assert main(["prepare", *arguments, f"--output={tmp_path / 'many'}"]) == 0
    last = capsys.readouterr().out.strip().splitlines()[-1]
    assert last.startswith("warning: ") and "boilerplate" in last and "--keep=" in last
    assert last.removeprefix("warning: ").split(";")[0] in (tmp_path / "many" / "card.html").read_text()
