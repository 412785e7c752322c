"""``cellray reason``: ask a language model about every cell alone, as CellReasoner does."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from cellray.cli.shared import Json, print_json

if TYPE_CHECKING:
    from cellray.pipeline.per_cell import ReasonResult


def reason(
    inputs: Annotated[list[str], typer.Argument(help="datasets: paths, globs or s3://", show_default=False)],
    *,
    out: Annotated[str, typer.Option(help="folder that receives a table a dataset; run again to go on")],
    model: Annotated[str, typer.Option(help="Hugging Face model folder")],
    adapter: Annotated[str | None, typer.Option(help="folder of a LoRA adapter")] = None,
    mode: Annotated[str, typer.Option(help="direct: the cell type alone; reasoning: reasons before it")] = "direct",
    form: Annotated[
        str | None, typer.Option(help="of sentences: hvg_rank or expr_rank; default the model's, else expr_rank")
    ] = None,
    ranked_genes: Annotated[
        str | None, typer.Option(help="ranked list of genes for hvg_rank, one a line; default the model's")
    ] = None,
    genes: Annotated[
        int | None, typer.Option(help="genes of a sentence, at most; default the model's, else 1000", min=1)
    ] = None,
    layer: Annotated[str | None, typer.Option(help="layer with the raw counts; found by itself otherwise")] = None,
    gene_key: Annotated[
        str | None, typer.Option(help="var column with gene symbols; found by itself otherwise")
    ] = None,
    min_genes: Annotated[int, typer.Option(help="a cell with fewer genes is rejected", min=1)] = 20,
    max_tokens: Annotated[
        int | None, typer.Option(help="longest answer; default 256 direct, 4096 reasoning", min=1)
    ] = None,
    max_length: Annotated[
        int | None, typer.Option(help="longest prompt and answer; default the model's", min=16)
    ] = None,
    truth_key: Annotated[str | None, typer.Option(help="obs column with the true cell types: adds scores")] = None,
    pair_scores: Annotated[str | None, typer.Option(help="CellReasoner's table of graded pairs (CSV), with it")] = None,
    shard_cells: Annotated[int, typer.Option(help="cells of one unit of work", min=1)] = 64,
    engines: Annotated[int, typer.Option(help="engine actors, one a GPU", min=1)] = 1,
    seed: Annotated[int, typer.Option(min=0)] = 0,
    limit: Annotated[int | None, typer.Option(help="only the first so many cells of each dataset", min=1)] = None,
    address: Annotated[str | None, typer.Option(help="Ray cluster to join; default: Ray on this machine")] = None,
    as_json: Json = False,
) -> None:
    """Ask a language model about every cell, alone: its cell type, and why."""
    from cellray import storage
    from cellray.errors import SettingError
    from cellray.pipeline.per_cell import ReasonOrder, reason_cells
    from cellray.pipeline.progress import showing
    from cellray.puzzles.engine import EngineSettings, check_model, locate
    from cellray.reasoner.form import SentenceForm
    from cellray.reasoner.reason import ReasonSettings
    from cellray.reasoner.score import read_pairs
    from cellray.settings import checked

    if pair_scores is not None and truth_key is None:
        msg = f"--pair-scores {pair_scores!r} grades labels against true ones; give --truth-key too"
        raise SettingError(msg)
    check_model(model)
    order = ReasonOrder(
        out=storage.absolute(out),
        engine=checked(
            EngineSettings,
            model=str(Path(locate(model)).absolute()),
            max_length=max_length,
            adapters=int(adapter is not None),
        ),
        asking=checked(
            ReasonSettings,
            mode=mode,
            min_genes=min_genes,
            max_tokens=max_tokens,
            layer=layer,
            gene_key=gene_key,
            seed=seed,
        ),
        form=SentenceForm.of(model, form=form, genes=genes, ranked_genes=ranked_genes),
        adapter=None if adapter is None else str(Path(adapter).absolute()),
        engines=engines,
        shard_cells=shard_cells,
        limit=limit,
    )
    pairs = None if pair_scores is None else read_pairs(pair_scores)
    with showing() as progress:
        result = reason_cells(order, inputs, progress, address, truth_key=truth_key, pairs=pairs)
    if as_json:
        print_json({"out": result.out, "datasets": result.datasets, "failed": result.failed})
    else:
        typer.echo(_summary(result))
    raise typer.Exit(result.exit_code)


def _summary(result: "ReasonResult") -> str:
    """Return a line a dataset."""
    said = [f"{facts['file']}: {_facts(facts)}" for facts in result.datasets.values()]
    return "\n".join(said + [f"{name} failed: {message}" for name, message in result.failed.items()])


def _facts(facts: dict[str, Any]) -> str:
    parts = [f"{facts[f'n_{status}']:,} {status}" for status in ("annotated", "abstained", "rejected")]
    if facts["markers"]:
        parts.append(f"{facts['markers_held']:,} of {facts['markers']:,} marker statements hold")
    if facts.get("score", {}).get("cells"):
        parts.append(f"graded score {facts['score']['graded']:.3f} of {facts['score']['cells']:,} cells")
    return ", ".join(parts)
