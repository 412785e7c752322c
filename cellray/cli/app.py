"""``cellray VERB``: thin verbs over the library.

Contract: results go to standard output (``--json`` for machines), progress and errors to standard error, one line an
error. Exit codes: 0 done, 1 failed, 2 usage or setting, 3 done but some datasets failed. Nothing heavy is imported
before a verb runs.
"""

import sys
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NoReturn

import typer

from cellray import __version__
from cellray.cli.export import export
from cellray.cli.plugins import plugins_app
from cellray.cli.puzzles import puzzles_app
from cellray.cli.reason import reason
from cellray.cli.shared import Json, lines, print_json
from cellray.errors import CellRayError, Terminated, one_line

if TYPE_CHECKING:
    from cellray.pipeline import RunResult
    from cellray.settings import AnnotateSettings

app = typer.Typer(
    help="Annotate every cell of a single-cell atlas: raw counts in, cell-type labels with scores out.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    add_completion=False,
)
app.add_typer(plugins_app, name="plugins")
app.add_typer(puzzles_app, name="puzzles")

_Inputs = Annotated[
    list[str], typer.Argument(help="h5ad, zarr, 10x .h5, 10x mtx folders; paths, globs or s3://", show_default=False)
]
_Model = Annotated[str, typer.Option(help="`mini` (bundled), or a model folder: path or s3://")]
_Layer = Annotated[str | None, typer.Option(help="layer with the raw counts; found by itself otherwise")]
_GeneKey = Annotated[str | None, typer.Option(help="var column with gene ids or symbols; found by itself otherwise")]
_Genome = Annotated[
    str | None, typer.Option(help="genome of files that hold several, e.g. GRCh38; default: the human one")
]
_Round = Annotated[bool, typer.Option("--round", help="round the decimals of --layer to whole counts")]
_AllowNormalised = Annotated[
    bool, typer.Option("--allow-normalised", help="take log-normalised values where counts cannot be recovered")
]
_ClusterKey = Annotated[str | None, typer.Option(help="obs column of clusters: each gets one label, with its share")]
_MinGenes = Annotated[int, typer.Option(help="a cell with fewer known genes is rejected")]
_ShardCells = Annotated[int, typer.Option(help="cells of one unit of work")]
_Encoders = Annotated[int | None, typer.Option(help="encoder actors; default one a GPU, else one for four CPUs")]
_Precision = Annotated[str, typer.Option(help="float32, float16, bfloat16, or auto: float16 on a GPU")]
_Lam = Annotated[str, typer.Option(help="GRIT's smoothing strength: a number, or gcv or loo to choose one")]
_K = Annotated[int, typer.Option(help="neighbours of a cell in the graph")]
_NPcs = Annotated[int, typer.Option(help="principal components that neighbours are searched in")]
_BatchKey = Annotated[str | None, typer.Option(help="obs column: neighbours are balanced across its values")]
_UseRep = Annotated[str | None, typer.Option(help="obsm entry to search neighbours in, instead of components")]
_UseGraph = Annotated[str | None, typer.Option(help="obsp entry to take as the graph")]
_AnchorKey = Annotated[str | None, typer.Option(help="obs column with known labels of some cells")]
_AnchorWeight = Annotated[float | None, typer.Option(help="weight of a known label; held fixed by default")]
_Reason = Annotated[
    str | None,
    typer.Option(
        help="ask a language model about uncertain groups: `mini-cell-o1`, a model folder, or a served app's URL"
    ),
]
_ReasonShare = Annotated[float, typer.Option(help="share of a dataset's cells it may label, at most")]
_ReasonMargin = Annotated[float, typer.Option(help="a cell is uncertain if (best - second) / best is below")]
_DonorKey = Annotated[
    str | None, typer.Option(help="obs column with donors of --reason; default donor_id if it is there")
]
_Address = Annotated[str | None, typer.Option(help="Ray cluster to join; default: Ray on this machine")]


@app.callback(invoke_without_command=True)
def _root(*, show_version: Annotated[bool, typer.Option("--version", help="print the version")] = False) -> None:
    if show_version:
        typer.echo(f"cellray {__version__}")
        raise typer.Exit


@app.command()
def annotate(
    inputs: _Inputs,
    *,
    out: Annotated[str, typer.Option(help="output folder, local or s3://")],
    model: _Model = "mini",
    labels: Annotated[
        str | None, typer.Option(help="one label a line: name, Cell Ontology id, or label<TAB>text")
    ] = None,
    plugins: Annotated[
        str | None, typer.Option(help="registry of scGPT plugins that label the cells: path or s3://")
    ] = None,
    tissue: Annotated[str | None, typer.Option(help="tissue of all cells; else each cell's is found")] = None,
    alpha: Annotated[
        float, typer.Option(help="weight of similarity against cell-text matching; 1 skips matching")
    ] = 0.2,
    ctm_top_k: Annotated[
        int | None, typer.Option(help="match only so many most similar labels: quicker, an approximation")
    ] = None,
    precision: _Precision = "auto",
    refine: Annotated[str, typer.Option(help="grit, majority, average or none")] = "grit",
    lam: _Lam = "1.0",
    k: _K = 15,
    n_pcs: _NPcs = 50,
    graph_batch_key: _BatchKey = None,
    use_rep: _UseRep = None,
    use_graph: _UseGraph = None,
    anchor_key: _AnchorKey = None,
    anchor_weight: _AnchorWeight = None,
    reason: _Reason = None,
    reason_share: _ReasonShare = 0.03,
    reason_margin: _ReasonMargin = 0.5,
    donor_key: _DonorKey = None,
    layer: _Layer = None,
    gene_key: _GeneKey = None,
    genome: _Genome = None,
    round_values: _Round = False,
    allow_normalised: _AllowNormalised = False,
    cluster_key: _ClusterKey = None,
    min_genes: _MinGenes = 20,
    shard_cells: _ShardCells = 8192,
    encoders: _Encoders = None,
    address: _Address = None,
    as_json: Json = False,
) -> None:
    """Label every cell of the inputs."""
    from cellray.settings import AnnotateSettings

    settings = AnnotateSettings.checked(
        inputs=tuple(inputs),
        out=out,
        model=model,
        labels=labels,
        plugins=plugins,
        tissue=tissue,
        alpha=alpha,
        ctm_top_k=ctm_top_k,
        precision=precision,
        refine=refine,
        lam=lam,
        k=k,
        n_pcs=n_pcs,
        graph_batch_key=graph_batch_key,
        use_rep=use_rep,
        use_graph=use_graph,
        anchor_key=anchor_key,
        anchor_weight=anchor_weight,
        reason=reason,
        reason_share=reason_share,
        reason_margin=reason_margin,
        donor_key=donor_key,
        layer=layer,
        gene_key=gene_key,
        genome=genome,
        round=round_values,
        allow_normalised=allow_normalised,
        cluster_key=cluster_key,
        min_genes=min_genes,
        shard_cells=shard_cells,
        encoders=encoders,
        address=address,
    )
    _run(settings, as_json=as_json)


@app.command()
def embed(
    inputs: _Inputs,
    *,
    out: Annotated[str, typer.Option(help="output folder, local or s3://")],
    model: _Model = "mini",
    max_length: Annotated[
        int | None, typer.Option(help="longest cell in tokens, CLS included; default: the model's")
    ] = None,
    seed: Annotated[int, typer.Option(help="of scGPT's draws: genes of long cells, bins of tied values")] = 0,
    precision: _Precision = "auto",
    layer: _Layer = None,
    gene_key: _GeneKey = None,
    genome: _Genome = None,
    round_values: _Round = False,
    allow_normalised: _AllowNormalised = False,
    min_genes: _MinGenes = 1,
    shard_cells: _ShardCells = 8192,
    encoders: _Encoders = None,
    address: _Address = None,
    as_json: Json = False,
) -> None:
    """Embed every cell of the inputs, without labels: obsm["X_langcell"] or obsm["X_scgpt"], by the model."""
    from cellray.settings import AnnotateSettings

    settings = AnnotateSettings.checked(
        task="embed",
        refine="none",
        inputs=tuple(inputs),
        out=out,
        model=model,
        max_length=max_length,
        seed=seed,
        precision=precision,
        layer=layer,
        gene_key=gene_key,
        genome=genome,
        round=round_values,
        allow_normalised=allow_normalised,
        min_genes=min_genes,
        shard_cells=shard_cells,
        encoders=encoders,
        address=address,
    )
    _run(settings, as_json=as_json)


@app.command("refine")
def refine_scores(
    scored: Annotated[str, typer.Argument(help="output folder of `cellray annotate`", metavar="DIR")],
    *,
    out: Annotated[str, typer.Option(help="new output folder, local or s3://")],
    method: Annotated[str, typer.Option("--refine", help="grit, majority, average or none")] = "grit",
    lam: _Lam = "1.0",
    k: _K = 15,
    n_pcs: _NPcs = 50,
    graph_batch_key: _BatchKey = None,
    use_rep: _UseRep = None,
    use_graph: _UseGraph = None,
    anchor_key: _AnchorKey = None,
    anchor_weight: _AnchorWeight = None,
    reason: _Reason = None,
    reason_share: _ReasonShare = 0.03,
    reason_margin: _ReasonMargin = 0.5,
    donor_key: _DonorKey = None,
    address: _Address = None,
    as_json: Json = False,
) -> None:
    """Refine stored scores again with other settings, into a new output folder; the encoder does not run."""
    from cellray.pipeline import refine_again
    from cellray.pipeline.progress import showing

    changes = {
        "refine": method,
        "lam": lam,
        "k": k,
        "n_pcs": n_pcs,
        "graph_batch_key": graph_batch_key,
        "use_rep": use_rep,
        "use_graph": use_graph,
        "anchor_key": anchor_key,
        "anchor_weight": anchor_weight,
        "reason": reason,
        "reason_share": reason_share,
        "reason_margin": reason_margin,
        "donor_key": donor_key,
        "address": address,
    }
    with showing() as progress:
        result = refine_again(scored, out, changes, progress)
    _tell(result, as_json=as_json)


@app.command()
def inspect(
    inputs: _Inputs,
    *,
    model: _Model = "mini",
    layer: _Layer = None,
    gene_key: _GeneKey = None,
    genome: _Genome = None,
    round_values: _Round = False,
    allow_normalised: _AllowNormalised = False,
    min_genes: _MinGenes = 20,
    as_json: Json = False,
) -> None:
    """Say what would be read from the inputs and why, and which cells are bad, without running a model."""
    from cellray.errors import DatasetError
    from cellray.ingest import GeneIndex, count_rejects, find_sources, inspect_dataset
    from cellray.models import checkpoints

    checkpoint = checkpoints.load(model)
    genes = GeneIndex(checkpoint.genes, checkpoint.symbols)
    found: list[dict[str, Any]] = []
    failed = 0
    for source in find_sources(inputs):
        try:
            plan = inspect_dataset(source, genes, layer=layer, gene_key=gene_key)
            rejects = count_rejects(plan, min_genes=min_genes, n_slots=genes.n_genes)
            found.append({**plan.describe(), "rejects": rejects, "n_rejected": sum(rejects.values())})
        except DatasetError as error:
            failed += 1
            found.append({"dataset_id": source.dataset_id, "source": source.uri, "error": one_line(error)})
    if as_json:
        print_json(found)
    else:
        for number, facts in enumerate(found):
            typer.echo(("\n" if number else "") + lines(facts))
    raise typer.Exit(0 if not failed else 3 if failed < len(found) else 1)


@app.command()
def evaluate(
    out: Annotated[str, typer.Argument(help="output folder of `cellray annotate`")],
    *,
    truth_key: Annotated[str, typer.Option(help="obs column with the true cell types")] = "cell_type",
    as_json: Json = False,
) -> None:
    """Compare labels with the truth, before and after refinement, and add the result to the report."""
    from rich.console import Console

    from cellray.report import evaluate as run
    from cellray.report import evaluation_table, write_report

    evaluation = run(out, truth_key)
    report = write_report(out, evaluation=evaluation)
    if as_json:
        print_json(evaluation)
    else:
        Console().print(evaluation_table(evaluation))
        typer.echo(f"report: {report}")


@app.command()
def convert_model(
    official_dir: Annotated[Path, typer.Argument(help="official checkpoint folder", exists=True, file_okay=False)],
    out_dir: Annotated[Path, typer.Argument(help="model folder to write")],
    *,
    tokenizer: Annotated[Path | None, typer.Option(help="LangCell: folder of PubMedBERT's tokenizer")] = None,
    gene_dictionaries: Annotated[
        Path | None, typer.Option(help="LangCell: folder of Geneformer's three .pkl dictionaries")
    ] = None,
    weights: Annotated[str | None, typer.Option(help="scGPT: weight file; default best_model.pt or model.pt")] = None,
    labels: Annotated[
        Path | None,
        typer.Option(help="scGPT: names of the classes in their order, one a line", exists=True, dir_okay=False),
    ] = None,
    max_length: Annotated[int | None, typer.Option(help="scGPT: longest cell; default: max_seq_len")] = None,
    normalise: Annotated[
        str | None, typer.Option(help="scGPT: none, total or log1p before binning; default log1p with classes")
    ] = None,
    zero_genes: Annotated[bool, typer.Option("--zero-genes", help="scGPT: fine-tuned with genes of no count")] = False,
) -> None:
    """Convert an official LangCell or scGPT checkpoint to the folder that --model takes."""
    from cellray.errors import SettingError
    from cellray.models import checkpoints
    from cellray.models.checkpoints import Checkpoint
    from cellray.models.official import read_official
    from cellray.models.official_scgpt import is_scgpt, read_official_scgpt

    checkpoint: Checkpoint
    if is_scgpt(official_dir):
        from cellray.labels.candidates import class_labels

        checkpoint = read_official_scgpt(
            official_dir,
            weights=weights,
            names=None if labels is None else labels.read_text().splitlines(),
            max_length=max_length,
            normalise=normalise,
            zero_genes=zero_genes,
        )
        checkpoint = replace(checkpoint, labels=class_labels([label["name"] for label in checkpoint.labels]))
    elif tokenizer is None or gene_dictionaries is None:
        msg = f"{str(official_dir)!r}: LangCell needs --tokenizer and --gene-dictionaries; scGPT has an args.json"
        raise SettingError(msg)
    else:
        checkpoint = read_official(official_dir, tokenizer, gene_dictionaries)
    checkpoints.save(out_dir, checkpoint)
    digest = checkpoints.load(str(out_dir)).digest
    typer.echo(f"{out_dir}: {checkpoint.genes.num_rows:,} genes, digest {digest[:12]}")


app.command()(reason)
app.command()(export)


def main() -> None:
    """Run the command line; a user's mistake is one line on standard error."""
    try:
        app()
    except CellRayError as error:
        sys.stderr.write(f"error: {one_line(error)}\n")
        sys.exit(error.exit_code)
    except Terminated as error:
        sys.stderr.write(f"{error}\n")
        sys.exit(Terminated.exit_code)


def _run(settings: "AnnotateSettings", *, as_json: bool) -> NoReturn:
    """Run what ``settings`` say, show progress, and leave with the result's exit code."""
    from cellray.pipeline import annotate as run
    from cellray.pipeline.progress import showing

    with showing() as progress:
        result = run(settings, progress)
    _tell(result, as_json=as_json)


def _tell(result: "RunResult", *, as_json: bool) -> NoReturn:
    """Print what a run did and leave with its exit code."""
    summary = result.summary()
    if as_json:
        print_json(summary)
    else:
        rate = f", {result.cells_per_s:,.0f} cells/s" if result.cells_per_s else ""
        done = (
            f"{summary['n_annotated']:,} annotated, {summary['n_abstained']:,} abstained"
            if result.report
            else f"{summary['n_embedded']:,} embedded"
        )
        asked = f", {summary['n_reasoned']:,} by the language model" if summary["n_reasoned"] else ""
        typer.echo(f"{summary['n_cells']:,} cells: {done}, {summary['n_rejected']:,} rejected{asked}{rate}")
        for dataset_id in summary["datasets"]:
            typer.echo(f"{dataset_id}: {result.out}/{dataset_id}.h5ad")
        for dataset_id, message in result.failed.items():
            typer.echo(f"{dataset_id} failed: {message}")
        if result.report:
            typer.echo(f"report: {result.report}")
    raise typer.Exit(result.exit_code)
