"""Find the recipe that does the least harm for a number of bytes."""
