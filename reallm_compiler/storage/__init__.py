"""Size laws: which sections a stage stores, from parameters and shapes alone."""
