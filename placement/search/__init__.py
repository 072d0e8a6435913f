"""Which groups of devices there should be, and which models each hosts."""
