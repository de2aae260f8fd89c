"""A small model behind TGI's wire API, for laptops, demos and tests: the same doors, metrics and errors as TGI's.

Read `engine.py` first: it is the life of a request. `app.py` holds the routes, `server.py` starts it all.
"""

from gateway.local.llm.server import Options, load, running, serve

__all__ = ["Options", "load", "running", "serve"]
