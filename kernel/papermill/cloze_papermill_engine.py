"""What papermill imports when it starts: its usual engine, and with it the translator.

A module of its own, because papermill loads it while it is itself being imported, perhaps by the translator's module.
"""
import cloze_papermill  # noqa: F401
from papermill.engines import NBClientEngine


class Engine(NBClientEngine):
    """papermill's usual engine, under a name that has the translator imported."""
