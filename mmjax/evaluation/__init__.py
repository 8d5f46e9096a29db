"""Evaluation of a split, optionally with every subset of the inputs."""

from mmjax.evaluation.evaluator import EvaluateConfig, EvaluationHook, Evaluator
from mmjax.evaluation.subsets import subset_name, subsets
