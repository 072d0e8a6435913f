"""From what a user wants to a placement that was simulated: what every command puts together."""
