"""Raw files of `avmnist`: finds and reads images in MNIST's idx format and recordings as WAV files."""

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

from mmjax.errors import MissingData, UserError
from mmjax.files import cache_folder, user_path
from mmjax.modalities.audio import Audio
from mmjax.modalities.recordings import Waveform, mono

# Maximum folder depth of the search, so that a home folder as `data.path` does not take forever.
_MAX_DEPTH = 5
_IMAGES = re.compile(r"(.*)images([-.])idx3([-.])ubyte(\.gz)?")
_TEST = re.compile(r"t10k|test", re.IGNORECASE)
_RECORDING = re.compile(r"(\d)_(.+)_(\d+)\.wav", re.IGNORECASE | re.DOTALL)
_ARCHIVE = re.compile(r".*(recordings|fsdd|spoken.?digit).*\.(tar|tar\.gz|tgz)", re.IGNORECASE)

_REMEDY = (
    "put MNIST's train-images-idx3-ubyte and train-labels-idx1-ubyte (plain or .gz) and the recordings of the Free "
    "Spoken Digit Dataset, DIGIT_SPEAKER_INDEX.wav (or their recordings.tar.gz), into this folder or its subfolders, "
    "or set data.path or the variable MMJAX_DATA to their folder"
)


@dataclasses.dataclass(frozen=True)
class Recording:
    """Location of one recording of a spoken digit.

    Attributes:
      digit: 0 to 9.
      speaker: speaker's name, from the file name.
      index: take number, from the file name.
      path: WAV file, or tar archive that contains it.
      member: path inside the tar archive; "" if `path` is the WAV file.
    """

    digit: int
    speaker: str
    index: int
    path: pathlib.Path
    member: str = ""

    @property
    def name(self) -> str:
        """Unique name, DIGIT_SPEAKER_INDEX."""
        return f"{self.digit}_{self.speaker}_{self.index}"


@dataclasses.dataclass(frozen=True)
class DigitFiles:
    """Raw files of a folder.

    Attributes:
      images: {image file: label file} of the training images.
      test_images: {image file: label file} of MNIST's test images; {} if absent.
      recordings: one per (digit, speaker, index), sorted.
    """

    images: dict[pathlib.Path, pathlib.Path]
    test_images: dict[pathlib.Path, pathlib.Path]
    recordings: tuple[Recording, ...]

    @functools.cached_property
    def fingerprint(self) -> str:
        """SHA-256 over the names and contents of all files."""
        digest = hashlib.sha256()
        pairs = [*self.images.items(), *self.test_images.items()]
        idx_files = [path for pair in pairs for path in pair]
        for path in [*idx_files, *dict.fromkeys(recording.path for recording in self.recordings)]:
            with path.open("rb") as file:
                digest.update(f"{path.name} {hashlib.file_digest(file, 'sha256').hexdigest()} ".encode())
        return digest.hexdigest()


def raw_folder(configured: str = "") -> pathlib.Path:
    """Returns the folder of raw files: `configured`, else $MMJAX_DATA, else `raw` in the cache folder."""
    configured = configured or os.environ.get("MMJAX_DATA", "")
    return user_path(configured).absolute() if configured else cache_folder() / "raw"


def find_digit_files(folder: pathlib.Path) -> DigitFiles:
    """Searches a folder and its subfolders for the raw files.

    Duplicates, such as a gzipped and a plain copy of a file, are used once.

    Raises:
      UserError: if images, labels or recordings are missing or ambiguous.
    """
    paths = list(_walk(folder))
    # {is a test file: {image file: label file}}.
    pairs: dict[bool, dict[pathlib.Path, pathlib.Path]] = {False: {}, True: {}}
    # Sort plain files before gzipped ones.
    for path in sorted(paths, key=lambda path: (path.name.endswith(".gz"), path)):
        match = _IMAGES.fullmatch(path.name)
        if match and (labels := _labels(path, match)):
            pairs[bool(_TEST.search(match[1]))].setdefault(path, labels)
    images, test_images = _deduplicate(pairs[False]), _deduplicate(pairs[True])
    recordings = _recordings(paths)
    missing = [] if images or test_images else ["MNIST images with their labels"]
    missing += [] if recordings else ["recordings of spoken digits"]
    if missing:
        problem = f"has no {' and no '.join(missing)}" if folder.is_dir() else "is not a folder"
        raise MissingData("data.path", f"{str(folder)!r} {problem}", _REMEDY)
    # If there are no training images, use the test images as training images.
    return DigitFiles(images, test_images, recordings) if images else DigitFiles(test_images, {}, recordings)


def read_images(images: pathlib.Path, labels: pathlib.Path) -> tuple[np.ndarray, np.ndarray]:
    """Reads a pair of idx files, plain or gzipped.

    Returns:
      (pixels uint8 [N, H, W], digits uint8 [N]).

    Raises:
      UserError: if a file is truncated or not an idx file, or the files do not match.
    """
    pixels, digits = _read_idx(images, 3), _read_idx(labels, 1)
    if len(pixels) != len(digits):
        problem = f"{len(pixels):,} images, but {str(labels)!r} has {len(digits):,} labels"
        raise UserError("data.path", f"{str(images)!r} has {problem}", "provide matching files")
    if len(digits) and digits.max() > 9:
        raise UserError("data.path", f"{str(labels)!r} has the label {digits.max()}", "provide digits 0 to 9")
    return pixels, digits


def read_recordings(recordings: list[Recording], folder: pathlib.Path) -> Iterator[tuple[Recording, Waveform]]:
    """Yields each recording with (int16 [n], sample rate in Hz), converted from any sample width and averaged to mono.

    Args:
      recordings: recordings to read.
      folder: empty folder for unpacked archives.

    Raises:
      UserError: if a file cannot be read as WAV.
    """
    unpacked: dict[pathlib.Path, pathlib.Path] = {}
    for recording in recordings:
        path = recording.path
        if recording.member:
            if path not in unpacked:
                unpacked[path] = folder / str(len(unpacked))
                needed = {other.member for other in recordings if other.path == path}
                with tarfile.open(path) as archive:
                    members = [member for member in archive.getmembers() if member.name in needed]
                    archive.extractall(unpacked[path], members=members, filter="data")
            path = unpacked[path] / recording.member
        samples, rate = Audio(Audio.Config()).read(str(path), "data.path")
        if samples.dtype != np.int16 or samples.ndim > 1:
            samples = np.rint(mono(samples).clip(-1, 1) * 32767).astype(np.int16)
        yield recording, (samples, rate)


def _walk(folder: pathlib.Path) -> Iterator[pathlib.Path]:
    for parent, folders, names in os.walk(folder, followlinks=True):
        depth = len(pathlib.Path(parent).relative_to(folder).parts)
        folders[:] = sorted(name for name in folders if not name.startswith(".")) if depth < _MAX_DEPTH else []
        yield from (pathlib.Path(parent) / name for name in sorted(names))


def _labels(images: pathlib.Path, match: re.Match) -> pathlib.Path | None:
    """Returns the label file beside an image file, plain or gzipped; None if missing."""
    name = f"{match[1]}labels{match[2]}idx1{match[3]}ubyte"
    return next((path for end in ("", ".gz") if (path := images.with_name(name + end)).is_file()), None)


def _deduplicate(pairs: dict[pathlib.Path, pathlib.Path]) -> dict[pathlib.Path, pathlib.Path]:
    """Returns only the first pair of image and label files. Raises UserError if another pair differs.

    Other datasets, such as Fashion-MNIST, have the same file names as MNIST.
    """
    if len(pairs) < 2:
        return pairs
    (first, labels), *others = pairs.items()
    reference = read_images(first, labels)
    for other, other_labels in others:
        if not all(map(np.array_equal, reference, read_images(other, other_labels))):
            problem = f"{str(first)!r} and {str(other)!r} contain different images"
            raise UserError("data.path", problem, "keep one of them in the folder")
    return {first: labels}


def _recordings(paths: list[pathlib.Path]) -> tuple[Recording, ...]:
    """Collects the recordings in WAV files and tar archives; plain WAV files take precedence."""
    recordings: dict[tuple[int, str, int], Recording] = {}

    def add(path: pathlib.Path, member: str = "") -> None:
        match = _RECORDING.fullmatch(pathlib.PurePosixPath(member).name if member else path.name)
        if match:
            # File systems differ in their Unicode normalisation of file names.
            key = int(match[1]), unicodedata.normalize("NFC", match[2]), int(match[3])
            recordings.setdefault(key, Recording(*key, path, member))

    for path in paths:
        add(path)
    for path in paths:
        if _ARCHIVE.fullmatch(path.name):
            try:
                with tarfile.open(path) as archive:
                    members = [member.name for member in archive if member.isfile()]
            except (tarfile.TarError, EOFError, OSError, zlib.error) as error:
                raise UserError("data.path", f"{str(path)!r} cannot be unpacked: {error}", "replace it") from None
            for member in sorted(members):
                add(path, member)
    return tuple(recordings[key] for key in sorted(recordings))


def _read_idx(path: pathlib.Path, rank: int) -> np.ndarray:
    """Reads a uint8 array of `rank` dimensions from an idx file: two zeros, type 8, rank, sizes, values."""

    def error(problem: str) -> UserError:
        return UserError("data.path", f"{str(path)!r} {problem}", "provide the complete idx file")

    content = path.read_bytes()
    if content[:2] == b"\x1f\x8b":
        try:
            content = gzip.decompress(content)
        except (EOFError, OSError, zlib.error) as exception:
            raise error(f"is truncated or damaged: {exception}") from None
    if content[:4] != bytes([0, 0, 8, rank])[: len(content)]:
        raise error(f"is not an idx file of {rank}-dimensional uint8 data")
    header = 4 + 4 * rank
    if len(content) < header:
        raise error(f"is truncated: {len(content)} bytes, less than its header")
    shape = struct.unpack(f">{rank}I", content[4:header])
    size = header + int(np.prod(shape, dtype=np.int64))
    if len(content) < size:
        raise error(f"is truncated: {len(content):,} of {size:,} bytes")
    return np.frombuffer(content, np.uint8, offset=header, count=size - header).reshape(shape)
