"""From the heads that training selected to those that carry the task alone (Hu et al. 2025)."""
