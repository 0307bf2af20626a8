"""Residual blocks with known properties, for their tests."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from oracles import F64
from torch.nn.functional import elu, linear, softplus

from flowzoo_residual.flow import Residual

GOLDEN = Path(__file__).parent / "golden" / "jko" / "residual.npz"
PLAIN = {"elu": elu, "softplus": softplus, "tanh": torch.tanh}


def golden():
    """Return the golden values as tensors."""
    with np.load(GOLDEN) as file:
        return {key: torch.from_numpy(file[key]) for key in file.files}


def block(dim=3, hidden=(5, 4), seed=0, size=1.0, **options):
    """Return a block in float64, in evaluation mode, its weights at the start times a size."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        flow = Residual(dim, hidden, **{"activation": "elu", **options}).to(F64)
    with torch.no_grad():
        for layer in flow.network.layers:
            layer.linear.weight.mul_(size)
    return flow.eval()


def filled(flow, weights, biases):
    """Return a block with given weights and biases."""
    with torch.no_grad():
        for layer, w, b in zip(flow.network.layers, weights, biases, strict=True):
            layer.linear.weight.copy_(torch.as_tensor(w))
            layer.linear.bias.copy_(torch.as_tensor(b))
    return flow


def monotone(dim=3, size=2.0, sign=1.0):
    """Return x + sign A^T s(A x) for A of norm `size`: for sign 1 a bijection, of any size."""
    flow = block(dim, (dim,), lipschitz=None, activation="softplus")
    draws = torch.Generator().manual_seed(1)
    a = size * torch.linalg.qr(torch.randn(dim, dim, generator=draws, dtype=F64))[0]
    return filled(flow, (a, sign * a.T), (torch.zeros(dim), torch.zeros(dim)))


def by_autograd(flow, x, context=None):
    """Return z and its Jacobian (n, d, d) by automatic differentiation of the plain formula."""
    weights = [layer.linear.weight for layer in flow.network.layers]
    if flow.network.layers[0].bound is not None:
        bounds = [layer.bound for layer in flow.network.layers]
        norms = [torch.linalg.svdvals(w)[0] for w in weights]
        weights = [w / max(1, s / c) for w, s, c in zip(weights, norms, bounds, strict=True)]
    biases = [layer.linear.bias for layer in flow.network.layers]

    def z_of(x, c=None):
        y = x
        for k, (w, b) in enumerate(zip(weights, biases, strict=True)):
            y = linear(y, w, b)
            y = y if k or c is None else y + flow.network.context(c)
            y = y if k == len(weights) - 1 else PLAIN[flow.network.activation](y)
        return x + y

    rows = [(x[i],) if context is None else (x[i], context[i]) for i in range(len(x))]
    z = torch.stack([z_of(*row) for row in rows])
    make = torch.autograd.functional.jacobian
    return z, torch.stack([make(lambda y, r=row: z_of(y, *r[1:]), row[0]) for row in rows])
