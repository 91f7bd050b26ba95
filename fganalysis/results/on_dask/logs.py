"""Where dask logs to."""

from __future__ import annotations

import logging
from collections.abc import Sequence

LOGGERS = ("distributed", "dask", "tornado", "asyncio", "bokeh")


def log_to(handlers: Sequence[logging.Handler], level: int = logging.WARNING) -> None:
    """Sends what dask logs in this process, from a level on, to these handlers, and nothing of it to the terminal."""
    import distributed  # noqa: F401  # At its import it adds handlers for the terminal.

    for name in [*logging.root.manager.loggerDict, *LOGGERS]:
        if name.split(".")[0] in LOGGERS:
            logger = logging.getLogger(name)
            logger.handlers, logger.propagate = [], True
    for name in LOGGERS:
        logger = logging.getLogger(name)
        logger.handlers, logger.propagate = list(handlers) or [logging.NullHandler()], False
        logger.setLevel(level)
