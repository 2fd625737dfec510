"""Localization: training gates over the heads of a frozen model, selection, the verdict."""
