"""Near duplicates of drawings, scans, and sentences made from templates."""

from __future__ import annotations

import io
import itertools
import json

import numpy as np
import PIL.Image
import PIL.ImageDraw
import PIL.ImageFont
import pytest

from mmjax.prepare import drawings, picture_signature
from mmjax.prepare.kinds import KINDS
from mmjax.prepare.options import PrepareConfig
from mmjax.prepare.preparation import prepare
from mmjax.prepare.runners import Local
from mmjax.prepare.templates import Templates, substitutions

WORDS = (
    "the",
    "of",
    "and",
    "to",
    "in",
    "is",
    "that",
    "was",
    "for",
    "on",
    "are",
    "with",
    "as",
    "they",
    "be",
    "have",
    "hot",
)


def shape(draws: np.random.Generator, colour=(20, 20, 20), background="white") -> PIL.Image.Image:
    picture = PIL.Image.new("RGB", (64, 64), background)
    draw, size = PIL.ImageDraw.Draw(picture), draws.uniform(14, 30)
    x, y = draws.uniform(size / 2, 64 - size / 2, 2)
    box = [x - size / 2, y - size / 2, x + size / 2, y + size / 2]
    kind = draws.integers(3)
    if kind == 0:
        draw.ellipse(box, fill=colour)
    elif kind == 1:
        draw.rectangle(box, fill=colour)
    else:
        draw.polygon([(x, box[1]), (box[0], box[3]), (box[2], box[3])], fill=colour)
    return picture


def bright(draws: np.random.Generator) -> PIL.Image.Image:
    return shape(draws, (230, 230, 60), "black")


def icon(draws: np.random.Generator) -> PIL.Image.Image:
    picture = PIL.Image.new("RGB", (48, 48), (240, 240, 245))
    draw = PIL.ImageDraw.Draw(picture)
    draw.rounded_rectangle([6, 6, 42, 42], 8, outline=(30, 30, 30), width=2)
    for x, y in draws.integers(12, 36, (3, 2)).tolist():
        draw.rectangle([x, y, x + 5, y + 5], fill=(30, 30, 30))
    return picture


def diagram(draws: np.random.Generator) -> PIL.Image.Image:
    picture = PIL.Image.new("L", (160, 160), 255)
    draw, font = PIL.ImageDraw.Draw(picture), PIL.ImageFont.load_default()
    points = [tuple(point) for point in draws.integers(10, 120, (4, 2)).tolist()]
    for one, other in itertools.pairwise(points):
        draw.line([one, other], fill=0)
    for x, y in points:
        draw.rectangle([x, y, x + 34, y + 18], fill=255, outline=0)
        draw.text((x + 4, y + 3), "".join(draws.choice(list("ABCDEFGH"), 3)), fill=0, font=font)
    return picture


def form(draws: np.random.Generator) -> PIL.Image.Image:
    picture = PIL.Image.new("L", (340, 440), 250)
    draw, font = PIL.ImageDraw.Draw(picture), PIL.ImageFont.load_default()
    for line in range(24):
        words = " ".join(WORDS[(7 * line + word) % len(WORDS)] for word in range(8))
        draw.text((30, 30 + 16 * line), words, fill=20, font=font)
    for line in range(3):
        draw.text((250, 40 + 80 * line), str(draws.integers(1000, 9999)), fill=0, font=font)
    return picture


FAMILIES = {"shape": shape, "bright": bright, "icon": icon, "diagram": diagram, "form": form}


def jpeg(picture: PIL.Image.Image) -> PIL.Image.Image:
    buffer = io.BytesIO()
    picture.save(buffer, "JPEG", quality=85)
    return PIL.Image.open(buffer)


def smaller(picture: PIL.Image.Image) -> PIL.Image.Image:
    return picture.resize(tuple(round(0.75 * side) for side in picture.size), PIL.Image.Resampling.LANCZOS)


@pytest.mark.parametrize("family", FAMILIES)
def test_different_drawings_are_no_copies_of_each_other_and_the_same_encoded_anew_are(family):
    kind, draws = KINDS["image"](), np.random.default_rng(0)
    pictures = [FAMILIES[family](draws) for _ in range(24 if family == "form" else 60)]
    copies = [jpeg(picture) for picture in pictures[:4]] + [smaller(picture) for picture in pictures[:4]]
    signatures = [kind.signature(kind.decode(np.asarray(picture))) for picture in (*pictures, *copies)]
    pairs = kind.candidates(np.stack([kind.hashes(signature) for signature in signatures])).tolist()
    count = len(pictures)
    planted = [(n % 4, count + n) for n in range(8)] + [(count + n, count + n + 4) for n in range(4)]

    def are_copies(one: int, other: int) -> bool:
        return kind.similarity(signatures[one], signatures[other]) >= kind.config.similarity

    assert all(are_copies(*pair) for pair in planted)
    others = [pair for pair in pairs if tuple(pair) not in planted]
    assert len(others) >= 20 and not any(are_copies(*pair) for pair in others)


def test_drawings_are_recognised_by_their_background():
    draws = np.random.default_rng(0)
    assert all(drawings.is_drawing(np.asarray(make(draws).convert("L"))) for make in FAMILIES.values())
    texture = draws.integers(0, 255, (8, 8)).astype(np.uint8)
    photograph = PIL.Image.fromarray(texture).resize((64, 64), PIL.Image.Resampling.BICUBIC)
    assert not drawings.is_drawing(np.asarray(photograph))


def test_a_signature_is_that_of_the_pixels_and_survives_packing():
    kind, picture = KINDS["image"](), np.asarray(icon(np.random.default_rng(0)))
    packed = kind.signature(kind.decode(picture))
    assert picture_signature.unpack(packed).pack() == packed
    other = picture.copy()
    other[0, 0, 0] ^= 1
    assert kind.signature(kind.decode(other)) != packed and kind.signature(kind.decode(picture.copy())) == packed


def test_the_worst_block_of_a_drawing_decides():
    plain = np.full((64, 64), 250, np.float32)
    plain[8:56:8] = 20
    other = plain.copy()
    other[41:46, 30:34] = 20
    assert drawings.detail_similarity(plain, plain) == 1 and drawings.detail_similarity(plain, other) < 0.5
    assert drawings.detail_similarity(plain, plain + np.random.default_rng(0).normal(0, 3, plain.shape)) > 0.99


# Texts.


def kept(tmp_path, texts: list[str]) -> set[int]:
    """Indices of the texts that remain after preparation."""
    source = tmp_path / "data.jsonl"
    source.write_text("".join(json.dumps({"key": f"k{n}", "text": text}) + "\n" for n, text in enumerate(texts)))
    config = PrepareConfig(source=str(source), columns={"text": "text:text"})
    prepare(config, tmp_path / "out", Local(1), dry_run=True)
    lines = [json.loads(line) for line in (tmp_path / "out.partial" / "findings.jsonl").read_text().splitlines()]
    return set(range(len(texts))) - {int(line["key"][1:]) for line in lines if line["dropped"]}


def test_sentences_that_share_a_template_are_no_copies(tmp_path):
    colours, animals = ("red", "blue", "green", "white"), ("horse", "mouse", "goose")
    texts = [
        f"a small {colour} {animal} is standing on the grass beside the old wooden house"
        for colour in colours
        for animal in animals
    ]
    texts += [f"the patient in bed {n} has had a temperature of {37 + n / 10:.1f} degrees since monday" for n in (3, 4)]
    texts += [f"there is no sign of a fracture in the {side} {bone} of this patient" for side in ("left", "right")
              for bone in ("wrist", "elbow")]  # fmt: skip
    assert kept(tmp_path, texts) == set(range(len(texts)))


def test_copies_with_another_word_case_or_mark_are_dropped(tmp_path):
    texts = [
        "nobody expected that the small harbour would ever see such a large ship again",
        "every morning the baker carries warm bread across the empty market square",
        "when the lights went out the orchestra simply kept on playing in the dark",
    ]
    copies = [texts[0].replace("expected", "thought"), texts[1].upper() + "!", texts[2].replace("simply ", "")]
    assert kept(tmp_path, texts + copies) == {0, 1, 2}


def test_substitutions_are_words_in_the_place_of_others():
    assert substitutions("a red dog runs", "a blue dog runs") == [(("a", "dog"), "red", "blue")]
    assert substitutions("a dog runs", "a dog runs fast") == []
    assert substitutions("room 5 is warm", "room is warm") == [(("room", "is"), "5", "")]
    assert not Templates([]).are_copies("take 5 mg at night", "take 50 mg at night")
    assert Templates([]).are_copies("a red dog runs", "a blue dog runs")
