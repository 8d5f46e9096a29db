"""Lower bound of a step's memory, from shapes alone, and the changes derived from it before compilation."""

from __future__ import annotations

import dataclasses
import io

import jax
import pytest
from rich.console import Console

from mmjax.__main__ import main
from mmjax.experiment import Experiment, plain
from mmjax.planning import plan as plans
from mmjax.planning import search, topology_devices
from mmjax.planning.lower_bound import LowerBound, memory_lower_bound
from mmjax.planning.plan import make_plan, plan_from_bound, plan_from_dict
from mmjax.planning.report import print_remedy
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
    assert found.plan is not None and found.plan.fits and len(tried) == len(found.trials) <= 3
    assert found.overrides == tried[-1]
    assert found.overrides["train.batch_size"] >= plan.batch_size // 64 and found.overrides["train.accumulate"] >= 8


def printed(remedy: search.Remedy) -> str:
    out = io.StringIO()
    print_remedy(Console(file=out, width=200), remedy, 5)
    return out.getvalue()


@pytest.mark.parametrize(("compiled", "said"), [(0, "no change was compiled"), (1, "1 change compiled, none fits")])
def test_when_the_time_ends_the_expected_change_is_given_as_not_compiled(monkeypatch, compiled, said):
    """The first change of `compiled` ends after 200 of 300 s and does not fit, the next one takes too long."""
    plan, clock, log, tried = too_large(), [0.0], [], []
    monkeypatch.setattr(search.time, "monotonic", lambda: clock[0])

    def planner(overrides, seconds):
        assert seconds == 300 - clock[0]
        tried.append(overrides)
        clock[0] += 200 if len(tried) <= compiled else seconds
        return dataclasses.replace(plan, compiled=True, peak_bytes=24 * GIB) if len(tried) <= compiled else None

    found = search.find_fitting(plain(small_recipe(plan.batch_size)), plan, 8, planner, log.append, 300)
    assert found.plan is None and found.timed_out and found.overrides == tried[-1] and len(tried) == compiled + 1
    assert [trial.peak_bytes for trial in found.trials] == [24 * GIB] * compiled + [None]
    assert "5.0 minutes left" in log[0] and (not compiled or "1.7 minutes left" in log[-1])
    text = printed(found)
    assert f"Within 5 minutes (--remedy_minutes), {said}. Expected to fit by its shapes, but not compiled" in text
    assert search.as_flags(tried[-1]) in text


def test_a_change_that_did_not_fit_is_not_expected_to_fit(monkeypatch):
    plan, clock, tried = too_large(), [0.0], []
    monkeypatch.setattr(search.time, "monotonic", lambda: clock[0])

    def planner(overrides, seconds):
        tried.append(overrides)
        clock[0] += seconds
        return dataclasses.replace(plan, compiled=True, peak_bytes=16 * GIB + 1)

    found = search.find_fitting(plain(small_recipe(plan.batch_size)), plan, 8, planner, lambda message: None, 300)
    assert len(tried) == 1 and found.overrides not in (None, tried[0]) and found.timed_out


def test_without_a_change_that_fits_the_answer_says_what_was_compiled():
    plan = dataclasses.replace(too_large(batch=8), capacity_bytes=4 * GIB)
    found = search.find_fitting(plain(small_recipe(8)), plan, 8, lambda *_: pytest.fail("compiled"), print)
    assert found == search.Remedy(None, None)
    assert "was found that fits: none is expected to fit by its shapes." in printed(found)
    trials = (search.Trial({"mesh.fsdp": 8}, 5 * GIB), search.Trial({"mesh.fsdp": 4}, None))
    assert "was found that fits: 1 change compiled, none fits." in printed(search.Remedy(None, None, trials))
    late = search.Remedy(None, None, trials, timed_out=True)
    assert "that fits within 5 minutes (--remedy_minutes): 1 change compiled, none fits." in printed(late)


@pytest.mark.parametrize(
    ("activations", "first"),
    [
        # GiB that full rematerialisation keeps at least, of 16 GiB; a compiled step needs about twice as much.
        (2, {"model.encoders.text.rematerialise": "full"}),
        (12, {"model.encoders.text.rematerialise": "full", "train.accumulate": 2}),
    ],
)
def test_after_a_failed_compilation_the_bound_rules_changes_out(activations, first):
    plan, tried = too_large(activations=activations, inputs=0.1), []
    plan = dataclasses.replace(plan, compiled=True, peak_bytes=100 * GIB)

    def planner(overrides, seconds):
        tried.append(overrides)
        return dataclasses.replace(plan, fits=True)

    assert search.find_fitting(plain(small_recipe(2**18)), plan, 8, planner, print).overrides == first == tried[0]


@pytest.mark.parametrize(("accumulate", "divisor"), [(1, 1), (2, 2)])
def test_a_recipe_with_microbatches_keeps_copies_of_its_batch(accumulate, divisor):
    """3 GiB of state, 1 GiB of its gradients, 1.9 GiB of inputs: seven copies fit 14.4 GiB with half the batch."""
    recipe = small_recipe(2**18)
    recipe.train.accumulate = accumulate
    plan = too_large(activations=2, inputs=1.9)

    def planner(overrides, seconds):
        return dataclasses.replace(plan, fits=True)

    found = search.find_fitting(plain(recipe), plan, 8, planner, print).overrides
    assert found is not None and 2**18 // found.get("train.batch_size", 2**18) == divisor


@pytest.mark.parametrize(("activations", "compiles"), [(18, True), (21, False)])
def test_a_step_is_compiled_up_to_a_quarter_above_the_memory(recipe_file, capsys, monkeypatch, activations, compiles):
    """15.75 GiB of a v5e; the compiler, here one that fails, may recompute activations."""
    asked = []

    def compile(recipe, topology, experiment, **options):
        asked.append(options["compile_kernels"])
        bound = LowerBound(0, 0, 0, 0)
        return dataclasses.replace(plan_from_bound(recipe, topology, experiment, bound), peak_bytes=30 * GIB), None

    monkeypatch.setattr(plans, "make_plan", compile)
    monkeypatch.setattr(
        "mmjax.planning.lower_bound.memory_lower_bound", lambda made: LowerBound(0, 0, 0, activations * GIB)
    )
    assert main(["plan", recipe_file(64), "--topology=v5e:2x4", "--remedy_minutes=0", "--compile_kernels=False"]) == 0
    said = " ".join(capsys.readouterr().out.split())
    assert (
        f"keeps at least {activations:.2f} GiB of 15.75 GiB per device, {activations - 15.75:.2f} GiB too much" in said
    )
    assert asked == [False] * compiles and ("not compiled: the step cannot fit by its shapes" in said) is not compiles


def test_a_plan_survives_its_json():
    import json

    plan, _ = make_plan("small", "this machine", experiment())
    assert plan_from_dict(json.loads(json.dumps(plan.as_dict()))).as_dict() == plan.as_dict()
    assert plan_from_dict(json.loads(json.dumps(too_large().as_dict()))) == too_large()
