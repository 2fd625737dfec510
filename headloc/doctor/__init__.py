"""Is a model fit for headloc? What `headloc doctor` asks of a checkpoint, in about a minute."""
