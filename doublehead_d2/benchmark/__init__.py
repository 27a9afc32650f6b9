"""What a detector costs: seconds, memory, operations and parameters; the tools print them."""
