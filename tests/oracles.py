"""Fields with closed forms, dense maps, and measuring tools."""

from __future__ import annotations

import math
import weakref

import numpy as np
import torch
from components import load, make, names  # noqa: F401 (what tests of plugins import from here)
from scipy.linalg import expm as scipy_expm
from torch import nn

from flowzoo.field import Gradient, Potential, Velocity
from flowzoo.maps import LinearMap

F64 = torch.float64


# --- linear maps ---------------------------------------------------------------------------------


class Matrix(LinearMap):
    """An explicit (n, d, d) map that counts its products."""

    def __init__(self, a, symmetric=False):
        self.a, self.symmetric, self.products = a, symmetric, 0

    def vjp(self, p):
        self.products += 1
        return torch.einsum("nji,...nj->...ni", self.a, p)

    def jvp(self, p):
        self.products += 1
        return torch.einsum("nij,...nj->...ni", self.a, p)

    def dense(self):
        return self.a


def with_spectrum(eigenvalues, n=1, seed=0):
    """Return n symmetric matrices (n, d, d) with these eigenvalues and random eigenvectors."""
    eigenvalues = torch.as_tensor(eigenvalues, dtype=F64)
    d = len(eigenvalues)
    generator = torch.Generator().manual_seed(seed)
    q, _ = torch.linalg.qr(torch.randn(n, d, d, generator=generator, dtype=F64))
    a = (q * eigenvalues) @ q.mT
    return 0.5 * (a + a.mT)


# --- fields with closed forms --------------------------------------------------------------------


class Linear(Velocity):
    """v = A x: z = e^{AT} x, ladj = tr(A) T, Frobenius |A|^2 T, transport x' M x / 2."""

    def __init__(self, a):
        super().__init__()
        self.dim, self.a = a.shape[0], nn.Parameter(a.clone())

    def forward(self, t, x, context=None):
        return x @ self.a.T


class Quadratic(Potential):
    """Phi = -x' S x / 2 for a symmetric S, so that -grad Phi = S x."""

    def __init__(self, s):
        super().__init__()
        self.dim, self.s = s.shape[0], nn.Parameter(s.clone())

    def forward(self, t, x, context=None):
        return -0.5 * (x * (x @ self.s)).sum(-1)


def linear_ends(a, x, end=1.0):
    """Return z, ladj, the transport cost and the integrated |J|_F^2 of dx/dt = A x."""
    d, m = a.shape[0], a.detach().numpy()
    z = x @ torch.from_numpy(scipy_expm(m * end)).to(x).T
    # Van Loan 1978: the block exponential holds the integral of e^{A't} A'A e^{At}.
    block = scipy_expm(np.block([[-m.T, m.T @ m], [np.zeros((d, d)), m]]) * end)
    gram = torch.from_numpy(block[d:, d:].T @ block[:d, d:])
    transport = 0.5 * torch.einsum("ni,ij,nj->n", x, gram, x)
    ones = torch.ones_like(transport)
    return z, ones * m.trace() * end, transport, ones * float((m**2).sum()) * end


class GaussianOT(Potential):
    """The optimal transport of N(0, s^2 I) to N(0, I): Phi = -a |x|^2 / (2 (1 + a t)), a = 1/s - 1.

    z = x / s, ladj = -d ln s, transport cost a^2 |x|^2 / 2, HJB residual 0.
    """

    def __init__(self, dim, s):
        super().__init__()
        self.dim = dim
        self.s = nn.Parameter(torch.tensor(float(s), dtype=F64))

    def forward(self, t, x, context=None):
        a = 1 / self.s - 1
        return -0.5 * a / (1 + a * t) * x.square().sum(-1)


class Drift(Velocity):
    """v = b, which does not depend on x."""

    def __init__(self, dim):
        super().__init__()
        self.dim, self.b = dim, nn.Parameter(torch.arange(1.0, dim + 1, dtype=F64))

    def forward(self, t, x, context=None):
        return self.b.expand_as(x)


class Explosive(Velocity):
    """v = 50 x^2, which leaves the numbers at t = 1 / (50 x)."""

    def __init__(self, dim=1):
        super().__init__()
        self.dim, self.c = dim, nn.Parameter(torch.tensor(50.0, dtype=F64))

    def forward(self, t, x, context=None):
        return self.c * x.square()


def _mlp(inputs, outputs, seed, gain):
    generator = torch.Generator().manual_seed(seed)
    net = nn.Sequential(nn.Linear(inputs, 8), nn.Tanh(), nn.Linear(8, outputs)).to(F64)
    with torch.no_grad():
        for p in net.parameters():
            p.copy_(gain * torch.randn(p.shape, generator=generator, dtype=F64))
    return net


def _inputs(t, x, context):
    columns = [t.to(x).expand(x.shape[0])[:, None], x]
    return torch.cat(columns if context is None else [*columns, context], 1)


class SmallVelocity(Velocity):
    """A two-layer tanh net of (t, x, context)."""

    def __init__(self, dim, context_dim=0, seed=0, gain=0.6):
        super().__init__()
        self.dim, self.context_dim = dim, context_dim
        self.net = _mlp(1 + dim + context_dim, dim, seed, gain)

    def forward(self, t, x, context=None):
        return self.net(_inputs(t, x, context))


class SmallPotential(Potential):
    """A two-layer tanh net of (t, x, context) plus a quadratic."""

    def __init__(self, dim, context_dim=0, seed=0, gain=0.6):
        super().__init__()
        self.dim, self.context_dim = dim, context_dim
        self.net = _mlp(1 + dim + context_dim, 1, seed, gain)

    def forward(self, t, x, context=None):
        return self.net(_inputs(t, x, context))[:, 0] + 0.1 * x.square().sum(-1)


def small_gradient(dim, context_dim=0, seed=0, gain=0.6):
    return Gradient(SmallPotential(dim, context_dim, seed, gain), scale=1.5)


# --- measuring -----------------------------------------------------------------------------------


def jacobian(z, x):
    """Return dz/dx as (n, d, d) by one backward pass per output."""
    rows = [torch.autograd.grad(z[:, i].sum(), x, retain_graph=True)[0] for i in range(z.shape[-1])]
    return torch.stack(rows, 1)


def row_by_row(fn, t, x, context):
    """Return fn(t_i, x_i, c_i) stacked, fn acting on a batch of one."""
    t = t.expand(x.shape[0])
    rows = [
        fn(t[i], x[i : i + 1], None if context is None else context[i : i + 1])
        for i in range(x.shape[0])
    ]
    return torch.cat(rows)


def gap(a, b):
    """Return the largest difference relative to the largest entry of b, over tensors or tuples."""
    a, b = ([u] if isinstance(u, torch.Tensor) else list(u) for u in (a, b))
    pairs = list(zip(a, b, strict=True))
    assert all(u.shape == v.shape for u, v in pairs), [(u.shape, v.shape) for u, v in pairs]
    largest = max(v.abs().max().item() for _, v in pairs)
    return max((u - v).abs().max().item() for u, v in pairs) / max(largest, 1e-300)


def gradients(loss, parameters):
    """Return gradients, zeros where a parameter is not used."""
    parameters = list(parameters)
    found = torch.autograd.grad(loss, parameters, allow_unused=True)
    return [torch.zeros_like(p) if g is None else g for p, g in zip(parameters, found, strict=True)]


def slope(steps, errors):
    """Return the order of convergence by regression of log error on log step size."""
    x, y = np.log(1 / np.asarray(steps, dtype=float)), np.log(np.asarray(errors, dtype=float))
    return float(np.polyfit(x, y, 1)[0])


def standard_normal(z):
    """Return log N(z; 0, I), written by its one-dimensional factors."""
    return (-0.5 * z**2 - 0.5 * math.log(2 * math.pi)).sum(-1)


class SavedBytes(torch.autograd.graph.saved_tensors_hooks):
    """Measures `peak`, the most bytes that graphs keep alive at once, each storage counted once."""

    def __init__(self):
        self.live, self.now, self.peak = {}, 0, 0
        super().__init__(self._pack, lambda held: held.tensor)

    def __enter__(self):
        super().__enter__()
        return self

    def _pack(self, tensor):
        held = _Held(tensor.detach())
        key, size = tensor.untyped_storage().data_ptr(), tensor.untyped_storage().nbytes()
        count = self.live.get(key, 0)
        self.live[key] = count + 1
        if not count:
            self.now += size
            self.peak = max(self.peak, self.now)
        weakref.finalize(held, self._release, key, size)
        return held

    def _release(self, key, size):
        self.live[key] -= 1
        if not self.live[key]:
            self.now -= size


class _Held:
    def __init__(self, tensor):
        self.tensor = tensor
