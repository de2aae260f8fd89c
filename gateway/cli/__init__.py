"""The subcommands of `gateway`, one module a subject. They parse options and print; the work is done elsewhere."""
