"""``fabric-plan``: plans, simulations and what-ifs from the command line."""
