"""Lower bound of a step's memory, from shapes alone, and the changes derived from it before compilation."""

from __future__ import annotations

import dataclasses

import jax
import pytest

from mmjax.experiment import Experiment, plain
from mmjax.planning import plan as plans
from mmjax.planning import search, topology_devices
from mmjax.planning.lower_bound import LowerBound, memory_lower_bound
from mmjax.planning.plan import make_plan, plan_from_bound, plan_from_dict
from tests.test_plan import recipe_file as recipe_file
from tests.test_plan import run_command, small_recipe

DEPTH, TOKENS, WIDTH, BATCH = 3, 32, 128, 64


def experiment(rematerialise: str = "none", accumulate: int = 1, devices=None) -> Experiment:
    config = small_recipe(BATCH, data=4, fsdp=2)
    config.model.encoders.text.rematerialise = rematerialise
    config.train.accumulate = accumulate
    return Experiment(config, devices)


def test_arguments_are_those_of_the_state_on_one_device():
    made = experiment()
    bound, state = memory_lower_bound(made), made.init_state()

    def on_one_device(tree):
        return sum(leaf.addressable_shards[0].data.nbytes for leaf in jax.tree.leaves(tree))

    assert bound.parameters == on_one_device(state.parameters)
    assert bound.optimizer == on_one_device(state.optimizer)


def test_with_full_rematerialisation_each_layer_keeps_its_input():
    """Float32 tokens [batch, tokens, width] of each layer, split over 8 devices; a microbatch keeps its share."""
    layers = DEPTH * BATCH * TOKENS * WIDTH * 4 // 8
    full, none = memory_lower_bound(experiment("full")), memory_lower_bound(experiment("none"))
    assert full.activations == layers
    # At least queries, keys and values, hidden units (twice as wide) and normalised tokens as well.
    assert none.activations >= 6 * layers
    assert memory_lower_bound(experiment("full", accumulate=4)).activations == full.activations // 4


def test_the_compiled_step_needs_no_less():
    made = experiment("full", devices=topology_devices("v5e:2x4"))
    plan, _ = make_plan("small", "v5e:2x4", made)
    assert memory_lower_bound(made).total <= plan.peak_bytes


def test_a_batch_far_too_large_is_answered_without_the_compiler(recipe_file, capsys, monkeypatch):
    def compile(*arguments, **options):
        raise AssertionError("compiled")

    monkeypatch.setattr(plans, "make_plan", compile)
    batch = 2**22
    found = run_command([recipe_file(batch), "--topology=v5e:2x4", "--remedy_minutes=0"], capsys)
    assert found["fits"] is False and found["compiled"] is False and "remedy" not in found
    minimum = DEPTH * TOKENS * WIDTH * 4 * batch // 8
    assert found["bound"]["activations"] >= minimum
    assert found["missing_bytes"] >= minimum - found["capacity_bytes"] > 0


GIB = 2**30


def too_large(batch: int = 2**18, activations: float = 600, inputs: float = 24) -> plans.Plan:
    """Plan of a batch on 8 devices that needs at least these GiB of activations and inputs."""
    base = plan_from_bound("small", "this machine", experiment(), LowerBound(0, 0, 0, 0))
    bound = LowerBound(GIB, 2 * GIB, int(inputs * GIB), int(activations * GIB))
    return dataclasses.replace(
        base,
        mesh={},
        batch_size=batch,
        parameters=GIB // 4,
        capacity_bytes=16 * GIB,
        bound=bound,
        peak_bytes=bound.total,
    )


@pytest.mark.parametrize("slack", [1.0, 2.5, 6.0])
def test_the_first_compiled_change_suffices_and_the_next_uses_the_measured_memory(slack):
    """The inputs alone exceed the memory, so microbatches help only with a smaller batch."""
    plan, tried = too_large(), []

    def planner(overrides, seconds):
        tried.append(overrides)
        divisor = plan.batch_size // overrides.get("train.batch_size", plan.batch_size)
        need = 4 + (3 * 24 + slack * 600 / overrides.get("train.accumulate", 1)) / divisor
        return dataclasses.replace(plan, fits=need <= 16, compiled=True, peak_bytes=int(need * GIB))

    found = search.find_fitting(plain(small_recipe(plan.batch_size)), plan, 8, planner, lambda message: None)
    assert found is not None and found.plan is not None and len(tried) <= 3
    assert found.overrides["train.batch_size"] >= plan.batch_size // 64 and found.overrides["train.accumulate"] >= 8


def test_when_the_time_ends_the_expected_change_is_given_as_not_compiled(monkeypatch):
    plan, clock, said = too_large(), [0.0], []
    monkeypatch.setattr(search.time, "monotonic", lambda: clock[0])

    def planner(overrides, seconds):
        assert seconds == 300
        clock[0] += seconds

    found = search.find_fitting(plain(small_recipe(plan.batch_size)), plan, 8, planner, said.append, 300)
    assert found is not None and found.plan is None and found.overrides["train.accumulate"] > 1
    assert len(said) == 1 and "5.0 minutes left" in said[0]


def test_a_plan_survives_its_json():
    import json

    plan, _ = make_plan("small", "this machine", experiment())
    assert plan_from_dict(json.loads(json.dumps(plan.as_dict()))).as_dict() == plan.as_dict()
    assert plan_from_dict(json.loads(json.dumps(too_large().as_dict()))) == too_large()
