"""Preparation of raw files as shards: sources, kinds of columns, checks, splits, and messages."""

from __future__ import annotations

import csv
import gzip
import io
import itertools
import json
import pathlib
import tarfile

import numpy as np
import PIL.Image
import pytest
import scipy.io.wavfile
import sklearn.datasets
import soundfile

from mmjax.__main__ import main
from mmjax.config import build
from mmjax.data.pipeline import Pipeline
from mmjax.datasets import Prepared
from mmjax.errors import UserError
from mmjax.modalities import MODALITIES
from mmjax.prepare import languages, pictures
from mmjax.prepare.kinds import KINDS, File, Unreadable
from mmjax.prepare.options import PrepareConfig
from mmjax.prepare.preparation import prepare
from mmjax.prepare.profile import guess_kind
from mmjax.prepare.runners import Local, make_runner
from mmjax.prepare.shards import shard_ends
from mmjax.prepare.sources.manifest import Manifest
from mmjax.prepare.splits import assign_parts


def scene(seed: int, side: int = 40) -> np.ndarray:
    """Smooth random colour image; different seeds give unrelated images."""
    blocks = np.random.default_rng(seed).integers(0, 255, (6, 6, 3)).astype(np.uint8)
    return np.asarray(PIL.Image.fromarray(blocks).resize((side, side), PIL.Image.Resampling.BICUBIC))


def encoded(pixels: np.ndarray, kind: str = "PNG", **options) -> bytes:
    buffer = io.BytesIO()
    PIL.Image.fromarray(pixels).save(buffer, kind, **options)
    return buffer.getvalue()


def noise(seed: int, samples: int = 4000) -> np.ndarray:
    """int16 noise with a spectrum like that of speech."""
    white = np.random.default_rng(seed).normal(size=samples)
    return (4000 * np.convolve(white, np.hanning(9), "same")).clip(-32000, 32000).astype(np.int16)


def sound(samples: np.ndarray, rate: int = 8000, kind: str = "WAV") -> bytes:
    buffer = io.BytesIO()
    soundfile.write(buffer, samples, rate, format=kind)
    return buffer.getvalue()


def write_table(folder: pathlib.Path, rows: list[dict]) -> pathlib.Path:
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / "data.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    return folder / "data.csv"


def run(source: object, output: pathlib.Path, dry_run: bool = False, **options):
    return prepare(PrepareConfig(source=str(source), **options), output, Local(1), dry_run=dry_run)


def findings(folder: pathlib.Path) -> list[tuple[str, str]]:
    lines = [json.loads(line) for line in (folder / "findings.jsonl").read_text().splitlines()]
    return sorted((line["key"], line["check"]) for line in lines)


def records(folder: pathlib.Path) -> dict[str, dict]:
    """Inputs and targets of all splits by key, read as in training."""
    dataset = Prepared(Prepared.Config(path=str(folder)))
    found = {}
    for split in dataset.splits:
        source = dataset.source(split)
        for number in range(len(source)):
            record = source[number]
            found[source.stored(number)["key"].decode()] = {**record.inputs, **record.targets}
    return found


@pytest.fixture(scope="module")
def table(tmp_path_factory) -> pathlib.Path:
    """Table of twenty rows with an image, a sound, a sentence, a class and a number; some cells are empty."""
    folder = tmp_path_factory.mktemp("table")
    rows = []
    for number in range(20):
        (folder / f"{number}.png").write_bytes(encoded(scene(number)))
        (folder / f"{number}.wav").write_bytes(sound(noise(number)))
        row = {"key": f"k{number}", "picture": f"{number}.png", "sound": f"{number}.wav"}
        row |= {"caption": f"scene {number}, a picture of nothing at all", "kind": "ab"[number % 2]}
        row |= {"height": number / 4, "who": number // 4}
        rows.append(row)
    rows[3]["sound"] = rows[4]["caption"] = rows[5]["kind"] = rows[6]["height"] = ""
    return write_table(folder, rows)


@pytest.fixture(scope="module")
def prepared(table, tmp_path_factory) -> pathlib.Path:
    return run(table, tmp_path_factory.mktemp("out") / "data", group="who", folds=3, shard_megabytes=0.05).folder


# The whole preparation.


def test_a_record_holds_what_the_files_held(prepared, table):
    found = records(prepared)
    assert sorted(found) == sorted(f"k{number}" for number in range(20))
    np.testing.assert_array_equal(found["k7"]["picture"], scene(7))
    samples, rate = found["k7"]["sound"]
    np.testing.assert_array_equal(samples, noise(7))
    assert rate == 8000 and found["k7"]["caption"] == "scene 7, a picture of nothing at all"
    assert found["k7"]["kind"] == 1 and found["k7"]["height"] == 1.75


def test_what_a_row_lacks_is_absent(prepared):
    found = records(prepared)
    missing = {key: [name for name, value in row.items() if value is None] for key, row in found.items()}
    lacking = {"k3": ["sound"], "k4": ["caption"], "k5": ["kind"], "k6": ["height"]}
    assert {key: names for key, names in missing.items() if names} == lacking


def test_tfds_reads_the_shards(prepared):
    import tensorflow_datasets as tfds

    builder = tfds.builder_from_directory(str(prepared))
    assert sum(info.num_examples for info in builder.info.splits.values()) == 20
    record = next(r for r in builder.as_data_source("train") if r["present"]["sound"])
    assert record["picture"].shape == (40, 40, 3) and record["sound"]["samples"].dtype == np.int16


def test_the_pipeline_makes_batches_of_a_prepared_folder(prepared):
    dataset = Prepared(Prepared.Config(path=str(prepared)))
    modalities = {name: MODALITIES[kind](MODALITIES[kind].Config()) for name, kind in dataset.inputs.items()}
    pipeline = Pipeline(dataset, modalities, seed=0)
    batch = next(iter(pipeline.evaluation_batches("train", 32)))
    count = len(dataset.source("train"))
    assert pipeline.broken == {"train": set()} and (batch.ids >= 0).sum() == count
    lacking = [number for number in range(count) if dataset.source("train")[number].inputs["sound"] is None]
    assert np.flatnonzero(~batch.inputs["sound"].present[:count]).tolist() == lacking


def test_groups_stay_in_one_split_and_one_fold(prepared):
    import pyarrow.parquet

    places: dict[str, set] = {}
    for path in (prepared / "index").iterdir():
        for row in pyarrow.parquet.read_table(path).to_pylist():
            places.setdefault(row["group"], set()).add((path.stem, row["fold"]))
    assert len(places) == 5 and all(len(found) == 1 for found in places.values())
    assert {split for found in places.values() for split, _ in found} == {"train", "validation", "test"}
    assert {fold for found in places.values() for _, fold in found} == {0, 1, 2}


def test_the_manifest_has_the_checksum_of_each_shard(prepared):
    import hashlib

    manifest = json.loads((prepared / "manifest.json").read_text())
    files = [entry for entries in manifest["shards"].values() for entry in entries]
    assert len(files) > 3 and sum(entry["examples"] for entry in files) == 20
    for entry in files:
        assert hashlib.sha256((prepared / entry["file"]).read_bytes()).hexdigest() == entry["sha256"]


def test_statistics_are_those_of_the_files(prepared):
    statistics = json.loads((prepared / "statistics.json").read_text())
    found = records(prepared)
    pixels = {key: row["picture"].mean() / 255 for key, row in found.items()}
    means = [
        facts["columns"]["picture"]["measures"]["mean"]["mean"] * facts["examples"] for facts in statistics.values()
    ]
    total = sum(means)
    np.testing.assert_allclose(total / 20, np.mean(list(pixels.values())))
    subsets = {name: count for facts in statistics.values() for name, count in facts["present"].items()}
    assert set(subsets) == {"picture+sound+caption", "picture+caption", "picture+sound"}


def test_the_same_command_again_does_nothing_and_another_is_refused(prepared, table):
    before = {path: path.stat().st_mtime_ns for path in prepared.rglob("*")}
    assert not run(table, prepared, group="who", folds=3, shard_megabytes=0.05).fresh
    with pytest.raises(UserError, match="with other options"):
        run(table, prepared, group="who", seed=1)
    assert {path: path.stat().st_mtime_ns for path in prepared.rglob("*")} == before
    assert not prepared.with_name("data.partial").exists()


# Sources.


def test_several_columns_are_a_table_with_the_statistics_of_training(tmp_path):
    draws = np.random.default_rng(0)
    rows = [
        {
            "key": f"k{number}",
            "age": draws.integers(18, 90),
            "colour": ["red", "green", "7"][number % 3],
            "postcode": 100 + number % 2,
            "same": 5,
            "ill": "yn"[number % 2],
        }
        for number in range(40)
    ]
    rows[3]["age"], rows[4]["colour"], rows[5]["age"] = "", "NA", "?"
    rows[6] |= {"age": "", "colour": "", "postcode": "", "same": ""}
    columns = {"facts": "age+colour+postcode+same:table", "ill": "ill:label"}
    checks = {"table": {"categories": ["postcode"]}}
    folder = run(write_table(tmp_path, rows), tmp_path / "out", columns=columns, checks=checks).folder
    dataset, found = Prepared(Prepared.Config(path=str(folder))), records(folder)
    facts = dataset.dataset_options["facts"]
    assert facts["columns"] == ["age", "colour", "postcode", "same"]
    assert facts["categories"] == {"colour": ["7", "green", "red"], "postcode": ["100", "101"]}
    np.testing.assert_array_equal(found["k0"]["facts"], np.float32([rows[0]["age"], 2, 0, 5]))
    np.testing.assert_array_equal(found["k4"]["facts"], np.float32([rows[4]["age"], np.nan, 0, 5]))
    assert np.isnan(found["k3"]["facts"][0]) and np.isnan(found["k5"]["facts"][0])
    assert findings(folder) == [("k6", "absent")] and "k6" not in found
    source = dataset.source("train")
    ages = np.array([source[n].inputs["facts"][0] for n in range(len(source)) if source[n].inputs["facts"] is not None])
    assert facts["mean"]["age"] == pytest.approx(np.nanmean(ages, dtype=np.float64))
    assert facts["std"] == {"age": pytest.approx(np.nanstd(ages, dtype=np.float64)), "same": 1.0}
    columns = {"facts": "colour:table", "age": "age:number"}
    number = run(write_table(tmp_path / "b", rows), tmp_path / "number", columns=columns)
    spec = Prepared(Prepared.Config(path=str(number.folder))).targets["age"]
    ages = [row["age"] for row in records(number.folder).values() if row["age"] is not None]
    assert min(ages) < spec.mean < max(ages) and 5 < spec.std < 40
    assert "<td>colour</td>" in (folder / "card.html").read_text()
    index = dataset.columns("train")
    assert set(index["facts/cell/colour"]) - {None} == {"7", "green", "red"}
    assert len(index["facts/cell/age"]) == len(source)
    batch = Pipeline(dataset, {"facts": MODALITIES["table"](build(MODALITIES["table"].Config, facts, ""))}).batch_at(
        "train", 16, 0
    )
    assert np.isfinite(batch.inputs["facts"].values).all() and batch.inputs["facts"].mask.any()


def test_numbers_that_are_names_keep_their_digits_and_a_wrong_column_is_refused(tmp_path):
    rows = [{"key": f"k{n}", "postcode": 1_000_001 + n % 3, "half": n / 3, "small": 1e-9 * (1 + n)} for n in range(30)]
    columns = {"facts": "postcode+half+small:table"}
    path = write_table(tmp_path, rows)
    checks = {"table": {"categories": ["postcode"]}}
    folder = run(path, tmp_path / "out", columns=columns, checks=checks).folder
    facts = Prepared(Prepared.Config(path=str(folder))).dataset_options["facts"]
    assert facts["categories"] == {"postcode": ["1000001", "1000002", "1000003"]}
    assert 1e-9 < facts["std"]["small"] < 1e-7
    with pytest.raises(UserError, match="no column 'postcod'; did you mean 'postcode'"):
        run(path, tmp_path / "wrong", columns=columns, checks={"table": {"categories": ["postcod"]}})


def test_codes_of_digits_keep_their_spelling(tmp_path):
    codes = ["01234", "98765", "00007"]
    rows = [
        {"key": f"k{n}", "code": codes[n % 3], "card": 1234567890123456700 + n % 2, "zero": n % 3 / 2}
        for n in range(30)
    ]
    rows[4]["code"] = ""
    path = write_table(tmp_path, rows)
    folder = run(path, tmp_path / "out", columns={"facts": "code+card+zero:table"}, keep=["duplicate"]).folder
    dataset = Prepared(Prepared.Config(path=str(folder)))
    names = {"code": sorted(codes), "card": ["1234567890123456700", "1234567890123456701"]}
    assert {name: sorted(found) for name, found in dataset.dataset_options["facts"]["categories"].items()} == names
    modality = MODALITIES["table"](build(MODALITIES["table"].Config, dataset.dataset_options["facts"], ""))
    stored = records(folder)["k0"]["facts"]
    np.testing.assert_array_equal(modality.process({"code": "01234", "card": names["card"][0], "zero": 0})[0],
                                  modality.process(stored)[0])  # fmt: skip


def test_a_folder_of_files_is_a_dataset(tmp_path):
    for number in range(6):
        folder = tmp_path / "in" / ("train" if number < 4 else "val") / "ab"[number % 2]
        folder.mkdir(parents=True, exist_ok=True)
        (folder / f"{number}.jpg").write_bytes(encoded(scene(number), "JPEG"))
        (folder / f"{number}.txt").write_text(f"number {number}")
    # Files beside the split folders, and a series, as its name suggests.
    (tmp_path / "in" / "sizes.csv").write_text("1,2\n3,4\n")
    run(tmp_path / "in", tmp_path / "out")
    found = records(tmp_path / "out")
    assert found["val/a/4"]["text"] == "number 4" and found["train/b/3"]["label"] == 1
    assert Prepared(Prepared.Config(path=str(tmp_path / "out"))).splits == ("train", "validation")


@pytest.mark.parametrize("suffix", ["jsonl", "tsv", "parquet"])
def test_tables_of_all_formats_say_the_same(tmp_path, suffix):
    rows = [{"key": f"k{number}", "said": f"these are words for {number}", "size": number + 0.5} for number in range(9)]
    path = tmp_path / f"data.{suffix}"
    if suffix == "jsonl":
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    elif suffix == "tsv":
        path.write_text("\n".join("\t".join(map(str, row)) for row in [rows[0], *(r.values() for r in rows)]) + "\n")
    else:
        import pyarrow
        import pyarrow.parquet

        pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), path)
    run(path, tmp_path / "out", keep=["duplicate"])
    found = records(tmp_path / "out")
    assert {key: row["said"] for key, row in found.items()} == {row["key"]: row["said"] for row in rows}
    assert found["k8"]["size"] == 8.5


def pack(path: pathlib.Path, members: dict[str, bytes], link: str = "") -> pathlib.Path:
    with tarfile.open(path, "w") as archive:
        for name, content in members.items():
            member = tarfile.TarInfo(name)
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
        if link:
            member = tarfile.TarInfo("link.png")
            member.type, member.linkname = tarfile.SYMTYPE, link
            archive.addfile(member)
    return path


@pytest.mark.parametrize("packed", [False, True])
def test_members_of_a_tar_with_one_name_are_one_example(tmp_path, packed):
    members = {}
    for number in range(5):
        members |= {f"{number}.png": encoded(scene(number)), f"{number}.txt": b"some words", f"{number}.cls": b"cat"}
    path = pack(tmp_path / "data.tar", members)
    if packed:
        path = path.with_suffix(".tar.gz")
        path.write_bytes(gzip.compress((tmp_path / "data.tar").read_bytes()))
    run(path, tmp_path / "out")
    found = records(tmp_path / "out")
    np.testing.assert_array_equal(found["3"]["image"], scene(3))
    assert found["3"]["text"] == "some words" and found["3"]["label"] == 0


def test_files_of_the_file_system_are_not_examples(tmp_path):
    words = {f"{number}.txt": f"the words of example {number}".encode() for number in range(3)}
    hidden = {f"._{name}": b"\0" for name in words} | {"a/.DS_Store": b"\0"}
    run(pack(tmp_path / "data.tar", {**hidden, **words}), tmp_path / "out", keep=["duplicate"])
    assert set(records(tmp_path / "out")) == {"0", "1", "2"}


@pytest.mark.parametrize("name", ["../evil.png", "/etc/evil.png", "a/../../evil.png", "..\\evil.png"])
def test_a_tar_whose_names_leave_the_folder_is_refused(tmp_path, capsys, name):
    path = pack(tmp_path / "data.tar", {"good.png": encoded(scene(0)), name: encoded(scene(1))})
    assert main(["prepare", f"--source={path}", f"--output={tmp_path / 'out'}"]) == 2
    error = capsys.readouterr().err
    assert "outside the folder" in error and error.count("\n") == 1
    assert [child.name for child in tmp_path.iterdir()] == ["data.tar"]


def test_a_tar_with_a_link_is_refused(tmp_path):
    with pytest.raises(UserError, match="not a regular file"):
        run(pack(tmp_path / "data.tar", {"good.png": encoded(scene(0))}, "/etc/passwd"), tmp_path / "out")


def test_a_tar_that_is_cut_between_two_members_or_has_an_example_in_two_places_is_refused(tmp_path):
    path = pack(tmp_path / "data.tar", {f"{number}.txt": b"some words, more of them" for number in range(4)})
    whole = path.read_bytes()
    for end in (2 * 1024, 3 * 1024, 2 * 1024 + 100):
        path.write_bytes(whole[:end])
        with pytest.raises(UserError, match=f"cut short after '{end // 1024 - 1}.txt'; repack it"):
            run(path, tmp_path / "out")
    for damaged in (
        whole + whole,
        whole[:2048] + bytes(512) + whole[2560:],
        whole[:2048] + b"\xff" * 50 + whole[2098:],
    ):
        path.write_bytes(damaged)
        with pytest.raises(UserError, match=r"the data after '\d.txt' is damaged or a second archive; repack it"):
            run(path, tmp_path / "out")
    for names in (("0.png", "1.png", "0.txt"), ("0.png", "0.left.png", "0.left.png")):
        with tarfile.open(path, "w") as archive:
            for name in names:
                archive.addfile(tarfile.TarInfo(name))
        with pytest.raises(UserError, match=f"{names[-1]!r} twice, or apart from its example; .*--sort=name"):
            run(path, tmp_path / "out")
    assert [child.name for child in tmp_path.iterdir()] == ["data.tar"]


def test_a_prepared_folder_and_bare_array_records_can_be_prepared_again(prepared, tmp_path):
    run(prepared, tmp_path / "again", columns={"photo": "picture", "kind": "kind"}, keep=["duplicate"])
    found = records(tmp_path / "again")
    before = [row["picture"] for row in records(prepared).values()]
    assert len(found) == 20
    assert sorted(row["photo"].tobytes() for row in found.values()) == sorted(p.tobytes() for p in before)
    bare = tmp_path / "bare"
    bare.mkdir()
    for path in prepared.glob("*.array_record*"):
        (bare / path.name).write_bytes(path.read_bytes())
    run(bare, tmp_path / "third", columns={"photo": "picture", "kind": "kind:label"}, key="key")
    np.testing.assert_array_equal(records(tmp_path / "third")["k7"]["photo"], scene(7))


def test_a_bucket_is_read_through_fsspec(tmp_path):
    import fsspec

    system = fsspec.filesystem("memory")
    for number in range(4):
        system.pipe(f"/bucket/pictures/{number}.png", encoded(scene(number)))
    rows = "".join(f"pictures/{number}.png,words for picture {number}\n" for number in range(4))
    system.pipe("/bucket/data.csv", f"picture,said\n{rows}".encode())
    run("memory://bucket/data.csv", tmp_path / "out")
    np.testing.assert_array_equal(records(tmp_path / "out")["00000002"]["picture"], scene(2))


# Kinds of columns.


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP", "GIF", "BMP", "TIFF"])
def test_pictures_of_all_formats_are_read(kind):
    pixels = KINDS["image"]().decode(File("x", encoded(scene(1), kind))).pixels
    assert pixels.shape[:2] == (40, 40) and np.abs(pixels[..., :3].astype(int) - scene(1)).mean() < 12


@pytest.mark.parametrize("kind", ["WAV", "FLAC", "OGG", "MP3"])
@pytest.mark.parametrize("channels", [1, 2])
def test_recordings_of_all_formats_are_read(kind, channels):
    wave = np.stack([noise(1, 16000)] * channels, axis=1)[:, 0 if channels == 1 else slice(None)]
    samples, rate = KINDS["audio"]().decode(File("x", sound(wave, 16000, kind)))
    assert rate == 16000 and samples.ndim == channels and abs(len(samples) - 16000) < 2500


@pytest.mark.parametrize("name", ["image", "audio"])
def test_files_that_are_cut_short_are_unreadable(name):
    whole = encoded(scene(1)) if name == "image" else sound(noise(1))
    for share in (0.0, 0.01, 0.5, 0.95):
        with pytest.raises(Unreadable):
            KINDS[name]().decode(File("x", whole[: int(share * len(whole))]))


def test_faults_are_found_and_nothing_else():
    image, audio = KINDS["image"](), KINDS["audio"]()
    assert image.faults(image.measure(image.decode(scene(1)))) == {}
    assert list(image.faults(image.measure(image.decode(scene(1) // 40 + 9)))) == ["blank"]
    assert audio.faults(audio.measure((noise(1), 8000))) == {}
    assert list(audio.faults(audio.measure((noise(1) // 20000, 8000)))) == ["silent"]
    loud = np.clip(noise(1).astype(int) * 8, -32768, 32767).astype(np.int16)
    assert list(audio.faults(audio.measure((loud, 8000)))) == ["clipped"]


def test_clipping_is_distinguished_from_coarse_quantization_in_each_channel():
    audio = KINDS["audio"]()
    clean = noise(1).astype(np.float32) / 32768
    loud = np.clip(8 * clean, -1, 1)

    def clipped(samples):
        return list(audio.faults(audio.measure((samples.astype(np.float32), 8000)))) == ["clipped"]

    assert not clipped(clean) and clipped(loud) and clipped(0.3 * loud) and clipped(np.stack([clean, loud], axis=1))
    tone = np.sin(2 * np.pi * 220 * np.arange(8000) / 8000)
    assert not clipped(tone) and not clipped(0.2 * tone) and clipped(np.clip(1.3 * tone, -1, 1))
    for steps in (16, 64, 128):
        assert not clipped(np.rint(clean / np.abs(clean).max() * steps) / steps)
        assert clipped(np.rint(loud * steps) / steps)


def test_recordings_beyond_full_scale_are_made_quieter_as_a_whole():
    audio = KINDS["audio"]()
    wave = 3.5 * np.sin(np.linspace(0, 60, 4000)).astype(np.float32)
    stored = audio.stored((wave, 8000), {})["samples"][:, 0]
    np.testing.assert_allclose(stored / 32767, wave / np.abs(wave).max(), atol=1e-4)


@pytest.mark.parametrize(
    "text, fault",
    [("a dog on the beach", None), (" ... ", "empty"), ("", "empty"), ("IMG_2041.jpg", "file_name"),
     ("Click here for more", "boilerplate"), ("n/a", "boilerplate"), ("ein Hund läuft am Strand", "language"),
     ("a frog sits on a log in a pond", None), ("404 passengers boarded the ship", None), ("[image]", "boilerplate"),
     ("please share this cake with your friends", None), ("Please log in to continue", "boilerplate"),
     ("(no description)", "boilerplate"), ("Screenshot 2021-03-04 at 10.12.33.png", "file_name"),
     ("403 Forbidden", "boilerplate"), ("caption goes here", "boilerplate"), ("xxx", "boilerplate"),
     ("Loading...", "boilerplate"), ("loading a truck with hay", None), ("an advertisement on a bus", None),
     ("no image of the sea is complete without a gull", None), ("Click to enlarge", "boilerplate"),
     ("#REF!", "boilerplate"), ("#name", None), ("777", None)],
)  # fmt: skip
def test_texts_without_content_are_found(text, fault):
    kind = KINDS["text"](KINDS["text"].Config(language=("en",)))
    assert list(kind.faults(kind.measure(text))) == ([fault] if fault else [])


def test_languages_are_detected_and_names_are_ignored():
    texts = {
        "de": "das ist ein Bild von einem Hund und einer Katze", "fr": "c'est une image avec un chien dans la rue",
        "es": "una foto de un perro en la playa", "ru": "это очень большая собака, которая играет во дворе",
        "ja": "犬が浜辺を走る", "zh": "狗在海滩上跑", "el": "ένας σκύλος στην παραλία", "ko": "해변에서 달리는 개",
        "hu": "egy kutya fut a tengerparton a naplementében", "hr": "pas trči po plaži prema moru i skače u valove",
        "he": "כלב רץ על החוף ליד הים", "am": "አንድ ውሻ በባህር ዳርቻ ላይ ይሮጣል",
        "sw": "mbwa anakimbia ufukweni kando ya bahari",
    }  # fmt: skip
    detect = languages.detect_unwanted_language
    assert {code: detect(text, ("en",)) for code, text in texts.items()} == {code: code for code in texts}
    assert detect(texts["de"].upper(), ("en",)) == "de"
    assert all(detect(text, (code,)) is None for code, text in texts.items())
    assert all(detect(text, ("en", code)) is None for code, text in texts.items())
    names = ("Paris", "Rio de Janeiro", "New York City", "Ludwig van Beethoven", "Gabriel García Márquez", "IMG 4",
             "42", "?", "", "a dog and a cat on the beach")  # fmt: skip
    assert [name for name in names if detect(name, ("en",))] == []


def test_an_unknown_language_is_refused():
    assert {"de", "en", "hu", "zh"} <= set(languages.supported()) and "zxx" not in languages.supported()
    with pytest.raises(ValueError, match="unknown language 'german'"):
        KINDS["text"].Config(language=("german",))


# Near duplicates.


def test_similar_digits_are_not_copies_but_reencoded_ones_are():
    digits = sklearn.datasets.load_digits()
    image = KINDS["image"]()
    ones = [np.uint8(picture * 255 / 16) for picture in digits.images[digits.target == 1][:60]]
    signatures = [image.signature(image.decode(one)) for one in ones]
    anew = [image.signature(image.decode(File("x", encoded(one, "JPEG", quality=85)))) for one in ones]
    assert all(image.similarity(*pair) >= image.config.similarity for pair in zip(signatures, anew, strict=True))
    similar = [
        image.similarity(one, other) >= image.config.similarity for one, other in itertools.combinations(signatures, 2)
    ]
    assert sum(similar) <= 0.005 * len(similar)


def test_equal_rows_with_many_digits_are_reported_and_kept(tmp_path):
    draws = np.random.default_rng(0)
    rows = [{f"c{at}": f"{draws.normal():.3f}" for at in range(4)} | {"few": str(number % 3)} for number in range(20)]
    rows += [dict(rows[3]), rows[4] | {"c0": "9.999"}]
    long, short = {"facts": "c0+c1+c2+c3:table"}, {"facts": "few:table"}
    run(write_table(tmp_path / "in", rows), tmp_path / "long", columns=long)
    run(tmp_path / "in" / "data.csv", tmp_path / "short", columns=short)
    assert findings(tmp_path / "long") == [("00000020", "shared")]
    assert findings(tmp_path / "short") == []
    assert len(records(tmp_path / "long")) == 22


def near_pictures() -> dict[str, np.ndarray]:
    pixels = scene(5, 96)
    small = PIL.Image.fromarray(pixels).resize((50, 60), PIL.Image.Resampling.LANCZOS)
    jpeg = np.asarray(PIL.Image.open(io.BytesIO(encoded(pixels, "JPEG", quality=50))))
    return {"itself": pixels, "jpeg": jpeg, "small": np.asarray(small), "crop": pixels[7:94, 3:88]}


@pytest.mark.parametrize("change", near_pictures())
def test_a_picture_that_was_changed_a_little_is_near_and_others_are_not(change):
    kind = KINDS["image"]()
    signatures = [
        kind.signature(kind.decode(pixels)) for pixels in (near_pictures()[change], *(scene(n, 96) for n in range(30)))
    ]
    pairs = kind.candidates(np.stack([kind.hashes(signature) for signature in signatures]))
    assert [0, 6] in pairs.tolist()
    similar = [kind.similarity(signatures[0], other) >= kind.config.similarity for other in signatures[1:]]
    assert np.flatnonzero(similar).tolist() == [5]


def test_windows_average_their_pixels():
    ramp = np.arange(pictures.SIDE) + 0.5
    for start, end in ((0.0, 1.0), (0.25, 0.75)):
        found = pictures._make_windows(8, ((start, end),))[0] @ ramp
        centres = (start + (np.arange(8) + 0.5) / 8 * (end - start)) * pictures.SIDE
        # A linear ramp stays linear, except at the edges of the image.
        np.testing.assert_allclose(found[1:-1], centres[1:-1], atol=1e-3)


@pytest.mark.parametrize("change", ["ogg", "rate", "cut", "gain"])
def test_a_recording_that_was_changed_a_little_is_near_and_others_are_not(change):
    kind = KINDS["audio"]()
    samples = noise(3, 8000)
    raw = {
        "ogg": lambda: kind.decode(File("x", sound(samples, 8000, "OGG"))),
        "rate": lambda: (scipy.signal.resample_poly(samples / 32768, 2, 1).astype(np.float32), 16000),
        "cut": lambda: (samples[500:-300], 8000),
        "gain": lambda: (samples // 3, 8000),
    }[change]()
    one = kind.signature(raw)
    scores = [kind.similarity(one, kind.signature((noise(seed, 8000), 8000))) for seed in range(6)]
    assert np.flatnonzero(np.asarray(scores) >= kind.config.similarity).tolist() == [3]


def test_minhash_finds_texts_that_differ_in_a_word():
    kind = KINDS["text"]()
    rng = np.random.default_rng(0)
    words = ["".join(rng.choice(list("abcdefghij"), 6)) for _ in range(200)]
    texts = [" ".join(rng.choice(words, 14)) for _ in range(50)]
    texts.append(texts[7].replace(texts[7].split()[4], "instead"))
    signatures = [kind.signature(text) for text in texts]
    pairs = kind.candidates(np.stack([kind.hashes(signature) for signature in signatures]))
    near = [
        pair for pair in pairs.tolist() if kind.similarity(*(signatures[row] for row in pair)) >= kind.config.similarity
    ]
    assert near == [[7, 50]]


# Checks.


def test_whole_copies_go_and_pictures_with_two_captions_stay(tmp_path):
    folder = tmp_path / "in"
    folder.mkdir()
    rows = []
    for number in range(8):
        (folder / f"{number}.png").write_bytes(encoded(scene(number)))
        rows.append(
            {"key": f"k{number}", "picture": f"{number}.png", "said": f"these are the words of number {number} of all"}
        )
    (folder / "copy.jpg").write_bytes(encoded(scene(2), "JPEG", quality=80))
    rows.append({"key": "copy", "picture": "copy.jpg", "said": rows[2]["said"]})
    rows.append({"key": "retold", "picture": "3.png", "said": "something else entirely is said here"})
    run(write_table(folder, rows), tmp_path / "out")
    assert findings(tmp_path / "out") == [("copy", "duplicate"), ("retold", "shared")]
    assert set(records(tmp_path / "out")) == {*(f"k{number}" for number in range(8)), "retold"}


def test_chains_of_near_duplicates_keep_rows_that_are_not_copies_of_each_other(tmp_path):
    words = [f"word{number:02}" for number in range(40)]
    # Each differs from the one before in four of forty words, so the first and the last have little in common.
    texts = [" ".join([f"other{number:02}" for number in range(4 * turn)] + words[4 * turn :]) for turn in range(6)]
    path = write_table(tmp_path, [{"key": turn, "text": text} for turn, text in enumerate([*texts, texts[0]])])
    run(path, tmp_path / "out")
    gone = {key for key, check in findings(tmp_path / "out") if check == "duplicate"}
    assert gone == {"1", "3", "5", "6"}


def test_leaked_rows_are_dropped_from_training(tmp_path):
    folder = tmp_path / "in"
    folder.mkdir()
    rows = []
    for number in range(10):
        (folder / f"{number}.png").write_bytes(encoded(scene(number)))
        split = "train" if number < 6 else "test"
        rows.append(
            {"key": f"k{number}", "picture": f"{number}.png", "who": number % 5 if number != 4 else 9, "split": split}
        )
    (folder / "leak.jpg").write_bytes(encoded(scene(7), "JPEG"))
    rows.append({"key": "leak", "picture": "leak.jpg", "who": 20, "split": "train"})
    table = write_table(folder, rows)
    run(table, tmp_path / "out", columns={"picture": "picture"})
    assert findings(tmp_path / "out") == [("leak", "leakage")]
    run(table, tmp_path / "grouped", columns={"picture": "picture"}, group="who")
    # 6, 7, 8 and 9 belong to the groups 1, 2, 3 and 4.
    assert findings(tmp_path / "grouped") == [(key, "leakage") for key in ("k1", "k2", "k3", "leak")]


def test_kept_rows_are_still_reported(tmp_path, table):
    folder = tmp_path / "in"
    folder.mkdir()
    rows = [{"picture": f"{n}.png", "said": f"words about {n} and more"} for n in range(6)]
    for number in range(6):
        (folder / f"{number}.png").write_bytes(encoded(scene(number) // (60 if number == 2 else 1)))
    source = write_table(folder, rows)
    dry = run(source, tmp_path / "out", dry_run=True)
    assert dry.report["dropped"] == 1 and not (tmp_path / "out").exists()
    run(source, tmp_path / "out", keep=["blank"])
    assert findings(tmp_path / "out") == [("00000002", "blank")] and len(records(tmp_path / "out")) == 6


# Splits, shards, columns.


def test_parts_have_their_shares_of_each_label():
    labels = [str(number % 4 // 3) for number in range(400)]
    chosen = assign_parts({"train": 8, "validation": 1, "test": 1}, np.arange(400), labels, "seed")
    for name in "01":
        counts = np.bincount(chosen[np.asarray(labels) == name])
        np.testing.assert_allclose(counts / counts.sum(), [0.8, 0.1, 0.1], atol=0.01)
    assert (
        assign_parts({"a": 1, "b": 1}, np.arange(400), labels, "s").tolist()
        != assign_parts({"a": 1, "b": 1}, np.arange(400), labels, "t").tolist()
    )


def test_every_part_gets_a_group_where_there_are_enough():
    shares = {"train": 0.8, "validation": 0.1, "test": 0.1}
    chosen = assign_parts(shares, np.repeat(np.arange(4), 50), [None] * 200, "seed")
    assert set(chosen) == {0, 1, 2} and all(len(set(chosen[50 * g : 50 * g + 50])) == 1 for g in range(4))


def test_shards_are_about_as_large_as_asked():
    assert shard_ends(np.asarray([4, 4, 4, 9, 1, 1]), 8) == [2, 3, 4, 6]
    assert shard_ends(np.asarray([100.0]), 8) == [1]


@pytest.mark.parametrize(
    "values, kind",
    [
        (["a.png", "b.JPG"], "image"),
        (["x/a.wav", "x/b.flac"], "audio"),
        ([*"0123456789"] * 4, "label"),
        (["cat", "dog"] * 9, "label"),
        (["1.5", "2.25", "7"], "number"),
        ([str(number) for number in range(50)], "number"),
        (["a dog runs over the beach", "what is this"] * 9, "text"),
        ([None, None], None),
    ],
)
def test_kinds_of_columns_are_inferred_from_their_values(values, kind):
    assert guess_kind(values) == kind


# Messages.


@pytest.mark.parametrize(
    "flags, message",
    [
        ([], "--output: is missing"),
        (["--output={out}", "--columns=a=pictre"], "did you mean 'picture'?"),
        (["--output={out}", "--columns=a=picture:imge"], "did you mean 'image'?"),
        (["--output={out}", "--keep=duplicat"], "did you mean 'duplicate'?"),
        (["--output={out}", "--group=whom"], "the source has no column 'whom'"),
        (["--output={out}", "--set=checks.image.blnk=3"], "did you mean 'blank'?"),
        (["--output={out}", "--set=chcks.image=3"], "did you mean 'checks'?"),
        (["--output={out}", "--set=folds"], "is not KEY=VALUE"),
        (["--output={out}", "--splits=train=x"], "'x' is not a number"),
        (["--output={out}", "--format=tra"], "unknown format 'tra'"),
        (["--output={table}"], "not a prepared dataset"),
        (["--output={out}", "--config=configs/digits.py"], "needs either a recipe or a source"),
    ],
)
def test_wrong_flags_are_refused_in_one_line_and_leave_nothing(tmp_path, table, capsys, monkeypatch, flags, message):
    monkeypatch.chdir(pathlib.Path(__file__).parents[1])
    words = [flag.format(out=tmp_path / "out", table=table.parent) for flag in flags]
    before = sorted(table.parent.iterdir())
    assert main(["prepare", f"--source={table}", *words]) == 2
    out, error = capsys.readouterr()
    assert message in error and error.count("\n") == 1 and "; " in error and not out
    assert sorted(tmp_path.iterdir()) == [] and sorted(table.parent.iterdir()) == before


@pytest.mark.parametrize("source", ["nowhere", "nowhere.csv", "nowhere.tar", "tfds:no_such_dataset"])
def test_a_missing_source_is_refused(tmp_path, source):
    with pytest.raises(UserError):
        run(source if ":" in source else tmp_path / source, tmp_path / "out")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("mark", [";", "|", "\t"])
def test_a_csv_may_have_other_delimiters_blanks_around_paths_and_words_for_missing_values(tmp_path, mark):
    (tmp_path / "in").mkdir()
    for number in range(8):
        (tmp_path / "in" / f"{number}.png").write_bytes(encoded(scene(number)))
    rows = [("picture", "size"), *((f" {number}.png ", f"{number}.5") for number in range(8)), ("nan", "9.5")]
    rows[4] = (" 3.png", "n/a")
    path = tmp_path / "in" / "data.csv"
    path.write_text("".join(mark.join(row) + "\n" for row in rows))
    run(path, tmp_path / "out", keep=["absent"])
    dataset = Prepared(Prepared.Config(path=str(tmp_path / "out")))
    assert dataset.inputs == {"picture": "image"} and list(dataset.targets) == ["size"]
    found = records(tmp_path / "out")
    assert found["00000008"]["picture"] is None and found["00000008"]["size"] == 9.5
    assert found["00000003"]["size"] is None and found["00000002"]["size"] == 2.5
    np.testing.assert_array_equal(found["00000003"]["picture"], scene(3))


@pytest.mark.parametrize(
    "lines, rows",
    [
        (["size, in mm;label", "1,5;a", "2;b"], [("1.5", "a"), ("2", "b")]),
        (["sep=;", "size;label", "1,5;a", "12;b"], [("1.5", "a"), ("12", "b")]),
        (
            ["said;size", "well, yes;0,25", '"no; never";-7', ";"],
            [("well, yes", "0.25"), ("no; never", "-7"), ("", "")],
        ),
        # Ambiguous: 1,234 is a thousand or a decimal.
        (["said;size", "yes;1,234"], [("yes", "1,234")]),
        (['"a|b";said', "1;yes|no"], [("1", "yes|no")]),
        (['"first, last";said', '"a\nb";1'], [("a\nb", "1")]),
        (["what; then", "I came; I saw", "I won"], [("I came; I saw",), ("I won",)]),
        (["said,size", "1;2,3;4"], [("1;2", "3;4")]),
        (["a, long\tb", "1\t2"], [("1", "2")]),
        (["a; b", "x; 1,5", "y; 2,5"], [("x", " 1.5"), ("y", " 2.5")]),
        (["a;b", "1.100,25;NA", "7,5;x"], [("1100.25", "NA"), ("7.5", "x")]),
        # Row numbers as pandas writes them, and a comma at the end of each line.
        ([",a", "0,x", "1,y"], [("0", "x"), ("1", "y")]),
        (["a,b,", "1,2,", "3,4,"], [("1", "2"), ("3", "4")]),
    ],
)
def test_delimiters_of_a_table_are_detected(tmp_path, lines, rows):
    path = tmp_path / "data.csv"
    path.write_text("\n".join(lines) + "\n")
    found = [tuple(value or "" for value in row.values.values()) for row in Manifest(str(path)).rows(tmp_path)]
    assert found == rows


def test_the_kind_of_a_column_does_not_depend_on_the_spelling_of_missing_values():
    for missing in ("?", "NA", "nan", "none", None):
        assert guess_kind(["0", "1", "2", missing] * 9) == "label"
        assert guess_kind([f"{number}.5" for number in range(30)] + [missing]) == "number"
        assert guess_kind([f"{number}.png" for number in range(30)] + [missing]) == "image"
        assert guess_kind([missing] * 5) is None
    # Among classes that are words, "none" may be one.
    assert guess_kind(["none", "mild", "severe"] * 9) == "label"
    label = KINDS["label"]()
    assert label.decode("nan") is None and label.decode("?") is None and label.decode("none") == "none"


def test_tables_without_remaining_rows_are_refused_with_the_reason(tmp_path):
    path = tmp_path / "data.csv"
    path.write_text("picture,label\n")
    with pytest.raises(UserError, match="has no rows; give a source with examples"):
        run(path, tmp_path / "out")
    path.write_text("picture,label\n" + "no.png,a\n" * 3)
    with pytest.raises(
        UserError, match="as 'unreadable', for example '00000000': picture No such file or directory; inspect"
    ):
        run(path, tmp_path / "out")


def test_copies_with_another_label_are_reported(tmp_path):
    rows = [{"said": f"the words of example {number // 2}", "who": "ab"[number % 2]} for number in range(8)]
    rows[7]["who"] = "a"
    run(write_table(tmp_path / "in", rows), tmp_path / "out", columns={"said": "said", "who": "who:label"})
    lines = [json.loads(line) for line in (tmp_path / "out" / "findings.jsonl").read_text().splitlines()]
    told = {line["key"]: line["why"] for line in lines if line["check"] == "conflict"}
    assert told["00000001"] == "copy of '00000000', but who is 'b' instead of 'a'"
    assert [line["key"] for line in lines if line["check"] == "duplicate"] == ["00000007"]


def test_one_damaged_line_does_not_hide_the_delimiter(tmp_path):
    path = tmp_path / "data.csv"
    path.write_text("a;b\n" + "1;2\n" * 30 + "1;2;3\n")
    with pytest.raises(UserError, match="line 32 has 3 fields separated by ';', not 2"):
        run(path, tmp_path / "out")
    for header, said in (("a,,b", "column 2 has no name"), ("a,b,a", "two columns have the name 'a'")):
        path.write_text(f"{header}\n1,2,3\n")
        with pytest.raises(UserError, match=said):
            run(path, tmp_path / "out")
    path.write_text("a,b,\n1,2,\n3,4,5\n")
    with pytest.raises(UserError, match="line 3 has a value in the last column, which has no name"):
        run(path, tmp_path / "out")


def test_a_few_outliers_do_not_change_the_kind_of_a_column(tmp_path):
    (tmp_path / "in").mkdir()
    for number in range(30):
        (tmp_path / "in" / f"{number}.png").write_bytes(encoded(scene(number)))
    rows = [{"picture": f"{number}.png", "said": f"{'long ' * 40_000} {number}"} for number in range(30)]
    rows[3]["picture"], rows[4]["picture"], rows[5]["said"] = "see below", "4\0.png", "short"
    path = tmp_path / "in" / "data.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    run(path, tmp_path / "out", keep=["duplicate"])
    assert Prepared(Prepared.Config(path=str(tmp_path / "out"))).inputs == {"picture": "image", "said": "text"}
    assert findings(tmp_path / "out") == [("00000003", "unreadable"), ("00000004", "unreadable")]
    write_table(tmp_path / "in", [{"said": row["said"]} for row in rows])
    assert sum(1 for _ in Manifest(str(tmp_path / "in" / "data.csv")).rows(tmp_path)) == 30


def test_tables_that_are_torn_are_refused_with_the_line(tmp_path):
    path = tmp_path / "data.csv"
    path.write_text("a,b\n1,2\n1,2,3\n")
    with pytest.raises(UserError, match="line 3 has 3 fields separated by ',', not 2"):
        run(path, tmp_path / "out")


def test_an_unprepared_folder_is_refused(tmp_path):
    with pytest.raises(UserError, match="is not a prepared dataset; run mmjax prepare"):
        Prepared(Prepared.Config(path=str(tmp_path)))


def test_the_page_shows_and_escapes_everything(tmp_path):
    rows = [{"said": f"<script>alert({number})</script> and words", "who": "<b>"} for number in range(5)]
    run(
        write_table(tmp_path / "in", rows),
        tmp_path / "out",
        columns={"said": "said", "who": "who:label"},
        keep=["duplicate"],
    )
    page = (tmp_path / "out" / "card.html").read_text()
    assert "&lt;script&gt;alert(3)" in page and "<script" not in page and "&lt;b&gt;" in page


# Runners for several machines.


def test_an_unknown_runner_is_refused():
    with pytest.raises(UserError, match="NoSuchRunner"), make_runner("NoSuchRunner", 0):
        pass


@pytest.mark.slow  # and needs the extra beam
def test_beam_writes_what_this_machine_writes(tmp_path, table, prepared):
    config = PrepareConfig(source=str(table), group="who", folds=3, shard_megabytes=0.05)
    with make_runner("DirectRunner", 0) as runner:
        prepare(config, tmp_path / "data", runner)
    shards = sorted(path for path in prepared.glob("*.array_record*"))
    assert shards and all((tmp_path / "data" / path.name).read_bytes() == path.read_bytes() for path in shards)
