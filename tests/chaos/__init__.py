"""`make chaos`: real processes, broken in every way that there is, under load. Linux only."""
