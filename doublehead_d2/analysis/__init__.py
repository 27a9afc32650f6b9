"""Studies of the systems: numbers, one question a file; the tools print them."""
