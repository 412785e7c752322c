"""Per-cell reasoning with a language model, as CellReasoner does it: sentence in, reasons and cell type out.

Contract: a cell is asked about by its sentence (``cellray.tokenize.sentence``) in one of two modes; what the model says
is read, its cell type looked up in the Cell Ontology, and what it says of genes checked against the cell's own counts.
The language model is ``cellray.puzzles.engine``; nothing here runs on Ray or trains.

Source: CellReasoner (compbioNJU/CellReasoner, bioRxiv 10.1101/2025.05.20.655112).
"""
