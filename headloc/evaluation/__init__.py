"""Scoring of prompts and head sets: metrics, intervals, the verdict, reference searches."""
