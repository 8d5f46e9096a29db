"""Video: file formats, frame selection, augmentation of all frames alike, and checks in preparation."""

from __future__ import annotations

import io
import json
import pickle  # reads back our own objects, as worker processes do
import sys

import av
import jax
import numpy as np
import PIL.Image
import pytest
from flax import nnx

from mmjax.config import build
from mmjax.datasets import Prepared
from mmjax.encoders.video_transformer import VideoTransformer
from mmjax.errors import UserError
from mmjax.layers import Precision
from mmjax.modalities import Image, Video
from mmjax.modalities.augmentation import AUGMENTATIONS, IMAGE
from mmjax.modalities.augmentation.reverse import Reverse
from mmjax.modalities.augmentation.temporal_crop import TemporalCrop
from mmjax.modalities.clips import MAX_FRAMES, MAX_SIDE, Clip, LazyFrames, clip_from_images, read_clip
from mmjax.prepare.kinds import KINDS, File, Unreadable
from mmjax.prepare.options import PrepareConfig
from mmjax.prepare.preparation import prepare
from mmjax.prepare.runners import Local
from mmjax.tokens import Input, InputSpec


def draws(seed=0):
    return np.random.Generator(np.random.Philox(seed))


def scene(seed: int = 0, frames: int = 12, side: int = 48) -> np.ndarray:
    """uint8 [frames, side, side, 3]: smooth random image that moves by one pixel a frame."""
    blocks = draws(seed).integers(0, 255, (6, 6, 3)).astype(np.uint8)
    picture = np.asarray(PIL.Image.fromarray(blocks).resize((side, side), PIL.Image.Resampling.BICUBIC))
    return np.stack([np.roll(picture, number, axis=1) for number in range(frames)])


def npy(values) -> bytes:
    buffer = io.BytesIO()
    np.save(buffer, values)
    return buffer.getvalue()


def animation(frames: np.ndarray, kind: str, milliseconds: int = 100) -> bytes:
    buffer = io.BytesIO()
    first, *others = map(PIL.Image.fromarray, frames)
    options = {"lossless": True} if kind == "WEBP" else {}
    first.save(buffer, kind, save_all=True, append_images=others, duration=milliseconds, loop=0, **options)
    return buffer.getvalue()


def video(frames: np.ndarray, kind: str = "mp4", codec: str = "mpeg4", rate: int = 10, rotation: int = 0) -> bytes:
    buffer = io.BytesIO()
    with av.open(buffer, "w", format=kind) as container:
        stream = container.add_stream(codec, rate=rate)
        stream.height, stream.width, stream.pix_fmt = *frames.shape[1:3], "yuv420p"
        stream.bit_rate = 4_000_000
        if rotation:
            stream.set_display_rotation(rotation)
        for frame in frames:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(np.ascontiguousarray(frame), format="rgb24")))
        container.mux(stream.encode())
    return buffer.getvalue()


def png(pixels: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    PIL.Image.fromarray(pixels).save(buffer, "PNG")
    return buffer.getvalue()


def make(**fields) -> Video:
    return Video(build(Video.Config, fields, "video"))


def pixels(clip: Clip) -> np.ndarray:
    """uint8 [T, H, W, 3]; grey is repeated to three channels, and no pixel is transparent."""
    coloured = [frame if frame.ndim == 3 else np.repeat(frame[..., None], 3, axis=2) for frame in clip.frames]
    return np.stack([frame[..., :3] for frame in coloured])


class TestFiles:
    @pytest.mark.parametrize(("kind", "rate"), [("GIF", 10), ("WEBP", 10), ("PNG", 10), ("npy", 0), ("folder", 0)])
    def test_frames_without_loss_come_back_in_their_order(self, kind, rate):
        grey = np.stack([np.full((20, 30), 20 * number, np.uint8) for number in range(11)])
        frames = scene(frames=11) if kind not in ("GIF", "folder") else grey
        if kind == "npy":
            clip = read_clip(npy(frames), "a.npy")
        elif kind == "folder":
            clip = clip_from_images(reversed([(f"frame {n}.png", png(frame)) for n, frame in enumerate(frames)]))
        else:
            clip = read_clip(animation(frames, kind), f"a.{kind}")
        assert clip.rate == rate and len(clip.frames) == 11
        truth = frames if frames.ndim == 4 else np.repeat(frames[..., None], 3, axis=3)
        np.testing.assert_array_equal(pixels(clip), truth)

    @pytest.mark.parametrize(
        ("kind", "codec"),
        [("mp4", "mpeg4"), ("mp4", "h264"), ("webm", "libvpx"), ("matroska", "h264"), ("avi", "mpeg4")],
    )
    def test_video_files_hold_their_frames(self, kind, codec):
        frames = scene(frames=20)
        clip = read_clip(video(frames, kind, codec), "a")
        assert len(clip.frames) == 20 and clip.rate == pytest.approx(10, rel=0.01)
        # Lossy codecs change every frame a little; a frame too early or late would differ more.
        assert np.abs(pixels(clip).astype(int) - frames).mean() < 8

    def test_clips_follow_the_rotation_metadata(self):
        frames = np.zeros((5, 32, 64, 3), np.uint8)
        frames[:, :, :32, 0] = 250
        clip = read_clip(video(frames, rotation=90), "a")
        turned = np.rot90(frames[2]).astype(int)
        assert clip.frames[2].shape == (64, 32, 3) and np.abs(clip.frames[2] - turned).mean() < 12

    @pytest.mark.parametrize("count", [MAX_FRAMES, MAX_FRAMES + 1, 3 * MAX_FRAMES])
    def test_long_clips_are_subsampled_and_large_frames_downscaled(self, count):
        frames = np.arange(count, dtype=np.uint32).view(np.uint8).reshape(count, 1, 4)
        clip = read_clip(npy(frames), "a")
        numbers = [int(np.ascontiguousarray(frame).view(np.uint32)[0, 0]) for frame in clip.frames]
        stride = {MAX_FRAMES: 1, MAX_FRAMES + 1: 2, 3 * MAX_FRAMES: 4}[count]
        assert numbers == list(range(0, count, stride))
        assert read_clip(animation(scene(frames=300, side=8), "WEBP"), "a").rate == pytest.approx(10 / 4, rel=0.02)
        large = read_clip(npy(np.full((2, 400, 2 * MAX_SIDE, 3), 9, np.uint8)), "a")
        assert large.frames[1].shape == (200, MAX_SIDE, 3) and (large.frames[1] == 9).all()

    @pytest.mark.parametrize(
        ("name", "data", "said"),
        [
            ("empty", b"", "not a video, or a damaged one"),
            ("text", b"<html>not found</html>", "not a video, or a damaged one"),
            ("cut mp4", video(scene(frames=20))[:-900], "not a video, or a damaged one"),
            ("cut webm", (lambda data: data[: len(data) // 2])(video(scene(frames=40), "webm", "libvpx")), "truncated"),
            ("cut gif", animation(scene(), "GIF")[:-400], "truncated|damaged animation"),
            ("cut webp", animation(scene(), "WEBP")[:-400], "damaged animation|not a video"),
            ("cut npy", npy(scene())[:-9], "truncated"),
            ("float npy", npy(scene().astype(np.float32)), "frames must be uint8"),
            ("flat npy", npy(scene()[0, 0]), "frames must be uint8"),
            ("objects", b"\x93NUMPY\x01\x00", "not a valid NPY file"),
        ],
    )
    def test_files_without_a_clip_are_refused_with_a_reason(self, name, data, said, tmp_path):
        with pytest.raises(Unreadable, match=said):
            KINDS["video"]().decode(File(name, data))
        (tmp_path / "x").write_bytes(data)
        with pytest.raises(UserError, match=said) as caught:
            make().read(str(tmp_path / "x"), "--clip")
        assert "\n" not in str(caught.value)

    def test_a_folder_with_a_torn_picture_or_nothing_is_refused(self, tmp_path):
        with pytest.raises(UserError, match="no frames"):
            make().read(str(tmp_path), "--clip")
        (tmp_path / "1.png").write_bytes(png(scene()[0])[:90])
        with pytest.raises(UserError, match=r"the frame '1.png' cannot be read"):
            make().read(str(tmp_path), "--clip")
        with pytest.raises(Unreadable, match="no frames"):
            KINDS["video"]().decode(())

    def test_without_the_package_one_line_says_what_to_install(self, monkeypatch):
        data = video(scene())
        monkeypatch.setitem(sys.modules, "av", None)
        with pytest.raises(UserError, match=r"'a.mp4' needs the package av; pip install 'mmjax\[video\]'"):
            KINDS["video"]().decode(File("a.mp4", data))
        assert len(read_clip(animation(scene(), "GIF"), "a").frames) == 12


class TestVideo:
    def test_frames_are_as_the_image_modality_makes_them_and_the_rest_is_masked(self):
        options = {"size": (10, 12), "channels": 1, "fit": "pad", "mean": (0.2,), "std": (0.3,)}
        values, mask = make(frames=5, **options).process((scene(frames=3), 0.0))
        image = Image(Image.Config(**options))
        for number, frame in enumerate(scene(frames=3)):
            np.testing.assert_array_equal(values[number], image.process(frame)[0])
        assert mask.tolist() == [True] * 3 + [False] * 2 and not values[3:].any()

    @pytest.mark.parametrize(
        ("count", "rate", "options", "chosen"),
        [
            (12, 0.0, {"frames": 4}, [1, 4, 7, 10]),
            (4, 0.0, {"frames": 4}, [0, 1, 2, 3]),
            (5, 0.0, {"frames": 2}, [1, 3]),
            (12, 10.0, {"frames": 4, "rate": 5.0}, [0, 2, 4, 6]),
            (5, 10.0, {"frames": 4, "rate": 5.0}, [0, 2, 4]),
            (3, 1.0, {"frames": 4, "rate": 2.0}, [0, 0, 1, 1]),
        ],
    )
    def test_frames_are_spread_evenly_or_taken_at_a_rate(self, count, rate, options, chosen):
        asked = []

        def frame(number):
            asked.append(number)
            return np.zeros((4, 4), np.uint8)

        _, mask = make(**options).process((LazyFrames(count, frame), rate))
        assert asked == chosen and mask.sum() == len(chosen)

    @pytest.mark.parametrize(
        ("raw", "said"),
        [
            ((scene()[:0], 1.0), "the clip has no frames"),
            ((scene(), np.nan), "frame rate of nan"),
            (scene(), "a clip must be a tuple .frames, rate., not ndarray"),
            ((scene(), 0.0), "has no frame rate; leave `rate` unset"),
        ],
    )
    def test_values_of_the_wrong_shape_are_refused(self, raw, said):
        with pytest.raises(ValueError, match=said):
            make(rate=2.0).process(raw)


class TestAugmentation:
    @pytest.mark.parametrize("kind", IMAGE)
    def test_image_augmentations_change_all_frames_alike(self, kind):
        cls = AUGMENTATIONS["video"][kind]
        still = np.repeat(scene()[:1], 4, axis=0)
        changed = set()
        for seed in range(10):
            clip = cls(cls.Config())(Clip(still, 2.0), draws(seed))
            assert len(clip.frames) == 4 and clip.rate == 2.0
            for frame in clip.frames:
                np.testing.assert_array_equal(frame, clip.frames[0])
            changed.add(clip.frames[0].tobytes())
        assert len(changed) > 1

    def test_clips_survive_pickling(self):
        for kind in IMAGE:
            augmentation = AUGMENTATIONS["video"][kind](IMAGE[kind].Config())
            again = pickle.loads(pickle.dumps(augmentation))
            for one, other in zip(
                augmentation((scene(), 1.0), draws(3)).frames, again((scene(), 1.0), draws(3)).frames, strict=True
            ):
                np.testing.assert_array_equal(one, other)

    def test_unused_frames_are_not_augmented(self, monkeypatch):
        calls = []
        monkeypatch.setattr(IMAGE["flip"], "__call__", lambda self, raw, draws: calls.append(1) or raw)
        clip = AUGMENTATIONS["video"]["flip"](IMAGE["flip"].Config())((scene(frames=12), 1.0), draws())
        make(frames=3).process(clip)
        assert len(calls) == 3

    def test_temporal_crops_are_contiguous_and_within_bounds(self):
        frames, counts = np.arange(100, dtype=np.uint8).reshape(100, 1, 1), []
        for seed in range(300):
            clip = TemporalCrop(TemporalCrop.Config(smallest=0.3))(Clip(frames, 5.0), draws(seed))
            found = [int(frame[0, 0]) for frame in clip.frames]
            assert found == list(range(found[0], found[0] + len(found))) and found[-1] < 100 and clip.rate == 5.0
            counts.append(len(found))
        assert 30 <= min(counts) < 35 and 95 < max(counts) <= 100
        assert len(TemporalCrop(TemporalCrop.Config(smallest=0.0))(Clip(frames[:1], 5.0), draws()).frames) == 1

    def test_reverse_matches_numpy(self):
        for probability in (0.0, 1.0):
            clip = Reverse(Reverse.Config(probability=probability))(Clip(scene(), 1.0), draws())
            np.testing.assert_array_equal(pixels(clip), scene()[::-1] if probability else scene())


class TestEncoder:
    def test_tubelets_have_positions_and_a_mask(self):
        config = VideoTransformer.Config(width=12, depth=1, heads=2, patch=4, tubelet=2)
        encoder = VideoTransformer(
            config, InputSpec((6, 8, 4, 1), "float32", 1), precision=Precision(), rngs=nnx.Rngs(0)
        )
        mask = np.arange(6) < np.array([[6], [3], [0]])
        values = draws().normal(size=(3, 6, 8, 4, 1)).astype(np.float32) * mask[..., None, None, None]
        run = jax.jit(lambda values: encoder(Input(values, mask), None))
        tokens = run(values)
        assert tokens.positions[0].tolist() == [[t, row, 0] for t in range(3) for row in range(2)]
        assert tokens.mask.tolist() == [[True] * 6, [True] * 4 + [False] * 2, [False] * 6]
        # The same frame at another time gives another token.
        assert np.abs(run(values[:, ::-1]).values[0] - tokens.values[0]).max() > 1e-2

    @pytest.mark.parametrize("changes", [{"tubelet": 4}, {"patch": 3}])
    def test_sizes_that_do_not_divide_the_clip_are_refused(self, changes):
        config = VideoTransformer.Config(**{"width": 12, "depth": 1, "heads": 2, "patch": 4, **changes})
        with pytest.raises(ValueError, match="does not divide the clip of 6 x 8 x 4; choose"):
            VideoTransformer(config, InputSpec((6, 8, 4, 1), "float32", 1), precision=Precision(), rngs=nnx.Rngs(0))


class TestPrepare:
    def test_faults_are_found_and_nothing_else(self):
        kind = KINDS["video"]()

        def found(raw):
            return list(kind.faults(kind.measure(kind.decode(raw))))

        assert found(scene()) == [] and found(scene()[:1]) == found(np.repeat(scene()[:1], 9, axis=0)) == ["constant"]
        assert found(scene() // 60 + 9) == ["blank"]

    @pytest.mark.parametrize("change", ["mp4", "small", "slower", "crop"])
    def test_a_clip_that_was_changed_a_little_is_near_and_others_are_not(self, change):
        kind, raw = KINDS["video"](), scene(5, 24, 96)
        changed = {
            "mp4": lambda: video(raw),
            "small": lambda: npy(np.stack([np.asarray(PIL.Image.fromarray(f).resize((64, 60))) for f in raw])),
            "crop": lambda: npy(raw[:, 5:-3, 4:-6]),
            "slower": lambda: npy(np.repeat(raw, 2, axis=0)),
        }[change]()
        signatures = [kind.signature(kind.decode(each)) for each in (changed, *(scene(n, 24, 96) for n in range(10)))]
        pairs = kind.candidates(np.stack([kind.hashes(signature) for signature in signatures]))
        assert [0, 6] in pairs.tolist()
        similar = [kind.similarity(signatures[0], other) >= kind.config.similarity for other in signatures[1:]]
        assert np.flatnonzero(similar).tolist() == [5]
        # The same frames in reverse order.
        assert kind.similarity(signatures[0], kind.signature(kind.decode(raw[::-1]))) < kind.config.similarity

    def test_files_and_folders_become_records(self, tmp_path):
        folder, truth, rows = tmp_path / "in", {}, ["key,clip,kind"]
        folder.mkdir()
        for number in range(12):
            frames = truth[f"k{number}"] = scene(number, 10 + number)
            name = f"{number}" + ("", ".mp4", ".gif", ".npy")[number % 4]
            if number % 4 == 0:
                (folder / name).mkdir()
                for place, frame in enumerate(frames):
                    (folder / name / f"{place}.png").write_bytes(png(frame))
            else:
                data = (None, video, lambda f: animation(f, "GIF"), npy)[number % 4](frames)
                (folder / name).write_bytes(data)
            rows.append(f"k{number},{name},{'ab'[number % 2]}")
        (folder / "cut.mp4").write_bytes(video(scene(1))[:-900])
        (folder / "copy.webp").write_bytes(animation(truth["k3"], "WEBP"))
        (folder / "still.npy").write_bytes(npy(np.repeat(scene(3)[:1], 9, axis=0)))
        rows += ["cut,cut.mp4,a", "copy,copy.webp,b", "still,still.npy,b", "gone,nowhere,b"]
        (folder / "data.csv").write_text("\n".join(rows) + "\n")
        config = PrepareConfig(source=str(folder / "data.csv"), columns={"clip": "clip:video", "kind": "kind"})
        output = prepare(config, tmp_path / "out", Local(1)).folder
        found = [json.loads(line) for line in (output / "findings.jsonl").read_text().splitlines()]
        assert {line["key"]: line["check"] for line in found} == {
            "cut": "unreadable", "gone": "unreadable", "copy": "duplicate", "still": "constant",
        }  # fmt: skip
        dataset = Prepared(Prepared.Config(path=str(output)))
        for split in dataset.splits:
            source = dataset.source(split)
            for number in range(len(source)):
                clip, key = source[number].inputs["clip"], source.stored(number)["key"].decode()
                assert np.abs(pixels(clip).astype(int) - truth.pop(key)).mean() < 12
                assert clip.rate == (10 if int(key[1:]) % 4 in (1, 2) else 0)
                assert make().process(clip)[1].all()
        assert not truth
        page = (output / "card.html").read_text()
        assert "frames of 48 x 48, 10 per second" in page and 'src="data:video/mp4;base64,' in page
