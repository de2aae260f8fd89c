"""`make bench`: how fast a whole gateway is on one core, and where its time goes."""
