"""Values of FFJORD's published code, and networks with its weights; see golden/ffjord/README.md."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch

from flowzoo.traces import Hutchinson, TraceEstimator
from flowzoo_ffjord.official import load_official
from flowzoo_ffjord.velocity import ODENet

GOLDEN = Path(__file__).parent / "golden" / "ffjord"


def read(name):
    with np.load(GOLDEN / f"{name}.npz") as arrays:
        return {key: torch.from_numpy(arrays[key]) for key in arrays.files}


def off(a, b):
    """Return the largest difference between values of order 1."""
    assert a.shape == b.shape
    return (a - b).abs().max().item()


def weights(golden, prefix="w::"):
    return {k.removeprefix(prefix): v for k, v in golden.items() if k.startswith(prefix)}


def network(golden, dim, activation, prefix="w::", **options):
    hidden = weights_hidden(golden, prefix)
    assert hidden == golden["hidden"].tolist()
    net = ODENet(dim, hidden, activation=activation, **options).double()
    load_official(net, golden, prefix)
    return net


def weights_hidden(golden, prefix="w::"):
    biases = {k: v for k, v in weights(golden, prefix).items() if k.endswith("_layer.bias")}
    return [len(biases[f"layers.{i}._layer.bias"]) for i in range(len(biases) - 1)]


def like_ours(net, golden, prefix):
    """Return golden gradients in the order and under the names of the network's parameters."""
    holder = ODENet(net.dim, [layer.linear.out_features for layer in net.layers][:-1]).double()
    load_official(holder, golden, prefix)
    return [holder.get_parameter(name) for name, _ in net.named_parameters()]


class Given(TraceEstimator):
    """Hutchinson's estimate with probes that are given."""

    def __init__(self, e):
        self.e = e

    def probes(self, x, generator=None):
        return self.e[None]

    def __call__(self, a, probes, fn=None):
        return Hutchinson()(a, probes, fn)
