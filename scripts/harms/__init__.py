"""What ``scripts/harm_ranks`` measures, and how it compares that."""
