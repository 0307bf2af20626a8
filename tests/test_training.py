"""The training loop: what it returns, its steps, what it depends on, what it refuses."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
from tiny_flows import QUICK, Loud, Shift, fitted, points, same_weights, swirl
from torch.optim.optimizer import register_optimizer_step_pre_hook
from torch.utils._python_dispatch import TorchDispatchMode

from flowzoo.errors import Incompatible, UserError
from flowzoo.integrators import RK4
from flowzoo.objective import Batch, Likelihood, Loss, Objective, Stage
from flowzoo.odeint import Adjoint
from flowzoo.settings import Budget, Optimizer, Schedule

# --- what comes of a fit ----------------------------------------------------------------------


def test_the_mean_of_a_normal_distribution_is_learnt():
    data = points(400)
    result = fitted(objective=Likelihood(), train=data, budget=Budget(steps=800))
    torch.testing.assert_close(result.flow.mu, data.x.mean(0), atol=0.05, rtol=0)
    torch.testing.assert_close(result.flow.s.exp(), data.x.std(0), atol=0.05, rtol=0)
    assert result.stopped == "steps"
    assert result.best_step is None
    assert result.curve[-1]["loss"] == pytest.approx(
        2 * 0.5 * math.log(2 * math.pi * math.e), abs=0.2
    )


def test_a_continuous_flow_improves_and_counts_its_evaluations():
    result = fitted(
        swirl(RK4(steps=2)), Likelihood(), train=points(mean=1.0), budget=Budget(steps=30)
    )
    assert (result.nfe_forward, result.nfe_backward) == (30 * 8, 0)
    assert result.curve[-1]["loss"] < result.curve[0]["loss"]
    assert not result.flow.training


def test_backward_evaluations_of_the_adjoint_are_counted():
    adjoint = Adjoint("midpoint", steps=2)
    result = fitted(swirl(adjoint), Likelihood(), budget=Budget(steps=3))
    assert result.nfe_forward == 3 * 4
    assert result.nfe_backward >= 3 * 4


@pytest.mark.parametrize("precision", ["float32", "float64"])
def test_weights_and_data_take_the_precision_of_the_training(precision):
    objective, flow = Loud(), Shift().to(torch.float16)
    data = Batch(points().x.to(torch.float64), points().x)
    fitted(flow, objective, training=replace(QUICK, precision=precision), train=data)
    dtype = getattr(torch, precision)
    assert flow.mu.dtype == objective.seen[0].x.dtype == objective.seen[0].context.dtype == dtype


# --- steps ------------------------------------------------------------------------------------


def test_the_box_holds_at_every_loss_and_at_the_end():
    flow, largest = Shift(), []
    with torch.no_grad():
        flow.mu.fill_(9.0)

    def watch(step, nll):
        largest.append(max(p.abs().max().item() for p in flow.parameters()))
        return nll

    fitted(flow, Loud(before=watch), training=replace(QUICK, clamp=0.5))
    assert max(largest) == 0.5
    assert flow.mu.abs().max() <= 0.5


def test_gradients_are_clipped():
    norms = []

    def watch(optimizer, args, kwargs):
        grads = [p.grad for group in optimizer.param_groups for p in group["params"]]
        norms.append(torch.cat([g.flatten() for g in grads]).norm().item())

    handle = register_optimizer_step_pre_hook(watch)
    try:
        fitted(training=replace(QUICK, clip=0.25))
        fitted(training=replace(QUICK, clip=None))
    finally:
        handle.remove()
    assert norms[:20] == pytest.approx([0.25] * 20, rel=1e-4)
    assert min(norms[20:]) > 1


def test_the_schedule_reaches_the_optimizer():
    schedule = Schedule("step", every=20, factor=0.1, warmup=20)
    result = fitted(budget=Budget(steps=60), training=replace(QUICK, schedule=schedule))
    assert [row["lr"] for row in result.curve] == pytest.approx([0.05, 0.05, 0.005])


def test_no_step_waits_for_the_device():
    class Syncs(TorchDispatchMode):
        count = 0

        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            self.count += func is torch.ops.aten._local_scalar_dense.default
            return func(*args, **(kwargs or {}))

    training = replace(QUICK, clip=1.0, clamp=9.0, ema=0.9)
    counts = []
    for steps in (40, 80):
        with Syncs() as syncs:
            fitted(objective=Likelihood(), budget=Budget(steps=steps), training=training)
        counts.append(syncs.count)
    assert counts[0] == counts[1] <= 2


# --- determinism and observation --------------------------------------------------------------


def test_a_fit_depends_on_its_seed_alone_and_leaves_the_global_generator():
    results = []
    for seed, disturbance in ((3, 1), (3, 2), (4, 1)):
        torch.manual_seed(disturbance)
        before = torch.get_rng_state()
        results.append(fitted(seed=seed))
        assert torch.equal(before, torch.get_rng_state())
    assert same_weights(results[0].flow, results[1].flow)
    assert not same_weights(results[0].flow, results[2].flow)


def test_the_noise_of_two_steps_differs():
    draws = []

    class Draws(Objective):
        def stages(self, flow):
            def loss(batch, generator):
                draws.append(torch.rand((), generator=generator).item())
                return Loss(flow.mu.sum(), {})

            yield Stage("draws", [flow.mu], loss)

    fitted(objective=Draws(), budget=Budget(steps=10))
    assert len(set(draws)) == 10


def test_the_observer_is_told():
    seen = []
    training = replace(QUICK, validate_every=30)
    fitted(budget=Budget(steps=60), training=training, validation=points(5), observe=seen.append)
    assert {p.step for p in seen} >= {20, 30, 40, 60}
    last = seen[-1]
    assert (last.stage, last.stage_index, last.fraction, last.nfe_forward) == ("loud", 0, 1.0, 60)
    assert set(last.terms) == {"nll", "size"}
    assert seen[0].validation is None
    assert last.validation is not None
    assert [p.fraction for p in seen] == sorted(p.fraction for p in seen)


# --- what cannot be fitted --------------------------------------------------------------------


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"batch_size": 0}, "training.batch_size must be positive, got 0"),
        ({"optimizer": Optimizer(lr=-1.0)}, "training.optimizer.lr must be positive"),
        ({"optimizer": Optimizer("adan")}, "got adan; did you mean adam"),
        ({"schedule": Schedule("cosin")}, "did you mean cosine"),
        ({"precision": "float16"}, "training.precision is one of float32, float64"),
        ({"ema": 1.0}, "training.ema is a decay between 0 and 1"),
        ({"clip": math.nan}, "training.clip must be positive"),
        ({"validate_every": -1}, "training.validate_every must not be negative"),
        ({"schedule": Schedule("plateau")}, "schedule: plateau needs validations"),
        ({"patience": 3}, "training.patience needs validations"),
        ({"restart_from_best": 3}, "restart_from_best needs validations"),
    ],
)
def test_settings_that_make_no_sense(change, sentence):
    with pytest.raises(UserError, match=sentence):
        fitted(training=replace(QUICK, **change))


def test_data_that_do_not_fit_the_flow():
    with pytest.raises(Incompatible, match=r"training data have 3 columns.*dimension 2"):
        fitted(train=points(dim=3))
    with pytest.raises(UserError, match=r"validation data must have rows.*\(0, 2\)"):
        fitted(validation=Batch(torch.zeros(0, 2)))
    conditioned = Shift()
    conditioned.context_dim = 2
    with pytest.raises(Incompatible, match=r"2 columns of context.*bring 0"):
        fitted(conditioned)


@pytest.mark.parametrize(
    ("parameters", "sentence"),
    [
        (lambda flow: [torch.nn.Parameter(torch.zeros(1))], "not the flow's"),
        (lambda flow: [], "no parameter that can be trained"),
    ],
)
def test_a_stage_trains_parameters_of_the_flow(parameters, sentence):
    class Odd(Objective):
        def stages(self, flow):
            yield Stage("odd", parameters(flow), Loud().loss)

    with pytest.raises(Incompatible, match=sentence):
        fitted(objective=Odd())


@pytest.mark.gpu
def test_a_fit_on_the_gpu_resembles_that_on_the_cpu():
    results = [
        fitted(swirl(RK4(2)), Likelihood(), Budget(steps=30), device=device)
        for device in ("cpu", "cuda")
    ]
    assert results[1].flow.velocity.a.weight.device.type == "cuda"
    a, b = ([row["loss"] for row in result.curve] for result in results)
    assert a == pytest.approx(b, rel=1e-3)
