"""Ways of ranking heads that learned gates are compared with."""
