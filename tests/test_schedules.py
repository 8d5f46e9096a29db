"""Schedules: values against closed forms, all of Optax's by name, and messages about runs that are extended."""

import json

import numpy as np
import optax
import pytest
from ml_collections import ConfigDict

from mmjax.errors import UserError
from mmjax.experiment import plain, schedule_changes
from mmjax.training.optim.schedules import make_schedule

PEAK, END, WARMUP, STEPS = 0.8, 0.05, 10, 110


def progress(step):
    return min((step - WARMUP) / (STEPS - WARMUP), 1.0)


CLOSED_FORMS = {
    "constant": ({}, lambda step: PEAK),
    "cosine": ({"end": END}, lambda step: END + (PEAK - END) * 0.5 * (1 + np.cos(np.pi * progress(step)))),
    "linear": ({"end": END}, lambda step: PEAK + (END - PEAK) * progress(step)),
    "exponential": ({"end": END}, lambda step: PEAK * (END / PEAK) ** progress(step)),
    "step": (
        {"boundaries": [20, 70], "factor": 0.5},
        lambda step: PEAK * 0.5 ** sum(step - WARMUP >= boundary for boundary in (20, 70)),
    ),
}


@pytest.mark.parametrize("kind", CLOSED_FORMS)
def test_a_schedule_has_the_values_of_its_closed_form(kind):
    options, truth = CLOSED_FORMS[kind]
    schedule = make_schedule({"kind": kind, "peak": PEAK, "warmup": WARMUP, **options}, "schedule", STEPS)
    for step in (0, 5):
        assert float(schedule(step)) == pytest.approx(PEAK * step / WARMUP, abs=1e-7)
    for step in (10, 29, 30, 60, 79, 80, 110, 150):
        assert float(schedule(step)) == pytest.approx(truth(step), rel=1e-5), step
    longer = make_schedule({"kind": kind, "peak": PEAK, "warmup": WARMUP, **options}, "schedule", 1000)
    if kind in ("constant", "step"):
        assert float(longer(60)) == pytest.approx(truth(60), rel=1e-5)
    else:
        # A schedule's own `steps` determines its length.
        own = {"kind": kind, "peak": PEAK, "warmup": WARMUP, "steps": STEPS, **options}
        assert float(make_schedule(own, "schedule", 1000)(60)) == pytest.approx(truth(60), rel=1e-5)
        assert float(longer(60)) != pytest.approx(truth(60), rel=1e-2)


@pytest.mark.parametrize("kind", ["cosine", "linear"])
def test_a_schedule_may_rise_from_zero(kind):
    schedule = make_schedule({"kind": kind, "peak": 0, "end": 1}, "tasks.digit.weight", 10)
    assert [float(schedule(step)) for step in (0, 5, 10)] == pytest.approx([0, 0.5, 1], abs=1e-6)


WARM = {"init_value": 0.0, "peak_value": 1.0, "warmup_steps": 2}
OPTAX = {
    "constant_schedule": {"value": 0.5},
    "cosine_decay_schedule": {"init_value": 1.0, "decay_steps": 10},
    "cosine_onecycle_schedule": {"transition_steps": 10, "peak_value": 1.0},
    "exponential_decay": {"init_value": 1.0, "transition_steps": 5, "decay_rate": 0.5},
    "join_schedules": {"schedules": [0.5, {"kind": "optax.constant_schedule", "value": 0.25}], "boundaries": [5]},
    "linear_onecycle_schedule": {"transition_steps": 10, "peak_value": 1.0},
    "linear_schedule": {"init_value": 1.0, "end_value": 0.0, "transition_steps": 10},
    "piecewise_constant_schedule": {"init_value": 1.0, "boundaries_and_scales": {2: 0.1, 10: 0.1}},
    "piecewise_interpolate_schedule": {
        "interpolate_type": "linear",
        "init_value": 1.0,
        "boundaries_and_scales": {2: 0.1, 10: 0.1},
    },
    "polynomial_schedule": {"init_value": 1.0, "end_value": 0.0, "power": 2, "transition_steps": 10},
    "sgdr_schedule": {"cosine_kwargs": [{**WARM, "decay_steps": 5}, {**WARM, "decay_steps": 5}]},
    "warmup_constant_schedule": WARM,
    "warmup_cosine_decay_schedule": {**WARM, "decay_steps": 10},
    "warmup_exponential_decay_schedule": {**WARM, "transition_steps": 5, "decay_rate": 0.5},
}


@pytest.mark.parametrize("name", [name for name in dir(optax.schedules) if name.islower() and name[0] != "_"])
def test_each_schedule_of_optax_works_from_a_config_file_or_is_refused(name):
    if name.startswith("inject_"):
        with pytest.raises(UserError, match=r"schedule\.kind: Optax has no schedule 'inject_"):
            make_schedule({"kind": f"optax.{name}"}, "schedule", 10)
        return
    options = OPTAX[name]
    # A resumed run reads the config from config.json, where all keys are strings.
    stored = json.loads(json.dumps(plain(ConfigDict({"kind": f"optax.{name}", **options}))))
    found = make_schedule(stored, "schedule", 10)
    if name == "join_schedules":
        options = {"schedules": [optax.constant_schedule(0.5), optax.constant_schedule(0.25)], "boundaries": [5]}
    truth = getattr(optax, name)(**options)
    for step in (0, 1, 2, 6, 10, 12):
        assert float(found(step)) == pytest.approx(float(truth(step)), abs=1e-7)


@pytest.mark.parametrize(
    ("section", "expected"),
    [
        ({"kind": "optax.adam"}, "schedule.kind: Optax has no schedule 'adam'"),
        ({"kind": "optax.linear_schedule", "init_value": 1.0}, "schedule.end_value: is missing"),
        ({"kind": "optax.sgdr_schedule", "cosine_kwargs": [{"init_value": 0}]}, "schedule: optax.sgdr_schedule failed"),
        ({"kind": "optax.sgdr_schedule", "cosine_kwargs": []}, "schedule: optax.sgdr_schedule raises"),
        (
            {"kind": "optax.piecewise_constant_schedule", "init_value": 1.0, "boundaries_and_scales": {"ten": 0.1}},
            "schedule: optax.piecewise_constant_schedule raises",
        ),
        ({"kind": "optax.join_schedules", "schedules": [{"kind": "cosin"}], "boundaries": []}, "schedule.schedules[0]"),
    ],
    ids=str,
)
def test_a_schedule_that_cannot_work_is_refused_in_one_line(section, expected):
    with pytest.raises(UserError) as caught:
        make_schedule(section, "schedule", 10)
    assert str(caught.value).startswith(expected) and "\n" not in str(caught.value)


def config(steps, schedule=None, weight=1.0):
    schedule = {"kind": "cosine", "peak": 1.0, **(schedule or {})}
    return {"train": {"steps": steps}, "schedule": schedule, "tasks": {"digit": {"weight": weight}, "seen": {}}}


def test_schedules_that_a_longer_run_stretches_are_named_with_their_values():
    ramp = {"kind": "linear", "peak": 0.0, "end": 1.0}
    rate, weight = schedule_changes(config(20, weight=ramp), config(40, weight=ramp), 20)
    assert "schedule now ends at step 40, not 20: after step 20 the learning rate is 0.5, not 0;" in rate
    assert rate.endswith("set schedule.steps = 20 to keep it")
    assert "tasks.digit.weight now ends at step 40, not 20: after step 20 the weight of digit is 0.5, not 1;" in weight


@pytest.mark.parametrize(
    ("old", "new"),
    [
        (config(20), config(20)),
        (config(20), config(40, {"steps": 20})),
        (config(20, {"steps": 30}), config(40, {"steps": 30})),
        (config(20, {"kind": "constant"}), config(40, {"kind": "constant"})),
    ],
)
def test_schedules_that_stay_are_not_named(old, new):
    assert schedule_changes(old, new, 20) == []


def test_an_exponential_schedule_by_default_ends_at_a_hundredth_of_its_peak():
    schedule = make_schedule({"kind": "exponential", "peak": 2.0}, "schedule", 100)
    assert [float(schedule(step)) for step in (0, 50, 100, 300)] == pytest.approx([2.0, 0.2, 0.02, 0.02], rel=1e-5)
