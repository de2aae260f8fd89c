"""Composition root: the only place that builds adapters and wires them to the web layer."""

from gateway.app.process import Process
from gateway.app.server import create, serve
from gateway.app.stages import Stages, check_online, load_registry

__all__ = ["Process", "Stages", "check_online", "create", "load_registry", "serve"]
