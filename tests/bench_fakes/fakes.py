"""Components that train in milliseconds, or fail in every way that a cell can fail."""

from __future__ import annotations

import os
import signal
import time

import torch
from torch import nn

from flowzoo.data import Data, Dataset
from flowzoo.errors import BadData, Diverged, Incompatible
from flowzoo.flow import Encoded, Flow
from flowzoo.judge import Measure, Metric


class Affine(Flow):
    """z = x * exp(scale) + shift, with misfortunes at a step of one's choice.

    Arguments:
        dim: Dimension d.
        fate: What happens.
        at: In which evaluation.
        sleep: Seconds that every evaluation takes.
    """

    def __init__(self, dim: int, fate: str = "", at: int = 3, sleep: float = 0.0) -> None:
        super().__init__()
        if fate == "incompatible":
            raise Incompatible("this flow fits nothing")
        self.dim, self.fate, self.at, self.sleep, self.count = dim, fate, at, sleep, 0
        self.scale = nn.Parameter(0.01 * torch.randn(dim))
        self.shift = nn.Parameter(torch.zeros(dim))

    def encode(self, x, running=(), context=None, generator=None):
        self.count += 1
        if self.sleep and self.training:
            time.sleep(self.sleep)
        if self.count == self.at:
            self.meet(self.fate)
        z = x * self.scale.exp() + self.shift
        return Encoded(z, self.scale.sum().expand(len(x)), x.new_zeros(len(x), len(running)))

    def decode(self, z, context=None):
        return (z - self.shift) * (-self.scale).exp()

    def meet(self, fate: str) -> None:
        if fate == "raise":
            raise RuntimeError("an odd thing happened")
        if fate == "crash":
            os.kill(os.getpid(), signal.SIGSEGV)
        if fate == "exit":
            os._exit(3)
        if fate == "killed":
            os.kill(os.getpid(), signal.SIGKILL)
        if fate == "hang":
            signal.signal(signal.SIGTERM, signal.SIG_IGN)
            time.sleep(600)
        if fate == "diverge":
            raise Diverged("the loss is nan at step 3")
        if fate == "no-memory":
            raise RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory")
        if fate == "hog":
            self.hoard = [torch.ones(2**18) for _ in range(4000)]
            time.sleep(600)
        if fate == "disk-full":
            raise OSError(28, "No space left on device")


class Blob(Dataset):
    """200 rows of a Gaussian with standard deviation 2 about 1.

    Arguments:
        dim: Dimension d.
        offset: Where the middle is.
        broken: Whether there is a NaN in it.
    """

    def __init__(self, dim: int = 2, offset: float = 1.0, broken: bool = False) -> None:
        self.dim, self.offset, self.broken = dim, offset, broken
        self.standardise = True

    def load(self) -> Data:
        generator = torch.Generator().manual_seed(5)
        x = 2 * torch.randn(300, self.dim, generator=generator, dtype=torch.float64) + self.offset
        if self.broken:
            raise BadData("blob: row 3 is NaN; remove it.")
        entropy = self.dim * 2.112085713764618  # log(2) + log(2 pi e) / 2 for each dimension
        return Data("blob", x[:200], x[200:250], x[250:], entropy=entropy, notes="no preprocessing")


class Odd(Metric):
    """A metric that is not a number."""

    def measure(self, subject):
        return {"odd": Measure(float("nan"), None, "", "lower")}


def flowzoo_components():
    return {"affine": Affine, "blob": Blob, "odd": Odd}


def flowzoo_table_columns():
    return {"steps per second": lambda r: r.costs["steps"] / r.costs["train_seconds"]}


def flowzoo_cell_finished(cell, record):
    path = os.environ.get("FAKES_HEARD")
    if path:
        with open(path, "a") as file:
            file.write(f"{cell.flow} {record.state}\n")
