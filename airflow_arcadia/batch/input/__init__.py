"""Read the input: where it is, its tables, where each row starts, and what a row asks for."""
