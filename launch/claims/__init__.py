"""The story's claims as experiments: each is run, measured, drawn, and held against what it says."""
