"""Candidate labels: the Cell Ontology, the texts that the encoder reads, and metrics that know both."""
