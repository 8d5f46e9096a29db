"""Inputs of the fuzz test: small valid files of every kind, and mutations of files, JSON values and words."""

from __future__ import annotations

import io
import json
import struct
import tarfile
import zlib
from collections.abc import Callable
from typing import Any

import numpy as np
import PIL.Image

NASTY_TEXT = (
    *("", " ", "0", "-1", "1e999", "nan", "None", "true", "9" * 400, "99999999999999999999", "1e-400", "²", "١٢"),
    *("a" * 300, "é" * 90, "日本語", "🙂", "\u202e", "\ufeff", "a\tb", "a\nb", "a,b", 'a"b', "'", "=", "a=b", "a=b,c"),
    *("\ud800", "a\0b", "%s%n", "{0}", "$HOME", "*", "(", "[[[[", "[" * 3000, "---1", "-" * 3000 + "1", "{'a': 1}"),
    *("../secret.png", "../../x", "/etc/passwd", "/proc/self/mem", "/proc/x", "/dev/null", "/dev/zero", "/dev/null/x"),
    *("~nobody_at_all/x", "~", ".", "..", "/", "//", "file:///etc/passwd", "s3://bucket/x", "gs://b", "http://[::1"),
    *("link.png", "pipe.png", "folder.png", "C:\\x.png", "localhost:99999", "host:port", ":", "x.png" * 80),
)
"""Texts that programs often mistake."""

NASTY_VALUES = (
    *(
        None,
        True,
        False,
        0,
        -1,
        1,
        2**31,
        2**63,
        10**400,
        0.5,
        -0.0,
        1e308,
        float("nan"),
        float("inf"),
        "",
        "x",
        [],
        {},
    ),
    *([None], [[]], [1, "a"], {"a": 1}, {"": {}}, {"kind": "x"}, [{"kind": None}], "a" * 300, "\ud800", "1e3"),
)
"""Values that a JSON file or a config may hold."""

_NUMBERS = (0, 1, 2, 0x7F, 0x80, 0xFF, 0x7FFF, 0x8000, 0xFFFF, 0x7FFFFFFF, 0x80000000, 0xFFFFFFFF, 0xFFFFFF80)


def image(rng: np.random.Generator, form: str = "PNG", mode: str = "RGB", size: tuple[int, int] = (24, 18)) -> bytes:
    """An image file of coarse noise."""
    pixels = np.kron(rng.integers(0, 256, (6, 8, 3)), np.ones((4, 4, 1))).astype(np.uint8)
    buffer = io.BytesIO()
    PIL.Image.fromarray(pixels).resize(size, PIL.Image.Resampling.BICUBIC).convert(mode).save(buffer, form)
    return buffer.getvalue()


def deep_image(rng: np.random.Generator, form: str) -> bytes:
    """A greyscale image of 16 bits."""
    buffer = io.BytesIO()
    PIL.Image.fromarray(rng.integers(0, 4096, (12, 16)).astype(np.uint16)).save(buffer, form)
    return buffer.getvalue()


def animation(rng: np.random.Generator, form: str) -> bytes:
    """An animated image of four frames."""
    frames = [PIL.Image.open(io.BytesIO(image(rng))).convert("RGB") for _ in range(4)]
    buffer = io.BytesIO()
    frames[0].save(buffer, form, save_all=True, append_images=frames[1:], duration=100)
    return buffer.getvalue()


def recording(rng: np.random.Generator, form: str, subtype: str, channels: int = 1) -> bytes:
    """An audio file of 0.1 seconds of noise."""
    import soundfile

    buffer = io.BytesIO()
    soundfile.write(buffer, 0.3 * rng.normal(size=(800, channels)), 8000, format=form, subtype=subtype)
    return buffer.getvalue()


def video(rng: np.random.Generator) -> bytes:
    """An MP4 file of eight frames."""
    import av

    buffer = io.BytesIO()
    with av.open(buffer, "w", format="mp4") as container:
        stream: Any = container.add_stream("mpeg4", rate=8)
        stream.width, stream.height, stream.pix_fmt = 32, 32, "yuv420p"
        for _ in range(8):
            pixels = np.kron(rng.integers(0, 256, (4, 4, 3)), np.ones((8, 8, 1))).astype(np.uint8)
            container.mux(stream.encode(av.VideoFrame.from_ndarray(pixels, format="rgb24")))
        container.mux(stream.encode())
    return buffer.getvalue()


def array(values: np.ndarray, compressed: bool = False) -> bytes:
    """An NPY file, or an NPZ file."""
    buffer = io.BytesIO()
    if compressed:
        np.savez_compressed(buffer, values)
    else:
        np.save(buffer, values)
    return buffer.getvalue()


def point_cloud(rng: np.random.Generator, ascii_data: bool) -> bytes:
    """A PCD file of twenty points."""
    points = rng.normal(size=(20, 3)).astype("<f4")
    header = "VERSION 0.7\nFIELDS x y z\nSIZE 4 4 4\nTYPE F F F\nCOUNT 1 1 1\nWIDTH 20\nHEIGHT 1\nPOINTS 20\n"
    if ascii_data:
        return (header + "DATA ascii\n" + "\n".join(" ".join(map(repr, map(float, p))) for p in points) + "\n").encode()
    return (header + "DATA binary\n").encode() + points.tobytes()


def files(rng: np.random.Generator) -> list[tuple[str, str, bytes]]:
    """Valid files: (kind, name, contents)."""
    series = np.cumsum(rng.normal(size=(30, 2)), axis=0)
    lines = "\n".join(",".join(f"{value:.4f}" for value in row) for row in series)
    frames = rng.integers(0, 256, (5, 8, 8, 3)).astype(np.uint8)
    found = [
        ("image", "a.png", image(rng)),
        ("image", "b.png", image(rng, "PNG", "P")),
        ("image", "c.jpg", image(rng, "JPEG")),
        ("image", "d.gif", image(rng, "GIF", "P")),
        ("image", "e.webp", image(rng, "WEBP")),
        ("image", "f.bmp", image(rng, "BMP")),
        ("image", "g.tif", image(rng, "TIFF")),
        ("image", "h.ppm", image(rng, "PPM")),
        ("image", "i.png", deep_image(rng, "PNG")),
        ("image", "j.tif", deep_image(rng, "TIFF")),
        ("audio", "a.wav", recording(rng, "WAV", "PCM_16")),
        ("audio", "b.wav", recording(rng, "WAV", "PCM_24", 2)),
        ("audio", "c.wav", recording(rng, "WAV", "FLOAT")),
        ("audio", "d.flac", recording(rng, "FLAC", "PCM_16")),
        ("audio", "e.ogg", recording(rng, "OGG", "VORBIS")),
        ("audio", "f.mp3", recording(rng, "MP3", "MPEG_LAYER_III")),
        ("series", "a.npy", array(series)),
        ("series", "b.npy", array(series.astype(np.float32).T.copy().T)),
        ("series", "c.csv", f"x,y\n{lines}\n".encode()),
        ("series", "d.npz", array(series, compressed=True)),
        ("points", "a.npy", array(rng.normal(size=(20, 4)))),
        ("points", "b.pcd", point_cloud(rng, True)),
        ("points", "c.pcd", point_cloud(rng, False)),
        ("points", "d.bin", rng.normal(size=(20, 4)).astype("<f4").tobytes()),
        ("video", "a.gif", animation(rng, "GIF")),
        ("video", "b.webp", animation(rng, "WEBP")),
        ("video", "c.npy", array(frames)),
        ("video", "d.mp4", video(rng)),
        ("text", "a.txt", "Einige Wörter über 12 Bilder.\nUnd eine Zeile.".encode()),
    ]
    return found


def mutate(rng: np.random.Generator, data: bytes, name: str = "", other: bytes = b"") -> bytes:
    """Changes a file in one to three places; half of the time, corrects the checksums of PNG chunks and tar headers."""
    content = bytearray(data)
    for _ in range(rng.integers(1, 4)):
        _MUTATIONS[rng.integers(len(_MUTATIONS))](rng, content, other)
    result = bytes(content)
    if rng.random() < 0.5:
        result = _with_png_checksums(result) if name.endswith(".png") else result
        result = _with_tar_checksums(result) if name.endswith(".tar") else result
    return result


def _position(rng: np.random.Generator, content: bytearray) -> int:
    """A position, half of the time among the first 64 bytes, where headers are."""
    return int(rng.integers(min(len(content), 64) if rng.random() < 0.5 else len(content))) if content else 0


def _flip(rng: np.random.Generator, content: bytearray, other: bytes) -> None:
    for _ in range(rng.integers(1, 9) if content else 0):
        content[_position(rng, content)] ^= 1 << int(rng.integers(8))


def _number(rng: np.random.Generator, content: bytearray, other: bytes) -> None:
    start, number = _position(rng, content), int(rng.choice(_NUMBERS))
    form = str(rng.choice(["<I", ">I", "<H", ">H", "B"]))
    size = struct.calcsize(form)
    content[start : start + size] = struct.pack(form, number % 2 ** (8 * size))


def _cut(rng: np.random.Generator, content: bytearray, other: bytes) -> None:
    del content[_position(rng, content) :]


def _delete(rng: np.random.Generator, content: bytearray, other: bytes) -> None:
    start = _position(rng, content)
    del content[start : start + int(rng.integers(1, 40))]


def _repeat(rng: np.random.Generator, content: bytearray, other: bytes) -> None:
    start = _position(rng, content)
    content[start:start] = content[start : start + int(rng.integers(1, 40))] * int(rng.choice([1, 2, 50]))


def _insert(rng: np.random.Generator, content: bytearray, other: bytes) -> None:
    start = _position(rng, content)
    text = NASTY_TEXT[rng.integers(len(NASTY_TEXT))].encode("utf-8", "surrogatepass")
    content[start : start + int(rng.choice([0, 0, 8]))] = (
        rng.bytes(int(rng.integers(1, 20))) if rng.random() < 0.5 else text
    )


def _zeros(rng: np.random.Generator, content: bytearray, other: bytes) -> None:
    start = _position(rng, content)
    count = min(len(content) - start, int(rng.integers(1, 100)))
    content[start : start + count] = bytes([int(rng.choice([0, 255]))]) * count


def _splice(rng: np.random.Generator, content: bytearray, other: bytes) -> None:
    content[_position(rng, content) :] = other[_position(rng, bytearray(other)) :]


def _replace(rng: np.random.Generator, content: bytearray, other: bytes) -> None:
    if rng.random() < 0.2:
        content[:] = other if rng.random() < 0.5 else rng.bytes(int(rng.integers(0, 200)))
    else:
        _flip(rng, content, other)


_MUTATIONS: tuple[Callable[[np.random.Generator, bytearray, bytes], None], ...] = (
    *(_flip, _flip, _number, _number, _number, _cut, _delete, _repeat, _insert, _zeros, _splice, _replace),
)


def _with_png_checksums(data: bytes) -> bytes:
    result, position = data[:8], 8
    while position + 12 <= len(data):
        size = int.from_bytes(data[position : position + 4], "big")
        body = data[position + 4 : position + 8 + size]
        if len(body) < 4 + size:
            break
        result += data[position : position + 4] + body + struct.pack(">I", zlib.crc32(body))
        position += 12 + size
    return result + data[position:]


def _with_tar_checksums(data: bytes) -> bytes:
    blocks = [bytearray(data[start : start + 512]) for start in range(0, len(data), 512)]
    for block in blocks:
        if len(block) == 512 and block[257:262] == b"ustar":
            block[148:156] = b" " * 8
            block[148:156] = f"{sum(block):06o}\0 ".encode()
    return b"".join(blocks)


def mutate_value(rng: np.random.Generator, value: Any) -> Any:
    """A JSON value with one node replaced, removed, renamed or added."""
    if isinstance(value, dict) and value and rng.random() < 0.85:
        key = list(value)[rng.integers(len(value))]
        choice = rng.random()
        if choice < 0.1:
            return {name: item for name, item in value.items() if name != key}
        if choice < 0.2:
            return value | {str(rng.choice(NASTY_TEXT[:20])): NASTY_VALUES[rng.integers(len(NASTY_VALUES))]}
        return value | {key: mutate_value(rng, value[key])}
    if isinstance(value, list) and value and rng.random() < 0.7:
        index = int(rng.integers(len(value)))
        return [*value[:index], mutate_value(rng, value[index]), *value[index + int(rng.random() < 0.8) :]]
    if rng.random() < 0.4:
        return NASTY_TEXT[rng.integers(len(NASTY_TEXT))]
    return NASTY_VALUES[rng.integers(len(NASTY_VALUES))]


def mutate_json(rng: np.random.Generator, data: bytes) -> bytes:
    """A JSON file with a node or with bytes changed."""
    if rng.random() < 0.3:
        return mutate(rng, data)
    return json.dumps(mutate_value(rng, json.loads(data))).encode()


def archive(members: list[tuple[str, bytes]], rng: np.random.Generator) -> bytes:
    """A tar file; sometimes with a link, a device or a name that leads out of the folder."""
    buffer = io.BytesIO()
    form = int(rng.choice([tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT]))
    with tarfile.open(fileobj=buffer, mode="w", format=form) as file:
        for name, data in members:
            member = tarfile.TarInfo(name)
            if rng.random() < 0.03:
                member.name = str(
                    rng.choice(["../secret.png", "/secret.png", "é" * 40 + ".png", "a/../../b.png", "C:/x.png"])
                )
            if rng.random() < 0.02:
                member.type = [tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.FIFOTYPE, tarfile.CHRTYPE][rng.integers(4)]
                member.linkname = "../secret.png"
            member.size = len(data)
            file.addfile(member, io.BytesIO(data))
    return buffer.getvalue()
