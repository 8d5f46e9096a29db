"""Leave-one-out kernel ridge regression with a Gaussian kernel.

Leave-one-out predictions have a closed form in the leverage, so n rows cost one solve instead of n (PRESS: Allen, The
Relationship between Variable Selection and Data Augmentation and a Method for Prediction, 1974). The kernel is
exp(-distance²) on features scaled to total variance 1. The regression is exact up to 2,000 rows and a Nyström
approximation above, with evenly spaced rows as landmarks (Williams and Seeger, Using the Nyström Method to Speed Up
Kernel Machines, 2001).
"""

from __future__ import annotations

import numpy as np

_LANDMARKS = 2000
# Rows per block when computing the kernel; bounds peak memory.
_BLOCK = 5000
_RIDGE = 0.5
# Added to the diagonal of the landmarks' kernel matrix, which near-equal landmarks make singular.
_JITTER = 1e-4


class LeaveOneOutRidge:
    """Predicts each row's targets by kernel ridge regression fitted on the other rows.

    Args:
      features: float [rows, n].
    """

    def __init__(self, features: np.ndarray):
        import scipy.linalg

        values = features.astype(np.float32)
        values = (values - values.mean(axis=0)) / np.sqrt(values.var(axis=0).sum() + 1e-9)
        landmarks = values[:: -(-len(values) // _LANDMARKS)]
        gram = _kernel(landmarks, landmarks).astype(np.float64) + _JITTER * np.eye(len(landmarks))
        cholesky = np.linalg.cholesky(gram)
        whiten = scipy.linalg.solve_triangular(cholesky, np.eye(len(landmarks)), lower=True).T.astype(np.float32)
        # Nyström feature map, float32 [rows, landmarks]: its inner products approximate the kernel.
        blocks = (values[start : start + _BLOCK] for start in range(0, len(values), _BLOCK))
        self._mapped = np.concatenate([_kernel(block, landmarks) @ whiten for block in blocks])

    def predict(self, targets: np.ndarray, train_mask: np.ndarray) -> np.ndarray:
        """Leave-one-out predictions float64 [rows, m], fitted on the rows where `train_mask` is True.

        Args:
          targets: float [rows, m].
          train_mask: bool [rows].
        """
        train = self._mapped[train_mask]
        mean = targets[train_mask].mean(axis=0)
        gram = (train.T @ train).astype(np.float64) + _RIDGE * np.eye(train.shape[1])
        inverse = np.linalg.inv(gram)
        predicted = self._mapped @ (inverse @ (train.T @ (targets[train_mask] - mean)))
        # Leverage [train rows, 1]: the weight of each row's own target in its prediction.
        leverage = np.einsum("rl,rl->r", train @ inverse.astype(np.float32), train, dtype=np.float64)[:, None]
        predicted[train_mask] = (predicted[train_mask] - leverage * (targets[train_mask] - mean)) / (1 - leverage)
        return predicted + mean


def _kernel(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Gaussian kernel matrix float32 [rows of a, rows of b]."""
    squares = np.square(a).sum(axis=1)[:, None] + np.square(b).sum(axis=1)
    return np.exp(-np.maximum(0, squares - 2 * a @ b.T))
