"""One bad file is one finding, in bounded time and memory; nothing outside the source is read."""

from __future__ import annotations

import gzip
import io
import json
import os
import pathlib
import struct
import zlib

import numpy as np
import PIL.Image
import pytest

from mmjax.datasets import Prepared
from mmjax.errors import UserError
from mmjax.modalities.raw_files import read_npy
from mmjax.prepare import files
from mmjax.prepare.kinds import KINDS, File, Unreadable
from mmjax.prepare.options import PrepareConfig
from mmjax.prepare.preparation import prepare
from mmjax.prepare.runners import Local
from mmjax.prepare.sources import open_source


def picture(seed: int) -> bytes:
    blocks = np.random.default_rng(seed).integers(0, 255, (6, 6, 3)).astype(np.uint8)
    buffer = io.BytesIO()
    PIL.Image.fromarray(blocks).resize((40, 40), PIL.Image.Resampling.BICUBIC).save(buffer, "PNG")
    return buffer.getvalue()


def run(source: pathlib.Path, output: pathlib.Path, **options):
    return prepare(PrepareConfig(source=str(source), **options), output, Local(1))


def manifest(folder: pathlib.Path, paths: list[str]) -> pathlib.Path:
    """A manifest of eight good pictures and the given paths, keyed k0 to k7 and by number."""
    folder.mkdir(parents=True, exist_ok=True)
    for number in range(8):
        (folder / f"{number}.png").write_bytes(picture(number))
    rows = [{"key": f"k{n}", "image": f"{n}.png", "kind": "ab"[n % 2]} for n in range(8)]
    rows += [{"key": str(n), "image": path, "kind": "a"} for n, path in enumerate(paths)]
    (folder / "data.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder / "data.jsonl"


def unreadable(folder: pathlib.Path) -> dict[str, str]:
    lines = [json.loads(line) for line in (folder / "findings.jsonl").read_text().splitlines()]
    return {line["key"]: line["why"] for line in lines if line["check"] == "unreadable"}


def bomb(side: int) -> bytes:
    """A PNG file of a few kilobytes that claims side x side pixels."""

    def chunk(name: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))

    header = struct.pack(">IIBBBBB", side, side, 8, 0, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(bytes(1000))) + chunk(b"IEND", b"")
    )


def test_pipes_devices_bombs_and_urls_are_one_finding_each(tmp_path):
    folder = tmp_path / "in"
    folder.mkdir()
    os.mkfifo(folder / "pipe.png")
    (folder / "null.png").symlink_to("/dev/zero")
    (folder / "bomb.png").write_bytes(bomb(12000))
    with (folder / "huge.png").open("wb") as file:
        file.truncate(2**34)
    (folder / "folder.png").mkdir()
    bad = ["pipe.png", "null.png", "bomb.png", "huge.png", "folder.png", "s3://nobody/x.png", "nostore://x/y.png",
           "http://localhost:1/a.png", "a\0b.png", "x" * 300 + ".png"]  # fmt: skip
    run(manifest(folder, bad), tmp_path / "out", allow_outside=True)
    found = unreadable(tmp_path / "out")
    assert set(found) == {str(number) for number in range(len(bad))}
    assert found["0"] == found["1"] == "not a regular file" and "pixels" in found["2"] and "GiB" in found["3"]
    assert all("URL in a local manifest" in found[number] for number in "567")


def test_files_outside_the_folder_of_the_manifest_need_permission(tmp_path):
    (tmp_path / "beside.png").write_bytes(picture(50))
    folder = tmp_path / "in"
    (folder / "sub").mkdir(parents=True)
    (folder / "sub" / "inside.png").write_bytes(picture(51))
    (folder / "link.png").symlink_to(tmp_path / "beside.png")
    inside = ["sub/../sub/inside.png", str(folder / "sub/inside.png")]
    paths = ["../beside.png", str(tmp_path / "beside.png"), "link.png", *inside]
    source = manifest(folder, paths)
    keep = ("duplicate", "shared")
    assert (
        "--allow_outside"
        in run(source, tmp_path / "out", keep=keep).report["findings"]["unreadable"]["examples"][0]["why"]
    )
    assert set(unreadable(tmp_path / "out")) == {"0", "1", "2"}
    run(source, tmp_path / "allowed", allow_outside=True, keep=keep)
    assert unreadable(tmp_path / "allowed") == {}


def test_a_remote_manifest_reads_its_own_folder_and_no_local_file(tmp_path):
    import fsspec

    (tmp_path / "local.png").write_bytes(picture(60))
    system = fsspec.filesystem("memory")
    system.pipe("/bucket/in/0.png", picture(0))
    source = open_source("memory://bucket/in/data.csv")
    kind = KINDS["image"]()
    assert source.load("0.png", kind).data == picture(0)
    for path in (str(tmp_path / "local.png"), f"file://{tmp_path}/local.png", "../0.png", "s3://bucket/in/0.png"):
        with pytest.raises(Unreadable, match="outside the folder"):
            source.load(path, kind)


def test_undecodable_names_and_endless_links_are_examples_like_others(tmp_path):
    folder = tmp_path / "in"
    for name in ("good", "bad"):
        (folder / name).mkdir(parents=True)
    for number in range(8):
        name = os.fsencode(folder / ["good", "bad"][number % 2]) + b"/p\xff%d.png" % number
        with open(name, "wb") as file:
            file.write(picture(number))
    (folder / "good" / "again").symlink_to(folder)
    run(folder, tmp_path / "out")
    dataset = Prepared(Prepared.Config(path=str(tmp_path / "out")))
    assert sum(len(dataset.source(split)) for split in dataset.splits) == 8
    assert dataset.targets["label"].classes == ("bad", "good")
    assert "good/p\\udcff0" in {key for split in dataset.splits for key in dataset.columns(split)["key"]}


def test_lone_surrogates_in_json_are_findings(tmp_path):
    rows = [{"key": f"k{n}", "note": f"the words of note {n * n} are these", "kind": "ab"[n % 2]} for n in range(8)]
    rows[3]["note"], rows[4]["kind"] = "broken \ud800 text", "a\udfff"
    (tmp_path / "data.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    result = run(tmp_path / "data.jsonl", tmp_path / "out", columns={"note": "note:text", "kind": "kind:label"})
    assert set(unreadable(tmp_path / "out")) == {"k3"}
    assert result.manifest["targets"]["kind"]["classes"] == ["a", "a\\udfff", "b"]


def test_an_error_of_a_decoder_is_a_finding(tmp_path, monkeypatch):
    def decode(self, value):
        if value.name == "3.png":
            raise RecursionError("deep inside")
        return original(self, value)

    original = KINDS["image"].decode
    monkeypatch.setattr(KINDS["image"], "decode", decode)
    run(manifest(tmp_path / "in", []), tmp_path / "out")
    assert unreadable(tmp_path / "out") == {"k3": "RecursionError: deep inside"}


def test_an_array_with_a_boolean_shape_is_refused():
    buffer = io.BytesIO()
    np.lib.format.write_array_header_1_0(buffer, {"descr": "<f4", "fortran_order": False, "shape": (3,)})
    data = buffer.getvalue().replace(b"(3,)", b"(True, 3)")[: len(buffer.getvalue())] + bytes(12)
    with pytest.raises(ValueError, match="invalid shape|not a valid NPY"):
        read_npy(data)
    with pytest.raises(Unreadable):
        KINDS["series"]().decode(File("x.npy", data))


def test_a_tar_that_unpacks_without_end_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr("mmjax.prepare.sources.webdataset._FREE_BYTES", 2**20)
    (tmp_path / "data.tar.gz").write_bytes(gzip.compress(bytes(2**24)))
    with pytest.raises(UserError, match="unpacks to more than 100 times its size"):
        run(tmp_path / "data.tar.gz", tmp_path / "out")


def test_measures_of_large_pictures_are_those_of_numpy():
    kind, draws = KINDS["image"](), np.random.default_rng(0)
    for shape in ((300, 401, 3), (77, 50), (60, 70, 4)):
        pixels = draws.integers(0, 200, shape).astype(np.uint8)
        if len(shape) == 3 and shape[2] == 4:
            pixels[..., 3] = 255
        measured = kind.measure(kind.decode(pixels))
        colours = pixels[..., :3] if len(shape) == 3 else pixels
        grey = colours.reshape(*shape[:2], -1).astype(np.float64).mean(axis=2)
        low, high = np.quantile(grey, (0.0005, 0.9995))
        assert measured["range"] == pytest.approx(high - low)
        assert measured["mean"] == pytest.approx(pixels.mean() / 255) and measured["std"] == pytest.approx(
            pixels.std() / 255
        )


def test_read_is_bounded(tmp_path, monkeypatch):
    (tmp_path / "file").write_bytes(bytes(100))
    monkeypatch.setattr("mmjax.files.MAX_BYTES", 99)
    with pytest.raises(OSError, match="larger than"):
        files.read(str(tmp_path / "file"))
    assert len(files.read(str(tmp_path / "file"), 10, 20)) == 20


# Folders.


def test_a_readme_and_other_strays_are_no_examples(tmp_path):
    for number in range(12):
        folder = tmp_path / "in" / ["cats", "dogs (old)"][number % 2]
        folder.mkdir(parents=True, exist_ok=True)
        (folder / f"{number}.png").write_bytes(picture(number))
    for name in ("README.md", "cats/LICENSE.txt", "dogs (old)/read me.txt", "labels.csv", "cats/notes.txt", "x.psd"):
        (tmp_path / "in" / name).write_text("some words about the pictures")
    result = run(tmp_path / "in", tmp_path / "out")
    assert result.manifest["inputs"] == {"image": "image"} and result.report["rows"] == 12
    assert set(result.report["left_out"]) == {
        "README.md", "cats/LICENSE.txt", "dogs (old)/read me.txt", "labels.csv", "cats/notes.txt", ".psd"
    }  # fmt: skip


def test_a_text_beside_its_picture_and_texts_alone_are_examples(tmp_path):
    for number in range(6):
        (tmp_path / "in").mkdir(exist_ok=True)
        (tmp_path / "in" / f"{number}.png").write_bytes(picture(number))
        (tmp_path / "in" / f"{number}.txt").write_text(f"these words say what number {number * number} shows")
    assert run(tmp_path / "in", tmp_path / "out").manifest["inputs"] == {"image": "image", "text": "text"}
    rows = list(open_source(str(tmp_path / "in")).rows(tmp_path))
    assert len(rows) == 6 and all(set(row.values) == {"image", "text"} for row in rows)
