"""From the heads that training selected to those that carry the task alone (METHODS 3.5, 3.6)."""
