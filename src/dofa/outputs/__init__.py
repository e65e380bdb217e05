"""Files that features and maps are written to and read from: one layout, three formats, atomic and resumable."""
