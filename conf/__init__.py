"""The configuration that ships with headloc (mapped to `headloc.conf` in an installation)."""
