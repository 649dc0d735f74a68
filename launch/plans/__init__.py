"""What a plan is made of: chips and their topologies, compiling for them, reading the program, pricing it."""
