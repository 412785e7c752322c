"""Options that several verbs share, each written once.

Contract: an option's name is its parameter's in the verb; its default stands there. Nothing is checked here but types:
that is ``cellray.settings``.
"""

from typing import Annotated

import typer

Inputs = Annotated[
    list[str],
    typer.Argument(
        help="h5ad, h5mu, zarr, loom, 10x .h5, Matrix Market, tables; paths, globs or s3://", show_default=False
    ),
]
Model = Annotated[str, typer.Option(help="`mini` (bundled), or a model folder: path or s3://")]
Layer = Annotated[str | None, typer.Option(help="layer with the raw counts; found by itself otherwise")]
GeneKey = Annotated[str | None, typer.Option(help="var column with gene ids or symbols; found by itself otherwise")]
Genome = Annotated[
    str | None, typer.Option(help="genome of files that hold several, e.g. GRCh38; default: the human one")
]
Round = Annotated[bool, typer.Option("--round", help="round the decimals of --layer to whole counts")]
AllowNormalised = Annotated[
    bool, typer.Option("--allow-normalised", help="take log-normalised values where counts cannot be recovered")
]
ClusterKey = Annotated[str | None, typer.Option(help="obs column of clusters: each gets one label, with its share")]
MinGenes = Annotated[int, typer.Option(help="a cell with fewer known genes is rejected", min=1)]
ShardCells = Annotated[int, typer.Option(help="cells of one unit of work")]
Encoders = Annotated[int | None, typer.Option(help="encoder actors; default one a GPU, else one for four CPUs")]
Precision = Annotated[str, typer.Option(help="float32, float16, bfloat16, or auto: float16 on a GPU")]
Lam = Annotated[str, typer.Option(help="GRIT's smoothing strength: a number, or gcv or loo to choose one")]
K = Annotated[int, typer.Option(help="neighbours of a cell in the graph")]
NPcs = Annotated[int, typer.Option(help="principal components that neighbours are searched in")]
BatchKey = Annotated[str | None, typer.Option(help="obs column: neighbours are balanced across its values")]
UseRep = Annotated[str | None, typer.Option(help="obsm entry to search neighbours in, instead of components")]
UseGraph = Annotated[str | None, typer.Option(help="obsp entry to take as the graph")]
AnchorKey = Annotated[str | None, typer.Option(help="obs column with known labels of some cells")]
AnchorWeight = Annotated[float | None, typer.Option(help="weight of a known label; held fixed by default")]
Reason = Annotated[
    str | None,
    typer.Option(
        help="ask a language model about uncertain groups: `mini-cell-o1`, a model folder, or a served app's URL"
    ),
]
ReasonShare = Annotated[float, typer.Option(help="share of a dataset's cells it may label, at most")]
ReasonMargin = Annotated[float, typer.Option(help="a cell is uncertain if (best - second) / best is below")]
DonorKey = Annotated[
    str | None, typer.Option(help="obs column with donors of --reason; default donor_id if it is there")
]
Address = Annotated[str | None, typer.Option(help="Ray cluster to join; default: Ray on this machine")]
