"""Tasks: head, loss and metrics. To add one, write a subclass of `Task` in its own file and register it in `TASKS`."""

from mmjax.tasks.base import Task, presence
from mmjax.tasks.classification import Classification
from mmjax.tasks.contrastive import Contrastive
from mmjax.tasks.regression import Regression

TASKS = {
    "classification": Classification,
    "contrastive": Contrastive,
    "regression": Regression,
}
