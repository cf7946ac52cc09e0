"""The model of a checkpoint or an archive at work: built, named, fed with text, block by block."""
