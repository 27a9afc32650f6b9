"""What the paper claims: numbers alone, one question a file; the tools print them."""
