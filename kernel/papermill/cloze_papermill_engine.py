"""The module that papermill imports when it starts: its usual engine, and with it the translator.

A separate module, because papermill loads it while it is itself being imported, perhaps by the translator's module.
"""
import cloze_papermill  # noqa: F401
from papermill.engines import NBClientEngine


class Engine(NBClientEngine):
    """papermill's usual engine, under a name whose import also loads the translator."""
