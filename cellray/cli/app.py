"""``cellray VERB``: thin verbs over the library.

Contract: results go to standard output (``--json`` for machines), progress and errors to standard error, one line an
error. Exit codes: 0 done, 1 failed, 2 usage or setting, 3 done but some datasets failed, 130 Ctrl-C, 143 SIGTERM.
Nothing heavy is imported before a verb runs.
"""

import sys
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NoReturn

import typer

from cellray import __version__
from cellray.cli.export import export
from cellray.cli.inspect import inspect
from cellray.cli.options import (
    Address,
    AllowNormalised,
    AnchorKey,
    AnchorWeight,
    BatchKey,
    ClusterKey,
    DonorKey,
    Encoders,
    GeneKey,
    Genome,
    Inputs,
    K,
    Lam,
    Layer,
    MinGenes,
    Model,
    NPcs,
    Precision,
    Reason,
    ReasonMargin,
    ReasonShare,
    Round,
    ShardCells,
    UseGraph,
    UseRep,
)
from cellray.cli.plugins import plugins_app
from cellray.cli.puzzles import puzzles_app
from cellray.cli.reason import reason
from cellray.cli.shared import Json, Quiet, Verbose, print_json, resumes, speak
from cellray.errors import CellRayError, Interrupted, Terminated, one_line

if TYPE_CHECKING:
    from cellray.pipeline import RunResult
    from cellray.settings import AnnotateSettings

_EXAMPLES = 3

app = typer.Typer(
    help="Annotate every cell of a single-cell atlas: raw counts in, cell-type labels with scores out.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    add_completion=False,
)
app.add_typer(plugins_app, name="plugins")
app.add_typer(puzzles_app, name="puzzles")


@app.callback(invoke_without_command=True)
def _root(*, show_version: Annotated[bool, typer.Option("--version", help="print the version")] = False) -> None:
    if show_version:
        typer.echo(f"cellray {__version__}")
        raise typer.Exit


@app.command()
def annotate(
    inputs: Inputs,
    *,
    out: Annotated[str, typer.Option(help="output folder, local or s3://")],
    model: Model = "mini",
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
    precision: Precision = "auto",
    refine: Annotated[str, typer.Option(help="grit, majority, average or none")] = "grit",
    lam: Lam = "1.0",
    k: K = 15,
    n_pcs: NPcs = 50,
    graph_batch_key: BatchKey = None,
    use_rep: UseRep = None,
    use_graph: UseGraph = None,
    anchor_key: AnchorKey = None,
    anchor_weight: AnchorWeight = None,
    reason: Reason = None,
    reason_share: ReasonShare = 0.03,
    reason_margin: ReasonMargin = 0.5,
    donor_key: DonorKey = None,
    layer: Layer = None,
    gene_key: GeneKey = None,
    genome: Genome = None,
    round_values: Round = False,
    allow_normalised: AllowNormalised = False,
    cluster_key: ClusterKey = None,
    min_genes: MinGenes = 20,
    shard_cells: ShardCells = 8192,
    encoders: Encoders = None,
    address: Address = None,
    verbose: Verbose = False,
    quiet: Quiet = False,
    as_json: Json = False,
) -> None:
    """Label every cell of the inputs."""
    from cellray.settings import AnnotateSettings

    speak(verbose=verbose, quiet=quiet)
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
    _run(settings, quiet=quiet, as_json=as_json)


@app.command()
def embed(
    inputs: Inputs,
    *,
    out: Annotated[str, typer.Option(help="output folder, local or s3://")],
    model: Model = "mini",
    max_length: Annotated[
        int | None, typer.Option(help="longest cell in tokens, CLS included; default: the model's")
    ] = None,
    seed: Annotated[int, typer.Option(help="of scGPT's draws: genes of long cells, bins of tied values")] = 0,
    precision: Precision = "auto",
    layer: Layer = None,
    gene_key: GeneKey = None,
    genome: Genome = None,
    round_values: Round = False,
    allow_normalised: AllowNormalised = False,
    min_genes: MinGenes = 1,
    shard_cells: ShardCells = 8192,
    encoders: Encoders = None,
    address: Address = None,
    verbose: Verbose = False,
    quiet: Quiet = False,
    as_json: Json = False,
) -> None:
    """Embed every cell of the inputs, without labels: obsm["X_langcell"] or obsm["X_scgpt"], by the model."""
    from cellray.settings import AnnotateSettings

    speak(verbose=verbose, quiet=quiet)
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
    _run(settings, quiet=quiet, as_json=as_json)


@app.command("refine")
def refine_scores(
    scored: Annotated[str, typer.Argument(help="output folder of `cellray annotate`", metavar="DIR")],
    *,
    out: Annotated[str, typer.Option(help="new output folder, local or s3://")],
    method: Annotated[str, typer.Option("--refine", help="grit, majority, average or none")] = "grit",
    lam: Lam = "1.0",
    k: K = 15,
    n_pcs: NPcs = 50,
    graph_batch_key: BatchKey = None,
    use_rep: UseRep = None,
    use_graph: UseGraph = None,
    anchor_key: AnchorKey = None,
    anchor_weight: AnchorWeight = None,
    reason: Reason = None,
    reason_share: ReasonShare = 0.03,
    reason_margin: ReasonMargin = 0.5,
    donor_key: DonorKey = None,
    address: Address = None,
    verbose: Verbose = False,
    quiet: Quiet = False,
    as_json: Json = False,
) -> None:
    """Refine stored scores again with other settings, into a new output folder; the encoder does not run."""
    from cellray.pipeline import refine_again
    from cellray.pipeline.progress import showing

    speak(verbose=verbose, quiet=quiet)
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
    with showing(quiet=quiet) as progress:
        result = refine_again(scored, out, changes, progress)
    _tell(result, as_json=as_json)


@app.command()
def evaluate(
    out: Annotated[str, typer.Argument(help="output folder of `cellray annotate`")],
    *,
    truth_key: Annotated[str, typer.Option(help="obs column with the true cell types")] = "cell_type",
    verbose: Verbose = False,
    quiet: Quiet = False,
    as_json: Json = False,
) -> None:
    """Compare labels with the truth, before and after refinement, and add the result to the report."""
    from rich.console import Console

    from cellray.report import evaluate as run
    from cellray.report import evaluation_table, write_report

    speak(verbose=verbose, quiet=quiet)
    evaluation = run(out, truth_key)
    report = write_report(out, evaluation=evaluation)
    if as_json:
        print_json(evaluation)
    else:
        Console().print(evaluation_table(evaluation))
        typer.echo(f"report: {report}")
    if not evaluation["overall"]["n_scored"]:
        typer.echo(f"error: {_unscored(evaluation)}", err=True)
        raise typer.Exit(1)


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


app.command()(inspect)
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
        sys.exit(error.exit_code)
    except SystemExit as ended:
        if ended.code == Interrupted.exit_code:
            goes_on = "; run the same command again, it goes on where it stopped" if resumes(sys.argv[1:]) else ""
            sys.stderr.write(f"stopped by Ctrl-C{goes_on}\n")
        raise


def _run(settings: "AnnotateSettings", *, quiet: bool, as_json: bool) -> NoReturn:
    """Run what ``settings`` say, show progress, and leave with the result's exit code."""
    from cellray.pipeline import annotate as run
    from cellray.pipeline.progress import showing

    with showing(quiet=quiet) as progress:
        result = run(settings, progress)
    _tell(result, as_json=as_json)


def _tell(result: "RunResult", *, as_json: bool) -> NoReturn:
    """Print what a run did and leave with its exit code."""
    summary = result.summary()
    if as_json:
        print_json(summary)
    else:
        typer.echo(_cells(result, summary))
        for dataset_id in summary["datasets"]:
            typer.echo(f"{dataset_id}: {result.out}/{dataset_id}.h5ad")
        for dataset_id, message in result.failed.items():
            typer.echo(f"{dataset_id} failed: {message}")
        if result.report:
            typer.echo(f"report: {result.report}")
    raise typer.Exit(result.exit_code)


def _cells(result: "RunResult", summary: dict[str, Any]) -> str:
    """Return what became of the cells, in a line."""
    if not result.finished:
        return f"no dataset was {'annotated' if result.report else 'embedded'}"
    rate = f", {result.cells_per_s:,.0f} cells/s" if result.cells_per_s else ""
    done = (
        f"{summary['n_annotated']:,} annotated, {summary['n_abstained']:,} abstained"
        if result.report
        else f"{summary['n_embedded']:,} embedded"
    )
    asked = f", {summary['n_reasoned']:,} by the language model" if summary["n_reasoned"] else ""
    return f"{summary['n_cells']:,} cells: {done}, {summary['n_rejected']:,} rejected{asked}{rate}"


def _unscored(evaluation: dict[str, Any]) -> str:
    """Return why no cell at all could be compared with the truth, and the way out."""
    key, outside = evaluation["truth_key"], evaluation["overall"]["outside"]
    if not outside:
        return f"no annotated cell has a truth in obs[{key!r}]; pass --truth-key with another column"
    most = sorted(outside, key=lambda name: (-outside[name], name))[:_EXAMPLES]
    meant = evaluation.get("suggestions", {"labels": {}, "columns": []})
    close = [f"{value!r} may be {names[0]!r}" for value, names in meant["labels"].items() if names]
    columns = f"; obs columns that name labels: {', '.join(meant['columns'])}" if meant["columns"] else ""
    return (
        f"no truth in obs[{key!r}] is a label of this run ({', '.join(map(repr, most))})"
        f"{': ' + ', '.join(close) if close else ''}{columns}; rename them to the labels in the report, or pass "
        "--truth-key with another column"
    )
