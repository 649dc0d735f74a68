"""What a run is: one typed schema, presets, flags. Imports nothing of ours."""
