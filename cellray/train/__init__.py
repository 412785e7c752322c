"""Training: corpora, losses and loops. The jobs in ``jobs/`` give them a cluster."""
