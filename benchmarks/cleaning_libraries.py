"""Compares parts of `mmjax prepare` with libraries for the same task: precision, recall and CPU time.

    python benchmarks/cleaning.py --libraries [--only=languages,texts,images,splits] [--stamps=DIR]

Libraries that mmjax does not install are skipped if they are missing:

    pip install lingua-language-detector datasketch imagehash

--stamps is the folder of Debian's `tuxpaint-stamps-default`: 805 pictures with captions in about 60 languages.
"""

from __future__ import annotations

import functools
import importlib
import io
import pathlib
import re
import time
import warnings
from collections.abc import Callable, Iterable

import drawn
import numpy as np
import PIL.Image

Pair = tuple[int, int]


def compare(only: Iterable[str], stamps: pathlib.Path) -> None:
    """Prints a table for each task in `only`; all tasks if it is empty."""
    tasks = {"languages": languages, "texts": texts, "images": images, "splits": splits}
    for name in only or tasks:
        print(f"\n{name}", flush=True)
        tasks[name](stamps)


def library(name: str):
    """Imports a library. Returns None, with a message, if it is not installed."""
    try:
        return importlib.import_module(name)
    except ImportError:
        print(f"  {name} is not installed")
        return None


def timed(function: Callable, *arguments):
    """Returns (result, CPU seconds) of a call."""
    start = time.process_time()
    return function(*arguments), time.process_time() - start


def pair_set(pairs: Iterable) -> set[Pair]:
    return {(min(a, b), max(a, b)) for a, b in (map(int, pair) for pair in pairs) if a != b}


# Language identification.


def captions(stamps: pathlib.Path, count: int = 100) -> dict[str, list[str]]:
    """Reads {language: captions} of the languages with at least `count` captions, 3 words long in the median."""
    found: dict[str, dict[str, None]] = {}
    for path in sorted(stamps.rglob("*.txt")):
        english, *others = path.read_text(errors="replace").splitlines() or [""]
        found.setdefault("en", {})[english.strip()] = None
        for line in others:
            match = re.fullmatch(r"([a-z]{2,3})(?:_[A-Z]{2})?\.utf8=\s*(.*?)\s*", line)
            if match and match[1] != "en" and match[2] not in ("", english.strip()):
                found.setdefault(match[1], {})[match[2]] = None
    rng = np.random.default_rng(0)
    return {
        language: [list(texts)[at] for at in rng.permutation(len(texts))[:count]]
        for language, texts in sorted(found.items())
        if len(texts) >= count
    }


def languages(stamps: pathlib.Path) -> None:
    """Flags captions that are not in the wanted language, for each wanted language in turn."""
    from mmjax.prepare import languages as used

    texts = captions(stamps)
    if not texts:
        print(f"  {str(stamps)!r} has no captions: apt-get install tuxpaint-stamps-default")
        return

    def mmjax(text: str, wanted: str) -> bool:
        return used.detect_unwanted_language(text, (wanted,)) is not None

    lingua = library("lingua")
    known = {language.iso_code_639_1.name.lower() for language in lingua.Language.all()} if lingua else set(texts)
    texts = {name: texts[name] for name in texts if name in known and name in used.supported()}
    score_languages("mmjax (py3langid)", mmjax, texts)
    if lingua:
        detector = lingua.LanguageDetectorBuilder.from_all_languages().with_preloaded_language_models().build()

        @functools.cache
        def probabilities(text: str) -> dict[str, float]:
            values = detector.compute_language_confidence_values(text)
            return {value.language.iso_code_639_1.name.lower(): value.value for value in values}

        for least in (0.2, 0.3, 0.4):

            def flags(text: str, wanted: str, least: float = least) -> bool:
                values = probabilities(text)
                best = max((value for name, value in values.items() if name != wanted), default=0.0)
                return best >= least and best > 20 * values.get(wanted, 0.0)

            score_languages(f"lingua, probability >= {least}", flags, texts)


def score_languages(name: str, flags: Callable[[str, str], bool], texts: dict[str, list[str]]) -> None:
    """Prints the rates of flagged captions, with English and with each other language wanted."""
    flags("warm up", "en")
    false, seconds = timed(lambda: {w: np.mean([flags(text, w) for text in texts[w]]) for w in texts})
    others = [text for language in texts if language != "en" for text in texts[language]]
    many_words = [text for text in others if len(text.split()) >= 5]
    recall, recall_long = (np.mean([flags(text, "en") for text in chosen]) for chosen in (others, many_words))
    worst = max(false, key=lambda w: false[w])
    mean, microseconds = np.mean(list(false.values())), seconds / sum(map(len, texts.values())) * 1e6
    print(
        f"  {name:28} {len(texts)} languages; false alarms: English {false['en']:.3f}, mean {mean:.3f}, worst "
        f"{false[worst]:.3f} ({worst}); recall for English: {recall:.3f}, at least 5 words {recall_long:.3f}; "
        f"{microseconds:.0f} µs per caption",
        flush=True,
    )


# MinHash.


def texts(stamps: pathlib.Path, count: int = 20_000, copied: int = 2_000) -> None:
    """Finds sentences with a Jaccard similarity of 0.7, among docstrings of installed packages with planted copies."""
    from mmjax.prepare.kinds import KINDS
    from mmjax.prepare.kinds.text import _shingles

    rng, kind = np.random.default_rng(0), KINDS["text"]()
    found = sentences(3 * count)
    originals = [found[at] for at in rng.permutation(len(found))[:count]]
    copies = []
    for words in (text.split() for text in originals[:copied]):
        for _ in range(int(rng.integers(1, 4))):
            words[int(rng.integers(len(words)))] = str(rng.choice(["certain", "indeed", "value", "other"]))
        copies.append(" ".join(words))
    signatures = [kind.signature(text) or b"" for text in originals + copies]
    shingles = [_shingles(signature) for signature in signatures]

    def similar(pairs: set[Pair]) -> set[Pair]:
        return {(a, b) for a, b in pairs if kind.similarity(signatures[a], signatures[b]) >= kind.config.similarity}

    planted = similar({(at, count + at) for at in range(copied)})

    def report(name: str, hashing: float, pairs: Iterable, searching: float) -> None:
        proposed = pair_set(pairs)
        print(
            f"  {name:34} recall {len(proposed & planted) / len(planted):.4f}, precision of candidates "
            f"{len(similar(proposed)) / len(proposed):.3f}; {hashing / len(signatures) * 1e6:.0f} µs per text, "
            f"search {searching:.2f} s"
        )

    # 1,000 equal rows make a bucket with half a million pairs.
    equal = kind.hashes(signatures[0])
    repeated = [signatures[0]] * 1_000
    hashes, hashing = timed(lambda: np.stack([kind.hashes(signature) for signature in signatures]))
    pairs, searching = timed(lambda: kind.candidates(hashes))
    report("mmjax (rensa, own bands)", hashing, pairs, searching)
    pairs, seconds = timed(lambda: kind.candidates(np.stack([equal] * len(repeated))))
    print(f"    {len(repeated):,} equal texts: {len(pairs):,} pairs, {seconds:.2f} s")
    if rensa := library("rensa"):
        sketches = list(map(rensa_sketch, shingles))

        def search(sketches: list) -> list[Pair]:
            index = rensa.RMinHashLSH(threshold=0.7, num_perm=128, num_bands=32)
            for at, sketch in enumerate(sketches):
                index.insert(at, sketch)
            return [(at, other) for at, sketch in enumerate(sketches) for other in index.query(sketch)]

        pairs, searching = timed(lambda: search(sketches))
        report("rensa.RMinHashLSH, 32 bands", hashing, pairs, searching)
        pairs, seconds = timed(lambda: search(sketches[:1] * len(repeated)))
        print(f"    {len(repeated):,} equal texts: {len(pairs):,} pairs, {seconds:.2f} s")
    if datasketch := library("datasketch"):
        import zlib

        def sketch(shingles: set[str]):
            made = datasketch.MinHash(128, seed=1, hashfunc=zlib.crc32)
            made.update_batch([shingle.encode() for shingle in shingles])
            return made

        made, hashing = timed(lambda: list(map(sketch, shingles)))

        def query() -> list[Pair]:
            index = datasketch.MinHashLSH(num_perm=128, params=(32, 4))
            for at, each in enumerate(made):
                index.insert(at, each)
            return [(at, other) for at, each in enumerate(made) for other in index.query(each)]

        pairs, searching = timed(query)
        report("datasketch.MinHashLSH, 32 bands", hashing, pairs, searching)


def rensa_sketch(shingles: set[str]):
    import rensa

    sketch = rensa.RMinHash(128, 1)
    sketch.update(list(shingles))
    return sketch


def sentences(least: int) -> list[str]:
    """Collects sentences of 8 to 60 words from the docstrings of installed packages."""
    import ast
    import sysconfig

    found: set[str] = set()
    for path in sorted(pathlib.Path(sysconfig.get_path("stdlib")).rglob("*.py")):
        try:
            tree = ast.parse(path.read_text())
        except (SyntaxError, UnicodeDecodeError, ValueError):
            continue
        for node in ast.walk(tree):
            if isinstance(node, (ast.FunctionDef, ast.ClassDef, ast.Module)):
                for part in re.split(r"(?<=[.!?])\s+(?=[A-Z])|\n\s*\n", ast.get_docstring(node) or ""):
                    if 8 <= len(part.split()) <= 60:
                        found.add(" ".join(part.split()))
        if len(found) >= least:
            break
    return sorted(found)


# Perceptual hashes.


def images(stamps: pathlib.Path) -> None:
    """Finds copies that were re-encoded, resized or, except for drawings, cropped."""
    from cleaning import altered_picture, photograph_tiles, png

    from mmjax.prepare.kinds import KINDS, File

    kind = KINDS["image"]()
    imagehash = library("imagehash")
    sets = {"photographs": list(photograph_tiles().values()), "drawings": list(drawn.drawings(300))}
    if paths := sorted(stamps.rglob("*.png")):
        sets["stamps"] = list(map(stamp, paths[:: max(1, len(paths) // 250)]))
    for name, pictures in sets.items():
        rng, count = np.random.default_rng(0), len(pictures)
        crops = name != "drawings"
        files = [*map(png, pictures), *(altered_picture(pixels, rng, crops)[0] for pixels in pictures)]
        planted = {(at, count + at) for at in range(count)}
        signatures, signing = timed(lambda files=files: [kind.signature(kind.decode(File("x", f))) for f in files])
        hashes, hashing = timed(lambda signatures=signatures: np.stack([kind.hashes(s) for s in signatures]))

        def report(method: str, pairs: Iterable, seconds: float, name=name, planted=planted, files=files) -> None:
            proposed = pair_set(pairs)
            correct = len(proposed & planted)
            print(
                f"  {name:12} {method:40} recall {correct / len(planted):.3f}, precision "
                f"{correct / max(1, len(proposed)):.3f}; {seconds / len(files) * 1e3:.1f} ms per image"
            )

        def compared(pairs: Iterable, signatures=signatures) -> list[Pair]:
            threshold = kind.config.similarity
            return [(a, b) for a, b in pair_set(pairs) if kind.similarity(signatures[a], signatures[b]) >= threshold]

        pairs = kind.candidates(hashes)
        report("mmjax, candidates", pairs, hashing)
        report("mmjax, compared", compared(pairs), signing + hashing)
        if imagehash is None:
            continue
        opened = [PIL.Image.open(io.BytesIO(file)).convert("RGB") for file in files]
        phash, hashing = timed(
            lambda opened=opened: np.array([int(str(imagehash.phash(image)), 16) for image in opened], np.uint64)
        )
        upper = np.stack(np.triu_indices(len(phash), 1), axis=1)
        distance = np.bitwise_count(phash[upper[:, 0]] ^ phash[upper[:, 1]])
        for most in (4, 8, 12, 16):
            report(f"imagehash.phash, distance <= {most}", upper[distance <= most], hashing)
        for most in (12, 16):
            report(f"imagehash.phash <= {most}, compared", compared(upper[distance <= most]), signing + hashing)


def stamp(path: pathlib.Path) -> np.ndarray:
    """Reads a stamp uint8 [H, W, 3] of at most 256 pixels, over white."""
    image = PIL.Image.open(path).convert("RGBA")
    white = PIL.Image.new("RGBA", image.size, "white")
    white.alpha_composite(image)
    white.thumbnail((256, 256))
    return np.asarray(white.convert("RGB"))


# Splits.

SHARES = {"train": 0.8, "validation": 0.1, "test": 0.1}


def splits(stamps: pathlib.Path) -> None:
    """Splits rows by groups and classes, with group sizes and class sizes that follow power laws."""
    from sklearn.exceptions import UndefinedMetricWarning

    warnings.simplefilter("ignore", UndefinedMetricWarning)
    warnings.simplefilter("ignore", UserWarning)
    for rows, groups in ((2_000, 100), (20_000, 2_000), (10_000, 10_000)):
        print(f"  {rows:,} rows, {groups:,} groups, 20 classes, shares 0.8, 0.1, 0.1")
        score_splits(rows, groups)
    print("  200 datasets of 6 to 30 rows in groups: number with an empty split or an exception")
    for name, split in SPLITTERS.items():
        failed = 0
        for seed in range(200):
            groups, labels = grouped_rows(6 + seed % 25, 6 + seed % 25, seed, classes=3)
            try:
                failed += len(set(split(groups, labels, seed).tolist())) < len(SHARES)
            except ValueError:
                failed += 1
        print(f"    {name:44} {failed}")


def score_splits(rows: int, groups: int) -> None:
    """Prints the largest deviations over three seeds."""
    for name, split in SPLITTERS.items():
        by_rows, by_class, seconds = [], [], []
        for seed in range(3):
            group, label = grouped_rows(rows, groups, seed)
            parts, spent = timed(split, group, label, seed)
            shares = np.asarray(list(SHARES.values()))
            by_rows.append(np.abs(np.bincount(parts, minlength=3) / rows - shares).max())
            table = np.zeros((3, label.max() + 1))
            np.add.at(table, (parts, label), 1)
            frequent = table.sum(axis=0) >= 50
            by_class.append(np.abs(table / table.sum(axis=0) - shares[:, None])[:, frequent].max())
            seconds.append(spent)
        print(
            f"    {name:44} largest deviation of a split's share: rows {max(by_rows):.4f}, "
            f"one class {max(by_class):.3f}; {np.mean(seconds):.2f} s"
        )


def grouped_rows(rows: int, groups: int, seed: int, classes: int = 20) -> tuple[np.ndarray, np.ndarray]:
    """Draws (group, class) of each row. Each group has its own frequent classes, like a speaker or a patient."""
    rng = np.random.default_rng(seed)
    if groups == rows:
        group = np.arange(rows)
    else:
        weights = 1 / np.arange(1, groups + 1) ** 0.7
        group = np.unique(rng.choice(groups, rows, p=weights / weights.sum()), return_inverse=True)[1]
    common = 1 / np.arange(1, classes + 1)
    favourite = rng.choice(classes, groups, p=common / common.sum())
    own = rng.random(rows) < 0.5
    return group, np.where(own, favourite[group], rng.choice(classes, rows, p=common / common.sum()))


def own_split(groups: np.ndarray, labels: np.ndarray, seed: int) -> np.ndarray:
    from mmjax.prepare.splits import assign_parts

    return assign_parts(SHARES, groups, [str(label) for label in labels], str(seed))


def group_shuffle_split(groups: np.ndarray, labels: np.ndarray, seed: int) -> np.ndarray:
    from sklearn.model_selection import GroupShuffleSplit

    parts = np.zeros(len(groups), np.int64)
    for size, part in ((0.2, 1), (0.5, 2)):
        rows = np.flatnonzero(parts == part - 1)
        chosen = next(iter(GroupShuffleSplit(1, test_size=size, random_state=seed).split(rows, groups=groups[rows])))
        parts[rows[chosen[1]]] = part
    return parts


def stratified_group_folds(groups: np.ndarray, labels: np.ndarray, seed: int) -> np.ndarray:
    from sklearn.model_selection import StratifiedGroupKFold

    parts = np.zeros(len(groups), np.int64)
    folds = StratifiedGroupKFold(10, shuffle=True, random_state=seed).split(groups, labels, groups)
    for part, (_, chosen) in zip((1, 2), folds, strict=False):
        parts[chosen] = part
    return parts


SPLITTERS = {
    "mmjax": own_split,
    "sklearn GroupShuffleSplit, twice": group_shuffle_split,
    "sklearn StratifiedGroupKFold(10), 8 + 1 + 1": stratified_group_folds,
}
