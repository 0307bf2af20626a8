"""Flows of zuko are flows of ours: their density, inverse, gradients, options, and errors."""

from __future__ import annotations

import copy
import subprocess
import sys
from typing import get_args

import pytest
import torch
from judge_subjects import Rows
from oracles import gap, jacobian

from flowzoo.conformance.finding import cases, specimens
from flowzoo.conformance.runner import run
from flowzoo.data.synthetic import Gaussian
from flowzoo.errors import Incompatible, UserError
from flowzoo.flow import log_normal
from flowzoo.judge import evaluate
from flowzoo.judge.inverse import InverseError
from flowzoo.judge.likelihood import KL, NLL
from flowzoo.objective import Batch
from flowzoo.registry import Registry
from flowzoo.registry.component import Component, load_class
from flowzoo.settings import Budget, Optimizer, Training
from flowzoo.training import fit

zuko = pytest.importorskip("zuko")
from flowzoo_zuko.adopted import Adopted  # noqa: E402
from flowzoo_zuko.flow import Architecture, Zuko  # noqa: E402

ARCHITECTURES = get_args(Architecture)
BISECT = {"naf", "unaf", "sospf", "bpf", "gf"}
CLASSES = {"realnvp": "RealNVP", **{name: name.upper() for name in ARCHITECTURES[1:]}}


def made(architecture, dim=2, context_dim=0, seed=0, **options):
    torch.manual_seed(seed)
    if architecture == "cnf":
        options.setdefault("tolerance", 1e-9)
    flow = Zuko(dim, architecture, hidden=[8], context_dim=context_dim, **options)
    if architecture == "cnf":  # the divergence of zuko's ELU has kinks, which solvers stumble over
        flow.flow.net.transform.ode[1] = torch.nn.Tanh()
    return flow.double().eval()


@pytest.mark.parametrize(("dim", "context_dim"), [(1, 0), (3, 0), (2, 2)])
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_density_and_inverse_are_those_of_the_map(architecture, dim, context_dim, places):
    flow, x = made(architecture, dim, context_dim), places(4, dim)
    context = places(4, 2, 1) if context_dim else None
    y = x.clone().requires_grad_()
    encoded = flow.encode(y, context=context)
    slogdet = torch.linalg.slogdet(jacobian(encoded.z, y))[1]
    assert gap(encoded.ladj, slogdet) < (1e-6 if architecture == "cnf" else 1e-9)
    log_prob = flow.log_prob(x, context)
    assert gap(log_prob, log_normal(encoded.z) + encoded.ladj) < 1e-12
    assert gap(log_prob, flow.flow.net(context).log_prob(x)) < 1e-12  # zuko's own
    allowed = 2e-5 if architecture in BISECT else 1e-6
    assert gap(flow.decode(encoded.z, context), x) < allowed


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_every_weight_has_its_gradient_in_evaluation_too(architecture, places):
    """zuko leaves weights out there; finite differences see them."""
    flow, x = made(architecture), places(6, 2)
    weights = [*flow.parameters()]
    directions = [torch.randn_like(w) for w in weights]
    found = torch.autograd.grad(flow.log_prob(x).sum(), weights)
    slope = sum((g * u).sum() for g, u in zip(found, directions, strict=True))

    def moved(h):
        with torch.no_grad():
            for w, u in zip(weights, directions, strict=True):
                w.add_(h * u)
            value = flow.log_prob(x).sum()
            for w, u in zip(weights, directions, strict=True):
                w.sub_(h * u)
        return value

    expected = (moved(1e-5) - moved(-1e-5)) / 2e-5
    assert slope.item() == pytest.approx(expected.item(), rel=1e-4)
    assert all(g.abs().sum() > 0 for g in torch.autograd.grad(flow.decode(x).sum(), weights))


def test_the_classes_are_those_of_zuko():
    for name, cls in CLASSES.items():
        assert type(made(name).flow.net) is getattr(zuko.flows, cls)


def test_options_arrive():
    assert len(made("maf").flow.net.transform.transforms) == 3
    assert len(made("maf", transforms=5).flow.net.transform.transforms) == 5
    widths = [m.out_features for m in Zuko(2, "realnvp", hidden=[7, 9]).modules()
              if isinstance(m, torch.nn.Linear | zuko.nn.Linear)]  # fmt: skip
    assert widths[:2] == [7, 9]
    sizes = [sum(p.numel() for p in made("nsf", bins=k).parameters()) for k in (4, 8)]
    assert sizes[0] < sizes[1]
    loose = Zuko(2, "cnf", tolerance=0.5).flow.net.transform
    assert (loose.rtol, loose.atol) == (0.5, 0.5)


WRONG = [
    ({"architecture": "nfs"}, "unknown architecture 'nfs'; did you mean 'nsf'"),
    ({"architecture": "maf", "bins": 8}, "maf has no bins; leave it out, got 8"),
    ({"architecture": "cnf", "transforms": 2}, "cnf has no transforms"),
    ({"architecture": "nsf", "tolerance": 1e-3}, "nsf has no tolerance"),
    ({"architecture": "nsf", "bins": 1}, "bins must be at least 2"),
    ({"architecture": "nsf", "transforms": 0}, "transforms must be at least 1"),
    ({"architecture": "cnf", "tolerance": 0.0}, "tolerance must be positive"),
    ({"architecture": "maf", "hidden": [8, 0]}, "every width in hidden must be at least 1"),
]


@pytest.mark.parametrize(("options", "sentence"), WRONG)
def test_options_that_do_not_fit_are_refused(options, sentence):
    with pytest.raises(UserError, match=sentence):
        Zuko(2, **options)


@pytest.mark.parametrize("way", ["encode", "decode"])
def test_widths_that_do_not_fit_are_refused(way, places):
    with pytest.raises(Incompatible, match="MAF of zuko has 2 features, got points \\(4, 3\\)"):
        getattr(made("maf"), way)(places(4, 3))
    with pytest.raises(Incompatible, match="built for a context of width 3, got 0: set its"):
        getattr(made("maf", 2, 3), way)(places(4, 2))
    with pytest.raises(Incompatible, match="no trajectory"):
        made("cnf").encode(places(4, 2), (object(),))  # pyright: ignore[reportArgumentType]


@pytest.mark.parametrize("architecture", ["nsf", "naf", "cnf"])
def test_it_runs_in_inference_mode_and_on_nothing(architecture, places):
    flow, x = made(architecture), places(5, 2)
    expected, back = flow.log_prob(x), flow.decode(x)
    with torch.inference_mode():
        assert torch.equal(flow.log_prob(x), expected)
        assert torch.equal(flow.decode(x), back)
    assert flow.log_prob(x[:0]).shape == (0,)
    assert flow.decode(x[:0]).shape == (0, 2)


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_copies_and_saved_weights_are_the_same_flow(architecture, places, tmp_path):
    from safetensors.torch import load_model, save_model

    flow, other, x = made(architecture), made(architecture, seed=1), places(5, 2)
    save_model(flow, str(tmp_path / "flow"))
    assert not torch.equal(other.log_prob(x), flow.log_prob(x))
    load_model(other, str(tmp_path / "flow"))
    assert torch.equal(other.log_prob(x), flow.log_prob(x))
    assert torch.equal(copy.deepcopy(flow).log_prob(x), flow.log_prob(x))


@pytest.mark.parametrize("architecture", ["maf", "nsf", "cnf"])
def test_it_is_trained_and_judged_as_any_flow(architecture):
    data = Gaussian(dim=2, condition=4.0, mean=0.5, train=2000, test=500).load()
    torch.manual_seed(0)
    options = {"tolerance": 1e-3} if architecture == "cnf" else {}
    flow = Zuko(2, architecture, hidden=[16], **options)
    objective = Registry.installed().load("objective", "likelihood")()
    before = evaluate(flow, data, metrics=[KL()])["kl"]
    training = Training(batch_size=256, optimizer=Optimizer(lr=2e-2), validate_every=0)
    fitted = fit(
        flow, objective, Batch(data.train.float()), budget=Budget(steps=60), training=training
    )
    after = evaluate(fitted.flow, data, metrics=[NLL(), KL(), InverseError()])
    assert after["kl"].value + after["kl"].error < 0.5 * before.value
    assert after["kl"].value > -after["kl"].error  # no better than the truth
    assert after["inverse-error"].parts["judge"] < 1e-3


def test_a_flow_trained_elsewhere_is_adopted(places):
    torch.manual_seed(0)
    net = zuko.flows.NSF(3, 2, transforms=1).double()
    flow, x, context = Adopted(net, context_dim=2), places(30, 3), places(30, 2, 1)
    assert (flow.dim, flow.context_dim) == (3, 2)
    found = evaluate(flow, Rows(x, context), metrics=[NLL()])["nll"]
    assert found.value == pytest.approx(-net(context).log_prob(x).mean().item(), rel=1e-12)
    assert [*flow.parameters()] == [*net.parameters()]


def test_what_cannot_be_adopted_is_refused():
    with pytest.raises(Incompatible, match=r"base of this NCSF is not N\(0, I\).*adapt\(net\(\)\)"):
        Adopted(zuko.flows.NCSF(2))
    shifted = zuko.flows.MAF(2)
    shifted.base.loc += 1
    with pytest.raises(Incompatible, match="base of this MAF"):
        Adopted(shifted)
    with pytest.raises(UserError, match="expected a flow of zuko, got GMM"):
        Adopted(zuko.flows.GMM(2))
    with pytest.raises(Incompatible, match=r"estimates its log-determinant .* `exact = True`"):
        Adopted(zuko.flows.CNF(2, exact=False))


@pytest.mark.parametrize("first", ["flowzoo_zuko.flow", "zuko"])
def test_the_validation_of_torch_distributions_stays_as_it_was(first):
    code = f"""
import torch, {first}, flowzoo_zuko.flow
try:
    torch.distributions.Normal(0.0, -1.0)
    print("off")
except ValueError:
    print("on")
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == ("off" if first == "zuko" else "on")


def test_without_zuko_the_extra_is_named(monkeypatch):
    for name in [
        name for name in sys.modules if name.partition(".")[0] in ("zuko", "flowzoo_zuko")
    ]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "zuko", None)
    component = Component("flow", "zuko", "flowzoo_zuko.flow:Zuko", "flowzoo 0.1.0")
    with pytest.raises(UserError, match=r"needs 'zuko', .* pip install 'flowzoo\[zuko\]'"):
        load_class(component)
    registry = Registry([component])
    assert [each.state for each in registry.load_all()] == ["missing"]
    (case,) = cases(specimens(["flow/zuko"], registry))
    assert run(case.specimen, case.check).outcome == "skip"
