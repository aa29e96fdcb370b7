"""Files that are there whole or not at all, whenever the machine or the process stops."""
