"""Measurements of speed and memory: ratios within one run, never bare seconds.

Importing this package is cheap: nothing here loads torch or transformers.
"""
