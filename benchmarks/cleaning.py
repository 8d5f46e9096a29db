"""Measures recall and precision of the checks of `mmjax prepare` on folders with planted faults.

    python benchmarks/cleaning.py --data=DIR [--seeds=0,1,2] [--folder=DIR] [--alignment=RUN] [--json=FILE]
    python benchmarks/cleaning.py --only=photographs,drawings,texts
    python benchmarks/cleaning.py --libraries

DIR contains MNIST's idx files and recordings of spoken digits, as for `configs/avmnist.py`; it defaults to MMJAX_DATA.
Photographs, drawings and texts need no data: the photographs are tiles of scikit-learn's two sample images. All
thresholds have their defaults; only the allowed language is set.

--libraries compares the methods with those of other libraries instead, see `cleaning_libraries.py`.
"""

from __future__ import annotations

import argparse
import csv
import dataclasses
import io
import json
import os
import pathlib
import subprocess
import sys
import tarfile
import tempfile
from collections.abc import Iterable

import cleaning_libraries
import drawn
import numpy as np
import PIL.Image

from mmjax.datasets.digits.digit_files import find_digit_files, raw_folder, read_images, read_recordings

ROOT = pathlib.Path(__file__).parents[1]
TILE = 72
ENGLISH = (
    "a handwritten {word} next to its name", "this is the digit {word}", "somebody wrote a {word} and said it aloud",
    "the number {word}, seen and heard", "here you can see and hear a {word}", "a {word} in white on a black sheet",
    "the sound of {word} with its picture", "what they wrote is a {word}",
)  # fmt: skip
FOREIGN = (
    "das ist die Ziffer {number} auf einem schwarzen Blatt", "jemand hat hier eine {number} geschrieben und gesagt",
    "c'est le chiffre {number} sur une feuille noire", "on peut voir et entendre un {number} dans cette image",
    "este es el número {number} en una hoja negra", "aquí se puede ver y oír un {number}",
    "questo è il numero {number} su un foglio nero", "dit is het cijfer {number} op een zwart vel papier",
)  # fmt: skip
NOTHING = (
    "Image not found", "IMG_{number}432", "Click here to read more about it", "N/A", "lorem ipsum dolor sit amet",
    "https://example.com/pictures/{number}", "We use cookies on this website", "All rights reserved 2024", "untitled",
)  # fmt: skip
WORDS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")


@dataclasses.dataclass
class Plant:
    """Planted faults.

    Attributes:
      single: {finding: keys of the faulty rows}.
      copies: {finding: {key of the copy: key of its original}}, for findings about two rows.
    """

    single: dict[str, set[str]] = dataclasses.field(default_factory=dict)
    copies: dict[str, dict[str, str]] = dataclasses.field(default_factory=dict)


# Faults.


def png(pixels: np.ndarray) -> bytes:
    return picture(pixels, "PNG")


def picture(pixels: np.ndarray, kind: str, **options) -> bytes:
    buffer = io.BytesIO()
    PIL.Image.fromarray(pixels).save(buffer, kind, **options)
    return buffer.getvalue()


def wav(samples: np.ndarray, rate: int) -> bytes:
    import scipy.io.wavfile

    buffer = io.BytesIO()
    scipy.io.wavfile.write(buffer, rate, samples)
    return buffer.getvalue()


def cropped(pixels: np.ndarray, rng: np.random.Generator, smallest: float = 0.85) -> np.ndarray:
    """Crops a random region with 85 % to 97 % of the height and width."""
    size = rng.uniform(smallest, 0.97)
    height, width = (max(8, round(side * size)) for side in pixels.shape[:2])
    top, left = (
        int(rng.integers(0, side - part + 1)) for side, part in zip(pixels.shape, (height, width), strict=False)
    )
    return pixels[top : top + height, left : left + width]


def altered_picture(pixels: np.ndarray, rng: np.random.Generator, crops: bool = True) -> tuple[bytes, str]:
    """Re-encodes, resizes or crops an image at random. Returns the file content and its suffix."""
    way = int(rng.integers(5)) if crops else int(rng.choice([0, 1, 4]))
    if way == 0:
        return picture(pixels, "JPEG", quality=int(rng.integers(40, 90))), "jpg"
    if way == 1:
        return picture(pixels, "WEBP", quality=int(rng.integers(50, 90))), "webp"
    if way == 2:
        return png(cropped(pixels, rng)), "png"
    if way == 3:
        return picture(cropped(pixels, rng), "JPEG", quality=int(rng.integers(70, 95))), "jpg"
    scale = rng.uniform(0.75, 1.5)
    size = tuple(max(8, round(side * scale)) for side in pixels.shape[1::-1])
    return png(np.asarray(PIL.Image.fromarray(pixels).resize(size, PIL.Image.Resampling.LANCZOS))), "png"


def altered_sound(samples: np.ndarray, rate: int, rng: np.random.Generator) -> tuple[bytes, str]:
    """Re-encodes, resamples, scales or trims a recording at random. Returns the file content and its suffix."""
    import scipy.signal
    import soundfile

    values, way = samples.astype(np.float32) / 32768, rng.integers(5)
    if way == 2:
        cut = [int(len(values) * rng.uniform(0, 0.1)) for _ in range(2)]
        return wav(samples[cut[0] : len(samples) - cut[1]], rate), "wav"
    if way == 3:
        return wav(scipy.signal.resample_poly(values, 2, 1).astype(np.float32), 2 * rate), "wav"
    buffer = io.BytesIO()
    kind, name = (("OGG", "ogg"), ("MP3", "mp3"), None, None, ("FLAC", "flac"))[way]  # type: ignore[misc]
    soundfile.write(buffer, values * (rng.uniform(0.4, 0.9) if way == 4 else 1), rate, format=kind)
    return buffer.getvalue(), name


def write_rows(folder: pathlib.Path, rows: list[dict[str, object]]) -> None:
    with (folder / "data.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)


# Folders with planted faults.


def digits(folder: pathlib.Path, data: pathlib.Path, rng: np.random.Generator, count: int = 1500) -> Plant:
    """Writes digit images with audio and captions: single faults, duplicates, label errors and mismatched pairs."""
    files = find_digit_files(data)
    (pixels, labels) = read_images(*next(iter(files.images.items())))
    with tempfile.TemporaryDirectory() as scratch:
        sounds = list(read_recordings(list(files.recordings), pathlib.Path(scratch)))
    pictures = {digit: list(rng.permutation(np.flatnonzero(labels == digit))) for digit in range(10)}
    (folder / "files").mkdir(parents=True)
    rows: list[dict[str, object]] = []
    plant = Plant()
    whole = []
    for number, at in enumerate(rng.permutation(len(sounds))[:count]):
        recording, (samples, rate) = sounds[at]
        digit = recording.digit
        image = pixels[pictures[digit].pop()]
        caption = str(rng.choice(ENGLISH)).format(word=WORDS[digit])
        whole.append((image, samples, rate, caption, digit))
        rows.append(example(folder, f"{number:05}", png(image), wav(samples, rate), caption, digit))
    order = iter(rng.permutation(count).tolist())

    def spoil(finding: str, times: int, change) -> None:
        for _ in range(times):
            number = next(order)
            change(number, rows[number])
            plant.single.setdefault(finding, set()).add(str(rows[number]["key"]))

    def rewrite(column: str, make):
        def change(number: int, row: dict[str, object]) -> None:
            (folder / str(row[column])).write_bytes(make(number))

        return change

    def retell(sentences: Iterable[str]):
        def change(number: int, row: dict[str, object]) -> None:
            row["caption"] = str(rng.choice(list(sentences))).format(number=whole[number][4])

        return change

    def relabel(number: int, row: dict[str, object]) -> None:
        row["digit"] = (whole[number][4] + int(rng.integers(1, 10))) % 10

    def loud(number: int) -> bytes:
        samples, rate = whole[number][1:3]
        gain = rng.uniform(4, 10) * 32767 / np.abs(samples).max()
        return wav(np.clip(samples * gain, -32768, 32767).astype(np.int16), rate)

    def cut(data: bytes) -> bytes:
        return data[: int(len(data) * rng.uniform(0.4, 0.9))]

    flat = lambda number: np.full((28, 28), rng.integers(256), np.uint8)  # noqa: E731
    faint = lambda number: flat(number) // 2 + rng.integers(0, 4, (28, 28)).astype(np.uint8)  # noqa: E731
    hiss = lambda samples: rng.integers(-2, 3, len(samples)).astype(np.int16)  # noqa: E731
    spoil("unreadable", 15, rewrite("image", lambda number: cut(png(whole[number][0]))))
    spoil("unreadable", 10, rewrite("audio", lambda number: cut(wav(*whole[number][1:3]))))
    spoil("unreadable", 5, rewrite("image", lambda number: b"<html>not found</html>"))
    spoil("blank", 10, rewrite("image", lambda number: png(flat(number))))
    spoil("blank", 10, rewrite("image", lambda number: png(faint(number))))
    spoil("silent", 10, rewrite("audio", lambda number: wav(whole[number][1] * 0, whole[number][2])))
    spoil("silent", 10, rewrite("audio", lambda number: wav(hiss(whole[number][1]), whole[number][2])))
    spoil("clipped", 20, rewrite("audio", loud))
    spoil("empty", 20, retell(["...", "   ", "-", "?!"]))
    spoil("boilerplate", 20, retell(NOTHING))
    spoil("language", 20, retell(FOREIGN))
    spoil("label_error", 60, relabel)
    for number in [next(order) for _ in range(60)]:
        # Use the audio of a row with another digit.
        other = next(at for at in rng.permutation(count) if whole[at][4] != whole[number][4])
        (folder / str(rows[number]["audio"])).write_bytes(wav(*whole[other][1:3]))
        plant.single.setdefault("misaligned", set()).add(str(rows[number]["key"]))
    for number in [next(order) for _ in range(60)]:
        image, samples, rate, caption, digit = whole[number]
        key = f"copy{number:05}"
        row = example(
            folder, key, *altered_picture(image, rng)[:1], altered_sound(samples, rate, rng)[0], caption, digit
        )
        rows.append(row)
        plant.copies.setdefault("duplicate", {})[key] = str(rows[number]["key"])
    write_rows(folder, [rows[at] for at in rng.permutation(len(rows))])
    return plant


def example(folder, key, image: bytes, audio: bytes, caption: str, digit: int) -> dict[str, object]:
    # The suffix may not match the encoding, as in real data.
    row = {"key": key, "image": f"files/{key}.png", "audio": f"files/{key}.wav", "caption": caption, "digit": digit}
    (folder / str(row["image"])).write_bytes(image)
    (folder / str(row["audio"])).write_bytes(audio)
    return row


def photographs(folder: pathlib.Path, data: pathlib.Path, rng: np.random.Generator) -> Plant:
    """Writes tiles of two photographs with splits: duplicates within train, and copies of test tiles in train."""
    (folder / "files").mkdir(parents=True)
    rows: list[dict[str, object]] = []
    tiles, plant = photograph_tiles(), Plant()

    def add(key: str, content: bytes, suffix: str, split: str) -> None:
        path = f"files/{key}.{suffix}"
        (folder / path).write_bytes(content)
        rows.append({"key": key, "photo": path, "place": key.split("_")[0], "split": split})

    splits = dict(zip(tiles, rng.permutation(np.resize(["train", "train", "train", "test"], len(tiles))), strict=True))
    for key, pixels in tiles.items():
        add(key, picture(pixels, "JPEG", quality=95), "jpg", splits[key])
    for finding, split, times in (("duplicate", "train", 20), ("leakage", "test", 20)):
        for original in rng.permutation([key for key in tiles if splits[key] == split])[:times]:
            key = f"{original}_copy"
            add(key, *altered_picture(tiles[original], rng), "train")
            plant.copies.setdefault(finding, {})[key] = str(original)
    write_rows(folder, [rows[at] for at in rng.permutation(len(rows))])
    return plant


def photograph_tiles() -> dict[str, np.ndarray]:
    """Cuts two photographs into tiles uint8 [TILE, TILE, 3].

    Tiles with low contrast, such as sky, are skipped, because they would be blank or duplicates.
    """
    import sklearn.datasets

    tiles = {}
    for name, pixels in zip(("china", "flower"), sklearn.datasets.load_sample_images().images, strict=True):
        for top in range(0, pixels.shape[0] - TILE + 1, TILE):
            for left in range(0, pixels.shape[1] - TILE + 1, TILE):
                tile = pixels[top : top + TILE, left : left + TILE]
                if np.ptp(np.quantile(tile.mean(axis=2), (0.01, 0.99))) > 16:
                    tiles[f"{name}_{top}_{left}"] = tile
    return tiles


def drawings(folder: pathlib.Path, data: pathlib.Path, rng: np.random.Generator, count: int = 400) -> Plant:
    """Writes drawings on flat backgrounds: duplicates that were re-encoded or resized.

    Crops are not planted: a cropped drawing has its shapes in other places, like a different drawing.
    """
    (folder / "files").mkdir(parents=True)
    rows, plant = [], Plant()
    pictures = list(drawn.drawings(count, int(rng.integers(2**31))))
    copied = sorted(rng.permutation(count)[: count // 10].tolist())
    for at, pixels in enumerate(pictures):
        (folder / f"files/{at}.png").write_bytes(png(pixels))
        rows.append({"key": str(at), "drawing": f"files/{at}.png", "kind": at % 5})
    for at in copied:
        content, suffix = altered_picture(pictures[at], rng, crops=False)
        (folder / f"files/copy{at}.{suffix}").write_bytes(content)
        rows.append({"key": f"copy{at}", "drawing": f"files/copy{at}.{suffix}", "kind": at % 5})
        plant.copies.setdefault("duplicate", {})[f"copy{at}"] = str(at)
    write_rows(folder, [rows[at] for at in rng.permutation(len(rows))])
    return plant


def recordings(folder: pathlib.Path, data: pathlib.Path, rng: np.random.Generator, count: int = 800) -> Plant:
    """Writes recordings with labels: duplicates and label errors."""
    with tempfile.TemporaryDirectory() as scratch:
        sounds = list(read_recordings(list(find_digit_files(data).recordings), pathlib.Path(scratch)))
    chosen = [sounds[at] for at in rng.permutation(len(sounds))[:count]]
    (folder / "files").mkdir(parents=True)
    rows: list[dict[str, object]] = []
    plant = Plant()

    def add(key: str, digit: int, content: bytes, suffix: str) -> None:
        (folder / f"files/{key}.{suffix}").write_bytes(content)
        rows.append({"key": key, "sound": f"files/{key}.{suffix}", "digit": digit})

    for recording, (samples, rate) in chosen:
        add(recording.name, recording.digit, wav(samples, rate), "wav")
    for recording, (samples, rate) in chosen[:60]:
        key = f"copy_{recording.name}"
        add(key, recording.digit, *altered_sound(samples, rate, rng))
        plant.copies.setdefault("duplicate", {})[key] = recording.name
    spoil_labels(rows, "digit", plant, rng)
    write_rows(folder, [rows[at] for at in rng.permutation(len(rows))])
    return plant


def pictures(folder: pathlib.Path, data: pathlib.Path, rng: np.random.Generator, count: int = 1500) -> Plant:
    """Writes digit images with labels: label errors."""
    pixels, labels = read_images(*next(iter(find_digit_files(data).images.items())))
    (folder / "files").mkdir(parents=True)
    rows: list[dict[str, object]] = []
    for at in rng.permutation(len(pixels))[:count]:
        (folder / f"files/{at}.png").write_bytes(png(pixels[at]))
        rows.append({"key": str(at), "image": f"files/{at}.png", "digit": int(labels[at])})
    plant = Plant()
    spoil_labels(rows, "digit", plant, rng)
    write_rows(folder, rows)
    return plant


def spoil_labels(rows: list[dict[str, object]], name: str, plant: Plant, rng: np.random.Generator) -> None:
    """Changes the label of 4 % of the rows. Copies keep theirs: copies with different labels yield another finding."""
    copied = {key for copies in plant.copies.values() for pair in copies.items() for key in pair}
    free = [row for row in rows if row["key"] not in copied]
    for at in rng.permutation(len(free))[: len(free) // 25]:
        free[at][name] = (int(str(free[at][name])) + int(rng.integers(1, 10))) % 10
        plant.single.setdefault("label_error", set()).add(str(free[at]["key"]))


def texts(folder: pathlib.Path, data: pathlib.Path, rng: np.random.Generator) -> Plant:
    """Writes sentences from scikit-learn's dataset descriptions: duplicates that differ in one word or in case."""
    import re

    import sklearn.datasets

    loaders = ["iris", "wine", "breast_cancer", "diabetes", "digits", "linnerud"]
    text = " ".join(getattr(sklearn.datasets, f"load_{name}")().DESCR for name in loaders)
    sentences = sorted({" ".join(part.split()) for part in re.split(r"(?<=[.!?])\s+(?=[A-Z])|\n\s*\n", text)})
    sentences = [sentence for sentence in sentences if 12 <= len(sentence.split()) <= 60 and "  " not in sentence]
    folder.mkdir(parents=True)
    rows = [{"key": f"{at:04}", "sentence": sentence, "kind": "ab"[at % 2]} for at, sentence in enumerate(sentences)]
    plant = Plant()
    for at in rng.permutation(len(sentences))[:30]:
        words = sentences[at].split()
        change = rng.integers(3)
        if change == 0:
            words[int(rng.integers(len(words)))] = "certain"
        elif change == 1:
            words = [word.upper() for word in words]
        else:
            words.insert(int(rng.integers(len(words))), "indeed")
        key = f"copy{at:04}"
        rows.append({"key": key, "sentence": " ".join(words) + " ", "kind": "ab"[at % 2]})
        plant.copies.setdefault("duplicate", {})[key] = f"{at:04}"
    write_rows(folder, [rows[at] for at in rng.permutation(len(rows))])
    return plant


# Scores.


def prepare(source: pathlib.Path, output: pathlib.Path, *flags: str) -> list[dict]:
    """Runs `mmjax prepare` and returns its findings."""
    command = [sys.executable, "-m", "mmjax", "prepare", f"--source={source}", f"--output={output}", *flags]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])}
    subprocess.run(command, check=True, env=environment, stdout=subprocess.DEVNULL)
    return [json.loads(line) for line in (output / "findings.jsonl").read_text().splitlines()]


def score(plant: Plant, findings: list[dict]) -> dict[str, tuple[float, float, int, int]]:
    """Returns {finding: (recall, precision, number planted, number found)}.

    A finding about two rows is correct if one is a planted copy of the other, whichever of them is dropped.
    """
    result = {}
    for name, keys in plant.single.items():
        found = {finding["key"] for finding in findings if finding["check"] == name}
        correct = len(found & keys)
        result[name] = (correct / len(keys), correct / max(1, len(found)), len(keys), len(found))
    for name, copies in plant.copies.items():
        pairs = {frozenset((f["key"], f["other"])) for f in findings if f["check"] == name}
        planted = {frozenset(pair) for pair in copies.items()}
        correct = len(pairs & planted)
        result[name] = (correct / len(planted), correct / max(1, len(pairs)), len(planted), len(pairs))
    return result


def refuse_tar(folder: pathlib.Path) -> str:
    """Runs `mmjax prepare` on a tar with a path traversal (`../`). Returns the exit code and the error message."""
    folder.mkdir(parents=True)
    with tarfile.open(folder / "evil.tar", "w") as archive:
        for name in ("good/1.png", "../evil.png"):
            content = png(np.zeros((8, 8), np.uint8))
            member = tarfile.TarInfo(name)
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
    command = [
        sys.executable,
        "-m",
        "mmjax",
        "prepare",
        f"--source={folder / 'evil.tar'}",
        f"--output={folder / 'out'}",
    ]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])}
    done = subprocess.run(command, capture_output=True, text=True, env=environment)
    left = sorted(path.name for path in folder.rglob("*"))
    return f"exit code {done.returncode}, files in the folder: {left}\n{done.stderr.strip()}"


FOLDERS = {
    "digits": digits,
    "pictures": pictures,
    "photographs": photographs,
    "drawings": drawings,
    "recordings": recordings,
    "texts": texts,
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", default="", help="folder with MNIST and spoken digits; defaults to MMJAX_DATA")
    parser.add_argument("--seeds", default="0", help="comma-separated random seeds, such as 0,1,2")
    parser.add_argument("--folder", default="", help="folder for the generated data; a temporary folder by default")
    parser.add_argument("--only", default="", help=f"comma-separated, of {', '.join(FOLDERS)}")
    parser.add_argument("--libraries", action="store_true", help="compare with other libraries")
    parser.add_argument("--stamps", default="/usr/share/tuxpaint/stamps", help="folder of tuxpaint-stamps-default")
    parser.add_argument("--alignment", default="", help="contrastive run whose model judges pairs of `digits`")
    parser.add_argument("--json", default="", help="file for the scores")
    options = parser.parse_args()
    only = [name for name in options.only.split(",") if name]
    if options.libraries:
        cleaning_libraries.compare(only, pathlib.Path(options.stamps))
        return
    data = raw_folder(options.data)
    seeds = [int(seed) for seed in options.seeds.split(",")]
    with tempfile.TemporaryDirectory() as scratch:
        base = pathlib.Path(options.folder or scratch)
        scores: dict[str, dict[str, list]] = {}
        row = "{:12} {:12} {:>7} {:>6} {:>13} {:>13}"
        print(row.format("folder", "finding", "planted", "found", "recall", "precision"))
        for name, make in FOLDERS.items():
            if not only or name in only:
                found: dict[str, list] = {}
                for seed in seeds:
                    seed_folder = base / f"{seed}"
                    plant = make(seed_folder / name, data, np.random.default_rng([seed, len(name)]))
                    flags = ["--set", 'checks.text.language=["en"]'] if name in ("digits", "texts") else []
                    flags += [f"--alignment={options.alignment}"] if options.alignment and name == "digits" else []
                    findings = prepare(seed_folder / name / "data.csv", seed_folder / f"{name}-prepared", *flags)
                    for finding, figures in score(plant, findings).items():
                        found.setdefault(finding, []).append(figures)
                scores[name] = found
                for finding, of_seeds in found.items():
                    recall, precision, num_planted, num_found = zip(*of_seeds, strict=True)
                    counts = [f"{np.mean(count):.0f}" for count in (num_planted, num_found)]
                    print(row.format(name, finding, *counts, spread(recall), spread(precision)), flush=True)
        if not only:
            print("a tar with ../ in a name:", refuse_tar(base / "tar"))
        if options.json:
            pathlib.Path(options.json).write_text(json.dumps(scores, indent=2) + "\n")


def spread(values: Iterable[float]) -> str:
    """Formats the mean and, for several values, the minimum."""
    values = list(values)
    return f"{np.mean(values):.3f}" + (f" (>{min(values):.3f})" if len(values) > 1 else "")


if __name__ == "__main__":
    main()
