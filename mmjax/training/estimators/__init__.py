"""Gradient estimators: `(objective, parameters, batch) -> gradients, metrics`.

Random draws need no key: they depend on the batch's ids and step and on the objective's seed.
"""

from mmjax.training.estimators.accumulated import Accumulated
from mmjax.training.estimators.plain import Plain

ESTIMATORS = {
    "plain": Plain,
    "accumulated": Accumulated,
}
