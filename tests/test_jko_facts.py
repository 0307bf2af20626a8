"""What JKO measures of its blocks, and pays for them."""

from __future__ import annotations

import json
import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from jko_chains import F64, QUICK, cloud, grown, trained
from oracles import jacobian, standard_normal

from flowzoo.integrators import RK438
from flowzoo.objective import Batch, Likelihood
from flowzoo.regularizers import HJB, JKOW2, Transport
from flowzoo.traces import Hutchinson
from flowzoo_jko_iflow.joint import FineTuning, joint_loss
from flowzoo_jko_iflow.objective import JKO
from flowzoo_jko_iflow.push import Pushed, push

VALIDATED = replace(QUICK, validate_every=10, keep="last")


# --- facts ---------------------------------------------------------------------------------------


def measured(block, x, ladj):
    """Return what a block does to points, in numpy, its Jacobian by automatic differentiation."""
    x = x.detach().requires_grad_()
    z = block.encode(x).z
    change = torch.linalg.slogdet(jacobian(z, x)).logabsdet.detach().numpy()
    before, after = x.detach().numpy(), z.detach().numpy()
    moved, size = ((after - before) ** 2).sum(1).mean(), (after**2).sum(1).mean()
    nll = 0.5 * size + math.log(2 * math.pi) - (ladj.numpy() + change).mean()
    decrease = 0.5 * (before**2).sum(1).mean() - 0.5 * size + change.mean()
    found = {"nll": nll, "kl_decrease": decrease, "movement": moved**0.5, "ratio": moved / size}
    return found, torch.from_numpy(after), ladj + torch.from_numpy(change)


def test_facts_are_those_of_a_direct_computation():
    flow, held = grown(2, steps=6), cloud(60, seed=1)
    result = trained(flow, JKO(chunk=37), 12, VALIDATED, validation=held)
    rows = {
        "train": (cloud().x, torch.zeros(200, dtype=F64)),
        "held": (held.x, torch.zeros(60, dtype=F64)),
    }
    for k, (row, block) in enumerate(zip(result.stages, flow.held(), strict=True)):
        on = {}
        for name, (x, ladj) in rows.items():
            on[name], *rows[name] = measured(block, x, ladj)
        assert row["nll"] == pytest.approx(on["held"]["nll"], abs=1e-3)
        assert row["kl_decrease"] == pytest.approx(on["held"]["kl_decrease"], abs=1e-3)
        assert row["train_nll"] == pytest.approx(on["train"]["nll"], abs=1e-3)
        assert row["movement"] == pytest.approx(on["train"]["movement"], rel=1e-9)
        assert row["ratio"] == pytest.approx(on["train"]["ratio"], rel=1e-9)
        assert float(flow.movements[k]) == row["movement"]
        assert (row["block"], row["push_nfe"]) == (k + 1, 4 * 6)
        assert abs(on["held"]["nll"] - on["train"]["nll"]) > 0.01


def test_the_last_nll_is_the_flows():
    flow, held = grown(2, steps=2), cloud(60, seed=1)
    training = replace(VALIDATED, keep="best")
    last = trained(flow, training=training, validation=held).stages[-1]
    assert last["nll"] == pytest.approx(-flow.log_prob(held.x).mean().item(), abs=1e-12)
    assert last["train_nll"] == pytest.approx(-flow.log_prob(cloud().x).mean().item(), abs=1e-12)
    pushed = Batch(flow.held()[0].encode(held.x).z.detach())
    own = JKO().loss(flow, 1, pushed).total.item()  # not the likelihood, whatever is asked for
    assert last["best_validation"] == pytest.approx(own, abs=1e-12)


def test_without_validation_facts_are_of_the_training_points():
    row = trained(grown(1, steps=2)).stages[0]
    assert row["nll"] == row["train_nll"]


def test_the_round_trip_is_the_mean_distance(places):
    block, x = grown(1, steps=1).held()[0], places()[:, :2]
    found = push(block, Pushed.of(Batch(x)), 100, 0)
    gone = block.decode(block.encode(x).z) - x
    assert found.round_trip == pytest.approx(gone.norm(dim=1).mean().item(), rel=1e-12)
    assert 1e-9 < found.round_trip < 0.1


def test_random_traces_repeat_however_the_points_got_there(places):
    block, x = grown(1, trace=Hutchinson(samples=1)).held()[0], places(9)[:, :2]
    ways = []
    for start in (0, 5):
        torch.manual_seed(start)
        points = Pushed.of(Batch(x))
        push(block, points, 4, seed=3)
        ways.append(points.ladj)
    assert torch.equal(*ways)
    other = Pushed.of(Batch(x))
    push(block, other, 4, seed=4)
    assert not torch.equal(other.ladj, ways[0])


def test_records_are_json():
    flow = grown(2, steps=1)
    result = trained(flow, JKO(fine_tune=FineTuning()), steps=9, validation=cloud(20, seed=1))
    assert json.loads(json.dumps(result.stages, allow_nan=False)) == result.stages
    assert {"nll", "train_nll"} <= result.stages[-1].keys()


def test_fine_tuning_measures_the_blocks_anew():
    flow, held = grown(2, steps=2), cloud(60, seed=1)
    result = trained(
        flow, JKO(fine_tune=FineTuning(0.5)), training=VALIDATED, validation=held, steps=40
    )
    assert result.stages[-1]["nll"] == pytest.approx(-flow.log_prob(held.x).mean().item())
    x, moved = cloud().x, []
    for block in flow.flows():
        z = block.encode(x).z.detach()
        moved.append(float((z - x).square().sum(1).mean().sqrt()))
        x = z
    assert flow.movements.tolist() == pytest.approx(moved, rel=1e-12)
    assert moved[0] != pytest.approx(result.stages[0]["movement"], rel=1e-6)


# --- costs ---------------------------------------------------------------------------------------


def test_the_loss_is_the_proximal_problem(places):
    flow, x = grown(2, steps=12), places()[:, :2].requires_grad_()
    flow.step_sizes.copy_(torch.tensor([0.7, 1.3], dtype=F64))
    for k in (0, 1):
        z = flow.held()[k].encode(x).z
        change = torch.linalg.slogdet(jacobian(z, x)).logabsdet
        x_z = (x - z).square().sum(1).mean() / (2 * flow.step_sizes[k])
        found = JKO().loss(flow, k, Batch(x))
        assert found.total.item() == pytest.approx(
            (0.5 * z.square().sum(1).mean() - change.mean() + x_z).item(), abs=1e-4
        )
        assert float(found.terms["movement"]) == pytest.approx(x_z.item(), rel=1e-12)


@pytest.mark.parametrize("regularizers", [[Transport(0.3)], [HJB(0.2), JKOW2(2.0, weight=0.5)]])
def test_regularizers_are_paid_with_their_weights(places, regularizers):
    flow, x = grown(2, "gradient"), places()[:, :2]
    plain, costly = (JKO(regularizers=r).loss(flow, 1, Batch(x)) for r in ([], regularizers))
    expected = 0.0
    for cost in regularizers:
        value = costly.terms[type(cost).__name__]
        if isinstance(cost, JKOW2):
            direct = cost.between(x, flow.held()[1].encode(x).z).mean()
        else:
            direct = flow.held()[1].encode(x, [cost]).costs.mean()
        assert float(value) == pytest.approx(direct.item(), rel=1e-12)
        assert float(value) > 1e-3
        expected = expected + cost.weight * float(value)
    assert (costly.total - plain.total).item() == pytest.approx(expected, rel=1e-10)


def test_fine_tuning_is_the_likelihood_of_the_chain(places):
    flow, x = grown(3), Batch(places()[:, :2])
    flow.use(2)
    flow.step_sizes.copy_(torch.tensor([0.7, math.inf, 1.0], dtype=F64))
    costs = JKO(regularizers=[Transport(0.3)]).costs
    encoded = flow.encode(x.x, [Transport()])
    first = flow.held()[0].encode(x.x).z
    first = ((first - x.x).square().sum(1).mean() / 1.4).item()
    for movement in (0.0, 2.0):
        found = joint_loss(flow, FineTuning(0.5, movement), costs, x)
        nll = -flow.log_prob(x.x).mean()
        expected = nll.item() + 0.3 * encoded.costs.mean().item() + movement * first
        assert found.total.item() == pytest.approx(expected, rel=1e-12)
        assert float(found.terms["nll"]) == pytest.approx(nll.item(), rel=1e-12)
        assert float(found.terms["movement"]) == pytest.approx(first, rel=1e-12)


def test_fine_tuning_has_the_gradient_of_the_likelihood(places):
    flow, x = grown(3, trace=Hutchinson()), Batch(places()[:, :2])
    flow.use(2)
    noise = [torch.Generator().manual_seed(4) for _ in range(2)]
    a = joint_loss(flow, FineTuning(), JKO().costs, x, noise[0])
    b = Likelihood().loss(flow, x, noise[1])
    assert a.total.item() == pytest.approx(b.total.item(), rel=1e-12)
    wanted = list(flow.in_use())
    for mine, theirs in zip(
        torch.autograd.grad(a.total, wanted), torch.autograd.grad(b.total, wanted), strict=True
    ):
        torch.testing.assert_close(mine, theirs, rtol=1e-9, atol=1e-11)
    assert [solve.backward for solve in a.nfe] == [12, 12]


# --- context -------------------------------------------------------------------------------------


def test_context_goes_along(places):
    flow, context = grown(2, context_dim=1), places(200, 1, seed=2)
    train = Batch(cloud().x + 2 * context, context)
    held = Batch(cloud(50).x + 2 * context[:50], context[:50])
    options = {"fine_tune": FineTuning(0.3), "chunk": 33}
    result = trained(flow, JKO(**options), 60, VALIDATED, train=train, validation=held)
    nll = -flow.log_prob(held.x, held.context).mean().item()
    assert result.stages[-1]["nll"] == pytest.approx(nll, abs=1e-12)
    shuffled = -flow.log_prob(held.x, held.context.flip(0)).mean().item()
    assert shuffled > nll + 0.01


def test_blocks_without_context_are_given_none(places):
    flow = grown(2, steps=1)
    train = Batch(cloud().x, places(200, 1, seed=2))
    assert len(trained(flow, JKO(fine_tune=FineTuning()), train=train).stages) == 3


# --- an independent view of the likelihood -------------------------------------------------------


def test_every_block_adds_its_own_log_determinant(places):
    flow, x = grown(3).with_numerics(RK438(40)), places()[:, :2].requires_grad_()
    encoded = flow.encode(x)
    whole = torch.linalg.slogdet(jacobian(encoded.z, x)).logabsdet
    expected = standard_normal(encoded.z) + whole
    np.testing.assert_allclose(
        flow.log_prob(x).detach().numpy(), expected.detach().numpy(), atol=1e-6
    )
