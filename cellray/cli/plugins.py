"""``cellray plugins VERB``: what is in a plugin registry, and which version is used."""

from typing import TYPE_CHECKING, Annotated

import typer

from cellray.cli.shared import Json, print_json, text

if TYPE_CHECKING:
    from cellray.plugins.registry import Registry

plugins_app = typer.Typer(help="Plugin versions in a registry: list, show, promote, roll back.", no_args_is_help=True)

_Registry = Annotated[str | None, typer.Option(help="path or s3://; default $CELLRAY_REGISTRY, else ./plugins")]
_Tissue = Annotated[str, typer.Argument(help="tissue; `tissues` is the plugin that tells them apart")]
_Reason = Annotated[str, typer.Option(help="noted in the history")]


@plugins_app.command("list")
def plugins_list(*, registry: _Registry = None, as_json: Json = False) -> None:
    """List the tissues, the promoted version of each and how many versions there are."""
    store = _registry(registry)
    rows = [(name, store.promoted(name), store.versions(name)) for name in store.known()]
    if as_json:
        print_json([{"tissue": name, "promoted": digest, "versions": there} for name, digest, there in rows])
        return
    for name, digest, there in rows:
        typer.echo(f"{name:<24}  {(digest or 'none')[:12]}  {len(there)} version(s)")


@plugins_app.command("show")
def plugins_show(
    tissue: _Tissue,
    *,
    version: Annotated[str | None, typer.Option(help="digest or its beginning; default: the promoted one")] = None,
    registry: _Registry = None,
    as_json: Json = False,
) -> None:
    """Show a version: base, classes, metrics; and the tissue's versions and history."""
    from cellray.plugins.registry import tissue_name
    from cellray.plugins.router import no_plugin

    store = _registry(registry)
    wanted = version or store.promoted(tissue)
    if wanted is None:
        raise no_plugin(tissue, store.tissues())
    found = store.get(tissue, wanted)
    facts = {
        "tissue": tissue_name(tissue),
        "task": found.task,
        "version": next(one for one in store.versions(tissue) if one.startswith(wanted)),
        "promoted": store.promoted(tissue),
        "parent": found.parent,
        "base": f"{found.base} {found.base_digest}",
        "classes": found.names,
        "reserved": found.config.n_classes - len(found.labels),
        "metrics": found.metrics,
        "versions": store.versions(tissue),
        "history": [vars(change) for change in store.history(tissue)],
    }
    if as_json:
        print_json(facts)
    else:
        typer.echo(
            "\n".join(f"{key:<10}  {text(value) if key != 'metrics' else value}" for key, value in facts.items())
        )


@plugins_app.command("promote")
def plugins_promote(
    tissue: _Tissue,
    version: Annotated[str, typer.Argument(help="digest or its beginning (6 characters or more)")],
    *,
    reason: _Reason = "",
    registry: _Registry = None,
) -> None:
    """Make a version the one that is used, whatever the gate said of it."""
    typer.echo(f"{tissue}: {_registry(registry).promote(tissue, version, reason=reason)} promoted")


@plugins_app.command("rollback")
def plugins_rollback(tissue: _Tissue, *, reason: _Reason = "", registry: _Registry = None) -> None:
    """Go back to the version that was promoted before."""
    typer.echo(f"{tissue}: back to {_registry(registry).rollback(tissue, reason=reason)}")


def _registry(uri: str | None) -> "Registry":
    from cellray.plugins.registry import Registry
    from cellray.settings import Environment

    return Registry(uri or Environment().registry)
