"""The bench: a matrix file becomes cells, cells become records, records become tables.

Nothing here imports torch before a cell runs.
"""

from flowzoo.bench.cells import Cell
from flowzoo.bench.grid import Matrix
from flowzoo.bench.matrix import load_matrix
from flowzoo.bench.observer import Observer
from flowzoo.bench.record import Record
from flowzoo.bench.runner import run
from flowzoo.bench.store import Store

__all__ = ["Cell", "Matrix", "Observer", "Record", "Store", "load_matrix", "run"]
