"""What CellRay adds to an AnnData object: what ``annotated`` adds to a file, with the same names and values.

Contract: ``obs`` columns of an earlier run are replaced, and so are the embedding and the record; nothing else of the
object changes, X least of all. Everything is made before anything is assigned, so that an error leaves it as it was.
"""

from typing import TYPE_CHECKING

import numpy as np

from cellray import schema
from cellray.write.columns import embedding_blocks, embedding_width, obs_columns, record

if TYPE_CHECKING:
    from anndata import AnnData

    from cellray.write.h5ad import Results


def annotate_adata(adata: "AnnData", results: "Results") -> None:
    """Add the results to ``adata``.

    Raises
    ------
    WriteError
        If the results do not cover its cells one by one.
    """
    columns = dict(obs_columns(results, adata.n_obs))
    embedding = np.empty((adata.n_obs, embedding_width(results)), np.float32)
    for start, block in embedding_blocks(results, adata.n_obs):
        embedding[start : start + len(block)] = block
    if columns:
        obs = adata.obs.drop(columns=[name for name in adata.obs if str(name).startswith(schema.OBS_PREFIX)])
        for name, values in columns.items():
            obs[name] = values
        adata.obs = obs  # which makes an object of its own of a view
    adata.obsm[results.embedding_key] = embedding
    adata.uns[schema.UNS_KEY] = record(results.uns)
