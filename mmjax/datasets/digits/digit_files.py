"""Finds and reads the raw files of `avmnist`: pictures in MNIST's idx format, recordings as WAV files."""

from __future__ import annotations

import dataclasses
import functools
import gzip
import hashlib
import os
import pathlib
import re
import struct
import tarfile
import unicodedata
import zlib
from collections.abc import Iterator

import numpy as np

from mmjax.errors import UserError
from mmjax.files import cache_folder
from mmjax.modalities.audio import Audio, Waveform, mono

# Folders inside folders; deeper lies something else, and whoever names their home need not wait for all of it.
_DEPTH = 5
_IMAGES = re.compile(r"(.*)images([-.])idx3([-.])ubyte(\.gz)?")
_TEST = re.compile(r"t10k|test", re.IGNORECASE)
_RECORDING = re.compile(r"(\d)_(.+)_(\d+)\.wav", re.IGNORECASE | re.DOTALL)
_ARCHIVE = re.compile(r".*(recordings|fsdd|spoken.?digit).*\.(tar|tar\.gz|tgz)", re.IGNORECASE)

_WHAT = (
    "put MNIST's train-images-idx3-ubyte and train-labels-idx1-ubyte (plain or .gz) and the recordings of the Free "
    "Spoken Digit Dataset, DIGIT_SPEAKER_INDEX.wav (or their recordings.tar.gz), into this folder or below it, or say "
    "with data.path or the variable MMJAX_DATA where they are"
)


@dataclasses.dataclass(frozen=True)
class Recording:
    """Where one spoken digit is.

    Attributes:
      member: its path in the tar archive `path`; "" where `path` itself is the WAV file.
    """

    digit: int
    speaker: str
    index: int
    path: pathlib.Path
    member: str = ""

    @property
    def name(self) -> str:
        return f"{self.digit}_{self.speaker}_{self.index}"


@dataclasses.dataclass(frozen=True)
class DigitFiles:
    """The files of a folder.

    Attributes:
      images: {path of images: path of their labels}, the training files.
      test_images: the same of MNIST's own test files, where they are.
      recordings: one for each (digit, speaker, index), in the order of these.
    """

    images: dict[pathlib.Path, pathlib.Path]
    test_images: dict[pathlib.Path, pathlib.Path]
    recordings: tuple[Recording, ...]

    @functools.cached_property
    def fingerprint(self) -> str:
        """sha256 of the contents of all files."""
        digest = hashlib.sha256()
        pairs = [*self.images.items(), *self.test_images.items()]
        idx = [path for pair in pairs for path in pair]
        for path in [*idx, *dict.fromkeys(recording.path for recording in self.recordings)]:
            with path.open("rb") as file:
                digest.update(f"{path.name} {hashlib.file_digest(file, 'sha256').hexdigest()} ".encode())
        return digest.hexdigest()


def raw_folder(configured: str = "") -> pathlib.Path:
    """Where raw files lie: what the config says, else $MMJAX_DATA, else the folder `raw` of the cache folder."""
    configured = configured or os.environ.get("MMJAX_DATA", "")
    return pathlib.Path(configured).expanduser().absolute() if configured else cache_folder() / "raw"


def find(folder: pathlib.Path) -> DigitFiles:
    """Looks for the files in a folder and those in it.

    Where a file is there twice, for example packed and unpacked, one is taken.

    Raises:
      UserError: where the images, their labels or the recordings are missing or ambiguous, saying what to put where.
    """
    paths = list(_walk(folder))
    idx: dict[bool, dict[pathlib.Path, pathlib.Path]] = {False: {}, True: {}}
    # Plain before packed.
    for path in sorted(paths, key=lambda path: (path.name.endswith(".gz"), path)):
        match = _IMAGES.fullmatch(path.name)
        if match and (labels := _labels(path, match)):
            idx[bool(_TEST.search(match[1]))].setdefault(path, labels)
    images, test_images = (_only_one(pairs) for pairs in (idx[False], idx[True]))
    recordings = _recordings(paths)
    missing = [] if images or test_images else ["MNIST images with their labels"]
    missing += [] if recordings else ["recordings of spoken digits"]
    if missing:
        absent = f"holds no {' and no '.join(missing)}" if folder.is_dir() else "is no folder"
        raise UserError("data.path", f"{str(folder)!r} {absent}", _WHAT)
    # Test files alone are split like any others.
    return DigitFiles(images, test_images, recordings) if images else DigitFiles(test_images, {}, recordings)


def read_images(images: pathlib.Path, labels: pathlib.Path) -> tuple[np.ndarray, np.ndarray]:
    """Returns (uint8 [count, height, width], uint8 [count], digits) of a pair of idx files, plain or gzipped.

    Raises:
      UserError: if a file is cut short, or is none, or the two do not belong together.
    """
    pixels, digits = _read_idx(images, 3), _read_idx(labels, 1)
    if len(pixels) != len(digits):
        problem = f"{len(pixels):,} images, but {str(labels)!r} has {len(digits):,} labels"
        raise UserError("data.path", f"{str(images)!r} has {problem}", "put files there that belong together")
    if len(digits) and digits.max() > 9:
        raise UserError("data.path", f"{str(labels)!r} has the label {digits.max()}", "give digits, 0 to 9")
    return pixels, digits


def read_recordings(recordings: list[Recording], folder: pathlib.Path) -> Iterator[tuple[Recording, Waveform]]:
    """Yields each recording with (int16 [n], rate in Hz), whatever its width; channels are averaged.

    Args:
      folder: an empty folder to unpack archives in.

    Raises:
      UserError: if a file cannot be read as WAV.
    """
    unpacked: dict[pathlib.Path, pathlib.Path] = {}
    for recording in recordings:
        path = recording.path
        if recording.member:
            if path not in unpacked:
                unpacked[path] = folder / str(len(unpacked))
                wanted = {other.member for other in recordings if other.path == path}
                with tarfile.open(path) as archive:
                    members = [member for member in archive.getmembers() if member.name in wanted]
                    archive.extractall(unpacked[path], members=members, filter="data")
            path = unpacked[path] / recording.member
        samples, rate = Audio(Audio.Config()).read(str(path), "data.path")
        if samples.dtype != np.int16 or samples.ndim > 1:
            samples = np.rint(mono(samples).clip(-1, 1) * 32767).astype(np.int16)
        yield recording, (samples, rate)


def _walk(folder: pathlib.Path) -> Iterator[pathlib.Path]:
    for place, folders, names in os.walk(folder, followlinks=True):
        depth = len(pathlib.Path(place).relative_to(folder).parts)
        folders[:] = sorted(name for name in folders if not name.startswith(".")) if depth < _DEPTH else []
        yield from (pathlib.Path(place) / name for name in sorted(names))


def _labels(images: pathlib.Path, match: re.Match) -> pathlib.Path | None:
    """The file of labels beside a file of images; one may be packed and the other not."""
    name = f"{match[1]}labels{match[2]}idx1{match[3]}ubyte"
    return next((path for end in ("", ".gz") if (path := images.with_name(name + end)).is_file()), None)


def _only_one(pairs: dict[pathlib.Path, pathlib.Path]) -> dict[pathlib.Path, pathlib.Path]:
    """The first of pairs that hold the same images; raises a UserError where they do not.

    MNIST has namesakes, such as Fashion-MNIST, which are no digits.
    """
    if len(pairs) < 2:
        return pairs
    (first, labels), *others = pairs.items()
    kept = read_images(first, labels)
    for other, other_labels in others:
        if not all(map(np.array_equal, kept, read_images(other, other_labels))):
            problem = f"{str(first)!r} and {str(other)!r} are different images"
            raise UserError("data.path", problem, "keep one of them in the folder")
    return {first: labels}


def _recordings(paths: list[pathlib.Path]) -> tuple[Recording, ...]:
    found: dict[tuple[int, str, int], Recording] = {}

    def take(path: pathlib.Path, member: str = "") -> None:
        match = _RECORDING.fullmatch(pathlib.PurePosixPath(member).name if member else path.name)
        if match:
            # File systems differ in how they spell an accent.
            key = int(match[1]), unicodedata.normalize("NFC", match[2]), int(match[3])
            found.setdefault(key, Recording(*key, path, member))

    for path in paths:
        take(path)
    for path in paths:
        if _ARCHIVE.fullmatch(path.name):
            try:
                with tarfile.open(path) as archive:
                    members = [member.name for member in archive if member.isfile()]
            except (tarfile.TarError, EOFError, OSError, zlib.error) as error:
                raise UserError(
                    "data.path", f"{str(path)!r} cannot be unpacked: {error}", "put it there anew"
                ) from None
            for member in sorted(members):
                take(path, member)
    return tuple(found[key] for key in sorted(found))


def _read_idx(path: pathlib.Path, rank: int) -> np.ndarray:
    """uint8 of `rank` dimensions from an idx file: two zeros, the type 8, the rank, the sizes, the values."""

    def refuse(problem: str) -> UserError:
        return UserError("data.path", f"{str(path)!r} {problem}", "put the whole idx file there")

    content = path.read_bytes()
    if content[:2] == b"\x1f\x8b":
        try:
            content = gzip.decompress(content)
        except (EOFError, OSError, zlib.error) as error:
            raise refuse(f"is cut short or damaged: {error}") from None
    if content[:4] != bytes([0, 0, 8, rank])[: len(content)]:
        raise refuse(f"is no idx file of {rank} dimension(s) of bytes")
    header = 4 + 4 * rank
    if len(content) < header:
        raise refuse(f"is cut short: {len(content)} bytes do not hold a header")
    shape = struct.unpack(f">{rank}I", content[4:header])
    size = header + int(np.prod(shape, dtype=np.int64))
    if len(content) < size:
        raise refuse(f"is cut short: {len(content):,} bytes of {size:,}")
    return np.frombuffer(content, np.uint8, offset=header, count=size - header).reshape(shape)
