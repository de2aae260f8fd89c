"""A small model behind TGI's wire API, for laptops, demos and tests: the same doors, metrics and errors as TGI's.

Read `engine.py` first: it is the life of a request. `app.py` holds the routes, `server.py` starts it all.
"""

import os

# OpenMP reads this when torch is loaded. Threads that spin while they wait for each other make a forward pass ten
# times slower as soon as anything else wants a core; asleep they cost next to nothing.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

from gateway.local.llm.server import Options, load, running, serve

__all__ = ["Options", "load", "running", "serve"]
