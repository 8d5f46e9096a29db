"""What a row would be expected to have by all other rows: kernel ridge regression, each row left out in turn.

The answer without a row follows from the answer with it and the row's leverage, so that leaving out each of n rows
costs one solution and not n (Allen, The Relationship between Variable Selection and Data Augmentation and a Method for
Prediction, 1974). The kernel is exp(-distance²) of features with a variance of 1 in all. Of many rows some are
landmarks, and the kernel is what the others have in common with these (Williams and Seeger, Using the Nyström Method to
Speed Up Kernel Machines, 2001); of few, all are, and it is exact.
"""

from __future__ import annotations

import numpy as np

_LANDMARKS = 2000
# The rows whose kernel is computed at once.
_BLOCK = 5000
_RIDGE = 0.5
# Rows that are alike make landmarks that are: without this the kernel among them has no inverse.
_JITTER = 1e-4


class LeaveOneOutRidge:
    """Predicts targets of rows from features of other rows.

    Args:
      features: float [rows, n].
    """

    def __init__(self, features: np.ndarray):
        import scipy.linalg

        values = features.astype(np.float32)
        values = (values - values.mean(axis=0)) / np.sqrt(values.var(axis=0).sum() + 1e-9)
        landmarks = values[:: -(-len(values) // _LANDMARKS)]
        among = _kernel(landmarks, landmarks).astype(np.float64) + _JITTER * np.eye(len(landmarks))
        factor = np.linalg.cholesky(among)
        whiten = scipy.linalg.solve_triangular(factor, np.eye(len(landmarks)), lower=True).T.astype(np.float32)
        # float32 [rows, landmarks], whose inner products are the kernel.
        blocks = (values[start : start + _BLOCK] for start in range(0, len(values), _BLOCK))
        self._mapped = np.concatenate([_kernel(block, landmarks) @ whiten for block in blocks])

    def predict(self, targets: np.ndarray, train_mask: np.ndarray) -> np.ndarray:
        """float64 [rows, m]: targets [rows, m] as those rows predict them that teach [rows], never the row itself."""
        taught = self._mapped[train_mask]
        mean = targets[train_mask].mean(axis=0)
        products = (taught.T @ taught).astype(np.float64) + _RIDGE * np.eye(taught.shape[1])
        inverse = np.linalg.inv(products)
        predicted = self._mapped @ (inverse @ (taught.T @ (targets[train_mask] - mean)))
        # How much of each row's prediction is the row's own target.
        leverage = np.einsum("rl,rl->r", taught @ inverse.astype(np.float32), taught, dtype=np.float64)[:, None]
        predicted[train_mask] = (predicted[train_mask] - leverage * (targets[train_mask] - mean)) / (1 - leverage)
        return predicted + mean


def _kernel(one: np.ndarray, other: np.ndarray) -> np.ndarray:
    """float32 [rows of one, rows of the other]."""
    squares = np.square(one).sum(axis=1)[:, None] + np.square(other).sum(axis=1)
    return np.exp(-np.maximum(0, squares - 2 * one @ other.T))
