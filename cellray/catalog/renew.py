"""A catalogue's datasets brought up to date: annotate what changed, store versions, compare, promote what may be.

Contract: datasets of like labels are annotated by one run, so that a model is loaded once for them; of an unchanged
catalogue none is loaded and Ray is not started. A run that is killed goes on where it stopped: scores stay in the work
folder, and a version that is there is not made again. Datasets fail alone.
"""

import secrets
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from typing import Any, Literal

import pyarrow as pa
import pyarrow.parquet as pq

from cellray import schema, storage
from cellray.catalog.catalogue import Catalogue
from cellray.catalog.diff import Diff, compare, types_of
from cellray.catalog.guard import refusals
from cellray.catalog.plan import Step, make_plan
from cellray.catalog.versions import Version, Versions
from cellray.errors import AtlasError, CellRayError, SettingError, boundary, one_line
from cellray.ingest import find_sources
from cellray.lock import RunLock
from cellray.manifest import Manifest

_PUBLISHED = (schema.SUCCESS_FILE, schema.ANNOTATIONS_FILE, schema.VIEW_FILE)

State = Literal["promoted", "refused", "restored", "held", "unchanged", "failed"]


@dataclass(frozen=True)
class Outcome:
    """What became of one dataset. ``messages`` say why it failed or was refused; ``diff`` is None where none is."""

    id: str
    state: State
    reasons: Sequence[str] = ()
    messages: Sequence[str] = ()
    version: str | None = None
    before: str | None = None
    diff: Diff | None = None
    changed: pa.Table | None = field(default=None, repr=False)

    def facts(self) -> dict[str, Any]:
        """Return plain JSON values."""
        return {
            "id": self.id,
            "state": self.state,
            "reasons": list(self.reasons),
            "messages": list(self.messages),
            "version": self.version,
            "before": self.before,
            "diff": None if self.diff is None else self.diff.facts(),
        }


@dataclass(frozen=True)
class Renewal:
    """What a run did; ``gone`` are datasets of the atlas that the catalogue has not."""

    run_id: str
    atlas: str
    outcomes: list[Outcome]
    gone: list[str]

    @property
    def exit_code(self) -> int:
        """0; 3 when a dataset failed or a version was refused; 1 when every dataset failed."""
        states = {outcome.state for outcome in self.outcomes}
        if states == {"failed"}:
            return 1
        return 3 if states & {"failed", "refused"} else 0

    def facts(self) -> dict[str, Any]:
        """Return plain JSON values."""
        return {
            "run_id": self.run_id,
            "atlas": self.atlas,
            "datasets": [outcome.facts() for outcome in self.outcomes],
            "gone": self.gone,
        }


def renew(
    catalogue: Catalogue, *, promote: Callable[[str], bool] = lambda _: False, address: str | None = None
) -> Renewal:
    """Bring the atlas of ``catalogue`` up to date.

    Parameters
    ----------
    promote
        Says of a dataset's id whether its version is promoted whatever the guard says.
    address
        Ray cluster to join; None starts one here, if there is anything to annotate.

    Raises
    ------
    SettingError
        If the model, a label set or the registry cannot be used, or another run has the atlas.
    """
    run_id = f"{datetime.now(UTC):%Y%m%dT%H%M%SZ}-{secrets.token_hex(2)}"
    with RunLock(catalogue.atlas, run_id) as lock:
        work = _Renewing(catalogue, run_id, promote)
        steps = make_plan(catalogue, address)
        outcomes = {step.entry.id: work.settle(step) for step in steps if step.action != "annotate"}
        for outcome in work.annotate([step for step in steps if step.action == "annotate"], address):
            lock.check()
            outcomes[outcome.id] = outcome
        there = storage.list_folders(storage.join(catalogue.atlas, schema.DATASETS_DIR))
        known = [entry.id for entry in catalogue.datasets]
        gone = [name for name in there if name not in outcomes]
        found = Renewal(run_id, catalogue.atlas, [outcomes[name] for name in known], gone)
        if {outcome.state for outcome in found.outcomes} - {"unchanged", "held"}:
            from cellray.catalog.report import write_report

            write_report(found)
        return found


@dataclass(frozen=True)
class _Renewing:
    """One run over an atlas."""

    catalogue: Catalogue
    run_id: str
    promote: Callable[[str], bool]

    def settle(self, step: Step) -> Outcome:
        """Say what becomes of a dataset that needs no annotating."""
        outcome = Outcome(step.entry.id, "failed", before=step.in_use)
        if step.action == "failed":
            return replace(outcome, messages=step.reasons)
        outcome = replace(outcome, reasons=step.reasons, version=step.digest)
        if step.action == "unchanged":
            return replace(outcome, state="unchanged")
        if step.action == "held" and not self.promote(step.entry.id):
            return replace(outcome, state="held")
        versions = Versions(self.catalogue.atlas, step.entry.id)
        try:
            return self._judge(outcome, versions, versions.get(step.digest))
        except CellRayError as error:
            return replace(outcome, messages=(one_line(error),))

    def annotate(self, steps: Sequence[Step], address: str | None) -> Iterator[Outcome]:
        """Annotate datasets, a run for each work folder; yields what became of each."""
        if not steps:
            return
        from cellray.cluster import ray_session
        from cellray.pipeline import annotate
        from cellray.pipeline.progress import showing

        groups: defaultdict[str, list[Step]] = defaultdict(list)
        for step in steps:
            groups[step.settings.out].append(step)
        with ray_session(address), showing() as progress:
            for group in groups.values():
                uris = tuple(step.entry.uri for step in group)
                names = {source.uri: source.dataset_id for source in find_sources(uris)}
                failed: dict[str, str] = {}
                finished: dict[str, Manifest] = {}
                try:
                    result = annotate(group[0].settings.model_copy(update={"inputs": uris}), progress)
                    failed, finished = result.failed, result.finished
                except SettingError:
                    raise
                except CellRayError as error:  # not one of them can be read
                    failed = dict.fromkeys(names.values(), one_line(error))
                for step in group:
                    (source,) = find_sources((step.entry.uri,))
                    name = names[source.uri]
                    outcome = Outcome(step.entry.id, "failed", step.reasons, before=step.in_use)
                    if name in failed:
                        yield replace(outcome, messages=(failed[name],))
                        continue
                    try:
                        yield self._store(outcome, step, finished[name])
                    except CellRayError as error:
                        yield replace(outcome, messages=(one_line(error),))
                for name in finished:
                    _tidy(group[0].settings.out, name)

    def _store(self, outcome: Outcome, step: Step, manifest: Manifest) -> Outcome:
        """Make a version of what a run left in the work folder, and judge it."""
        work = step.settings.out
        folder = storage.join(work, schema.DATASETS_DIR, manifest.dataset_id)
        labels = storage.join(folder, schema.ANNOTATIONS_FILE)
        copy = storage.join(work, f"{manifest.dataset_id}.h5ad")
        with boundary(AtlasError, f"dataset {step.entry.id!r}", KeyError), storage.open_read(labels) as file:
            types = types_of(pq.read_table(file, columns=[schema.CELL_TYPE, schema.STATUS]))
        versions = Versions(self.catalogue.atlas, step.entry.id)
        version = versions.put(
            Version(
                dataset_id=step.entry.id,
                source=manifest.source,
                tissue=step.entry.tissue,
                run_id=self.run_id,
                # What was read, should the file have changed since the plan.
                fingerprint={**step.fingerprint, "content": manifest.content_hash},
                labels=manifest.labels,
                n_cells=manifest.n_cells,
                n_annotated=manifest.n_annotated,
                n_abstained=manifest.n_abstained,
                n_rejected=manifest.n_rejected,
                types=types,
                files={},
            ),
            {
                schema.ANNOTATIONS_FILE: labels,
                f"{step.entry.id}.h5ad": copy,
                schema.MANIFEST_FILE: storage.join(folder, schema.MANIFEST_FILE),
            },
        )
        return self._judge(replace(outcome, version=version.digest), versions, version)

    def _judge(self, outcome: Outcome, versions: Versions, version: Version) -> Outcome:
        """Compare a version with the one in use, and promote it unless the guard says no."""
        if version.digest == outcome.before:
            return replace(outcome, state="restored")
        refused: list[str] = []
        if outcome.before is not None:
            try:
                before = versions.annotations(versions.get(outcome.before))
            except AtlasError as error:
                refused = [f"the version in use cannot be read, so nothing can be compared: {one_line(error)}"]
            else:
                diff, changed = compare(before, versions.annotations(version))
                outcome = replace(outcome, diff=diff, changed=changed)
                refused = refusals(diff, self.catalogue.guard, version.labels)
        if refused and not self.promote(outcome.id):
            return replace(outcome, state="refused", messages=tuple(refused))
        told = "; ".join([*outcome.reasons, *(f"despite: {one}" for one in refused)])
        versions.promote(version.digest, told)
        return replace(outcome, state="promoted", messages=tuple(refused))


def _tidy(work: str, name: str) -> None:
    """Keep a dataset's scores, for other settings of refinement need no model, and nothing that versions have now."""
    folder = storage.join(work, schema.DATASETS_DIR, name)
    # Without _SUCCESS, which goes first, nothing else counts.
    for uri in (*(storage.join(folder, one) for one in _PUBLISHED), storage.join(work, f"{name}.h5ad")):
        storage.remove(uri)
