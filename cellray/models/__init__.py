"""Torch modules and checkpoint formats. The bundled model ``mini`` lies in the folder of that name."""
