"""Leave-one-out predictions by kernel ridge regression.

The leave-one-out residual follows from the residual and the leverage of a row, so n predictions cost one solve (Allen,
The Relationship between Variable Selection and Data Augmentation and a Method for Prediction, 1974). The kernel is
exp(-distance²) of features scaled to a total variance of 1. Above 2,000 rows the kernel is a Nyström approximation on
landmark rows (Williams and Seeger, Using the Nyström Method to Speed Up Kernel Machines, 2001); below it is exact.
"""

from __future__ import annotations

import numpy as np

# Maximum number of landmark rows of the Nyström approximation.
_LANDMARKS = 2000
# Rows per block of the kernel matrix, to bound memory.
_BLOCK = 5000
# Ridge penalty.
_RIDGE = 0.5
# Diagonal jitter: similar landmarks make their kernel matrix singular.
_JITTER = 1e-4


class LeaveOneOutRidge:
    """Predicts the targets of each row from the features and targets of the other rows.

    Args:
      features: float [rows, width].
    """

    def __init__(self, features: np.ndarray):
        import scipy.linalg

        values = features.astype(np.float32)
        values = (values - values.mean(axis=0)) / np.sqrt(values.var(axis=0).sum() + 1e-9)
        landmarks = values[:: -(-len(values) // _LANDMARKS)]
        gram = _kernel(landmarks, landmarks).astype(np.float64) + _JITTER * np.eye(len(landmarks))
        factor = np.linalg.cholesky(gram)
        whiten = scipy.linalg.solve_triangular(factor, np.eye(len(landmarks)), lower=True).T.astype(np.float32)
        blocks = (values[start : start + _BLOCK] for start in range(0, len(values), _BLOCK))
        # Feature map, float32 [rows, landmarks], whose inner products approximate the kernel.
        self._mapped = np.concatenate([_kernel(block, landmarks) @ whiten for block in blocks])

    def predict(self, targets: np.ndarray, train_mask: np.ndarray) -> np.ndarray:
        """Fits on the rows of `train_mask` and predicts every row, leaving training rows out of their own prediction.

        Args:
          targets: float [rows, m].
          train_mask: bool [rows].

        Returns:
          Predictions, float64 [rows, m].
        """
        train = self._mapped[train_mask]
        mean = targets[train_mask].mean(axis=0)
        products = (train.T @ train).astype(np.float64) + _RIDGE * np.eye(train.shape[1])
        inverse = np.linalg.inv(products)
        predicted = self._mapped @ (inverse @ (train.T @ (targets[train_mask] - mean)))
        # Weight of a row's own target in its prediction, [training rows, 1].
        leverage = np.einsum("rl,rl->r", train @ inverse.astype(np.float32), train, dtype=np.float64)[:, None]
        predicted[train_mask] = (predicted[train_mask] - leverage * (targets[train_mask] - mean)) / (1 - leverage)
        return predicted + mean


def _kernel(one: np.ndarray, other: np.ndarray) -> np.ndarray:
    """Computes the Gaussian kernel of [n, width] and [m, width], float32 [n, m]."""
    squares = np.square(one).sum(axis=1)[:, None] + np.square(other).sum(axis=1)
    return np.exp(-np.maximum(0, squares - 2 * one @ other.T))
