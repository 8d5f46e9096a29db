"""Near duplicates of pictures, and of whatever can be drawn as one: perceptual hashes find them, a comparison decides.

A hash of 64 bits says which of the lowest 8 x 8 frequencies lie above their median (pHash: Zauner, Implementation and
Benchmarking of Perceptual Image Hash Functions, 2010). It survives other sizes and encodings, but no crop. So each
picture has the hashes of its own crops too, its views, and a small crop of it has a hash close to one of these.

A picture without much in it, such as a sky, has frequencies that are all about equal, and a hash that encoding anew
changes. So the means of 4 x 4 blocks stand beside the hashes, and the nearest by these are proposed too.

All this only proposes: pictures that are simple are similar. `likeness` then lays one picture on the other.
"""

from __future__ import annotations

import functools

import numpy as np

SIDE = 48
"""Of the square that pictures are scaled to before anything else, whatever their shape."""

_HASHED = 32
_FREQUENCIES = 8
# Of the side that a crop leaves, and where it may lie.
_VIEWS = (1.0, 0.95, 0.9, 0.85, 0.8)
_CLOSE = 12
_NEAREST = 12
_COMPARED = 24


def hashes(picture: np.ndarray, rows: bool = True) -> np.ndarray:
    """uint64 [views + 2] of a grey picture float [SIDE, SIDE] of 0 to 255.

    The first is the hash of the whole picture, the last two hold the means of its 16 blocks, a byte each.

    Args:
      rows: whether crops leave out rows too; otherwise only columns, as where these are time and rows are frequencies.
    """
    windows = _view_windows()
    across = _windows_to(_HASHED, windows)
    transform = _cosines() @ across
    whole = transform[:1] if not rows else transform
    spectra = np.einsum("afy,yx,bgx->abfg", whole, picture, transform, optimize=True)
    spectra = spectra.reshape(-1, _FREQUENCIES * _FREQUENCIES)
    if rows:
        spectra = spectra[_pairs_of_views()]
    bits = spectra > np.median(spectra, axis=1, keepdims=True)
    side = SIDE // 4
    blocks = picture.reshape(4, side, 4, side).mean(axis=(1, 3)).reshape(2, 8)
    levels = np.clip(np.rint(blocks), 0, 255).astype(np.uint8)
    return np.concatenate([np.packbits(bits, axis=1), levels]).view(">u8")[:, 0].astype(np.uint64)


def candidates(hashes: np.ndarray, close: int = _CLOSE, nearest: int = _NEAREST) -> np.ndarray:
    """Pairs of rows of uint64 [rows, views + 2] of which a view of one is close to the whole of the other.

    Two hashes are compared if they are equal in one of their parts (multi-index hashing: Norouzi et al., Fast Search in
    Hamming Space with Multi-Index Hashing, 2012); the more rows there are, the longer the parts.

    Returns:
      int64 [pairs, 2], the lower row first, sorted; about `nearest` for each row, those with the closest hashes, and
      some with similar means of blocks.
    """
    if len(hashes) < 2:
        return np.zeros((0, 2), np.int64)
    close_means, hashes = _close_means(hashes[:, -2:]), hashes[:, :-2]
    count, views = hashes.shape
    bits = min(16, max(8, int(np.ceil(np.log2(count))) - 2))
    whole = hashes[:, 0]
    found: list[np.ndarray] = []
    for start in range(0, 64 - bits + 1, bits):
        keys = (whole >> np.uint64(start)) & np.uint64(2**bits - 1)
        order = np.argsort(keys, kind="stable")
        ordered = keys[order]
        for view in range(views):
            asked = (hashes[:, view] >> np.uint64(start)) & np.uint64(2**bits - 1)
            first, last = np.searchsorted(ordered, asked, "left"), np.searchsorted(ordered, asked, "right")
            sizes = last - first
            one = np.repeat(np.arange(count), sizes)
            place = np.arange(len(one)) - np.repeat(np.cumsum(sizes) - sizes, sizes)
            other = order[np.repeat(first, sizes) + place]
            distance = np.bitwise_count(hashes[one, view] ^ whole[other])
            fits = (distance <= close) & (one != other)
            found.append(np.stack([one[fits], other[fits], distance[fits].astype(np.int64)]))
        found = [_nearest(np.concatenate(found, axis=1), nearest)]
    pairs = np.sort(np.concatenate([found[0][:2].T, close_means]), axis=1)
    return np.unique(pairs[pairs[:, 0] != pairs[:, 1]], axis=0)


def _close_means(packed: np.ndarray, nearest: int = 4) -> np.ndarray:
    """int64 [pairs, 2]: each row of uint64 [rows, 2] with those whose 16 levels are nearest."""
    import scipy.spatial

    levels = np.ascontiguousarray(packed.astype(">u8")).view(np.uint8).reshape(len(packed), 16).astype(np.float32)
    count = min(nearest + 1, len(levels))
    distances, others = scipy.spatial.cKDTree(levels).query(levels, k=count)
    rows = np.repeat(np.arange(len(levels)), count)
    # Further off than a fifth of the scale in each block, nothing is a copy.
    fits = distances.reshape(-1) < 200
    return np.stack([rows, others.reshape(-1)], axis=1)[fits].astype(np.int64)


def likeness(one: np.ndarray, other: np.ndarray, rows: bool = True) -> float:
    """The share of a picture's variance that another explains, once one of them is cropped as fits best.

    It is that of the worst of 6 x 6 blocks, against the variance of the whole picture: encoding anew errs a little
    everywhere, and pictures of two things differ much in some place. No change of brightness or contrast is allowed,
    so that pictures without much in them do not fit each other.

    Args:
      one, other: float [SIDE, SIDE, channels].
      rows: whether crops leave out rows too.

    Returns:
      At most 1, for pictures that are equal.
    """
    # Of a crop that leaves out little, the coarse search cannot say which of the two it is.
    best = -np.inf
    for larger, smaller in ((one, other), (other, one)):
        score, window = _search(larger, smaller, rows)
        best = max(best, score if score < _HOPELESS else _refined(larger, smaller, window, rows))
    return float(best)


# What encoding anew changes, in levels of 255: over a picture that is made small, and in a block of it.
_NOISE = 2.0
_ENCODING = 3.0
# Of the variance explained after a coarse search: what is below does not fit after a fine one.
_HOPELESS = 0.7
_COARSE = 12
_BLOCKS = 6


def overlaid(one: np.ndarray, other: np.ndarray) -> float:
    """`likeness` of two pictures as they are, of which neither is taken for a crop of the other."""
    whole = _windows_to(_COMPARED, ((0.0, 1.0),))[0]
    first, second = (np.tensordot(np.tensordot(whole, each, (1, 0)), whole, (1, 1)) for each in (one, other))
    return max(_explained(np.square(first - second), target) for target in (first, second))


def _search(larger: np.ndarray, smaller: np.ndarray, rows: bool) -> tuple[float, tuple]:
    """How well `smaller`, in grey, is a crop of `larger`, and which: ((top, bottom), (left, right)) in [0, 1]."""
    windows = _search_windows()
    chosen = _windows_to(_COARSE, windows)
    down = chosen if rows else chosen[:1]
    target = chosen[0] @ smaller.mean(axis=2) @ chosen[0].T
    # [a, n, SIDE] by [b, m, SIDE]: [a, n, b, m].
    views = np.tensordot(down @ larger.mean(axis=2), chosen, (2, 2))
    errors = np.square(views - target[None, :, None, :]).mean(axis=(1, 3))
    at = np.unravel_index(np.argmin(errors), errors.shape)
    return float(1 - errors[at] / (target.var() + _NOISE**2)), (windows[at[0]], windows[at[1]])


def _refined(larger: np.ndarray, smaller: np.ndarray, window: tuple, rows: bool) -> float:
    """The share explained in the worst block, once the edges of the window are moved to where they fit best."""
    down, across = window
    whole = _windows_to(_COMPARED, ((0.0, 1.0),))[0]
    target = np.tensordot(np.tensordot(whole, smaller, (1, 0)), whole, (1, 1))  # [n, channels, m]
    for step in (0.025, 0.0125, 0.00625):
        choices = [_around(down, step) if rows else [(0.0, 1.0)], _around(across, step)]
        # [a, n, channels, b, m].
        half = np.tensordot(_make_windows(_COMPARED, tuple(choices[0])), larger, (2, 0))
        views = np.tensordot(half, _make_windows(_COMPARED, tuple(choices[1])), (2, 2))
        errors = np.square(views - target[None, :, :, None, :])
        means = errors.mean(axis=(1, 2, 4))
        at = np.unravel_index(np.argmin(means), means.shape)
        down, across = choices[0][at[0]], choices[1][at[1]]
    return _explained(errors[at[0], :, :, at[1]], target)


def _explained(errors: np.ndarray, target: np.ndarray) -> float:
    """The share of the variance of a picture [n, channels, n] that is explained in the worst block, of its errors."""
    side = _COMPARED // _BLOCKS
    blocks = errors.mean(axis=1).reshape(_BLOCKS, side, _BLOCKS, side).mean(axis=(1, 3))
    spread = np.square(target - target.mean(axis=(0, 2), keepdims=True)).mean() + _NOISE**2
    return float(1 - max(0.0, blocks.max() - _ENCODING**2) / spread)


def _around(window: tuple[float, float], step: float) -> list[tuple[float, float]]:
    start, end = window
    found = [(start + i * step, end + j * step) for i in (-1, 0, 1) for j in (-1, 0, 1)]
    return [(max(0.0, a), min(1.0, b)) for a, b in found]


@functools.cache
def _search_windows() -> tuple[tuple[float, float], ...]:
    ends = [(start / 20, 1 - end / 20) for start in range(6) for end in range(6) if start + end <= 5]
    return tuple(sorted(ends, key=lambda window: window[0] - window[1]))


@functools.cache
def _view_windows() -> tuple[tuple[float, float], ...]:
    """Where the crops begin and end: of each size at the start, in the middle and at the end; the whole comes first."""
    windows = [(place * (1 - size), place * (1 - size) + size) for size in _VIEWS for place in (0, 0.5, 1)]
    return tuple(dict.fromkeys(windows))


@functools.cache
def _pairs_of_views() -> np.ndarray:
    """Which of all pairs of a crop of rows and one of columns are hashed: those about as high as they are wide."""
    windows = _view_windows()
    kept = [
        i * len(windows) + j
        for i, (top, bottom) in enumerate(windows)
        for j, (left, right) in enumerate(windows)
        if abs((bottom - top) - (right - left)) < 0.06
    ]
    return np.asarray(kept)


@functools.lru_cache(maxsize=64)
def _windows_to(size: int, windows: tuple[tuple[float, float], ...]) -> np.ndarray:
    return _make_windows(size, windows)


def _make_windows(size: int, windows: tuple[tuple[float, float], ...]) -> np.ndarray:
    """[windows, size, SIDE]: matrices that average a window of SIDE pixels to `size` of them.

    Each new pixel weighs what it covers by a triangle that reaches to the middles of its neighbours.
    """
    bounds = np.asarray(windows)
    scale = (bounds[:, 1] - bounds[:, 0]) * SIDE / size
    centres = bounds[:, :1] * SIDE + (np.arange(size) + 0.5) * scale[:, None]
    pixels = np.arange(SIDE) + 0.5
    reach = np.maximum(scale, 1)[:, None, None]
    weights = np.maximum(0, 1 - np.abs(centres[..., None] - pixels) / reach)
    return (weights / weights.sum(axis=-1, keepdims=True)).astype(np.float32)


@functools.cache
def _cosines() -> np.ndarray:
    """[_FREQUENCIES, _HASHED]: the lowest rows of the discrete cosine transform."""
    frequencies, places = np.arange(_FREQUENCIES), np.arange(_HASHED) + 0.5
    return np.cos(np.pi / _HASHED * np.outer(frequencies, places)).astype(np.float32)


def _nearest(found: np.ndarray, count: int) -> np.ndarray:
    """Of (one, other, distance) [3, n], without repetitions, the `count` closest of each `one`."""
    order = np.lexsort((found[1], found[2], found[0]))
    one, other, distance = found[:, order]
    _, kept = np.unique(np.stack([one, other]), axis=1, return_index=True)
    # np.unique gives the first of equals, which has the smallest distance, but sorts by (one, other).
    kept = np.sort(kept)
    one, other, distance = one[kept], other[kept], distance[kept]
    rank = np.arange(len(one)) - np.searchsorted(one, one, "left")
    return np.stack([one, other, distance])[:, rank < count]
