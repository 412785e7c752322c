"""``cellray inspect``: what would be read, and which cells are bad, without a model's numbers."""

from typing import Any

import typer

from cellray.cli.options import AllowNormalised, GeneKey, Genome, Inputs, Layer, MinGenes, Model, Round
from cellray.cli.shared import Json, Quiet, Verbose, lines, print_json, speak


def inspect(
    inputs: Inputs,
    *,
    model: Model = "mini",
    layer: Layer = None,
    gene_key: GeneKey = None,
    genome: Genome = None,
    round_values: Round = False,
    allow_normalised: AllowNormalised = False,
    min_genes: MinGenes = 20,
    verbose: Verbose = False,
    quiet: Quiet = False,
    as_json: Json = False,
) -> None:
    """Say what would be read from the inputs and why, and which cells are bad, without running a model."""
    from cellray.errors import DatasetError, SettingError, internal, one_line
    from cellray.ingest import GeneIndex, count_rejects, find_sources, inspect_dataset
    from cellray.ingest.rejects import way_out
    from cellray.log import logger
    from cellray.models import checkpoints

    speak(verbose=verbose, quiet=quiet)
    checkpoint = checkpoints.load(model)
    genes = GeneIndex(checkpoint.genes, checkpoint.symbols)
    found: list[dict[str, Any]] = []
    failed = 0
    for source in find_sources(inputs, genome=genome):
        try:
            plan = inspect_dataset(
                source,
                genes,
                layer=layer,
                gene_key=gene_key,
                round_values=round_values,
                allow_normalised=allow_normalised,
            )
            rejects = count_rejects(plan, min_genes=min_genes, n_slots=genes.n_genes)
            facts = {**plan.describe(), "rejects": rejects, "n_rejected": sum(rejects.values())}
            advised = way_out(rejects, plan.n_cells)
            found.append({**facts, "advice": advised} if advised else facts)
            continue
        except SettingError:
            raise
        except DatasetError as error:
            message = one_line(error)
        except Exception as error:  # noqa: BLE001 - whatever it is, the other datasets are inspected
            bug = internal(error, f"dataset {source.dataset_id!r}: reading")
            logger("cli").error("%s", bug.trace)
            message = f"{bug}; --verbose shows its trace"
        failed += 1
        found.append({"dataset_id": source.dataset_id, "source": source.uri, "error": message})
    if as_json:
        print_json(found)
    else:
        for number, facts in enumerate(found):
            typer.echo(("\n" if number else "") + lines(facts))
    raise typer.Exit(0 if not failed else 3 if failed < len(found) else 1)
