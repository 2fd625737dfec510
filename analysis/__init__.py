"""Analyses of a circuit, one file per question (imported as `headloc.analysis`)."""
