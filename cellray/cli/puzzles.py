"""``cellray puzzles VERB``: build, audit, solve and score puzzles of cells to label jointly."""

import json
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

import typer

from cellray.cli.shared import Json, print_json

puzzles_app = typer.Typer(
    help="Puzzles of Cell-o1: build them from labelled cells, solve them with a language model, score answers.",
    no_args_is_help=True,
)

_Baseline = Annotated[
    str | None, typer.Option(help="solved puzzles that the solver without a language model learns from")
]


@puzzles_app.command()
def build(
    inputs: Annotated[list[str], typer.Argument(help="labelled datasets: paths, globs or s3://", show_default=False)],
    *,
    out: Annotated[str, typer.Option(help="folder that receives train, validation and test.parquet")],
    label_key: Annotated[str, typer.Option(help="obs column with cell types")] = "cell_type",
    donor_key: Annotated[str | None, typer.Option(help="obs column with donors; else one a dataset")] = None,
    batch_key: Annotated[str | None, typer.Option(help="obs column with batches within a donor")] = None,
    layer: Annotated[str | None, typer.Option(help="layer with the raw counts; found by itself otherwise")] = None,
    gene_key: Annotated[str | None, typer.Option(help="var column with gene names; default feature_name")] = None,
    top_genes: Annotated[int, typer.Option(help="genes of a cell", min=1)] = 50,
    min_cells: Annotated[int, typer.Option(help="cells of the smallest puzzle", min=2)] = 8,
    max_cells: Annotated[int, typer.Option(help="cells of the largest puzzle", min=2)] = 15,
    per_size: Annotated[int, typer.Option(help="training puzzles of each size and dataset", min=1)] = 40,
    split_by: Annotated[str, typer.Option(help="donor, cell, or auto: donors where there are five")] = "auto",
    held_out: Annotated[
        float, typer.Option(help="share of donors or cells in validation, and in test", min=0, max=0.49)
    ] = 0.1,
    all_genes: Annotated[bool, typer.Option("--all-genes", help="keep MT-, RPL, RPS and MALAT1")] = False,
    sorted_candidates: Annotated[bool, typer.Option("--sorted-candidates", help="do not shuffle candidates")] = False,
    official: Annotated[
        bool, typer.Option("--official", help="repeat the released construction, which shares cells between splits")
    ] = False,
    seed: Annotated[int, typer.Option(min=0)] = 0,
    as_json: Json = False,
) -> None:
    """Build puzzles from labelled datasets, with no cell in two splits."""
    from cellray import storage
    from cellray.errors import SettingError
    from cellray.ingest import find_sources
    from cellray.puzzles import records
    from cellray.puzzles.audit import audit as compare
    from cellray.puzzles.build import SPLITS, BuildSettings, split_kind
    from cellray.puzzles.build import build as draw
    from cellray.puzzles.cells import Ranking, read_ranked
    from cellray.targets import reserve

    if split_by not in ("auto", "donor", "cell") or not 0 < held_out < 0.5:
        msg = f"--split-by {split_by!r}, --held-out {held_out}: auto, donor or cell, and a share below 0.5"
        raise SettingError(msg)
    sources = find_sources(inputs)
    reserve(out, [f"{split}.parquet" for split in SPLITS] + ["build.json"], [source.uri for source in sources])
    ranking = Ranking(label_key, donor_key, batch_key, layer, gene_key, top_genes, all_genes, official)
    settings = BuildSettings(
        min_cells,
        max_cells,
        per_size,
        split_by,  # type: ignore[arg-type]
        held_out,
        not sorted_candidates,
        official,
        seed=seed,
    )
    sets = [read_ranked(source, ranking) for source in sources]
    found = draw(sets, settings)
    for split, puzzles in found.items():
        records.write(storage.join(out, f"{split}.parquet"), puzzles)
    facts: dict[str, Any] = {
        "ranking": asdict(ranking),
        "settings": asdict(settings),
        "split": split_kind(sets, settings),
        "sources": {source.dataset_id: source.content_hash() for source in sources},
        "left_out": {cells.dataset: dict(cells.left_out) for cells in sets},
        "splits": compare(found),
    }
    storage.put_json(storage.join(out, "build.json"), facts)
    if as_json:
        print_json(facts)
        return
    for split, told in facts["splits"].items():
        typer.echo(f"{out}/{split}.parquet: {told['puzzles']:,} puzzles of {told['cells']:,} cells")
    typer.echo(f"split by {facts['split']}; cells left out: {facts['left_out']}")


@puzzles_app.command()
def audit(
    files: Annotated[list[str], typer.Argument(help="the training file first; parquet, json or jsonl")],
    *,
    as_json: Json = False,
) -> None:
    """Find cells that other files share with the first; exit code 1 if there are any."""
    from cellray.puzzles import records
    from cellray.puzzles.audit import audit as compare

    facts = compare({name: records.read(name) for name in files}, files[0])
    if as_json:
        print_json(facts)
    else:
        for name, told in facts.items():
            typer.echo(
                f"{name}: " + ", ".join(f"{key.replace('_', ' ')} {_number(value)}" for key, value in told.items())
            )
    raise typer.Exit(1 if any(told.get("shared_cells") for told in facts.values()) else 0)


@puzzles_app.command()
def solve(
    puzzles: Annotated[str, typer.Argument(help="parquet, json or jsonl file of puzzles")],
    *,
    out: Annotated[str, typer.Option(help="folder that receives answers.parquet; run again to go on")],
    model: Annotated[
        str | None, typer.Option(help="`mini-cell-o1` (bundled), a Hugging Face model folder, or a served app's URL")
    ] = None,
    adapter: Annotated[str | None, typer.Option(help="folder of a LoRA adapter")] = None,
    baseline: _Baseline = None,
    placement: Annotated[str, typer.Option(help="of the instruction: appended, spaced or system")] = "appended",
    rollouts: Annotated[
        int, typer.Option(help="answers a puzzle; the one most like all others is taken", min=1, max=64)
    ] = 1,
    temperature: Annotated[float | None, typer.Option(help="default 0 for one rollout, else 0.8", min=0)] = None,
    guarded: Annotated[bool, typer.Option("--guarded", help="ask again where rollouts disagree (DGPR)")] = False,
    free: Annotated[bool, typer.Option("--free", help="no one-to-one decoding, as published evaluations")] = False,
    max_tokens: Annotated[int, typer.Option(help="longest answer", min=16)] = 3500,
    max_length: Annotated[
        int | None, typer.Option(help="longest prompt and answer; default the model's", min=16)
    ] = None,
    engines: Annotated[int, typer.Option(help="engine actors, one a GPU", min=1)] = 1,
    seed: Annotated[int, typer.Option(min=0)] = 0,
    limit: Annotated[int | None, typer.Option(help="only the first so many puzzles", min=1)] = None,
    address: Annotated[str | None, typer.Option(help="Ray cluster to join; default: Ray on this machine")] = None,
    as_json: Json = False,
) -> None:
    """Solve puzzles in bulk, with a language model on vLLM or, without --model, by --baseline alone."""
    from cellray import storage
    from cellray.pipeline.progress import showing
    from cellray.pipeline.solving import ANSWERS_FILE, SolveOrder, solve_puzzles
    from cellray.puzzles import records
    from cellray.puzzles.centroid import Profiles
    from cellray.puzzles.engine import EngineSettings
    from cellray.puzzles.reasoner import check, is_url
    from cellray.puzzles.solve import SolveSettings
    from cellray.schema import PARTS_DIR
    from cellray.settings import checked
    from cellray.targets import reserve

    if model is not None:
        check(model)
    order = SolveOrder(
        out=storage.absolute(out),
        engine=None
        if model is None or is_url(model)
        else checked(EngineSettings, model=model, max_length=max_length, adapters=int(adapter is not None)),
        solving=checked(
            SolveSettings,
            placement=placement,
            rollouts=rollouts,
            temperature=temperature,
            max_tokens=max_tokens,
            one_to_one=not free,
            guarded=guarded,
            seed=seed,
        ),
        url=model if model is not None and is_url(model) else None,
        adapter=None if adapter is None else str(Path(adapter).absolute()),
        profiles=None if baseline is None else Profiles.of(records.read(baseline)),
        engines=engines,
    )
    asked = records.read(puzzles)[:limit]
    reserve(out, (ANSWERS_FILE, PARTS_DIR), [puzzles])
    with showing() as progress:
        answers = solve_puzzles(order, asked, progress, address)
    counts = {pair["values"]: pair["counts"] for pair in answers["status"].value_counts().to_pylist()}
    facts = {"out": f"{order.out}/answers.parquet", "puzzles": answers.num_rows, "statuses": counts}
    if as_json:
        print_json(facts)
    else:
        typer.echo(f"{facts['out']}: " + ", ".join(f"{count:,} {status}" for status, count in counts.items()))
    raise typer.Exit(3 if counts.get("failed") or counts.get("invalid") else 0)


@puzzles_app.command()
def score(
    puzzles: Annotated[str, typer.Argument(help="puzzles with their answers")],
    *,
    answers: Annotated[str | None, typer.Option(help="answers.parquet of `cellray puzzles solve`")] = None,
    baseline: _Baseline = None,
    train: Annotated[str | None, typer.Option(help="training puzzles: scores of clean puzzles are told apart")] = None,
    as_json: Json = False,
) -> None:
    """Score answers beside the solver without a language model and a random permutation: the official metrics."""
    from cellray.puzzles import records
    from cellray.puzzles.scoring import compared, table

    found = compared(
        records.read(puzzles),
        answers,
        None if baseline is None else records.read(baseline),
        None if train is None else records.read(train),
    )
    if as_json:
        print_json(found)
        return
    from rich.console import Console

    Console().print(table(found))


def _number(value: Any) -> str:
    return f"{value:.3f}" if isinstance(value, float) else f"{value:,}" if isinstance(value, int) else json.dumps(value)
