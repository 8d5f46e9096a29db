"""Point clouds: file formats, subsampling, augmentation, an encoder invariant to order, and checks in preparation."""

from __future__ import annotations

import contextlib
import io
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from mmjax.config import build
from mmjax.datasets import Prepared
from mmjax.encoders.point_transformer import PointTransformer, farthest_point_sampling, nearest_neighbours
from mmjax.errors import UserError
from mmjax.layers import Precision
from mmjax.modalities import points as host
from mmjax.modalities.augmentation import AUGMENTATIONS
from mmjax.modalities.augmentation.points_dropout import PointsDropout
from mmjax.modalities.augmentation.points_jitter import PointsJitter
from mmjax.modalities.augmentation.points_rotation import PointsRotation
from mmjax.modalities.augmentation.points_scaling import PointsScaling
from mmjax.modalities.point_files import read_points
from mmjax.modalities.points import Points
from mmjax.prepare.kinds import KINDS, File, Unreadable
from mmjax.prepare.options import PrepareConfig
from mmjax.prepare.preparation import prepare
from mmjax.prepare.runners import Local
from mmjax.tokens import Input, InputSpec


def draws(seed=0):
    return np.random.Generator(np.random.Philox(seed))


def cloud(seed: int = 0, points: int = 50, features: int = 0) -> np.ndarray:
    """Points of a random ellipsoid at a random position, exact in float32."""
    draw = draws(seed)
    places = draw.normal(size=(points, 3)) * draw.uniform(0.5, 3, 3) + draw.normal(size=3) * 10
    return np.concatenate([places, draw.uniform(0, 9, (points, features))], axis=1).astype(np.float32)


def npy(values) -> bytes:
    buffer = io.BytesIO()
    np.save(buffer, values)
    return buffer.getvalue()


HEADER = """# .PCD v0.7 - Point Cloud Data file format
VERSION 0.7
FIELDS {fields}
SIZE {sizes}
TYPE {types}
COUNT {counts}
WIDTH {width}
HEIGHT {height}
VIEWPOINT 0 0 0 1 0 0 0
POINTS {points}
DATA {data}
"""


def pcd(body: bytes, points: int, **changes) -> bytes:
    fields = {"fields": "x y z", "sizes": "4 4 4", "types": "F F F", "counts": "1 1 1", "width": points, "height": 1}
    return HEADER.format(**{**fields, "points": points, "data": "binary", **changes}).encode() + body


def make(**fields) -> Points:
    return Points(build(Points.Config, fields, "points"))


class TestFiles:
    def test_all_formats_hold_the_same_points(self):
        values = cloud(features=1)
        text = "\n".join(" ".join(map(repr, row)) for row in values.tolist()).encode()
        extra = {"fields": "x y z intensity", "sizes": "4 4 4 4", "types": "F F F F", "counts": "1 1 1 1"}
        files = {
            "a.npy": npy(values),
            "a.BIN": values.astype("<f4").tobytes(),
            "a.pcd": pcd(values.astype("<f4").tobytes(), 50, **extra),
            "b.pcd": pcd(text, 50, **extra, data="ascii", width=10, height=5),
        }
        for name, data in files.items():
            np.testing.assert_array_equal(read_points(data, name), values, err_msg=name)

    @pytest.mark.parametrize("mark", [b"# .P", b"\x93NUM", b" \n# "])
    def test_a_bin_file_may_begin_with_any_bytes(self, mark):
        data = mark + cloud(features=1).tobytes()[4:]
        assert read_points(data, "a.bin").astype("<f4").tobytes() == data

    @pytest.mark.parametrize("data", ["ascii", "binary"])
    def test_fields_in_any_order_with_gaps_colours_and_vectors_are_read(self, data):
        colour = (10 << 16) + (200 << 8) + 30
        packed = np.array([colour], np.uint32).view("<f4")[0]
        layout = [
            ("z", "<f8", 1),
            ("_", "<u1", 3),
            ("x", "<i2", 1),
            ("rgb", "<f4", 1),
            ("n", "<f4", 2),
            ("y", "<f4", 1),
        ]
        row = ((3.5,), (1, 2, 3), (-7,), (packed,), (0.25, 0.5), (8.0,))
        if data == "binary":
            dtype = np.dtype([(name, kind, (count,)) for name, kind, count in layout])
            body = np.array([row] * 2, dtype).tobytes()
        else:
            body = (" ".join(repr(float(value)) for part in row for value in part) + "\n").encode() * 2
        found = read_points(
            pcd(body, 2, fields=" ".join(n for n, _, _ in layout), counts=" ".join(str(c) for _, _, c in layout),
                sizes=" ".join(k[2] for _, k, _ in layout), types="F U I F F F", data=data), "a.pcd",
        )  # fmt: skip
        np.testing.assert_array_equal(found, [[-7, 8, 3.5, 10, 200, 30, 0.25, 0.5]] * 2)

    @pytest.mark.parametrize(
        ("name", "data", "said"),
        [
            ("a.bin", b"", "the point cloud is empty"),
            ("a.bin", b"123", "3 bytes are not a multiple of 4 float32 values"),
            ("a.pcd", b"", "not a PCD, NPY or BIN file"),
            ("a.pcd", b"# .PCD v0.7\nVERSION 0.7\n", "has no DATA line"),
            ("a.pcd", b"# .PCD v0.7\nDATA ascii\n1 2 3\n", "has no FIELDS"),
            ("a.pcd", pcd(b"\0" * 119, 10), "truncated: 119 of 120 bytes"),
            ("a.pcd", pcd(b"1 2 3\n4 5\n", 2, data="ascii"), "5 numbers instead of 2 x 3"),
            ("a.pcd", pcd(b"1 2 3\n4 5 x\n", 2, data="ascii"), "text instead of numbers"),
            ("a.pcd", pcd(b"", 2, data="binary_compressed"), "unsupported DATA binary_compressed; save"),
            ("a.pcd", pcd(b"", 2, fields="x y w"), "must have exactly one field 'z'"),
            ("a.pcd", pcd(b"", 2, sizes="4 4"), "differ in length"),
            ("a.pcd", pcd(b"", 2, sizes="4 4 3"), "unsupported TYPE F with SIZE 3"),
            ("a.pcd", pcd(b"", 2, width="two"), "text instead of numbers"),
            ("a.pcd", pcd(b"", 10**15), "truncated"),
            ("a.pcd", pcd(b"", 2, width=3), "invalid size: 2 points"),
            ("a.pcd", pcd(b"", 2, counts="1 1 -1"), "invalid size: 2 points"),
            ("a.npy", npy(np.zeros((5, 2))), "points must be numeric"),
            ("a.npy", npy(np.zeros((5, 3)))[:-3], "truncated"),
        ],
    )
    def test_files_without_a_cloud_are_refused_with_a_reason(self, name, data, said, tmp_path):
        with pytest.raises(Unreadable, match=said):
            KINDS["points"]().decode(File(name, data))
        (tmp_path / name).write_bytes(data)
        with pytest.raises(UserError, match=said) as caught:
            make().read(str(tmp_path / name), "--cloud")
        assert "\n" not in str(caught.value)

    def test_damaged_files_raise_value_errors_only(self):
        whole, draw = pcd(cloud().tobytes(), 50), draws(1)
        for _ in range(300):
            data = bytearray(whole)
            for place in draw.integers(0, 260, 4):
                data[place] = draw.integers(0, 256)
            with contextlib.suppress(ValueError):
                assert read_points(bytes(data), "a.pcd").shape[1] >= 3


class TestPoints:
    def test_a_cloud_is_centred_scaled_and_padded(self):
        raw = np.array([[1.0, 1, 1], [3, 1, 1], [1, 5, 1], [3, 5, 1], [np.nan, 0, 0], [0, np.inf, 0]])
        values, mask = make(points=6).process(raw)
        expected = np.array([[-1, -2, 0], [1, -2, 0], [-1, 2, 0], [1, 2, 0]])
        np.testing.assert_allclose(values[:4], expected / np.sqrt(5), rtol=1e-6)
        assert mask.tolist() == [True] * 4 + [False] * 2 and not values[4:].any()
        np.testing.assert_allclose(make(points=6, normalise="centre").process(raw)[0][:4], expected)
        np.testing.assert_allclose(make(points=6, normalise="none").process(raw)[0][:4], raw[:4])
        assert not make(points=2).process(np.full((2, 3), 4.0))[0].any()

    def test_features_are_standardised_and_missing_ones_are_the_mean(self):
        points = make(points=3, features=2, mean=[1.0, 5.0], std=[2.0, 10.0], normalise="none")
        raw = np.array([[0.0, 0, 0, 3, np.nan], [0, 0, 0, np.inf, 15], [0, 0, 0, 1e9, 5]])
        assert points.process(raw)[0][:, 3:].tolist() == [[1, 0], [0, 1], [10, 0]]

    def test_a_stride_takes_points_evenly_and_twice_the_same(self):
        raw = np.arange(300.0).reshape(100, 3)
        values, mask = make(points=25, normalise="none").process(raw)
        np.testing.assert_array_equal(values, raw[::4])
        assert mask.all()

    def test_the_farthest_points_are_the_same_whatever_the_order_and_cover_the_cloud(self):
        raw = np.concatenate([draws(0).normal(size=(400, 3)) * 0.01, np.diag([5.0, 6.0, 7.0])])
        points = make(points=20, choose="farthest")
        chosen = [points.process(raw[draws(seed).permutation(403)])[0] for seed in range(3)]
        for other in chosen[1:]:
            np.testing.assert_allclose(other, chosen[0], atol=1e-6)
        # The three isolated points are selected; at random, each would be with probability 1/20.
        assert (np.linalg.norm(chosen[0], axis=1) > 0.5).sum() == 3

    @pytest.mark.parametrize(
        ("raw", "said"),
        [
            (np.zeros((5, 4)), "the points have 1 features instead of 0"),
            (np.full((5, 3), np.nan), "no point has finite coordinates"),
            (np.zeros((0, 3)), "the point cloud is empty"),
            (np.zeros((5, 2)), "points must be numeric"),
        ],
    )
    def test_values_of_the_wrong_shape_are_refused(self, raw, said):
        with pytest.raises(ValueError, match=said):
            make().process(raw)

    @pytest.mark.parametrize("fields", [{"mean": [1.0]}, {"features": 1, "std": [0.0]}, {"points": 0}])
    def test_an_invalid_config_is_a_user_error(self, fields):
        with pytest.raises(UserError):
            make(**fields)


class TestAugmentation:
    @pytest.mark.parametrize("axis", ["x", "y", "z", "any"])
    def test_a_rotation_keeps_lengths_and_sides_and_its_axis(self, axis):
        raw = cloud(features=1)
        for seed in range(20):
            found = PointsRotation(PointsRotation.Config(axis=axis))(raw, draws(seed))
            np.testing.assert_allclose(found[:, :3] @ found[:, :3].T, raw[:, :3] @ raw[:, :3].T, rtol=1e-4, atol=1e-4)
            matrix = np.linalg.lstsq(raw[:, :3], found[:, :3], rcond=None)[0]
            assert np.linalg.det(matrix) == pytest.approx(1, abs=1e-5)
            np.testing.assert_array_equal(found[:, 3], raw[:, 3])
            if axis != "any":
                np.testing.assert_allclose(found[:, "xyz".index(axis)], raw[:, "xyz".index(axis)], rtol=1e-6)

    def test_rotations_respect_the_maximum_angle_and_any_covers_all_directions(self):
        config = PointsRotation.Config(degrees=30.0)
        turned = [PointsRotation(config)(np.array([[1.0, 0, 0]]), draws(seed))[0] for seed in range(300)]
        angles = np.rad2deg([np.arctan2(y, x) for x, y, _ in turned])
        assert 27 < angles.max() <= 30 and -30 <= angles.min() < -27
        anywhere = PointsRotation(PointsRotation.Config(axis="any"))
        found = np.array([anywhere(np.array([[1.0, 0, 0]]), draws(seed))[0] for seed in range(2000)])
        np.testing.assert_allclose(found.mean(axis=0), 0, atol=0.05)
        np.testing.assert_allclose(found.T @ found / 2000, np.eye(3) / 3, atol=0.03)

    def test_dropout_leaves_a_part_in_its_order_and_never_nothing(self):
        raw, shares = cloud(points=400), []
        for seed in range(300):
            found = PointsDropout(PointsDropout.Config(largest=0.6))(raw, draws(seed))
            kept = [np.flatnonzero((raw == row).all(axis=1))[0] for row in found[::40]]
            assert kept == sorted(kept)
            shares.append(1 - len(found) / 400)
        assert max(shares) < 0.68 and abs(np.mean(shares) - 0.3) < 0.03
        assert all(len(PointsDropout(PointsDropout.Config(largest=0.99))(raw[:1], draws(s))) == 1 for s in range(50))

    def test_jitter_is_in_proportion_to_the_size_of_the_cloud(self):
        for scale in (1.0, 1000.0):
            raw = scale * cloud(points=4000, features=1).astype(np.float64)
            found = PointsJitter(PointsJitter.Config(std=0.02))(raw, draws())
            size = np.sqrt(np.square(raw[:, :3] - raw[:, :3].mean(axis=0)).sum(axis=1).mean())
            assert (found - raw)[:, :3].std() == pytest.approx(0.02 * size, rel=0.05)

    def test_scaling_is_one_factor_an_axis(self):
        raw = cloud(features=1)
        factors = []
        for seed in range(200):
            ratio = PointsScaling(PointsScaling.Config(change=0.3))(raw, draws(seed)) / raw
            np.testing.assert_allclose(ratio, np.broadcast_to(ratio[:1], ratio.shape), rtol=1e-6)
            factors.append(ratio[0])
        assert (np.array(factors)[:, 3] == 1).all()
        assert 0.7 <= np.min(factors) < 0.71 and 1.29 < np.max(factors) <= 1.3


class TestEncoder:
    def test_the_farthest_points_are_those_of_the_host_and_no_place_is_taken_twice(self):
        places = np.stack([cloud(seed, 30) for seed in range(3)])
        found, real = farthest_point_sampling(jnp.asarray(places), jnp.ones((3, 30), bool), 12)
        for row in range(3):
            np.testing.assert_array_equal(found[row], host.farthest_point_sampling(places[row].astype(np.float64), 12))
        assert real.all()
        mask = jnp.arange(30) < jnp.array([[0], [1], [5]])
        twice = jnp.asarray(places).at[2, 1].set(places[2, 0])
        _, real = farthest_point_sampling(twice, mask, 12)
        assert real.sum(axis=1).tolist() == [0, 1, 4]

    def test_neighbours_are_the_nearest_and_real_ones_come_first(self):
        places = cloud(1, 20)
        found = np.asarray(
            nearest_neighbours(jnp.asarray(places[None, :4]), jnp.asarray(places[None]), jnp.ones((1, 20), bool), 5)
        )
        distances = np.linalg.norm(places[:4, None] - places[None], axis=-1)
        np.testing.assert_array_equal(np.sort(found[0]), np.sort(np.argsort(distances, axis=1)[:, :5]))
        mask = jnp.arange(20)[None] < 3
        found = np.asarray(nearest_neighbours(jnp.asarray(places[None, :3]), jnp.asarray(places[None]), mask, 5))
        assert (np.sort(found[0, :, :3]) == [0, 1, 2]).all()

    def test_point_order_and_masked_points_change_nothing(self):
        config = PointTransformer.Config(width=16, depth=1, heads=2, groups=6, neighbours=5)
        encoder = PointTransformer(config, InputSpec((40, 4), "float32", 1), precision=Precision(), rngs=nnx.Rngs(0))
        raw = np.stack([cloud(seed, 40, 1) for seed in range(4)]) / 10
        mask = np.arange(40) < np.array([[40], [33], [3], [0]])
        run = jax.jit(lambda values, mask: encoder(Input(jnp.where(mask[..., None], values, 0), mask), None))
        truth = run(raw, mask)
        order = draws(5).permutation(40)
        found = run(raw[:, order], mask[:, order])
        np.testing.assert_allclose(found.values, truth.values, atol=1e-5)
        np.testing.assert_array_equal(found.mask, truth.mask)
        np.testing.assert_allclose(found.positions[truth.mask], truth.positions[truth.mask])
        assert truth.mask.sum(axis=1).tolist() == [6, 6, 3, 0] and np.abs(truth.values[0]).max() > 0.1
        # The encoder does react to a moved point.
        moved = raw.copy()
        moved[0, 7, 2] += 2
        assert np.abs(run(moved, mask).values[0] - truth.values[0]).max() > 1e-3

    @pytest.mark.parametrize("name", ["groups", "neighbours"])
    def test_more_patches_than_points_are_refused(self, name):
        config = PointTransformer.Config(**{"width": 16, "depth": 1, "heads": 2, "groups": 4, "neighbours": 4, name: 9})
        with pytest.raises(ValueError, match=f"{name} 9 exceeds the 8 points; choose fewer"):
            PointTransformer(config, InputSpec((8, 3), "float32", 1), precision=Precision(), rngs=nnx.Rngs(0))


class TestPrepare:
    def test_faults_are_found_and_nothing_else(self):
        kind = KINDS["points"]()

        def found(raw):
            return list(kind.faults(kind.measure(kind.decode(raw))))

        some = cloud()
        some[:20] = np.nan
        most = cloud()
        most[:26, 1] = np.inf
        assert found(cloud(features=2)) == found(some) == [] and found(most) == ["not_finite"]
        assert found(np.full((9, 3), 2.0)) == ["constant"] and found(np.full((9, 3), np.nan)) == ["empty"]

    @pytest.mark.parametrize("change", ["order", "rounded", "noisy"])
    def test_a_cloud_that_was_changed_a_little_is_near_and_others_are_not(self, change):
        kind, raw = KINDS["points"](), cloud(5, 500)
        changed = {
            "order": lambda: raw[draws(9).permutation(500)],
            "rounded": lambda: np.round(raw, 2),
            "noisy": lambda: raw + 0.005 * draws(8).normal(size=raw.shape),
        }[change]()
        signatures = [kind.signature(kind.decode(raw)) for raw in (changed, *(cloud(seed, 500) for seed in range(30)))]
        pairs = kind.candidates(np.stack([kind.hashes(signature) for signature in signatures]))
        assert [0, 6] in pairs.tolist()
        similar = [kind.similarity(signatures[0], other) >= kind.config.similarity for other in signatures[1:]]
        assert np.flatnonzero(similar).tolist() == [5]
        for other in (raw * 1.1, raw + 1, raw[:, [1, 0, 2]]):
            assert kind.similarity(kind.signature(raw), kind.signature(other)) < kind.config.similarity

    def test_files_become_records_with_the_statistics_of_training(self, tmp_path):
        folder, raw = tmp_path / "in", {}
        folder.mkdir()
        rows = ["key,scan,kind"]
        for number in range(20):
            values = raw[f"k{number}"] = cloud(number, 30 + number, 1)
            if number % 2:
                name = f"{number}.bin"
                (folder / name).write_bytes(np.insert(values, 3, [np.nan] * 4, axis=0).astype("<f4").tobytes())
            else:
                name = f"{number}.pcd"
                extra = {"fields": "x y z i", "sizes": "4 4 4 4", "types": "F F F F", "counts": "1 1 1 1"}
                (folder / name).write_bytes(pcd(values.tobytes(), len(values), **extra))
            rows.append(f"k{number},{name},{'ab'[number % 2]}")
        (folder / "plain.pcd").write_bytes(pcd(cloud(99, 25).tobytes(), 25))
        (folder / "copy.bin").write_bytes(raw["k4"][::-1].tobytes())
        (folder / "cut.pcd").write_bytes(pcd(cloud(7).tobytes()[:-5], 50))
        (folder / "flat.bin").write_bytes(np.zeros((9, 4), "<f4").tobytes())
        rows += ["plain,plain.pcd,a", "copy,copy.bin,a", "cut,cut.pcd,b", "flat,flat.bin,b"]
        (folder / "data.csv").write_text("\n".join(rows) + "\n")
        output = prepare(PrepareConfig(source=str(folder / "data.csv")), tmp_path / "out", Local(1)).folder
        found = [json.loads(line) for line in (output / "findings.jsonl").read_text().splitlines()]
        assert {line["key"]: line["check"] for line in found} == {
            "copy": "duplicate", "cut": "unreadable", "flat": "constant",
        }  # fmt: skip
        raw["plain"] = np.concatenate([cloud(99, 25), np.full((25, 1), np.nan, np.float32)], axis=1)
        dataset, training = Prepared(Prepared.Config(path=str(output))), []
        assert dataset.inputs == {"scan": "points"}
        for split in dataset.splits:
            source = dataset.source(split)
            for number in range(len(source)):
                stored = source[number].inputs["scan"]
                np.testing.assert_array_equal(stored, raw.pop(source.stored(number)["key"].decode()))
                training += [stored] if split == "train" else []
        assert not raw
        features = np.concatenate(training)[:, 3].astype(np.float64)
        facts = dataset.dataset_options["scan"]
        assert facts["features"] == 1
        np.testing.assert_allclose(facts["mean"], [np.nanmean(features)], rtol=1e-6)
        np.testing.assert_allclose(facts["std"], [np.nanstd(features)], rtol=1e-6)
        values, mask = make(points=40, **facts).process(training[0])
        assert np.isfinite(values).all() and mask.any()
        assert (output / "card.html").read_text().count("points, from above and from the side") > 10


def test_clouds_of_one_shape_with_other_features_are_no_copies():
    kind = KINDS["points"]()
    draws = np.random.default_rng(0)
    places = draws.normal(size=(200, 3))
    one, other = (np.column_stack([places, scale * draws.uniform(size=200)]) for scale in (1.0, 3.0))
    signatures = [kind.signature(each) for each in (one, other, one[::-1])]
    assert kind.similarity(signatures[0], signatures[1]) < 0.5
    assert kind.similarity(signatures[0], signatures[2]) == 1.0
    assert kind.similarity(signatures[0], kind.signature(places)) == 0.0


def test_the_files_of_nuscenes_have_a_fifth_column():
    values = np.arange(40, dtype="<f4").reshape(8, 5)
    np.testing.assert_array_equal(KINDS["points"]().decode(File("sweep.pcd.bin", values.tobytes())), values)


UTM = np.array([500_000.0, 5_400_000.0, 100.0])


def test_coordinates_are_centred_before_they_are_rounded():
    """A surveyed object of 2 m in UTM coordinates, where float32 has a resolution of half a metre."""
    local = draws().uniform(-1, 1, (1000, 3))
    expected = local - local.mean(axis=0)
    expected /= np.linalg.norm(expected, axis=1).max()
    np.testing.assert_allclose(make(points=1000).process(local + UTM)[0], expected, atol=1e-6)
    # Text coordinates keep all digits, whatever type the header declares.
    text = "\n".join(" ".join(map(repr, row)) for row in (local + UTM).tolist()).encode()
    found = make(points=1000).process(read_points(pcd(text, 1000, data="ascii"), "a.pcd"))[0]
    np.testing.assert_allclose(found, expected, atol=1e-6)


@pytest.mark.parametrize("kind", sorted(AUGMENTATIONS["points"]))
def test_augmentation_commutes_with_an_offset_once_the_cloud_is_centred(kind):
    augment = AUGMENTATIONS["points"][kind](AUGMENTATIONS["points"][kind].Config())
    local = draws(1).normal(size=(50, 3)) @ np.diag([1.0, 2.0, 3.0])
    points = make(points=50, normalise="centre")
    for seed in range(5):
        found, expected = (points.process(augment(raw, draws(seed)))[0] for raw in (local + UTM, local))
        np.testing.assert_allclose(found, expected, atol=1e-6)


def test_clouds_in_one_place_are_no_copies_of_each_other():
    kind = KINDS["points"]()
    one, other = (kind.signature(draws(seed).uniform(-1, 1, (200, 3)) * [1, 2, 3] + UTM) for seed in (0, 1))
    away = kind.signature(draws(0).uniform(-1, 1, (200, 3)) * [1, 2, 3] + UTM + 0.3)
    assert kind.similarity(one, one) == 1 and kind.similarity(one, other) < 0.99 and kind.similarity(one, away) < 0.95
