"""Results to files: score parts, the annotation table and the annotated AnnData, as a copy or in memory.

Contract: every file is published whole or not at all, and parts and annotations have the same bytes whenever they
hold the same content. This package computes no scores, does not refine and knows nothing of Ray.
"""

from cellray.write.annotations import Counts, label_table, read_annotations, relabelled, write_annotations
from cellray.write.clusters import ClusterLabels, label_clusters
from cellray.write.h5ad import Results, annotate_h5ad, annotate_zarr, build_h5ad
from cellray.write.in_memory import annotate_adata
from cellray.write.scores import part_labels, part_name, read_part, write_part

__all__ = [
    "ClusterLabels",
    "Counts",
    "Results",
    "annotate_adata",
    "annotate_h5ad",
    "annotate_zarr",
    "build_h5ad",
    "label_clusters",
    "label_table",
    "part_labels",
    "part_name",
    "read_annotations",
    "read_part",
    "relabelled",
    "write_annotations",
    "write_part",
]
