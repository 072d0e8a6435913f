"""When requests come, for whom, and how long they are."""
