"""Plugins of scGPT: cells to train on, versions in a registry, updates with a gate, and routing cells among them."""
