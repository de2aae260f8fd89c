"""The prefilter's parts: how it reads a message, its network, and how both are kept in files."""
