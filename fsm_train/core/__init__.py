"""The machine: records, table, merge. Pure: no torch, no clock, no files, no randomness of its own."""
