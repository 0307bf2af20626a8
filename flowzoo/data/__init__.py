"""Data: 2-D toys, oracles of known density, real sets shipped or in a folder, the user's files."""

from flowzoo.data.dataset import Data, Dataset, Standardisation, standardised
from flowzoo.data.validation import validate

__all__ = ["Data", "Dataset", "Standardisation", "standardised", "validate"]
