"""An atlas kept up to date: a catalogue of datasets, and an immutable version of each for every state of its inputs.

::

    ATLAS/
      datasets/<id>/versions/<version>/    annotations.parquet, <id>.h5ad, manifest.json; version.json, written last
      datasets/<id>/latest/00000001.json   every change of the pointer; the highest number counts (cellray.pointer)
      work/<key>/                          output folders of ``cellray annotate``: scores are kept, and runs resumed
      runs/<run>/                          report.json, report.html, changed/<id>.parquet
      _lock                                one run at a time

``catalogue`` is what a person writes, ``plan`` says what changed and why, ``renew`` does it, ``versions`` keeps the
results, ``diff`` and ``guard`` compare a new version with the one in use, ``report`` tells it.

A version is named by what its labels are a function of: content, model, label set, plugins, settings and schema. So a
state that was annotated once is never annotated again, and a version that a person rolled back does not come back.
"""
