"""Candidates by faiss, an optional library (`pip install 'iiae-cli[faiss]'`)."""

from __future__ import annotations

from types import ModuleType

import numpy as np

from iiae_cli.common.errors import IiaeError
from iiae_cli.inference.bounds import Products
from iiae_cli.inference.ties import Floats, Ints

_INSTALL = "pip install 'iiae-cli[faiss]', or leave out --backend faiss and --approximate"
_SPARE = 8  # neighbours asked for beyond k, among which the bound must find a gap


def import_faiss() -> ModuleType:
    """The library.

    Raises:
        IiaeError: it is not installed.
    """
    try:
        import faiss
    except ImportError as error:
        raise IiaeError("faiss is not installed", _INSTALL) from error
    module: ModuleType = faiss
    return module


def flat_pairs(products: Products, k: int, limits: Floats) -> tuple[Ints, Ints, Ints]:
    """Every pair that can be among a query's k nearest, by faiss' exhaustive float32 search.

    Args:
        products: of Q queries, float32.
        k: how many neighbours.
        limits: (Q,) distances, in the products' scale, that are known not to be exceeded by the k nearest.

    Returns:
        Rows of queries, rows of the gallery, and the queries for which faiss did not return enough to be sure.
    """
    faiss = import_faiss()
    queries, gallery = products.queries, products.gallery
    asked = min(k + _SPARE, len(gallery))
    cosine = products.metric == "cosine"
    metric = faiss.METRIC_INNER_PRODUCT if cosine else faiss.METRIC_L2
    values, rows = faiss.knn(queries.rows.numpy(), gallery.rows.numpy(), asked, metric=metric)
    distances = 1.0 - values.astype(np.float64) if cosine else values.astype(np.float64)
    # faiss sums all dimensions in one go, and may not subtract centres as squares do.
    gamma = (queries.rows.shape[1] + 32) * 2.0**-23 + products.gamma
    own = queries.squares.numpy()[:, None]
    error = (
        np.full_like(distances, gamma)
        if cosine
        else gamma * 2.0 * (own + gallery.squares.numpy()[rows]) + 1e-32
    )
    cuts = np.minimum(np.partition(distances + error, k - 1, axis=1)[:, k - 1], limits)
    near = distances - error <= cuts[:, None]
    # What faiss left out is no nearer than its last row, up to the error at the longest row.
    longest = 1.0 if cosine else float(gallery.squares.max())
    rest = distances[:, -1] - (gamma if cosine else gamma * 2.0 * (own[:, 0] + longest) + 1e-32)
    open_ = np.zeros(len(near), bool) if asked == len(gallery) else rest <= cuts
    near[open_] = False
    query, place = np.nonzero(near)
    return query, rows[query, place].astype(np.int64), np.flatnonzero(open_)
