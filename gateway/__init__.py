"""Taskgate: a centralized LLM gateway for many teams."""

__version__ = "0.1.0"
