"""Gradient estimators: `(objective, parameters, batch) -> gradients, metrics`.

They take no PRNG key: random draws depend on the example ids and step of the batch and on the objective's seed.
"""

from mmjax.training.estimators.accumulated import Accumulated
from mmjax.training.estimators.plain import Plain

ESTIMATORS = {
    "plain": Plain,
    "accumulated": Accumulated,
}
