"""Sensor series: file formats, missing values, standardisation, augmentation, and checks in preparation."""

from __future__ import annotations

import io
import json

import numpy as np
import pytest
import scipy.interpolate

from mmjax.config import build
from mmjax.datasets import Prepared
from mmjax.errors import UserError
from mmjax.modalities.augmentation import AUGMENTATIONS
from mmjax.modalities.augmentation.series_jitter import SeriesJitter
from mmjax.modalities.augmentation.series_scaling import SeriesScaling
from mmjax.modalities.augmentation.time_warp import TimeWarp
from mmjax.modalities.series import MAX_CHANNELS, Series, read_series
from mmjax.prepare.kinds import KINDS, File, Unreadable
from mmjax.prepare.options import PrepareConfig
from mmjax.prepare.preparation import prepare
from mmjax.prepare.runners import Local


def npy(values, **options) -> bytes:
    buffer = io.BytesIO()
    np.save(buffer, values, **options)
    return buffer.getvalue()


def draws(seed=0):
    return np.random.Generator(np.random.Philox(seed))


def make(**fields) -> Series:
    return Series(build(Series.Config, fields, "series"))


class TestFiles:
    @pytest.mark.parametrize("dtype", ["<f8", ">f4", "<i2", "u1", "?"])
    @pytest.mark.parametrize("order", ["C", "F"])
    def test_arrays_of_any_dtype_and_order_are_read(self, dtype, order):
        values = np.asarray(np.arange(12).reshape(6, 2) % 7, dtype, order=order)
        np.testing.assert_array_equal(read_series(npy(values)), values.astype(float))
        np.testing.assert_array_equal(read_series(npy(values[:, 0])), values[:, :1].astype(float))

    @pytest.mark.parametrize(
        "text",
        [
            "a,b\n1,2\n,4\n\n7,8\n",
            "1,2\nNA,4\n,\n7,8",
            "1;2\n;4\n;\n7;8\n",
            "1\t2\r\nnan\t4\r\n\r\n7\t8\r\n",
            '\ufeff"a","b, in volts"\n1,2\n?,4\n,\n7,8\n\n',
        ],
    )
    def test_tables_with_and_without_names_and_with_gaps_are_read(self, text):
        nothing = np.nan
        np.testing.assert_array_equal(read_series(text.encode()), [[1, 2], [nothing, 4], [nothing, nothing], [7, 8]])

    def test_one_channel_with_a_gap_keeps_its_step(self):
        np.testing.assert_array_equal(read_series(b"volts\n1\n\n3\n")[:, 0], [1, np.nan, 3])

    @pytest.mark.parametrize(
        ("data", "said"),
        [
            (b"", "no steps"),
            (b"a,b\n", "no steps"),
            (b"a,b\n1,2\n3\n", "line 3 has 1 values instead of 2"),
            (b"a,b\n1,2\n3,x\n", "line 3 has a value that is not a number: '3,x'"),
            (b'"a\n', "not valid CSV"),
            (b"\xff\xfe\x00", "neither NPY nor UTF-8 text"),
            (npy(np.arange(50.0))[:-8], "truncated: 392 of 400 bytes"),
            (npy(np.arange(50.0))[:40], "not a valid NPY file"),
            (npy(np.array([{}, []], object), allow_pickle=True), "not integer, float or boolean"),
            (npy(np.array(["a"])), "not integer, float or boolean"),
            (npy(np.zeros((2, 3, 4))), r"not float64 \[2, 3, 4\]"),
            (npy(np.zeros((0, 3))), "no steps"),
            (npy(np.zeros((3, MAX_CHANNELS + 1))), "at most 256 channels"),
        ],
    )
    def test_files_without_a_series_are_refused_with_a_reason(self, data, said, tmp_path):
        with pytest.raises(ValueError, match=said):
            read_series(data)
        with pytest.raises(Unreadable, match=said):
            KINDS["series"]().decode(File("x", data))
        (tmp_path / "x").write_bytes(data)
        with pytest.raises(UserError, match=said) as caught:
            make().read(str(tmp_path / "x"), "--sensor")
        assert "\n" not in str(caught.value)

    def test_a_header_that_promises_more_than_memory_holds_is_refused_at_once(self):
        data = npy(np.zeros((10, 7))).replace(b"(10, 7), }" + b" " * 12, b"(99999999999999, 7), }")
        with pytest.raises(ValueError, match="truncated"):
            read_series(data)

    def test_a_pickle_is_never_loaded(self):
        with pytest.raises(ValueError):
            read_series(b"cos\nsystem\n(S'touch /tmp/evil'\ntR.")
        archive = io.BytesIO()
        np.savez(archive, np.arange(3))
        with pytest.raises(ValueError):
            read_series(archive.getvalue())


class TestSeries:
    def test_values_are_standardised_and_missing_ones_are_the_mean_with_flag_0(self):
        series = make(length=4, channels=2, mean=[1.0, 10.0], std=[2.0, 5.0])
        values, mask = series.process(np.array([[3.0, np.nan], [np.nan, np.inf], [1.0, 1000.0]]))
        np.testing.assert_array_equal(values, [[1, 0, 1, 0], [0, 0, 0, 0], [0, 10, 1, 1], [0, 0, 0, 0]])
        assert mask.tolist() == [True, False, True, False]

    def test_a_long_series_is_cut_and_one_without_channels_has_one(self):
        values, mask = make(length=3).process(np.arange(9))
        assert values[:, 0].tolist() == [0, 1, 2] and mask.all()

    def test_values_are_centred_before_they_are_rounded(self):
        """Unix time in steps of one second, where float32 has a resolution of 128 s."""
        times = 1.7e9 + np.arange(256.0)
        mean, std = times.mean(), times.std()
        values, _ = make(length=256, channels=1, mean=[mean], std=[std]).process(times)
        np.testing.assert_allclose(values[:, 0], (times - mean) / std, rtol=1e-6)

    @pytest.mark.parametrize(
        ("raw", "said"),
        [
            (np.zeros((5, 3)), "the series has 3 channels instead of 2"),
            (np.full((5, 2), np.nan), "all values of the first 4 steps are missing"),
            (np.zeros((0, 2)), "no steps"),
            (np.array([["a", "b"]]), "a series must be numeric"),
        ],
    )
    def test_values_of_the_wrong_shape_are_refused(self, raw, said):
        with pytest.raises(ValueError, match=said):
            make(length=4, channels=2).process(raw)

    @pytest.mark.parametrize(
        "fields", [{"mean": [1.0, 2.0]}, {"channels": 2, "std": [1.0]}, {"std": [0.0]}, {"length": 0}]
    )
    def test_an_invalid_config_is_a_user_error(self, fields):
        with pytest.raises(UserError):
            make(**fields)


class TestAugmentation:
    RAW = np.stack([np.sin(np.arange(1.0, 401.0) / 9), 100 * np.cos(np.arange(400.0) / 20)], axis=1)

    def test_jitter_is_in_proportion_to_the_deviation_of_each_channel_and_leaves_gaps(self):
        raw = self.RAW.copy()
        raw[7, 0] = np.nan
        found = SeriesJitter(SeriesJitter.Config(std=0.1))(raw, draws())
        assert np.isnan(found[7, 0]) and np.isnan(found).sum() == 1
        shares = np.nanstd(found - raw, axis=0) / np.nanstd(raw, axis=0)
        np.testing.assert_allclose(shares, 0.1, rtol=0.15)

    def test_scaling_is_one_factor_a_channel(self):
        scaling, centred = SeriesScaling(SeriesScaling.Config(std=0.2)), self.RAW - self.RAW.mean(axis=0)

        def ratios(seed):
            return (scaling(self.RAW, draws(seed)) - self.RAW.mean(axis=0)) / centred

        factors = np.array([ratios(seed)[1] for seed in range(500)])
        ratio = ratios(3)
        np.testing.assert_allclose(ratio, np.broadcast_to(ratio[:1], ratio.shape))
        np.testing.assert_allclose(factors.mean(axis=0), 1, atol=0.04)
        np.testing.assert_allclose(factors.std(axis=0), 0.2, rtol=0.15)

    @pytest.mark.parametrize("kind", sorted(AUGMENTATIONS["series"]))
    def test_augmentation_commutes_with_an_offset_and_a_unit(self, kind):
        """Augmenting 1013 ± 5 hPa, or seconds since 1970, equals augmenting the centred channel."""
        augment = AUGMENTATIONS["series"][kind](AUGMENTATIONS["series"][kind].Config())
        raw, offset, unit = self.RAW.copy(), np.array([1.7e9, -1013.0]), np.array([1.0, 1e-3])
        raw[3, 1] = np.nan
        for seed in range(20):
            plain, moved = augment(raw, draws(seed)), augment(offset + unit * raw, draws(seed))
            np.testing.assert_allclose((moved - offset) / unit, plain, atol=2e-6 * np.nanmax(np.abs(plain)))
        constant = augment(np.full((9, 1), 1013.0), draws())
        np.testing.assert_allclose(constant, 1013.0, rtol=1e-12)

    def test_a_warp_without_strength_is_the_identity(self):
        np.testing.assert_allclose(TimeWarp(TimeWarp.Config(std=0.0))(self.RAW, draws()), self.RAW, atol=1e-9)

    def test_a_warp_moves_values_along_one_smooth_path_that_keeps_both_ends(self):
        steps = np.arange(200.0)
        for seed in range(20):
            warp = TimeWarp(TimeWarp.Config(std=0.3))
            path = warp(np.stack([steps, steps**2], axis=1), draws(seed))
            # The values of a warped identity are the warping path itself.
            assert path[0, 0] == 0 and path[-1, 0] == pytest.approx(199) and (np.diff(path[:, 0]) > 0).all()
            np.testing.assert_allclose(path[:, 1], np.interp(path[:, 0], steps, steps**2), atol=1e-6)
            assert np.abs(np.diff(path[:, 0], 2)).max() < 0.2 and np.abs(path[:, 0] - steps).max() > 1

    def test_warps_stretch_gaps_like_values(self):
        raw = np.arange(100.0)
        raw[40:60] = np.nan
        for seed in range(20):
            found = TimeWarp(TimeWarp.Config())(raw, draws(seed))[:, 0]
            whole = TimeWarp(TimeWarp.Config())(np.arange(100.0), draws(seed))[:, 0]
            gap = np.isnan(found)
            assert (gap == ((whole > 39.5) & (whole < 59.5)) | (np.abs(whole % 1 - 0.5) < 1e-9)).all()
            assert np.abs(found - whole)[~gap].max() <= 0.5
        assert TimeWarp(TimeWarp.Config())(np.array([3.0]), draws()).tolist() == [[3.0]]


class TestPrepare:
    @staticmethod
    def wave(seed: int, steps: int = 80) -> np.ndarray:
        noise = draws(seed).normal(size=(steps + 4, 2))
        return np.stack([np.convolve(channel, np.ones(5) / 5, "valid") for channel in noise.T], axis=1) * [1, 30] + [
            0,
            7,
        ]

    def test_faults_are_found_and_nothing_else(self):
        kind = KINDS["series"]()

        def found(raw):
            return list(kind.faults(kind.measure(kind.decode(raw))))

        gaps = self.wave(0)
        gaps[3:9, 1] = np.nan
        assert found(self.wave(0)) == found(gaps) == []
        assert found(np.full((9, 2), 3.0)) == ["constant"] and found(np.array([1.0, np.inf, 2.0])) == ["not_finite"]
        assert found(np.full((9, 2), np.nan)) == ["empty"] and found(np.array([1.0, 1e300])) == ["not_finite"]

    @pytest.mark.parametrize("change", ["csv", "resampled"])
    def test_a_series_that_was_changed_a_little_is_near_and_others_are_not(self, change):
        kind, raw = KINDS["series"](), self.wave(5)
        changed = {
            "csv": lambda: read_series("\n".join(f"{a:.3f},{b:.3f}" for a, b in raw).encode()),
            "resampled": lambda: scipy.interpolate.interp1d(np.arange(80), raw, axis=0)(np.linspace(0, 79, 300)),
        }[change]()
        signatures = [kind.signature(raw) for raw in (changed, *(self.wave(seed) for seed in range(30)))]
        pairs = kind.candidates(np.stack([kind.hashes(signature) for signature in signatures]))
        assert [0, 6] in pairs.tolist()
        similar = [kind.similarity(signatures[0], other) >= kind.config.similarity for other in signatures[1:]]
        assert np.flatnonzero(similar).tolist() == [5]
        assert kind.similarity(kind.signature(raw), kind.signature(2 * raw)) < kind.config.similarity
        assert kind.similarity(kind.signature(raw), kind.signature(raw[:, :1])) == 0

    def test_a_folder_of_files_becomes_records_with_the_statistics_of_training(self, tmp_path):
        folder, raw = tmp_path / "in", {}
        for number in range(20):
            values = self.wave(number, 60 + number)
            values[number, 0] = np.nan
            path = folder / "ab"[number % 2] / f"{number:02}"
            path.parent.mkdir(parents=True, exist_ok=True)
            if number % 4:
                path.with_suffix(".npy").write_bytes(npy(values.astype(np.float32)))
            else:
                rows = [",".join("" if np.isnan(v) else repr(float(np.float32(v))) for v in row) for row in values]
                path.with_suffix(".csv").write_text("x,y\n" + "\n".join(rows) + "\n")
            raw[f"{'ab'[number % 2]}/{number:02}"] = values.astype(np.float32)
        (folder / "a" / "80.npy").write_bytes(npy(raw["a/00"])[:-9])
        (folder / "a" / "81.npy").write_bytes(npy(raw["a/00"]))
        (folder / "a" / "82.npy").write_bytes(npy(np.zeros((9, 2))))
        (folder / "b" / "83.npy").write_bytes(npy(raw["b/01"][:50, :1]))
        output = prepare(PrepareConfig(source=str(folder)), tmp_path / "out", Local(1)).folder
        lines = [json.loads(line) for line in (output / "findings.jsonl").read_text().splitlines()]
        found = {line["key"]: line["check"] for line in lines}
        assert found == {"a/80": "unreadable", "a/82": "constant", "a/81": "duplicate"}
        raw["b/83"] = np.stack([raw["b/01"][:50, 0], np.full(50, np.nan)], axis=1)
        dataset, training = Prepared(Prepared.Config(path=str(output))), []
        for split in dataset.splits:
            source = dataset.source(split)
            for number in range(len(source)):
                key, stored = source.stored(number)["key"].decode(), source[number].inputs["series"]
                np.testing.assert_array_equal(stored, raw.pop(key))
                training += [stored] if split == "train" else []
        assert not raw
        joined = np.concatenate(training).astype(np.float64)
        facts = dataset.dataset_options["series"]
        assert facts["channels"] == 2
        np.testing.assert_allclose(facts["mean"], np.nanmean(joined, axis=0), rtol=1e-6)
        np.testing.assert_allclose(facts["std"], np.nanstd(joined, axis=0), rtol=1e-6)
        values, mask = make(length=64, **facts).process(training[0])
        assert np.isfinite(values).all() and mask.any()
        assert (output / "card.html").read_text().count('<path d="M') > 10


def test_series_that_share_their_times_are_no_copies_of_each_other():
    kind = KINDS["series"]()
    draws = np.random.default_rng(0)
    times = np.arange(0.0, 1280.0, 10.0)
    one, other = (np.column_stack([times, draws.normal(size=(128, 3))]) for _ in range(2))
    near = one + np.array([0, 1e-3, 1e-3, 1e-3])
    signatures = [kind.signature(each) for each in (one, other, near)]
    assert kind.similarity(signatures[0], signatures[1]) < 0.5
    assert kind.similarity(signatures[0], signatures[2]) > 0.99


@pytest.mark.parametrize(
    "text, expected",
    [
        ("a\tb\n1\t2\n3\t\n", [[1, 2], [3, np.nan]]),
        (",0,1\n0,5.0,6.0\n1,7.0,8.0\n", [[5, 6], [7, 8]]),
    ],
)
def test_trailing_gaps_and_the_numbers_that_pandas_writes_are_read(text, expected):
    np.testing.assert_array_equal(read_series(text.encode()), expected)
