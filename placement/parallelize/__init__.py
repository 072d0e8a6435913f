"""How one model is best cut over devices: between operators, and within them."""
