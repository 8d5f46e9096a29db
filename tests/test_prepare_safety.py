"""One bad file is one finding, in bounded time and memory; nothing outside the source is read."""

from __future__ import annotations

import gzip
import importlib.util
import io
import json
import os
import pathlib
import pickle
import struct
import subprocess
import zlib

import numpy as np
import PIL.Image
import PIL.ImageFile
import pytest
import soundfile

from mmjax.datasets import Prepared
from mmjax.errors import MissingData, UserError
from mmjax.modalities import MODALITIES
from mmjax.modalities.raw_files import read_npy
from mmjax.prepare import files
from mmjax.prepare.kinds import KINDS, File, Unreadable
from mmjax.prepare.options import PrepareConfig
from mmjax.prepare.preparation import prepare
from mmjax.prepare.runners import Local
from mmjax.prepare.sources import open_source
from tests import fuzz_inputs


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


def test_links_out_of_a_folder_need_permission(tmp_path):
    for number in range(8):
        folder = tmp_path / "in" / "ab"[number % 2]
        folder.mkdir(parents=True, exist_ok=True)
        (folder / f"{number}.png").write_bytes(picture(number))
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "9.png").write_bytes(picture(9))
    (tmp_path / "in" / "a" / "link.png").symlink_to(tmp_path / "other" / "9.png")
    (tmp_path / "in" / "b" / "more").symlink_to(tmp_path / "other")
    os.mkfifo(tmp_path / "in" / "a" / "pipe.png")
    result = run(tmp_path / "in", tmp_path / "out")
    assert result.report["left_out"] == {"a/link.png": "2 links out of the folder; --allow_outside reads them"}
    assert unreadable(tmp_path / "out") == {"a/pipe": "not a regular file"}
    source = open_source(str(tmp_path / "in"), allow_outside=True)
    assert {"a/link", "b/more/9"} <= {row.key for row in source.rows(tmp_path)}
    assert not source.left_out


# Single files, for `prepare` and `predict`.

READERS = ("image", "audio", "series", "points", "video")


@pytest.mark.parametrize("kind", READERS)
def test_predict_refuses_pipes_devices_folders_and_impossible_names(tmp_path, kind):
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "zero").symlink_to("/dev/zero")
    with (tmp_path / "huge").open("wb") as file:
        file.truncate(2**40)
    names = ["pipe", "zero", "huge", "missing", "x" * 300, "a\0b"] + ([] if kind == "video" else ["."])
    for name in names:
        with pytest.raises(UserError, match="regular|larger than 1 GiB|exist|Is a directory|too long|null byte"):
            MODALITIES[kind](MODALITIES[kind].Config()).read(f"{tmp_path}/{name}", f"--{kind}")


def refuses(kind: str, name: str, data: bytes, match: str, folder: pathlib.Path) -> None:
    """Checks that `prepare` and `predict` refuse a file for the same reason."""
    with pytest.raises(Unreadable, match=match):
        KINDS[kind]().decode(File(name, data))
    (folder / name).write_bytes(data)
    with pytest.raises(UserError, match=match):
        MODALITIES[kind](MODALITIES[kind].Config()).read(str(folder / name), f"--{kind}")


@pytest.mark.parametrize("form", ["PNG", "GIF", "BMP", "TIFF", "WEBP", "JPEG", "PPM"])
def test_images_of_more_pixels_than_the_limit_are_refused_before_decoding(tmp_path, monkeypatch, form):
    monkeypatch.setattr("mmjax.modalities.image.MAX_PIXELS", 999)
    monkeypatch.setattr(PIL.ImageFile.ImageFile, "load", lambda image: pytest.fail("decoded"))
    buffer = io.BytesIO()
    PIL.Image.new("RGB", (50, 20)).save(buffer, form)
    refuses("image", "x", buffer.getvalue(), "50 x 20 pixels are more than 999", tmp_path)


def test_postscript_is_not_an_image(tmp_path):
    data = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 10 10\n%%EndComments\nshowpage\n%%EOF\n"
    assert PIL.Image.open(io.BytesIO(data)).format == "EPS"
    refuses("image", "x.png", data, "not an image", tmp_path)


@pytest.mark.parametrize("subtype", ["PCM_16", "PCM_24"])
@pytest.mark.parametrize("form", ["WAV", "FLAC", "OGG"])
def test_recordings_above_the_limit_are_refused(tmp_path, monkeypatch, form, subtype):
    monkeypatch.setattr("mmjax.modalities.recordings.MAX_VALUES", 5000)
    monkeypatch.setattr("mmjax.modalities.recordings._BLOCK", 1000)
    subtype = "VORBIS" if form == "OGG" else subtype
    # Ten million samples of FLAC take some kilobytes. The Vorbis encoder of libsndfile crashes on as many at once.
    sizes = [2500, 2501, *([10_000_000] if form == "FLAC" else [])]
    for frames in sizes:
        buffer = io.BytesIO()
        soundfile.write(buffer, np.zeros((frames, 2), np.int16), 8000, format=form, subtype=subtype)
        if frames == 2500:
            assert KINDS["audio"]().decode(File("x", buffer.getvalue()))[0].size == 5000
        else:
            refuses("audio", "x", buffer.getvalue(), "longer than 5,000 samples x channels", tmp_path)
        assert form != "FLAC" or len(buffer.getvalue()) < 200_000


@pytest.mark.parametrize("rate", [0, 1_000_001, 4_294_967_168])
def test_absurd_sample_rates_are_refused(tmp_path, rate):
    buffer = io.BytesIO()
    soundfile.write(buffer, np.zeros(2000), 8000, format="WAV")
    data = bytearray(buffer.getvalue())
    data[24:28] = struct.pack("<I", rate)
    refuses("audio", "x.wav", bytes(data), "a sample rate of .* is not between 1 and 1000000", tmp_path)


def test_series_and_clouds_above_the_limits_are_refused(tmp_path, monkeypatch):
    for name in ("raw_files.MAX_VALUES", "series.MAX_CSV_BYTES", "point_files.MAX_POINTS"):
        monkeypatch.setattr(f"mmjax.modalities.{name}", 300)
    buffer = io.BytesIO()
    np.save(buffer, np.zeros((301, 3), np.int8))
    refuses("series", "x.npy", buffer.getvalue(), "903 values are more than 300", tmp_path)
    refuses("series", "x.csv", b"1\n" * 151, "302 bytes of CSV are more than 300", tmp_path)
    refuses("points", "x.npy", buffer.getvalue(), "301 points are more than 300", tmp_path)
    header = "VERSION 0.7\nFIELDS x y z\nSIZE 4 4 4\nTYPE F F F\nWIDTH {0}\nHEIGHT 1\nPOINTS {0}\nDATA ascii\n"
    refuses("points", "x.pcd", header.format(10**12).encode() + b"1 " * 9999, "numbers instead of 1,0", tmp_path)


@pytest.mark.parametrize(
    "text",
    [
        "ffconcat version 1.0\nfile beside.mp4\n",
        "#EXTM3U\n#EXT-X-TARGETDURATION:1\n#EXTINF:1,\nbeside.mp4\n#EXT-X-ENDLIST\n",
    ],
)
def test_playlists_are_no_videos(tmp_path, monkeypatch, text):
    av = pytest.importorskip("av")
    monkeypatch.chdir(tmp_path)
    (tmp_path / "beside.mp4").write_bytes(fuzz_inputs.video(np.random.default_rng(0)))
    assert len(KINDS["video"]().decode(File("x.mp4", (tmp_path / "beside.mp4").read_bytes())).clip.frames) == 8
    if text.startswith("ffconcat"):
        with av.open(io.BytesIO(text.encode())) as container:  # FFmpeg would read the other file
            assert len(list(container.decode(video=0))) == 8
    refuses("video", "x.mp4", text.encode(), "not a video", tmp_path)


def test_endless_animations_and_videos_are_refused(tmp_path, monkeypatch):
    monkeypatch.setattr("mmjax.modalities.clips._FREE_PIXELS", 1500)
    monkeypatch.setattr("mmjax.modalities.clips._PIXELS_PER_BYTE", 0)
    rng = np.random.default_rng(0)
    for name, data in (("x.gif", fuzz_inputs.animation(rng, "GIF")), ("x.webp", fuzz_inputs.animation(rng, "WEBP"))):
        refuses("video", name, data, "have more than 1,500 pixels", tmp_path)
    if importlib.util.find_spec("av"):
        refuses("video", "x.mp4", fuzz_inputs.video(rng), "have more than 1,500 pixels", tmp_path)


def test_a_sparse_member_of_a_tar_is_refused(tmp_path):
    (tmp_path / "x.png").write_bytes(picture(0))
    with (tmp_path / "x.png").open("r+b") as file:
        file.truncate(2**20)
    subprocess.run(["tar", "--sparse", "--format=gnu", "-cf", "x.tar", "x.png"], cwd=tmp_path, check=True)
    with pytest.raises(UserError, match="not a regular file; repack it without links, devices and sparse files"):
        list(open_source(str(tmp_path / "x.tar")).rows(tmp_path))


@pytest.mark.parametrize(
    ("name", "content", "problem"),
    [
        ("x.csv", b"a,b\n" + b"x" * 101, "more than 100 characters"),
        ("x.jsonl", b'{"a": "' + b"x" * 101, "more than 100 characters"),
        ("x.jsonl", b"[" * 99_999, "more than 100 characters|recursion"),
    ],
)
def test_manifests_with_endless_lines_are_refused(tmp_path, monkeypatch, name, content, problem):
    monkeypatch.setattr("mmjax.prepare.sources.csv_dialect.MAX_LINE", 100)
    (tmp_path / name).write_bytes(content)
    with pytest.raises(UserError, match=problem):
        list(open_source(str(tmp_path / name)).rows(tmp_path))


def test_deep_json_is_a_user_error(tmp_path):
    (tmp_path / "x.jsonl").write_bytes(b'{"a": ' + b"[" * 99_999)
    with pytest.raises(UserError, match="line 1: maximum recursion depth"):
        list(open_source(str(tmp_path / "x.jsonl")).rows(tmp_path))


def test_a_parquet_file_of_endless_equal_rows_is_refused(tmp_path, monkeypatch):
    pyarrow = pytest.importorskip("pyarrow")
    monkeypatch.setattr("mmjax.prepare.sources.manifest._FREE_ROWS", 1000)
    pyarrow.parquet.write_table(pyarrow.table({"a": np.zeros(10**6)}), tmp_path / "x.parquet")
    with pytest.raises(UserError, match="1,000,000 rows in [0-9,]+ bytes"):
        list(open_source(str(tmp_path / "x.parquet")).rows(tmp_path))


def test_numbers_beyond_float64_are_a_column_like_others(tmp_path):
    rows = "\n".join(f"{n},{'9' * 400},{'ab'[n % 2]},some words about number {n * n}" for n in range(8))
    (tmp_path / "x.csv").write_text(f"key,amount,kind,note\n{rows}\n")
    assert "note" in run(tmp_path / "x.csv", tmp_path / "out").manifest["inputs"]


@pytest.mark.parametrize("error", [UserError("where", "problem", "remedy"), MissingData("where", "problem", "remedy")])
def test_user_errors_come_back_from_worker_processes(error):
    copy = pickle.loads(pickle.dumps(error))
    assert type(copy) is type(error) and str(copy) == str(error) and copy.remedy == "remedy"
