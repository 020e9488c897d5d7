"""Approximate search by faiss' inverted lists, for galleries that many queries search.

A query looks into the few lists of gallery rows whose centroids are nearest. The index file (z.h5,
z.faiss) holds the centroids, the cache the vectors; made for other latents, or damaged, it is made
again. What is found is measured and ordered exactly. Memory: the gallery, twice.
"""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from iiae_cli.common import console
from iiae_cli.common.errors import IiaeError
from iiae_cli.common.files import writing
from iiae_cli.common.tensors import read_tensors, save_tensors
from iiae_cli.inference.neighbours import (
    Floats,
    Frame,
    Ints,
    Metric,
    Rows,
    checked_slices,
    first_of,
    import_faiss,
    measure,
    nearest,
)

SCHEMA = "iiae.index/4"
RECALL = 0.95  # of the exact neighbours that the sample's queries must find
SAMPLE = 100
_SPARE = 16  # neighbours asked for beyond k, to be ordered exactly


def search(
    queries: NDArray[Any], gallery: Rows, k: int, *, metric: Metric, path: Path, fingerprint: str
) -> tuple[Ints, Floats, dict[str, Any]]:
    """Searches more and more lists until a sample's queries find `RECALL` of their neighbours.

    The index at `path` belongs to this gallery (G, S) and the model of this fingerprint. Returns
    rows of the gallery (Q, k), their exact distances, and how they were found, with the sample's
    recall. Raises IiaeError if faiss is missing or a value is not finite.
    """
    rows = np.concatenate([part for _, part in checked_slices(gallery)])
    frame = Frame(rows, rows, metric)
    looked = frame(queries, 0).numpy()
    digest = hashlib.blake2b(rows.data, digest_size=16).hexdigest()
    header = {"schema": SCHEMA, "fingerprint": fingerprint, "metric": metric, "rows": digest}
    index, made = _index(path, header, frame(rows, 1).numpy())
    count = index.nlist
    few = np.linspace(0, len(queries) - 1, min(SAMPLE, len(queries)), dtype=np.int64)
    wanted, _ = nearest(queries[few], rows, k, metric=metric)
    asked, recall, index.nprobe = min(k + _SPARE, len(rows)), 0.0, 4
    while recall < RECALL and index.nprobe < count:
        index.nprobe = min(2 * index.nprobe, count)
        near = index.search(looked[few], asked)[1]
        hits = sum(len(np.intersect1d(*pair)) for pair in zip(near, wanted, strict=True))
        recall = hits / max(1, wanted.size)
    probes, near = index.nprobe, index.search(looked, asked)[1]
    short = np.flatnonzero((near < 0).any(axis=1))  # their lists hold too few rows: look into all
    index.nprobe = count
    near[short] = index.search(looked[short], asked)[1]
    near.sort(axis=1)
    near, distances = first_of(near, measure(queries, rows, near, metric), k, metric)
    console.say(
        f"index {path} {'made' if made else 'read'}; {probes} of {count} lists; "
        f"recall@{wanted.shape[1]} {recall:.3f} on {len(few)} of {len(queries)} queries"
    )
    about = {"index": str(path), "recall": recall, "sample": len(few)}
    return near, distances, {**about, "probes": probes, "lists": count, "made": made}


def _index(path: Path, header: dict[str, str], vectors: NDArray[np.float32]) -> tuple[Any, bool]:
    """Returns √G lists of the vectors (G, S), and whether their centroids were not yet in a file.

    The centroids are those that k-means finds from a sample of the vectors.
    """
    faiss, (size, width) = import_faiss(), vectors.shape
    lists = max(1, min(round(size**0.5), size // 39))
    quantizer = faiss.IndexFlatL2(width)
    index = faiss.IndexIVFFlat(quantizer, width, lists)
    try:
        stored, tensors = read_tensors(path, SCHEMA, "")
    except IiaeError:  # missing or damaged
        stored, tensors = {}, {}
    made = stored != header
    if made:
        index.cp.min_points_per_centroid, index.cp.max_points_per_centroid = 1, 64
        index.train(vectors)
        centroids = torch.from_numpy(quantizer.reconstruct_n(0, lists))
        with writing(path) as temporary:
            save_tensors({"centroids": centroids}, temporary, header)
    else:
        quantizer.add(tensors["centroids"].numpy())
        index.is_trained = True
    index.add(vectors)
    return index, made
