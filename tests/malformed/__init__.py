"""Malformed and hostile inputs, made by seed, and what the program must answer to each; see `test_malformed.py`."""

from malformed import archives, arrays, caches, cars, configurations, data_files, pictures, weights
from malformed.cases import CASES as ALL_CASES

__all__ = [
    "ALL_CASES",
    "archives",
    "arrays",
    "caches",
    "cars",
    "configurations",
    "data_files",
    "pictures",
    "weights",
]
