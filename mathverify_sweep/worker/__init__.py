"""Workers: the loop that owns runs, and the engine process that trains them."""
