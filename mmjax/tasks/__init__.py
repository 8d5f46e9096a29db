"""Tasks: a head, a loss and metrics. A new one is a file here and a line in `TASKS`; see `mmjax.tasks.base.Task`."""

from mmjax.tasks.base import Task, count_present
from mmjax.tasks.classification import Classification
from mmjax.tasks.contrastive import Contrastive
from mmjax.tasks.regression import Regression

TASKS = {
    "classification": Classification,
    "contrastive": Contrastive,
    "regression": Regression,
}

__all__ = ["TASKS", "Task", "count_present"]
