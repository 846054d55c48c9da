"""Makes ordinary Python servers good workers of paddock.

Run a server with ``python -m paddock_worker wsgi module:app`` (or ``asgi``). An application needs nothing from here; two
functions help one that wants to take part:

* :func:`on_memory_pressure` registers a function that sheds caches when this worker nears its memory limit;
* :func:`request_recycle` asks the manager to replace this worker, start before stop.

Both may be called when no manager is there; then nothing happens.
"""

from __future__ import annotations

from .pressure import on_memory_pressure
from .worker import request_recycle

__all__ = ["__version__", "on_memory_pressure", "request_recycle"]

__version__ = "0.1.0"
