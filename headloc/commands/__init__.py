"""What the commands of the command line do; each imports its heavy parts itself."""
